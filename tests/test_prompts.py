"""prompts.py: the questions, answered through a real terminal as a person would type."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from PIL import Image
from terminal import Terminal

from Project7 import prompts, recipe, request
from Project7.config import SECTIONS, RunConfig, to_json
from Project7.loss_config import LossConfig
from Project7.model_config import ClassificationConfig
from Project7.model_folder import list_models
from Project7.prompts import missing_flags, questions
from Project7.training_config import ObjectiveConfig

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "Project7" / "train_diffusion.py"
ENTER, CTRL_C, CTRL_D, CLEAR_LINE, UP, DOWN = "\r", "\x03", "\x04", "\x15", "\x1b[A", "\x1b[B"

QUESTIONS = {
    "features": "U-Net features [64,128,256,512]:",
    "time_dim": "Time embedding dim [256]:",
    "timesteps": "Diffusion timesteps [1000]:",
    "batch_size": "Batch size [16]:",
    "learning_rate": "Learning rate [0.0001]:",
    "epochs": "Number of epochs [50]:",
    "data": "Training images (folder, zip, or 'samples') [samples]:",
    "image_size": "Image size [64]:",
}
HEADINGS = {"features": "Model architecture", "batch_size": "Training", "data": "Images"}
LOSS_QUESTIONS = {
    "mse_weight": "MSE weight [1]:",
    "perceptual_weight": "Perceptual weight [0.1]:",
    "gan": "Use GAN discriminator? (y/n) [n]:",
    "adversarial_weight": "Adversarial weight [0.01]:",
}
V2 = SECTIONS | {"objective": ObjectiveConfig}
SIMPLE = recipe.regression("simple.py", "About.", loss="simple", outputs="ab")
RESTORATION = recipe.regression("restoration.py", "About.", loss="enhanced", outputs="lab")

DRIVER = """
import json, sys
from pathlib import Path
from Project7 import program, prompts
from Project7.config import SECTIONS
from Project7.training_config import ObjectiveConfig

def mse(given):
    return SECTIONS

def terms(given):
    return {{"objective": ObjectiveConfig}}

def main():
    answer = prompts.{call}
    print("ANSWER", json.dumps(answer), "END")

here = Path(sys.argv[1])
sys.exit(program.run(main))
"""


class Person:
    """A program in a terminal, and the person who uses it."""

    def __init__(self, *command: Path | str, **environment: str):
        self.child = Terminal(*map(str, command), **environment)

    def sees(self, text: str) -> "Person":
        self.child.expect_exact(text)
        return self

    def types(self, text: str) -> "Person":
        self.child.send(text)
        return self

    def answer(self) -> object:
        """The result of the driver's function."""
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

    def ask(call: str, **environment: str) -> Person:
        driver = tmp_path / "driver.py"
        driver.write_text(DRIVER.format(call=call))
        terminals.append(Person(driver, tmp_path / "models", **environment))
        return terminals[-1]

    yield ask
    for terminal in terminals:
        terminal.child.close()


def make_models(models_dir: Path, *names: str) -> None:
    for name in names:
        (models_dir / name).mkdir(parents=True)
        (models_dir / name / "config.json").write_text(to_json(RunConfig()))


def test_a_wrong_path_is_named_and_asked_again_at_that_question(ask, tmp_path):
    """Earlier answers are not lost, and a path may be quoted."""
    (tmp_path / "empty").mkdir()
    photos = tmp_path / "my photos"
    photos.mkdir()
    Image.new("RGB", (8, 8)).save(photos / "a.png")
    given = {name: "1" for name in QUESTIONS if name not in ("epochs", "data")}
    terminal = ask(f"ask_settings({given}, mse)").sees(QUESTIONS["epochs"]).types("3" + ENTER)
    terminal.sees(QUESTIONS["data"])
    for bad, said in [("nowhere", "nowhere does not exist"), (str(tmp_path / "empty"), "holds no image")]:
        terminal.types(bad + ENTER).sees(said).types(CLEAR_LINE)
    terminal.types(f"'{photos}'" + ENTER)
    assert terminal.answer() == {"epochs": "3", "data": str(photos)}


