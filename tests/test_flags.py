"""flags.py: a field of a configuration is a flag with its help, default and check."""

import argparse
import re
import sys

import pytest
from pydantic import BaseModel

from Project7 import cli, program, recipe
from Project7.answer_config import ColorizeConfig
from Project7.config import SECTIONS
from Project7.errors import UsageError
from Project7.flags import Parser, add_settings, default_text, given, hyphenated
from Project7.settings import parse_settings, setting, setting_fields
from Project7.training_config import DataConfig, ObjectiveConfig, TrainingConfig

V2 = SECTIONS | {"objective": ObjectiveConfig}
RECIPES = {
    "mse": recipe.Recipe("x.py", "About.", SECTIONS),
    "v2": recipe.Recipe("x.py", "About.", V2, stages=True),
}


class Sample(BaseModel):
    """A field of each kind."""

    method: str = "none"
    share: float = setting(0.5, "keeps 50 % of %(prog)s and %s")
    sizes: tuple[int, ...] = setting((8, 16), "some sizes")
    limit: int | None = setting(None, "at most so many")
    quick: bool = setting(True, "be quick")


def parser_of(config: type[BaseModel]) -> Parser:
    parser = Parser(prog="project7")
    add_settings(parser, config)
    return parser


def parse(config: type[BaseModel], *arguments: str) -> dict:
    return given(parser_of(config).parse_args(arguments), config)


@pytest.fixture
def wide(monkeypatch):
    """The help without line breaks."""
    monkeypatch.setenv("COLUMNS", "10000")


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--batch-size", "4"], ["--batch_size", "4"], ["--batch-size=4"], ["--batch_size=4"]]
)
def test_a_flag_may_be_written_in_several_ways(arguments):
    assert parse(TrainingConfig, *arguments) == {"batch_size": "4"}


@pytest.mark.parametrize("value", ["my_photos", "a=b_c", "--x_y"])
def test_the_value_of_a_flag_is_left_as_it_is(value):
    assert parse(DataConfig, f"--data={value}") == {"data": [value]}


def test_the_command_line_itself_may_have_underscores(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["project7", "--batch_size", "4"])
    assert parser_of(TrainingConfig).parse_args().batch_size == "4"


def test_only_flags_lose_their_underscores():
    given = ["--a_b", "c_d", "-e_f", "--g_h=i_j", "k_l.png"]
    assert hyphenated(given) == ["--a-b", "c_d", "-e_f", "--g-h=i_j", "k_l.png"]


def test_what_follows_two_hyphens_is_no_flag():
    """`project7 colorize -- --my_photo.png` colours that file."""
    assert hyphenated(["--a_b", "--", "--my_photo.png"]) == ["--a-b", "--", "--my_photo.png"]


def test_negative_numbers_are_values():
    assert parse(TrainingConfig, "--learning-rate", "-1") == {"learning_rate": "-1"}
    assert parse(SECTIONS["model"], "--ab-mean=-2,3") == {"ab_mean": "-2,3"}


def test_only_what_was_given_is_there():
    assert parse(TrainingConfig) == {}
    assert parse(Sample, "--no-quick") == {"quick": False}
    assert parse(Sample, "--quick", "--sizes", "8") == {"quick": True, "sizes": "8"}


def test_flags_and_configuration_agree_about_what_a_person_types():
    typed = parse(SECTIONS["model"], "--features", "8,16", "--no-zero-terminal-snr", "--min_snr_gamma=5", "--hints")
    config = parse_settings(SECTIONS["model"], typed)
    assert (config.features, config.zero_terminal_snr, config.min_snr_gamma, config.hints) == ((8, 16), False, 5, True)


def test_a_namespace_with_other_things_gives_only_the_settings():
    assert given(argparse.Namespace(name="m", epochs="3"), TrainingConfig) == {"epochs": "3"}


# -- refusing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--colour", "1"], "There is no flag --colour; see project7 --help."),
        (
            ["--batch", "4"],
            "There is no flag --batch; did you mean --batch-size? See project7 --help.",
        ),  # no guessing what was meant
        (["photo.png"], "Unrecognized arguments: photo.png; see project7 --help."),
        (["--batch-size"], "Argument --batch-size: expected one argument; see project7 --help."),
    ],
)
def test_a_wrong_flag_is_one_sentence_that_names_it(arguments, said, capsys):
    with pytest.raises(UsageError) as caught:
        parser_of(TrainingConfig).parse_args(arguments)
    assert str(caught.value) == said
    assert capsys.readouterr() == ("", ""), "no usage text besides"


def test_a_wrong_flag_of_a_program_exits_2(capsys, monkeypatch):
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)  # `run` would take SIGTERM from pytest
    for main in (lambda: recipe.main(RECIPES["v2"], ["--colour"]), lambda: cli.command(["models", "--colour"])):
        assert program.run(main) == 2
        assert "There is no flag --colour" in capsys.readouterr().err


