"""From the flags and answers to a training request, before anything is trained."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from Project7 import color, precision, preparation, prompts, recipe, request
from Project7.config import SECTIONS, RunConfig, to_json
from Project7.encoder import SHIPPED, Encoder
from Project7.errors import UsageError
from Project7.image_set import ImageSet
from Project7.loss_config import LossConfig
from Project7.model_config import DiffusionConfig, RegressionConfig
from Project7.perceptual_loss import WeightsMissing
from Project7.settings import parse_settings
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig

MSE = recipe.Recipe("train.py", "About.", SECTIONS)
V2 = recipe.Recipe("train_v2.py", "About.", SECTIONS | {"objective": ObjectiveConfig}, stages=True)
SIMPLE = recipe.regression("train_simple.py", "About.", loss="simple", outputs="ab")
RESTORATION = recipe.regression("train_restoration.py", "About.", loss="enhanced", outputs="lab")
QUESTIONS = "features time_dim timesteps batch_size learning_rate data mse_weight perceptual_weight gan".split()
ANSWERED = [f"--{name.replace('_', '-')}=x" for name in QUESTIONS[:-1]] + ["--no-gan"]  # all but the epochs


def parse(tmp_path, *flags, of=MSE):
    return recipe.make_parser(of).parse_args(["--models-dir", str(tmp_path), *flags])


def gather(tmp_path, *flags, of=MSE):
    return request.gather(of, parse(tmp_path, *flags, of=of))


def model(tmp_path, name="old", **settings):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(to_json(RunConfig(**settings)))


def test_a_new_model_takes_what_was_given_and_no_more(tmp_path):
    request = gather(tmp_path, "--name", "new", "--yes", "--batch_size", "8", "--features=8,16")
    assert request.folder.path == tmp_path / "new"
    assert request.source is None
    assert request.settings == {"batch_size": "8", "features": "8,16"}


def test_yes_alone_finds_a_free_name(tmp_path):
    assert gather(tmp_path, "--yes").folder.name == "model-1"
    model(tmp_path, "model-1")
    assert gather(tmp_path, "--yes").folder.name == "model-2"


def test_an_existing_name_points_to_resume(tmp_path):
    model(tmp_path)
    (tmp_path / "old" / "last_model.pth").touch()
    with pytest.raises(UsageError, match="--resume old"):
        gather(tmp_path, "--name", "old", "--yes")
    with pytest.raises(UsageError, match="another --name"):
        gather(tmp_path, "--resume", "old", "--name", "old")


def test_resume_in_place_and_in_a_copy(tmp_path):
    model(tmp_path)
    in_place = gather(tmp_path, "--resume", "old")
    assert in_place.folder == in_place.source
    copy = gather(tmp_path, "--resume", "old", "--name", "new", "--epochs", "3")
    assert copy.folder.name == "new"
    assert copy.source.name == "old"
    assert copy.settings == {"epochs": "3"}


def test_starting_from_another_model_leaves_its_network_unasked(tmp_path):
    rest = ["--epochs=2", "--batch-size=4", "--learning-rate=1e-4", "--data=photos"]
    request = gather(tmp_path, "--start-from", "old", "--name", "new", *rest)
    assert request.source is None
    assert "features" not in request.settings
    with pytest.raises(UsageError, match=r"no answer for --features"):
        gather(tmp_path, "--name", "new", *rest)
    with pytest.raises(UsageError, match="leave out one of them"):
        gather(tmp_path, "--start-from", "old", "--resume", "old")


def test_a_shipped_model_is_continued_in_a_copy(tmp_path):
    model(tmp_path, shipped=True, training=TrainingConfig(epochs=3))
    assert gather(tmp_path, "--resume", "old", "--name", "mine").folder.name == "mine"
    request = gather(tmp_path, "--resume", "old")
    assert (request.folder.name, request.source.name) == ("my-old", "old")
    model(tmp_path, "my-old")
    with pytest.raises(UsageError, match=r"'my-old' already; continue it with --resume my-old"):
        gather(tmp_path, "--resume", "old")


def test_a_shipped_model_does_not_go_on_with_the_photos_of_another_machine(tmp_path):
    model(tmp_path, shipped=True, data=DataConfig(data="/elsewhere/photos"))
    with pytest.raises(UsageError, match=r"old comes with the toolkit; say which photos .* --data PATH"):
        gather(tmp_path, "--resume", "old")
    assert gather(tmp_path, "--resume", "old", "--data", "mine").settings["data"] == ["mine"]


def test_a_person_is_offered_the_built_in_photos_for_a_shipped_model(tmp_path, person, monkeypatch):
    model(tmp_path, shipped=True, data=DataConfig(data="/elsewhere/photos", image_size=128))
    defaults = []

    def ask_settings(given, sections_with, current=None):
        data = sections_with(given)["data"]().model_dump()
        defaults.append((data["data"], data["image_size"], current))
        return {}

    monkeypatch.setattr(prompts, "ask_settings", ask_settings)
    assert gather(tmp_path, "--resume", "old", "--epochs", "1").settings["data"] == "samples"
    assert defaults == [("samples", 128, None)]


def test_a_model_of_another_method_is_refused_before_anything_is_asked(tmp_path, person):
    model(tmp_path, model=RegressionConfig())
    with pytest.raises(UsageError, match="train_colorization_simple"):
        gather(tmp_path, "--resume", "old")
    assert person == []


def test_a_precision_that_is_slow_on_this_machine_is_said_before_the_first_step(monkeypatch):
    here = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    monkeypatch.setattr(precision, "convolution_gain", lambda device: 2.0)
    images = SimpleNamespace(images=np.zeros((100, 8, 8, 3), np.uint8))
    (said,) = preparation.warnings(RunConfig(), images, None, here, None)
    assert "--mixed-precision auto" in said
    monkeypatch.setattr(precision, "convolution_gain", lambda device: 1.0)
    assert preparation.warnings(RunConfig(), images, None, here, None) == []


def test_the_cache_of_features_is_named_where_it_would_train_faster(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "convolution_gain", lambda device: 1.0)
    images = SimpleNamespace(images=np.zeros((100, 8, 8, 3), np.uint8))

    def said(device="cpu", encoder=SHIPPED, checkpoint=None, **training):
        here = SimpleNamespace(num_processes=1, device=torch.device(device))
        config = RunConfig(model=DiffusionConfig(encoder=encoder, encoder_size=64), training=TrainingConfig(**training))
        return preparation.warnings(config, images, tmp_path / "cache", here, checkpoint)

    (line,) = said()
    assert "--cache-features keeps what it sees (4.0 MB on the disk)" in line
    assert "(2.0 MB on the disk)" in said(mirror=False)[0]
    nearly_done = {"checkpoint": {"epoch": 49}, "epochs": 50}
    changing = {"zoom": 0.5}, {"old_photos": 0.3}
    for needless in ({"cache_features": True}, {"epochs": 2}, nearly_done, {"encoder": None}, *changing):
        assert said(**needless) == []
    assert not any("--cache-features" in line for line in said(device="meta"))
    monkeypatch.setattr("Project7.feature_cache.free_bytes", lambda folder: 7e6)
    assert said() == []


def test_what_is_cached_is_seen_by_the_encoder_that_the_model_has(tmp_path):
    """An encoder that does not come with the toolkit has its weights in the model alone."""
    kind = DiffusionConfig(encoder="test_efficientnet", encoder_size=64)
    config = RunConfig(model=kind, training=TrainingConfig(cache_features=True, mirror=False))
    rgb = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), dtype=np.uint8)
    images = ImageSet(rgb, ("",) * 3, ("",) * 3, "fingerprint", None)
    encoder = Encoder("test_efficientnet", 64)
    with torch.no_grad():
        encoder.network.conv_stem.weight.normal_()
    weights = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()} | {"other": torch.ones(1)}
    found = preparation.look_at(config, images, weights, tmp_path, Console())
    kept = found.maps(found.read(np.arange(3), np.zeros(3, bool)))
    for a, b in zip(kept, encoder(encoder.view(color.lightness(color.channels_first(rgb)))), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_photos_without_any_colour_end_the_run_at_once():
    gray = np.repeat(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8), 3, axis=3)
    with pytest.raises(UsageError, match=r"All 6 of the 6 training photos .* are gray"):
        preparation.refuse_gray(SimpleNamespace(images=gray))
    gray[2, ..., 0] = 0
    preparation.refuse_gray(SimpleNamespace(images=gray))


def test_without_a_terminal_the_missing_flags_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"--features.*--epochs.*--data.*--yes"):
        gather(tmp_path, "--name", "new")


def test_a_process_that_is_not_the_main_one_asks_and_refuses_nothing(tmp_path, monkeypatch):
    model(tmp_path)  # made a moment ago by the main process
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert gather(tmp_path, "--name", "old", "--yes").folder.name == "old"


# -- two stages ------------------------------------------------------------------------------------------------------


def wants_two_stages(tmp_path, *flags):
    arguments = parse(tmp_path, *flags, of=V2)
    names = [*V2.sections["training"].model_fields, *V2.sections["objective"].model_fields]
    return request.wants_two_stages(arguments, {n: v for n, v in vars(arguments).items() if n in names})


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ([], False),
        (["--epochs", "3"], False),
        (["--strategy", "new"], False),
        (["--resume", "old"], False),
        (["--strategy", "resume", "--resume", "old", "--epochs", "3"], False),
        (["--strategy", "two-stage"], True),
        (["--stage1-epochs", "3"], True),
        (["--stage2-epochs", "3"], True),
        (["--strategy", "two-stage", "--stage1-epochs", "3", "--stage2-epochs", "3"], True),
    ],
)
def test_which_flags_ask_for_two_stages(tmp_path, flags, wanted):
    assert wants_two_stages(tmp_path, *flags) == wanted


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--strategy", "new", "--stage1-epochs", "3"], "--strategy new has no stages"),
        (["--strategy", "resume", "--resume", "old", "--stage2-epochs", "3"], "--strategy resume has no stages"),
        (["--strategy", "two-stage", "--resume", "old"], "--resume old --epochs N, without the flags of stages"),
        (["--stage1-epochs", "3", "--resume", "old"], "--resume old --epochs N, without the flags of stages"),
        (["--strategy", "two-stage", "--epochs", "3"], "use --stage1-epochs and --stage2-epochs"),
        (["--stage2-epochs", "3", "--epochs", "3"], "use --stage1-epochs and --stage2-epochs"),
        (["--strategy", "resume"], "--resume NAME"),
        (["--strategy", "new", "--resume", "old"], "leave out --resume"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_with_the_cure(tmp_path, flags, said):
    with pytest.raises(UsageError, match=said):
        wants_two_stages(tmp_path, *flags)


@pytest.mark.parametrize(
    ("flags", "first", "all_of_them"),
    [
        (["--strategy", "two-stage"], "30", "45"),  # the document's preset
        (["--stage1-epochs", "3"], "3", "18"),
        (["--stage2-epochs=4"], "30", "34"),
        (["--stage1-epochs", " 3 ", "--stage2-epochs", "4"], "3", "7"),
    ],
)
def test_the_epochs_of_two_stages_are_those_of_the_first_and_of_both(tmp_path, flags, first, all_of_them):
    request = gather(tmp_path, "--name", "new", "--yes", *flags, of=V2)
    assert (request.settings["stage1_epochs"], request.settings["epochs"]) == (first, all_of_them)
    assert "stage2_epochs" not in request.settings, "no setting of a model"


@pytest.mark.parametrize("flag", ["--stage1-epochs", "--stage2-epochs"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", ""])
def test_a_stage_has_one_epoch_or_more(tmp_path, flag, value):
    with pytest.raises(UsageError, match=f"{flag} {value}: the number of epochs must be a whole number above 0"):
        gather(tmp_path, "--name", "new", "--yes", f"{flag}={value}", of=V2)


def test_without_a_terminal_the_epochs_of_the_stages_are_missing_like_any_answer(tmp_path):
    """Two-stage training does not use 30 and 15 epochs unless they or --yes were given."""
    everything = ["--name", "new", "--strategy", "two-stage", *ANSWERED]
    with pytest.raises(UsageError, match=r"--stage1-epochs.*--stage2-epochs"):
        gather(tmp_path, *everything, of=V2)
    request = gather(tmp_path, *everything, "--stage1-epochs", "1", "--stage2-epochs", "2", of=V2)
    assert request.settings["epochs"] == "3"


def test_without_a_terminal_the_adversarial_weight_is_missing_only_with_a_discriminator(tmp_path):
    settled = ["--name", "new", "--epochs", "3", *ANSWERED]
    assert gather(tmp_path, *settled, of=V2).settings["gan"] is False
    with pytest.raises(UsageError, match="no answer for --adversarial-weight;"):
        gather(tmp_path, *settled, "--gan", of=V2)


# -- a person is asked -----------------------------------------------------------------------------------------------


@pytest.fixture
def person(monkeypatch):
    """A terminal in which each question is recorded, and answered with nothing."""
    asked = []

    def ask_settings(given, sections_with, current=None):
        asked.append(tuple(sections_with(given)))
        return {}

    monkeypatch.setattr(prompts, "can_ask", lambda: True)
    monkeypatch.setattr(prompts, "ask_model", lambda *_, **settings: asked.append("model") or (None, False))
    monkeypatch.setattr(prompts, "ask_name", lambda *_: asked.append("name") or "new")
    monkeypatch.setattr(prompts, "ask_settings", ask_settings)
    monkeypatch.setattr(prompts, "ask_stage_epochs", lambda given: asked.append("stages") or {})
    monkeypatch.setattr(prompts, "ask_epochs_to_add", lambda *_: asked.append("epochs") or "3")
    return asked


def test_the_questions_come_in_the_order_of_the_document(tmp_path, person):
    gather(tmp_path, of=V2)
    assert person == ["model", "name", ("model", "data", "training", "objective")]


def test_two_stages_by_flag_are_not_asked_for_again(tmp_path, person):
    gather(tmp_path, "--strategy", "two-stage", of=V2)
    assert person == ["name", "stages", ("model", "data", "training", "objective")]


def test_a_new_model_by_flag_is_not_asked_for_again(tmp_path, person):
    """--strategy new has already answered whether to resume."""
    gather(tmp_path, "--strategy", "new", of=V2)
    assert person == ["name", ("model", "data", "training", "objective")]


def test_epochs_by_flag_are_not_overruled_by_the_choice_of_two_stages(tmp_path, person, monkeypatch):
    """--epochs does not say how to divide them into stages, so the list does not offer two stages."""
    offered = []
    monkeypatch.setattr(prompts, "ask_model", lambda *_, stages: offered.append(stages) or (None, stages))
    assert gather(tmp_path, "--epochs", "3", of=V2).settings["epochs"] == "3"
    assert offered == [False]


def test_two_stages_chosen_from_the_list(tmp_path, person, monkeypatch):
    monkeypatch.setattr(prompts, "ask_model", lambda *_, **settings: (None, True))
    settings = gather(tmp_path, of=V2).settings
    assert person == ["name", "stages", ("model", "data", "training", "objective")]
    assert (settings["stage1_epochs"], settings["epochs"]) == ("30", "45")


def test_a_model_without_terms_is_asked_for_their_weights_and_nothing_else(tmp_path, person):
    model(tmp_path)
    gather(tmp_path, "--resume", "old", "--epochs", "3", of=V2)
    assert person == [("objective",)]


def test_a_model_with_terms_is_asked_for_them_only_when_it_comes_from_the_list(tmp_path, person, monkeypatch):
    model(tmp_path, objective=ObjectiveConfig())
    gather(tmp_path, "--resume", "old", "--epochs", "3", of=V2)
    assert person == [], "--resume alone goes on as before"
    monkeypatch.setattr(prompts, "ask_model", lambda *_, **settings: ("old", False))
    gather(tmp_path, "--epochs", "3", of=V2)
    assert person == [("objective",)]


def test_the_recipe_without_terms_asks_for_none(tmp_path, person):
    model(tmp_path)
    gather(tmp_path, "--resume", "old", "--epochs", "3")
    assert person == []


# -- direct regression: the settings follow from the loss ------------------------------------------------------------


def test_a_recipe_without_consequences_has_the_same_settings_whatever_is_answered():
    assert MSE.sections_with({}) is MSE.sections_with({"loss": "weighted"}) is MSE.sections


@pytest.mark.parametrize(
    ("of", "given", "loss", "outputs", "rate", "course"),
    [
        (SIMPLE, {}, "simple", "ab", 1e-4, "constant"),
        (SIMPLE, {"loss": "weighted"}, "weighted", "ab", 5e-5, "one-cycle"),
        (SIMPLE, {"loss": "enhanced", "preset": "maximum"}, "enhanced", "ab", 1e-4, "constant"),
        (RESTORATION, {}, "enhanced", "lab", 1e-4, "constant"),
        (SIMPLE, {"loss": "weighted", "learning_rate": "1e-3"}, "weighted", "ab", 1e-3, "one-cycle"),
    ],
)
def test_what_is_answered_brings_the_other_defaults_along(of, given, loss, outputs, rate, course):
    kinds = of.sections_with(given)
    found = {
        name: parse_settings(kind, {n: v for n, v in given.items() if n in kind.model_fields})
        for name, kind in kinds.items()
    }
    assert (found["loss"].loss, found["model"].outputs, found["data"].image_size) == (loss, outputs, 256)
    assert (found["training"].learning_rate, found["training"].lr_schedule) == (rate, course)
    assert list(kinds) == list(of.sections), "the same flags"
    assert all(set(kinds[name].model_fields) == set(of.sections[name].model_fields) for name in kinds)


def test_a_loss_that_does_not_exist_is_said_by_the_settings_and_not_here():
    kinds = SIMPLE.sections_with({"loss": "huber"})
    with pytest.raises(UsageError, match="--loss huber: input should be"):
        parse_settings(kinds["loss"], {"loss": "huber"})


@pytest.mark.parametrize("of", [SIMPLE, RESTORATION])
def test_a_model_is_asked_for_its_loss_only_when_it_comes_from_the_list(tmp_path, person, monkeypatch, of):
    model(tmp_path, model=RegressionConfig(), loss=LossConfig())
    gather(tmp_path, "--resume", "old", "--epochs", "3", of=of)
    assert person == [], "--resume alone goes on as before"
    monkeypatch.setattr(prompts, "ask_model", lambda *_, **settings: ("old", False))
    gather(tmp_path, "--epochs", "3", of=of)
    assert person == [("loss",)]


def test_a_model_without_a_loss_of_its_own_is_asked_for_one(tmp_path, person):
    model(tmp_path, model=RegressionConfig())
    gather(tmp_path, "--resume", "old", "--epochs", "3", of=SIMPLE)
    assert person == [("loss",)]


# -- the features of the perceptual term -----------------------------------------------------------------------------


def settle(monkeypatch, objective, *, answers=(), asking=True, there=("tiny", "random")):
    """Calls settle_perceptual while VGG16's weights are not available, and records what a person is asked."""
    asked, answers = [], iter(answers)

    def load(net, weights):
        if net not in there and weights != "good.pth":
            raise WeightsMissing("They cannot be had.")

    monkeypatch.setattr("Project7.perceptual_loss.load_perceptual", load)
    monkeypatch.setattr(prompts, "ask_perceptual", lambda *said: asked.append(said) or next(answers))
    config = preparation.settle_perceptual(RunConfig(objective=objective), Console(quiet=True), asking=asking)
    return config.objective, asked


