"""01, what lies between the average and the maximum?"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets import load_data
from ...pooling import Spec, generic_pool
from ...pooling.framework import negative_distance, ones, softmax
from .exercise import Exercise, made_up, near


def _is_derivative(function) -> bool:
    x, a = made_up(5).abs() + 0.5, made_up(5, seed=1).softmax(0)
    for gamma in (1.0, 3.0, 6.5):
        power_mean = lambda x, gamma=gamma: (a * x**gamma).sum() ** (1 / gamma)  # noqa: E731
        if not near(function(x, gamma, a), torch.autograd.functional.jacobian(power_mean, x)):
            return False
    return True


def _is_lse(spec: Spec) -> bool:
    x = made_up(2, 7, 3)
    return near(generic_pool(x, spec), x.exp().mean(1).log())


def _share_on_digits(spec: Spec) -> Tensor:
    digits = load_data("photo-digits", "test")
    pixels, masks = (
        digits.images[-128:] / 255,
        digits.masks[-128:],
    )  # not as many as the page has: no mask can be built in
    _, a = generic_pool(pixels, spec, return_attention=True)
    return (a.mean(1) / a.mean(1).sum((1, 2), keepdim=True) * masks).sum((1, 2)).mean()


_GAP = Spec()
_LIKE_THE_AVERAGE = Spec(similarity=negative_distance, attention=softmax(30.0))

EXERCISES = {
    1: Exercise(
        form="a number",
        right=lambda z: near(z, 32 / 7, 0.01),
        hint="The harmonic mean averages 1/x, with the weights, and then undoes it. Which of the two has 3/4?",
        wrong=[3.2, 6.5, 1 / (0.75 / 2 + 0.25 / 8), "32 / 7"],
    ),
    2: Exercise(
        form="the name of a pooling (one of list_pools())",
        right=lambda name: name.lower() == "gap",
        hint="With one vector the softmax over the vectors has one number to choose from. What does it give each "
        "position, and what do the weights become when they are scaled to sum one?",
        wrong=["max", "slot", "kmeans", 3],
    ),
    3: Exercise(
        form="a function of x (p,), gamma and the weights a (p,) that returns the derivatives (p,)",
        right=_is_derivative,
        hint="Use the chain rule: the outer power first, then the sum. Write what is left in terms of x_i / z.",
        wrong=[
            lambda x, gamma, a: a,
            lambda x, gamma, a: a * x ** (gamma - 1),
            lambda x, gamma, a: a * gamma * (x / (a * x**gamma).sum() ** (1 / gamma)) ** (gamma - 1),
        ],
    ),
    4: Exercise(
        form="a Spec with r = 1",
        right=_is_lse,
        hint="A mean needs f and what undoes it. Compare with the spec of section 5 that has exponent 2: which two "
        "parts are exchanged?",
        wrong=[_GAP, Spec(f=torch.exp), Spec(attention=ones, f=torch.exp, f_inverse=torch.log)],
    ),
    5: Exercise(
        form="a Spec that pools photographs (B, 3, H, W)",
        right=lambda spec: _share_on_digits(spec) > 0.14,
        hint="On the last 128 photographs it puts less than 14 % of the attention on digits, where equal weights put "
        "9. Which sign makes what is far from the average similar to it?",
        wrong=[_GAP, _LIKE_THE_AVERAGE, replace(_LIKE_THE_AVERAGE, attention=softmax(3.0)), F.softmax],
    ),
}
