"""Attentive probing: heads for frozen features. Here are those that are one attention and nothing else.

The methods and their settings are those of the code of Psomas et al., "Attention, Please! Revisiting Attentive Probing
Through the Lens of Efficiency", ICLR 2026. None of them projects a position: ``(W_K x_i) . q = x_i . (W_K^T q)``, and
W_V comes after the weighted sum.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_int
from .attend import average
from .attention_pool import AttentionPool, Look, affine, by_heads, on_keys_side, own_slices, project_heads
from .base import Pool, check_heads, register_pool
from .framework import Part, Spec, dot, same, softmax


class ProbingPool(Pool):
    """A pooling of the probing family."""

    family = "probing"


class AttentiveProbe(AttentionPool):
    """A pooling of the probing family that is one attention."""

    family = "probing"
    any_dtype = True


def heads_or(default: int, dim: int, num_heads: int | None) -> int:
    """The heads that were asked for, which must divide ``dim``, or as many of the default as do."""
    return math.gcd(default, dim) if num_heads is None else check_heads(dim, num_heads)


@register_pool("ep")
class EP(AttentiveProbe):
    r"""Efficient probing: many learned queries, each with its own slice of the values, and no keys.

    ::

        a_m = softmax_i( q_m . x_i / sqrt d )                    m = 1..M
        z   = [ sum_i a_mi (W_V x_i)_m ]  for all m, concatenated

    (.)_m: slice m of the d / d_out channels of W_V x_i.

    Args:
        dim: number of channels, d.
        num_queries: M; must divide d / d_out. Left out, 32, or the largest divisor of 32 that does.
        d_out: how many times narrower than d the output is; must divide d.

    Returns z ``(B, d / d_out)``; the map is ``(B, M, N)`` or ``(B, M, H, W)``.

    Raises:
        ValueError: ``d_out`` does not divide ``dim``, or ``num_queries`` does not divide d / d_out.

    Source: Psomas et al., "Attention, Please!", 2026, and its code. State-dict keys are the code's.

    >>> z, a = EP(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 32, 196]))
    """

    def __init__(self, dim: int, num_queries: int | None = None, d_out: int = 1) -> None:
        super().__init__(dim)
        self.out_dim = self.dim // _divisor("d_out", d_out, self.dim, "dim")
        if num_queries is None:
            num_queries = math.gcd(32, self.out_dim)
        self.num_queries = _divisor("num_queries", num_queries, self.out_dim, "dim / d_out")
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, self.num_queries, self.dim))
        self.v = nn.Linear(self.dim, self.out_dim, bias=False)

    def spec(self) -> Spec:
        return Spec(
            k=self.num_queries,
            init=Part("U", lambda X: self.cls_token.expand(X.shape[0], -1, -1)),
            phi_k=Part("X", same),
            similarity=dot,
            attention=softmax(self.dim**-0.5),
            phi_v=Part("W_V X", self.v),
            phi_u=Part(r"(Z_m)_m", self._own_slices),
            reduce="concat",
        )

    def _own_slices(self, Z: Tensor) -> Tensor:
        """Of each vector its own slice: ``(B, M, c)`` to ``(B, M, c / M)``."""
        return Z.unflatten(-1, (self.num_queries, -1)).diagonal(dim1=1, dim2=2).mT

    def queries(self, start: None) -> Tensor:
        return self.cls_token * self.dim**-0.5

    def finish(self, sums: Tensor, start: None) -> Tensor:
        return project_heads(sums, by_heads(self.v.weight, self.num_queries))


def _divisor(name: str, value: int, width: int, of: str) -> int:
    if width % check_int(name, value):
        raise ValueError(f"{name}: expected an int of at least 1 that divides {of} = {width}, got {value!r}")
    return int(value)


@register_pool("esimpool")
class ESimPool(AttentiveProbe):
    r"""SimPool without its linear maps: the normalised average looks at normalised positions.

    With one shared LayerNorm (LN), in each head's slice of the channels, d' = d / m wide::

        a_i = softmax_i( LN(x_i) . LN(GAP(X)) / sqrt d' )        z = sum_i a_i x_i

    Args:
        dim: number of channels, d.
        num_heads: m; must divide ``dim``. Left out, 12, or the largest divisor of 12 that does.

    Returns z ``(B, d)``; the map is ``(B, m, N)`` or ``(B, m, H, W)``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: the code of Psomas et al., "Attention, Please!", 2026.

    >>> z, a = ESimPool(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 12, 196]))
    """

    def __init__(self, dim: int, num_heads: int | None = None) -> None:
        super().__init__(dim)
        self.num_heads = heads_or(12, self.dim, num_heads)
        self.norm_patches = nn.LayerNorm(self.dim, eps=1e-6)

    def spec(self) -> Spec:
        return Spec(
            phi_q=Part(r"\mathrm{LN}(U)", self.norm_patches),
            phi_k=Part(r"\mathrm{LN}(X)", self.norm_patches),
            similarity=dot,
            attention=softmax((self.dim // self.num_heads) ** -0.5),
            heads=self.num_heads,
        )

    start = staticmethod(average)

    @property
    def look(self) -> Look:
        return Look(norm_keys=True, eps=self.norm_patches.eps)

    def queries(self, start: Tensor) -> Tensor:
        norm, heads = self.norm_patches, self.num_heads
        query = norm(start) * norm.weight * (self.dim // heads) ** -0.5
        # Each head's query is zero in the other heads' channels.
        return torch.diag_embed(query.unflatten(-1, (heads, -1)).mT).permute(0, 2, 3, 1).flatten(2)  # (B, m, d)

    def finish(self, sums: Tensor, start: Tensor) -> Tensor:
        return own_slices(sums)


class BatchNorm(nn.BatchNorm1d):
    """A BatchNorm over batch and positions of ``(B, N, d)`` whose statistics can be had without normalising.

    ``Pool.forward`` runs a pooling on copies of its tensors where those have another dtype than the computation;
    the running statistics must not be among them, or the copies would be updated.
    """

    def statistics(self, x: Tensor, dtype: torch.dtype, *, track: bool = False) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation ``(d)``: the batch's in training mode, else the running ones."""
        if not self.training:
            return self.running_mean.to(dtype), (self.running_var.to(dtype) + self.eps).rsqrt()
        count = x.shape[0] * x.shape[1]
        if count == 1:
            raise ValueError("x: expected more than one position in all while training, since a BatchNorm takes their "
                             f"variance, got shape {tuple(x.shape)}; call eval() for single ones")  # fmt: skip
        var, mean = torch.var_mean(x.to(dtype), (0, 1), correction=0)
        if track:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                for running, new in ((self.running_mean, mean), (self.running_var, var * (count / (count - 1)))):
                    running.lerp_(new.to(running.dtype), self.momentum)
        return mean, (var + self.eps).rsqrt()

    def normalized(self, x: Tensor, *, track: bool = False) -> Tensor:
        mean, rstd = self.statistics(x, x.dtype, track=track)
        x = (x - mean) * rstd
        return x * self.weight + self.bias if self.affine else x

    def without_statistics(self, tensors):
        """Of named tensors those that are not its running statistics."""
        return ((name, x) for name, x in tensors if x is not self.running_mean and x is not self.running_var)


