"""Pooling heads on cached features, as in probing: the network is frozen, its features are read from memory.

An epoch of training pooling and classifier with the same loader, batch and optimiser. The features have 100 positions
of 1,280 channels, as those of MobileNet or EfficientNet at 320 x 320 pixels.
"""

from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from .measure import ratios, take_turns
from .poolings import GAP, implementations

IMAGES, POSITIONS, CHANNELS, CLASSES, BATCH = 256, 100, 1280, 100, 64


def epoch(pool: nn.Module, features: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """An epoch of training as a function without arguments."""
    head = nn.Sequential(pool, nn.Linear(CHANNELS, CLASSES)).to(features.device)
    optimizer = torch.optim.AdamW(head.parameters(), 1e-3, fused=True)
    loader = DataLoader(TensorDataset(features, labels), BATCH, shuffle=True)

    def train() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(head(x), y).backward()
            optimizer.step()

    return train


def measure(turns: int, device: torch.device) -> pd.DataFrame:
    """One row per head."""
    torch.manual_seed(0)
    torch.compiler.reset()
    features = torch.randn(IMAGES, POSITIONS, CHANNELS, device=device)
    labels = torch.randint(CLASSES, (IMAGES,), device=device)
    heads = {name: epoch(pool, features, labels) for name, pool in implementations(CHANNELS).items()}
    seconds = take_turns(heads, turns, "cached features")
    table = pd.DataFrame({"images per second": IMAGES / seconds.median(), "times GAP": ratios(seconds, GAP)})
    shape = f"N = {POSITIONS}, d = {CHANNELS}"
    print(
        f"\nTraining a head on cached features, {shape}, batches of {BATCH}\n{table.round(2).to_string()}", flush=True
    )
    return table.rename_axis("pooling").reset_index()
