"""SimPool with the switches of the paper's ablations, written in the terms of the generic framework."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_int, check_number
from .attend import average
from .attention_pool import (
    AttentionPool,
    Look,
    affine,
    by_heads,
    nothing,
    on_keys_side,
    own_slices,
    project_heads,
)
from .base import check_heads, register_pool
from .framework import (
    Part,
    Reduce,
    Spec,
    cosine,
    dot,
    f_alpha,
    generic_pool,
    negative_distance,
    sigmoid,
    softmax,
    softmax_over_vectors,
    sparsemax,
)
from .iterative import KMeans
from .simpool import Shift, shifted_to_positive

Init = Literal["gap", "max", "energy", "learned", "random", "cls", "kmeans"]

SIMILARITIES = {"dot": dot, "cosine": cosine, "distance": negative_distance}
ATTENTIONS = {
    "softmax": softmax,
    "softmax_over_vectors": softmax_over_vectors,
    "sparsemax": sparsemax,
    "sigmoid": sigmoid,
}
STARTS = {
    "gap": r"\mathrm{GAP}(X)",
    "max": r"\max(X)",
    "energy": r"\mathrm{diag}(X^\top X)",
    "learned": "U",
    "random": r"\mathrm{random}",
    "cls": r"x_{\mathrm{CLS}}",
    "kmeans": r"\mathrm{kmeans}(X)",
}


def largest(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """max(X), ``(B, d)``."""
    return tokens.to(dtype).amax(1)


def by_energy(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """The average of the positions weighted by ``|x_i|^2``, ``(B, d)``."""
    X = tokens.to(dtype)
    energy = X.square().sum(-1, keepdim=True)
    # The floor keeps an image of zeros at zero instead of 0 / 0.
    return (energy * X).sum(1) / energy.sum(1).clamp_min(torch.finfo(dtype).tiny)


SEEN = {"gap": average, "max": largest, "energy": by_energy}  # by a query that depends on the image


@register_pool("ablated_simpool", listed=False)
class AblatedSimPool(AttentionPool):
    r"""SimPool with every choice that an ablation changes; at the defaults it is SimPool.

    It is evaluated by :func:`~simpool_lite.generic_pool`, so it is slower, unless it is one attention (see ``look``).

    Args:
        dim, num_heads, qkv_bias, qk_scale, gamma, use_beta, shift, eps: see :class:`SimPool`.
        init: U^0, where the query starts: the positions' "gap", "max" or "energy" (their average weighted by
            ``|x_i|^2``, the paper's diag(X^T X)); a "learned" vector; a fixed "random" one; "cls", a transformer's
            class token, which is the first of the tokens that come in and is not pooled itself; "kmeans", the ``k``
            centres of k-means.
        norm: which of q, k, v get the LayerNorm, as letters; "" for none.
        linear: which of q, k, v get a linear map, as letters; the others are the identity.
        learn_gamma: make ``gamma`` a parameter that starts at the given value.
        similarity: s(k, q): "dot", "cosine", or "distance", which is ``-|k - q|^2``. All are divided by sqrt d.
        attention: h: "softmax" over the positions; "softmax_over_vectors", the other axis, then l1 over the
            positions, which is uniform for one vector; "sparsemax"; "sigmoid", divided by the positions.
        T: iterations, U^{t+1} = Z.
        separate: every iteration has a LayerNorm and linear maps of its own.
        k: vectors; 1 unless ``init="kmeans"``.
        reduce: from k vectors to one: "max", "mean" or "concat".
        tied: W_K = W_Q.

    Attributes:
        needs_class_token: whether the first token has to be the class token.

    Shape:
        ``(B, N, d)`` or ``(B, d, H, W)`` to ``(B, out_dim)``; map ``(B, k * num_heads, N)`` or ``(B, M, H, W)``. With
        ``init="cls"`` tokens ``(B, 1 + N, d)`` only.

    Raises:
        ValueError: an argument has a value that is not accepted.

    Source: Psomas et al., "Keep It SimPool", ICCV 2023, Table 10. sparsemax, sigmoid, a learned gamma, the maximum
    and the random vector are ours.

    >>> pool = AblatedSimPool(8, init="kmeans", k=3, reduce="concat")
    >>> pool(torch.randn(2, 8, 4, 4)).shape
    torch.Size([2, 24])
    """

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
        init: Init = "gap",
        norm: str = "kv",
        linear: str = "qk",
        learn_gamma: bool = False,
        similarity: Literal["dot", "cosine", "distance"] = "dot",
        attention: Literal["softmax", "softmax_over_vectors", "sparsemax", "sigmoid"] = "softmax",
        T: int = 1,
        separate: bool = False,
        k: int = 1,
        reduce: Reduce = "max",
        tied: bool = False,
    ) -> None:
        super().__init__(dim)
        self.num_heads = check_heads(self.dim, num_heads)
        self.shift = check_choice("shift", shift, get_args(Shift))
        self.init = check_choice("init", init, get_args(Init))
        self.similarity = check_choice("similarity", similarity, SIMILARITIES)
        self.attention = check_choice("attention", attention, ATTENTIONS)
        self.reduce = check_choice("reduce", reduce, get_args(Reduce))
        self.T, self.k = check_int("T", T), check_int("k", k)
        self.scale = (
            (self.dim // self.num_heads) ** -0.5 if qk_scale is None else check_number("qk_scale", qk_scale, zero=True)
        )
        self.norm, self.linear, self.tied = _letters("norm", norm), _letters("linear", linear), tied
        if k > 1 and init != "kmeans":
            raise ValueError(f"k: expected 1 with init={init!r}, which is one vector, got {k}; try init='kmeans'")
        if tied and not {"q", "k"} <= set(linear):
            raise ValueError(f"tied: expected linear maps of q and k, got linear={linear!r}")
        if learn_gamma and gamma is None:
            raise ValueError("learn_gamma: expected a gamma to start from, got gamma=None; try gamma=1.25")
        if gamma is not None:
            gamma = check_number("gamma", gamma, above_zero=True)
        self.out_dim = self.k * self.dim if reduce == "concat" else self.dim
        self.needs_class_token = init == "cls"
        self.start = SEEN.get(init, nothing)

        check_number("eps", eps, above_zero=True)
        self._add_maps(self, qkv_bias, eps)
        self.later = nn.ModuleList(nn.Module() for _ in range(self.T - 1 if separate else 0))
        for step in self.later:
            self._add_maps(step, qkv_bias, eps)
        if init == "learned":
            self.query = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, self.dim), std=0.02))
        elif init == "random":
            self.register_buffer("query", torch.randn(1, self.dim))
        elif init == "kmeans":
            self.kmeans = KMeans(self.dim, self.k, reduce="concat")
        self.gamma = nn.Parameter(torch.tensor([float(gamma)])) if learn_gamma else gamma
        self.beta = nn.Parameter(torch.zeros(1)) if use_beta and gamma is not None else None

    def _add_maps(self, step: nn.Module, bias: bool, eps: float) -> None:
        """Give a step its LayerNorm and linear maps; the first step's are the pool's own, under SimPool's names."""
        if self.norm:
            step.norm_patches = nn.LayerNorm(self.dim, eps=eps)
        for letter in "qkv":
            wanted = letter in self.linear and not (letter == "k" and self.tied)
            setattr(step, f"w{letter}", nn.Linear(self.dim, self.dim, bias=bias) if wanted else None)

    def spec(self) -> Spec:
        f, f_inverse = f_alpha(-1 if self.gamma is None else 1 - 2 * self.gamma)
        values = self._prepared("v", "X")
        return Spec(
            k=self.k,
            T=self.T,
            init=Part(STARTS[self.init], self._start),
            phi_q=self._prepared("q", "U"),
            phi_k=self._prepared("k", "X"),
            similarity=SIMILARITIES[self.similarity],
            attention=ATTENTIONS[self.attention](self.scale),
            phi_v=values if self.gamma is None else self._shifted(values),
            f=f,
            f_inverse=f_inverse,
            phi_u=Spec.phi_u if self.beta is None else Part(r"Z + \beta", lambda Z: Z + self.beta),
            heads=self.num_heads,
            reduce=self.reduce,
        )

    def _prepared(self, letter: str, symbol: str) -> Part:
        """What becomes of queries, keys or values: a LayerNorm and a linear map, where they have them."""
        matrix = "q" if letter == "k" and self.tied else letter
        formula = rf"\mathrm{{LN}}({symbol})" if letter in self.norm else symbol
        if letter in self.linear:
            formula = f"W_{matrix.upper()} {formula}"

        def function(x: Tensor, t: int) -> Tensor:
            step = self.later[t - 1] if t and self.later else self
            x = x if letter == "q" else self._patches(x)
            x = step.norm_patches(x) if letter in self.norm else x
            return getattr(step, f"w{matrix}")(x) if letter in self.linear else x

        return Part(formula, function)

    def _shifted(self, values: Part) -> Part:
        formula = rf"{values.formula} - \min {values.formula}"
        return Part(formula, lambda X, t: shifted_to_positive(values(X, t=t), self.shift))

    def _patches(self, X: Tensor) -> Tensor:
        return X[:, 1:] if self.needs_class_token else X

    def _start(self, X: Tensor) -> Tensor:
        """U^0, ``(B, k, d)``."""
        if self.init == "cls":
            return X[:, :1]
        if self.init == "kmeans":
            return self.kmeans(X).unflatten(-1, (self.k, -1))
        if self.init in ("learned", "random"):
            return self.query.expand(X.shape[0], 1, -1)
        return self.start(X, X.dtype).unsqueeze(1)

    @property
    def look(self) -> Look | None:
        """As SimPool's; None with an exponent, iterations, several vectors, or another similarity or attention."""
        if self.gamma is not None or self.T > 1 or self.init in ("cls", "kmeans"):
            return None
        if (self.similarity, self.attention) != ("dot", "softmax"):
            return None
        return Look("k" in self.norm, "v" in self.norm, self.norm_patches.eps if self.norm else 1e-6)

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        if self.look is None:
            return generic_pool(tokens, self.spec(), grid, return_attention=True)
        return super().pool_tokens(tokens, grid)

    def queries(self, start: Tensor | None) -> Tensor:
        query = self.query if start is None else start
        query = self.norm_patches(query) if "q" in self.norm else query
        query = self.wq(query) if "q" in self.linear else query
        query = query.unflatten(-1, (self.num_heads, -1)) * self.scale
        key = self.wq if self.tied else self.wk
        matrix = torch.eye(self.dim, dtype=query.dtype, device=query.device) if key is None else key.weight
        query = on_keys_side(query, by_heads(matrix, self.num_heads), self.norm_patches if "k" in self.norm else None)
        return query if key is None or key.bias is None else query + 0 * key.bias  # b_K has a gradient, of zero

    def finish(self, sums: Tensor, start: Tensor | None) -> Tensor:
        sums = affine(sums, self.norm_patches if "v" in self.norm else None)
        if self.wv is None:
            return own_slices(sums)
        z = project_heads(sums, by_heads(self.wv.weight, self.num_heads))
        return z if self.wv.bias is None else z + self.wv.bias

    def extra_repr(self) -> str:
        names = "num_heads init norm linear shift similarity attention T k reduce tied".split()
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _letters(name: str, value: str) -> str:
    if not isinstance(value, str) or not set(value) <= set("qkv"):
        raise ValueError(f'{name}: expected letters out of "qkv" ("" for none), got {value!r}')
    return value
