"""What is measured of trained networks besides their records: where they look, when, and on other backgrounds.

Three kinds of measurement, the column ``what``:

- "maps": maps of every kind that a network has, on the first :data:`MAP_IMAGES` test images;
- "sixths": the same while it learns, at each sixth of the training, on images of "val";
- "backgrounds": accuracy on the first :data:`BACKGROUND_IMAGES` of them, the background taken away or exchanged.

They are kept in the store beside the records, one row per network, step, method and measure; ``record`` copies them.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..checks import check_choice
from ..datasets import LabelledImages
from ..datasets.backgrounds import background_variants
from ..device import resolve_device
from ..measure import saliency
from ..measure.attention import average_precision, object_positions
from ..measure.batches import batches
from ..measure.classification import evaluate_each
from ..measure.decide import decide, errors_by_source
from ..measure.localisation import box_hits, pointing_game
from ..measure.maps import attention_maps
from ..models import load_model
from .config import RunConfig
from .grid import Grid
from .run import CURVE_IMAGES, load_split, train_and_measure
from .store import MEASURE_COLUMNS, Store, make_record, pack

MAP_IMAGES = 1024
BACKGROUND_IMAGES = 512
SHOWN_IMAGES = 4  # whose maps are kept at each sixth
OVERLAPS = (0.3, 0.5, 0.7)
KINDS = {  # by what the network pools with: the name of each method, its kind of map
    "cls": {"CLS": "cls", "CLS rollout": "rollout", "CLS + Grad-CAM": "gradcam"},
    "gap": {"GAP + CAM": "cam", "GAP + Grad-CAM": "gradcam"},
    "gem": {"GeM + CAM": "cam", "GeM + Grad-CAM": "gradcam"},
    "simpool": {"SimPool": "pool", "SimPool + Grad-CAM": "gradcam"},
}
BASELINES = {
    "centred Gaussian": saliency.centre_gaussian,
    "uniform": saliency.uniform,
    "spectral residual": saliency.spectral_residual,
}
WHAT = ("maps", "sixths", "backgrounds")


def measured(grid: Grid, store: Store, what: str, *, device: str = "auto", progress: bool = True) -> pd.DataFrame:
    """Measure the networks of a grid; return what was measured, with ``backbone variant seed status`` of each.

    What the store has is not measured again. A network that the store has no model of is trained here, one after the
    other in this process, and gets its record. For "sixths" it always is; then its maps are measured, too, since the
    network is not kept.

    Args:
        grid: of end-to-end runs on photo-digits, or on other images with masks and boxes.
        store: where networks and measurements are looked up and written.
        what: "maps", "sixths" or "backgrounds".
        device: "auto" is cuda, then mps, then cpu.
        progress: show a bar over the networks.

    Returns:
        One row per network, step, method and measure; ``value`` in percent, but ``entropy`` in nats. ``each`` is the
        value of each image in 255ths, a byte each; for "top1" the bits of :func:`~.store.pack`; for "map" the maps of
        the shown images, a byte per position in 255ths of the map's maximum.

    Raises:
        ValueError: ``what`` is none of these.
        FloatingPointError: the loss of a network that is trained here is no longer finite.
    """
    check_choice("what", what, WHAT)
    known = store.measures()
    done = set(known.config_hash[known.what == what])
    mapped = set(known.config_hash[known.what == "maps"])
    runs = {config.hash(): (variant, config) for variant, config in grid.runs()}
    todo = {key: run for key, run in runs.items() if key not in done}
    for variant, config in tqdm(todo.values(), what, unit="network", disable=not (progress and todo)):
        if what == "sixths":
            watch = _Watch(config)
            model = _train(grid, variant, config, store, device, observe=watch)
            _keep(store, config, what, watch.rows)
        else:
            model = _network(grid, variant, config, store, device)
        data = load_split(config, config.measured_on)
        if what == "backgrounds":
            _keep(store, config, what, _of_backgrounds(model, data))
        elif config.hash() not in mapped:
            _keep(store, config, "maps", _of_maps(model, data))
    known = store.measures()
    table = known[(known.what == what) & known.config_hash.isin(runs)].reset_index(drop=True)
    labels = [(config.backbone, variant, config.seed, "ok") for variant, config in map(runs.get, table.config_hash)]
    return table.join(pd.DataFrame(labels, columns=["backbone", "variant", "seed", "status"]))


def baseline_measures(data: LabelledImages, grid: tuple[int, int]) -> pd.DataFrame:
    """The measures of "maps" for maps that know no network, on its grid: columns ``method measure value each``."""
    images, masks, boxes = _looked_at(data)
    pixels = data.denormalize(images)
    maps = {name: F.adaptive_avg_pool2d(method(pixels), grid) for name, method in BASELINES.items()}
    rows = [row for name, of_method in maps.items() for row in map_measures(name, of_method, masks, boxes)]
    return pd.DataFrame(rows).drop(columns="step")


def decide_measure(
    rows: pd.DataFrame, measure: str, baseline: str, margin: float, clusters: Sequence[int]
) -> pd.DataFrame:
    """One measure of every method against one: :func:`~..measure.decide.decide` with intervals over seeds and images.

    Args:
        rows: of :func:`measured` "maps", for one backbone; the column ``method`` names what is compared.
        measure: one that has ``each``.
        baseline: the method that the others are compared with.
        margin: the smallest difference that would matter, in points.
        clusters: (images,) which images belong together, such as the glyph they show.
    """
    rows = rows[rows.measure == measure].assign(variant=lambda table: table.method)
    errors = errors_by_source(from_bytes(rows.each), rows.variant.tolist(), clusters, baseline)
    return decide(rows, baseline, margin, "value", sequential=False, image_errors=errors["images"].to_dict())


def map_measures(method: str, maps: Tensor, masks: Tensor, boxes: list[Tensor]) -> list[dict]:
    """How well some maps find objects, a dict per measure.

    "mass" is the share of the map on object positions, "ap" its average precision, "entropy" in nats, "pointing" the
    pointing game, "box 0.3", "box 0.5" and "box 0.7" MaxBoxAcc, "box" their mean, MaxBoxAccV2. For mass and entropy
    negative scores count as 0, and a map without a positive one as uniform.

    Args:
        method: the name.
        maps: scores ``(n, H, W)``.
        masks: bool ``(n, h, w)``.
        boxes: per image ``(k, 4)``.
    """
    maps = maps.double()
    shares, objects = as_shares(maps), object_positions(masks, maps.shape[1:])
    hits = box_hits(maps, boxes, tuple(masks.shape[1:]), OVERLAPS)  # (overlaps, n, 255)
    at_best = [of_overlap[:, of_overlap.sum(0).argmax()] for of_overlap in hits]
    triples = list(zip(maps.split(1), objects.split(1), masks.split(1), strict=True))
    each = {
        "mass": (shares * objects).sum((1, 2)).numpy(),
        "ap": np.array([average_precision(a, o) if o.any() else 0.0 for a, o, _ in triples]),
        "pointing": np.array([pointing_game(a, mask) / 100 for a, _, mask in triples]),
        "box": np.mean(at_best, axis=0),
    }
    rows = [
        {"step": 0, "method": method, "measure": name, "value": 100 * values.mean(), "each": to_bytes(values)}
        for name, values in each.items()
    ]
    single = {f"box {x:g}": 100 * of_overlap.mean() for x, of_overlap in zip(OVERLAPS, at_best, strict=True)}
    single["entropy"] = torch.special.entr(shares).sum((1, 2)).mean().item()
    return rows + [{"step": 0, "method": method, "measure": m, "value": v, "each": None} for m, v in single.items()]


def as_shares(maps: Tensor) -> Tensor:
    """Scores ``(n, H, W)`` as weights of sum one: negative ones count as 0, all of them as uniform."""
    positive = maps.clamp_min(0)
    positive = torch.where(positive.amax((1, 2), keepdim=True) > 0, positive, 1)
    return positive / positive.sum((1, 2), keepdim=True)


def to_bytes(values: np.ndarray | Tensor) -> bytes:
    """Numbers from 0 to 1 in 255ths, a byte each."""
    return np.rint(255 * np.asarray(values)).astype(np.uint8).tobytes()


def from_bytes(packed: pd.Series) -> np.ndarray:
    """The column ``each`` of some rows as numbers from 0 to 1, (rows, images)."""
    return np.stack([np.frombuffer(row, np.uint8) for row in packed]) / 255


def _keep(store: Store, config: RunConfig, what: str, rows: list[dict]) -> None:
    table = pd.DataFrame(rows, columns=[name for name in MEASURE_COLUMNS if name not in ("config_hash", "what")])
    store.add_measures(table.assign(config_hash=config.hash(), what=what))


def _network(grid: Grid, variant: str, config: RunConfig, store: Store, device: str) -> nn.Module:
    if store.has_model(config):
        return load_model(store.model_path(config)).eval().to(resolve_device(device))
    return _train(grid, variant, config, store, device)


def _train(
    grid: Grid,
    variant: str,
    config: RunConfig,
    store: Store,
    device: str,
    observe: Callable[[nn.Module], object] | None = None,
) -> nn.Module:
    model, figures, curve = train_and_measure(config, device, progress=False, observe=observe)
    if config.hash() not in set(store.records().config_hash):
        labels = {"experiment": grid.experiment, "variant": variant, "profile": grid.profile}
        store.add(make_record(config, figures, **labels, device=resolve_device(device).type), curve)
    return model


def _maps(model: nn.Module, data: LabelledImages, kinds: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Each method's maps ``(n, H, W)`` on the CPU; several of one network are averaged."""
    device = next(model.parameters()).device
    for name, kind in kinds.items():
        parts = [attention_maps(model, images.to(device), kind).mean(1) for images, _ in batches(data, 256, None)]
        yield name, torch.cat(parts).float().cpu()


