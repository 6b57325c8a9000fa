"""The small counterpart of the paper's Tables 3 to 6: networks trained by DINO, beside supervised and untrained ones.

The images are photo-digits of 32 pixels whose digit nearly fills them, without fragments of others. ``clutter`` says
how much of the photograph there is behind it: at 0 a flat colour, at 1 the photograph. Labels are only looked at to
measure, and to train the supervised twins. CIFAR-10, whose objects fill the image, is a second set for two ConvNets.
"""

import copy
import hashlib
import json
import math
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import Tensor, nn

from ..datasets import LabelledImages, load_data
from ..files import repository_root, write_atomically
from ..measure.attention import map_figures
from ..measure.discovery import dino_seg_boxes, lost_boxes
from ..measure.knn import knn_accuracy
from ..measure.localisation import box_accuracy, corloc
from ..measure.retrieval import mean_average_precision
from ..measure.segmentation import linear_segmentation
from ..models import create_model, load_model, patch_features, save_model
from ..training.dino import pretrain
from ..training.probes import probe
from ..training.supervised import accelerator_on, train
from .store import recorded_results
from .tables import read_tables

FOLDER = "without-labels"  # of a store
SIDE = 32
IMAGES = {"size": SIDE, "object_size": (20, 24), "distractors": 0}
BANK, QUERIES = 4096, 1024  # images that vote, or are ranked; images that are classified
WATCHED = 2048, 1024  # the same after each epoch, on the splits train and val
RANKING, CUT = 256, 512  # of the queries: those that rank the bank, and those whose boxes are looked for
GRID = 12  # positions along a side that discovery asks for; images are enlarged until there are as many
SEGMENTED = 1024  # images of the bank that the linear segmentation is trained on
FEW = 256  # labelled images of fine-tuning
# Points of k-NN. What a training has to add to the untrained network and to pixels, with every seed: stated before the
# runs of the seeds 1 and 2. What would matter between two poolings: stated before the second run of GAP. What would
# matter in a box measure, 5 points as in notebook 10: stated before a transformer was tested.
LEARNED, MATTERS, MATTERS_BOXES = 3.0, 2.0, 5.0
CROPS = {"global_size": 24, "local_size": 12, "local_crops": 1, "local_scale": (0.15, 0.4), "blur": 0.5}
HEAD = {"outputs": 256, "hidden": 256, "bottleneck": 64}
NETWORKS: dict[str, dict] = {
    "GAP": {"backbone": "convnet_micro", "pool": "gap"},
    "SimPool": {"backbone": "convnet_micro", "pool": "simpool"},
    "SimPool, gamma 2": {"backbone": "convnet_micro", "pool": "simpool", "pool_kwargs": {"gamma": 2.0}},
    "ViT, CLS": {"backbone": "vit_micro", "pool": "cls"},
    "ViT, GAP": {"backbone": "vit_micro", "pool": "gap"},
    "ViT, SimPool": {"backbone": "vit_micro", "pool": "simpool"},
    "ViT, SimPool, gamma 1.25": {"backbone": "vit_micro", "pool": "simpool", "pool_kwargs": {"gamma": 1.25}},
    "GAP, width 16": {"backbone": "convnet_micro", "pool": "gap", "width": 16},
    "SimPool, width 16": {"backbone": "convnet_micro", "pool": "simpool", "width": 16},
}
OPTIONS = {
    "convnet_micro": {"width": 8},
    "vit_micro": {"depth": 2, "img_size": SIDE, "dynamic_img_size": True},
}
TWINS = ("ViT, CLS", "ViT, GAP", "ViT, SimPool", "ViT, SimPool, gamma 1.25")  # also trained with labels of the digit
COMPARED = ("GAP", "SimPool", "SimPool, gamma 2", *TWINS)  # in the small Tables 3 to 6
STRIDES = {"convnet_micro": 4, "vit_micro": 8}
RATES = {"convnet_micro": 2e-3, "vit_micro": 5e-4}  # of DINO; the transformer's is the best of three on "val"


