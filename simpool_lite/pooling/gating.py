"""Group 3 of the paper's table: gates that scale channels or positions, then the average."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_int
from .base import Pool, register_pool, to_map, to_tokens
from .framework import Part, Spec, dot, gap, same, sigmoid, uniform


@register_pool("se")
class SE(Pool):
    """Squeeze-and-Excitation, then the average: z = sigma(MLP(u)) * u, u = GAP(X).

    The gate q = sigma(MLP(u)) scales channels, which the average over positions does not see: it is applied
    to u.

    Args:
        dim: number of channels, d.
        reduction: the MLP has d / reduction hidden units, at least one.

    Returns z ``(B, d)``; it weighs no positions, so the map is None.

    Raises:
        ValueError: ``reduction`` is not an int of at least 1.

    Source: Hu et al., "Squeeze-and-excitation networks", 2018, equations 2-4; the paper's Table 1, group 3.
    The authors' release adds X to the gated X and a ReLU before the average.

    >>> import torch
    >>> SE(16)(torch.randn(2, 16, 3, 4)).shape
    torch.Size([2, 16])
    """

    group = 3

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__(dim)
        self.mlp = _mlp(dim, reduction, bias=True)

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, None]:
        average = tokens.mean(1)
        return self.mlp(average).sigmoid() * average, None

    def spec(self) -> Spec:
        return Spec(
            init=_GAP,
            phi_q=Part(r"\sigma(\mathrm{MLP}(U))", lambda U: self.mlp(U).sigmoid()),
            attention=uniform,
            phi_v=_GATED,
        )


@register_pool("cbam")
class CBAM(Pool):
    """Convolutional block attention, then the average: a gate for channels, then one for positions.

    ::

        q = sigma(MLP(u)), u = GAP(X)        channels; MLP without biases
        s = X^T q / d                        the gated channels' average, a map
        a = sigma(conv7(s)) / p              positions
        z = sum_i a_i (q * x_i)

    Args:
        dim: number of channels, d.
        reduction: the MLP has d / reduction hidden units, at least one.

    Returns z ``(B, d)``; the map ``(B, 1, N)`` or ``(B, 1, H, W)`` is a, scaled to sum one.

    Raises:
        ValueError: ``reduction`` is not an int of at least 1; tokens came without their ``grid``.

    Source: Woo et al., "CBAM: Convolutional block attention module", 2018, equations 1-3; the paper's Table 1,
    group 3. As the paper writes it u and s are averages only, where CBAM also has maxima; the 1/d that the
    paper puts into q stands in s only, so that V = diag(q) X is CBAM's. The convolution has a bias instead of a
    batch norm, which would couple images. The authors' release returns the gated map without pooling it.

    >>> import torch
    >>> z, a = CBAM(16)(torch.randn(2, 6, 16), grid=(2, 3), return_attention=True)
    >>> z.shape, a.shape
    (torch.Size([2, 16]), torch.Size([2, 1, 6]))
    """

    group = 3
    needs_grid = True

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__(dim)
        self.mlp = _mlp(dim, reduction, bias=False)
        self.conv = nn.Conv2d(1, 1, 7, padding=3)

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        gate = self.mlp(tokens.mean(1)).sigmoid()  # q, (B, d)
        average = tokens @ (gate / self.dim).unsqueeze(-1)  # s, (B, N, 1)
        logits = to_tokens(self.conv(to_map(average, grid)))
        attention = (logits.sigmoid() / tokens.shape[1]).mT  # (B, 1, N)
        return gate * (attention @ tokens).squeeze(1), attention

    def spec(self) -> Spec:
        def attention(S: Tensor, grid: tuple[int, int]) -> Tensor:
            return sigmoid()(self.conv(S[:, 0].unflatten(-1, grid)).flatten(2).unsqueeze(1))

        return Spec(
            init=_GAP,
            phi_q=Part(r"\sigma(\mathrm{MLP}(U)) / d", lambda U: self.mlp(U).sigmoid() / self.dim),
            phi_k=Part("X", same),
            similarity=dot,
            attention=Part(r"\sigma(\mathrm{conv}_7(S)) / p", attention),
            phi_v=Part(r"\mathrm{diag}(d q) X", lambda X, Q: self.dim * Q * X),
        )


@register_pool("ge")
class GatherExcite(Pool):
    """Gather-Excite, then the average: z = (1/p) sum_i g_i * x_i with gates g for channels and positions.

    ::

        parametric:       g = sigma( up( MLP( conv(X) ) ) )    conv: 3 x 3, stride 2, each channel its own
        parameter-free:   g_i = sigma(u), u = GAP(X)

    up repeats a gate over the 2 x 2 positions it was gathered from (nearest neighbour); the MLP works on
    channels, with d / 16 hidden units.

    Args:
        dim: number of channels, d.
        parametric: the gate with a convolution and an MLP; False has no parameters and needs no grid.

    Returns z ``(B, d)``; gates differ by channel, so the map is None.

    Raises:
        ValueError: parametric, and tokens came without their ``grid``.

    Source: Hu et al., "Gather-Excite: Exploiting feature context in CNNs", 2018, sections 3-4 (GE-theta plus
    with extent 2, and GE-theta minus with global extent); the paper's Figure 3 and Tables 2 and 8, not
    Table 1. The parametric layers are those of the authors' release, whose parameters the paper's Table 8
    counts; the release adds X and a ReLU before the average, and a batch norm, here a bias, as it would couple
    images.

    >>> import torch
    >>> GatherExcite(16)(torch.randn(2, 16, 3, 4)).shape
    torch.Size([2, 16])
    """

    group = 3

    def __init__(self, dim: int, parametric: bool = True) -> None:
        super().__init__(dim)
        self.needs_grid = parametric
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim) if parametric else None
        self.mlp = _mlp(dim, 16, bias=True) if parametric else None

    def gate(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """g of every position, ``(B, N, d)``."""
        gathered = self.conv(to_map(tokens, grid))
        excited = to_map(self.mlp(to_tokens(gathered)), tuple(gathered.shape[2:]))
        return to_tokens(F.interpolate(excited, grid)).sigmoid()

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, None]:
        if self.conv is None:
            average = tokens.mean(1)
            return average.sigmoid() * average, None
        return (self.gate(tokens, grid) * tokens).mean(1), None

    def spec(self) -> Spec:
        if self.conv is None:
            return Spec(init=_GAP, phi_q=Part(r"\sigma(U)", lambda U: U.sigmoid()), attention=uniform, phi_v=_GATED)
        gated = Part(
            r"\sigma(\mathrm{up}(\mathrm{MLP}(\mathrm{conv}_3(X)))) \odot X",
            lambda X, grid: self.gate(X, grid) * X,
        )
        return Spec(attention=uniform, phi_v=gated)


_GAP = Part(r"\mathrm{GAP}(X)", gap)
_GATED = Part(r"\mathrm{diag}(q) X", lambda X, Q: Q * X)


def _mlp(dim: int, reduction: int, bias: bool) -> nn.Sequential:
    hidden = max(1, dim // check_int("reduction", reduction))
    return nn.Sequential(nn.Linear(dim, hidden, bias=bias), nn.ReLU(), nn.Linear(hidden, dim, bias=bias))
