"""Whole networks with each pooling: images per second of a ResNet-50 and a ViT-S at 224 x 224 pixels."""

from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simpool_lite import create_model, list_pools

from .measure import ratios, take_turns
from .poolings import inference

BACKBONES, BATCH = ("resnet50", "vit_small_patch16_224"), 8


def training_step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward and backward as a function without arguments."""

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad()

    return step


def measure(turns: int, device: torch.device) -> pd.DataFrame:
    """One row per network, task and pooling."""
    tables = []
    for backbone in BACKBONES:
        torch.manual_seed(0)
        images, labels = torch.randn(BATCH, 3, 224, 224, device=device), torch.randint(1000, (BATCH,), device=device)
        models = {name: create_model(backbone, name, 1000).to(device) for name in list_pools()}
        tasks = {
            "forward": {name: inference(model.eval(), images) for name, model in models.items()},
            "training step": {name: training_step(model.train(), images, labels) for name, model in models.items()},
        }
        for task, candidates in tasks.items():
            seconds = take_turns(candidates, turns, f"{backbone}, {task}")
            table = pd.DataFrame({"images per second": BATCH / seconds.median(), "times GAP": ratios(seconds, "gap")})
            print(f"\n{backbone}, batches of {BATCH}, {task}\n{table.round(3).to_string()}", flush=True)
            tables.append(table.rename_axis("pooling").reset_index().assign(backbone=backbone, task=task))
    return pd.concat(tables, ignore_index=True)