@dataclass(frozen=True)
class Run:
    """One network of the experiment.

    Args:
        network: one of :data:`NETWORKS`, or "pixels" (with training "none"): no network, the images are the features.
        training: "none", "dino" or "supervised".
        target: what the supervised twin learns, "digit" or "photo".
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
        folder: small photographs, in a folder as for :func:`~simpool_lite.load_data`, instead of photo-digits.
    """

    network: str
    training: str = "dino"
    target: str = "photo"
    seed: int = 0
    clutter: float = 1.0
    images: int = 4096
    epochs: int = 2
    batch_size: int = 64
    learning_rate: float = 2e-3
    momentum: float = 0.95
    center_momentum: float = 0.9
    temperature: tuple[float, float] = (0.04, 0.04)
    smallest_crop: float = 0.4
    measured_on: str = "test"
    folder: str | None = None

    def hash(self) -> str:
        """Twelve hexadecimal digits that name this run."""
        values = asdict(self)
        if self.folder is None:
            del values["folder"]  # younger than the first records, which keep their names
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


# Whose maps the notebook shows.
SHOWN = (Run("SimPool"), Run("SimPool", "supervised"), Run("SimPool", "supervised", "digit"))


def table_runs(seeds: Iterable[int] = range(5)) -> list[Run]:
    """The runs of the small Tables 3 to 6: networks untrained and by DINO, and the twins trained with labels."""
    runs = []
    for network, seed in product(COMPARED, seeds):
        rate = RATES[NETWORKS[network]["backbone"]]
        runs += [Run(network, "none", seed=seed), Run(network, seed=seed, learning_rate=rate)]
        if network in TWINS:
            runs.append(Run(network, "supervised", "digit", seed=seed))
    return runs


# On CIFAR-10 with a larger network, larger crops and more passes: chosen on "val", with SimPool and seed 0.
CIFAR = "cifar10-jpeg"  # its folder, with train/ and test/
ON_CIFAR = {"images": 45000, "epochs": 5, "learning_rate": 3e-3, "momentum": 0.99, "temperature": (0.06, 0.06)}
ON_CIFAR |= {"smallest_crop": 0.25}
CROPS_OF_CIFAR = {"global_size": SIDE, "local_size": 16, "local_scale": (0.1, 0.4)}


def cifar_runs(seeds: Iterable[int] = range(2)) -> list[Run]:
    """The runs on CIFAR-10: pixels, and per seed two ConvNets untrained and by DINO."""
    runs = [Run("pixels", "none", folder=CIFAR)]
    for seed, network in product(seeds, ("SimPool, width 16", "GAP, width 16")):
        runs += [Run(network, "none", seed=seed, folder=CIFAR), Run(network, seed=seed, folder=CIFAR, **ON_CIFAR)]
    return runs


@cache
def images(split: str, count: int, clutter: float, target: str = "photo", folder: str | None = None) -> LabelledImages:
    """Images of the experiment; "train" has none of the glyphs and photograph regions, or of the files, of "val"."""
    if folder is not None:
        return _some_of(folder, split, count)
    options = {"num_images": count, "clutter": clutter, "without_val": True, **IMAGES}
    return load_data("photo-digits", split, target=target, **options)


def _some_of(folder: str, split: str, count: int) -> LabelledImages:
    data = load_data("folder", split, data_root=folder, image_size=SIDE, augment=False, without_val=True)
    chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:count]
    some = copy.copy(data)
    some.images, some.targets = torch.as_tensor(data.images)[chosen], data.targets[chosen]
    return some


def make(run: Run, num_classes: int = 0) -> nn.Module:
    """The untrained network of a run; the final norm comes after the pooling, as in the published DINO models."""
    set_seed(run.seed)
    network = NETWORKS[run.network]
    return create_model(num_classes=num_classes, norm_first=False, **OPTIONS[network["backbone"]] | network)


