"""Which of several processes this is, and its share of the work."""

import os

from Project7.processes import is_main_process, own_share, several_processes


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
