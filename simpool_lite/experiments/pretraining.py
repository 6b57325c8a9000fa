"""One DINO run on files: make the model and the images, pre-train, save what comes out."""

from pathlib import Path

import timm
from accelerate.utils import set_seed
from torch import nn

from ..datasets import LabelledImages, load_data
from ..models import create_model, save_model
from ..models.create import takes
from ..training.dino import pretrain
from .config import RunConfig
from .run import rank

DEFAULT_SIDE = 256  # pixels of the images that crops are taken from; large crops have 224 by default


def pretrain_and_save(config: RunConfig, folder: str | Path, **options) -> tuple[Path, list[dict[str, float]]]:
    """Pre-train the model of a configuration on its training images, and save the teacher's backbone.

    The final norm comes after the pooling and a ViT takes images of any size, as in the published DINO models. Images
    are resized and cropped to squares of 256 pixels (``image_size`` of ``data_options``), photo-digits and CIFAR stay
    as they are; their crops must then be smaller: ``crops={"global_size": 32, "local_size": 16, "blur": 0.5}``.

    Args:
        config: which backbone, pooling and images; the rest of it is not looked at.
        folder: of ``checkpoint.pt``, from which the same call goes on, ``curve.csv`` and, at the end,
            ``model.safetensors``.
        **options: of :func:`~simpool_lite.training.dino.pretrain`. ``seed`` is of the initial weights, too.

    Returns:
        The path of the model, for :func:`~simpool_lite.load_model`, and the curve.
    """
    folder = Path(folder)
    data = _images(config)
    set_seed(options.get("seed", 0))
    teacher, curve = pretrain(_features(config), data, folder=folder, **options)
    path = folder / "model.safetensors"
    if rank() == 0:
        save_model(teacher, path)
    return path, curve


def _features(config: RunConfig) -> nn.Module:
    any_size = {"dynamic_img_size": True} if takes(config.backbone, "dynamic_img_size") else {}
    return create_model(
        config.backbone,
        config.pool,
        0,
        pool_kwargs=config.pool_kwargs,
        norm_first=False,
        **any_size | config.model_options,
    )


def _images(config: RunConfig) -> LabelledImages:
    """Training images as they are, for crops to be taken from."""
    if config.dataset == "photo-digits":
        return load_data(config.dataset, "train", target=config.target, **config.data_options)
    timm_config = timm.get_pretrained_cfg(config.backbone)
    form = {"mean": timm_config.mean, "std": timm_config.std, "augment": False}
    if not config.dataset.startswith("cifar"):
        form |= {"image_size": DEFAULT_SIDE, "augment": {"is_training": False, "crop_pct": 1.0}}
    return load_data(config.dataset, "train", data_root=config.data_root, **form | config.data_options)
