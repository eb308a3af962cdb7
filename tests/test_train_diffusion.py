"""The recipe as a person runs it: stopping and resuming, with separate processes where they are killed, and real
terminals."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pexpect
import pytest
import torch
from conftest import call
from PIL import Image
from terminal import open_terminal

from Project7 import model_folder, train_diffusion
from Project7.checkpoints import load_checkpoint

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "Project7" / "train_diffusion.py"
SMALL = (
    "--encoder none --features 8,16 --time-dim 16 --timesteps 50 --batch-size 4 --image-size 16 --device cpu".split()
)
SMALL += ["--image-interval", "0"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(24):
        small = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
        Image.fromarray(small).resize((24, 20), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("PROJECT7_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def train(place, *flags):
    return call(train_diffusion.main, "--models-dir", place / "models", *flags)


def flags_of(photos, *, name="m", epochs=2):
    return ["--name", name, "--data", photos, "--epochs", epochs, "--yes", *SMALL]


def small(place, photos, *flags, **named):
    return train(place, *flags_of(photos, **named), *flags)


def killed(place, photos, *, at, epochs):
    """Runs in a separate process, which kills itself at a fault point."""
    process = open_terminal(SCRIPT, place / "models", *flags_of(photos, epochs=epochs), PROJECT7_FAULT=at)
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus == -signal.SIGKILL


def test_killed_before_the_first_save_a_run_begins_anew(place, photos):
    """Only config.json exists then: --resume uses its settings, and --name may reuse the folder."""
    killed(place, photos, at="before-rename:2", epochs=1)
    folder = place / "models" / "m"
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {"logs"} == {"config.json"}
    shutil.copytree(folder, place / "models" / "n")
    resumed = train(place, "--resume", "m", "--yes")
    assert resumed.returncode == 0, resumed.stderr
    assert "begins anew with the settings in its config.json" in resumed.stdout
    assert last(place)["epoch"] == 1
    assert json.loads((folder / "config.json").read_text())["model"]["features"] == [8, 16]
    named = small(place, photos, name="n", epochs=1)
    assert named.returncode == 0, named.stderr
    assert same_weights(last(place), last(place, "n"))


def test_the_settings_of_a_launcher_change_nothing(place, photos, monkeypatch):
    """`accelerate launch --dynamo_backend eager` would write weights that cannot be resumed."""
    assert small(place, photos, epochs=1).returncode == 0
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "7")
    assert small(place, photos, epochs=1, name="launched").returncode == 0
    assert same_weights(last(place), last(place, "launched"))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    refused = small(place, photos, name="x")
    assert (refused.returncode, "FSDP, which is not supported" in refused.stderr) == (2, True)
    assert not (place / "models" / "x").exists()


def last(place, name="m"):
    return load_checkpoint(place / "models" / name / "last_model.pth")


def same_weights(a, b):
    return all(torch.equal(t, b["raw_state_dict"][n]) for n, t in a["raw_state_dict"].items())


def test_train_stop_resume_add_epochs_and_copy(place, photos):
    """It follows the life of one model, with the refusals on the way."""
    done = small(place, photos)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr  # no escape codes in a pipe
    folder = place / "models" / "m"
    assert {"best_model.pth", "last_model.pth", "config.json", "training_history.json"} <= {
        p.name for p in folder.iterdir()
    }
    assert len(json.loads((folder / "training_history.json").read_text())) == 2

    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    complete = train(place, "--resume", "m")
    assert complete.returncode == 0
    assert "complete" in complete.stdout
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before  # nothing rewritten

    taken = small(place, photos)
    assert taken.returncode == 2
    assert "--resume m" in taken.stderr
    refused = train(place, "--resume", "m", "--epochs", 1, "--features", "8,32", "--seed", 0, "--batch-size", 8)
    assert refused.returncode == 2
    assert "--features" in refused.stderr
    assert "--batch-size" in refused.stderr
    assert "--seed" not in refused.stderr  # it repeats the stored value

    copied = train(place, "--resume", "m", "--name", "copy", "--epochs", 1, "--features", "8,16")
    assert copied.returncode == 0, copied.stderr
    assert last(place, "copy")["epoch"] == 3
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before

    straight = small(place, photos, name="straight", epochs=3)
    assert straight.returncode == 0
    assert same_weights(last(place, "straight"), last(place, "copy"))


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_says_how_to_go_on(place, photos, signum, code):
    terminal = open_terminal(SCRIPT, place / "models", *flags_of(photos, epochs=400))
    terminal.expect(r"epoch 2/400 +step \d+ +train")
    os.kill(terminal.process.pid, signum)
    terminal.expect(pexpect.EOF)
    terminal.close()
    seen = terminal.logfile_read.getvalue()
    assert terminal.exitstatus == code, seen
    assert "--resume m" in seen
    step = int(re.search(r"Stopped at step (\d+)", seen).group(1))
    assert last(place)["progress"]["step"] == step
    assert last(place)["epoch"] >= 2


@pytest.mark.slow
def test_kill_between_the_two_files_and_resume(place, photos):
    """SIGKILL arrives while a checkpoint is being replaced: the old one is kept, and the run reaches the same end."""
    straight = small(place, photos, name="straight", epochs=3)
    assert straight.returncode == 0, straight.stderr
    killed(place, photos, at="before-rename:6", epochs=3)
    resumed = train(place, "--resume", "m")
    assert resumed.returncode == 0, resumed.stderr
    assert same_weights(last(place, "straight"), last(place))


def test_a_damaged_last_checkpoint_falls_back_to_the_best(place, photos):
    assert small(place, photos).returncode == 0
    path = place / "models" / "m" / "last_model.pth"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    resumed = train(place, "--resume", "m", "--epochs", 1)
    assert resumed.returncode == 0, resumed.stderr
    assert "checksum" in resumed.stdout
    assert last(place)["epoch"] >= 2
    path.write_bytes(b"junk")
    (place / "models" / "m" / "best_model.pth").write_bytes(b"junk")
    hopeless = train(place, "--resume", "m", "--epochs", 1)
    assert hopeless.returncode == 1
    assert "Traceback" not in hopeless.stderr


def test_other_images_are_refused_and_the_same_elsewhere_are_not(place, photos):
    assert small(place, photos, epochs=1).returncode == 0
    moved = place / "moved"
    shutil.copytree(photos, moved)
    assert train(place, "--resume", "m", "--epochs", 1, "--data", moved).returncode == 0
    Image.new("RGB", (20, 20), "red").save(moved / "0.png")
    changed = train(place, "--resume", "m", "--epochs", 1)
    assert changed.returncode == 2
    assert "--allow-data-change" in changed.stderr
    assert train(place, "--resume", "m", "--epochs", 1, "--allow-data-change").returncode == 0


def test_from_a_folder_with_an_odd_name(tmp_path, photos):
    odd = tmp_path / "Müllers [alte] 'Fotos' & mehr; 100%"
    shutil.copytree(photos, odd / "Bilder")
    flags = flags_of(odd / "Bilder", epochs=1)
    done = call(train_diffusion.main, "--models-dir", odd / "models", "--cache-dir", odd / "cache", *flags)
    assert done.returncode == 0, done.stderr
    assert "Müllers [alte] 'Fotos' & mehr; 100%" in done.stdout
    copy = odd / "Project7"
    shutil.copytree(ROOT / "Project7", copy, ignore=shutil.ignore_patterns("weights", "static", "__pycache__"))
    command = [sys.executable, str(copy), "models", "--models-dir", str(odd / "models")]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert " m " in listed.stdout


def test_a_schedule_with_an_end_needs_a_new_one(place, photos):
    assert small(place, photos, "--lr-schedule", "cosine", epochs=1).returncode == 0
    refused = train(place, "--resume", "m", "--epochs", 1)
    assert refused.returncode == 2
    assert "--lr-schedule" in refused.stderr
    assert (
        train(place, "--resume", "m", "--epochs", 1, "--lr-schedule", "cosine", "--learning-rate", "5e-5").returncode
        == 0
    )
    assert train(place, "--resume", "m", "--epochs", 1, "--learning-rate", "1e-5").returncode == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--name", "m"], ["--features", "--epochs", "--yes"]),
        (["--name", "../m", "--yes"], ["cannot name a model"]),
        (["--name", "m", "--yes", "--features", "8,x"], ["--features"]),
        (["--name", "m", "--yes", "--learning-rate", "-1"], ["--learning-rate"]),
        (["--name", "m", "--yes", "--data", "nowhere"], ["nowhere"]),
        (["--name", "m", "--yes", "--nonsense"], ["--nonsense"]),
        (["--resume", "ghost"], ["ghost"]),
        (["--name", "m", "--yes", "--prediction-type", "epsilon", "--zero-terminal-snr"], ["--no-zero-terminal-snr"]),
    ],
)
def test_bad_requests_exit_2_with_one_sentence_and_leave_nothing(place, flags, words):
    done = train(place, *flags)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)
    assert not (place / "models" / "m").exists()


def test_two_runs_on_one_folder(place, photos):
    assert small(place, photos, epochs=1).returncode == 0
    from filelock import FileLock

    with FileLock(place / "models" / "m" / ".lock"):
        second = train(place, "--resume", "m", "--epochs", 1)
    assert second.returncode == 1
    assert "in use" in second.stderr


def test_where_there_are_no_locks_that_is_said(place, photos, monkeypatch):
    @contextlib.contextmanager
    def no_lock(path, *, timeout=-1):
        yield False

    monkeypatch.setattr(model_folder, "file_lock", no_lock)
    done = small(place, photos, epochs=1)
    assert done.returncode == 0, done.stderr
    assert "does not support locks: make sure that no second training runs in this folder" in done.stdout


def test_from_inside_the_package_folder_and_as_a_module(place, photos):
    for command, cwd in (
        ([sys.executable, "train_diffusion.py"], ROOT / "Project7"),
        ([sys.executable, "-m", "Project7.train_diffusion"], ROOT),
    ):
        done = subprocess.run([*command, "--help"], cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "--learning-rate" in done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("launch", ["as a launcher does", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_the_same_model_as_one(place, photos, launch):
    """Two processes with batches of 2, and one process with batches of 4, have the same global batch and model."""
    assert small(place, photos, name="one", epochs=2).returncode == 0
    flags = [*flags_of(photos, name="two"), "--batch-size", 2]
    two_processes[launch](place, flags)
    one, two = last(place, "one"), last(place, "two")
    assert one["progress"]["step"] == two["progress"]["step"]
    assert max((t - two["raw_state_dict"][n]).abs().max().item() for n, t in one["raw_state_dict"].items()) < 1e-4
    for measure in ("train_loss", "val_loss", "grad_norm"):  # AdamW does not notice a gradient of another length
        assert one["history"][-1][measure] == pytest.approx(two["history"][-1][measure], rel=1e-4)
    for name in ("one", "two"):  # each curve is written once
        assert len(list((place / "models" / name / "logs").iterdir())) == 1


def by_torchrun(place, flags):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    command = [*launch, "--models-dir", str(place / "models"), *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]


def by_their_environment(place, flags):
    """Starts two processes with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank in "01":
        which = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        started.append(open_terminal(SCRIPT, place / "models", *flags, **address, **which))
    for terminal in started:
        terminal.expect(pexpect.EOF)
        terminal.close()
        assert terminal.exitstatus == 0, terminal.logfile_read.getvalue()[-3000:]


