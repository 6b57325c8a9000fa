"""Train one model and measure it, in one process or in several that train it together.

A grid (:mod:`simpool_lite.ablation`) trains many models side by side, each in a process of its own. A model
too large for that is trained by several processes, one a GPU, on one machine or on more. From a notebook::

    from accelerate import notebook_launcher
    from simpool_lite.config import RunConfig
    from simpool_lite.train import train_and_record

    config = RunConfig("resnet50", "simpool", dataset="imagenet", data_root="imagenet", epochs=100, batch_size=256)
    notebook_launcher(train_and_record, args=(config, "runs/imagenet"), num_processes=8)

and without one::

    accelerate launch --multi_gpu --num_processes 8 -m simpool_lite.train --backbone resnet50 --pool simpool \\
        --dataset imagenet --data-root imagenet --epochs 100 --batch-size 256 --store runs/imagenet

(``--num_machines 2 --machine_rank 0 --main_process_ip ...`` for two machines, see ``accelerate launch --help``;
for several processes on CPUs keep ``--multi_gpu`` and add ``--device cpu`` at the end: ``accelerate launch --cpu``
starts one process, whatever ``--num_processes`` says). The batch is split among the processes and the gradients
are averaged, so ``batch_size`` means the same for any number of them; a batch norm sees its process's share.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, Field, fields
from pathlib import Path

import pandas as pd
import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast, set_seed
from timm.optim import create_optimizer_v2
from torch import distributed, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .config import RunConfig
from .datasets import DATASETS, LabelledImages, load_data
from .datasets.photo_digits import DEFAULT_NUM_IMAGES
from .device import resolve_device
from .evaluate import evaluate, evaluate_attention
from .models import create_model, save_model
from .resources import peak_memory_mb, reset_peak_memory
from .store import Store, make_record


def train(
    config: RunConfig, device: str = "auto", progress: bool = True, *, compile: bool = False
) -> tuple[nn.Module, dict[str, float | int], pd.DataFrame]:
    """Train a model from scratch: AdamW, one cycle of the learning rate, the last step's weights.

    A GPU that has bfloat16 computes in mixed precision. The same configuration on the same device and
    number of threads gives the same model.

    Args:
        config: what to train.
        device: "auto" is cuda, then mps, then cpu.
        progress: show a bar over the epochs.
        compile: train with ``torch.compile``: a minute to start, then faster on a GPU. Not a part of the
            configuration, as it changes no more than the rounding.

    Returns:
        The model, in evaluation mode; its measurements on the test split (see :mod:`simpool_lite.evaluate`)
        with ``parameters``, ``images_per_second`` (training steps only), ``peak_memory_mb`` (of this process)
        and ``seconds``; the training curve: one row an epoch with ``epoch step train_loss`` and, on the test
        split, ``top1 loss attention_entropy logit_spread``.

    Raises:
        FloatingPointError: the loss is no longer finite.
        ValueError: the batch cannot be split evenly among the processes, or what the configuration names does
            not exist.
    """
    started = time.perf_counter()
    with _accelerator(device) as accelerator:
        reset_peak_memory(accelerator.device)
        set_seed(config.seed)
        train_data, test_data = (load_split(config, split) for split in ("train", "test"))
        batch_size = _batch_size(config, len(train_data), accelerator.num_processes)
        model = create_model(
            config.backbone,
            config.pool,
            len(train_data.classes),
            pool_kwargs=config.pool_kwargs,
            norm_first=config.norm_first,
            pretrained=config.pretrained,
            img_size=train_data[0][0].shape[-1],
            **config.model_options,
        ).to(memory_format=torch.channels_last)
        optimizer = create_optimizer_v2(model, "adamw", lr=config.learning_rate, weight_decay=config.weight_decay)
        shuffle = torch.Generator().manual_seed(config.seed)
        loader = DataLoader(
            train_data,
            batch_size,
            shuffle=True,
            drop_last=True,
            generator=shuffle,
            collate_fn=train_data.collate,
        )
        if accelerator.num_processes > 1:  # the same start everywhere, but not the same dropout and augmentation
            set_seed(config.seed, device_specific=True)
        wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        schedule = OneCycleLR(optimizer, config.learning_rate, total_steps=config.epochs * len(loader))
        model = accelerator.unwrap_model(wrapped)  # the same parameters; evaluated, as it needs no other process
        trained = wrapped
        if compile:
            torch.compiler.reset()  # else a process would leave its ninth model or so uncompiled, and just warn
            trained = torch.compile(wrapped)

        curve, training_seconds = [], 0.0
        hidden = not (progress and accelerator.is_main_process)
        for epoch in tqdm(range(1, config.epochs + 1), f"{config.backbone} {config.pool}", disable=hidden):
            epoch_started = time.perf_counter()
            train_loss = _train_epoch(trained, loader, optimizer, schedule, accelerator)
            training_seconds += time.perf_counter() - epoch_started
            if not math.isfinite(train_loss):
                raise FloatingPointError(f"the training loss is {train_loss} in epoch {epoch}; lower the learning rate")
            for buffer in model.buffers():  # a batch norm's statistics differ from process to process
                broadcast(buffer)
            scores = evaluate(model, test_data, accelerator.device, accelerator=accelerator)
            curve.append({"epoch": epoch, "step": epoch * len(loader), "train_loss": train_loss, **scores})

        model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        scores = evaluate(model, test_data, accelerator.device, accelerator=accelerator)
        measured = {
            "top1": scores["top1"],
            "loss": scores["loss"],
            **evaluate_attention(model, test_data, accelerator.device, accelerator=accelerator),
            "parameters": sum(p.numel() for p in model.parameters()),
            "images_per_second": config.epochs * len(loader) * batch_size / training_seconds,
            "peak_memory_mb": peak_memory_mb(accelerator.device),
            "seconds": time.perf_counter() - started,
        }
    return model, measured, pd.DataFrame(curve)


def train_and_record(
    config: RunConfig,
    store_folder: str | Path,
    experiment: str = "single",
    variant: str = "",
    profile: str = "",
    device: str = "auto",
    keep_model: bool = False,
    compile: bool = False,
    progress: bool = True,
) -> dict:
    """Train a model and write its record: the one way in which records come about.

    A run that fails is recorded, too, with ``status`` "failed" and the ``reason``. Of several processes that
    train one model, the main one writes.

    Args:
        config: what to train.
        store_folder: the :class:`~simpool_lite.store.Store`'s folder.
        experiment, variant, profile: labels of the record; the variant defaults to the name of the pool.
        device: "auto" is cuda, then mps, then cpu.
        keep_model: also save the trained model in the store.
        compile: see :func:`train`.
        progress: show a bar over the epochs.

    Returns:
        The record.

    Raises:
        Exception: whatever stopped the training, after it was recorded, if several processes train the model:
            the others would wait for this one for ever, and it is the launcher that can end them.
    """
    store = Store(store_folder)
    labels = {"experiment": experiment, "variant": variant or config.pool, "profile": profile}
    labels["device"] = resolve_device(device).type
    try:
        model, measured, curve = train(config, device, progress, compile=compile)
    except Exception as error:  # one bad run must not end a grid of hundreds
        record = make_record(config, {}, **labels, status="failed", reason=f"{type(error).__name__}: {error}")
        store.add(record)  # by every process that fails: the launcher may end the main one first
        if _processes() > 1:
            raise
        return record
    record = make_record(config, measured, **labels)
    if _rank() == 0:
        if keep_model:
            save_model(model, store.new_model_path(config))
        store.add(record, curve)
    return record


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


@contextmanager
def _accelerator(device: str) -> Iterator[Accelerator]:
    chosen = resolve_device(device)
    mixed = chosen.type == "cuda" and torch.cuda.is_bf16_supported()
    accelerator = Accelerator(
        cpu=chosen.type == "cpu",
        mixed_precision="bf16" if mixed else "no",
        dataloader_config=DataLoaderConfiguration(split_batches=True),
    )
    try:
        if accelerator.device.type != chosen.type:
            raise ValueError(
                f"device: expected {accelerator.device.type!r}, which the environment of accelerate launch asks for, "
                f"got {device!r}, here {chosen.type!r}; name the device"
            )
        yield accelerator
    finally:
        # Accelerate keeps its device and precision for the life of the process. The next run in this process may
        # want others, and notebook_launcher wants none.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def _batch_size(config: RunConfig, images: int, processes: int) -> int:
    batch_size = min(config.batch_size, images)
    if batch_size % processes:
        raise ValueError(
            f"batch_size: expected a multiple of {processes}, as it is the total over the {processes} processes, "
            f"got {batch_size}{' (all training images)' if batch_size < config.batch_size else ''}"
        )
    return batch_size


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
    return float(accelerator.reduce(total, "mean")) / len(loader)


def _rank() -> int:
    """This process's number among those that train one model."""
    return distributed.get_rank() if _is_distributed() else int(os.environ.get("RANK", 0))  # the launcher's


