"""Maps that know nothing of a model: what a model's attention has to beat at finding objects.

All take images ``(n, 3, H, W)`` and return maps ``(n, h, w)`` for the functions of
:mod:`simpool_lite.measure.localisation`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def uniform(images: Tensor) -> Tensor:
    """The same weight everywhere, ``(n, H, W)``, sum 1 per image."""
    n, _, height, width = images.shape
    return torch.full((n, height, width), 1 / (height * width))


def frame(images: Tensor) -> Tensor:
    """All weight on the outermost pixels, ``(n, H, W)``, sum 1 per image: the box is the whole image at any threshold.

    A map that lights up here and there and is cut low has that box, too.
    """
    maps = torch.ones(len(images), *images.shape[2:])
    maps[:, 1:-1, 1:-1] = 0
    return maps / maps[0].sum()


def centre_gaussian(images: Tensor) -> Tensor:
    """A Gaussian at the centre of the image, ``(n, H, W)``, sum 1 per image (the baseline of Choe et al. 2022).

    Its standard deviation is a quarter of each side; cut at the best threshold, other widths find much the same boxes.

    >>> centre_gaussian(torch.zeros(1, 3, 3, 3))[0].argmax().item()
    4
    """
    n, _, *sides = images.shape
    y, x = (((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in sides)
    weights = torch.exp(-(y[:, None] ** 2 + x**2) / 2)
    return (weights / weights.sum()).expand(n, -1, -1)


def spectral_residual(images: Tensor) -> Tensor:
    """Saliency as what is unexpected in the spectrum (Hou & Zhang, "Saliency detection", CVPR 2007), ``(n, h, 64)``.

    S = g * |F⁻¹[exp(L − h * L + iP)]|², with L the logarithm of the amplitudes of the grey image's spectrum, P its
    phases, h a mean over 3 × 3 frequencies and g a Gaussian, here of 2.5 pixels as in the authors' code (the
    paper has 8). The grey image is the mean of the channels, 64 pixels wide.
    """
    from torchvision.transforms.v2.functional import gaussian_blur

    height = max(6, round(64 * images.shape[2] / images.shape[3]))  # the Gaussian reaches over 5
    grey = images.float().mean(1, keepdim=True)
    small = F.interpolate(grey, size=(height, 64), mode="bilinear", antialias=True)
    spectrum = torch.fft.fft2(small)
    amplitudes = spectrum.abs()
    # an amplitude of nothing but rounding has no meaning, and none at all no logarithm
    floor = torch.finfo(amplitudes.dtype).eps * amplitudes.amax((2, 3), keepdim=True)
    logarithm = torch.maximum(amplitudes, floor.clamp_min(torch.finfo(amplitudes.dtype).tiny)).log()
    residual = logarithm - F.avg_pool2d(F.pad(logarithm, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    saliency = torch.fft.ifft2(torch.polar(residual.exp(), spectrum.angle())).abs() ** 2
    return gaussian_blur(saliency, [11, 11], [2.5, 2.5])[:, 0]
