"""resume.py: what a continued run inherits, what may change on the way, and what is refused."""

from pathlib import Path

import pytest

from Project7 import recipe, resume
from Project7.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
from Project7.config import SECTIONS, RunConfig
from Project7.errors import UsageError
from Project7.loss_config import PRESETS, LossConfig
from Project7.methods import build_model
from Project7.model_config import ENCODER, ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.model_folder import ModelFolder, read_history
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig

HERE = Path("config.json")
V2 = SECTIONS | {"objective": ObjectiveConfig}
STORED = RunConfig(model=DiffusionConfig(features=(8, 16)), training=TrainingConfig(epochs=3, batch_size=4))
SEEING = STORED.model_copy(update={"model": DiffusionConfig(features=(8, 16), encoder=ENCODER)})
WITH_TERMS = STORED.model_copy(update={"objective": ObjectiveConfig(perceptual_weight=0.25, gan=True)})


def merge(config, sections=V2, *, epoch=3, **given):
    return resume.merge({"config": config.model_dump(mode="json"), "epoch": epoch}, HERE, given, sections)


# -- merge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "sections"), [(STORED, SECTIONS), (WITH_TERMS, V2)])
def test_without_flags_everything_stays(config, sections):
    assert merge(config, sections) == config


def test_a_model_without_terms_gets_those_of_the_recipe():
    assert merge(STORED).objective == ObjectiveConfig()
    merged = merge(STORED, perceptual_weight="0.2", gan=True, perceptual_net="random")
    assert merged.objective == ObjectiveConfig(perceptual_weight=0.2, gan=True, perceptual_net="random")
    assert (merged.model, merged.data, merged.training) == (STORED.model, STORED.data, STORED.training)


def test_the_terms_of_a_model_stay_but_for_what_is_given():
    merged = merge(WITH_TERMS, adversarial_weight="0.05")
    assert merged.objective == ObjectiveConfig(perceptual_weight=0.25, gan=True, adversarial_weight=0.05)
    assert merge(WITH_TERMS, gan=False).objective == ObjectiveConfig(perceptual_weight=0.25)


def test_every_part_of_the_objective_may_change():
    other = {
        "mse_weight": "2", "perceptual_weight": "0", "gan": False, "adversarial_weight": "0.5",
        "perceptual_net": "random", "image_share": "1", "gan_learning_rate": "1e-3",
        "gan_start": "0", "gan_warmup": "0", "gan_scales": "2", "gan_width": "8", "feature_matching_weight": "1",
    }  # fmt: skip
    changed = merge(WITH_TERMS, **other).objective.model_dump()
    kept = {name for name, value in changed.items() if value == getattr(WITH_TERMS.objective, name)}
    assert kept == {"stage1_epochs", "perceptual_weights"}, "the stages are those of the model's beginning"
    assert merge(WITH_TERMS, perceptual_weights="vgg.pth").objective.perceptual_weights == "vgg.pth"


def test_untrained_features_and_a_file_contradict_each_other_on_resuming_too():
    with pytest.raises(UsageError, match=r"perceptual_net random takes no weights.*vgg\.pth"):
        merge(WITH_TERMS, perceptual_net="random", perceptual_weights="vgg.pth")
    untrained = merge(WITH_TERMS, perceptual_net="random")
    with pytest.raises(UsageError, match="--perceptual-net vgg16"):
        merge(untrained, perceptual_weights="vgg.pth")


def test_a_bad_weight_is_refused():
    with pytest.raises(UsageError, match="--mse-weight -1"):
        merge(STORED, mse_weight="-1")


def test_a_model_with_terms_is_not_for_the_recipe_without():
    with pytest.raises(UsageError, match=r"train_diffusion_v2\.py.*--perceptual-weight 0 --no-gan"):
        merge(WITH_TERMS, SECTIONS)


def test_that_cure_works():
    """Only the squared error is left."""
    objective = merge(WITH_TERMS, perceptual_weight="0", gan=False).objective
    assert (objective.mse_weight, objective.perceptual_weight, objective.gan) == (1, 0, False)


