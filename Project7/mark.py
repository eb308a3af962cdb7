"""The word "colourised" in a corner of a picture, so that nobody takes its colours for recorded ones."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TEXT = "colourised"
SAID = "Colourised: the colours are a model's guess, not recorded ones."  # comment in the file of a marked picture
ADDED = "Colourised: the colours were added later, not recorded."  # the comment if the colours are not a model's
_LETTERS = 0.03  # height of the letters as a share of the short side
_LEAST = 10  # smallest height of the letters in pixels
_PLATE = 0.55  # how much the plate behind the letters darkens the picture


def marked(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 -> the same with the word in its lower right corner, in smaller letters if needed."""
    height, width = rgb.shape[:2]
    size = max(_LEAST, round(_LETTERS * min(height, width)))
    while size > 1 and (ImageFont.load_default(size).getlength(TEXT) + size > width or 1.6 * size > height):
        size -= 1
    font = ImageFont.load_default(size)
    w, h = min(width, round(font.getlength(TEXT) + size)), min(height, round(1.6 * size))
    image = Image.new("L", (w, h))
    ImageDraw.Draw(image).text((w / 2, h / 2), TEXT, fill=255, font=font, anchor="mm")
    letters = np.asarray(image, dtype=np.float32)[..., None] / 255
    made = rgb.copy()
    corner = made[height - h :, width - w :]  # (h, w, 3), a view
    white = float(np.iinfo(rgb.dtype).max)
    corner[:] = (corner * (1 - _PLATE) * (1 - letters) + white * letters).round()
    return made
