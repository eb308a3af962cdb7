"""prompts.py: the questions, answered through a real terminal as a person would type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from Project7 import prompts, recipe
from Project7.config import RunConfig, to_json
from Project7.model_folder import list_models
from Project7.prompts import missing_flags, questions

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "Project7" / "train_diffusion.py"
ENTER, CTRL_C, CLEAR_LINE, UP, DOWN = "\r", "\x03", "\x15", "\x1b[A", "\x1b[B"
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}

QUESTIONS = {
    "features": "U-Net features [64,128,256,512]:",
    "time_dim": "Time embedding dim [256]:",
    "timesteps": "Diffusion timesteps [1000]:",
    "batch_size": "Batch size [16]:",
    "learning_rate": "Learning rate [0.0001]:",
    "epochs": "Number of epochs [50]:",
    "data": "Training images (folder, zip, or 'samples') [samples]:",
}
HEADINGS = {"features": "Model architecture", "batch_size": "Training", "data": "Images"}

DRIVER = """
import json, sys
from pathlib import Path
from Project7 import errors, prompts

def main():
    answer = prompts.{call}
    print("ANSWER", json.dumps(answer), "END")

here = Path(sys.argv[1])
sys.exit(errors.run(main))
"""


class Terminal:
    """A program in a terminal, and the person before it."""

    def __init__(self, *command: Path | str, **environment: str):
        self.child = pexpect.spawn(
            sys.executable,
            [str(part) for part in command],
            env=ENVIRONMENT | environment,
            encoding="utf-8",
            timeout=60,
            dimensions=(40, 240),
        )

    def sees(self, text: str) -> "Terminal":
        self.child.expect_exact(text)
        return self

    def types(self, text: str) -> "Terminal":
        self.child.send(text)
        return self

    def answer(self) -> object:
        """What the function of the driver returned."""
        self.child.expect("ANSWER (.*) END")
        answer = json.loads(self.child.match.group(1))
        assert self.ends() == 0
        return answer

    def ends(self) -> int:
        """The exit code."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.fixture
def ask(tmp_path):
    """Calls a function of prompts.py in a terminal; `here` is the models folder."""
    terminals = []

    def ask(call: str, **environment: str) -> Terminal:
        driver = tmp_path / "driver.py"
        driver.write_text(DRIVER.format(call=call))
        terminals.append(Terminal(driver, tmp_path / "models", **environment))
        return terminals[-1]

    yield ask
    for terminal in terminals:
        terminal.child.close(force=True)


def make_models(models_dir: Path, *names: str) -> None:
    for name in names:
        (models_dir / name).mkdir(parents=True)
        (models_dir / name / "config.json").write_text(to_json(RunConfig()))


# -- which model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ("2" + ENTER, "beta"),
        ("3" + ENTER, None),
        (ENTER, None),  # "Create new model" is the default
        (UP + UP + DOWN + DOWN + UP + UP + ENTER, "alpha"),
    ],
    ids=["2", "3", "enter", "up"],
)
def test_a_model_is_chosen_by_number_or_arrows(ask, tmp_path, keys, chosen):
    make_models(tmp_path / "models", "beta", "alpha")
    terminal = ask("ask_model(here)").sees("Do you want to resume from an existing model?")
    terminal.sees("1. alpha").sees("2. beta").sees("3. Create new model").types(keys)
    assert terminal.answer() == chosen


def test_more_models_than_digits_are_chosen_with_arrows(ask, tmp_path):
    make_models(tmp_path / "models", *(f"m{number:02}" for number in range(1, 13)))
    terminal = ask("ask_model(here)").sees("12. m12").sees("13. Create new model").types(UP + ENTER)
    assert terminal.answer() == "m12"


def test_a_model_line_says_what_it_reached(tmp_path):
    make_models(tmp_path, "alpha")
    (tmp_path / "alpha" / "training_history.json").write_text('[{"val_loss": 0.5}, {"val_loss": 0.25}]')
    (model,) = list_models(tmp_path)
    assert prompts._model_line(1, model) == "1. alpha  (epoch 2, unfinished, best loss 0.2500, no weights yet)"


def test_without_models_there_is_nothing_to_choose(tmp_path, capsys):
    assert prompts.ask_model(tmp_path) is None
    assert "this will be the first" in " ".join(capsys.readouterr().out.split())


# -- its name --------------------------------------------------------------------------------------------------------


def test_a_bad_name_is_explained_and_asked_again(ask, tmp_path):
    make_models(tmp_path / "models", "taken")
    terminal = ask("ask_name(here, 'model-1')").sees("Model name [model-1]:")
    for bad, said in [
        ("a/b", "'a/b' cannot name a model"),
        ("taken", "There is a model 'taken' already; choose another name."),
        ("x" * 65, f"'{'x' * 65}' cannot name a model"),
        ("..", "'..' cannot name a model"),
    ]:
        terminal.types(bad + ENTER).sees(said).types(CLEAR_LINE)
    terminal.types(" mine " + ENTER)
    assert terminal.answer() == "mine"


