"""Variants of SimPool that only the ablations need, each written as SimPool's spec with other parts."""

from dataclasses import replace
from typing import Literal

from torch import Tensor, nn

from .base import Pool, check_choice, check_int, register_pool
from .framework import (
    Part,
    Reduce,
    Spec,
    cosine,
    dot,
    negative_distance,
    sigmoid,
    softmax,
    softmax_over_vectors,
    sparsemax,
)
from .iterative import KMeans
from .simpool import SimPool

Start = Literal["gap", "kmeans", "cls"]
Similarity = Literal["dot", "cosine", "distance"]
Attention = Literal["softmax", "softmax_over_vectors", "sparsemax", "sigmoid"]

SIMILARITIES = {"dot": dot, "cosine": cosine, "distance": negative_distance}
ATTENTIONS = {
    "softmax": softmax,
    "softmax_over_vectors": softmax_over_vectors,
    "sparsemax": sparsemax,
    "sigmoid": sigmoid,
}


@register_pool("simpool_variant", listed=False)
class SimPoolVariant(Pool):
    r"""SimPool with one of the choices that the paper's Table 10 made and did not keep.

    With the defaults it is SimPool; it is computed by :func:`~simpool_lite.generic_pool` and not by a
    forward of its own, so it is slower.

    Args:
        dim: number of channels, d.
        T: iterations, U^{t+1} = Z (ITER in Table 10).
        separate: every iteration has its own LayerNorm, W_Q and W_K (LAYERS in Table 10).
        tied: W_K = W_Q.
        similarity: s(k, q): "dot", "cosine", or "distance", which is ``-|k - q|^2``. All are divided by sqrt d.
        attention: h: "softmax" over the positions; "softmax_over_vectors", the other axis, then l1 over the
            positions, which is uniform for one vector; "sparsemax"; "sigmoid", divided by the positions.
        init: U^0: "gap"; "kmeans", the ``k`` centres of k-means; "cls", a transformer's class token, which
            is the first of the tokens that come in and is not pooled itself.
        k: vectors; 1 unless ``init="kmeans"``.
        reduce: from k vectors to one: "max", "mean" or "concat".

    Attributes:
        needs_class_token: whether the first token has to be the class token.

    Shape:
        ``(B, N, d)`` or ``(B, d, H, W)`` to ``(B, out_dim)``; map ``(B, k, N)`` or ``(B, k, H, W)``. With
        ``init="cls"`` tokens ``(B, 1 + N, d)`` only.

    Raises:
        ValueError: an argument has a value that is not accepted.

    Source: Psomas et al., "Keep It SimPool", ICCV 2023, Table 10.

    >>> import torch
    >>> pool = SimPoolVariant(8, init="kmeans", k=3, reduce="concat")
    >>> pool(torch.randn(2, 8, 4, 4)).shape
    torch.Size([2, 24])
    """

    def __init__(
        self,
        dim: int,
        *,
        T: int = 1,
        separate: bool = False,
        tied: bool = False,
        similarity: Similarity = "dot",
        attention: Attention = "softmax",
        init: Start = "gap",
        k: int = 1,
        reduce: Reduce = "max",
    ) -> None:
        super().__init__(dim)
        check_int("T", T)
        check_int("k", k)
        check_choice("similarity", similarity, Similarity)
        check_choice("attention", attention, Attention)
        check_choice("init", init, Start)
        check_choice("reduce", reduce, Reduce)
        if k > 1 and init != "kmeans":
            raise ValueError(f"k: expected 1 with init={init!r}, which is one vector, got {k}; try init='kmeans'")
        self.T, self.tied, self.similarity, self.attention = T, tied, similarity, attention
        self.init, self.k, self.reduce = init, k, reduce
        self.out_dim = k * dim if reduce == "concat" else dim
        self.needs_class_token = init == "cls"
        self.steps = nn.ModuleList(SimPool(dim, linear="q" if tied else "qk") for _ in range(T if separate else 1))
        if init == "kmeans":
            self.kmeans = KMeans(dim, k, reduce="concat")

    def spec(self) -> Spec:
        specs = [step.spec() for step in self.steps]
        first, scale = specs[0], self.steps[0].scale

        def step(t: int) -> Spec:
            return specs[t % len(specs)]

        def patches(X: Tensor) -> Tensor:
            return X[:, 1:] if self.needs_class_token else X

        def keys(X: Tensor, t: int) -> Tensor:
            K = step(t).phi_k(patches(X))
            return step(t).phi_q(K) if self.tied else K

        starts = {
            "gap": first.init,
            "kmeans": Part(r"\mathrm{kmeans}(X)", lambda X: self.kmeans(X).unflatten(-1, (self.k, -1))),
            "cls": Part(r"x_{\mathrm{CLS}}", lambda X: X[:, :1]),
        }
        return replace(
            first,
            k=self.k,
            T=self.T,
            init=starts[self.init],
            phi_q=Part(first.phi_q.formula, lambda U, t: step(t).phi_q(U)),
            phi_k=Part(f"W_Q {first.phi_k.formula}" if self.tied else first.phi_k.formula, keys),
            similarity=SIMILARITIES[self.similarity],
            attention=ATTENTIONS[self.attention](scale),
            phi_v=Part(first.phi_v.formula, lambda X, t: step(t).phi_v(patches(X))),
            reduce=self.reduce,
        )

    def extra_repr(self) -> str:
        names = ("T", "tied", "similarity", "attention", "init", "k", "reduce")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
