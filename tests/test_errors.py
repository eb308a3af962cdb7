"""errors.py: what a library says, as one line for a person."""

import pytest

from Project7.errors import UsageError, sentence


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UsageError("as it\n  stands"), "as it\n  stands"),
        (PermissionError(13, "Permission denied", "/a"), "Permission denied: /a"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (RuntimeError("a\n  b\tc"), "RuntimeError: a b c"),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("x" * 1000), "RuntimeError: " + "x" * 300),
    ],
)
def test_an_exception_as_one_line(error, text):
    assert sentence(error) == text
