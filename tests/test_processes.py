"""Which of several processes this is, and its share of the work."""

import os

import pytest

from Project7.errors import ProjectError, UsageError
from Project7.processes import check_launch, is_main_process, own_share, reaching_the_others, several_processes


def test_shares_of_several_processes_are_all_items_and_each_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert several_processes()
        assert is_main_process() == (rank == 0)
        shares.append(own_share(range(8)))
    assert sorted(item for share in shares for item in share) == list(range(8))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_alone_everything_is_ones_own(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert "RANK" not in os.environ
    assert list(own_share([1, 2])) == [1, 2]
    assert is_main_process()


def test_a_launcher_that_has_started_one_of_several_processes_is_refused(monkeypatch):
    """In the environments that `accelerate launch` makes without a GPU, and in torchrun's."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    def launch(*flags: str) -> None:
        arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(["--cpu", *flags, "script.py"]))
        with monkeypatch.context() as patch:
            for name, value in prepare_simple_launcher_cmd_env(arguments)[1].items():
                patch.setenv(name, value)
            check_launch()

    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    launch("--num_processes", "1")
    second = ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "10.0.0.1", "--main_process_port", "1"]
    for flags in (["--num_processes", "2"], ["--num_processes", "2", *second]):
        with pytest.raises(UsageError, match=r"started only this one.*torchrun"):
            launch(*flags)
    monkeypatch.setenv("RANK", "1")
    launch("--num_processes", "2")


def test_a_process_that_lost_the_others_says_so_in_a_sentence(monkeypatch):
    text = (
        "[/build/gloo/transport/tcp/pair.cc:545] Read error [10.0.0.1]:1: Connection reset by peer. Check the logs. :-)"
    )

    def lose(error: Exception) -> None:
        with reaching_the_others("start them again"):
            raise error

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ProjectError, match=r"reached \(Read error .*: Connection reset by peer\); start them again\.$"):
        lose(RuntimeError(text))
    with pytest.raises(RuntimeError, match="another reason"):
        lose(RuntimeError("another reason"))
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(RuntimeError, match="gloo"):
        lose(RuntimeError(text))