def test_the_way_back(ask):
    given = {name: "1" for name in QUESTIONS if name not in ("batch_size", "learning_rate", "epochs")}
    terminal = ask(f"ask_settings({given}, mse)").sees(QUESTIONS["batch_size"]).types("7" + ENTER)
    terminal.sees(QUESTIONS["learning_rate"]).types("1" + ENTER).sees(QUESTIONS["epochs"]).types("<" + ENTER)
    terminal.sees(QUESTIONS["learning_rate"]).types("<" + ENTER).sees(QUESTIONS["batch_size"]).types("8" + ENTER)
    terminal.sees(QUESTIONS["learning_rate"]).types(ENTER).sees(QUESTIONS["epochs"]).types("2" + ENTER)
    assert terminal.answer() == {"batch_size": "8", "epochs": "2"}


def test_from_the_first_setting_the_way_back_leads_to_the_name_and_to_the_list(tmp_path, monkeypatch):
    asked = []
    typed = iter(["one", "<", "<", "two", *[""] * len(QUESTIONS)])

    def text(message, validate, **_):
        asked.append(message.split(" [")[0])
        answer = next(typed)
        if answer == prompts.BACK:
            raise prompts.Back
        return answer

    monkeypatch.setattr(prompts, "can_ask", lambda: True)
    monkeypatch.setattr(prompts, "_ask", text)
    monkeypatch.setattr(prompts, "ask_model", lambda *_, **__: asked.append("list") or (None, False))
    of = recipe.Recipe("train.py", "About.", SECTIONS)
    wanted = request.gather(of, recipe.make_parser(of).parse_args(["--models-dir", str(tmp_path)]))
    assert wanted.folder.name == "two"
    assert asked[:6] == ["list", "Model name", "U-Net features", "Model name", "list", "Model name"]


@pytest.mark.parametrize(("typed", "start"), [("", True), ("NO", False)])
def test_a_person_agrees_or_does_not(ask, typed, start):
    terminal = ask("agreed()").sees("Start? [Y/n]:").types("perhaps" + ENTER).sees("Answer y or n.").types(CLEAR_LINE)
    assert terminal.types(typed + ENTER).answer() is start


# -- which model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        ("2" + ENTER, "beta"),
        (ENTER, None),  # "Create new model" is the default
        (UP + UP + DOWN + DOWN + UP + UP + ENTER, "alpha"),
    ],
    ids=["2", "enter", "up"],
)
def test_a_model_is_chosen_by_number_or_arrows(ask, tmp_path, keys, chosen):
    make_models(tmp_path / "models", "beta", "alpha")
    terminal = ask("ask_model(here)").sees("Do you want to resume from an existing model?")
    terminal.sees("1) alpha").sees("2) beta").sees("3) Create new model").types(keys)
    assert terminal.answer() == [chosen, False]


@pytest.mark.parametrize(
    ("names", "keys", "chosen"),
    [
        (["alpha"], "2" + ENTER, [None, False]),
        (["alpha"], "3" + ENTER, [None, True]),
        ([], ENTER, [None, True]),  # the recommended way is the default
        ([], UP + ENTER, [None, False]),
    ],
)
def test_where_there_are_stages_they_are_the_last_choice(ask, tmp_path, names, keys, chosen):
    make_models(tmp_path / "models", *names)
    terminal = ask("ask_model(here, stages=True)")
    if not names:
        terminal.sees("this will be the first")
    terminal.sees(f"{len(names) + 1}) Create new model").sees(f"{len(names) + 2}) Create new model, in two stages")
    assert terminal.types(keys).answer() == chosen


def test_own_models_come_first_and_those_of_other_scripts_are_named_and_not_offered(tmp_path, monkeypatch, capsys):
    make_models(tmp_path, "base", "mine", "classes", "terms")
    for name, changes in {
        "base": {"shipped": True},
        "classes": {"model": ClassificationConfig()},
        "terms": {"objective": ObjectiveConfig()},
    }.items():
        (tmp_path / name / "config.json").write_text(to_json(RunConfig(**changes)))
    offered = []
    monkeypatch.setattr(prompts, "_choose", lambda question, lines, **_: offered.append(list(lines)) or (None, False))
    for sections in (SECTIONS, V2):
        of = recipe.Recipe("train.py", "About.", sections)
        prompts.ask_model(tmp_path, lambda model, of=of: request.can_continue(of, model))
    assert [[line.split()[0] for line in lines] for lines in offered] == [
        ["mine", "base", "Create"],
        ["mine", "terms", "base", "Create"],
    ]
    assert "resumed here (see `project7 models`): classes, terms." in " ".join(capsys.readouterr().out.split())