def test_where_the_features_are_there_nothing_is_asked(monkeypatch):
    for objective in (
        None,
        ObjectiveConfig(perceptual_weight=0),
        ObjectiveConfig(perceptual_net="random"),
        ObjectiveConfig(perceptual_net="tiny"),
        ObjectiveConfig(perceptual_weights="good.pth"),
    ):
        assert settle(monkeypatch, objective) == (objective, [])


@pytest.mark.parametrize(
    "answer",
    [
        {"perceptual_net": "tiny"},
        {"perceptual_weights": "good.pth"},
        {"perceptual_net": "random"},
        {"perceptual_weight": "0"},
    ],
)
def test_a_person_says_how_to_go_on_without_the_features(monkeypatch, answer):
    objective, asked = settle(monkeypatch, ObjectiveConfig(gan=True, mse_weight=2), answers=[answer])
    assert objective == parse_settings(ObjectiveConfig, {"gan": True, "mse_weight": 2} | answer)
    assert asked == [("They cannot be had.", "VGG16", True)]


def test_where_the_shipped_network_is_missing_it_is_not_offered(monkeypatch):
    """For example, in a copy of the toolkit without its weights."""
    answers = [{"perceptual_net": "tiny"}, {"perceptual_weight": "0"}]
    _, asked = settle(monkeypatch, ObjectiveConfig(), answers=answers, there=())
    assert [(network, tiny) for _, network, tiny in asked] == [("VGG16", True), ("TinyVGG", False)]


