"""Train a classifier: AdamW, one cycle of the learning rate, the last step's weights.

One process trains, or several together, one per GPU, as the ``Accelerator`` says: the batch is split among them and
the gradients are averaged, so ``batch_size`` means the same for any number of them; a batch norm sees the share of its
process.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast, set_seed
from timm.optim import create_optimizer_v2
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..datasets import LabelledImages
from ..device import resolve_device


def train(
    model: nn.Module,
    data: LabelledImages,
    accelerator: Accelerator,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    measure: Callable[[nn.Module], dict[str, float]],
    measurements: int | None = None,
    compile: bool = False,
    progress: bool = True,
    description: str = "training",
) -> tuple[nn.Module, list[dict[str, float]], float]:
    """Train a model.

    Args:
        model: a classifier of ``data``'s classes.
        data: the training images; a batch is drawn without replacement, and the last incomplete one is left out.
        accelerator: of :func:`accelerator_on`.
        epochs: passes over the images.
        batch_size: images per step, over all processes.
        learning_rate: the maximum of the cycle.
        weight_decay: AdamW's.
        seed: of the order of the images.
        measure: measures the model, the same on every process; its figures become part of the curve.
        measurements: how often, evenly over the training; by default after each epoch.
        compile: train with ``torch.compile``: a minute to start, then faster on a GPU.
        progress: show a bar over the epochs.
        description: what the bar says.

    Returns:
        The trained model; the training curve, per measurement ``epoch`` (a fraction within an epoch), ``step``,
        ``train_loss`` (the mean since the last one) and the figures of ``measure``; images per second, of the training
        steps only.

    Raises:
        FloatingPointError: the loss is no longer finite.
        ValueError: the batch cannot be split evenly among the processes.
    """
    batch_size = _batch_size(batch_size, len(data), accelerator.num_processes)
    model = model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(model, "adamw", lr=learning_rate, weight_decay=weight_decay)
    order = torch.Generator().manual_seed(seed)
    loader = DataLoader(data, batch_size, shuffle=True, drop_last=True, generator=order, collate_fn=data.collate)
    if accelerator.num_processes > 1:  # the same start everywhere, but not the same dropout and augmentation
        set_seed(seed, device_specific=True)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    steps = epochs * len(loader)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model = accelerator.unwrap_model(wrapped)  # the same parameters; measured, as that needs no other process
    trained = wrapped
    if compile:
        torch.compiler.reset()  # else a process would leave its ninth model or so uncompiled, and just warn
        trained = torch.compile(wrapped)

    curve, seconds, done = [], 0.0, 0
    batches = (batch for _ in range(epochs) for batch in loader)
    measurements = min(measurements or epochs, steps)
    hidden = not (progress and accelerator.is_main_process)
    for part in tqdm(range(1, measurements + 1), description, disable=hidden):
        started = time.perf_counter()
        until = steps * part // measurements
        train_loss = _train_steps(trained, islice(batches, until - done), optimizer, schedule, accelerator)
        seconds, done = seconds + time.perf_counter() - started, until
        epoch = part * epochs // measurements if part * epochs % measurements == 0 else part * epochs / measurements
        if not math.isfinite(train_loss):
            raise FloatingPointError(f"the training loss is {train_loss} in epoch {epoch}; lower the learning rate")
        for buffer in model.buffers():  # a batch norm's statistics differ from process to process
            broadcast(buffer)
        curve.append({"epoch": epoch, "step": done, "train_loss": train_loss, **measure(model)})
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    return model, curve, steps * batch_size / seconds


@contextmanager
def accelerator_on(device: str) -> Iterator[Accelerator]:
    """An ``Accelerator`` on the device, for the time of a ``with``; what it leaves behind in the process is removed.

    A GPU that has bfloat16 computes in mixed precision.

    Raises:
        ValueError: the launcher's environment asks for another device.
    """
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


def _batch_size(wanted: int, images: int, processes: int) -> int:
    batch_size = min(wanted, images)
    if batch_size % processes:
        raise ValueError(
            f"batch_size: expected a multiple of {processes}, as it is the total over the {processes} processes, "
            f"got {batch_size}{' (all training images)' if batch_size < wanted else ''}"
        )
    return batch_size


def _train_steps(
    model: nn.Module,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: OneCycleLR,
    accelerator: Accelerator,
) -> float:
    model.train()
    losses: list[torch.Tensor] = []
    for images, labels in batches:
        loss = F.cross_entropy(model(images.contiguous(memory_format=torch.channels_last)), labels)
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())  # read once per part: a GPU need not wait for it every step
    return float(accelerator.reduce(torch.stack(losses).sum(), "mean")) / len(losses)
