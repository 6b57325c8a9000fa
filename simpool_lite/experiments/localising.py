"""Where poolings on a frozen backbone look in photographs, held against boxes that people drew."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from torch import Tensor

from ..checks import check_choice, check_int, check_number
from ..device import resolve_device
from ..measure.localisation import box_hits, pointing_game
from ..measure.saliency import centre_gaussian, frame, spectral_residual, uniform
from ..models.create import check_backbone
from ..models.weights import check_pretrained
from ..pooling import list_pools
from ..training.features import Features, cached_features
from ..training.probes import Fitted, Head, fit_heads, measure_head
from .config import RunConfig
from .run import load_split, make_model

CAM = "GAP + CAM"
SHOWN = {"simpool": "SimPool"}  # as in the course; other poolings have their registered names
BASELINES = {
    "centred Gaussian": centre_gaussian,
    "whole photograph": frame,
    "uniform": uniform,
    "spectral residual": spectral_residual,
}
IOU = (0.3, 0.5, 0.7)
FORWARD = 16  # photographs per pass through the trunk: of 256, memory alone would cost more time than the layers
RESAMPLES = 2000  # of the images, for an interval


@dataclass(frozen=True)
class Localised:
    """What :func:`localise` found.

    Attributes:
        table: one row per method, see there.
        images: the photographs that were scored, ``(n, 3, h, w)``, values 0 to 1.
        boxes: per photograph the drawn boxes ``(k, 4)``.
        maps: by method ``(n, H, W)``, of the first seed.
        skipped: number of test photographs without a box.
    """

    table: pd.DataFrame
    images: Tensor
    boxes: list[Tensor]
    maps: dict[str, Tensor]
    skipped: int


def localise(
    data_root: str,
    *,
    backbone: str = "tf_efficientnet_lite0",
    pretrained: bool | str = "efficientnet-lite0",
    pools: Sequence[str] = ("simpool",),
    gamma: float | None = 2.0,
    dataset: str = "folder",
    seeds: int = 3,
    epochs: int = 10,
    batch_size: int = 16,
    device: str = "auto",
    progress: bool = True,
) -> Localised:
    """Train poolings on a frozen backbone and score their maps on the test photographs, beside baselines.

    Methods are GAP with the class activation map of the class that its head predicts, the attention of each pooling
    with a map (SimPool also with ``gamma``), and maps that know nothing of a network. Each head's rate is chosen on
    validation images by accuracy; no box is used for training.

    Args:
        data_root: folder of the photographs, with boxes, see :func:`~simpool_lite.load_data`.
        backbone: of timm.
        pretrained: "efficientnet-lite0" (backbone tf_efficientnet_lite0), or True for timm's weights.
        pools: names of poolings with a map, beside GAP.
        gamma: exponent of a second SimPool; None for none.
        dataset: "folder", "cub-200", "oxford-pets" or "imagenet".
        seeds: heads per pooling.
        epochs: passes over the training features.
        batch_size: features per step.
        device: "auto" is cuda, then mps, then cpu.
        progress: show bars.

    Returns:
        A :class:`Localised`. Its table has by method: ``top1`` in percent (NaN for the baselines), ``max_box_acc_v2``
        with the bounds ``low`` and ``high`` of a 95 % interval over test images (bootstrap, thresholds chosen anew),
        its ``difference`` to GAP + CAM with bounds ``difference_low`` and ``difference_high`` (paired by image),
        ``box_30``, ``box_50``, ``box_70`` (MaxBoxAcc at these overlaps) and ``pointing``; all are means over the seeds.

    Raises:
        ValueError: a pooling that does not exist or has no map; photographs without boxes.
        FileNotFoundError: the photographs or the weights are not there.
    """
    for name in pools:
        check_choice("pools", name, [*list_pools(), *list_pools(family="probing")])
    check_int("seeds", seeds), resolve_device(device)
    if gamma is not None:
        check_number("gamma", gamma, above_zero=True)
    check_backbone(backbone), check_pretrained(pretrained, backbone)
    trunk = {"backbone": backbone, "pool": "gap", "pretrained": pretrained, "epochs": 0}
    training = {"epochs": epochs, "batch_size": batch_size}
    config = RunConfig(
        backbone, "gap", dataset=dataset, data_root=str(data_root), regime="head", trunk=trunk, **training
    )
    parts = {split: load_split(config, split) for split in ("train", "val", "test")}
    test = parts["test"]
    if test.boxes is None:
        raise ValueError(
            f"data_root: expected boxes for the test photographs in {data_root}, found none; put Pascal VOC's XML "
            "beside them or into Annotations/, or COCO's JSON into annotations/"
        )
    kept = [index for index, boxes in enumerate(test.boxes) if len(boxes)]
    if not kept:
        raise ValueError(f"data_root: expected a box on at least one test photograph in {data_root}, all are empty")
    set_seed(0)
    model = make_model(config.trunk_config(), test)
    how = {"device": device, "batch_size": FORWARD, "progress": progress}
    features = {split: cached_features(model, data, **how) for split, data in parts.items()}

    variants = {CAM: {"pool": "gap"}} | {SHOWN.get(name, name): {"pool": name} for name in pools}
    if "simpool" in pools and gamma is not None:
        variants[f"SimPool, gamma {gamma:g}"] = {"pool": "simpool", "gamma": gamma}
    how = training | {"seeds": seeds, "progress": progress}
    fitted = fit_heads(features["train"], features["val"], variants, len(test.classes), **how)

    images = torch.stack([test.denormalize(test[index][0]) for index in kept])
    boxes, size = [test.boxes[index] for index in kept], tuple(images.shape[-2:])
    measured = {name: [_maps(one, features["test"]) for one in fitted if one.variant == name] for name in variants}
    methods = {name: [(top1, maps[kept]) for top1, maps in runs] for name, runs in measured.items()}
    methods |= {name: [(float("nan"), baseline(images))] for name, baseline in BASELINES.items()}
    rows, drawn = {}, _resampled(len(kept))
    for name, runs in methods.items():
        hits = [box_hits(maps, boxes, size, IOU) for _, maps in runs]
        best = 100 * np.mean([of_run.mean(1).max(1) for of_run in hits], axis=0)  # MaxBoxAcc at each overlap
        row = {"top1": np.mean([top1 for top1, _ in runs]), "max_box_acc_v2": best.mean()}
        row |= {f"box_{100 * x:.0f}": percent for x, percent in zip(IOU, best, strict=True)}
        row["pointing"] = np.mean([pointing_game(maps, boxes, size) for _, maps in runs])
        rows[name] = row | {"samples": np.mean([_of_samples(of_run, drawn) for of_run in hits], axis=0)}
    samples = {name: row.pop("samples") for name, row in rows.items()}
    for name, row in rows.items():
        row["low"], row["high"] = np.percentile(samples[name], (2.5, 97.5))
        row["difference"] = row["max_box_acc_v2"] - rows[CAM]["max_box_acc_v2"]
        row["difference_low"], row["difference_high"] = np.percentile(samples[name] - samples[CAM], (2.5, 97.5))
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("method")
    maps = {name: runs[0][1] for name, runs in methods.items()}
    return Localised(table, images, boxes, maps, len(test) - len(kept))


def head_cam(head: Head, features: Tensor, target: Tensor | None = None) -> Tensor:
    """Class activation maps of a head on the average of its features: ``(B, N, d)`` to ``(B, N)``.

    The classifier's weights w_d over the standard deviations of the BatchNorm before it: sum_d w_d x_d / s_d, whose
    mean over the positions is the logit up to a constant.

    Args:
        head: with the pooling "gap".
        features: of the images.
        target: ``(B,)`` classes; by default those that the head predicts.
    """
    if target is None:
        target = head(features, None)[0].argmax(1)
    weights = head.classifier.weight / (head.norm.running_var + head.norm.eps).sqrt()
    return torch.einsum("bnd,bd->bn", features, weights[target])


@torch.no_grad()
def _maps(fitted: Fitted, test: Features) -> tuple[float, Tensor]:
    """Accuracy in percent and maps ``(n, H, W)`` of a head."""
    tokens = test.tokens.float()
    correct, _, maps = measure_head(fitted.head, tokens, test.labels, test.grid)
    if fitted.variant == CAM:
        maps = head_cam(fitted.head, tokens).unflatten(1, test.grid).cpu()
    elif maps is None:
        raise ValueError(f"pools: expected poolings with a map, got {fitted.variant!r}; leave it out")
    return 100 * correct.float().mean().item(), maps


def _resampled(count: int) -> np.ndarray:
    """How often each image is in each resample, ``(RESAMPLES, count)``."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


def _of_samples(hits: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """MaxBoxAccV2 of resampled images, ``(RESAMPLES,)``, from hits ``(overlaps, n, 255)``."""
    return np.mean([100 * (drawn @ of_one.astype(np.float32) / len(drawn[0])).max(1) for of_one in hits], axis=0)
