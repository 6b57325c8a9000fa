"""Many heads on the same features: 32 of SimPool against one, and the whole family of attentive probes at once.

`simpool_lite.training.probes.train_heads` reads each batch once for all heads. The ratios are of training alone, 32
heads and one in turns. The family is the linear probe, SimPool and the eleven attentive probes, eight of each, in one
pass over 8,192 images.
"""

from collections.abc import Callable
from time import perf_counter

import pandas as pd
import torch

from simpool_lite import list_pools
from simpool_lite.training.probes import Head, train_heads

from .measure import ratios, take_turns

SHAPES, HEADS, IMAGES = ((100, 96), (196, 384)), 32, 1024
FAMILY_IMAGES, FAMILY_SHAPE, FAMILY_SEEDS = 8192, (100, 96), 8
CLASSES, BATCH = 10, 128


def training(pools: list[str], images: int, shape: tuple[int, int], device: torch.device) -> Callable:
    """A pass of training over images, one head for each pooling that is named, as a function without arguments."""
    torch.manual_seed(0)
    features, labels = torch.randn(images, *shape, device=device), torch.randint(CLASSES, (images,), device=device)
    side = int(shape[0] ** 0.5)
    made = [Head(pool, shape[1], CLASSES, **({"feat_size": side} if pool == "clip" else {})) for pool in pools]
    heads = [head.to(device) for head in made]
    how = {"epochs": 1, "batch_size": BATCH, "weight_decay": 0.05, "seed": 0, "progress": False}
    return lambda: train_heads(heads, [1e-3] * len(heads), features, labels, (side, side), **how)


def measure(turns: int, device: torch.device) -> pd.DataFrame:
    """One row per shape of the features, and one for the family, which is trained once."""
    rows = []
    for shape in SHAPES:
        candidates = {"one": training(["simpool"], IMAGES, shape, device)}
        candidates["many"] = training(["simpool"] * HEADS, IMAGES, shape, device)
        seconds = take_turns(candidates, turns, f"stacked heads, N = {shape[0]}, d = {shape[1]}")
        row = {"heads": f"{HEADS} of SimPool", "positions": shape[0], "channels": shape[1], "images": IMAGES}
        rows.append(row | {"seconds": seconds["many"].median(), "times one head": ratios(seconds, "one")["many"]})
    family = ["gap", "simpool", *list_pools(family="probing")]
    train = training(family * FAMILY_SEEDS, FAMILY_IMAGES, FAMILY_SHAPE, device)
    started = perf_counter()
    train()
    row = {"heads": f"{len(family)} methods, {FAMILY_SEEDS} of each", "positions": FAMILY_SHAPE[0]}
    rows.append(row | {"channels": FAMILY_SHAPE[1], "images": FAMILY_IMAGES, "seconds": perf_counter() - started})
    table = pd.DataFrame(rows)
    print(f"\nTraining heads together, batches of {BATCH}\n{table.round(2).to_string(index=False)}", flush=True)
    return table
