"""Group 1 of the paper's table: simple pooling, no parameters or few, one step."""

from torch import Tensor

from .base import Pool, register_pool


@register_pool("gap")
class GAP(Pool):
    """Global average pooling: z = (1/p) sum_i x_i.

    Args:
        dim: number of channels, d.

    Returns z ``(B, d)``; the map is uniform. Source: Lin et al., "Network in Network", 2013; the
    paper's Table 1, group 1.

    >>> import torch
    >>> z, a = GAP(2)(torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]), return_attention=True)
    >>> z.tolist(), a.tolist()
    ([[2.0, 2.0]], [[[0.5, 0.5]]])
    """

    def pool_tokens(self, tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, Tensor]:
        batch, positions, _ = tokens.shape
        return tokens.mean(1), tokens.new_full((batch, 1, positions), 1 / positions)