def test_more_models_than_digits_are_chosen_with_arrows(ask, tmp_path):
    make_models(tmp_path / "models", *(f"m{number:02}" for number in range(1, 13)))
    terminal = ask("ask_model(here)").sees("12. m12").sees("13. Create new model").types(UP + ENTER)
    assert terminal.answer() == ["m12", False]


def test_a_model_line_says_what_it_reached(tmp_path):
    make_models(tmp_path, "alpha")
    (tmp_path / "alpha" / "training_history.json").write_text('[{"best_val_loss": 0.5}, {"best_val_loss": 0.25}]')
    (model,) = list_models(tmp_path)
    assert prompts._model_line(model) == "alpha  (epoch 2, unfinished, best loss 0.2500, no weights yet)"


def test_without_models_there_is_nothing_to_choose(tmp_path, capsys):
    assert prompts.ask_model(tmp_path) == (None, False)
    assert "this will be the first" in " ".join(capsys.readouterr().out.split())


# -- its name --------------------------------------------------------------------------------------------------------


def test_a_bad_name_is_explained_and_asked_again(ask, tmp_path):
    make_models(tmp_path / "models", "taken", "never-saved")
    (tmp_path / "models" / "taken" / "best_model.pth").touch()
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
    terminal = ask("ask_settings({}, mse)", TERM=term)
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
        "image_size": "32",
    }
    terminal = ask("ask_settings({}, mse)")
    for name, question in QUESTIONS.items():
        terminal.sees(question).types(typed[name] + ENTER)
    assert terminal.answer() == typed


def test_bad_values_are_explained_and_asked_again(ask):
    """A setting that was given as a flag is not asked for."""
    given = {name: "1" for name in QUESTIONS if name not in ("features", "epochs", "learning_rate")}
    terminal = ask(f"ask_settings({given}, mse)")
    for name, bad, said, good in [
        ("features", "64,x", "x: input should be a valid integer", "64,128"),
        ("learning_rate", "-1", "-1: input should be greater than 0", "1e-3"),
        ("epochs", "0", "0: input should be greater than or equal to 1", "2"),
    ]:
        terminal.sees(QUESTIONS[name]).types(bad + ENTER).sees(said).types(CLEAR_LINE + good + ENTER)
    assert terminal.answer() == {"features": "64,128", "learning_rate": "1e-3", "epochs": "2"}


@pytest.mark.parametrize(("answer", "asked"), [("", False), ("No", False), (" YES ", True)])
def test_the_adversarial_weight_is_asked_for_only_with_a_discriminator(ask, answer, asked):
    terminal = ask("ask_settings({}, terms)").sees("Loss weights")
    for name in ("mse_weight", "perceptual_weight"):
        terminal.sees(LOSS_QUESTIONS[name]).types(ENTER)
    terminal.sees(LOSS_QUESTIONS["gan"]).types(answer + ENTER)
    if asked:
        terminal.sees(LOSS_QUESTIONS["adversarial_weight"]).types("0.05" + ENTER)
    expected = {"gan": answer.strip()} if answer else {}
    assert terminal.answer() == expected | ({"adversarial_weight": "0.05"} if asked else {})


def test_a_flag_for_the_discriminator_brings_its_weight_into_question(ask):
    terminal = ask("ask_settings({'gan': True, 'mse_weight': '1', 'perceptual_weight': '0'}, terms)")
    terminal.sees(LOSS_QUESTIONS["adversarial_weight"]).types(ENTER)
    assert terminal.answer() == {}


def test_the_weights_of_the_model_so_far_are_the_defaults(ask):
    current = "ObjectiveConfig(mse_weight=2, perceptual_weight=0.25, gan=True, adversarial_weight=0.03)"
    terminal = ask(f"ask_settings({{}}, terms, current={current})")
    for question in ("MSE weight [2]:", "Perceptual weight [0.25]:", "(y/n) [y]:", "Adversarial weight [0.03]:"):
        terminal.sees(question).types(ENTER)
    assert terminal.answer() == {}


