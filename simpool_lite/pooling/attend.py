"""Attention of a few queries over many positions, at the price of reading the positions.

A query that has been brought to the keys' side, ``w = W_K^T q``, meets the positions as they are, since
``(W_K k_i) . q = k_i . w``: no position is ever projected. A LayerNorm in between is a mean and a spread for each
position, and what comes after the weighted sum (the LayerNorm's affine map, W_V) is applied to the sum. So what is
left of attention is a pass over the positions in the forward direction and one in the backward direction, and nothing
of their size is kept.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

# How much of the positions a CPU centres at a time, in bytes of float32: what its cache holds.
CHUNK_BYTES = 6 * 2**20
# Up to how many queries per image products are fused when compiled: unfused, they would be as many times X.
FUSED_QUERIES = 4


def attend(
    tokens: Tensor, queries: Tensor, *, norm_keys: bool, norm_values: bool, eps: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Let M queries per image attend to its positions.

    ::

        s_mi = w_m . k_i        a_m = softmax_i(s_m)        z_m = sum_i a_mi v_i        l_m = ln sum_i e^(s_mi)

    with k_i and v_i the positions x_i themselves, or their LayerNorm without weight and bias.

    Args:
        tokens: x, ``(B, N, d)``, of any floating-point dtype.
        queries: w, ``(B, M, d)``, float32 or float64, scale and W_K included; sums are computed in its dtype.
        norm_keys: whether the keys have the LayerNorm.
        norm_values: whether the values have it.
        eps: the LayerNorm's.

    Returns:
        z ``(B, M, d)``, a ``(B, M, N)`` and l ``(B, M)``, with which attention to further positions can be
        added; all in the dtype of the queries.

    Derivatives of any order are right. The first needs no memory of the positions' size but for their own
    gradient; higher ones are those of the plain formula, and so is everything under the transforms of `torch.func`.
    """
    if torch.compiler.is_compiling():
        return _Fusible.apply(tokens, queries, norm_keys, norm_values, eps)
    if transformed():
        return _formula(tokens, queries, norm_keys, norm_values, eps)
    return _Attend.apply(tokens, queries, norm_keys, norm_values, eps)


def transformed() -> bool:
    """Whether `torch.func` (grad, vmap, jvp, ...) or forward-mode differentiation is at work, which need a formula."""
    # torch has no public name for either; the first is what its own `Function.apply` asks.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _formula(tokens: Tensor, queries: Tensor, norm_keys: bool, norm_values: bool, eps: float) -> tuple[Tensor, ...]:
    tokens = tokens.to(queries.dtype)
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=eps) if norm_keys or norm_values else tokens
    keys, values = (normed if on else tokens for on in (norm_keys, norm_values))
    logits = queries @ keys.mT
    weights = logits.softmax(-1)
    return weights @ values, weights, logits.logsumexp(-1)


class _Attend(torch.autograd.Function):
    """`_formula` and its gradient, a few images at a time."""

    @staticmethod
    def forward(ctx, tokens, queries, norm_keys, norm_values, eps):
        sums, logits = torch.empty_like(queries), queries.new_empty(*queries.shape[:2], tokens.shape[1])
        weights = torch.empty_like(logits)
        mean, rstd = queries.new_empty(*tokens.shape[:2], 1), queries.new_empty(len(tokens), 1, tokens.shape[1])
        buffer = _buffer(tokens, queries.dtype)
        for x, q, s, a, z, m, r in _in_parts(tokens, queries, logits, weights, sums, mean, rstd):
            x = x.to(queries.dtype)
            if norm_keys or norm_values:
                centred = torch.sub(x, torch.mean(x, -1, keepdim=True, out=m), out=buffer[: len(x)])
                torch.linalg.vector_norm(centred, dim=-1, out=r[:, 0])
                r.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
            torch.bmm(q, (centred if norm_keys else x).mT, out=s)
            torch.softmax(s.mul_(r) if norm_keys else s, -1, out=a)
            torch.bmm(a * r if norm_values else a, centred if norm_values else x, out=z)
        ctx.norm = norm_keys, norm_values, eps
        ctx.save_for_backward(tokens, queries, logits, weights, mean, rstd)
        return sums, weights, logits.amax(-1) - weights.amax(-1).log()

    @staticmethod
    def backward(ctx, d_sums, d_weights, d_lse):
        tokens, queries, logits, weights, mean, rstd = ctx.saved_tensors
        norm_keys, norm_values, eps = ctx.norm
        if torch.is_grad_enabled():  # a derivative of this one is wanted
            inputs = tokens.view_as(tokens), queries.view_as(queries)
            outputs = _formula(*inputs, norm_keys, norm_values, eps)
            wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
            found = iter(torch.autograd.grad(outputs, wanted, (d_sums, d_weights, d_lse), create_graph=True))
            return *(next(found) if needed else None for needed in ctx.needs_input_grad[:2]), None, None, None

        # x_i receives a_mi dz_m as a value and ds_mi w_m as a key. A LayerNorm on the way takes away the rows' mean,
        # divides by the spread, and takes away what would change the spread: v_i (v_i . gradient) / d.
        rows = torch.cat([_centred(d_sums) if norm_values else d_sums, _centred(queries) if norm_keys else queries], 1)
        to_tokens = ctx.needs_input_grad[0]
        d_tokens, d_queries = torch.empty_like(tokens) if to_tokens else tokens, torch.empty_like(queries)
        buffer = _buffer(tokens, queries.dtype)
        known = tokens, queries, d_sums, d_weights, d_lse.unsqueeze(-1), logits, weights, mean, rstd, rows
        for x, q, d_z, d_a, d_l, s, a, m, r, row, d_x, d_q in _in_parts(*known, d_tokens, d_queries):
            x = x.to(q.dtype)
            if norm_keys or norm_values:
                centred = torch.sub(x, m, out=buffer[: len(x)])
            agreement = torch.bmm(d_z, centred.mT).mul_(r) if norm_values else torch.bmm(d_z, x.mT)
            d_a = agreement + d_a
            d_s = a * (d_a - (a * d_a).sum(-1, keepdim=True) + d_l)
            as_value, as_key = a * r if norm_values else a, d_s * r if norm_keys else d_s
            torch.bmm(as_key, centred if norm_keys else x, out=d_q)
            if not to_tokens:
                continue
            share = torch.cat([as_value, as_key], 1).mT
            if norm_keys or norm_values:
                along = (agreement * as_value if norm_values else 0) + (s * as_key if norm_keys else 0)
                along = along.sum(1, keepdim=True).mul_(r).div_(-x.shape[-1])
                d_x.copy_(centred.mul_(along.mT).baddbmm_(share, row))
            else:
                d_x.copy_(torch.bmm(share, row))
        return d_tokens if to_tokens else None, d_queries, None, None, None


