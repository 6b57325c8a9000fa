"""Poolings on tensors: what SimPool costs beside average pooling and beside other implementations.

Forward in inference, and a training step (forward and backward, to the positions and to the parameters) with the peak
of the memory that it allocates, the positions included, for several shapes (B, N, d) of the positions.
"""

from collections.abc import Callable
from math import isqrt

import pandas as pd
import torch
from timm.layers import AttentionPoolLatent
from timm.layers.other_pool import SimPool1d, SimPool2d
from torch import Tensor, nn

from simpool_lite import create_pool

from .measure import peak_memory, ratios, take_turns

SHAPES = ((64, 196, 384), (64, 49, 2048), (64, 256, 768), (32, 1024, 768), (1, 196, 384))
GAP, OURS, COMPILED, TIMM = "GAP", "SimPool", "SimPool, compiled", "timm SimPool1d"


class PaperSimPool(nn.Module):
    """The formula as the paper writes it: every position is normalised and projected."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.wq, self.wk = (nn.Linear(dim, dim, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        v = self.norm(x)
        q, k = self.wq(x.mean(1, keepdim=True)), self.wk(v)
        a = (q @ k.mT / x.shape[-1] ** 0.5).softmax(-1)
        return (a @ v).squeeze(1)


class OneQueryAttention(nn.Module):
    """torch's MultiheadAttention with the average as its query."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, 1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.mean(1, keepdim=True), x, x, need_weights=False)[0].squeeze(1)


class OnMap(nn.Module):
    """A pooling of maps ``(B, d, H, W)``, given positions ``(B, N, d)``; the map is a view of them."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x.mT.unflatten(2, (isqrt(x.shape[1]), -1)))


def implementations(dim: int) -> dict[str, nn.Module]:
    """All of them, each on positions ``(B, N, d)``."""
    return {
        GAP: create_pool("gap", dim),
        OURS: create_pool("simpool", dim),
        COMPILED: torch.compile(create_pool("simpool", dim), dynamic=False),
        "the paper's formula": PaperSimPool(dim),
        "the paper's formula, compiled": torch.compile(PaperSimPool(dim), dynamic=False),
        TIMM: SimPool1d(dim),
        "timm SimPool2d": OnMap(SimPool2d(dim)),
        "timm AttentionPoolLatent": AttentionPoolLatent(dim, num_heads=1),
        "torch MultiheadAttention": OneQueryAttention(dim),
    }


def inference(pool: nn.Module, x: Tensor) -> Callable[[], None]:
    """A forward pass as a function without arguments."""

    @torch.inference_mode()
    def forward() -> None:
        pool(x)

    return forward


def training_step(pool: nn.Module, x: Tensor) -> Callable[[], None]:
    """Forward and backward, to the positions and to the parameters."""
    x = x.clone().requires_grad_()
    weights = torch.randn(x.shape[0], x.shape[2], device=x.device)

    def step() -> None:
        pool(x).backward(weights)
        x.grad = None
        pool.zero_grad()

    return step


def measure(turns: int, device: torch.device) -> pd.DataFrame:
    """One row per shape, task and implementation."""
    tables = []
    for shape in SHAPES:
        torch.manual_seed(0)
        torch.compiler.reset()
        x = torch.randn(shape, device=device)
        pools = {name: pool.to(device) for name, pool in implementations(shape[2]).items()}
        for task, prepare in (("forward", inference), ("training step", training_step)):
            candidates = {name: prepare(pool, x) for name, pool in pools.items()}
            seconds = take_turns(candidates, turns, f"{shape}, {task}")
            table = pd.DataFrame({"ms": 1e3 * seconds.median(), "times GAP": ratios(seconds, GAP)})
            table["faster than timm"] = 1 / ratios(seconds, TIMM)
            if task == "training step":
                table["memory, times GAP"] = {
                    name: x.nbytes + peak_memory(step, device) for name, step in candidates.items()
                }
                table["memory, times GAP"] /= table.loc[GAP, "memory, times GAP"]
            print(f"\n(B, N, d) = {shape}, {task}\n{table.round(2).to_string()}", flush=True)
            tables.append(table.rename_axis("pooling").reset_index().assign(shape=str(shape), task=task))
    return pd.concat(tables, ignore_index=True)
