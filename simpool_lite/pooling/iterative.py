"""Group 2 of the paper's table: k vectors that compete for the positions, found by iterating.

With one vector nothing competes: the weights are uniform.
"""

import math
from typing import get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_int, check_number
from .base import Pool, register_pool
from .framework import (
    Part,
    Reduce,
    Spec,
    dot,
    hard_assignment,
    negative_distance,
    reduce_vectors,
    same,
    sinkhorn,
    softmax_over_vectors,
)


class _Vectors(Pool):
    """A pooling into k vectors, reduced to one."""

    def __init__(self, dim: int, k: int, reduce: Reduce, iterations: int) -> None:
        super().__init__(dim)
        self.k, self.iterations = check_int("k", k), check_int("iterations", iterations)
        self.reduce = check_choice("reduce", reduce, get_args(Reduce))
        self.out_dim = k * dim if reduce == "concat" else dim

    def extra_repr(self) -> str:
        return f"k={self.k}, reduce={self.reduce}, iterations={self.iterations}"


@register_pool("kmeans")
class KMeans(_Vectors):
    """k-means: U are the centres, moved to the average of the positions nearest to them.

    ::

        a_ij = 1 / n_j if u_j is the nearest centre of x_i, else 0      (n_j: members of j)
        u_j  = sum_i a_ij x_i                                           for T iterations

    The start is mean + std * noise of an image's positions, channel by channel; the noise ``(k, d)`` is drawn
    once, at construction. A centre without members stays where it is, and its map is uniform.

    Args:
        dim: number of channels, d.
        k: number of centres.
        reduce: from k vectors to one: "max", "mean", or "concat".
        iterations: T.

    Returns z ``(B, d)``, ``(B, k * d)`` for "concat"; the map is ``(B, k, N)`` or ``(B, k, H, W)``, uniform over
    the members of a centre.

    Raises:
        ValueError: an argument has a value that is not accepted.

    Source: Lloyd, "Least squares quantization in PCM", 1982; the paper's Table 1, group 2, where U^0 is random
    without saying how and the maximum over k = 3 vectors is taken on their class logits.

    >>> import torch
    >>> z, a = KMeans(8, k=2)(torch.randn(2, 6, 8), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 8]), torch.Size([2, 2, 6]))
    """

    group = 2
    EPS = 1e-6  # keeps the gradient of a standard deviation finite where all positions are equal

    def __init__(self, dim: int, k: int = 3, reduce: Reduce = "max", iterations: int = 10) -> None:
        super().__init__(dim, k, reduce, iterations)
        self.register_buffer("noise", torch.randn(k, dim))

    def start(self, tokens: Tensor) -> Tensor:
        """U^0, ``(B, k, d)``."""
        variance, mean = torch.var_mean(tokens, 1, correction=0, keepdim=True)
        return mean + (variance + self.EPS).sqrt() * self.noise

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        start = self.start(tokens)
        with torch.no_grad():  # which centre is nearest has no gradient
            # Distances do not see a common shift, but their rounding errors do: measure from the mean.
            mean = tokens.mean(1, keepdim=True)
            centred, centres = tokens - mean, start - mean
            latest = centred.new_zeros(tokens.shape[0], self.k, tokens.shape[1])  # weights when there were members
            numbers = torch.arange(self.k, device=tokens.device)
            for _ in range(self.iterations):
                # The least |x - u|^2 is the largest x . u - |u|^2 / 2.
                closeness = centred @ centres.mT - centres.square().sum(-1).unsqueeze(1) / 2  # (B, N, k)
                members = (closeness.argmax(-1, keepdim=True) == numbers).to(tokens.dtype)  # one-hot, under vmap, too
                members = members.masked_fill(closeness.isnan(), math.nan).mT  # nothing is nearest to NaN
                count = members.sum(-1, keepdim=True)
                attention = members / count.clamp_min(1)
                latest = torch.where(count == 0, latest, attention)
                centres = torch.where(count == 0, centres, attention @ centred)
        centres = torch.where(latest.any(-1, keepdim=True), latest @ tokens, start)
        return reduce_vectors(centres, self.reduce), attention

    def spec(self) -> Spec:
        return Spec(
            k=self.k,
            T=self.iterations,
            init=Part(r"\mathrm{random}", self.start),
            phi_q=Part("U", same),
            phi_k=Part("X", same),
            similarity=negative_distance,
            attention=hard_assignment,
            phi_x=Part("X", same),
            phi_u=Part("Z", lambda Z, U, A: torch.where((A[:, 0] != 0).any(-1, keepdim=True), Z, U)),
            reduce=self.reduce,
        )