two_processes = {"torchrun": by_torchrun, "as a launcher does": by_their_environment}


def test_the_questions_in_a_real_terminal(place, photos):
    """A person creates a model, with a bad answer on the way, and then resumes it from the list."""
    arguments = [str(SCRIPT), "--models-dir", str(place / "models"), "--image-size", "16", "--device", "cpu"]
    arguments += ["--encoder", "none"]  # quick
    terminal = pexpect.spawn(sys.executable, arguments, cwd=place, encoding="utf-8", timeout=60, dimensions=(40, 120))
    for question, answer in (
        ("Model name", "my/model\rmy-model\r"),
        ("U-Net features", "8,x\r8,16\r"),
        ("Time embedding dim", "16\r"),
        ("Diffusion timesteps", "\r"),
        ("Batch size", "4\r"),
        ("Learning rate", "1e-3\r"),
        ("Number of epochs", "1\r"),
        ("Training images", f"{photos}\r"),
        ("an epoch takes about|too short a run", ""),
        (r"Start\? \[Y/n\]", "\r"),
    ):
        terminal.expect(question)
        for line in answer.split("\r")[:-1]:
            terminal.send(line + "\r")
            if line in ("my/model", "8,x"):
                terminal.expect("cannot name a model" if "/" in line else "valid integer")
                terminal.send("\x15")  # Ctrl-U: clear the line
    terminal.expect("Done: 1 epoch", timeout=120)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    config = json.loads((place / "models" / "my-model" / "config.json").read_text())
    assert config["model"]["features"] == [8, 16]
    assert config["model"]["timesteps"] == 1000
    assert config["training"]["learning_rate"] == 1e-3

    terminal = open_terminal(SCRIPT, place / "models")
    terminal.expect("resume from an existing model")
    terminal.expect("my-model")
    terminal.send("1\r")
    terminal.expect("How many more")
    terminal.send("1\r")
    terminal.expect("Start")
    terminal.send("\r")
    terminal.expect("Done: 2 epochs", timeout=120)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