def test_epochs_are_added_to_those_that_are_done():
    assert merge(STORED, epochs="2").training.epochs == 5
    assert merge(STORED, epoch=1, epochs="2").training.epochs == 3
    assert merge(STORED, epoch=1).training.epochs == 3, "the plan stays"


def test_a_plan_is_cut_short_only_where_that_is_meant():
    two_stages = ObjectiveConfig(stage1_epochs=8)
    planned = STORED.model_copy(update={"training": TrainingConfig(epochs=22), "objective": two_stages})
    stored = {"config": planned.model_dump(mode="json"), "epoch": 7}
    said = (
        r"22 epochs were planned \(8 of stage 1, 14 of stage 2\), 7 are done, and --epochs 1 would end the run after 8"
    )
    with pytest.raises(UsageError, match=said + r", without its second stage.*--replan"):
        resume.merge(stored, HERE, {"epochs": "1"}, V2)
    with pytest.raises(UsageError, match="without its second stage"):
        resume.merge(stored, HERE, {"epochs": "1", "lr_schedule": "cosine"}, V2)
    with pytest.raises(UsageError, match=r"after 9; leave"):
        resume.merge(stored, HERE, {"epochs": "2"}, V2)
    for given in ({"epochs": "15"}, {"epochs": "20"}, {"epochs": "2", "lr_schedule": "cosine"}, {}):
        resume.merge(stored, HERE, given, V2)
    assert resume.merge(stored, HERE, {"epochs": "1"}, V2, replan=True).training.epochs == 8


def test_what_a_model_keeps_for_life_is_refused_all_at_once():
    with pytest.raises(UsageError) as caught:
        merge(STORED, features="8,32", batch_size="8", seed="0", device="cpu")
    assert "--features is 8,16 in this model, not 8,32" in str(caught.value)
    assert "--batch-size is 4 in this model, not 8" in str(caught.value)
    assert "--seed" not in str(caught.value), "it repeats the stored value"
    assert "--device" not in str(caught.value), "it is free"


def test_a_learning_rate_comes_with_its_schedule():
    with pytest.raises(UsageError, match="start a new schedule with --lr-schedule"):
        merge(STORED, learning_rate="1e-3")
    training = merge(STORED, learning_rate="1e-3", lr_schedule="cosine").training
    assert (training.learning_rate, training.lr_schedule) == (1e-3, "cosine")


def test_a_continued_shipped_model_is_a_persons_own():
    shipped = STORED.model_copy(update={"shipped": True})
    assert merge(shipped).shipped is False
    mine = merge(shipped, batch_size="8", image_size="64", crops="3")
    assert (mine.training.batch_size, mine.data.image_size, mine.data.crops) == (8, 64, (3,))
    with pytest.raises(UsageError, match="--features is 8,16 in this model"):
        merge(shipped, features="8,32")


def test_what_goes_with_the_photos_of_a_shipped_model_goes_with_them():
    mixed = DataConfig(data=("a.zip", "b.zip"), shares=(2, 1), image_size=128, crops=(3, 1), view_size=160)
    mine = merge(SEEING.model_copy(update={"shipped": True, "data": mixed}), data="photos").data
    assert mine == DataConfig(data=("photos",), image_size=128)


def test_what_the_encoder_is_shown_stays():
    small = SEEING.model_copy(update={"data": DataConfig(image_size=16, view_size=24)})
    assert merge(small).data == merge(small, view_size="24").data == small.data
    with pytest.raises(UsageError, match="--view-size is 24 in this model, not 32"):
        merge(small, view_size="32")


def test_a_configuration_from_before_the_objective_is_read():
    stored = STORED.model_dump(mode="json")
    del stored["objective"]
    assert resume.merge({"config": stored, "epoch": 3}, HERE, {}, V2).objective == ObjectiveConfig()
    assert resume.merge({"config": stored, "epoch": 3}, HERE, {}, SECTIONS).objective is None


def test_a_configuration_that_is_none_is_said_with_its_file():
    with pytest.raises(UsageError, match=r"config\.json is not a configuration"):
        resume.merge({"config": {"model": 3}}, HERE, {}, V2)


# -- the loss of direct regression -----------------------------------------------------------------------------------

