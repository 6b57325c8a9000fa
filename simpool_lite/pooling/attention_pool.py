"""Poolings that are one attention of a few queries, in three steps that heads on the same features can share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attend import attend
from .base import Pool, accumulation_dtype


class Look(NamedTuple):
    """How queries meet the positions: whether keys and values have a LayerNorm (its affine map is the pooling's)."""

    norm_keys: bool = False
    norm_values: bool = False
    eps: float = 1e-6


def nothing(tokens: Tensor, dtype: torch.dtype) -> None:
    """What learned queries see of the images."""


class AttentionPool(Pool):
    """A pooling that meets the positions once, in :func:`~simpool_lite.pooling.attend.attend`.

    ::

        u = start(X, dtype)      what the queries see of each image; nothing learned
        w = queries(u)           (B, M, d), or (1, M, d) for all images, on the keys' side: scale and W_K included
        y = attend(X, w)         (B, M, d)
        z = finish(y, u)         (B, out_dim)

    Only ``start`` and ``attend`` read X, and neither has parameters. So the queries of many such poolings can attend
    together, and those of one class run ``queries`` and ``finish`` on stacked parameters:
    :mod:`simpool_lite.training.stacked`. Poolings whose ``start`` is the same function see the same.
    """

    start = staticmethod(nothing)

    @property
    def look(self) -> Look | None:
        """How its queries look at the positions; None where its settings need more than one attention."""
        return Look()

    def queries(self, start: object) -> Tensor:
        raise NotImplementedError

    def finish(self, sums: Tensor, start: object) -> Tensor:
        raise NotImplementedError

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        start = self.start(tokens, accumulation_dtype(tokens.dtype))
        queries = self.queries(start).expand(tokens.shape[0], -1, -1)
        norm_keys, norm_values, eps = self.look
        sums, attention, _ = attend(tokens, queries, norm_keys=norm_keys, norm_values=norm_values, eps=eps)
        return self.finish(sums, start), attention


def by_heads(matrix: Tensor, num_heads: int) -> Tensor:
    """A weight ``(m c, d)`` as ``(m, c, d)``."""
    return matrix.unflatten(0, (num_heads, -1))


def on_keys_side(queries: Tensor, key: Tensor, norm: nn.LayerNorm | None = None) -> Tensor:
    """W_K^T q of each head, ``(B, m, c)`` and ``(m, c, d)`` to ``(B, m, d)``, and what the keys' LayerNorm makes of it.

    A query w meets the key g * n_i + b, n_i the normalised position, as n_i . (g * w): the softmax drops the constant
    b . w, so b has a gradient, of zero.
    """
    queries = torch.einsum("bmc,mcd->bmd", queries, key)
    return queries if norm is None else queries * norm.weight + 0 * norm.bias


def affine(sums: Tensor, norm: nn.LayerNorm | None) -> Tensor:
    """What the values' LayerNorm makes of sums of normalised positions."""
    return sums if norm is None else sums * norm.weight + norm.bias


def project_heads(sums: Tensor, value: Tensor) -> Tensor:
    """W_V of each head's sum, ``(..., m, d)`` and ``(m, c, d)`` to ``(..., m c)``."""
    return torch.einsum("...md,mcd->...mc", sums, value).flatten(-2)


def own_slices(sums: Tensor) -> Tensor:
    """Of each head's sum its own slice of the channels, ``(B, m, d)`` to ``(B, d)``."""
    return sums.unflatten(-1, (sums.shape[-2], -1)).diagonal(dim1=-3, dim2=-2).mT.flatten(-2)
