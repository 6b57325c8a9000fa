"""The checkpoints that SimPool's authors published, as models of :func:`~simpool_lite.create_model`.

The names of weights are those that the authors' code writes (revision fac2263 of billpsomas/simpool), and models loaded
from files of that code compute what it computes. No published file has been read yet: one that differs is refused, with
a list of what differs.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_choice
from ..pooling.simpool import Shift
from .create import create_model


@dataclass(frozen=True, kw_only=True)
class Official:
    """A published checkpoint: how its model is made, where its file is, what it scores on ImageNet-1k.

    Attributes:
        name: of its repository.
        file: in that repository.
        backbone: timm's name.
        pool: "simpool", or what the backbone has of its own, "cls" or "gap".
        weights: the part of the file that the scores are of: the average of the weights over training
            (state_dict_ema) where there is one, DINO's teacher.
        gamma: SimPool's exponent; None for the weighted average.
        beta: whether SimPool has a beta. None: the file's keys say so. The authors' code for supervised ViTs makes
            none, yet one of the files is named after it.
        norm_first: False where the final norm comes after SimPool.
        resampled: whether the position embeddings are resampled even at 224 pixels, see :func:`load_official`.
        top1, knn, linear: accuracy of the model, of 10 nearest neighbours, of a linear probe (percent); None where
            none was published.
    """

    name: str
    file: str
    backbone: str
    pool: str = "simpool"
    weights: Literal["state_dict", "state_dict_ema", "teacher"]
    gamma: float | None = None
    beta: bool | None = False
    norm_first: bool = True
    resampled: bool = False
    top1: float | None = None
    knn: float | None = None
    linear: float | None = None

    @property
    def repository(self) -> str:
        return f"billpsomas/{self.name}"

    @property
    def num_classes(self) -> int:
        return 0 if self.weights == "teacher" else 1000


def _published(name: str, suffix: str, **entry) -> Official:
    return Official(**{"name": name, "file": name + suffix} | entry)


_VIT = {"backbone": "vit_small_patch16_224", "suffix": ".pth.tar", "weights": "state_dict_ema"}
_RESNET = {"backbone": "resnet50", "suffix": ".pth.tar", "weights": "state_dict"}
_DINO = {"suffix": ".pth", "weights": "teacher"}
_VIT_DINO = _DINO | {"backbone": "vit_small_patch16_224"}
_VIT_DINO_SIMPOOL = _VIT_DINO | {"norm_first": False, "resampled": True}
_RESNET_DINO = _DINO | {"backbone": "resnet50"}
_CONVNEXT_DINO = _DINO | {"backbone": "convnext_small"}
_BETA_FILE = "vits_gem1.25_supervised_beta.pth.tar"

OFFICIAL: dict[str, Official] = {
    entry.name: entry
    for entry in (
        _published("vits_supervised_official_ep100", **_VIT, pool="cls", top1=72.7),
        _published("vits_supervised_simpool_no_gamma_ep100", **_VIT, top1=74.3),
        _published("vits_supervised_simpool_ep100", **_VIT, gamma=1.25, beta=None, top1=74.2, file=_BETA_FILE),
        _published("vits_supervised_simpool_ep300", **_VIT, gamma=1.25, beta=None, top1=78.7),
        _published("resnet50_supervised_official_ep100", **_RESNET, pool="gap", top1=77.4),
        _published("resnet50_supervised_simpool_ep100", **_RESNET, gamma=2.0, top1=78.0),
        _published("vits_dino_official_ep100", **_VIT_DINO, pool="cls", knn=68.9, linear=71.5),
        _published("vits_dino_simpool_ep100", **_VIT_DINO_SIMPOOL, gamma=1.25, beta=True, knn=69.7, linear=72.8),
        _published("vits_dino_simpool_ep300", **_VIT_DINO_SIMPOOL, gamma=1.25, beta=True, knn=72.6, linear=75.0),
        _published("vits_dino_simpool_no_gamma_ep100", **_VIT_DINO_SIMPOOL, knn=69.8, linear=72.6),
        _published("resnet50_dino_official_ep100", **_RESNET_DINO, pool="gap", knn=61.8, linear=63.8),
        _published("resnet50_dino_simpool_ep100", **_RESNET_DINO, gamma=2.0, knn=63.8, linear=64.4),
        _published("resnet50_dino_simpool_no_gamma_ep100", **_RESNET_DINO, knn=63.7, linear=64.2),
        _published("convnext_small_dino_official_ep100", **_CONVNEXT_DINO, pool="gap", knn=59.3, linear=63.9),
        _published("convnext_small_dino_simpool_ep100", **_CONVNEXT_DINO, gamma=2.0, knn=68.7, linear=72.2),
        _published("convnext_small_dino_simpool_no_gamma_ep100", **_CONVNEXT_DINO, knn=68.8, linear=72.2),
    )
}


def load_official(source: str | Path, *, name: str | None = None, shift: Shift = "batch") -> nn.Module:
    """Load a model that SimPool's authors published, with the weights that its scores are of, in evaluation mode.

    ==========================================  =====  =====  ====  ======
    name                                        gamma  top-1  k-NN  linear
    ==========================================  =====  =====  ====  ======
    vits_supervised_official_ep100              CLS    72.7   -     -
    vits_supervised_simpool_no_gamma_ep100      none   74.3   -     -
    vits_supervised_simpool_ep100               1.25   74.2   -     -
    vits_supervised_simpool_ep300               1.25   78.7   -     -
    resnet50_supervised_official_ep100          GAP    77.4   -     -
    resnet50_supervised_simpool_ep100           2.0    78.0   -     -
    vits_dino_official_ep100                    CLS    -      68.9  71.5
    vits_dino_simpool_ep100                     1.25   -      69.7  72.8
    vits_dino_simpool_ep300                     1.25   -      72.6  75.0
    vits_dino_simpool_no_gamma_ep100            none   -      69.8  72.6
    resnet50_dino_official_ep100                GAP    -      61.8  63.8
    resnet50_dino_simpool_ep100                 2.0    -      63.8  64.4
    resnet50_dino_simpool_no_gamma_ep100        none   -      63.7  64.2
    convnext_small_dino_official_ep100          GAP    -      59.3  63.9
    convnext_small_dino_simpool_ep100           2.0    -      68.7  72.2
    convnext_small_dino_simpool_no_gamma_ep100  none   -      68.8  72.2
    ==========================================  =====  =====  ====  ======

    Percent on ImageNet-1k, as the authors' repository states them; licence CC BY 4.0. Supervised models give logits of
    1,000 classes, DINO models the teacher's features. ``timm.data.resolve_model_data_config(model)`` says how images
    are prepared, until the model is saved and loaded again.

    What is not as in the files: auxiliary batch norms and DINO's head are dropped, and the position embeddings of a
    DINO ViT with SimPool are resampled, here once. (The authors' code takes one patch for a class token that is not
    there, so the embeddings never seem to fit, and resamples them in every forward, bicubic, by 14.1 / 14.)

    Args:
        source: a name of the table, whose file is downloaded from the hub; or a path of such a file: ``.pth``,
            ``.pth.tar``, or its weights as ``.safetensors``. No pickle can run code here.
        name: which model of the table the file at ``source`` is, where neither the file nor its folder is named after
            it.
        shift: what the minimum of SimPool with gamma runs over, see :class:`~simpool_lite.SimPool`. These
            models were trained and scored with the minimum of the whole "batch", so that an image's output depends a
            little on the batch that it comes in; "image" makes it independent. Maps are the same.

    Raises:
        FileNotFoundError: there is no such file, or the hub was not reached.
        TypeError: ``source`` is not text or a path.
        ValueError: ``source`` or ``name`` is not in the table; the file is damaged, holds more than weights and
            numbers, or its weights do not fit the model: the message lists the missing and the unexpected ones.
    """
    check_choice("shift", shift, get_args(Shift))
    entry, path = _find(source, name)
    try:
        weights = _weights(_read(path), entry)
        names = _our_names(list(weights), entry)
        kwargs = _pool_kwargs(entry, has_beta="pooling.beta" in names, shift=shift)
        with torch.device("meta"):  # nothing is drawn that the file replaces
            model = create_model(
                entry.backbone, entry.pool, entry.num_classes, pool_kwargs=kwargs, norm_first=entry.norm_first
            )
        _compare(model.state_dict(), weights, names)
    except ValueError as error:
        raise ValueError(f"source: expected the weights of {entry.name!r}, got {path}: {error}") from error
    state = {ours: weights[theirs] for ours, theirs in names.items()}
    if entry.resampled:
        state["pos_embed"] = _resampled(state["pos_embed"])
    model.to_empty(device="cpu").load_state_dict(state)
    if entry.weights == "teacher":  # what timm knows of the backbone's name is right for the supervised models alone
        preparation = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "crop_pct": 0.875}
        model.pretrained_cfg = model.pretrained_cfg | preparation | {"interpolation": "bicubic"}
    return model.eval()


def _find(source: str | Path, name: str | None) -> tuple[Official, Path]:
    """Which model is meant, and its file."""
    if not isinstance(source, str | Path):
        raise TypeError(f"source: expected a name or a path, got {type(source).__name__}")
    if name is not None:
        check_choice("name", name, OFFICIAL)
    elif source in OFFICIAL:
        return OFFICIAL[source], _download(OFFICIAL[source])
    path = Path(source)
    if not path.is_file():
        if name is None and str(source) == path.stem:  # no folder, no suffix: meant as a name
            check_choice("source", source, OFFICIAL)
        raise FileNotFoundError(f"source: expected a published checkpoint, found no file at {path}")
    by_file = {entry.file: entry.name for entry in OFFICIAL.values()}
    for candidate in (name, by_file.get(path.name), path.name.partition(".")[0], path.absolute().parent.name):
        if candidate in OFFICIAL:
            return OFFICIAL[candidate], path
    raise ValueError(f"name: expected one of {', '.join(OFFICIAL)}, since {path} does not say which of them it is")


def _download(entry: Official) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(entry.repository, entry.file))
    except Exception as error:  # of the client, of its transport, of the system: nothing came
        raise FileNotFoundError(
            f"source: {entry.file} is not on this machine and could not be downloaded. Download it at "
            f"https://huggingface.co/{entry.repository} and pass its path"
        ) from error


class _Nothing:
    """Stands for what a checkpoint holds beside weights (arguments of the run, rates of its schedule), keeps none."""

    def __init__(self, *args) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# What the published pickles name beside tensors and dicts. No class of that name is touched.
_BESIDE_WEIGHTS = ("argparse.Namespace", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")


def _read(path: Path) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([(_Nothing, name) for name in _BESIDE_WEIGHTS]):
            # Mapped where that can be: two thirds of a file are the optimizer's.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except Exception as error:  # a damaged or hostile file can make torch and safetensors raise whatever they like
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}, which is no weight" if asked else "it is damaged or of another kind"
        raise ValueError(reason) from error


def _weights(checkpoint: object, entry: Official) -> dict[str, Tensor]:
    """The weights that count, under the file's names without the prefixes of wrappers."""
    if not isinstance(checkpoint, dict):
        raise ValueError(f"it is no dict but a {type(checkpoint).__name__}")
    if entry.weights in checkpoint:
        checkpoint = checkpoint[entry.weights]
    elif not any(isinstance(value, Tensor) for value in checkpoint.values()):  # else they are the weights
        raise ValueError(f"expected {entry.weights} in it, got {', '.join(map(str, checkpoint)) or 'nothing'}")
    if not isinstance(checkpoint, dict) or not all(isinstance(value, Tensor) for value in checkpoint.values()):
        raise ValueError(f"expected tensors alone in its {entry.weights}")
    weights = {str(key).removeprefix("module."): value for key, value in checkpoint.items() if "aux_bn" not in str(key)}
    if not any(key.startswith("backbone.") for key in weights):
        return weights
    return {key.removeprefix("backbone."): value for key, value in weights.items() if not key.startswith("head.")}