SIMPLE = recipe.regression("train_colorization_simple.py", "About.", loss="simple", outputs="ab")
RESTORATION = recipe.regression("train_image_restoration.py", "About.", loss="enhanced", outputs="lab")
TUNED = {"loss": "enhanced", "preset": "vibrant", "perceptual_net": "random", "ab_weight": 7.0, "b_weight": 2.0}


def with_loss(loss=None, **model):
    return RunConfig(model=RegressionConfig(**model), data=DataConfig(image_size=32), loss=loss and LossConfig(**loss))


def merged_loss(stored, of=SIMPLE, **given):
    """Merges as the scripts do: the recipe's settings are those that follow from the given ones."""
    loss = merge(stored, of.sections_with(given), **given).loss
    return LossConfig(**loss.model_dump())  # not of the recipe's own class, which has other defaults


@pytest.mark.parametrize("of", [SIMPLE, RESTORATION])
@pytest.mark.parametrize("loss", [{}, {"loss": "weighted"}, TUNED])
def test_a_loss_is_inherited_by_either_recipe(of, loss):
    stored = with_loss(loss, model_channels=8)
    assert merge(stored, of.sections).model_dump() == stored.model_dump()
    if loss == TUNED:
        assert merged_loss(stored, of, loss="enhanced") == stored.loss, "it repeats the stored value"


def test_a_model_without_a_loss_gets_that_of_the_recipe():
    assert merged_loss(with_loss()) == LossConfig()
    assert merged_loss(with_loss(), RESTORATION) == LossConfig(loss="enhanced")
    assert merged_loss(with_loss(), ab_weight="4") == LossConfig(ab_weight=4)


def test_one_weight_changes_and_the_others_stay():
    changed = merged_loss(with_loss(TUNED), saturation_weight="2")
    assert changed == LossConfig(**TUNED, saturation_weight=2)
    assert changed.preset == "vibrant"


def test_another_preset_resets_the_weights_that_were_not_given():
    """It does not reset what does not depend on a preset."""
    changed = merged_loss(with_loss(TUNED), preset="maximum", saturation_weight="2")
    expected = PRESETS["maximum"] | {"saturation_weight": 2.0, "a_weight": 1.0, "b_weight": 1.0}
    assert {name: getattr(changed, name) for name in expected} == expected
    assert (changed.loss, changed.preset, changed.perceptual_net) == ("enhanced", "maximum", "random")


def test_another_loss_resets_the_weights_that_were_not_given():
    assert merged_loss(with_loss(TUNED), loss="weighted") == LossConfig(loss="weighted", perceptual_net="random")
    simple = merged_loss(with_loss(TUNED), loss="simple", diversity_weight="0.01")
    assert simple == LossConfig(diversity_weight=0.01, perceptual_net="random")
    enhanced = merged_loss(with_loss({"ab_weight": 9}), loss="enhanced", preset="maximum")
    assert enhanced == LossConfig(loss="enhanced", preset="maximum")


@pytest.mark.parametrize(
    ("stored", "given", "name", "value"),
    [
        ({"loss": "enhanced"}, {"preset": "vibrant", "ab_weight": "3"}, "ab_weight", 3),
        ({"loss": "enhanced"}, {"preset": "maximum", "saturation_weight": "0.5"}, "saturation_weight", 0.5),
        ({"loss": "simple"}, {"loss": "weighted", "ab_weight": "2"}, "ab_weight", 2),
        ({"loss": "simple"}, {"loss": "enhanced", "perceptual_weight": "1"}, "perceptual_weight", 1),
    ],
)
def test_a_weight_that_repeats_the_stored_one_is_kept_when_the_loss_changes(stored, given, name, value):
    """It was given explicitly, and so it is not reset with the others."""
    assert getattr(merged_loss(with_loss(stored), **given), name) == value


