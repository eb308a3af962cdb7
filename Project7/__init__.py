"""Project7: train and use image colorizers.

A photo's lightness L is kept; a network gives it chroma ab (CIE Lab). Start with `Project7.colorize.Colorizer`
to colour a photo, or with `python Project7/train_diffusion.py` to train a model of your own.
"""

__version__ = "0.1.0"