def test_a_discriminator_that_is_given_up_has_no_weight(ask):
    terminal = ask("ask_settings({}, terms, current=ObjectiveConfig(gan=True))")
    for name in ("mse_weight", "perceptual_weight"):
        terminal.sees(LOSS_QUESTIONS[name]).types(ENTER)
    terminal.sees("(y/n) [y]:").types("n" + ENTER)
    assert terminal.answer() == {"gan": "n"}


def test_the_explanation_stands_above_the_loss_weights(ask):
    terminal = ask("ask_settings({}, terms)").sees("Loss weights").sees("How much each objective counts")
    for line in ("MSE          1.0", "perceptual   0.1", "adversarial  0.01"):
        terminal.sees(line)
    terminal.sees(LOSS_QUESTIONS["mse_weight"]).types(CTRL_C)
    assert terminal.ends() == 130


def test_bad_loss_weights_are_explained_and_asked_again(ask):
    terminal = ask("ask_settings({}, terms)")
    for name, bad, said, good in [
        ("mse_weight", "-1", "-1: input should be greater than 0", "1"),
        ("perceptual_weight", "much", "much: input should be a valid number", "0"),
        ("gan", "maybe", "maybe: answer y or n", "y"),
        ("adversarial_weight", "0", "0: input should be greater than 0", "0.02"),
    ]:
        terminal.sees(LOSS_QUESTIONS[name]).types(bad + ENTER).sees(said).types(CLEAR_LINE + good + ENTER)
    assert terminal.answer() == {"mse_weight": "1", "perceptual_weight": "0", "gan": "y", "adversarial_weight": "0.02"}


def test_the_epochs_of_both_stages(ask):
    terminal = ask("ask_stage_epochs({})").sees("Epochs of stage 1 (squared error alone) [30]:")
    for bad in ("0", "x", "-3", "1.5"):
        terminal.types(bad + ENTER).sees(f"'{bad}' is not a number of epochs").types(CLEAR_LINE)
    terminal.types("4" + ENTER).sees("Epochs of stage 2 (all terms) [15]:").types(ENTER)
    assert terminal.answer() == {"stage1_epochs": "4", "stage2_epochs": "15"}


def test_a_stage_whose_epochs_were_given_is_not_asked_for(ask):
    terminal = ask("ask_stage_epochs({'stage1_epochs': '4'})").sees("Epochs of stage 2").types("2" + ENTER)
    assert terminal.answer() == {"stage2_epochs": "2"}


@pytest.mark.parametrize(
    ("keys", "settings"),
    [
        (ENTER, {"perceptual_net": "tiny", "perceptual_weights": "none"}),
        ("3" + ENTER, {"perceptual_net": "random", "perceptual_weights": "none"}),
        (DOWN + DOWN + DOWN + ENTER, {"perceptual_weight": "0"}),
    ],
)
def test_without_the_weights_of_vgg16_there_are_other_ways(ask, keys, settings):
    terminal = ask("ask_perceptual('They cannot be had.', 'VGG16', True)").sees("The weights of VGG16")
    terminal.sees("How shall it go on?").sees("1) Compare the features of the small network that comes with")
    terminal.sees("2) Take the weights from a file of mine").sees("3) Compare untrained").sees("4) Train without")
    terminal.sees("They cannot be had.")
    assert terminal.types(keys).answer() == settings


def test_without_the_network_of_lpips_no_other_is_offered(ask):
    terminal = ask("ask_perceptual('They cannot be had.', 'AlexNet', False)").sees("1) Take the weights from a file")
    terminal.sees("2) Compare untrained").sees("3) Train without").types("2" + ENTER)
    assert terminal.answer() == {"perceptual_net": "random", "perceptual_weights": "none"}


def test_brackets_in_a_reason_are_no_markup(ask):
    terminal = ask("ask_perceptual('There is no /photos [raw]/[/old]/vgg16.pth.', 'VGG16', True)")
    terminal.sees("How shall it go on?").sees("There is no /photos [raw]/[/old]/vgg16.pth.").types(CTRL_C)
    assert terminal.ends() == 130


