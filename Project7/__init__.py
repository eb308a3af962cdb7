"""Train image colorizers, and colour photos with them: `from Project7 import Colorizer`.

A photo's lightness L is kept; a network gives it chroma ab (CIE Lab). `python Project7/train_diffusion.py` trains a
model of your own.
"""

from typing import Any

__version__ = "0.1.0"
__all__ = ["Colorizer", "__version__"]


def __getattr__(name: str) -> Any:
    """Colorizer is imported when it is asked for: torch takes seconds."""
    if name == "Colorizer":
        from Project7.colorize import Colorizer

        return Colorizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
