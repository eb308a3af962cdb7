"""What goes wrong, in words that a person can act on."""


class ProjectError(Exception):
    """Something a person can mend. The message names the value, the rule and the cure, in one sentence."""

    exit_code = 1


class UsageError(ProjectError):
    """The request itself is wrong: an unknown name, a value out of bounds, a missing answer."""

    exit_code = 2


def sentence(error: BaseException) -> str:
    """A library's exception as one line for a person, without its type's module or line breaks."""
    if isinstance(error, ProjectError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    text = " ".join(str(error).split())
    if "operator torchvision::" in text:
        return (
            "torch and torchvision do not fit together; install a matching pair from one index: "
            "pip install --force-reinstall torch torchvision"
        )
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
