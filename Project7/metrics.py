"""Measures of a coloured photo, as functions of uint8 RGB arrays (..., H, W, 3).

Imports no torch: the data set uses them to filter photos.
"""

import numpy as np

ALL_GRAY = 2.0  # colorfulness below which a photo counts as gray: JPEG artefacts alone reach about this much
PSNR_CAP = 60.0  # dB: a gray photo can be coloured exactly, and its infinite PSNR would make the mean infinite


def psnr(rgb: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio per photo in dB, at most 60: (..., H, W, 3) uint8 twice -> (...)."""
    error = np.square(rgb.astype(np.float32) - truth.astype(np.float32)).mean(axis=(-3, -2, -1))
    return np.minimum(10 * np.log10(255**2 / np.maximum(error, 1e-9)), PSNR_CAP)


def colorfulness(rgb: np.ndarray) -> np.ndarray:
    """Colorfulness per photo (Hasler & Suesstrunk 2003, section 7): (..., H, W, 3) uint8 -> (...). 0 is gray, 15
    slight, 33 moderate, 59 strong."""
    r, g, b = np.moveaxis(rgb.astype(np.float32), -1, 0)
    rg, yb = r - g, (r + g) / 2 - b
    pixels = (-2, -1)
    spread = np.hypot(rg.std(axis=pixels), yb.std(axis=pixels))
    return spread + 0.3 * np.hypot(rg.mean(axis=pixels), yb.mean(axis=pixels))


def ab_rmse(ab: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square error over photos, pixels and both channels, in Lab units: (..., 2, H, W) twice."""
    return float(np.sqrt(np.square(ab - truth).mean()))


def energy_score(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Energy score per photo (Gneiting & Raftery 2007, eq. 22), lower is better: samples (K, B, 2, H, W), truth
    (B, 2, H, W) -> (B,).

    mean_k |x_k - y| - 1/2 mean_{k != l} |x_k - x_l|, over the K (K - 1) pairs. The norm is the root mean square over
    the pixels of a photo and both channels, so the score is in Lab units, and with K = 1 it is the RMSE.
    """
    count = len(samples)
    error = np.mean([_rms(x - truth) for x in samples], axis=0)
    if count == 1:
        return error
    pairs = [_rms(samples[k] - samples[j]) for k in range(count) for j in range(k)]
    return error - np.mean(pairs, axis=0) / 2


def _rms(ab: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(ab).mean(axis=(-3, -2, -1)))


def diversity(samples: np.ndarray) -> np.ndarray:
    """The mean distance between two samples for the same photo: (K, B, 2, H, W), K > 1 -> (B,), in Lab units."""
    return np.mean([_rms(samples[k] - samples[j]) for k in range(len(samples)) for j in range(k)], axis=0)


def ssim(rgb: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Structural similarity per photo (Wang et al. 2004: Gaussian window, sigma 1.5), averaged over the channels:
    (B, H, W, 3) uint8 twice, H and W at least 11 -> (B,)."""
    from skimage.metrics import structural_similarity

    settings = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    pairs = zip(rgb, truth, strict=True)
    return np.array([structural_similarity(found, true, data_range=255, **settings) for found, true in pairs])


def ciede2000(rgb: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """CIEDE2000 difference per photo (Sharma et al. 2005), averaged over the pixels: (B, H, W, 3) uint8 twice ->
    (B,)."""
    from skimage.color import deltaE_ciede2000, rgb2lab

    return deltaE_ciede2000(rgb2lab(rgb), rgb2lab(truth)).mean(axis=(1, 2))