def train_run(run: Run, device: str = "auto", progress: bool = True) -> tuple[nn.Module, list[dict[str, float]]]:
    """The network of a run after its training, without a classifier, and its curve.

    The curve of DINO has k-NN on "val" after each epoch: ``knn_digit``, ``knn_photo``; ``knn_class`` of a folder.
    """
    if run.training == "none":
        return make(run).eval(), []
    data = images("train", run.images, run.clutter, run.target, run.folder)
    bank, val = (
        images(split, count, run.clutter, folder=run.folder)
        for split, count in zip(("train", "val"), WATCHED, strict=True)
    )

    def neighbours(model: nn.Module) -> dict[str, float]:
        return _knn(features(model, bank), bank, features(model, val), val)

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
            crops=CROPS | {"global_scale": (run.smallest_crop, 1.0)} | (CROPS_OF_CIFAR if run.folder else {}),
            head=HEAD,
            after_epoch=neighbours,
            stop_if_collapsed=False,  # a collapse is a result too, and the curve shows it
            **settings,
        )
    model, curve = _supervise(make(run, len(data.classes)), data, device, settings)
    model.reset_classifier(0)
    return model.eval(), curve


def _supervise(
    model: nn.Module, data: LabelledImages, device: str, settings: dict
) -> tuple[nn.Module, list[dict[str, float]]]:
    with accelerator_on(device) as accelerator:
        how = settings | {"weight_decay": 0.05, "measure": lambda _: {}, "description": "labels"}
        model, curve, _ = train(model, data, accelerator, **how)
    return model, curve


def fine_tune(run: Run, model: nn.Module, queries: LabelledImages, device: str, progress: bool) -> float:
    """Top-1 on the queries, in percent, of a copy of the network after training on a few labelled photographs."""
    data = images("train", FEW, run.clutter, "photo")
    tuned = copy.deepcopy(model)
    set_seed(run.seed)
    tuned.reset_classifier(len(data.classes))
    settings = {"epochs": 8, "batch_size": 32, "learning_rate": 1e-3, "seed": run.seed, "progress": progress}
    tuned, _ = _supervise(tuned, data, device, settings)
    return 100 * (features(tuned, queries).argmax(1) == queries.photos).float().mean().item()


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


def _labels(data: LabelledImages) -> dict[str, Tensor]:
    """What features are asked for."""
    return {"digit": data.digits, "photo": data.photos} if data.name == "photo-digits" else {"class": data.targets}


def _knn(votes: Tensor, bank: LabelledImages, asked: Tensor, queries: LabelledImages) -> dict[str, float]:
    of_queries = _labels(queries)
    return {
        f"knn_{name}": knn_accuracy(votes, of_bank, asked, of_queries[name]) for name, of_bank in _labels(bank).items()
    }


def measure_features(votes: Tensor, bank: LabelledImages, asked: Tensor, queries: LabelledImages) -> dict[str, float]:
    """k-NN, retrieval and linear probing of features ``(n, d)`` of the bank and ``(m, d)`` of the queries."""
    figures = _knn(votes, bank, asked, queries)
    held_out = len(votes) // 4  # the rate is chosen on these
    for name, of_bank in _labels(bank).items():
        of_queries = _labels(queries)[name]
        ranked = asked[:RANKING], of_queries[:RANKING], votes, of_bank
        figures[f"map_{name}"] = mean_average_precision(*ranked)
        parts = (votes[held_out:], of_bank[held_out:]), (votes[:held_out], of_bank[:held_out]), (asked, of_queries)
        parts = [(z[:, None], y) for z, y in parts]
        scores = probe(*parts, {"linear": {"pool": "gap"}}, seeds=1, epochs=5, progress=False)
        figures[f"linear_{name}"] = float(scores.top1[0])
    return figures


