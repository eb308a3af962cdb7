"""From the encoder's maps to features of each cell of the chroma grid, which do not depend on the noise."""

import torch.nn.functional as F
from torch import Tensor, nn

from Project7.batch import BatchRandom
from Project7.encoder import Maps
from Project7.layers import ResBlock


class Neck(nn.Module):
    """Maps at strides 8, 16, 32 and the lightness of the cells -> (B, width, h, w), where h x w is the chroma grid.

    Top-down as in a feature pyramid (Lin et al. 2017): each map is normalised over all its channels and projected to
    `width`; the coarser sum is enlarged and added. details: number of channels that are added at the grid.
    """

    def __init__(self, channels: tuple[int, ...], details: int, width: int):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Sequential(nn.GroupNorm(1, c), nn.Conv2d(c, width, 1)) for c in channels)
        self.coarse = nn.ModuleList(ResBlock(width, width) for _ in channels[1:])
        self.to_cells = nn.Conv2d(width, width, 2)  # the maps lie on the corners of the cells
        self.details = nn.Conv2d(details, width, 3, padding=1)
        self.join = nn.Sequential(ResBlock(width, width), ResBlock(width, width))

    def forward(self, maps: Maps, details: Tensor) -> Tensor:
        """details: (B, C, h, w), the lightness of each cell's pixels, and the hints."""
        x = self.coarse[-1](self.lateral[-1](maps[-1]))
        for level in range(len(maps) - 2, -1, -1):
            # The positions of a view's maps lie at multiples of the stride, so the corners are aligned: encoder.py.
            x = F.interpolate(x, maps[level].shape[-2:], mode="bilinear", align_corners=True)
            x = x + self.lateral[level](maps[level])
            if level:
                x = self.coarse[level - 1](x)
        x = F.interpolate(self.to_cells(x), details.shape[-2:], mode="bilinear", align_corners=False)
        return self.join(x + self.details(details))


def drop_features(maps: Maps, share: float, random: BatchRandom) -> Maps:
    """Drops parts of the encoder's maps in training, so that the network does not depend on a single channel: each
    whole channel with probability `share`, and with the same probability all maps of a sample (Tompson et al. 2015,
    SpatialDropout)."""
    if not share:
        return maps
    seen = (random.uniform("whole encoder") >= share)[:, None]  # (B, 1)
    kept = [seen & (random.uniform(f"features {k}", (part.shape[1],)) >= share) for k, part in enumerate(maps)]
    return tuple(part * (mask / (1 - share))[:, :, None, None] for part, mask in zip(maps, kept, strict=True))