# -- every setting ---------------------------------------------------------------------------------------------------


def shown_help(parser: argparse.ArgumentParser) -> dict[str, str]:
    """flag -> its lines of the help, joined into one."""
    parts = [part.split("\n\n")[0].split() for part in parser.format_help().split("\n  --")[1:]]
    return {"--" + part[0].rstrip(","): "--" + " ".join(part) for part in parts}


@pytest.mark.parametrize("which", RECIPES)
def test_every_setting_has_a_flag_with_its_description_and_default(wide, which):
    shown = shown_help(recipe.make_parser(RECIPES[which]))
    for name, (_, field) in setting_fields(RECIPES[which].sections).items():
        flag = "--" + name.replace("_", "-")
        assert flag in shown, f"{name} has no flag"
        assert field.description in shown[flag]
        if field.default is not None:
            assert shown[flag].endswith(f"({default_text(field.default)})"), shown[flag]


@pytest.mark.parametrize("which", RECIPES)
def test_every_flag_of_a_recipe_reaches_its_setting(which):
    sections = RECIPES[which].sections
    flags = [f"--{n.replace('_', '-')}" for n, (_, f) in setting_fields(sections).items() if f.annotation is not bool]
    arguments = recipe.make_parser(RECIPES[which]).parse_args([part for flag in flags for part in (flag, "x")])
    found = {name: value for config in sections.values() for name, value in given(arguments, config).items()}
    assert found == {flag[2:].replace("-", "_"): "x" for flag in flags} | {"data": ["x"]}


def test_no_setting_of_a_recipe_has_the_flag_of_another():
    """The sections share one namespace: a name in two of them would set both."""
    assert len(setting_fields(V2)) == sum(len(set(config.model_fields) - {"method"}) for config in V2.values())


def test_the_flags_of_the_objective():
    parser = recipe.make_parser(RECIPES["v2"])
    typed = "--mse-weight 2 --perceptual-weight=0.2 --gan --adversarial_weight 0.05 --perceptual-net random"
    objective = parse_settings(ObjectiveConfig, given(parser.parse_args(typed.split()), ObjectiveConfig))
    assert (objective.mse_weight, objective.perceptual_weight, objective.perceptual_net) == (2, 0.2, "random")
    assert (objective.gan, objective.adversarial_weight) == (True, 0.05)
    assert given(parser.parse_args(["--no-gan"]), ObjectiveConfig) == {"gan": False}
    with pytest.raises(UsageError, match="--perceptual-weight"):
        recipe.make_parser(RECIPES["mse"]).parse_args(["--perceptual-weight", "0.1"])


def test_only_a_recipe_with_stages_has_their_flags(wide):
    assert "--stage2-epochs" in shown_help(recipe.make_parser(RECIPES["v2"]))
    assert "--strategy" not in shown_help(recipe.make_parser(RECIPES["mse"]))
    with pytest.raises(UsageError, match="--strategy"):
        recipe.make_parser(RECIPES["v2"]).parse_args(["--strategy", "three-stage"])


def test_colorize_has_a_flag_for_each_of_its_settings(wide, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.command(["colorize", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name, field in ColorizeConfig.model_fields.items():
        assert re.search(rf"\n  --{name.replace('_', '-')}[ ,]", shown)
        assert field.description in shown


def test_percent_signs_are_safe(wide):
    shown = shown_help(parser_of(Sample))
    assert shown["--share"] == "--share X keeps 50 % of %(prog)s and %s (0.5)"


def test_the_kinds_of_values_are_shown(wide):
    sample, training = shown_help(parser_of(Sample)), shown_help(parser_of(TrainingConfig))
    assert sample["--sizes"].startswith("--sizes N,N,... ")
    assert sample["--limit"] == "--limit N at most so many"
    assert sample["--quick"].startswith("--quick, --no-quick ")
    assert training["--mixed-precision"].startswith("--mixed-precision no|auto|bf16|fp16 ")
    assert "--method" not in sample


@pytest.mark.parametrize("columns", ["20", "40", "80"])
def test_help_fits_a_narrow_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    assert "--learning-rate" in recipe.make_parser(RECIPES["v2"]).format_help()


@pytest.mark.parametrize(
    ("default", "text"),
    [((64, 128), "64,128"), (1e-4, "0.0001"), (10.0, "10"), (None, "none"), (True, "on"), ("samples", "samples")],
)
def test_a_default_as_a_person_would_type_it(default, text):
    assert default_text(default) == text


def test_braces_that_the_shell_has_expanded_are_explained():
    parser = Parser(prog="train")
    add_settings(parser, DataConfig)
    with pytest.raises(UsageError, match=r"put its braces in quotes.*; see train --help\.$"):
        parser.parse_args(["--data", "s/0.tar", "s/1.tar", "s/2.tar"])
