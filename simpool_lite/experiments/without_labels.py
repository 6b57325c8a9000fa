"""The small counterpart of the paper's Tables 3 to 6: networks pre-trained by DINO, beside supervised and untrained ones.

The images are photo-digits of 32 pixels whose digit nearly fills them, without fragments of others. ``clutter`` says how
much of the photograph there is behind it: at 0 a flat colour, at 1 the photograph. Labels are only looked at to measure,
and to train the supervised twins.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from ..datasets import LabelledImages, load_data
from ..files import write_atomically
from ..measure.attention import map_figures
from ..measure.discovery import dino_seg_boxes, lost_boxes
from ..measure.knn import knn_accuracy
from ..measure.localisation import box_accuracy, corloc
from ..measure.retrieval import mean_average_precision
from ..models import create_model, patch_features, save_model
from ..training.dino import pretrain
from ..training.probes import probe
from ..training.supervised import accelerator_on, train
from .store import recorded_results

SIDE = 32
IMAGES = {"size": SIDE, "object_size": (20, 24), "distractors": 0}
BANK, QUERIES = 4096, 2048  # images that vote, or are ranked; images that are classified, or rank
CROPS = {"global_size": 24, "local_size": 12, "local_crops": 2, "local_scale": (0.15, 0.4), "blur": 0.5}
HEAD = {"outputs": 256, "hidden": 256, "bottleneck": 64}
NETWORKS: dict[str, dict] = {
    "GAP": {"backbone": "convnet_micro", "pool": "gap"},
    "SimPool": {"backbone": "convnet_micro", "pool": "simpool"},
    "SimPool, gamma 2": {"backbone": "convnet_micro", "pool": "simpool", "pool_kwargs": {"gamma": 2.0}},
    "ViT, CLS": {"backbone": "vit_micro", "pool": "cls"},
    "ViT, GAP": {"backbone": "vit_micro", "pool": "gap"},
    "ViT, SimPool": {"backbone": "vit_micro", "pool": "simpool"},
}
OPTIONS = {
    "convnet_micro": {"width": 16},
    "vit_micro": {"depth": 2, "img_size": SIDE, "dynamic_img_size": True},
}
TRAININGS = ("none", "dino", "supervised")


@dataclass(frozen=True)
class Run:
    """One network of the experiment.

    Args:
        network: one of :data:`NETWORKS`.
        training: "none", "dino" or "supervised".
        seed: of the initialisation, the order of the images and the crops.
        clutter: how much of the photograph is behind the digit, 0 to 1.
        images: how many different ones to train on.
        epochs: passes over them.
        batch_size: images per step.
        learning_rate: after the warm-up; for the supervised twin the maximum of the cycle.
        momentum: of the teacher at the start.
        center_momentum: of the centre.
        temperature: the teacher's, at the start and at the end of its warm-up.
        smallest_crop: the least share of an image in a large crop.
        measured_on: the split that the figures are of: "test", or "val" for choices.
    """

    network: str
    training: str = "dino"
    seed: int = 0
    clutter: float = 1.0
    images: int = 16384
    epochs: int = 4
    batch_size: int = 128
    learning_rate: float = 2e-3
    momentum: float = 0.99
    center_momentum: float = 0.9
    temperature: tuple[float, float] = (0.04, 0.04)
    smallest_crop: float = 0.4
    measured_on: str = "test"

    def name(self) -> str:
        """A file name that says all of it."""
        values = (str(value).replace(" ", "") for value in asdict(self).values())
        return "_".join(values).replace(",", "-").replace("(", "").replace(")", "")


@cache
def images(split: str, count: int, clutter: float) -> LabelledImages:
    """Images of the experiment; "train" has none of the glyphs and photograph regions of "val"."""
    return load_data("photo-digits", split, num_images=count, clutter=clutter, without_val=True, **IMAGES)


def make(run: Run, num_classes: int = 0) -> nn.Module:
    """The untrained network of a run; the final norm comes after the pooling, as in the published DINO models."""
    set_seed(run.seed)
    network = NETWORKS[run.network]
    return create_model(num_classes=num_classes, norm_first=False, **network, **OPTIONS[network["backbone"]])


def train_run(run: Run, device: str = "auto", progress: bool = True) -> tuple[nn.Module, list[dict[str, float]]]:
    """The network of a run after its training, without a classifier, and its curve.

    The curve of DINO has k-NN on "val" after each epoch: ``knn_digit``, ``knn_photo``.
    """
    if run.training == "none":
        return make(run).eval(), []
    data, val = images("train", run.images, run.clutter), images("val", 1024, run.clutter)

    def neighbours(model: nn.Module) -> dict[str, float]:
        votes, asked = (features(model, part) for part in (images("train", 2048, run.clutter), val))
        return _knn(votes, images("train", 2048, run.clutter), asked, val)

    settings = {"epochs": run.epochs, "batch_size": run.batch_size, "learning_rate": run.learning_rate}
    settings |= {"seed": run.seed, "progress": progress}
    if run.training == "dino":
        return pretrain(
            make(run),
            data,
            device,
            momentum=run.momentum,
            center_momentum=run.center_momentum,
            temperature=run.temperature,
            weight_decay=(0.04, 0.04),
            freeze_last_layer=0,
            crops=CROPS | {"global_scale": (run.smallest_crop, 1.0)},
            head=HEAD,
            after_epoch=neighbours,
            **settings,
        )
    with accelerator_on(device) as accelerator:
        model, curve, _ = train(
            make(run, 10), data, accelerator, weight_decay=0.05, measure=lambda _: {}, description="labels", **settings
        )
    model.reset_classifier(0)
    return model.eval(), curve


@torch.no_grad()
def features(model: nn.Module, data: LabelledImages) -> Tensor:
    """Pooled features ``(n, d)``."""
    model.eval()
    return torch.cat([model(batch).cpu() for batch in batches(data)])


def batches(data: LabelledImages, size: int = 256) -> Iterable[Tensor]:
    """All images in order, ``(B, 3, H, W)``."""
    return (data.__getitems__(list(range(at, min(at + size, len(data)))))[0] for at in range(0, len(data), size))


def pixels(data: LabelledImages) -> Tensor:
    """The images themselves as features ``(n, 3 * H * W)``."""
    return torch.cat([batch.flatten(1) for batch in batches(data)])


def _knn(votes: Tensor, bank: LabelledImages, asked: Tensor, queries: LabelledImages) -> dict[str, float]:
    return {
        f"knn_{name[:-1]}": knn_accuracy(votes, getattr(bank, name), asked, getattr(queries, name))
        for name in ("digits", "photos")
    }


def measure_features(votes: Tensor, bank: LabelledImages, asked: Tensor, queries: LabelledImages) -> dict[str, float]:
    """k-NN, retrieval and linear probing of features ``(n, d)`` of the bank and ``(m, d)`` of the queries."""
    figures = _knn(votes, bank, asked, queries)
    figures["map_digit"] = mean_average_precision(asked[:512], queries.digits[:512], votes, bank.digits)
    held_out = len(votes) // 4  # the rate is chosen on these
    parts = (votes[held_out:], bank.digits[held_out:]), (votes[:held_out], bank.digits[:held_out])
    parts = [(z[:, None], y) for z, y in (*parts, (asked, queries.digits))]
    scores = probe(*parts, {"linear": {"pool": "gap"}}, seeds=1, epochs=10, progress=False)
    return figures | {"linear_digit": float(scores.top1[0])}


@torch.no_grad()
def measure_maps(model: nn.Module, queries: LabelledImages) -> dict[str, float]:
    """Where a network looks (mass, AP, boxes) and what can be cut out (DINO-seg, LOST); without a map LOST alone."""
    model.eval()
    boxes, first = queries.boxes, next(iter(batches(queries, 2)))
    tokens = torch.cat([patch_features(model, batch)[0] for batch in batches(queries)])
    grid = patch_features(model, first)[1]
    centred = tokens - tokens.mean((0, 1))  # LOST wants products of both signs, and ReLUs leave only one
    found = {"lost": corloc(lost_boxes(centred, grid, SIDE, k=max(1, len(tokens[0]) // 8)), boxes)}
    if model.create_config["pool"] == "gap":  # the same weight everywhere
        return found
    maps = torch.cat([model.attention(batch).mean(1) for batch in batches(queries)])
    found |= map_figures(maps, queries.masks)
    found["dino_seg"] = corloc(dino_seg_boxes(maps, SIDE), boxes)
    return found | {"max_box_acc_v2": box_accuracy(maps, boxes, SIDE)["max_box_acc_v2"]}


def measure(run: Run, model: nn.Module) -> dict[str, float]:
    """All figures of a trained network, in percent; mass and AP from 0 to 1."""
    bank, queries = images("train", BANK, run.clutter), images(run.measured_on, QUERIES, run.clutter)
    found = measure_features(features(model, bank), bank, features(model, queries), queries)
    return found | measure_maps(model, queries)


def record_run(run: Run, folder: Path, keep_model: bool = False, device: str = "auto", progress: bool = True) -> dict:
    """Train, measure and write ``<name>.parquet``, a curve beside it; what is there already is only read.

    A run that collapses is recorded, too, with the reason.
    """
    path = folder / f"{run.name()}.parquet"
    if path.is_file():
        return pd.read_parquet(path).iloc[0].to_dict()
    started = time.perf_counter()
    row, curve = asdict(run) | {"temperature": str(run.temperature), "status": "ok", "reason": ""}, []
    try:
        model, curve = train_run(run, device, progress)
        row |= measure(run, model)
        if keep_model:
            save_model(model, path.with_suffix(".safetensors"))
    except (RuntimeError, FloatingPointError) as error:
        row |= {"status": "failed", "reason": str(error)}
    row["seconds"] = time.perf_counter() - started
    if curve:
        with write_atomically(folder / "curves" / path.name) as temporary:
            pd.DataFrame(curve).assign(run=run.name()).to_parquet(temporary, index=False)
    with write_atomically(path) as temporary:
        pd.DataFrame([row]).to_parquet(temporary, index=False)
    return row


def recorded(folder: Path | None = None) -> Path:
    """The folder of the records: the reader's, or the one that ships with the repository."""
    return folder or recorded_results() / "without-labels"