@pytest.mark.parametrize(
    ("stored", "given", "said"),
    [
        ({}, {"preset": "vibrant"}, "only the enhanced loss has presets.*use --loss enhanced"),
        ({}, {"saturation_weight": "1"}, "no term for --saturation-weight; use it with --loss enhanced"),
        (TUNED, {"loss": "weighted", "l_weight": "1"}, "the weighted loss has no term for --l-weight"),
        (TUNED, {"lab_weight": "1"}, "the enhanced loss has no term for --lab-weight"),
        ({"loss": "weighted"}, {"ab_weight": "0"}, "all weights of the loss are 0"),
        ({}, {"loss": "huber"}, "--loss huber: input should be"),
        (TUNED, {"preset": "wild"}, "--preset wild: input should be"),
        (TUNED, {"ab_weight": "-1"}, "--ab-weight -1: input should be greater than or equal to 0"),
        (TUNED, {"perceptual_weights": "alex.pth"}, "perceptual_net random takes no weights"),
        ({}, {"outputs": "lab"}, "--outputs is ab in this model, not lab"),
        ({}, {"model_channels": "8"}, "--model-channels is 96 in this model, not 8"),
    ],
)
def test_what_does_not_go_with_the_loss_is_refused(stored, given, said):
    with pytest.raises(UsageError, match=said):
        merged_loss(with_loss(stored), **given)


def test_what_goes_together_is_checked_over_the_parts_too():
    """The weighted loss does not use lightness, and LPIPS does not accept pictures of 16 pixels."""
    with pytest.raises(UsageError, match=r"weighted loss says nothing about lightness.*use --loss enhanced"):
        merged_loss(with_loss({"loss": "enhanced"}, outputs="lab"), loss="weighted")
    small = with_loss({"loss": "weighted"}).model_copy(update={"data": DataConfig(image_size=16)})
    with pytest.raises(UsageError, match="--image-size 16 is too small for the perceptual term"):
        merged_loss(small, loss="simple")
    assert merged_loss(small, loss="simple", perceptual_weight="0").loss == "simple"


def test_the_training_that_goes_with_a_loss_is_that_of_a_new_model_only():
    """--loss weighted on an existing model changes the loss, but not the learning rate or its schedule."""
    stored = with_loss({})
    merged = merge(stored, SIMPLE.sections_with({"loss": "weighted"}), loss="weighted")
    assert merged.training.model_dump() == stored.training.model_dump()


@pytest.mark.parametrize(
    ("stored", "sections", "script"),
    [
        (with_loss({}), SECTIONS, r"train_colorization_simple\.py or train_image_restoration\.py"),
        (with_loss({}), V2, r"train_colorization_simple\.py or train_image_restoration\.py"),
        (STORED, SIMPLE.sections, r"train_diffusion\.py"),
        (WITH_TERMS, RESTORATION.sections, r"train_diffusion_v2\.py"),
    ],
)
def test_a_model_is_sent_to_the_scripts_of_its_method(stored, sections, script):
    with pytest.raises(UsageError, match=f"continue it with .*{script}"):
        merge(stored, sections)


# -- plan ------------------------------------------------------------------------------------------------------------


def plan(config, *, done, epochs, **settings):
    planned = config.model_copy(update={"training": config.training.model_copy(update={"epochs": epochs})})
    checkpoint = {"config": config.model_dump(mode="json"), "epoch": done, "progress": {"step": 7, "schedule_steps": 9}}
    return resume.check_remaining(checkpoint, planned, **{"new_schedule": False} | settings), checkpoint["progress"]


def test_a_complete_run_says_how_to_go_on():
    text, _ = plan(STORED, done=3, epochs=3)
    assert text == "complete: all 3 epochs are done. Add some with --epochs N."
    assert plan(STORED, done=3, epochs=4)[0] is None


def test_a_new_schedule_begins_where_the_run_stands():
    assert plan(STORED, done=3, epochs=4, new_schedule=True) == (
        None,
        {"step": 7, "schedule_start": 7, "schedule_steps": 0, "rate_scale": 1.0},
    )


def test_a_schedule_with_an_end_is_not_gone_past():
    training = STORED.training.model_copy(update={"lr_schedule": "cosine"})
    with pytest.raises(UsageError, match="say which schedule"):
        plan(STORED.model_copy(update={"training": training}), done=3, epochs=4)


# -- which file ------------------------------------------------------------------------------------------------------


def test_a_folder_without_weights_cannot_be_resumed(tmp_path):
    with pytest.raises(CheckpointError, match=r"m cannot be resumed: it has neither last_model\.pth"):
        resume.load_for_resume(ModelFolder(tmp_path / "m"))