def _processes() -> int:
    return distributed.get_world_size() if _is_distributed() else 1


def _is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()


# What --help says of the fields of RunConfig.
_OPTIONS = {
    "backbone": "convnet_micro, vit_micro or any model of timm",
    "pool": "a pooling of simpool_lite.list_pools(), or cls, a transformer's own class token",
    "pool_kwargs": "its arguments",
    "norm_first": "a transformer's final norm before the pooling",
    "model_options": "further arguments of simpool_lite.create_model()",
    "pretrained": "start from timm's weights",
    "dataset": ", ".join(DATASETS),
    "target": "photo-digits only: digit or photo",
    "data_options": "further arguments of simpool_lite.load_data()",
    "data_root": "folder of the images",
    "seed": "of the initialisation and the order of the images",
    "epochs": "passes over the training images",
    "batch_size": "images a step, over all processes",
    "learning_rate": "the schedule's maximum",
    "weight_decay": "AdamW's",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line, see ``--help``. Returns the exit status: 0, or 1 for a run that failed."""
    parser = argparse.ArgumentParser(
        prog="python -m simpool_lite.train",
        description="Train one model and write its record into a store. Under `accelerate launch -m` (or torchrun -m) "
        "several processes train it together. A run that the store has already is not repeated, unless it failed.",
        epilog="example:  python -m simpool_lite.train --backbone vit_micro --pool simpool --pool-kwargs "
        "'{\"gamma\": 1.25}' --epochs 3 --store runs/mine",
    )
    run = parser.add_argument_group("the run")
    for field in fields(RunConfig):
        _add_option(run, field, _OPTIONS[field.name])
    parser.add_argument("--store", required=True, metavar="DIR", help="folder of the record")
    parser.add_argument("--experiment", default="single", metavar="NAME", help="label of the record (%(default)s)")
    parser.add_argument("--variant", default="", metavar="NAME", help="label of the record (the pooling's name)")
    parser.add_argument("--profile", default="", metavar="NAME", help="label of the record")
    parser.add_argument("--device", default="auto", help="auto (cuda, then mps, then cpu), cuda, mps or cpu")
    parser.add_argument("--keep-model", action="store_true", help="also save the trained model in the store")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    options = vars(parser.parse_args(arguments))
    config = RunConfig(**{field.name: options.pop(field.name) for field in fields(RunConfig)})
    folder = options.pop("store")

    records = Store(folder).records()
    if ((records.config_hash == config.hash()) & (records.status == "ok")).any():
        if _rank() == 0:
            print(f"{config.hash()} is done already, see {folder}")
        return 0
    try:
        record = train_and_record(config, folder, **options)
        if record["status"] == "failed":
            print(f"error: {record['reason']}", file=sys.stderr)
            return 1
        if _rank() == 0:
            crew = f"{_processes()} process{'es' if _processes() > 1 else ''}"
            print(f"{config.hash()}: top-1 {record['top1']:.2f} %, {record['seconds']:.0f} s, {crew}, see {folder}")
        return 0
    finally:
        if _is_distributed():
            distributed.destroy_process_group()


def _add_option(group: argparse._ArgumentGroup, field: Field, text: str) -> None:
    """Add the command-line option of one field of :class:`RunConfig`, of the field's type and default."""
    name = "--" + field.name.replace("_", "-")
    if field.default is MISSING and field.default_factory is MISSING:
        group.add_argument(name, required=True, metavar="NAME", help=text)
    elif field.type is bool:
        group.add_argument(name, action=argparse.BooleanOptionalAction, default=field.default, help=text)
    elif field.type is dict:
        group.add_argument(name, type=_json_object, default={}, metavar="JSON", help=f"{text}, as a JSON object")
    else:
        read = field.type if field.type in (int, float) else str
        default = "" if field.default is None else " (%(default)s)"
        group.add_argument(name, type=read, default=field.default, metavar="VALUE", help=text + default)


def _json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object such as '{{\"gamma\": 1.25}}', got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