class _Fusible(torch.autograd.Function):
    """`_Attend` for `torch.compile`: whole, and of steps that it fuses, so that X is read but no copy of it written."""

    @staticmethod
    def forward(ctx, tokens, queries, norm_keys, norm_values, eps):
        x = tokens.to(queries.dtype)
        mean, rstd = x.mean(-1, keepdim=True), None
        if norm_keys or norm_values:
            rstd = ((x - mean).square().mean(-1, keepdim=True) + eps).rsqrt().mT
        logits = _dots(queries, x - mean) * rstd if norm_keys else _dots(queries, x)
        weights = logits.softmax(-1)
        ctx.norm = norm_keys, norm_values
        ctx.save_for_backward(tokens, queries, logits, weights, mean, rstd)
        sums = _sums(weights * rstd, x - mean) if norm_values else _sums(weights, x)
        return sums, weights, logits.logsumexp(-1)

    @staticmethod
    def backward(ctx, d_sums, d_weights, d_lse):
        tokens, queries, logits, weights, mean, rstd = ctx.saved_tensors
        norm_keys, norm_values = ctx.norm
        x = tokens.to(queries.dtype)
        agreement = _dots(d_sums, x - mean) * rstd if norm_values else _dots(d_sums, x)
        d_weights = agreement + d_weights
        d_logits = weights * (d_weights - (weights * d_weights).sum(-1, keepdim=True) + d_lse.unsqueeze(-1))
        as_value = weights * rstd if norm_values else weights
        as_key = d_logits * rstd if norm_keys else d_logits
        d_queries = _sums(as_key, x - mean if norm_keys else x)
        d_tokens = _rows(as_value, _centred(d_sums) if norm_values else d_sums)
        d_tokens = d_tokens + _rows(as_key, _centred(queries) if norm_keys else queries)
        if norm_keys or norm_values:
            along = (agreement * as_value if norm_values else 0) + (logits * as_key if norm_keys else 0)
            d_tokens = d_tokens - (along.sum(1, keepdim=True) * rstd / x.shape[-1]).mT * (x - mean)
        return d_tokens.to(tokens.dtype), d_queries, None, None, None


def _dots(queries: Tensor, x: Tensor) -> Tensor:
    """``queries @ x.mT``; for few queries so that the compiler fuses it with what x is computed from."""
    if queries.shape[1] > FUSED_QUERIES:
        return queries @ x.mT
    return (queries.unsqueeze(2) * x.unsqueeze(1)).sum(-1)


def _sums(weights: Tensor, x: Tensor) -> Tensor:
    """``weights @ x``, likewise."""
    if weights.shape[1] > FUSED_QUERIES:
        return weights @ x
    return (weights.unsqueeze(3) * x.unsqueeze(1)).sum(2)


def _rows(weights: Tensor, rows: Tensor) -> Tensor:
    """``weights.mT @ rows``, likewise."""
    if weights.shape[1] > FUSED_QUERIES:
        return weights.mT @ rows
    return (weights.unsqueeze(3) * rows.unsqueeze(2)).sum(1)


def average(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """GAP(X): tokens ``(B, N, d)`` to ``(B, d)``; the gradient is a view, where torch's own is as large as X."""
    plain = torch.compiler.is_compiling() or transformed()
    return tokens.mean(1, dtype=dtype) if plain else _Average.apply(tokens, dtype)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens, dtype):
        ctx.shape, ctx.dtype = tokens.shape, tokens.dtype
        return tokens.mean(1, dtype=dtype)

    @staticmethod
    def backward(ctx, d_average):
        return (d_average / ctx.shape[1]).to(ctx.dtype).unsqueeze(1).expand(ctx.shape), None


def _in_parts(tokens: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors with one row per image in parts: on a CPU as many images as its cache holds, elsewhere all of them."""
    return zip(*(x.split(_images_at_a_time(tokens)) for x in (tokens, *others)), strict=True)


def _buffer(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """Memory for one part of the batch: used again and again it stays in the cache, and is allocated once."""
    return torch.empty_like(tokens[: _images_at_a_time(tokens)], dtype=dtype)


def _images_at_a_time(tokens: Tensor) -> int:
    if tokens.device.type == "cpu":
        return max(1, CHUNK_BYTES // (4 * tokens.shape[1] * tokens.shape[2]))
    return max(1, len(tokens))


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)