def test_a_damaged_history_is_set_aside_and_said_and_the_run_goes_on(tmp_path):
    folder = ModelFolder(tmp_path / "m")
    folder.path.mkdir()
    save_checkpoint(folder.last, {"model_state_dict": {}, "config": {}, "epoch": 2})
    folder.history.write_text('[{"epoch": 1', encoding="utf-8")
    checkpoint, notes = resume.load_for_resume(folder)
    assert checkpoint["epoch"] == 2
    assert notes == ["training_history.json is damaged; it is kept as training_history.json.damaged-1."]
    assert (folder.path / "training_history.json.damaged-1").read_text() == '[{"epoch": 1'
    assert not resume.load_for_resume(folder)[1], "said once"


def test_a_lost_history_is_written_anew_from_the_checkpoint(tmp_path):
    folder = ModelFolder(tmp_path / "m")
    folder.path.mkdir()
    stored = {"history": [{"epoch": 1}, {"epoch": 2}]}
    assert resume.mend_history(folder, stored)
    assert [entry["epoch"] for entry in read_history(folder)] == [1, 2]
    assert not resume.mend_history(folder, {"history": [{"epoch": 1}]}), "one that is there stays"
    assert [entry["epoch"] for entry in read_history(folder)] == [1, 2]


# -- starting from another model -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A file of weights of a small, untrained model."""
    path = tmp_path_factory.mktemp("old") / "best_model.pth"
    model = build_model(STORED.model)
    save_checkpoint(path, {"model_state_dict": model.state_dict(), "config": STORED.model_dump(mode="json")})
    return path


def test_a_new_model_starts_with_the_weights_and_the_network_of_another(trained):
    settings, weights = resume.starting_point(trained, DiffusionConfig, {})
    assert settings == STORED.model
    stored = load_checkpoint(trained)["model_state_dict"]
    assert weights.keys() == stored.keys()
    assert all(weights[name].equal(stored[name]) for name in stored)


def test_what_does_not_touch_the_weights_may_be_new(trained):
    settings, _ = resume.starting_point(trained, DiffusionConfig, {"min_snr_gamma": "5", "noise_shift": "2"})
    assert settings == STORED.model.model_copy(update={"min_snr_gamma": 5.0, "noise_shift": 2.0})


@pytest.mark.parametrize("given", [{"features": "8,32"}, {"hints": True}, {"chroma_scale": "2"}, {"layers": "2"}])
def test_another_network_cannot_take_the_weights(trained, given):
    with pytest.raises(UsageError, match=rf"fit a network with another --{next(iter(given)).replace('_', '-')};"):
        resume.starting_point(trained, DiffusionConfig, given)


def test_another_method_is_pointed_to_its_script(trained):
    with pytest.raises(UsageError, match=r"diffusion model, not a regression one; use train_diffusion\.py"):
        resume.starting_point(trained, RegressionConfig, {})


def test_a_palette_comes_with_the_weights(tmp_path):
    config = RunConfig(model=ClassificationConfig(width=4, blocks=(1, 1, 1, 1), bins=8))
    path = tmp_path / "best_model.pth"
    model = build_model(config.model)
    model.centres.uniform_(-50, 50)
    save_checkpoint(path, {"model_state_dict": model.state_dict(), "config": config.model_dump(mode="json")})
    settings, weights = resume.starting_point(path, ClassificationConfig, {"rebalance": "0"})
    assert settings.rebalance == 0
    assert weights["centres"].equal(model.centres)
    with pytest.raises(UsageError, match=r"--palette mine\.npz: it comes with the weights"):
        resume.starting_point(path, ClassificationConfig, {"palette": "mine.npz"})


def test_a_file_that_does_not_fit_itself_is_not_blamed_on_flags(tmp_path):
    path = tmp_path / "best_model.pth"
    weights = build_model(DiffusionConfig(features=(8, 32))).state_dict()
    save_checkpoint(path, {"model_state_dict": weights, "config": STORED.model_dump(mode="json")})
    with pytest.raises(CheckpointError, match="do not fit the model that its configuration describes"):
        resume.starting_point(path, DiffusionConfig, {"min_snr_gamma": "5"})
