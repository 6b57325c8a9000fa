"""Group 5 of the paper's table: SimPool."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attend import attend, average
from .base import Pool, accumulation_dtype, check_choice, check_heads, register_pool
from .framework import Part, Spec, dot, f_alpha, same, softmax

Init = Literal["gap", "max", "energy", "learned", "random"]
Shift = Literal["image", "batch", "channel"]

EPS = 1e-6  # of the LayerNorm, and what the published code adds to v - min V


@register_pool("simpool")
class SimPool(Pool):
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
        init: u0, where the query starts: the positions' "gap", "max" or "energy" (their average weighted by
            ``|x_i|^2``, the paper's diag(X^T X)); a "learned" vector; a fixed "random" one.
        norm: which of q, k, v get the LayerNorm, as letters; "" for none.
        linear: which of q, k, v get a linear map, as letters; the others are the identity.
        shift: what min V runs over: all elements of an "image" (the paper), of the whole "batch" (the
            authors' release; couples the images of a batch), or the positions of a "channel" (timm).
        learn_gamma: make ``gamma`` a parameter that starts at the given value.

    Shape:
        ``(B, N, d)`` or ``(B, d, H, W)`` to ``(B, d)``; map ``(B, num_heads, N)`` or ``(B, num_heads, H, W)``.

    Raises:
        ValueError: an argument has a value that is not accepted.

    Source: Psomas et al., "Keep It SimPool", ICCV 2023, equations 12-17 and Table 10; the 1e-6 and beta are
    the published code's.

    >>> z, a = SimPool(384, gamma=1.25)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 1, 196]))
    """

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
        init: Init = "gap",
        norm: str = "kv",
        linear: str = "qk",
        shift: Shift = "image",
        learn_gamma: bool = False,
    ) -> None:
        super().__init__(dim)
        check_heads(dim, num_heads)
        _check_gamma(gamma, learn_gamma)
        check_choice("init", init, Init)
        check_choice("shift", shift, Shift)
        _check_letters("norm", norm)
        _check_letters("linear", linear)
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.init, self.norm, self.shift = init, norm, shift

        if norm:
            self.norm_patches = nn.LayerNorm(dim, eps=EPS)
        self.wq = nn.Linear(dim, dim, bias=qkv_bias) if "q" in linear else None
        self.wk = nn.Linear(dim, dim, bias=qkv_bias) if "k" in linear else None
        self.wv = nn.Linear(dim, dim, bias=qkv_bias) if "v" in linear else None
        if init == "learned":
            self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, dim), std=0.02))
        elif init == "random":
            self.register_buffer("query", torch.randn(1, dim))
        self.gamma = nn.Parameter(torch.tensor([float(gamma)])) if learn_gamma else gamma
        self.beta = nn.Parameter(torch.zeros(1)) if use_beta and gamma is not None else None

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        start = self._start(tokens)  # u0
        query = _linear(self.wq, self._layer_norm(start) if "q" in self.norm else start)
        query = self._on_keys_side(query) * self.scale  # (B, h, d)
        if self.gamma is not None:
            return self._generalised_mean(tokens.to(query.dtype), query)
        if "k" in self.norm:
            query = query * self.norm_patches.weight.to(query.dtype)
        z, attention, _ = attend(
            tokens, query, norm_keys="k" in self.norm, norm_values="v" in self.norm, eps=EPS
        )  # fmt: skip
        if "v" in self.norm:  # sum_i a_i (g * x_i + b) = g * (sum_i a_i x_i) + b
            z = z * self.norm_patches.weight.to(z.dtype) + self.norm_patches.bias.to(z.dtype)
        return self._own_slices(z), attention

    def spec(self) -> Spec:
        def normed(letter: str, x: Tensor) -> Tensor:
            return self._layer_norm(x) if letter in self.norm else x

        def values(X: Tensor) -> Tensor:
            V = _linear(self.wv, normed("v", X))
            return V if self.gamma is None else V - self._minimum(V) + EPS

        def cell(letter: str, symbol: str, linear: nn.Linear | None) -> str:
            symbol = rf"\mathrm{{LN}}({symbol})" if letter in self.norm else symbol
            return symbol if linear is None else f"W_{letter.upper()} {symbol}"

        start = {"gap": "GAP", "max": "max", "energy": "energy"}.get(self.init)
        value = cell("v", "X", self.wv)
        f, f_inverse = f_alpha(-1 if self.gamma is None else 1 - 2 * self.gamma)
        return Spec(
            init=Part("U" if start is None else rf"\mathrm{{{start}}}(X)", lambda X: self._start(X).unsqueeze(1)),
            phi_q=Part(cell("q", "U", self.wq), lambda U: _linear(self.wq, normed("q", U))),
            phi_k=Part(cell("k", "X", self.wk), lambda X: _linear(self.wk, normed("k", X))),
            similarity=dot,
            attention=softmax(self.scale),
            phi_v=Part(value if self.gamma is None else rf"{value} - \min {value}", values),
            f=f,
            f_inverse=f_inverse,
            phi_u=Part("Z", same) if self.beta is None else Part(r"Z + \beta", lambda Z: Z + self.beta),
            heads=self.num_heads,
        )

    def _start(self, tokens: Tensor) -> Tensor:
        """u0, ``(B, d)``, at least float32."""
        dtype = accumulation_dtype(tokens.dtype)
        if self.init == "gap":
            return average(tokens, dtype)
        if self.init in ("learned", "random"):
            return self.query.to(dtype).expand(len(tokens), -1)
        tokens = tokens.to(dtype)
        if self.init == "max":
            return tokens.amax(1)
        energy = tokens.square().sum(-1, keepdim=True)
        # The floor keeps an image of zeros at zero instead of 0 / 0.
        return (energy * tokens).sum(1) / energy.sum(1).clamp_min(torch.finfo(dtype).tiny)

    def _on_keys_side(self, query: Tensor) -> Tensor:
        """W_K^T q of every head, ``(B, h, d)``, which meets the keys as they are: (W_K k) . q = k . (W_K^T q)."""
        query = query.unflatten(-1, (self.num_heads, -1))  # (B, h, d/h)
        if self.wk is None:  # each head's query is zero outside of its slice
            return torch.einsum("bhc,hg->bhgc", query, torch.eye(self.num_heads).to(query)).flatten(2)
        weight = self.wk.weight.to(query.dtype).unflatten(0, (self.num_heads, -1))  # (h, d/h, d)
        query = torch.einsum("bhc,hcd->bhd", query, weight)
        # b_K . q is the same for all positions, and softmax drops it; b_K still has a gradient, of zero.
        return query if self.wk.bias is None else query + 0 * self.wk.bias.to(query.dtype)

    def _own_slices(self, sums: Tensor) -> Tensor:
        """W_V of what each head has summed, on the head's slice of the channels: ``(B, h, d)`` to ``(B, d)``."""
        if self.wv is None:
            return sums.unflatten(-1, (self.num_heads, -1)).diagonal(dim1=1, dim2=2).mT.flatten(1)
        weight = self.wv.weight.to(sums.dtype).unflatten(0, (self.num_heads, -1))
        z = torch.einsum("bhd,hcd->bhc", sums, weight).flatten(1)
        return z if self.wv.bias is None else z + self.wv.bias.to(z.dtype)

    def _generalised_mean(self, tokens: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """The powers are those of values, which therefore are needed one by one."""
        normed = self._layer_norm(tokens) if self.norm else tokens
        keys, values = (normed if letter in self.norm else tokens for letter in "kv")
        attention = (query @ keys.mT).softmax(-1)  # (B, h, N)
        values = _linear(self.wv, values)
        gamma = self.gamma.to(tokens.dtype) if isinstance(self.gamma, Tensor) else self.gamma
        powers = (values - self._minimum(values) + EPS).pow(gamma)
        z = self._weighted_sum(attention, powers).pow(1 / gamma)
        return (z if self.beta is None else z + self.beta.to(z.dtype)), attention

    def _weighted_sum(self, attention: Tensor, values: Tensor) -> Tensor:
        """sum_i a_i v_i, each head on its own slice of the channels, ``(B, d)``."""
        if self.num_heads == 1:
            return (attention @ values).squeeze(1)
        values = values.unflatten(-1, (self.num_heads, -1))
        return torch.einsum("bhn,bnhc->bhc", attention, values).flatten(1)

    def _minimum(self, values: Tensor) -> Tensor:
        if self.shift == "channel":
            return values.amin(1, keepdim=True)
        return values.amin((1, 2), keepdim=True) if self.shift == "image" else values.amin()

    def _layer_norm(self, x: Tensor) -> Tensor:
        norm = self.norm_patches
        return F.layer_norm(x, (self.dim,), norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)

    def extra_repr(self) -> str:
        gamma = "learned" if isinstance(self.gamma, Tensor) else self.gamma
        return f"heads={self.num_heads}, init={self.init}, norm={self.norm!r}, gamma={gamma}, shift={self.shift}"


def _linear(layer: nn.Linear | None, x: Tensor) -> Tensor:
    if layer is None:
        return x
    return F.linear(x, layer.weight.to(x.dtype), None if layer.bias is None else layer.bias.to(x.dtype))


def _check_gamma(gamma: float | None, learn_gamma: bool) -> None:
    if gamma is not None and not (isinstance(gamma, int | float) and 0 < gamma < float("inf")):
        raise ValueError(f"gamma: expected a finite number above 0, or None for the average, got {gamma!r}")
    if learn_gamma and gamma is None:
        raise ValueError("learn_gamma: expected a gamma to start from, got gamma=None; try gamma=1.25")


def _check_letters(name: str, value: str) -> None:
    if not isinstance(value, str) or not set(value) <= set("qkv"):
        raise ValueError(f'{name}: expected letters out of "qkv" ("" for none), got {value!r}')
