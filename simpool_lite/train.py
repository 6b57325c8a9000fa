"""Train one model and measure it."""

import math
import time

import pandas as pd
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .config import RunConfig
from .datasets import LabelledImages, load_data
from .datasets.photo_digits import DEFAULT_NUM_IMAGES
from .device import resolve_device
from .evaluate import evaluate, evaluate_attention
from .models import create_model
from .resources import peak_memory_mb, reset_peak_memory


def train(
    config: RunConfig, device: str = "auto", progress: bool = True
) -> tuple[nn.Module, dict[str, float | int], pd.DataFrame]:
    """Train a model from scratch: AdamW, one cycle of the learning rate, the last step's weights.

    A GPU that has bfloat16 computes in mixed precision. The same configuration on the same device and
    number of threads gives the same model.

    Args:
        config: what to train.
        device: "auto" is cuda, then mps, then cpu.
        progress: show a bar over the epochs.

    Returns:
        The model, in evaluation mode; its measurements on the test split (see :mod:`simpool_lite.evaluate`)
        with ``parameters``, ``images_per_second`` (training steps only), ``peak_memory_mb`` and ``seconds``;
        the training curve: one row an epoch with ``epoch step train_loss top1 loss`` (the last two on the
        test split).

    Raises:
        FloatingPointError: the loss is no longer finite.
    """
    started = time.perf_counter()
    accelerator = _accelerator(device)
    reset_peak_memory(accelerator.device)
    set_seed(config.seed)
    train_data, test_data = (load_split(config, split) for split in ("train", "test"))
    model = create_model(
        config.backbone,
        config.pool,
        len(train_data.classes),
        pool_kwargs=config.pool_kwargs,
        norm_first=config.norm_first,
        pretrained=config.pretrained,
        img_size=train_data[0][0].shape[-1],
    ).to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adamw", lr=config.learning_rate, weight_decay=config.weight_decay)
    batch_size = min(config.batch_size, len(train_data))
    shuffle = torch.Generator().manual_seed(config.seed)
    loader = DataLoader(
        train_data,
        batch_size,
        shuffle=True,
        drop_last=True,
        generator=shuffle,
        collate_fn=train_data.collate,
    )
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    schedule = OneCycleLR(optimizer, config.learning_rate, total_steps=config.epochs * len(loader))

    curve, training_seconds = [], 0.0
    for epoch in tqdm(range(1, config.epochs + 1), f"{config.backbone} {config.pool}", disable=not progress):
        epoch_started = time.perf_counter()
        train_loss = _train_epoch(model, loader, optimizer, schedule, accelerator)
        training_seconds += time.perf_counter() - epoch_started
        if not math.isfinite(train_loss):
            raise FloatingPointError(f"the training loss is {train_loss} in epoch {epoch}; lower the learning rate")
        scores = evaluate(model, test_data, accelerator.device)
        curve.append({"epoch": epoch, "step": epoch * len(loader), "train_loss": train_loss, **scores})

    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    measured = {
        **evaluate(model, test_data, accelerator.device),
        **evaluate_attention(model, test_data, accelerator.device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "images_per_second": config.epochs * len(loader) * batch_size / training_seconds,
        "peak_memory_mb": peak_memory_mb(accelerator.device),
        "seconds": time.perf_counter() - started,
    }
    return model, measured, pd.DataFrame(curve)


def load_split(config: RunConfig, split: str) -> LabelledImages:
    """The data of a run; size, mean and std of photographs follow the backbone's timm configuration.

    More training images of photo-digits are still tested on the same 1,024; fewer on as few.
    """
    if config.dataset == "photo-digits":
        options = dict(config.data_options)
        if split == "test" and "num_images" in options:
            options["num_images"] = min(options["num_images"], DEFAULT_NUM_IMAGES["test"])
        return load_data(config.dataset, split, target=config.target, **options)
    timm_config = timm.get_pretrained_cfg(config.backbone)
    form = {"image_size": timm_config.input_size[-1], "mean": timm_config.mean, "std": timm_config.std}
    return load_data(config.dataset, split, data_root=config.data_root, **form | config.data_options)


def _accelerator(device: str) -> Accelerator:
    chosen = resolve_device(device)
    mixed = chosen.type == "cuda" and torch.cuda.is_bf16_supported()
    return Accelerator(cpu=chosen.type == "cpu", mixed_precision="bf16" if mixed else "no")


def _train_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    schedule: OneCycleLR,
    accelerator: Accelerator,
) -> float:
    model.train()
    total: torch.Tensor | float = 0.0
    for images, labels in loader:
        loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        total += loss.detach()  # read once an epoch: a GPU need not wait for it every step
    return float(total) / len(loader)
