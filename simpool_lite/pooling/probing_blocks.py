"""Attentive probing, continued: heads with layers of their own before or after the attention.

As in ``probing``, methods and settings are those of the code of Psomas et al., "Attention, Please!", ICLR 2026.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_int
from .attend import attend, transformed
from .attention_pool import Look, affine, by_heads, on_keys_side, project_heads
from .base import register_pool
from .framework import Part, Spec, dot, same, softmax
from .probing import AttentiveProbe, BatchNorm, ProbingPool, heads_or
from .transformer import Block


class MLP(nn.Module):
    """Two layers with a GELU between them, 4 d hidden units."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Latent(AttentiveProbe):
    """What SigLIP's and JEPA's poolings share: a learned query u, m heads, W_Q, W_K, W_V, W_O with biases, an MLP."""

    def __init__(self, dim: int, num_heads: int | None, default: int) -> None:
        super().__init__(dim)
        self.num_heads = heads_or(default, self.dim, num_heads)
        self.q, self.kv, self.proj = (nn.Linear(self.dim, width * self.dim) for width in (1, 2, 1))
        self.mlp = MLP(self.dim)

    def asked(self, u: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        """The heads' queries ``(1, m, d)``, for u ``(1, 1, d)``."""
        queries = self.q(u[0]).unflatten(-1, (self.num_heads, -1)) * (self.dim // self.num_heads) ** -0.5
        return on_keys_side(queries, by_heads(self.kv.weight.chunk(2)[0], self.num_heads), norm)

    def joined(self, sums: Tensor, norm: nn.LayerNorm | None) -> Tensor:
        """W_O of the heads' values, ``(B, m, d)`` to ``(B, d)``."""
        z = project_heads(affine(sums, norm), by_heads(self.kv.weight.chunk(2)[1], self.num_heads))
        key_bias, value_bias = self.kv.bias.chunk(2)  # the keys' adds the same to all logits: a gradient of zero
        return self.proj(z + value_bias + 0 * key_bias)

    def keys_and_values(self, norm) -> dict[str, Part]:
        name = "X" if norm is same else r"\mathrm{LN}(X)"
        return {
            "phi_k": Part(f"g_m(W_K {name})", lambda X: self.kv(norm(X)).chunk(2, -1)[0]),
            "phi_v": Part(f"g_m(W_V {name})", lambda X: self.kv(norm(X)).chunk(2, -1)[1]),
        }


@register_pool("siglip")
class SigLIP(_Latent):
    r"""SigLIP's head: a learned query u attends to the positions; an MLP follows.

    ::

        y = W_O MHA(u, X)        m heads; W_Q, W_K, W_V, W_O with biases
        z = y + MLP(y)

    Args:
        dim: number of channels, d.
        num_heads: m; must divide ``dim``. Left out, 8, or the largest divisor of 8 that does.

    Returns z ``(B, d)``; the map is ``(B, m, N)`` or ``(B, m, H, W)``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: Zhai et al., "Scaling Vision Transformers", 2022 (multi-head attention pooling), and Zhai et al., "Sigmoid
    Loss for Language Image Pre-Training", 2023; as in the code of "Attention, Please!" there is no LayerNorm before the
    MLP. State-dict keys are those of timm's AttentionPoolLatent.

    >>> z, a = SigLIP(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 8, 196]))
    """

    def __init__(self, dim: int, num_heads: int | None = None) -> None:
        super().__init__(dim, num_heads, default=8)
        std = self.dim**-0.5
        self.latent = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, self.dim), std=std, a=-2 * std, b=2 * std))

    def spec(self) -> Spec:
        return Spec(
            init=Part("U", lambda X: self.latent.expand(X.shape[0], -1, -1)),
            phi_q=Part("g_m(W_Q U)", self.q),
            similarity=dot,
            attention=softmax((self.dim // self.num_heads) ** -0.5),
            **self.keys_and_values(same),
            phi_u=Part(r"\mathrm{MLP}(W_O g_m^{-1}(Z))", lambda Z: self._after(self.proj(Z))),
            heads=self.num_heads,
        )

    def queries(self, start: None) -> Tensor:
        return self.asked(self.latent, None)

    def finish(self, sums: Tensor, start: None) -> Tensor:
        return self._after(self.joined(sums, None))

    def _after(self, y: Tensor) -> Tensor:
        return y + self.mlp(y)


@register_pool("jepa")
class JEPA(_Latent):
    r"""V-JEPA's attentive probe: a learned query u attends to normalised positions in one transformer block.

    ::

        y = u + W_O MHA(u, LN(X))        m heads; W_Q, W_K, W_V, W_O with biases
        z = y + MLP(LN(y))

    Args:
        dim: number of channels, d.
        num_heads: m; must divide ``dim``. Left out, 16, or the largest divisor of 16 that does.

    Returns z ``(B, d)``; the map is ``(B, m, N)`` or ``(B, m, H, W)``.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: Bardes et al., "Revisiting Feature Prediction for Learning Visual Representations from Video", 2024; heads
    as in the code of "Attention, Please!". Matrices start at 0.02 times noise, W_O and the MLP's second at that over
    sqrt 2.

    >>> z, a = JEPA(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 16, 196]))
    """

    def __init__(self, dim: int, num_heads: int | None = None) -> None:
        super().__init__(dim, num_heads, default=16)
        self.query_tokens = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, self.dim), std=0.02))
        self.norm1, self.norm2 = nn.LayerNorm(self.dim), nn.LayerNorm(self.dim)
        for layer in (self.q, self.kv, self.proj, self.mlp.fc1, self.mlp.fc2):
            last = layer in (self.proj, self.mlp.fc2)
            nn.init.trunc_normal_(layer.weight, std=0.02 * (0.5**0.5 if last else 1))
            nn.init.zeros_(layer.bias)

    def spec(self) -> Spec:
        return Spec(
            init=Part("U", lambda X: self.query_tokens.expand(X.shape[0], -1, -1)),
            phi_q=Part("g_m(W_Q U)", self.q),
            similarity=dot,
            attention=softmax((self.dim // self.num_heads) ** -0.5),
            **self.keys_and_values(self.norm1),
            phi_u=Part(r"\mathrm{MLP}(U + W_O g_m^{-1}(Z))", lambda Z, U: self._after(U + self.proj(Z))),
            heads=self.num_heads,
        )

    @property
    def look(self) -> Look:
        return Look(norm_keys=True, norm_values=True, eps=self.norm1.eps)

    def queries(self, start: None) -> Tensor:
        return self.asked(self.query_tokens, self.norm1)

    def finish(self, sums: Tensor, start: None) -> Tensor:
        return self._after(self.query_tokens[0] + self.joined(sums, self.norm1))

    def _after(self, y: Tensor) -> Tensor:
        return y + self.mlp(self.norm2(y))


@register_pool("clip")
class CLIP(ProbingPool):
    r"""CLIP's attention pooling: the average attends to itself and to the positions, which know where they are.

    ::

        y_0 = GAP(LN(X)) + p_0        y_i = LN(x_i) + p_i           p: learned, one for each position
        z   = W_O MHA(y_0, [y_0; Y])                                m heads; W_Q, W_K, W_V, W_O with biases

    Args:
        dim: number of channels, d.
        feat_size: the grid (H, W) that the position embedding is made for, or the side of a square one. On other grids
            it is interpolated (bicubic).
        num_heads: m; must divide ``dim``. Left out, 4, or the largest divisor of 4 that does.

    Returns z ``(B, d)``; the map ``(B, m, N)`` or ``(B, m, H, W)`` is the average's attention to the positions, without
    that to itself, scaled to sum one. Tokens that come without their ``grid`` are on ``feat_size`` if they are as many,
    else on a square.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``; ``feat_size`` is neither an int of at least 1 nor a pair;
            tokens without their ``grid`` are neither as many as ``feat_size`` has nor a square number.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, as in the
    code of "Attention, Please!", which adds the LayerNorm. State-dict keys are those of timm's AttentionPool2d.

    >>> z, a = CLIP(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 4, 196]))
    """

    needs_grid = True

    def __init__(self, dim: int, feat_size: int | tuple[int, int] = 14, num_heads: int | None = None) -> None:
        super().__init__(dim)
        self.num_heads = heads_or(4, self.dim, num_heads)
        sides = feat_size if isinstance(feat_size, (tuple, list)) and len(feat_size) == 2 else (feat_size,) * 2
        self.feat_size = tuple(check_int("feat_size", side) for side in sides)
        self.norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.pos_embed = nn.Parameter(torch.empty(math.prod(self.feat_size) + 1, self.dim))
        self.qkv, self.proj = nn.Linear(self.dim, 3 * self.dim), nn.Linear(self.dim, self.dim)
        for weight in (self.pos_embed, self.qkv.weight):
            nn.init.trunc_normal_(weight, std=self.dim**-0.5)
        nn.init.zeros_(self.qkv.bias)

    def _read(self, x: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, tuple[int, int] | None]:
        if grid is None and isinstance(x, Tensor) and x.ndim == 3:
            side = math.isqrt(x.shape[1])
            if x.shape[1] == math.prod(self.feat_size):
                grid = self.feat_size
            elif side and x.shape[1] == side * side:
                grid = (side, side)
        return super()._read(x, grid)

    def placed(self, X: Tensor, grid: tuple[int, int]) -> Tensor:
        """Y: normalised positions and where they are."""
        places = self.pos_embed[1:]
        if tuple(grid) != self.feat_size:
            places = places.mT.unflatten(-1, self.feat_size).unsqueeze(0)
            places = F.interpolate(places, tuple(grid), mode="bicubic", antialias=True)[0].flatten(1).mT
        return self.norm(X) + places

    def start(self, X: Tensor) -> Tensor:
        """y_0, ``(B, 1, d)``."""
        return self.norm(X).mean(1, keepdim=True) + self.pos_embed[0]

    def spec(self) -> Spec:
        def layer(which: int, x: Tensor) -> Tensor:
            return self.qkv(x).chunk(3, -1)[which]

        def sequence(X: Tensor, U: Tensor, grid: tuple[int, int]) -> Tensor:
            return torch.cat([U, self.placed(X, grid)], 1)

        return Spec(
            init=Part(r"\mathrm{GAP}(\mathrm{LN}(X)) + p_0", self.start),
            phi_q=Part("g_m(W_Q U)", lambda U: layer(0, U)),
            phi_k=Part(r"g_m(W_K (\mathrm{LN}(X) + P))", lambda X, U, grid: layer(1, sequence(X, U, grid))),
            similarity=dot,
            attention=softmax((self.dim // self.num_heads) ** -0.5),
            phi_v=Part(r"g_m(W_V (\mathrm{LN}(X) + P))", lambda X, U, grid: layer(2, sequence(X, U, grid))),
            phi_u=Part("W_O g_m^{-1}(Z)", self.proj),
            heads=self.num_heads,
        )

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        own = self.start(tokens)  # a query, and a key and value beside the positions
        wq, wk, wv = self.qkv.weight.chunk(3)
        bq, bk, bv = self.qkv.bias.chunk(3)
        query = F.linear(own, wq, bq).unflatten(-1, (self.num_heads, -1)) * (self.dim // self.num_heads) ** -0.5
        on_keys_side = torch.einsum("bnmc,mcd->bmd", query, by_heads(wk, self.num_heads))
        sums, attention, lse = attend(self.placed(tokens, grid), on_keys_side, norm_keys=False, norm_values=False)
        share = (lse - (on_keys_side * own).sum(-1)).sigmoid().unsqueeze(-1)  # what the positions get, (B, m, 1)
        values = share * sums + (1 - share) * own
        z = torch.einsum("bmd,mcd->bmc", values, by_heads(wv, self.num_heads)).flatten(1)
        return self.proj(z + bv + 0 * bk), attention  # b_K does not show: it has a gradient, of zero


@register_pool("dinovit")
class DinoViT(ProbingPool):
    r"""A transformer block of DINOv2, then the average.

    ::

        y_i = x_i + W_O MSA(LN(X))_i          m heads; W_Q, W_K, W_V without, W_O with bias
        z   = GAP( y_i + MLP(LN(y_i)) )

    Args:
        dim: number of channels, d.
        num_heads: m; must divide ``dim``. Left out, 8, or the largest divisor of 8 that does.

    Returns z ``(B, d)``; the map ``(B, m, N)`` or ``(B, m, H, W)`` is the attention that a position receives, averaged
    over those that attend. With N queries an image it costs what a block of a transformer costs.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.

    Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2024, for the block; the
    pooling is that of the code of "Attention, Please!".

    >>> z, a = DinoViT(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 8, 196]))
    """

    def __init__(self, dim: int, num_heads: int | None = None) -> None:
        super().__init__(dim)
        self.block = Block(self.dim, heads_or(8, self.dim, num_heads), qkv_bias=False, eps=1e-5)

    def spec(self) -> Spec:
        """Every position is a pooled vector, k = N; the map is the average of theirs."""
        block = self.block
        return Spec(
            init=Part("X", same),
            phi_q=Part(r"g_m(W_Q \mathrm{LN}(U))", lambda U: block.q(block.norm1(U))),
            phi_k=Part(r"g_m(W_K \mathrm{LN}(X))", lambda X: block.k(block.norm1(X))),
            similarity=dot,
            attention=softmax(block.scale),
            phi_v=Part(r"g_m(W_V \mathrm{LN}(X))", lambda X: block.v(block.norm1(X))),
            phi_u=Part(r"\mathrm{MLP}(U + W_O g_m^{-1}(Z))", lambda Z, U: block.update(Z, U)),
            heads=block.num_heads,
            reduce="mean",
        )

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        rows, attention = self.block(tokens, tokens)
        return rows.mean(1), attention.mean(2)


@register_pool("abmilp")
class ABMILP(ProbingPool):
    r"""Attention-based multiple-instance learning: positions talk to each other, then a small network weighs them.

    ::

        y_i = W_O MSA(X)_i                              one head; W_Q, W_K, W_V without, W_O with bias
        a   = softmax_i( w . tanh(W y_i + b) )
        z   = sum_i a_i y_i

    Args:
        dim: number of channels, d.

    Returns z ``(B, d)``; the map is ``(B, 1, N)`` or ``(B, 1, H, W)``.

    Source: Ilse et al., "Attention-based Deep Multiple Instance Learning", 2018, equations 7 and 8; Rymarczyk et al.,
    "Kernel Self-Attention for Weakly-supervised Image Classification using Deep Multiple Instance Learning", 2021, for
    the self-attention; settings as in the code of "Attention, Please!", but for its bias beside w, which a softmax does
    not see.

    >>> z, a = ABMILP(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 1, 196]))
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.q, self.k, self.v = (nn.Linear(self.dim, self.dim, bias=False) for _ in "qkv")
        self.proj, self.hidden = nn.Linear(self.dim, self.dim), nn.Linear(self.dim, self.dim)
        self.weight = nn.Linear(self.dim, 1, bias=False)

    def mixed(self, X: Tensor) -> Tensor:
        """Y, ``(B, N, d)``."""
        return self.proj(F.scaled_dot_product_attention(self.q(X), self.k(X), self.v(X)))

    def spec(self) -> Spec:
        return Spec(
            init=Part("U", lambda X: self.weight.weight.expand(X.shape[0], 1, -1)),
            phi_k=Part(r"\tanh(W \mathrm{MSA}(X))", lambda X: self.hidden(self.mixed(X)).tanh()),
            similarity=dot,
            attention=softmax(),
            phi_v=Part(r"\mathrm{MSA}(X)", self.mixed),
        )

    # Positions pass two matrices, not five. (W_Q x_i) . (W_K x_j) = (W_K^T W_Q x_i) . x_j; W_O W_V comes after the
    # weighted sums s_i, y_i = W_O W_V s_i + b: one matrix with W for the hidden layer, and once an image for z.

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        joined = self.proj.weight @ self.v.weight
        queries = tokens @ (self.q.weight.mT @ self.k.weight)
        if not torch.compiler.is_compiling() and transformed():  # torch's fused attention has no forward mode
            sums = (queries @ tokens.mT * self.dim**-0.5).softmax(-1) @ tokens
        else:
            sums = F.scaled_dot_product_attention(queries, tokens, tokens)
        hidden = F.linear(sums, self.hidden.weight @ joined, self.hidden(self.proj.bias))
        attention = self.weight(hidden.tanh()).mT.softmax(-1)  # (B, 1, N)
        return F.linear((attention @ sums).squeeze(1), joined, self.proj.bias), attention


@register_pool("dolg")
class DOLG(ProbingPool):
    r"""DOLG's local branch: directions of projected positions, weighted by their own score.

    ::

        y_i = BN(W x_i + b)                             over batch and positions, with weight and bias
        a_i = softplus( w . ReLU(y_i) + c )
        z   = (1/p) sum_i a_i y_i / |y_i|

    In training mode BN's statistics are the batch's, so that an image sees the others; in evaluation mode they are the
    running ones.

    Args:
        dim: number of channels, d.

    Returns z ``(B, d)``; the map ``(B, 1, N)`` or ``(B, 1, H, W)`` is a, scaled to sum one.

    Raises:
        ValueError: one position in all while training.

    Source: Yang et al., "DOLG: Single-Stage Image Retrieval with Deep Orthogonal Fusion of Local and Global Features",
    2021, the local branch without its dilated convolutions, as in the code of "Attention, Please!".

    >>> z, a = DOLG(384)(torch.randn(2, 196, 384), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 384]), torch.Size([2, 1, 196]))
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.conv1, self.bn, self.conv2 = nn.Linear(self.dim, self.dim), BatchNorm(self.dim), nn.Linear(self.dim, 1)
        for layer in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out")

    def spec(self) -> Spec:
        def projected(X: Tensor) -> Tensor:
            return self.bn.normalized(self.conv1(X))

        return Spec(
            init=Part("U", lambda X: self.conv2.weight.expand(X.shape[0], 1, -1)),
            phi_k=Part(r"\mathrm{ReLU}(\mathrm{BN}(W X))", lambda X: projected(X).relu()),
            similarity=dot,
            attention=Part(r"\zeta(S) / p", lambda S: F.softplus(S + self.conv2.bias) / S.shape[-1]),
            phi_v=Part(r"\eta^2(\mathrm{BN}(W X))", lambda X: F.normalize(projected(X), dim=-1)),
        )

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        y = self.bn.normalized(self.conv1(tokens), track=True)
        attention = F.softplus(self.conv2(y.relu())).mT  # (B, 1, N)
        return (attention @ F.normalize(y, dim=-1)).squeeze(1) / tokens.shape[1], attention

    def _tensors(self):
        return self.bn.without_statistics(super()._tensors())