@torch.no_grad()
def measure_maps(model: nn.Module, queries: LabelledImages) -> dict[str, float]:
    """Where a network looks: mass and AP from 0 to 1, MaxBoxAccV2 in percent. Nothing for a network without a map."""
    if model.create_config["pool"] == "gap":  # the same weight everywhere
        return {}
    pictures, boxes, masks = torch.cat(list(batches(queries)))[:CUT], queries.boxes[:CUT], queries.masks[:CUT]
    maps = model.attention(pictures).mean(1)
    return map_figures(maps, masks) | {"max_box_acc_v2": box_accuracy(maps, boxes, SIDE)["max_box_acc_v2"]}


def enlarged(model: nn.Module, pictures: Tensor) -> Tensor:
    """Images ``(B, 3, H, W)`` enlarged by a whole number until the network's map has :data:`GRID` positions a side."""
    stride = STRIDES[model.create_config["backbone"]]
    factor = math.ceil(GRID * stride / pictures.shape[-1])
    return F.interpolate(pictures, scale_factor=factor, mode="bilinear")


@torch.no_grad()
def measure_discovery(model: nn.Module, queries: LabelledImages) -> dict[str, float]:
    """CorLoc of DINO-seg, if the network has a map, and of LOST, in percent; on enlarged images."""
    pictures, boxes = enlarged(model, torch.cat(list(batches(queries)))[:CUT]), queries.boxes[:CUT]
    parts = [patch_features(model, part) for part in pictures.split(128)]
    tokens, grid = torch.cat([tokens for tokens, _ in parts]), parts[0][1]
    tokens = tokens - tokens.mean((0, 1))  # LOST wants products of both signs, and behind a ReLU there is only one
    found = {"lost": corloc(lost_boxes(tokens, grid, SIDE, k=max(1, tokens.shape[1] // 8)), boxes)}
    if model.create_config["pool"] != "gap":
        maps = torch.cat([model.attention(part).mean(1) for part in pictures.split(128)])
        found["dino_seg"] = corloc(dino_seg_boxes(maps, SIDE), boxes)
    return found


def measure_segmentation(model: nn.Module, bank: LabelledImages, queries: LabelledImages) -> float:
    """Mean intersection over union of the ten digits and the background, in percent, from frozen features."""

    @torch.no_grad()
    def part(data: LabelledImages, start: int, end: int) -> tuple[Tensor, Tensor]:
        pictures = data.__getitems__(list(range(start, end)))[0]
        labels = data.masks[start:end] * (1 + data.digits[start:end, None, None])
        return patch_features(model, pictures)[0], labels

    held_out = SEGMENTED // 4
    parts = part(bank, held_out, SEGMENTED), part(bank, 0, held_out), part(queries, 0, CUT)
    side = SIDE // STRIDES[model.create_config["backbone"]]
    return linear_segmentation(*parts, (side, side), progress=False)


def measure(run: Run, model: nn.Module | None, device: str = "auto", progress: bool = True) -> dict[str, float]:
    """All figures of a trained network, in percent; mass and AP from 0 to 1. Without a network, those of the pixels.

    Of a folder, which has no masks, those of the features alone, with as many queries as there are images that vote.
    """
    asked = QUERIES if run.folder is None else BANK
    bank = images("train", BANK, run.clutter, folder=run.folder)
    queries = images(run.measured_on, asked, run.clutter, folder=run.folder)
    if model is None:
        return measure_features(pixels(bank), bank, pixels(queries), queries)
    model.eval()
    found = measure_features(features(model, bank), bank, features(model, queries), queries)
    if run.folder is not None:
        return found
    found |= measure_maps(model, queries) | measure_discovery(model, queries)
    found["miou"] = measure_segmentation(model, bank, queries)
    return found | {"fine_tuned": fine_tune(run, model, queries, device, progress)}


def record_run(run: Run, folder: Path, device: str = "auto", progress: bool = True) -> None:
    """Train, measure, and write the record, the curve and the network of a run; of a collapse the reason."""
    started, curve = time.perf_counter(), []
    row = {"run": run.hash(), **asdict(run), "temperature": str(run.temperature), "status": "ok", "reason": ""}
    try:
        model = None
        if run.network != "pixels":
            model, curve = train_run(run, device, progress)
            save_model(model, model_path(run, folder))
        row |= measure(run, model, device, progress)
    except (RuntimeError, FloatingPointError) as error:
        row |= {"status": "failed", "reason": str(error)}
    row["seconds"] = time.perf_counter() - started
    for place, rows in (("curves", curve), ("runs", [row])):  # the record last: whoever sees it finds the rest
        if rows:
            with write_atomically(folder / place / f"{run.hash()}.parquet") as temporary:
                pd.DataFrame(rows).assign(run=run.hash()).to_parquet(temporary, index=False)


def model_path(run: Run, folder: Path) -> Path:
    """Where the network of a run is kept."""
    return folder / "models" / f"{run.hash()}.safetensors"


def run_all(
    runs: Iterable[Run], store: str | Path | None = None, device: str = "auto", progress: bool = True
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The records of some runs and their curves; what neither the store nor the recorded results have is computed.

    Args:
        runs: which ones.
        store: a folder of the reader's. With None the recorded results are read, and what they lack goes to ``runs/``.
        device: "auto" is cuda, then mps, then cpu.
        progress: show bars.

    Returns:
        One row per run, the fields of :class:`Run` and its figures, in the order of ``runs``; one per run and epoch.
    """
    own = Path(store or repository_root() / "runs") / FOLDER
    folders = (own,) if store else (own, recorded_results() / FOLDER)
    for run in runs:
        if not _found(run, folders):
            record_run(run, own, device, progress)
    wanted = pd.Index([run.hash() for run in runs])
    tables = [read_tables(folders, f"{place}/*.parquet", None, ["run"]) for place in ("runs", "curves")]
    records, curves = (
        table[table.run.isin(wanted)].drop_duplicates(["run", *key])
        for table, key in zip(tables, ([], ["epoch"]), strict=True)
    )
    return records.set_index("run").loc[wanted].reset_index(names="run"), curves.reset_index(drop=True)


def network_of(run: Run, store: str | Path | None = None) -> nn.Module:
    """The network of a run that :func:`run_all` has computed or found; an untrained one is made again."""
    if run.training == "none":
        return make(run).eval()
    own = Path(store or repository_root() / "runs") / FOLDER
    places = [model_path(run, folder) for folder in (own, recorded_results() / FOLDER)]
    return load_model(next(path for path in places if path.is_file()))


def record(store: str | Path | None = None) -> list[Path]:
    """Put the runs of a store into the recorded results, beside those that are there; of networks those of ``SHOWN``.

    Args:
        store: a folder of the reader's, None for ``runs/``.

    Returns:
        The files that were written.

    Raises:
        FileNotFoundError: the store has none of these runs.
    """
    own, recorded, written = Path(store or repository_root() / "runs") / FOLDER, recorded_results() / FOLDER, []
    if not any((own / "runs").glob("*.parquet")):
        raise FileNotFoundError(f"store: no runs in {own / 'runs'}; run notebook 15, or name another store")
    for place, key in (("runs", ["run"]), ("curves", ["run", "epoch"])):
        table = read_tables((own, recorded), f"{place}/*.parquet", None, key).drop_duplicates(key)
        with write_atomically(recorded / place / "recorded.parquet") as temporary:
            table.to_parquet(temporary, index=False)
        written.append(recorded / place / "recorded.parquet")
    for path in (model_path(run, own) for run in SHOWN):
        if path.is_file():
            with write_atomically(recorded / "models" / path.name) as temporary:
                shutil.copyfile(path, temporary)
            written.append(recorded / "models" / path.name)
    return written


def _found(run: Run, folders: Iterable[Path]) -> bool:
    return run.hash() in set(read_tables(folders, "runs/*.parquet", ["run"], ["run"]).run)
