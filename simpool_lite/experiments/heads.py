"""Runs of the regime "head": poolings on the features of a frozen trunk, many at once."""

import hashlib
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
from ..training.probes import Head, accuracy, measure_head, train_heads
from .config import RunConfig
from .run import load_split, make_model
from .store import Store, make_record

LEADERS = 5  # heads that a line names


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

    What has been trained is in the store's ``unfinished/`` after each epoch, and the same call goes on from there.

    Args:
        configs: of the heads.
        labels: per head the labels of its record, see :func:`~simpool_lite.experiments.store.make_record`.
        trunk_file: the trained network that gives the features; None for a published one, whose features are kept in
            the cache folder.
        store_folder: of the :class:`~simpool_lite.experiments.store.Store` for the records.
        device: "auto" is cuda, then mps, then cpu.
        progress: of a published network, print after each epoch which heads are best on images of "val".
    """
    store, config, device = Store(store_folder), configs[0], resolve_device(device)
    val = None
    try:
        data = load_split(config, config.measured_on)
        if trunk_file is None:
            train, test = (published_features(config, split, device) for split in ("train", config.measured_on))
            val = published_features(config, "val", device) if progress else None
        else:
            trunk = load_model(trunk_file).to(device)
            train, test = (frozen_features(trunk, part, device) for part in (load_split(config, "train"), data))
    except Exception as error:
        _fail(configs, store, labels, error)
        return
    _train_and_record(configs, store, labels, train, test, data, val)


def published_features(config: RunConfig, split: str, device: torch.device, progress: bool = False) -> Features:
    """The features of a split by a network that a head's configuration takes as it comes, kept in the cache folder."""
    data = load_split(config, split)
    set_seed(config.trunk_config().seed)  # of what has no published weights
    return cached_features(make_model(config.trunk_config(), data), data, device=device.type, progress=progress)


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
    val: Features | None,
) -> None:
    started, config = time.perf_counter(), configs[0]
    name = hashlib.sha256("".join(config.hash() for config in configs).encode()).hexdigest()[:12]
    checkpoint = store.folder / "unfinished" / f"{name}.pt"

    def report(curves: list[list[float]]) -> None:
        found = sorted(zip((accuracy(head, val) for head in heads), labels, strict=True), key=lambda one: -one[0])
        best = ", ".join(f"{label['variant']} {top1:.1f}" for top1, label in found[:LEADERS])
        print(
            f"{labels[0]['experiment']}, seed {config.seed}, epoch {len(curves[0])} of {config.epochs}: "
            f"best of {len(heads)} on val: {best} %",
            flush=True,
        )

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
            after_epoch=None if val is None else report,
            checkpoint=checkpoint,
            progress=False,
        )
    except Exception as error:
        checkpoint.unlink(missing_ok=True)
        if len(configs) == 1:
            _fail(configs, store, labels, error)
        else:  # whose fault it is, is seen when each is alone
            for one in zip(configs, labels, strict=True):
                _train_and_record([one[0]], store, [one[1]], train, test, data, val)
        return
    seconds, records = (time.perf_counter() - started) / len(heads), []
    for config, head, curve, label in zip(configs, heads, curves, labels, strict=True):
        if not math.isfinite(sum(curve)):
            error = FloatingPointError(f"the training loss is {curve[-1]}; lower the rate")
            records.append(_failure(config, label, error))
            continue
        correct, loss, maps = measure_head(head, test.tokens, test.labels, test.grid)
        measured = {"top1": 100 * correct.sum().item() / len(correct), "loss": loss, "correct": correct}
        measured |= map_figures(maps, data.masks)
        measured |= {"parameters": sum(p.numel() for p in head.parameters()), "seconds": seconds}
        records.append(make_record(config, measured, **label))
    for record in records:  # all at once: the others of a job that is cut would have to begin anew
        store.add(record)
    checkpoint.unlink(missing_ok=True)


def _head(config: RunConfig, features: Tensor, num_classes: int) -> Head:
    set_seed(config.seed)
    options = {**config.model_options, **config.pool_kwargs}
    return Head(config.pool, features.shape[-1], num_classes, **options).to(features.device)


def _fail(configs: list[RunConfig], store: Store, labels: list[dict], error: Exception) -> None:
    for config, label in zip(configs, labels, strict=True):
        store.add(_failure(config, label, error))


def _failure(config: RunConfig, label: dict, error: Exception) -> dict:
    return make_record(config, {}, **label, status="failed", reason=f"{type(error).__name__}: {error}")