def test_a_file_that_is_not_vgg16_is_asked_for_again(monkeypatch):
    answers = [{"perceptual_weights": "bad.pth"}, {"perceptual_weights": "good.pth"}]
    objective, asked = settle(monkeypatch, ObjectiveConfig(), answers=answers)
    assert objective.perceptual_weights == "good.pth"
    assert len(asked) == 2


def test_nobody_to_ask_ends_the_run(monkeypatch):
    with pytest.raises(WeightsMissing):
        settle(monkeypatch, ObjectiveConfig(), asking=False)


def settle_lpips(monkeypatch, loss, *, answers=()):
    """Calls settle_perceptual for the loss of direct regression, while LPIPS has no network."""
    asked, answers = [], iter(answers)

    def load(net, weights):
        if net != "random" and weights != "good.pth":
            raise WeightsMissing("They cannot be had.")

    monkeypatch.setattr("Project7.perceptual_loss.load_lpips", load)
    monkeypatch.setattr(prompts, "ask_perceptual", lambda *said: asked.append(said) or next(answers))
    settings = RunConfig(model=RegressionConfig(), loss=loss)
    return preparation.settle_perceptual(settings, Console(quiet=True), asking=True).loss, asked


@pytest.mark.parametrize(
    "loss",
    [{"loss": "weighted"}, {"perceptual_weight": 0}, {"perceptual_net": "random"}, {"perceptual_weights": "good.pth"}],
)
def test_a_loss_that_has_its_features_asks_nothing(monkeypatch, loss):
    assert settle_lpips(monkeypatch, LossConfig(**loss)) == (LossConfig(**loss), [])


@pytest.mark.parametrize(("net", "network"), [("alex", "AlexNet"), ("vgg", "VGG16")])
def test_the_network_of_lpips_is_asked_for_by_its_name(monkeypatch, net, network):
    answers = [{"perceptual_weights": "bad.pth"}, {"perceptual_weights": "good.pth"}]
    loss, asked = settle_lpips(monkeypatch, LossConfig(perceptual_net=net), answers=answers)
    assert (loss.perceptual_net, loss.perceptual_weights) == (net, "good.pth")
    assert asked == [("They cannot be had.", network, False)] * 2


@pytest.mark.parametrize(
    "answer", [{"perceptual_net": "random", "perceptual_weights": "none"}, {"perceptual_weight": "0"}]
)
def test_the_other_terms_of_a_loss_stay_where_lpips_has_no_network(monkeypatch, answer):
    given = {"loss": "enhanced", "preset": "vibrant", "ab_weight": 7, "b_weight": 2}
    loss, _ = settle_lpips(monkeypatch, LossConfig(**given), answers=[answer])
    assert loss == parse_settings(LossConfig, given | answer)
    assert (loss.ab_weight, loss.b_weight, loss.preset) == (7, 2, "vibrant")
