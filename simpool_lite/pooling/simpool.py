"""Group 5 of the paper's table: SimPool."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_bool, check_choice, check_number
from .attend import average
from .attention_pool import AttentionPool, Look, affine, by_heads, on_keys_side, own_slices
from .base import check_heads, register_pool
from .framework import LARGEST_PLAIN, Part, Spec, dot, f_alpha, gap, power_mean, softmax

Shift = Literal["image", "batch", "channel"]

POSITIVE = 1e-6  # what the published code adds to v - min V, so that a power has a derivative


@register_pool("simpool")
class SimPool(AttentionPool):
    r"""SimPool: one step of attention, from the average of the positions to the positions.

    With X the positions x_i and one shared LayerNorm (LN)::

        u0  = GAP(X)
        a_i = softmax_i( (W_K LN(x_i)) . (W_Q u0) / sqrt d )
        z   = sum_i a_i v_i,  v_i = LN(x_i)                                  gamma None
        z   = ( sum_i a_i (v_i - min V + 1e-6)^gamma )^(1/gamma)  (+ beta)   gamma > 0

    With several heads each has its slice of the channels, d in the scale is the slice's width, and the
    output is the concatenation.

    Args:
        dim: number of channels, d.
        num_heads: heads; must divide ``dim``. The map has M = num_heads.
        qkv_bias: give the linear maps a bias.
        qk_scale: replaces 1 / sqrt(d / num_heads).
        gamma: exponent of the generalised mean, above 0; None is the weighted average. Published: 1.25 for
            transformers, 2 for convolutional networks.
        use_beta: add a learnable scalar to the generalised mean (as published: only with ``gamma``).
        shift: what min V runs over: all elements of an "image" (the paper), of the whole "batch" (the
            authors' release; couples the images of a batch), or the positions of a "channel" (timm).
        eps: of the LayerNorm.

    Shape:
        ``(B, N, d)`` or ``(B, d, H, W)`` to ``(B, d)``; map ``(B, num_heads, N)`` or ``(B, num_heads, H, W)``.

    Raises:
        ValueError: an argument has a value that is not accepted.

    Source: Psomas et al., "Keep It SimPool", ICCV 2023, equations 12-17, and section 4.4 for the LayerNorm; the 1e-6
    and beta are the published code's. What the paper's ablations change is in ``ablated_simpool``.

    >>> z, a = SimPool(384, gamma=1.25)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 1, 196]))
    """

    group = 5
    any_dtype = True

    def __init__(
        self,
        dim: int,
        num_heads: int = 1,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        gamma: float | None = None,
        use_beta: bool = False,
        *,
        shift: Shift = "image",
        eps: float = 1e-6,
    ) -> None:
        super().__init__(dim)
        self.num_heads = check_heads(self.dim, num_heads)
        self.shift = check_choice("shift", shift, get_args(Shift))
        self.scale = (
            (self.dim // self.num_heads) ** -0.5 if qk_scale is None else check_number("qk_scale", qk_scale, zero=True)
        )
        self.gamma = None if gamma is None else check_number("gamma", gamma, above_zero=True)
        self.norm_patches = nn.LayerNorm(self.dim, eps=check_number("eps", eps, above_zero=True))
        self.wq, self.wk = (nn.Linear(self.dim, self.dim, bias=check_bool("qkv_bias", qkv_bias)) for _ in "qk")
        self.beta = nn.Parameter(torch.zeros(1)) if check_bool("use_beta", use_beta) and gamma is not None else None

    # The method as the paper writes it, equations 12-17: read this. `pool_tokens` below gives the same, sooner.

    def spec(self) -> Spec:
        f, f_inverse = f_alpha(-1 if self.gamma is None else 1 - 2 * self.gamma)  # f(x) = x^gamma
        return Spec(
            init=Part(r"\mathrm{GAP}(X)", gap),  # u0 = GAP(X)
            phi_q=Part("W_Q U", self.wq),  # q = W_Q u0
            phi_k=Part(r"W_K \mathrm{LN}(X)", lambda X: self.wk(self.norm_patches(X))),  # k_i = W_K LN(x_i)
            similarity=dot,
            attention=softmax(self.scale),  # a = softmax_i( k_i . q / sqrt d )
            phi_v=self._shifted()
            if self.gamma
            else Part(r"\mathrm{LN}(X)", self.norm_patches),  # v_i = LN(x_i) - min V
            f=f,
            f_inverse=f_inverse,  # z = ( sum_i a_i v_i^gamma )^(1/gamma)
            phi_u=Spec.phi_u if self.beta is None else Part(r"Z + \beta", lambda Z: Z + self.beta),
            heads=self.num_heads,
        )

    def _shifted(self) -> Part:
        return Part(
            r"\mathrm{LN}(X) - \min \mathrm{LN}(X)", lambda X: shifted_to_positive(self.norm_patches(X), self.shift)
        )

    # Sooner, since no position is projected: (W_K k_i) . q = k_i . (W_K^T q), so the query is brought to the keys'
    # side, once per image. The affine map of the LayerNorm goes the same way, k_i = g * n_i + b with n_i the
    # normalised x_i: k_i . w = n_i . (g * w) + b . w, of which the softmax drops the constant b . w (and b_K . q).
    # Without gamma the values' affine map comes after the sum: sum_i a_i (g * n_i + b) = g * (sum_i a_i n_i) + b.

    start = staticmethod(average)

    @property
    def look(self) -> Look | None:
        return Look(norm_keys=True, norm_values=True, eps=self.norm_patches.eps) if self.gamma is None else None

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        if self.gamma is None:
            return super().pool_tokens(tokens, grid)
        dtype = self.wq.weight.dtype
        return self._generalised_mean(self.norm_patches(tokens.to(dtype)), self._query(average(tokens, dtype)))

    def queries(self, start: Tensor) -> Tensor:
        return self._query(start) * self.norm_patches.weight

    def finish(self, sums: Tensor, start: Tensor) -> Tensor:
        return own_slices(affine(sums, self.norm_patches))  # each head keeps its slice of the channels

    def _query(self, average: Tensor) -> Tensor:
        """The query of every head on the keys' side, ``(B, d)`` to ``(B, h, d)``."""
        query = self.wq(average).unflatten(-1, (self.num_heads, -1)) * self.scale
        query = on_keys_side(query, by_heads(self.wk.weight, self.num_heads))
        return query if self.wk.bias is None else query + 0 * self.wk.bias  # b_K has a gradient, of zero

    def _generalised_mean(self, normed: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """The powers are those of values, which therefore are needed one by one."""
        attention = (query @ normed.mT).softmax(-1)  # (B, h, N)
        values = shifted_to_positive(normed, self.shift).unflatten(-1, (self.num_heads, -1))  # (B, N, h, d/h)
        if self.gamma > LARGEST_PLAIN:
            z = power_mean(values.transpose(1, 2), attention.unsqueeze(2), self.gamma).flatten(1)
        else:
            z = torch.einsum("bhn,bnhc->bhc", attention, values.pow(self.gamma)).flatten(1).pow(1 / self.gamma)
        return (z if self.beta is None else z + self.beta), attention

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, gamma={self.gamma}, shift={self.shift}"


def shifted_to_positive(V: Tensor, shift: Shift) -> Tensor:
    """V - min V + 1e-6, the minimum over all elements of each image, of the batch, or over each channel's positions."""
    over_batch = (0, 1, 2) if V.shape[0] else (1, 2)  # no images, no minimum
    axes = {"image": (1, 2), "batch": over_batch, "channel": (1,)}[shift]
    return V - V.amin(axes, keepdim=True) + POSITIVE
