"""Errors with messages that a person can act on."""

# Characters that control a terminal or the direction of text, each replaced by a visible one; tabs and newlines stay.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}
_PICTURES |= dict.fromkeys([*range(128, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)


class ProjectError(Exception):
    """An error that a person can fix. The message names the value, the rule and the cure, in one sentence."""

    exit_code = 1


class UsageError(ProjectError):
    """The request itself is wrong: an unknown name, a value out of bounds, a missing answer."""

    exit_code = 2


def printable(text: str) -> str:
    """The text with control characters made visible: names of files and of weights may contain any character."""
    return text.translate(_PICTURES)


def sentence(error: BaseException) -> str:
    """A library's exception as one line for a person, without line breaks or the module of its type."""
    if isinstance(error, ProjectError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split())
    if "operator torchvision::" in text:
        return (
            "torch and torchvision do not match; install a matching pair from one index: "
            "pip install --force-reinstall torch torchvision"
        )
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
