"""Runs of the regime "head": poolings on the features of a frozen trunk, many at once."""

import math
import time
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from ..datasets import LabelledImages
from ..device import resolve_device
from ..measure.attention import map_figures
from ..models import load_model
from ..training.features import Features, cached_features, features_in_batches
from ..training.probes import Head, measure_head, train_heads
from .config import RunConfig
from .run import load_split, make_model
from .store import Store, make_record


def share_a_pass(config: RunConfig) -> str:
    """Heads for which this is the same are trained on the same batches: all but the head and its rate agree."""
    values = vars(config) | {"pool": "", "pool_kwargs": {}, "model_options": {}, "learning_rate": 0}
    return str(values)


def record_heads(
    configs: list[RunConfig],
    labels: list[dict],
    trunk_file: str | Path | None,
    store_folder: str | Path,
    device: str = "auto",
    progress: bool = True,
) -> None:
    """Train the heads of configurations that :func:`share_a_pass` and write a record of each.

    Args:
        configs: of the heads.
        labels: per head the labels of its record, see :func:`~simpool_lite.experiments.store.make_record`.
        trunk_file: the trained network that gives the features; None for a published one, whose features are kept in
            the cache folder.
        store_folder: of the :class:`~simpool_lite.experiments.store.Store` for the records.
        device: "auto" is cuda, then mps, then cpu.
        progress: show a bar over the epochs.
    """
    store, config, device = Store(store_folder), configs[0], resolve_device(device)
    try:
        data = load_split(config, config.measured_on)
        set_seed(config.trunk_config().seed)  # of what has no published weights
        trunk = make_model(config.trunk_config(), data) if trunk_file is None else load_model(trunk_file)
        train, test = (
            cached_features(trunk, part, device=device.type, progress=progress)
            if trunk_file is None
            else frozen_features(trunk.to(device), part, device)
            for part in (load_split(config, "train"), data)
        )
    except Exception as error:
        _fail(configs, store, labels, error)
        return
    _train_and_record(configs, store, labels, train, test, data, progress)


def frozen_features(trunk: nn.Module, data: LabelledImages, device: torch.device) -> Features:
    """The features of all images, on the device."""
    found = list(features_in_batches(trunk, data, "tokens", 256, device))
    return Features(torch.cat([tokens for tokens, _ in found]), torch.as_tensor(data.targets).to(device), found[0][1])


def _train_and_record(
    configs: list[RunConfig],
    store: Store,
    labels: list[dict],
    train: Features,
    test: Features,
    data: LabelledImages,
    progress: bool,
) -> None:
    started, config = time.perf_counter(), configs[0]
    try:
        heads = [_head(config, train.tokens, len(data.classes)) for config in configs]
        curves = train_heads(
            heads,
            [config.learning_rate for config in configs],
            train.tokens,
            train.labels,
            train.grid,
            epochs=config.epochs,
            batch_size=config.batch_size,
            weight_decay=config.weight_decay,
            seed=config.seed,
            progress=progress,
        )
    except Exception as error:
        if len(configs) == 1:
            _fail(configs, store, labels, error)
        else:  # whose fault it is, is seen when each is alone
            for one in zip(configs, labels, strict=True):
                _train_and_record([one[0]], store, [one[1]], train, test, data, progress)
        return
    seconds = (time.perf_counter() - started) / len(heads)
    for config, head, curve, label in zip(configs, heads, curves, labels, strict=True):
        if not math.isfinite(sum(curve)):
            _fail([config], store, [label], FloatingPointError(f"the training loss is {curve[-1]}; lower the rate"))
            continue
        correct, loss, maps = measure_head(head, test.tokens, test.labels, test.grid)
        measured = {"top1": 100 * correct.sum().item() / len(correct), "loss": loss, "correct": correct}
        measured |= map_figures(maps, data.masks)
        measured |= {"parameters": sum(p.numel() for p in head.parameters()), "seconds": seconds}
        store.add(make_record(config, measured, **label))


def _head(config: RunConfig, features: Tensor, num_classes: int) -> Head:
    set_seed(config.seed)
    options = {**config.model_options, **config.pool_kwargs}
    return Head(config.pool, features.shape[-1], num_classes, **options).to(features.device)


def _fail(configs: list[RunConfig], store: Store, labels: list[dict], error: Exception) -> None:
    for config, label in zip(configs, labels, strict=True):
        reason = f"{type(error).__name__}: {error}"
        store.add(make_record(config, {}, **label, status="failed", reason=reason))