@pytest.mark.parametrize("bad", ["nowhere.pth", "."])
def test_the_file_with_the_weights_of_vgg16_has_to_be_there(ask, tmp_path, bad):
    weights = tmp_path / "vgg16.pth"
    weights.touch()
    terminal = ask("ask_perceptual('They cannot be had.', 'VGG16', True)").sees("How shall it go").types("2" + ENTER)
    terminal.sees("File with the weights of VGG16:")
    terminal.types(bad + ENTER).sees(f"There is no file '{bad}'").types(CLEAR_LINE + f"{weights}{ENTER}")
    assert terminal.answer() == {"perceptual_weights": str(weights)}


def test_enter_alone_names_no_file(ask):
    terminal = ask("ask_perceptual('They cannot be had.', 'VGG16', True)").sees("How shall it go").types("2" + ENTER)
    terminal.sees("File with the weights of VGG16:").types(ENTER).sees("There is no file ''").types(CTRL_C)
    assert terminal.ends() == 130


def test_epochs_to_add(ask):
    terminal = ask("ask_epochs_to_add('mine', 50)").sees("mine has finished its 50 epochs. How many more? [10]:")
    for bad in ("0", "x", "-3", "1.5", "²"):
        terminal.types(bad + ENTER).sees(f"'{bad}' is not a number of epochs").types(CLEAR_LINE)
    terminal.types("7" + ENTER)
    assert terminal.answer() == "7"


# -- the loss of direct regression brings its own defaults -----------------------------------------------------------

LOSS_QUESTION = "Loss (simple, weighted or enhanced)"
PRESET_QUESTION = "Preset (conservative, balanced, vibrant or maximum)"
TERMS = {
    "simple": ["Perceptual weight [1]", "Lab weight [1]", "ab weight [2]"],
    "weighted": ["Perceptual weight [0]", "ab weight [1]"],
    "enhanced": [
        f"{PRESET_QUESTION} [balanced]", "Perceptual weight [0.5]", "L weight [0.3]", "ab weight [3]",
        "Saturation weight [0.5]",
    ],
}  # fmt: skip
COURSE = {
    "simple": "Learning rate [0.0001]|Number of epochs [50]|Weight decay [0.01]|Course of the learning rate [constant]",
    "weighted": "Learning rate [5e-05]|Number of epochs [100]|Weight decay [1e-05]|"
    "Course of the learning rate [one-cycle]",
}
COURSE["enhanced"] = COURSE["simple"]


@pytest.fixture
def person(monkeypatch):
    """Asks and answers with `typed` (question -> answer; Enter for the others); returns the questions and the
    answers."""

    def asked(sections_with, typed=None, given=None, current=None):
        seen, left = [], dict(typed or {})

        def answer(message, validate):
            seen.append(message.removesuffix(":"))
            text = next((left.pop(start) for start in list(left) if message.startswith(start)), "")
            assert validate(text) is True, f"{message} {text}"
            return text

        monkeypatch.setattr(prompts, "_ask", answer)
        answers = prompts.ask_settings(given or {}, sections_with, current=current)
        assert left == {}, "not asked"
        return seen, answers

    return asked


def losses(of):
    return lambda given: {"loss": of.sections_with(given)["loss"]}


@pytest.mark.parametrize("loss", ["simple", "weighted", "enhanced"])
@pytest.mark.parametrize("as_flag", [True, False])
def test_the_answer_to_the_loss_changes_the_defaults_shown_afterwards(person, loss, as_flag):
    loss_question = {} if as_flag else {LOSS_QUESTION: loss}
    seen, answers = person(SIMPLE.sections_with, loss_question, given={"loss": loss} if as_flag else {})
    assert answers == ({} if as_flag else {"loss": loss})
    assert seen == [
        *([] if as_flag else [f"{LOSS_QUESTION} [simple]"]),
        *TERMS[loss],
        "Model channels [96]",
        "Batch size [16]",
        *COURSE[loss].split("|"),
        "Training images (folder, zip, or 'samples') [samples]",
        "Image size [256]",
    ]


def test_the_recipe_of_restoration_begins_with_its_own_loss(person):
    seen, _ = person(losses(RESTORATION))
    assert seen == [f"{LOSS_QUESTION} [enhanced]", *TERMS["enhanced"]]