def _looked_at(data: LabelledImages) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Images, masks and boxes of the first images."""
    some = first_images(data)
    images = torch.cat([images for images, _ in batches(some, 256, None)])
    return images, some.masks, some.boxes


def first_images(data: LabelledImages, number: int = MAP_IMAGES) -> LabelledImages:
    """The first images of photo-digits as a data set of its own."""
    some = copy.copy(data)
    for name in ("images", "masks", "digits", "photos", "targets", "glyphs", "windows"):
        setattr(some, name, getattr(data, name)[:number])
    some.boxes = data.boxes[:number]
    return some


def _kinds(model: nn.Module) -> dict[str, str]:
    return KINDS[model.create_config["pool"]]


def _of_maps(model: nn.Module, data: LabelledImages) -> list[dict]:
    some = first_images(data)
    found = _maps(model, some, _kinds(model))
    return [row for name, maps in found for row in map_measures(name, maps, some.masks, some.boxes)]


class _Watch:
    """Looks at a network at each sixth of its training and keeps rows."""

    def __init__(self, config: RunConfig) -> None:
        self.data, self.rows, self.step = load_split(config, "val", CURVE_IMAGES), [], 0

    def __call__(self, model: nn.Module) -> None:
        self.step += 1
        device = next(model.parameters()).device
        figures, correct = evaluate_each(model, self.data, device)
        rows = [{"method": "", "measure": "top1", "value": figures["top1"], "each": pack(correct)}]
        kinds = {name: kind for name, kind in _kinds(model).items() if kind != "gradcam"}
        objects = None
        for name, maps in _maps(model, self.data, kinds or _kinds(model)):
            shares = as_shares(maps.double())
            objects = object_positions(self.data.masks, maps.shape[1:]) if objects is None else objects
            values = {"mass": 100 * (shares * objects).sum((1, 2)).mean().item()}
            values |= {"ap": 100 * average_precision(maps, objects)}
            values |= {"entropy": torch.special.entr(shares).sum((1, 2)).mean().item()}
            rows += [{"method": name, "measure": m, "value": v, "each": None} for m, v in values.items()]
            shown = shares[:SHOWN_IMAGES] / shares[:SHOWN_IMAGES].amax((1, 2), keepdim=True)
            rows.append({"method": name, "measure": "map", "value": maps.shape[-1], "each": to_bytes(shown)})
        self.rows += [{"step": self.step} | row for row in rows]


def _of_backgrounds(model: nn.Module, data: LabelledImages) -> list[dict]:
    data = first_images(data, BACKGROUND_IMAGES)
    boxes = torch.cat(data.boxes)
    rows, device = [], next(model.parameters()).device
    for name, images in background_variants(data.images, data.masks, boxes, data.targets).items():
        changed = copy.copy(data)
        changed.images = images
        figures, correct = evaluate_each(model, changed, device)
        rows.append({"step": 0, "method": name, "measure": "top1", "value": figures["top1"], "each": pack(correct)})
    return rows
