"""console.py: what is printed is what it is, in a terminal, in a pipe and in a log."""

import sys

import pytest
from rich.text import Text

from Project7.console import make_console, say
from Project7.errors import printable

NASTY = "run [old] [/bold] :smile: \x1b[31mred\x1b[0m \x9b2J \u202egnp.exe"


def test_data_is_no_markup_and_commands_nothing(capsys):
    make_console(width=200).print(NASTY)
    make_console(width=200).print(Text.assemble(("name: ", "bold"), NASTY))
    say(NASTY)
    out = capsys.readouterr().out
    assert out.count("run [old] [/bold] :smile: ␛[31mred␛[0m") == 3
    assert not {"\x1b", "\x9b", "\u202e"} & set(out)


def test_a_name_with_a_line_break_stays_on_its_line(capsys):
    say("a\nb.png")
    assert capsys.readouterr().out == "a␊b.png\n"


def test_text_of_people_stays_as_it_is():
    text = "Größe, 写真, naïve\tcafé\n\N{WOMAN}\u200d\N{ARTIST PALETTE}"
    assert printable(text) == text


@pytest.mark.parametrize("stderr", [False, True])
def test_force_color_puts_no_live_bars_into_a_log(monkeypatch, stderr):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not (sys.stderr if stderr else sys.stdout).isatty()
    assert not make_console(stderr=stderr).is_terminal


def test_without_an_output_there_is_still_a_console(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert make_console(quiet=True).quiet
