"""Random crops for learning without labels, a batch at a time and on its device."""

import math

import torch
from torch import Tensor, nn

from ..checks import check_int, check_number


class MultiCrop(nn.Module):
    """Two large and several small random crops of each image of a batch, for DINO.

    Kornia draws the random numbers per image and computes where the images are (torchvision's transforms treat all
    images of a batch alike). As in DINO's code half of the crops are mirrored, and colours are jittered or taken away;
    blurred are the first large ones, a tenth of the second ones and half of the small ones; a fifth of the second ones
    are solarised.

    Args:
        mean, std: what the crops are normalised with.
        global_size: side of the large crops in pixels.
        local_size: side of the small ones.
        local_crops: how many small ones; 0 for none.
        global_scale: smallest and largest share of an image's area in a large crop.
        local_scale: the same in a small one.
        blur: largest standard deviation of the blur, in pixels; images smaller than ImageNet's want less.
    """

    def __init__(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        *,
        global_size: int = 224,
        local_size: int = 96,
        local_crops: int = 6,
        global_scale: tuple[float, float] = (0.25, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.25),
        blur: float = 2.0,
    ) -> None:
        import kornia.augmentation as augment

        super().__init__()
        check_number("blur", blur, above_zero=True)
        self.global_size, self.local_crops = (
            check_int("global_size", global_size),
            check_int("local_crops", local_crops, 0),
        )

        def crop(size: int, scale: tuple[float, float], blurred: float, solarised: float = 0.0) -> nn.Module:
            kernel = 2 * math.ceil(3 * blur) + 1
            return nn.Sequential(
                augment.RandomResizedCrop(
                    (size, size), tuple(scale), resample="bicubic", align_corners=False, cropping_mode="resample"
                ),
                augment.RandomHorizontalFlip(),
                augment.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
                augment.RandomGrayscale(p=0.2),
                augment.RandomGaussianBlur((kernel, kernel), (min(0.1, blur), blur), p=blurred),
                augment.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=solarised),
                augment.Normalize(mean, std),
            )

        self.first, self.second = crop(global_size, global_scale, 1.0), crop(global_size, global_scale, 0.1, 0.2)
        self.local = crop(check_int("local_size", local_size), local_scale, 0.5)

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """Crops of images ``(B, 3, H, W)`` in [0, 1]: the two large ones first, each ``(B, 3, size, size)``."""
        return [self.first(images), self.second(images), *(self.local(images) for _ in range(self.local_crops))]
