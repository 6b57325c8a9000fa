"""12, real photographs."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...measure.maps import attention_maps
from ...models import create_model
from .exercise import Exercise, made_up, near

BOXES = torch.tensor([[0.0, 10, 20, 40], [50, 20, 100, 90], [30, 60, 60, 80]])  # on a side of 100


def _away(boxes: Tensor, side: float) -> Tensor:
    return ((boxes[:, :2] + boxes[:, 2:]) / 2 / side - 0.5).abs().mean(0)


def _finds_the_distance(function) -> bool:
    return near(function(BOXES, 100), _away(BOXES, 100)) and near(function(2 * BOXES, 200), _away(BOXES, 100))


def _has_the_logit_as_its_mean(function) -> bool:
    x, w, s = made_up(4, 9, 6), made_up(6, seed=1), 1 + made_up(6, seed=2).abs()
    maps = function(x, w, s)
    rest = maps.mean(1) - (x.mean(1) / s) @ w  # what mu and the bias add, to all images alike
    constant = near(rest, rest[:1].expand(4), 1e-6)
    differences = x @ (w / s)
    return constant and near(maps - maps[:, :1], differences - differences[:, :1], 1e-6)


@functools.cache
def _network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return create_model("convnet_micro", "gap", num_classes=10).eval()


def _is_cam_of_larger_images(function) -> bool:
    model, images = _network(), made_up(3, 3, 32, 32).float()
    return near(function(model, images), _cam(model, F.interpolate(images, scale_factor=2, mode="bicubic")), 1e-3)


def _cam(model: nn.Module, images: Tensor) -> Tensor:
    return attention_maps(model, images, "cam")[:, 0]


EXERCISES = {
    1: Exercise(
        form="a function of boxes (k, 4) and the side in pixels that returns two shares, across and down",
        right=_finds_the_distance,
        hint="The centre of a box is the mean of its corners; the middle is half a side. Distances have no sign, and "
        "two boxes on either side of the middle do not cancel.",
        wrong=[
            lambda boxes, side: ((boxes[:, :2] + boxes[:, 2:]) / 2 / side - 0.5).mean(0),
            lambda boxes, side: ((boxes[:, :2] + boxes[:, 2:]) / 2 - side / 2).abs().mean(0),
            lambda boxes, side: (boxes[:, :2] / side - 0.5).abs().mean(0),
            (0.1, 0.1),
        ],
    ),
    2: Exercise(
        form="a function of x (B, N, d), w (d) and s (d) that returns maps (B, N)",
        right=_has_the_logit_as_its_mean,
        hint="Write the logit as a sum over the channels and put the average in. Which of its terms depend on the "
        "position?",
        wrong=[
            lambda x, w, s: x @ w,
            lambda x, w, s: x @ (w * s),
            lambda x, w, s: (x @ (w / s)).relu(),
            lambda x, w, s: (x.mean(1) / s) @ w,
        ],
    ),
    3: Exercise(
        form="a function of a model and images (B, 3, h, w) that returns maps (B, H, W)",
        right=_is_cam_of_larger_images,
        hint="Enlarge first (bicubic, align_corners stays False), then compute the features and the classes, both from "
        "the larger images.",
        wrong=[
            _cam,
            lambda model, images: F.interpolate(_cam(model, images)[:, None], scale_factor=2, mode="bicubic")[:, 0],
            lambda model, images: _cam(model, F.interpolate(images, scale_factor=2, mode="nearest")),
        ],
    ),
}