def _our_names(names: list[str], entry: Official) -> dict[str, str]:
    """Our name of each of the file's weights, to the file's."""
    ours = [re.sub(r"^(simpool|gp\.pool|global_pool\.pool|head\.global_pool\.pool)\.", "pooling.", n) for n in names]
    if not entry.norm_first:
        ours = [re.sub(r"^norm\.", "pooled_norm.", name) for name in ours]
    if entry.backbone.startswith("convnext"):  # Facebook's names; timm's function moves numbers as it would weights
        numbers = checkpoint_filter_fn({name: torch.tensor([i]) for i, name in enumerate(ours)}, None)
        return {name: names[int(number)] for name, number in numbers.items()}
    return dict(zip(ours, names, strict=True))


def _pool_kwargs(entry: Official, has_beta: bool, shift: Shift) -> dict:
    if entry.gamma is None:
        return {}
    return {"gamma": entry.gamma, "use_beta": has_beta if entry.beta is None else entry.beta, "shift": shift}


def _compare(expected: dict[str, Tensor], weights: dict[str, Tensor], names: dict[str, str]) -> None:
    found = {ours: theirs for ours, theirs in names.items() if ours in expected}
    wrong = {
        "missing": [ours for ours in expected if ours not in found],
        "unexpected": [theirs for theirs in weights if theirs not in found.values()],
        "of another shape": [
            f"{theirs} {tuple(weights[theirs].shape)} for {tuple(expected[ours].shape)}"
            for ours, theirs in found.items()
            if weights[theirs].shape != expected[ours].shape
        ],
    }
    if any(wrong.values()):
        raise ValueError("; ".join(f"{kind}: {', '.join(which)}" for kind, which in wrong.items() if which))


def _resampled(embeddings: Tensor) -> Tensor:
    """Position embeddings ``(1, 196, d)`` as the authors' code has them at 224 pixels."""
    grid = embeddings.unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(14.1 / 14, 14.1 / 14), mode="bicubic")  # 14 x 14 again
    return grid.permute(0, 2, 3, 1).flatten(1, 2)