@pytest.mark.parametrize(
    ("preset", "weights"),
    [("conservative", "0.5 0.3 2 0.3"), ("vibrant", "0.3 0.2 4 1"), ("maximum", "0.2 0.2 5 1.5")],
)
def test_the_answer_to_the_preset_changes_the_weights_shown_afterwards(person, preset, weights):
    """The preset is asked for after the answer `enhanced`, whatever loss the recipe starts with."""
    typed = {LOSS_QUESTION: "enhanced", PRESET_QUESTION: preset}
    seen, answers = person(losses(SIMPLE), typed)
    names = ("Perceptual", "L", "ab", "Saturation")
    assert seen[2:] == [f"{name} weight [{weight}]" for name, weight in zip(names, weights.split(), strict=True)]
    assert answers == {"loss": "enhanced", "preset": preset}


@pytest.mark.parametrize(
    ("of", "loss", "question"),
    [
        (SIMPLE, "enhanced", "Saturation weight"),
        (SIMPLE, "enhanced", "L weight"),
        (SIMPLE, "simple", "Lab weight"),
        (RESTORATION, "simple", "Lab weight"),
        (RESTORATION, "enhanced", "Saturation weight"),
    ],
)
def test_a_weight_is_an_answer_where_the_answered_loss_has_the_term(person, of, loss, question):
    _, answers = person(losses(of), {LOSS_QUESTION: loss, question: "1.25"})
    assert answers == {"loss": loss, question.lower().replace(" ", "_"): "1.25"}


def test_weights_that_were_given_as_flags_are_not_asked_for(person):
    seen, _ = person(losses(SIMPLE), given={"loss": "enhanced", "preset": "vibrant", "ab_weight": "6"})
    assert seen == ["Perceptual weight [0.3]", "L weight [0.2]", "Saturation weight [1]"]


def test_the_loss_of_the_model_so_far_is_the_default(person):
    current = LossConfig(loss="enhanced", preset="vibrant", ab_weight=7, perceptual_net="random")
    seen, answers = person(losses(SIMPLE), current=current)
    weights = ["Perceptual weight [0.3]", "L weight [0.2]", "ab weight [7]", "Saturation weight [1]"]
    assert seen == [f"{LOSS_QUESTION} [enhanced]", f"{PRESET_QUESTION} [vibrant]", *weights]
    assert answers == {}


def test_typing_the_loss_of_the_model_so_far_is_like_enter(person):
    """Resuming treats it as a repetition that changes nothing, so the weights shown are the model's."""
    current = LossConfig(loss="enhanced", preset="vibrant", ab_weight=7)
    seen, answers = person(losses(SIMPLE), {LOSS_QUESTION: "enhanced"}, current=current)
    weights = ["Perceptual weight [0.3]", "L weight [0.2]", "ab weight [7]", "Saturation weight [1]"]
    assert seen == [f"{LOSS_QUESTION} [enhanced]", f"{PRESET_QUESTION} [vibrant]", *weights]
    assert answers.get("loss", "enhanced") == "enhanced"


@pytest.mark.parametrize("of", [SIMPLE, RESTORATION])
def test_another_preset_for_the_model_so_far_shows_the_weights_of_that_preset(person, of):
    """Enter keeps the model's enhanced loss, whatever the recipe starts with."""
    current = LossConfig(loss="enhanced", ab_weight=7, perceptual_net="random")
    seen, answers = person(losses(of), {PRESET_QUESTION: "vibrant"}, current=current)
    weights = ["Perceptual weight [0.3]", "L weight [0.2]", "ab weight [4]", "Saturation weight [1]"]
    assert seen == [f"{LOSS_QUESTION} [enhanced]", f"{PRESET_QUESTION} [balanced]", *weights]
    assert answers == {"preset": "vibrant"}


@pytest.mark.parametrize("loss", ["simple", "weighted"])
def test_another_loss_for_the_model_so_far_shows_its_weights_and_no_preset(person, loss):
    current = LossConfig(loss="enhanced", preset="maximum", ab_weight=7)
    seen, _ = person(losses(SIMPLE), {LOSS_QUESTION: loss}, current=current)
    assert seen == [f"{LOSS_QUESTION} [enhanced]", *TERMS[loss]]


