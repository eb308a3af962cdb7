"""config.py: a setting is read strictly, and a message about a wrong one names the file, key, flag and rule."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from Project7.answer_config import ColorizeConfig
from Project7.config import SECTIONS, RunConfig, from_dict, from_json, to_json
from Project7.errors import UsageError
from Project7.flags import default_text
from Project7.loss_config import LOSS_WEIGHTS, PRESETS, LossConfig
from Project7.model_config import ENCODER, ClassificationConfig, DiffusionConfig, RegressionConfig
from Project7.settings import declared, parse_settings, setting_fields, with_defaults
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig

FILE = "models/my-model/config.json"
V2_SECTIONS = SECTIONS | {"objective": ObjectiveConfig}
REGRESSION_SECTIONS = SECTIONS | {"model": RegressionConfig, "loss": LossConfig}
CONFIGS = [*V2_SECTIONS.values(), RegressionConfig, LossConfig, ColorizeConfig]
FIELDS = [
    pytest.param(config, name, id=f"{config.__name__}.{name}")
    for config in CONFIGS
    for name in config.model_fields
    if name != "method"
]


def json_of(start: RunConfig | None = None, **changes) -> str:
    """A configuration as JSON, that of the V2 recipe by default; `section__key=value` changes or adds a key."""
    raw = json.loads(to_json(start or RunConfig(objective=ObjectiveConfig())))
    for place, value in changes.items():
        section, key = place.split("__")
        raw[section][key] = value
    return json.dumps(raw)


def refusal(text: str) -> str:
    """The message by which from_json refuses `text`: one line that names the file."""
    with pytest.raises(UsageError) as caught:
        from_json(text, FILE)
    message = str(caught.value)
    assert message.startswith(FILE)
    assert "\n" not in message
    return message


# -- JSON ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [None, ObjectiveConfig(), ObjectiveConfig(gan=True, perceptual_weights="a file")])
def test_the_default_survives_json(objective):
    config = RunConfig(objective=objective)
    assert from_json(to_json(config), FILE) == config


def test_a_configuration_of_before_the_objective_and_the_noise_shift_is_read():
    raw = json.loads(to_json(RunConfig()))
    del raw["objective"], raw["model"]["noise_shift"]
    assert from_json(json.dumps(raw), FILE) == RunConfig()
    assert RunConfig().objective is None
    assert RunConfig().model.noise_shift == 1


OBJECTIVES = st.builds(
    ObjectiveConfig,
    mse_weight=st.floats(0, 1000, exclude_min=True),
    perceptual_weight=st.floats(0, 1000),
    gan=st.booleans(),
    perceptual_weights=st.none() | st.text(st.characters(codec="utf-8"), min_size=1),
    image_share=st.floats(0, 1, exclude_min=True),
    gan_scales=st.integers(1, 3),
    stage1_epochs=st.integers(0),
)


@settings(max_examples=50)
@given(
    features=st.lists(st.integers(1, 4096), min_size=1, max_size=8).map(tuple),
    learning_rate=st.floats(0, 1, exclude_min=True),
    ab_mean=st.tuples(st.floats(-128, 128), st.floats(-128, 128)),
    data=st.text(st.characters(codec="utf-8"), min_size=1),
    limit=st.none() | st.integers(1),
    seed=st.integers(0, 2**63 - 1),
    noise_shift=st.floats(1, 32),
    objective=st.none() | OBJECTIVES,
    shipped=st.booleans(),
)
def test_every_value_survives_json(
    features, learning_rate, ab_mean, data, limit, seed, noise_shift, objective, shipped
):
    config = RunConfig(
        model=DiffusionConfig(features=features, ab_mean=ab_mean, noise_shift=noise_shift),
        data=DataConfig(data=data, limit=limit),
        training=TrainingConfig(learning_rate=learning_rate, seed=seed),
        objective=objective,
        shipped=shipped,
    )
    assert from_json(to_json(config), FILE) == config


def test_a_byte_order_mark_is_accepted():
    assert from_json("\ufeff" + to_json(RunConfig()), FILE) == RunConfig()


@pytest.mark.parametrize(
    "text",
    ["", "{", "hello", "{'model': 1}", to_json(RunConfig())[:-5], "\0", "[" * 100_000],
    ids=["empty", "open", "word", "single quotes", "cut", "NUL", "deep"],
)
def test_what_is_not_json_is_called_that(text):
    assert "is not valid JSON" in refusal(text)


@pytest.mark.parametrize("text", ["null", "[]", "3", '"text"'])
def test_json_of_another_kind_is_refused(text):
    assert "the whole" in refusal(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_know_are_named(number):
    text = to_json(RunConfig()).replace("0.0001", number)
    assert f"{number} is not a valid number in JSON" in refusal(text)


def test_a_number_too_big_for_a_float_is_refused_with_its_key():
    message = refusal(to_json(RunConfig()).replace('"gradient_clip": 1.0', '"gradient_clip": 1e999'))
    assert "training.gradient_clip" in message


def test_a_key_that_stands_twice_is_named():
    text = to_json(RunConfig()).replace('"epochs"', '"seed": 1, "epochs"')
    assert "the key 'seed' occurs twice" in refusal(text)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"model__colour": 1}, "model.colour"),
        ({"training__Epochs": 1}, "training.Epochs"),
        ({"model__timesteps": "many"}, "model.timesteps"),
        ({"model__timesteps": 10.5}, "model.timesteps"),
        ({"model__features": 64}, "model.features"),
        ({"model__features": {"a": 64}}, "model.features"),
        ({"model__features": []}, "model.features"),
        ({"model__features": [64] * 9}, "model.features"),
        ({"model__features": [64, None]}, "model.features.1"),
        ({"model__features": [64, 10**6]}, "model.features.1"),
        ({"model__features": [64, 10**30]}, "model.features.1"),
        ({"model__ab_std": [1.0]}, "model.ab_std.1"),
        ({"model__hints": "perhaps"}, "model.hints"),
        ({"model__prediction_type": "sample"}, "model.prediction_type"),
        ({"model__method": "restoration"}, "model.method"),
        ({"data__data": 3}, "data.data"),
        ({"data__limit": 0}, "data.limit"),
        ({"training__epochs": None}, "training.epochs"),
        ({"training__seed": -1}, "training.seed"),
        ({"model__noise_shift": 0.5}, "model.noise_shift"),
        ({"objective__gan": "perhaps"}, "objective.gan"),
        ({"objective__mse_weight": 0}, "objective.mse_weight"),
        ({"objective__gan_scales": 4}, "objective.gan_scales"),
        ({"objective__weight": 1}, "objective.weight"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_file(changes, key):
    assert f"{key}: " in refusal(json_of(**changes))


@pytest.mark.parametrize("method", ["restoration", "Diffusion", "", None, 3])
def test_an_unknown_method_is_said_with_the_three_that_there_are(method):
    message = refusal(json_of(model__method=method))
    assert "model.method: Input should be diffusion or classification or regression" in message


def test_an_unknown_section_is_named():
    assert "optimizer: " in refusal('{"optimizer": {}}')


def test_a_hundred_mistakes_are_still_a_short_message():
    assert len(refusal(json_of(**{f"model__key{i}": 1 for i in range(100)}))) < 500


def test_a_forbidden_combination_in_a_file_is_refused():
    assert "v_prediction" in refusal(json_of(model__prediction_type="epsilon"))


def test_from_dict_takes_what_a_checkpoint_holds():
    assert from_dict(RunConfig().model_dump(mode="json"), "best_model.pth") == RunConfig()
    with pytest.raises(UsageError, match=r"^best_model\.pth .*model\.timesteps"):
        from_dict({"model": {"timesteps": 1}}, "best_model.pth")


# -- the fields ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "name"), FIELDS)
def test_a_field_is_described_and_its_default_can_be_typed(config, name):
    field = config.model_fields[name]
    assert len(field.description) > 5
    assert not field.description.endswith(".")
    assert declared(field, "fixed") in (True, False)
    assert not field.is_required()
    typed = getattr(parse_settings(config, {name: default_text(field.default)}), name)
    assert typed == getattr(config(), name)
    if not name.endswith("_weight") or config is not LossConfig:  # None there means the weight of the loss
        assert typed == field.default


def test_a_number_has_a_lower_bound():
    """Without a bound, 0 or -1 would fail deep inside, hours later."""
    fields = [(name, config.model_fields[name]) for config, name in (field.values for field in FIELDS)]
    numbers = [(n, f) for n, f in fields if f.annotation in (int, float, int | None, float | None)]
    assert len(numbers) > 40
    assert [n for n, f in numbers if not {type(rule).__name__ for rule in f.metadata} & {"Ge", "Gt"}] == []


@pytest.mark.parametrize("sections", [SECTIONS, V2_SECTIONS, REGRESSION_SECTIONS], ids=["MSE", "V2", "regression"])
def test_no_setting_stands_in_two_sections(sections):
    fields = setting_fields(sections)
    assert len(fields) == sum(len(c.model_fields) for c in sections.values()) - 1, "all but `method`"
    for name, (section, field) in fields.items():
        assert sections[section].model_fields[name] is field


def test_each_recipe_has_its_own_settings():
    """The order of the requests does not matter: nothing of one recipe may be left over in the other."""
    assert "gan" not in setting_fields(SECTIONS)
    assert setting_fields(V2_SECTIONS)["gan"][0] == "objective"
    assert setting_fields(REGRESSION_SECTIONS)["perceptual_weight"][0] == "loss"
    assert setting_fields(V2_SECTIONS)["perceptual_weight"][0] == "objective"
    assert "gan" not in setting_fields(SECTIONS)


def test_the_questions_of_the_objective_come_in_the_documents_order():
    asked = [
        name
        for name, (section, f) in setting_fields(V2_SECTIONS).items()
        if section == "objective" and declared(f, "ask")
    ]
    assert asked == ["mse_weight", "perceptual_weight", "gan", "adversarial_weight"]


def test_a_model_keeps_its_schedule_for_life_and_may_change_its_objective():
    assert declared(DiffusionConfig.model_fields["noise_shift"], "fixed")
    assert not any(declared(field, "fixed") for field in ObjectiveConfig.model_fields.values())


def test_the_objective_is_the_documents_by_default():
    config = ObjectiveConfig()
    assert (config.mse_weight, config.perceptual_weight, config.adversarial_weight) == (1.0, 0.1, 0.01)
    assert (config.gan, config.perceptual_net, config.perceptual_weights) == (False, "vgg16", None)
    assert config.stage1_epochs == 0


@pytest.mark.parametrize("config", CONFIGS)
def test_a_configuration_cannot_be_changed(config):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config(), next(iter(config.model_fields)), 1)


# -- the noise schedule ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "schedule"),
    [
        ({}, ("v_prediction", "scaled_linear", True)),
        ({"prediction_type": "epsilon"}, ("epsilon", "linear", False)),
        ({"zero_terminal_snr": False}, ("v_prediction", "linear", False)),
        ({"prediction_type": "epsilon", "beta_schedule": "squaredcos_cap_v2"}, ("epsilon", "squaredcos_cap_v2", False)),
        ({"beta_schedule": "linear"}, ("v_prediction", "linear", True)),
    ],
)
def test_a_prediction_type_brings_its_schedule(given, schedule):
    config = parse_settings(DiffusionConfig, given)
    assert (config.prediction_type, config.beta_schedule, config.zero_terminal_snr) == schedule


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ({"prediction_type": "epsilon", "zero_terminal_snr": True}, "--prediction-type v_prediction"),
        ({"prediction_type": "epsilon", "beta_schedule": "scaled_linear"}, "--beta-schedule linear"),
        ({"zero_terminal_snr": False, "beta_schedule": "scaled_linear"}, "--zero-terminal-snr"),
        ({"ab_std": "0,17.7"}, "12.6,17.7"),
        ({"ab_std": "12.6,-1"}, "12.6,17.7"),
        ({"noise_shift": "2", "zero_terminal_snr": False}, "--zero-terminal-snr"),
        ({"noise_shift": "2", "prediction_type": "epsilon"}, "--prediction-type v_prediction"),
    ],
)
def test_a_combination_that_cannot_work_is_refused_with_its_cure(given, cure):
    with pytest.raises(UsageError) as caught:
        parse_settings(DiffusionConfig, given)
    assert cure in str(caught.value)
    assert "\n" not in str(caught.value)


# -- what a person types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("64,128,256,512", (64, 128, 256, 512)),
        (" 64, 128 ", (64, 128)),
        ("[64, 128]", (64, 128)),
        ("(64,128)", (64, 128)),
        ("64", (64,)),
        (" 64 ", (64,)),
        ([32, 64], (32, 64)),
    ],
)
def test_features_as_a_person_types_them(text, features):
    assert parse_settings(DiffusionConfig, {"features": text}).features == features


@pytest.mark.parametrize("text", ["64,x", "64,,128", "64,", "x", "", "64;128", "64 128", "0", "64,-1", "1e6", "64.5"])
def test_features_that_are_none_are_refused_by_their_flag(text):
    with pytest.raises(UsageError, match=r"^--features"):
        parse_settings(DiffusionConfig, {"features": text})


def test_none_takes_a_limit_away():
    assert parse_settings(DataConfig, {"limit": "none"}).limit is None
    assert parse_settings(DataConfig, {"limit": "12"}).limit == 12


@pytest.mark.parametrize("path", ["photos", "summer, winter/photos", "(a)", "[a,b]", "64", "C:\\photos"])
def test_a_folder_may_be_called_anything(path):
    assert parse_settings(DataConfig, {"data": path}).data == (path,)


@pytest.mark.parametrize(
    ("config", "given", "said"),
    [
        (TrainingConfig, {"batch_size": "0"}, "--batch-size 0: "),
        (TrainingConfig, {"epochs": "many"}, "--epochs many: "),
        (TrainingConfig, {"learning_rate": "-1"}, "--learning-rate -1: "),
        (
            TrainingConfig,
            {"learning_rate": "0,001"},
            "--learning-rate 0,001: input should be a valid number; write 0.001, with a point",
        ),
        (TrainingConfig, {"learning_rate": "nan"}, "--learning-rate nan: "),
        (TrainingConfig, {"gradient_clip": "inf"}, "--gradient-clip inf: "),
        (TrainingConfig, {"mixed_precision": "fp8"}, "--mixed-precision fp8: "),
        (TrainingConfig, {"seed": str(2**63)}, f"--seed {2**63}: "),
        (DiffusionConfig, {"features": "64,x"}, "--features x: "),
        (DiffusionConfig, {"chroma_scale": "3"}, "--chroma-scale 3: "),
        (DiffusionConfig, {"timesteps": "1"}, "--timesteps 1: "),
        (DataConfig, {"val_fraction": "0.6"}, "--val-fraction 0.6: "),
        (DiffusionConfig, {"noise_shift": "0.99"}, "--noise-shift 0.99: "),
        (DiffusionConfig, {"noise_shift": "33"}, "--noise-shift 33: "),
        (DiffusionConfig, {"noise_shift": "nan"}, "--noise-shift nan: "),
        (ObjectiveConfig, {"mse_weight": "0"}, "--mse-weight 0: "),
        (ObjectiveConfig, {"mse_weight": "-1"}, "--mse-weight -1: "),
        (ObjectiveConfig, {"mse_weight": "1001"}, "--mse-weight 1001: "),
        (ObjectiveConfig, {"perceptual_weight": "-1"}, "--perceptual-weight -1: "),
        (ObjectiveConfig, {"perceptual_weight": "inf"}, "--perceptual-weight inf: "),
        (ObjectiveConfig, {"adversarial_weight": "0"}, "--adversarial-weight 0: "),
        (ObjectiveConfig, {"adversarial_weight": "much"}, "--adversarial-weight much: "),
        (ObjectiveConfig, {"gan": "perhaps"}, "--gan perhaps: "),
        (ObjectiveConfig, {"perceptual_net": "vgg19"}, "--perceptual-net vgg19: "),
        (ObjectiveConfig, {"perceptual_weights": ""}, "--perceptual-weights"),
        (ObjectiveConfig, {"image_share": "0"}, "--image-share 0: "),
        (ObjectiveConfig, {"image_share": "1.01"}, "--image-share 1.01: "),
        (ObjectiveConfig, {"gan_learning_rate": "0"}, "--gan-learning-rate 0: "),
        (ObjectiveConfig, {"gan_start": "-1"}, "--gan-start -1: "),
        (ObjectiveConfig, {"gan_warmup": "-1"}, "--gan-warmup -1: "),
        (ObjectiveConfig, {"gan_scales": "0"}, "--gan-scales 0: "),
        (ObjectiveConfig, {"gan_scales": "4"}, "--gan-scales 4: "),
        (ObjectiveConfig, {"gan_width": "7"}, "--gan-width 7: "),
        (ObjectiveConfig, {"gan_width": "513"}, "--gan-width 513: "),
        (ObjectiveConfig, {"feature_matching_weight": "-0.1"}, "--feature-matching-weight -0.1: "),
        (ObjectiveConfig, {"stage1_epochs": "-1"}, "--stage1-epochs -1: "),
        (RegressionConfig, {"model_channels": "3"}, "--model-channels 3: "),
        (RegressionConfig, {"channel_multipliers": "1,0"}, "--channel-multipliers 0: "),
        (RegressionConfig, {"chroma_scale": "3"}, "--chroma-scale 3: "),
        (RegressionConfig, {"outputs": "rgb"}, "--outputs rgb: "),
        (RegressionConfig, {"fade": "0.96"}, "--fade 0.96: "),
        (RegressionConfig, {"fade": "-0.1"}, "--fade -0.1: "),
        (RegressionConfig, {"ab_std": "0,17.7"}, "--ab-std: 0,17.7 must be above 0"),
        (LossConfig, {"loss": "fancy"}, "--loss fancy: "),
        (LossConfig, {"loss": "enhanced", "preset": "lively"}, "--preset lively: "),
        (LossConfig, {"preset": "lively"}, "--preset lively: "),
        (LossConfig, {"ab_weight": "-1"}, "--ab-weight -1: "),
        (LossConfig, {"ab_weight": "1001"}, "--ab-weight 1001: "),
        (LossConfig, {"lab_weight": "nan"}, "--lab-weight nan: "),
        (LossConfig, {"perceptual_weight": "much"}, "--perceptual-weight much: "),
        (LossConfig, {"loss": "enhanced", "l_weight": "inf"}, "--l-weight inf: "),
        (LossConfig, {"perceptual_net": "vgg16"}, "--perceptual-net vgg16: "),
        (LossConfig, {"perceptual_weights": ""}, "--perceptual-weights"),
        (ColorizeConfig, {"sampler": "magic"}, "--sampler magic: "),
        (ColorizeConfig, {"steps": "0"}, "--steps 0: "),
    ],
)
def test_a_bad_value_is_said_with_its_flag(config, given, said):
    with pytest.raises(UsageError) as caught:
        parse_settings(config, given)
    message = str(caught.value)
    assert message.startswith(said)
    assert "\n" not in message
    assert "pydantic" not in message


def test_all_bad_values_are_said_at_once():
    with pytest.raises(UsageError) as caught:
        parse_settings(TrainingConfig, {"batch_size": "0", "epochs": "x"})
    assert "--batch-size 0: " in str(caught.value)
    assert "--epochs x: " in str(caught.value)


@pytest.mark.parametrize(
    ("config", "given"),
    [
        (DiffusionConfig, {"noise_shift": "1"}),
        (DiffusionConfig, {"noise_shift": "32"}),
        (DiffusionConfig, {"noise_shift": "1", "prediction_type": "epsilon"}),
        (ObjectiveConfig, {"mse_weight": "1000", "perceptual_weight": "0", "adversarial_weight": "1e-6"}),
        (ObjectiveConfig, {"image_share": "1", "gan_start": "0", "gan_warmup": "0", "feature_matching_weight": "0"}),
        (ObjectiveConfig, {"gan": "true", "gan_scales": "3", "gan_width": "512", "gan_learning_rate": "1"}),
    ],
)
def test_what_lies_just_within_the_bounds_is_taken(config, given):
    built = parse_settings(config, given)
    for name, value in ((n, getattr(built, n)) for n in given):
        assert value == type(value)(given[name])


@pytest.mark.parametrize(("typed", "scale"), [("1", 1), ("2", 2), (2, 2)])
def test_a_choice_of_numbers_can_be_typed(typed, scale):
    assert parse_settings(DiffusionConfig, {"chroma_scale": typed}).chroma_scale == scale


# -- the loss of direct regression -----------------------------------------------------------------------------------

ALL_WEIGHTS = [name for name in LossConfig.model_fields if name.endswith("_weight")]
DOCUMENTS_TABLE = {  # perceptual, l, ab, saturation
    "conservative": (0.5, 0.3, 2.0, 0.3),
    "balanced": (0.5, 0.3, 3.0, 0.5),
    "vibrant": (0.3, 0.2, 4.0, 1.0),
    "maximum": (0.2, 0.2, 5.0, 1.5),
}


def weights_of(config: LossConfig) -> dict[str, float]:
    return {name: getattr(config, name) for name in ALL_WEIGHTS if getattr(config, name) is not None}


def test_a_loss_brings_the_weights_of_its_document():
    assert weights_of(LossConfig()) == {
        "perceptual_weight": 1.0,
        "lab_weight": 1.0,
        "ab_weight": 2.0,
        "diversity_weight": 0.0,
    }
    assert weights_of(LossConfig(loss="weighted")) == {"perceptual_weight": 0.0, "ab_weight": 1.0}
    assert weights_of(LossConfig(loss="enhanced")) == {
        "perceptual_weight": 0.5,
        "l_weight": 0.3,
        "ab_weight": 3.0,
        "saturation_weight": 0.5,
        "a_weight": 1.0,
        "b_weight": 1.0,
    }
    assert LossConfig().preset is LossConfig(loss="weighted").preset is None
    assert LossConfig(loss="enhanced").preset == "balanced"
    for loss, weights in LOSS_WEIGHTS.items():
        assert weights_of(LossConfig(loss=loss)) == weights


@pytest.mark.parametrize("preset", DOCUMENTS_TABLE)
def test_a_preset_brings_the_weights_of_the_documents_table(preset):
    config = parse_settings(LossConfig, {"loss": "enhanced", "preset": preset})
    found = config.perceptual_weight, config.l_weight, config.ab_weight, config.saturation_weight
    assert found == DOCUMENTS_TABLE[preset]
    assert (config.a_weight, config.b_weight) == (1, 1)
    assert set(PRESETS) == set(DOCUMENTS_TABLE)


@pytest.mark.parametrize("loss", LOSS_WEIGHTS)
def test_what_is_given_counts_more_than_what_the_loss_or_its_preset_brings(loss):
    for name in LOSS_WEIGHTS[loss]:
        config = parse_settings(LossConfig, {"loss": loss, name: "0.125"})
        assert weights_of(config) == LOSS_WEIGHTS[loss] | {name: 0.125}
    config = parse_settings(LossConfig, {"loss": "enhanced", "preset": "maximum", "l_weight": "0", "b_weight": "2.5"})
    assert (config.l_weight, config.b_weight, config.ab_weight) == (0, 2.5, 5)


def test_none_is_what_the_loss_and_its_preset_bring():
    """A stored configuration has null for a term that the loss does not have, and a person may answer none."""
    config = parse_settings(LossConfig, {"loss": "enhanced", "preset": "none", "saturation_weight": "none"})
    assert config == LossConfig(loss="enhanced")
    assert LossConfig(**LossConfig(loss="weighted").model_dump()) == LossConfig(loss="weighted")


def test_a_recipe_with_another_default_loss_has_that_ones_weights():
    restoration = with_defaults(LossConfig, loss="enhanced")
    assert weights_of(restoration()) == LOSS_WEIGHTS["enhanced"]
    assert restoration().preset == "balanced"
    assert (
        weights_of(parse_settings(restoration, {"preset": "vibrant"})) == LOSS_WEIGHTS["enhanced"] | PRESETS["vibrant"]
    )
    assert weights_of(parse_settings(restoration, {"loss": "weighted"})) == LOSS_WEIGHTS["weighted"]
    assert weights_of(LossConfig()) == LOSS_WEIGHTS["simple"]


FOREIGN = [
    (loss, name) for loss, own in LOSS_WEIGHTS.items() for name in ALL_WEIGHTS if name not in own and name != "loss"
]


@pytest.mark.parametrize(("loss", "name"), FOREIGN)
def test_a_weight_that_the_loss_has_no_term_for_is_refused_with_the_losses_that_do(loss, name):
    with pytest.raises(UsageError) as caught:
        parse_settings(LossConfig, {"loss": loss, name: "0.5"})
    message = str(caught.value)
    assert message.startswith(f"the {loss} loss has no term for --{name.replace('_', '-')}")
    owners = {other for other, own in LOSS_WEIGHTS.items() if name in own}
    assert owners
    assert {other for other in LOSS_WEIGHTS if f"--loss {other}" in message} == owners
    parse_settings(LossConfig, {"loss": loss, name: "0"})  # which asks for nothing


@pytest.mark.parametrize(
    ("given", "cure"),
    [
        ({"preset": "vibrant"}, "--loss enhanced"),
        ({"loss": "weighted", "preset": "balanced"}, "--loss enhanced"),
        ({"loss": "weighted", "ab_weight": "0"}, "leave out one of them"),
        ({"perceptual_weight": "0", "lab_weight": "0", "ab_weight": "0"}, "leave out one of them"),
        ({"perceptual_net": "random", "perceptual_weights": "alexnet.pth"}, "--perceptual-net alex"),
    ],
)
def test_a_loss_that_cannot_be_is_refused_with_its_cure(given, cure):
    with pytest.raises(UsageError) as caught:
        parse_settings(LossConfig, given)
    assert cure in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("alone", ["perceptual_weight", "l_weight", "ab_weight", "saturation_weight"])
def test_one_weight_above_0_is_enough(alone):
    others = dict.fromkeys(PRESETS["balanced"], 0.0) | {alone: 1.0}
    assert getattr(LossConfig(loss="enhanced", **others), alone) == 1


def test_an_ab_term_of_which_neither_a_nor_b_counts_is_none():
    """As the only term it would be 0 whatever the colours are: such a run would learn nothing, without saying so."""
    nothing = {"perceptual_weight": 0, "l_weight": 0, "saturation_weight": 0, "a_weight": 0, "b_weight": 0}
    with pytest.raises(ValidationError, match="one must be above"):
        LossConfig(loss="enhanced", **nothing)
    assert LossConfig(loss="enhanced", **(nothing | {"b_weight": 1})).ab_weight == 3


def test_a_loss_may_be_changed_on_the_way_and_its_weights_follow_it():
    fields = LossConfig.model_fields
    assert not any(declared(field, "fixed") for field in fields.values())
    assert {name: declared(field, "follows") for name, field in fields.items() if declared(field, "follows")} == {
        "preset": ("loss",),
        **dict.fromkeys(ALL_WEIGHTS, ("loss", "preset")),
    }


def regression_run(**changes) -> RunConfig:
    return RunConfig(**{"model": RegressionConfig(), "loss": LossConfig(), **changes})


WEIGHT = st.floats(0, 1000)


@settings(max_examples=50)
@given(
    loss=st.one_of(
        st.builds(LossConfig, loss=st.just("simple"), lab_weight=WEIGHT, diversity_weight=WEIGHT),
        st.builds(LossConfig, loss=st.just("weighted"), perceptual_weight=WEIGHT),
        st.builds(
            LossConfig,
            loss=st.just("enhanced"),
            preset=st.sampled_from([None, *PRESETS]),
            saturation_weight=st.none() | WEIGHT,
            b_weight=WEIGHT,
            perceptual_net=st.sampled_from(["alex", "vgg"]),
            perceptual_weights=st.none() | st.text(st.characters(codec="utf-8"), min_size=1),
        ),
    ),
    multipliers=st.lists(st.integers(1, 64), min_size=1, max_size=8).map(tuple),
    fade=st.floats(0, 0.95),
)
def test_every_loss_survives_json(loss, multipliers, fade):
    config = regression_run(loss=loss, model=RegressionConfig(channel_multipliers=multipliers, fade=fade))
    assert from_json(to_json(config), FILE) == config


def test_a_stored_loss_keeps_its_weights_whatever_its_preset_says_today():
    """All weights are stored, so that changing a preset in the code does not change an existing model."""
    text = json_of(regression_run(loss=LossConfig(loss="enhanced")), loss__ab_weight=2.75, loss__saturation_weight=0)
    loss = from_json(text, FILE).loss
    assert (loss.preset, loss.ab_weight, loss.saturation_weight) == ("balanced", 2.75, 0)


def test_a_configuration_of_before_the_losses_is_read():
    raw = json.loads(to_json(RunConfig()))
    del raw["loss"]
    assert from_json(json.dumps(raw), FILE) == RunConfig()
    assert RunConfig().loss is None
    assert from_json(json_of(RunConfig(model=RegressionConfig())), FILE).loss is None


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"loss__loss": "fancy"}, "loss.loss"),
        ({"loss__loss": ["simple"]}, "loss.loss"),
        ({"loss__preset": "lively"}, "loss.preset"),
        ({"loss__preset": {"a": 1}}, "loss.preset"),
        ({"loss__ab_weight": "much"}, "loss.ab_weight"),
        ({"loss__ab_weight": -1}, "loss.ab_weight"),
        ({"loss__colour": 1}, "loss.colour"),
        ({"loss__perceptual_net": "vgg19"}, "loss.perceptual_net"),
        ({"model__model_channels": 0}, "model.model_channels"),
        ({"model__channel_multipliers": [1, 65]}, "model.channel_multipliers.1"),
        ({"model__outputs": "rgb"}, "model.outputs"),
        ({"model__fade": 1}, "model.fade"),
        ({"model__features": [64]}, "model.features"),
    ],
)
def test_a_wrong_key_of_a_loss_or_a_regression_model_is_named_with_its_file(changes, key):
    assert f"{key}: " in refusal(json_of(regression_run(), **changes))


def test_a_foreign_weight_in_a_file_is_refused_with_the_file():
    assert "--saturation-weight" in refusal(json_of(regression_run(), loss__saturation_weight=0.5))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": DiffusionConfig()}, "for a regression model"),
        ({"model": ClassificationConfig()}, "for a regression model"),
        ({"objective": ObjectiveConfig()}, "without further objectives"),
        (
            {"model": RegressionConfig(outputs="lab"), "loss": LossConfig(loss="weighted")},
            "--loss enhanced with an --l-weight",
        ),
        ({"data": DataConfig(image_size=31)}, "--image-size 31 is too small"),
        (
            {"data": DataConfig(image_size=16), "loss": LossConfig(loss="weighted", perceptual_weight=0.01)},
            "--perceptual-weight 0",
        ),
    ],
)
def test_a_run_whose_parts_do_not_go_together_is_refused_with_its_cure(changes, said):
    with pytest.raises(ValidationError) as caught:
        regression_run(**changes)
    assert said in str(caught.value)
    with pytest.raises(UsageError) as caught:  # by flags, as a recipe builds it
        parse_settings(RunConfig, {"model": RegressionConfig(), "loss": LossConfig(), **changes})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss": None},
        {"loss": None, "data": DataConfig(image_size=8)},
        {"data": DataConfig(image_size=32)},
        {"data": DataConfig(image_size=8), "loss": LossConfig(loss="weighted")},
        {"data": DataConfig(image_size=16), "loss": LossConfig(loss="enhanced", perceptual_weight=0)},
        {"model": RegressionConfig(outputs="lab"), "loss": LossConfig(loss="enhanced")},
        {"model": RegressionConfig(outputs="lab")},
        {"model": DiffusionConfig(), "loss": None, "objective": ObjectiveConfig()},
    ],
)
def test_a_run_whose_parts_go_together_is_taken_and_survives_json(changes):
    config = regression_run(**changes)
    assert from_json(to_json(config), FILE) == config


# -- what follows from other settings -------------------------------------------------------------------------------


def test_a_new_models_noise_follows_the_size_of_its_chroma_grid():
    """The shift is 3 for 32 x 32 cells, and smaller for fewer cells, which less noise hides. A given shift and the
    classic schedule stay."""
    new = SECTIONS["model"]
    shifts = [
        parse_settings(new, {"chroma_scale": s}).fitted(size, ()).noise_shift
        for size, s in ((64, 2), (64, 4), (256, 4))
    ]
    assert shifts == [3.0, 1.5, 6.0]
    assert parse_settings(new, {"chroma_scale": 8}).fitted(32, ()).noise_shift == 1.0
    assert parse_settings(new, {"noise_shift": 2}).fitted(64, {"noise_shift"}).noise_shift == 2
    assert parse_settings(new, {"prediction_type": "epsilon"}).fitted(64, ()).noise_shift == 1
    assert RegressionConfig().fitted(64, ()) == RegressionConfig()


def test_fade_is_refused_where_it_has_no_effect():
    with pytest.raises(UsageError, match="--fade has no effect with --outputs ab"):
        RegressionConfig(fade=0.3).fitted(64, {"fade"})
    assert RegressionConfig(fade=0.3, outputs="lab").fitted(64, {"fade"}).fade == 0.3


def test_without_an_encoder_there_is_no_head():
    new = SECTIONS["model"]
    assert (parse_settings(new, {}).encoder, parse_settings(new, {}).head) == (ENCODER, "classes")
    assert parse_settings(new, {"encoder": "none"}).head == "none"
    with pytest.raises(UsageError, match="head classes reads what an encoder sees"):
        parse_settings(new, {"encoder": "none", "head": "classes"})
    with pytest.raises(UsageError, match="encoder_weights need an encoder"):
        parse_settings(DiffusionConfig, {"encoder_weights": "file.pth"})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": ("a", "b"), "shares": (1, 2, 3)}, "shares has 3 numbers for 2 sources"),
        ({"data": ("a", "b"), "crops": (1, 2, 3)}, "crops has 3 numbers for 2 sources"),
        ({"data": ("a", "a")}, "names the same source twice"),
    ],
)
def test_several_sources_are_described_one_by_one(settings, says):
    with pytest.raises(UsageError, match=says):
        parse_settings(DataConfig, settings)


def test_cached_features_and_what_changes_a_photo_exclude_each_other():
    for changed in ({"zoom": 0.5}, {"old_photos": 0.1}):
        with pytest.raises(UsageError, match="leave out --cache-features"):
            parse_settings(TrainingConfig, {"cache_features": True, **changed})
    with pytest.raises(UsageError, match="this model has none; use --encoder"):
        parse_settings(RunConfig, {"training": TrainingConfig(cache_features=True)})
