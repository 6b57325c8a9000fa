"""Group 4 of the paper's table: a class token in transformer blocks."""

import torch
from torch import Tensor, nn

from ..checks import check_int, check_number
from .attend import attend
from .base import Pool, check_heads, register_pool
from .framework import Part, Spec, dot, same, softmax

EPS = 1e-6  # of every LayerNorm


class Block(nn.Module):
    """A pre-norm transformer block whose queries are some rows of the sequence they attend to.

    ::

        u = u + g1 * (W_U attention(LN(u), LN(sequence)) + b)
        u = u + g2 * MLP(LN(u))                                 MLP: 4 d hidden units, GELU

    g1, g2: LayerScale ``(d)``, or 1. Forward takes rows u ``(B, n, d)`` and the sequence ``(B, N, d)``; returns the
    new rows and their attention ``(B, m, n, N)``.
    """

    def __init__(
        self, dim: int, num_heads: int, layer_scale: float | None = None, qkv_bias: bool = True, eps: float = EPS
    ) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim, bias=bias) for bias in (*[qkv_bias] * 3, True))
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma_1 = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
        self.gamma_2 = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))

    def forward(self, rows: Tensor, sequence: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.norm1(sequence)
        queries, keys, values = self.q(self.norm1(rows)), self.k(normed), self.v(normed)
        queries, keys, values = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        attention = (queries @ keys.mT * self.scale).softmax(-1)  # (B, m, n, N)
        return self.update((attention @ values).transpose(1, 2).flatten(2), rows), attention

    def look(self, token: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one row: it attends to itself and to positions, of which none is projected.

        Takes the row ``(B, 1, d)`` and positions ``(B, N, d)``; returns the new row and its attention to the
        positions alone, ``(B, m, N)``.
        """
        scale, shift = self.norm1.weight, self.norm1.bias
        own = self.norm1(token)  # (B, 1, d), key and value of the row itself
        query = self.q(own).unflatten(-1, (self.num_heads, -1)) * self.scale  # (B, 1, m, d/m)
        on_keys_side = torch.einsum("bnmc,mcd->bmd", query, self._of_heads(self.k))  # W_K^T q
        sums, attention, lse = attend(
            positions, on_keys_side * scale, norm_keys=True, norm_values=True, eps=self.norm1.eps
        )
        # Softmax over all is that over the positions and that of one logit against them together. What all keys have
        # in common, b_K, does not show.
        ahead = lse + on_keys_side @ shift - (on_keys_side * own).sum(-1)
        share = ahead.sigmoid().unsqueeze(-1)  # (B, m, 1), what the positions get
        values = share * (sums * scale + shift) + (1 - share) * own
        attended = torch.einsum("bmd,mcd->bmc", values, self._of_heads(self.v)).flatten(1)
        if self.v.bias is not None:
            attended = attended + self.v.bias + 0 * self.k.bias  # a gradient of 0
        return self.update(attended.unsqueeze(1), token), attention

    def _of_heads(self, layer: nn.Linear) -> Tensor:
        """The layer's weight, ``(m, d/m, d)``."""
        return layer.weight.unflatten(0, (self.num_heads, -1))

    def update(self, attended: Tensor, rows: Tensor) -> Tensor:
        """What follows the attention: both residuals."""
        rows = rows + _scaled(self.proj(attended), self.gamma_1)
        return rows + _scaled(self.fc2(nn.functional.gelu(self.fc1(self.norm2(rows)))), self.gamma_2)


class _ClassToken(Pool):
    """A class token, ``depth`` blocks, a final LayerNorm."""

    def __init__(self, dim: int, num_heads: int, depth: int, layer_scale: float | None) -> None:
        super().__init__(dim)
        check_heads(dim, num_heads)
        depth = check_int("depth", depth)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.blocks = nn.ModuleList(Block(dim, num_heads, layer_scale) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def start(self, tokens: Tensor) -> Tensor:
        """U^0, ``(B, 1, d)``."""
        return self.cls_token.expand(tokens.shape[0], -1, -1)

    def spec(self) -> Spec:
        block, num_heads = self.blocks, self.blocks[0].num_heads

        def normed_sequence(X: Tensor, U: Tensor, t: int) -> Tensor:
            return block[t].norm1(torch.cat([U, X], 1))

        return Spec(
            T=len(block),
            init=Part("U", self.start),
            phi_q=Part("g_m(W_Q U)", lambda U, t: block[t].q(block[t].norm1(U))),
            phi_k=Part("g_m(W_K X)", lambda X, U, t: block[t].k(normed_sequence(X, U, t))),
            similarity=dot,
            attention=softmax(block[0].scale),
            phi_v=Part("g_m(W_V X)", lambda X, U, t: block[t].v(normed_sequence(X, U, t))),
            phi_x=self._phi_x(),
            phi_u=Part(r"\mathrm{MLP}(W_U g_m^{-1}(Z))", lambda Z, U, t: block[t].update(Z, U)),
            heads=num_heads,
            post=Part("", lambda z: self.norm(z)),
        )

    def _phi_x(self) -> Part:
        raise NotImplementedError


@register_pool("vit")
class ViT(_ClassToken):
    """A ViT's class token U: it and the positions X attend to each other in transformer blocks.

    ::

        [U; X] = [U; X] + MSA(LN([U; X]))       m heads; W_Q, W_K, W_V, W_U with biases
        [U; X] = [U; X] + MLP(LN([U; X]))       for T blocks with weights of their own
        z      = LN(U)

    Args:
        dim: number of channels, d.
        num_heads: m; must divide ``dim``.
        depth: T, the number of blocks; the paper has one. The last one's new X is not needed and not computed.

    Returns z ``(B, d)``; the map ``(B, m, N)`` or ``(B, m, H, W)`` is the token's attention to the positions in the
    last block, without that to itself, scaled to sum one.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``; ``depth`` is not an int of at least 1.

    Source: Dosovitskiy et al., "An image is worth 16x16 words", 2021, equations 2-4; the paper's Table 1,
    group 4. The authors' release has one block of the attention only, without W_U, residuals and MLP.

    >>> import torch
    >>> z, a = ViT(8)(torch.randn(2, 6, 8), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 8]), torch.Size([2, 4, 6]))
    """

    group = 4

    def __init__(self, dim: int, num_heads: int = 4, depth: int = 1) -> None:
        super().__init__(dim, num_heads, depth, layer_scale=None)

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        sequence = torch.cat([self.start(tokens), tokens], 1)
        for block in self.blocks[:-1]:
            sequence, _ = block(sequence, sequence)
        token, attention = self.blocks[-1].look(sequence[:, :1], sequence[:, 1:])
        return self.norm(token.squeeze(1)), attention

    def _phi_x(self) -> Part:
        def phi_x(X: Tensor, U: Tensor, t: int) -> Tensor:
            sequence = torch.cat([U, X], 1)
            return self.blocks[t](sequence, sequence)[0][:, 1:]

        return Part(r"\mathrm{MLP}(\mathrm{MSA}(X))", phi_x)


@register_pool("cait")
class CaiT(_ClassToken):
    """CaiT's class attention: a class token U attends to itself and to positions X that stay as they are.

    ::

        U = U + g1 * W_U attention(LN(U), LN([U; X]))    m heads; W_Q, W_K, W_V, W_U with biases
        U = U + g2 * MLP(LN(U))                          for T blocks with weights of their own
        z = LN(U)

    g1, g2: LayerScale, learned.

    Args:
        dim: number of channels, d.
        num_heads: m; must divide ``dim``.
        depth: T, the number of blocks.
        layer_scale: where g1 and g2 start. CaiT has 0.1 up to 18 layers and 1e-5 from 24 on; with 1e-5 and one layer
            z is nearly the same for all images until the scale has grown.

    Returns z ``(B, d)``; the map ``(B, m, N)`` or ``(B, m, H, W)`` is the token's attention to the positions in the
    last block, without that to itself, scaled to sum one.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``; ``depth`` is not an int of at least 1.

    Source: Touvron et al., "Going deeper with image transformers", 2021, section 3.2, equations 5-9, with
    depth 2; the paper's Table 1, group 4. Heads and depth 1 are those of the authors' release, which starts its
    LayerScale at 1e-5, and give the parameters of the paper's Table 8 (12 d^2 and biases), except on ResNet-18, where
    depth 2 does.

    >>> import torch
    >>> z, a = CaiT(8)(torch.randn(2, 6, 8), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 8]), torch.Size([2, 4, 6]))
    """

    group = 4

    def __init__(self, dim: int, num_heads: int = 4, depth: int = 1, layer_scale: float = 0.1) -> None:
        super().__init__(dim, num_heads, depth, check_number("layer_scale", layer_scale, above_zero=True))

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        token = self.start(tokens)
        for block in self.blocks:
            token, attention = block.look(token, tokens)
        return self.norm(token.squeeze(1)), attention

    def _phi_x(self) -> Part:
        return Part("X", same)


def _scaled(x: Tensor, gamma: Tensor | None) -> Tensor:
    return x if gamma is None else x * gamma