@register_pool("aim")
class AIM(AttentiveProbe):
    r"""AIM's attentive probe: learned queries, keys and values of features that a BatchNorm has standardised.

    ::

        y_i = BN(x_i)                                            over batch and positions, nothing learned
        a_h = softmax_i( (W_K y_i)_h . q_h / sqrt(d / m) )       h = 1..m heads
        z   = [ sum_i a_hi (W_V y_i)_h ]  for all h, concatenated; the mean over the queries

    In training mode the statistics are the batch's, so that an image sees the others; in evaluation mode they are the
    running ones.

    Args:
        dim: number of channels, d.
        num_heads: m; must divide ``dim``. Left out, 16, or the largest divisor of 16 that does.
        num_queries: k.

    Returns z ``(B, d)``; the map is ``(B, k m, N)`` or ``(B, k m, H, W)``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``; ``num_queries`` is not an int of at least 1; one position in
            all while training.

    Source: El-Nouby et al., "Scalable Pre-training of Large Autoregressive Image Models", 2024; heads as in the code of
    "Attention, Please!". State-dict keys are the code's.

    >>> z, a = AIM(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 16, 196]))
    """

    def __init__(self, dim: int, num_heads: int | None = None, num_queries: int = 1) -> None:
        super().__init__(dim)
        self.num_heads = heads_or(16, self.dim, num_heads)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, check_int("num_queries", num_queries), self.dim))
        self.k, self.v = (nn.Linear(self.dim, self.dim, bias=False) for _ in "kv")
        self.bn = BatchNorm(self.dim, eps=1e-6, affine=False)

    def spec(self) -> Spec:
        return Spec(
            k=self.cls_token.shape[1],
            init=Part("U", lambda X: self.cls_token.expand(X.shape[0], -1, -1)),
            phi_k=Part(r"W_K \mathrm{BN}(X)", lambda X: self.k(self.bn.normalized(X))),
            similarity=dot,
            attention=softmax((self.dim // self.num_heads) ** -0.5),
            phi_v=Part(r"W_V \mathrm{BN}(X)", lambda X: self.v(self.bn.normalized(X))),
            heads=self.num_heads,
            reduce="mean",
        )

    def start(self, tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation ``(d)`` of the batch's positions, or the running ones."""
        return self.bn.statistics(tokens, dtype, track=True)

    # BN is (x - mean) * rstd: of the keys the mean adds the same to all logits, of the values it comes off the sum.

    def queries(self, start: tuple[Tensor, Tensor]) -> Tensor:
        queries = self.cls_token[0].unflatten(-1, (self.num_heads, -1)) * (self.dim // self.num_heads) ** -0.5
        _, rstd = start
        return on_keys_side(queries, by_heads(self.k.weight * rstd, self.num_heads)).flatten(0, 1).unsqueeze(0)

    def finish(self, sums: Tensor, start: tuple[Tensor, Tensor]) -> Tensor:
        mean, rstd = start
        sums = sums.unflatten(1, (-1, self.num_heads))  # (B, k, m, d)
        z = project_heads(sums, by_heads(self.v.weight * rstd, self.num_heads))
        return z.mean(1) - F.linear(mean * rstd, self.v.weight)

    def _tensors(self):
        return self.bn.without_statistics(super()._tensors())


@register_pool("coca")
class CoCa(AttentiveProbe):
    r"""CoCa's contrastive pooler: one learned query with several heads, which share their keys and values.

    ::

        q   = W_Q LN(u)                                 m heads, c wide; LN without bias
        a_h = softmax_i( (W_K x_i) . q_h / sqrt c )     W_K, W_V: d to c, the same for all heads
        z   = W_O [ sum_i a_hi W_V x_i ]  for all h, concatenated; no biases

    Args:
        dim: number of channels, d.
        num_heads: m.
        head_dim: c.

    Returns z ``(B, d)``; the map is ``(B, m, N)`` or ``(B, m, H, W)``.

    Raises:
        ValueError: ``num_heads`` or ``head_dim`` is not an int of at least 1.

    Source: Yu et al., "CoCa: Contrastive Captioners are Image-Text Foundation Models", 2022, as in the code of
    "Attention, Please!", which learns 196 queries and returns the first: the others change nothing and are not here.

    >>> z, a = CoCa(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 8, 196]))
    """

    def __init__(self, dim: int, num_heads: int = 8, head_dim: int = 64) -> None:
        super().__init__(dim)
        self.num_heads, self.head_dim = check_int("num_heads", num_heads), check_int("head_dim", head_dim)
        width = self.num_heads * self.head_dim
        self.query = nn.Parameter(torch.randn(1, 1, self.dim))
        self.norm = nn.LayerNorm(self.dim, bias=False)
        self.q, self.kv = nn.Linear(self.dim, width, bias=False), nn.Linear(self.dim, 2 * self.head_dim, bias=False)
        self.proj = nn.Linear(width, self.dim, bias=False)

    def spec(self) -> Spec:
        return Spec(
            init=Part("U", lambda X: self.query.expand(X.shape[0], -1, -1)),
            phi_q=Part(r"g_m(W_Q \mathrm{LN}(U))", lambda U: self.q(self.norm(U))),
            phi_k=Part("W_K X", lambda X: self.kv(X).chunk(2, -1)[0].repeat(1, 1, self.num_heads)),
            similarity=dot,
            attention=softmax(self.head_dim**-0.5),
            phi_v=Part("W_V X", lambda X: self.kv(X).chunk(2, -1)[1].repeat(1, 1, self.num_heads)),
            phi_u=Part("W_O g_m^{-1}(Z)", self.proj),
            heads=self.num_heads,
        )

    def queries(self, start: None) -> Tensor:
        queries = self.q(self.norm(self.query[0])).unflatten(-1, (self.num_heads, -1)) * self.head_dim**-0.5
        return on_keys_side(queries, self.kv.weight.chunk(2)[0].expand(self.num_heads, -1, -1))

    def finish(self, sums: Tensor, start: None) -> Tensor:
        return self.proj(project_heads(sums, self.kv.weight.chunk(2)[1].expand(self.num_heads, -1, -1)))


@register_pool("cae")
class CAE(AttentiveProbe):
    r"""CAE's attentive probe: a learned query u, and a LayerNorm each for the query, the keys and the values.

    ::

        z = W_O MHA( LN_q(u), LN_k(X), LN_v(X) )       m heads; W_Q, W_K, W_V without, W_O with bias

    u starts at zero, and with it the logits: attention is uniform until LN_q's bias has moved.

    Args:
        dim: number of channels, d.
        num_heads: m; must divide ``dim``. Left out, 8, or the largest divisor of 8 that does.

    Returns z ``(B, d)``; the map is ``(B, m, N)`` or ``(B, m, H, W)``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", 2024, as in the code of
    "Attention, Please!": no residual and no MLP.

    >>> z, a = CAE(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 8, 196]))
    """

    def __init__(self, dim: int, num_heads: int | None = None) -> None:
        super().__init__(dim)
        self.num_heads = heads_or(8, self.dim, num_heads)
        self.query_token = nn.Parameter(torch.zeros(1, 1, self.dim))
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(self.dim) for _ in "qkv")
        self.q, self.k, self.v = (nn.Linear(self.dim, self.dim, bias=False) for _ in "qkv")
        self.proj = nn.Linear(self.dim, self.dim)

    def spec(self) -> Spec:
        return Spec(
            init=Part("U", lambda X: self.query_token.expand(X.shape[0], -1, -1)),
            phi_q=Part(r"g_m(W_Q \mathrm{LN}_q(U))", lambda U: self.q(self.norm1_q(U))),
            phi_k=Part(r"g_m(W_K \mathrm{LN}_k(X))", lambda X: self.k(self.norm1_k(X))),
            similarity=dot,
            attention=softmax((self.dim // self.num_heads) ** -0.5),
            phi_v=Part(r"g_m(W_V \mathrm{LN}_v(X))", lambda X: self.v(self.norm1_v(X))),
            phi_u=Part("W_O g_m^{-1}(Z)", self.proj),
            heads=self.num_heads,
        )

    @property
    def look(self) -> Look:
        return Look(norm_keys=True, norm_values=True, eps=self.norm1_k.eps)

    def queries(self, start: None) -> Tensor:
        query = self.q(self.norm1_q(self.query_token[0])).unflatten(-1, (self.num_heads, -1))
        query = query * (self.dim // self.num_heads) ** -0.5
        return on_keys_side(query, by_heads(self.k.weight, self.num_heads), self.norm1_k)

    def finish(self, sums: Tensor, start: None) -> Tensor:
        return self.proj(project_heads(affine(sums, self.norm1_v), by_heads(self.v.weight, self.num_heads)))