def test_a_loss_that_is_no_loss_is_refused(person):
    for question, bad in [(LOSS_QUESTION, "huber"), ("ab weight", "-1"), ("Lab weight", "much"), ("ab weight", "nan")]:
        with pytest.raises(AssertionError, match=rf"{bad}: input should be"):
            person(losses(SIMPLE), {question: bad})
    with pytest.raises(AssertionError, match="wild: input should be 'conservative', 'balanced'"):
        person(losses(SIMPLE), {LOSS_QUESTION: "enhanced", PRESET_QUESTION: "wild"})


# -- leaving ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "question"),
    [
        ("ask_model(here)", "Do you want to resume"),
        ("ask_name(here, 'model-1')", "Model name"),
        ("ask_perceptual('They cannot be had.', 'VGG16', True)", "How shall it go on?"),
    ],
)
@pytest.mark.parametrize("key", [CTRL_C, CTRL_D], ids=["Ctrl-C", "Ctrl-D"])
def test_ctrl_c_at_a_question_exits_130(ask, tmp_path, call, question, key):
    make_models(tmp_path / "models", "alpha")
    terminal = ask(call).sees(question).types(key).sees("Stopped.")
    assert terminal.ends() == 130


def test_the_training_script_asks_in_order_and_ctrl_c_leaves_nothing(tmp_path):
    """This is the real program, up to its last question."""
    models = tmp_path / "models"
    terminal = Person(SCRIPT, "--models-dir", models)
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
    (tmp_path / "mine" / "best_model.pth").touch()
    command = [sys.executable, str(SCRIPT), "--models-dir", str(tmp_path), "--name", "mine", "--yes"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "--resume mine" in result.stderr
    assert sorted(os.listdir(tmp_path / "mine")) == ["best_model.pth", "config.json"]


# -- questions and flags ---------------------------------------------------------------------------------------------


def test_the_questions_are_those_of_the_document_in_its_order():
    assert list(questions(SECTIONS)) == list(QUESTIONS)
    assert list(questions(V2)) == [*QUESTIONS, *LOSS_QUESTIONS]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def test_every_question_has_a_flag():
    for script, sections, asked in (
        ("train_diffusion.py", SECTIONS, [*QUESTIONS]),
        ("train_diffusion_v2.py", V2, [*QUESTIONS, *LOSS_QUESTIONS, *prompts.STAGE_EPOCHS]),
        ("simple.py", SIMPLE.sections, [*questions(SIMPLE.sections)]),
        ("restoration.py", RESTORATION.sections, [*questions(RESTORATION.sections)]),
    ):
        parser = recipe.make_parser(recipe.Recipe(script, "About.", sections, stages=sections is V2))
        options = parser.format_help().replace(", --no-gan", "")
        missing = [flag(name) for name in ("name", "resume", *asked) if f"\n  {flag(name)} " not in options]
        assert missing == [], script


def test_what_was_not_given_is_missing():
    assert missing_flags({}, None, SECTIONS) == ["--name", *map(flag, list(QUESTIONS)[:-1])]
    assert missing_flags({"features": "8", "data": "samples"}, None, SECTIONS) == [
        "--name", "--time-dim", "--timesteps", "--batch-size", "--learning-rate", "--epochs",
    ]  # fmt: skip


def test_what_was_given_is_not_missing():
    assert missing_flags(dict.fromkeys(QUESTIONS, "1"), "mine", SECTIONS) == []
    assert missing_flags(dict.fromkeys(QUESTIONS | LOSS_QUESTIONS, "1"), "mine", V2) == []


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({}, "--loss --perceptual-weight --lab-weight --ab-weight"),
        ({"loss": "weighted"}, "--perceptual-weight --ab-weight"),
        ({"loss": "enhanced"}, "--preset --perceptual-weight --l-weight --ab-weight --saturation-weight"),
    ],
)
def test_only_the_weights_that_the_loss_has_are_missing(given, weights):
    rest = "--model-channels --batch-size --learning-rate --epochs --weight-decay --lr-schedule --data"
    assert missing_flags(given, "mine", SIMPLE.sections_with(given)) == f"{weights} {rest}".split()


@pytest.mark.parametrize(("gan", "needed"), [(None, False), (False, False), ("n", False), (True, True), ("y", True)])
def test_the_adversarial_weight_is_missing_only_with_a_discriminator(gan, needed):
    given = dict.fromkeys(QUESTIONS, "1") | ({} if gan is None else {"gan": gan})
    assert ("--adversarial-weight" in missing_flags(given, "mine", V2)) == needed