@register_pool("otk")
class OTK(_Vectors):
    """Optimal transport kernel pooling: positions are sent to k learned references U at the least cost.

    ::

        S_ij = -|x_i - u_j|^2
        A    = Sinkhorn( e^(S / eps) )    rows (positions) with sum k/p, columns (references) with sum 1
        z_j  = sum_i a_ij x_i

    A is k times the entropic transport plan between uniform masses.

    Args:
        dim: number of channels, d.
        k: number of references.
        reduce: from k vectors to one: "max", "mean", or "concat".
        eps: strength of the entropy, above 0; None is 2 sqrt d (see below).
        iterations: of Sinkhorn's algorithm.

    Returns z ``(B, d)``, ``(B, k * d)`` for "concat"; the map is A, ``(B, k, N)`` or ``(B, k, H, W)``.

    Raises:
        ValueError: an argument has a value that is not accepted.

    Source: Mialon et al., "A trainable optimal transport embedding for feature aggregation and its
    relationship to attention", 2021, section 3; the paper's Table 1, group 2. The values psi(X) are X:
    the embedding of a linear kernel, as in the authors' release. |x_i|^2 and |u_j|^2 are what Sinkhorn's
    scaling of rows and columns takes away, so the plan is that of the dot product with eps / 2, and 2 sqrt d
    is the scale of attention. The release has the dot product with eps = 25 and leaves out the scaling of
    the rows: a softmax over the positions.

    >>> import torch
    >>> z, a = OTK(8, k=2)(torch.randn(2, 6, 8), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 8]), torch.Size([2, 2, 6]))
    """

    group = 2

    def __init__(
        self, dim: int, k: int = 3, reduce: Reduce = "max", eps: float | None = None, iterations: int = 10
    ) -> None:
        super().__init__(dim, k, reduce, iterations)
        self.eps = 2 * math.sqrt(dim) if eps is None else check_number("eps", eps, above_zero=True)
        self.references = nn.Parameter(torch.empty(k, dim).uniform_(-(k**-0.5), k**-0.5))

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        references = self.references
        half_norms = references.square().sum(-1, keepdim=True) / 2  # (k, 1)
        # -|x - u|^2 = 2 (x . u - |u|^2 / 2) - |x|^2, and the softmax over the vectors drops |x|^2.
        log_plan = (references @ tokens.mT - half_norms) * (2 / self.eps)  # (B, k, N)
        for _ in range(self.iterations):
            log_plan = log_plan.log_softmax(1).log_softmax(2)
        attention = log_plan.exp()
        return reduce_vectors(attention @ tokens, self.reduce), attention

    def spec(self) -> Spec:
        return Spec(
            k=self.k,
            init=Part("U", lambda X: self.references.expand(X.shape[0], -1, -1)),
            phi_q=Part("U", same),
            phi_k=Part("X", same),
            similarity=negative_distance,
            attention=sinkhorn(self.eps, self.iterations),
            phi_v=Part(r"\psi(X)", same),
            reduce=self.reduce,
        )


