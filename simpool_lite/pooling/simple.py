"""Group 1 of the paper's table: simple pooling, no parameters or few, one step."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_number
from .base import Pool, register_pool, to_map, to_tokens
from .framework import Part, Spec, f_alpha, ones, uniform


@register_pool("gap")
class GAP(Pool):
    """Global average pooling: z = (1/p) sum_i x_i.

    Args:
        dim: number of channels, d.

    Returns z ``(B, d)``; the map is uniform. Source: Lin et al., "Network in Network", 2013; the
    paper's Table 1, group 1.

    >>> import torch
    >>> z, a = GAP(2)(torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), return_attention=True)
    >>> z.tolist(), a.tolist()
    ([[2.0, 2.0]], [[[0.5, 0.5]]])
    """

    group = 1

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        batch, positions, _ = tokens.shape
        return tokens.mean(1), tokens.new_full((batch, 1, positions), 1 / positions)

    def spec(self) -> Spec:
        return Spec(attention=uniform)


@register_pool("max")
class Max(Pool):
    """Max pooling: z_c = max_i x_ic, for each channel c.

    Args:
        dim: number of channels, d.

    Returns z ``(B, d)``; it weighs no positions (each channel picks its own), so the map is None. Source:
    Tolias et al., "Particular object retrieval with integral max-pooling of CNN activations", 2016; the
    paper's Table 1, group 1: A = 1 and f at alpha = -inf.

    >>> import torch
    >>> Max(2)(torch.tensor([[[1.0, 5.0], [3.0, 4.0]]])).tolist()
    [[3.0, 5.0]]
    """

    group = 1

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, None]:
        return tokens.amax(1), None

    def spec(self) -> Spec:
        f, f_inverse = f_alpha(-math.inf)
        return Spec(attention=ones, f=f, f_inverse=f_inverse)


@register_pool("gap_max")
class GAPMax(Pool):
    """The average of average and maximum: z = (GAP(X) + max(X)) / 2.

    Args:
        dim: number of channels, d.

    Returns z ``(B, d)``; half of it weighs no positions, so the map is None. Source: Lee et al., "Generalizing
    pooling functions in convolutional neural networks: mixed, gated, and tree", 2016, mixed pooling with a = 1/2;
    GAP+max in the paper's Figure 3, group 1.

    >>> import torch
    >>> GAPMax(2)(torch.tensor([[[1.0, 5.0], [3.0, 4.0]]])).tolist()
    [[2.5, 4.75]]
    """

    group = 1

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, None]:
        return (tokens.mean(1) + tokens.amax(1)) / 2, None

    def spec(self) -> Spec:
        mixed = Part(r"(Z + \max V) / 2", lambda Z, V: (Z + V.amax(-2, keepdim=True)) / 2)
        return Spec(attention=uniform, f_inverse=mixed)


@register_pool("gem")
class GeM(Pool):
    """Generalised-mean pooling: z = ( (1/p) sum_i x_i^gamma )^(1/gamma), elementwise.

    Values below 1e-6 are raised to it, as the mean is one of positive numbers. gamma = 1 is the average; as
    gamma grows, the maximum.

    Args:
        dim: number of channels, d.
        gamma: exponent, not 0; (1 - alpha) / 2 in the paper's f_alpha, p in GeM's.
        learn_gamma: make ``gamma`` a parameter that starts at the given value.

    Returns z ``(B, d)``; it weighs no positions, so the map is None.

    Raises:
        ValueError: ``gamma`` is 0 or not a finite number.

    Source: Radenovic et al., "Fine-tuning CNN image retrieval with no human annotation", 2018, equation 3,
    learned from 3; the paper's Table 1, group 1. The authors' release has a fixed exponent of 2, does not
    clamp, and sums instead of averaging.

    >>> import torch
    >>> round(GeM(1, gamma=2.0)(torch.tensor([[[1.0], [7.0]]])).item(), 4)
    5.0
    """

    group = 1
    EPS = 1e-6

    def __init__(self, dim: int, gamma: float = 3.0, learn_gamma: bool = True) -> None:
        super().__init__(dim)
        gamma = check_number("gamma", gamma)
        self.gamma = nn.Parameter(torch.tensor([float(gamma)])) if learn_gamma else gamma

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, None]:
        # x^gamma overflows soon; in logarithms the mean of powers is a logsumexp, which does not.
        return _log_mean_exp(tokens.clamp_min(self.EPS).log(), self.gamma).exp(), None

    def spec(self) -> Spec:
        f, f_inverse = f_alpha(1 - 2 * self.gamma)
        return Spec(attention=uniform, phi_v=Part("X", lambda X: X.clamp_min(self.EPS)), f=f, f_inverse=f_inverse)


@register_pool("lse")
class LSE(Pool):
    """Log-sum-exp pooling: z = (1/r) ln( (1/p) sum_i e^(r x_i) ), elementwise.

    Between the average (r towards 0) and the maximum (r growing).

    Args:
        dim: number of channels, d.
        r: sharpness, not 0.
        learn_r: make ``r`` a parameter that starts at the given value.

    Returns z ``(B, d)``; it weighs no positions, so the map is None.

    Raises:
        ValueError: ``r`` is 0 or not a finite number.

    Source: Pinheiro and Collobert, "From image-level to pixel-level labeling with convolutional networks",
    2015; the paper's Table 1, group 1, with r learned from 10 as in the authors' release.

    >>> import torch
    >>> round(LSE(1, r=1.0)(torch.tensor([[[0.0], [1.0]]])).item(), 4)
    0.6201
    """

    group = 1

    def __init__(self, dim: int, r: float = 10.0, learn_r: bool = True) -> None:
        super().__init__(dim)
        r = check_number("r", r)
        self.r = nn.Parameter(torch.tensor([float(r)])) if learn_r else r

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, None]:
        return _log_mean_exp(tokens, self.r), None

    def spec(self) -> Spec:
        return Spec(
            attention=uniform,
            f=Part("e^{rx}", lambda V: (self.r * V).exp()),
            # ln( sum_i a_i e^(r v_i) ) of V itself: e^(r v) overflows soon
            f_inverse=Part(
                r"\frac{1}{r} \ln x",
                lambda Z, V, A: (self.r * V.unsqueeze(-3) + A.log().unsqueeze(-1)).logsumexp(-2) / self.r,
            ),
        )


@register_pool("how")
class HOW(Pool):
    """HOW: local descriptors, smoothed and reduced, weighted by their energy: z = l2( sum_i |x_i|^power v_i ).

    v_i = FC(avg3(X))_i: the average over the 3 x 3 neighbours that exist, then a linear map with bias.

    Args:
        dim: number of channels, d.
        power: 2, the paper's table, where A = diag(X^T X); or 1, the norm, as HOW itself and the authors' release.

    Returns z ``(B, d)`` of length one; the map ``(B, 1, N)`` or ``(B, 1, H, W)`` is ``|x_i|^power``, scaled to sum
    one.

    Raises:
        ValueError: ``power`` is neither 1 nor 2; tokens came without their ``grid``.

    Source: Tolias et al., "Learning and aggregating deep local descriptors for instance-level recognition",
    2020; the paper's Table 1, group 1. HOW itself also reduces the number of channels.

    >>> import torch
    >>> z, a = HOW(8)(torch.randn(2, 6, 8), grid=(2, 3), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 8]), torch.Size([2, 1, 6]))
    """

    group = 1
    needs_grid = True

    def __init__(self, dim: int, power: int = 2) -> None:
        super().__init__(dim)
        if check_number("power", power) not in (1, 2):
            raise ValueError(f"power: expected 2 (the paper's table) or 1 (HOW and the release), got {power!r}")
        self.power = power
        self.fc = nn.Linear(dim, dim)

    def weights(self, X: Tensor) -> Tensor:
        """|x_i|^power, ``(B, 1, N)``."""
        energy = X.square().sum(-1) if self.power == 2 else torch.linalg.vector_norm(X, dim=-1)
        return energy.unsqueeze(1)

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        attention = self.weights(tokens)
        z = (attention @ _smooth(tokens, grid)).squeeze(1)
        # FC once, after the sum: sum_i a_i (W v_i + b) = W (sum_i a_i v_i) + b sum_i a_i.
        return F.normalize(F.linear(z, self.fc.weight) + self.fc.bias * attention.sum(-1), dim=-1), attention

    def spec(self) -> Spec:
        formula = r"\mathrm{diag}(X^\top X)" if self.power == 2 else r"\mathrm{diag}(X^\top X)^{1/2}"
        return Spec(
            attention=Part(formula, lambda S, X: self.weights(X).unsqueeze(1).expand_as(S)),
            phi_v=Part(r"\mathrm{FC}(\mathrm{avg}_3(X))", lambda X, grid: self.fc(_smooth(X, grid))),
            post=Part(r"\eta^2(Z)", lambda z: F.normalize(z, dim=-1)),
        )


def _smooth(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """avg_3: each position's average with those of its eight neighbours that exist."""
    return to_tokens(F.avg_pool2d(to_map(tokens, grid), 3, stride=1, padding=1, count_include_pad=False))


def _log_mean_exp(x: Tensor, r: float | Tensor) -> Tensor:
    """(1/r) ln( (1/p) sum_i e^(r x_i) ) over the positions."""
    return ((r * x).logsumexp(1) - math.log(x.shape[1])) / r