def test_enter_takes_the_suggested_name(ask):
    assert (
        ask("ask_name(here, prompts.free_name(here))").sees("Model name [model-1]:").types(ENTER).answer() == "model-1"
    )


def test_the_suggested_name_is_free(tmp_path):
    make_models(tmp_path, "model-1", "model-2", "model-4")
    assert prompts.free_name(tmp_path) == "model-3"


# -- the settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_enter_takes_every_default_in_the_order_of_the_document(ask, term):
    terminal = ask("ask_settings({})", TERM=term)
    for name, question in QUESTIONS.items():
        if name in HEADINGS:
            terminal.sees(HEADINGS[name])
        terminal.sees(question).types(ENTER)
    assert terminal.answer() == {}


def test_typed_values_are_the_answers(ask):
    typed = {
        "features": "32, 64",
        "time_dim": "128",
        "timesteps": "200",
        "batch_size": "4",
        "learning_rate": "5e-5",
        "epochs": "3",
        "data": "samples",
    }
    terminal = ask("ask_settings({})")
    for name, question in QUESTIONS.items():
        terminal.sees(question).types(typed[name] + ENTER)
    assert terminal.answer() == typed


def test_bad_values_are_explained_and_asked_again(ask):
    """And what was given as a flag is not asked."""
    given = {name: "1" for name in QUESTIONS if name not in ("features", "epochs", "learning_rate")}
    terminal = ask(f"ask_settings({given})")
    for name, bad, said, good in [
        ("features", "64,x", "x: input should be a valid integer", "64,128"),
        ("learning_rate", "-1", "-1: input should be greater than 0", "1e-3"),
        ("epochs", "0", "0: input should be greater than or equal to 1", "2"),
    ]:
        terminal.sees(QUESTIONS[name]).types(bad + ENTER).sees(said).types(CLEAR_LINE + good + ENTER)
    assert terminal.answer() == {"features": "64,128", "learning_rate": "1e-3", "epochs": "2"}


def test_epochs_to_add(ask):
    terminal = ask("ask_epochs_to_add('mine', 50)").sees("mine has finished its 50 epochs. How many more? [10]:")
    for bad in ("0", "x", "-3", "1.5", "²"):
        terminal.types(bad + ENTER).sees(f"'{bad}' is not a number of epochs").types(CLEAR_LINE)
    terminal.types("7" + ENTER)
    assert terminal.answer() == "7"


# -- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "question"),
    [("ask_model(here)", "Do you want to resume"), ("ask_name(here, 'model-1')", "Model name")],
)
def test_ctrl_c_at_a_question_exits_130(ask, tmp_path, call, question):
    make_models(tmp_path / "models", "alpha")
    terminal = ask(call).sees(question).types(CTRL_C).sees("Stopped.")
    assert terminal.ends() == 130


def test_the_training_script_asks_in_order_and_ctrl_c_leaves_nothing(tmp_path):
    """The real program, up to its last question."""
    models = tmp_path / "models"
    terminal = Terminal(SCRIPT, "--models-dir", models)
    terminal.sees("this will be the first").sees("Model name [model-1]:").types("mine" + ENTER)
    *earlier, last = QUESTIONS.values()
    for question in earlier:
        terminal.sees(question).types(ENTER)
    terminal.sees(last).types(CTRL_C).sees("Stopped.")
    assert terminal.ends() == 130
    assert not models.exists()


# -- without a terminal ----------------------------------------------------------------------------------------------

CLOSED = ["sh", "-c", 'exec "$@" <&-', "sh"]


@pytest.mark.parametrize("before", [[], CLOSED], ids=["null", "closed"])
def test_without_a_terminal_the_missing_flags_are_named(tmp_path, before):
    command = [*before, sys.executable, str(SCRIPT), "--models-dir", str(tmp_path / "models"), "--epochs", "1"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1
    for flag in ("--name", "--features", "--batch-size", "--data", "--yes"):
        assert flag in result.stderr
    assert "--epochs" not in result.stderr, "it was given"
    assert not (tmp_path / "models").exists()


def test_an_existing_model_is_not_trained_over(tmp_path):
    make_models(tmp_path, "mine")
    command = [sys.executable, str(SCRIPT), "--models-dir", str(tmp_path), "--name", "mine", "--yes"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "--resume mine" in result.stderr
    assert os.listdir(tmp_path / "mine") == ["config.json"]


# -- questions and flags ---------------------------------------------------------------------------------------------


def test_the_questions_are_those_of_the_document_in_its_order():
    assert list(questions()) == list(QUESTIONS)


def test_every_question_has_a_flag():
    text = recipe.make_parser("About.").format_help()
    assert all(f"\n  {flag} " in text for flag in missing_flags({}, None))
    assert missing_flags({}, None) == ["--name", *(f"--{name.replace('_', '-')}" for name in QUESTIONS)]


def test_what_was_given_is_not_missing():
    assert missing_flags(dict.fromkeys(QUESTIONS, "1"), "mine") == []
    assert missing_flags({"features": "8", "data": "samples"}, None) == [
        "--name", "--time-dim", "--timesteps", "--batch-size", "--learning-rate", "--epochs",
    ]  # fmt: skip