@register_pool("slot")
class Slot(_Vectors):
    """Slot Attention: k slots U compete for the positions and are updated by a recurrent network.

    ::

        Q = W_Q LN(U)    K = W_K LN(X)    V = W_V LN(X)
        A = softmax over the slots of K^T Q / sqrt d (+ 1e-8), then l1 over the positions
        Z = V A          U = GRU(Z, U);  U = U + MLP(LN(U))             for T iterations

    U^0 = mu + sigma * noise with mu and sigma learned; the noise ``(k, d)`` is drawn once, at construction.

    Args:
        dim: number of channels, d.
        k: number of slots.
        reduce: from k vectors to one: "max", "mean", or "concat".
        iterations: T.

    Returns z ``(B, d)``, ``(B, k * d)`` for "concat"; the map is A, ``(B, k, N)`` or ``(B, k, H, W)``.

    Raises:
        ValueError: an argument has a value that is not accepted.

    Source: Locatello et al., "Object-centric learning with slot attention", 2020, algorithm 1; the paper's
    Table 1, group 2. Layers and parameters (11 d^2 and biases; the MLP has at least 128 hidden units) are those of
    the authors' release, which draws new noise at every call; its names are kept in the state dict.

    >>> import torch
    >>> z, a = Slot(8)(torch.randn(2, 6, 8), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 8]), torch.Size([2, 3, 6]))
    """

    group = 2
    EPS = 1e-8

    def __init__(self, dim: int, k: int = 3, reduce: Reduce = "max", iterations: int = 3) -> None:
        super().__init__(dim, k, reduce, iterations)
        self.slots_mu = nn.Parameter(torch.randn(1, 1, dim))
        self.slots_logsigma = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, 1, dim)))
        self.register_buffer("noise", torch.randn(k, dim))
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.gru = nn.GRUCell(dim, dim)
        hidden = max(dim, 128)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.norm_input, self.norm_slots, self.norm_pre_ff = (nn.LayerNorm(dim) for _ in range(3))

    def start(self, tokens: Tensor) -> Tensor:
        """U^0, ``(B, k, d)``."""
        return (self.slots_mu + self.slots_logsigma.exp() * self.noise).expand(tokens.shape[0], -1, -1)

    def update(self, weighted: Tensor, slots: Tensor) -> Tensor:
        """phi_U: MLP(GRU(Z)), ``(B, k, d)``."""
        slots = self.gru(weighted.flatten(0, 1), slots.flatten(0, 1)).unflatten(0, (-1, self.k))
        return slots + self.mlp(self.norm_pre_ff(slots))

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        slots = self.start(tokens)
        normed = self.norm_input(tokens)  # (B, N, d)
        for _ in range(self.iterations):
            # A few queries meet many positions: (W_K x + b) . q = x . (W_K^T q) + b . q, and as an image's weights
            # have the sum one, sum_i a_i (W_V x_i + b) = W_V (sum_i a_i x_i) + b.
            queries = self.to_q(self.norm_slots(slots)) * self.dim**-0.5
            logits = (queries @ self.to_k.weight) @ normed.mT + (queries @ self.to_k.bias).unsqueeze(-1)
            attention = logits.softmax(1) + self.EPS  # (B, k, N)
            attention = attention / attention.sum(-1, keepdim=True)
            slots = self.update(self.to_v(attention @ normed), slots)
        return reduce_vectors(slots, self.reduce), attention

    def spec(self) -> Spec:
        return Spec(
            k=self.k,
            T=self.iterations,
            init=Part(r"\mathrm{random}", self.start),
            phi_q=Part("W_Q U", lambda U: self.to_q(self.norm_slots(U))),
            phi_k=Part("W_K X", lambda X: self.to_k(self.norm_input(X))),
            similarity=dot,
            attention=softmax_over_vectors(self.dim**-0.5, self.EPS),
            phi_v=Part("W_V X", lambda X: self.to_v(self.norm_input(X))),
            phi_x=Part("X", same),
            phi_u=Part(r"\mathrm{MLP}(\mathrm{GRU}(Z))", lambda Z, U: self.update(Z, U)),
            reduce=self.reduce,
        )
