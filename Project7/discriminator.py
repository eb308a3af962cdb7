"""MultiScalePatchGAN judges patch by patch whether chroma belongs to its lightness (Isola et al. 2017).

The output of a PatchGAN is a map, of which each place judges one patch of the picture. It uses hinge losses (Lim & Ye
2017), spectral norm (Miyato et al. 2018), several scales and feature matching (Wang et al. 2018, pix2pixHD).
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

# Side of the patch that one answer judges -> (kernel, stride) of its five convolutions. 70 is that of Isola et al.;
# at 64 px it would see the whole picture, and at 16 px its last maps would be empty.
PATCHES = {
    70: ((4, 2), (4, 2), (4, 2), (4, 1), (4, 1)),
    34: ((4, 2), (4, 2), (3, 1), (3, 1), (3, 1)),
    20: ((4, 2), (3, 1), (3, 1), (3, 1), (3, 1)),
    11: ((3, 1), (3, 1), (3, 1), (3, 1), (3, 1)),
}
_PATCH_SHARE = 2 / 3  # of the picture's side, at most: a larger patch would see the picture as a whole
_SMALLEST_SCALE = 16  # px: a smaller scale would see only the mean colour
MATCHED = (3, 5, 7)  # positions in the Sequential whose features are matched: activations 2, 3 and 4


def patch_side(image_size: int) -> int:
    """The largest patch of PATCHES that is at most two thirds of the picture's side; the smallest if none is."""
    return next((side for side in PATCHES if side <= image_size * _PATCH_SHARE), min(PATCHES))


def possible_scales(image_size: int, wanted: int) -> int:
    """How many of the `wanted` scales a picture of this size allows: each halves the picture, down to 16 px."""
    return max(1, sum(image_size >> scale >= _SMALLEST_SCALE for scale in range(wanted)))


class MultiScalePatchGAN(nn.Module):
    """Discriminators at full size, half size, quarter size ..., each with patches that suit its size.

    image_size: side of the training pictures. scales: 1 to 3, at most as many as the size allows. width: channels of
    the first convolution; the next have 2, 4 and 4 times as many.
    """

    def __init__(self, image_size: int, *, scales: int = 1, width: int = 64):
        super().__init__()
        sizes = [image_size >> scale for scale in range(possible_scales(image_size, scales))]
        self.scales = nn.ModuleList(make_patch_gan(patch_side(size), width) for size in sizes)

    def forward(self, L: Tensor, ab: Tensor) -> list[list[Tensor]]:
        """L (B, 1, H, W), ab (B, 2, H, W) in the network's range -> for each scale [features 3, 5, 7, answers]."""
        picture = torch.cat([L, ab], dim=1)  # (B, 3, H, W)
        answers = []
        for scale in self.scales:
            x, kept = picture, []
            for position, layer in enumerate(scale.children()):
                x = layer(x)
                if position in MATCHED:
                    kept.append(x)
            answers.append([*kept, x])  # x: (B, 1, h, w), one answer per patch
            picture = F.avg_pool2d(picture, 2)
        return answers


def make_patch_gan(side: int, width: int) -> nn.Sequential:
    """Five convolutions with spectral norm and leaky ReLU between them: conv 0, ReLU 1, conv 2, ReLU 3 ... conv 8."""
    channels = [3, width, 2 * width, 4 * width, 4 * width, 1]
    layers: list[nn.Module] = []
    for (kernel, stride), (before, after) in zip(PATCHES[side], pairwise(channels), strict=True):
        layers += [spectral_norm(nn.Conv2d(before, after, kernel, stride, padding=1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])


def discriminator_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """(B,): relu(1 - D(real)) + relu(1 + D(fake)), averaged over patches and scales (Lim & Ye 2017, eq. 3)."""
    losses = [_per_sample(F.relu(1 - r[-1])) + _per_sample(F.relu(1 + f[-1])) for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean(dim=0)


def adversarial_loss(fake: list[list[Tensor]]) -> Tensor:
    """(B,): -D(fake), which the generator minimizes."""
    return torch.stack([-_per_sample(f[-1]) for f in fake]).mean(dim=0)


def feature_matching_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """(B,): L1 between the discriminator's features of the true and the estimated colours (Wang et al. 2018, eq. 4)."""
    pairs = [(r, f) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs[:-1], fs[:-1], strict=True)]
    return torch.stack([_per_sample((r.detach() - f).abs()) for r, f in pairs]).mean(dim=0)


def _per_sample(values: Tensor) -> Tensor:
    return values.float().mean(dim=(1, 2, 3))
