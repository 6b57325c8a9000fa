"""Features of a frozen model: computed once, kept on disk, mapped into memory."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..checks import check_choice
from ..datasets import LabelledImages, cache_folder
from ..device import resolve_device
from ..files import write_atomically
from ..models import patch_features
from ..models.weights import timm_model

DTYPES = {"float16": torch.float16, "float32": torch.float32}
LAYERS = ("tokens", "cls")


@dataclass(frozen=True)
class Features:
    """Frozen features of a data set.

    Attributes:
        tokens: ``(n, N, d)``, what the model's pooling gets.
        labels: ``(n,)``, int64.
        grid: (H, W) of the N positions, or None where there is none.
    """

    tokens: Tensor
    labels: Tensor
    grid: tuple[int, int] | None

    def __len__(self) -> int:
        return len(self.labels)


def cached_features(
    model: nn.Module | str,
    data: LabelledImages,
    layer: str = "tokens",
    *,
    dtype: str = "float16",
    batch_size: int = 256,
    device: str = "auto",
    folder: str | Path | None = None,
    progress: bool = True,
) -> Features:
    """The features of all images, from disk where they have been computed before.

    They are written as they are computed and never held in memory as a whole. What was cut goes on where it stopped.

    Args:
        model: a timm classification model, or the name of one with published weights.
        data: of :func:`~simpool_lite.load_data`, without augmentation.
        layer: "tokens", the patches without CLS and registers, or "cls", the class token alone (N = 1).
        dtype: "float16" or "float32", on disk.
        batch_size: images per forward pass.
        device: "auto" is cuda, then mps, then cpu.
        folder: where they are kept; default `simpool_lite` in the user's cache folder. The name of a set is a hash of
            the weights, the data (labels, first and last image), layer and dtype.
        progress: show a bar over the images.

    Raises:
        ValueError: an unknown layer or dtype; images are augmented; the model has no class token.
        FileNotFoundError: the published weights are neither cached nor to be downloaded.
    """
    check_choice("layer", layer, LAYERS)
    check_choice("dtype", dtype, DTYPES)
    if getattr(data, "augment", None) is not None:
        raise ValueError(f"data: expected images that are the same every time, got {data!r} augmented; augment=False")
    if isinstance(model, str):
        model = timm_model(model, pretrained=True, num_classes=0)
    model, device = model.to(resolve_device(device)).eval(), resolve_device(device)
    name = _identity(model, data, layer, dtype)
    folder = (cache_folder() if folder is None else Path(folder).expanduser()) / f"features-{name}"
    if not (folder / "set.json").is_file():
        _compute(model, data, layer, DTYPES[dtype], batch_size, device, folder, progress)
    grid = json.loads((folder / "set.json").read_text())["grid"]
    tokens = torch.from_numpy(np.load(folder / "tokens.npy", mmap_mode="r+"))
    return Features(tokens, torch.as_tensor(data.targets), tuple(grid) if grid else None)


def features_in_batches(
    model: nn.Module, data: LabelledImages, layer: str, batch_size: int, device: torch.device, start: int = 0
) -> Iterator[tuple[Tensor, tuple[int, int] | None]]:
    """Tokens ``(B, N, d)`` of consecutive images, from one on, and their grid."""
    rest = Subset(data, range(start, len(data))) if start else data
    for images, _ in DataLoader(rest, batch_size, collate_fn=data.collate):
        if layer == "cls":
            if getattr(model, "cls_token", None) is None:
                raise ValueError(f"layer: expected 'tokens' of {type(model).__name__}, which has no CLS, got 'cls'")
            with torch.no_grad():
                yield model.forward_features(images.to(device))[:, :1], None
        else:
            yield patch_features(model, images.to(device))


def _compute(
    model: nn.Module,
    data: LabelledImages,
    layer: str,
    dtype: torch.dtype,
    batch_size: int,
    device: torch.device,
    folder: Path,
    progress: bool,
) -> None:
    """Fill ``tokens.npy``; ``done.json`` says how far, ``set.json`` that it is whole."""
    file, done = folder / "tokens.npy", folder / "done.json"
    rows = json.loads(done.read_text()) if done.is_file() and file.is_file() else 0
    tokens = np.load(file, mmap_mode="r+") if rows else None
    with tqdm(total=len(data), initial=rows, desc="features", unit="image", disable=not progress) as bar:
        for batch, grid in features_in_batches(model, data, layer, batch_size, device, rows):  # noqa: B007
            if tokens is None:
                folder.mkdir(parents=True, exist_ok=True)
                shape = (len(data), *batch.shape[1:])
                tokens = np.lib.format.open_memmap(file, "w+", str(dtype).removeprefix("torch."), shape)
            tokens[rows : rows + len(batch)] = batch.to(dtype).cpu().numpy()
            rows += len(batch)
            bar.update(len(batch))
            tokens.flush()
            with write_atomically(done) as temporary:
                temporary.write_text(json.dumps(rows))
    with write_atomically(folder / "set.json") as temporary:
        temporary.write_text(json.dumps({"grid": grid}))


def _identity(model: nn.Module, data: LabelledImages, layer: str, dtype: str) -> str:
    digest = hashlib.sha256(f"{type(model).__name__} {data!r} {layer} {dtype}".encode())
    for key, tensor in model.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    for tensor in (torch.as_tensor(data.targets), data[0][0], data[len(data) - 1][0]):
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
