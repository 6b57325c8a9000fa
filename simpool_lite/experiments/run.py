"""One run: make the model and the data of a configuration, train, measure, record.

A grid (:mod:`simpool_lite.experiments.grid`) computes many runs side by side, each in a process of its own. A model
too large for that is trained by several processes, one per GPU, on one machine or on more. From a notebook::

    from accelerate import notebook_launcher
    from simpool_lite.lab import RunConfig, train_and_record

    config = RunConfig("resnet50", "simpool", dataset="imagenet", data_root="imagenet", epochs=100, batch_size=256)
    notebook_launcher(train_and_record, args=(config, "runs/imagenet"), num_processes=8)

and without one::

    accelerate launch --multi_gpu --num_processes 8 -m simpool_lite train --backbone resnet50 --pool simpool \\
        --dataset imagenet --data-root imagenet --epochs 100 --batch-size 256 --store runs/imagenet

(``--num_machines 2 --machine_rank 0 --main_process_ip ...`` for two machines, see ``accelerate launch --help``;
for several processes on CPUs keep ``--multi_gpu`` and add ``--device cpu`` at the end: ``accelerate launch --cpu``
starts one process, whatever ``--num_processes`` says).
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import timm
from accelerate.utils import set_seed
from torch import distributed, nn

from ..datasets import LabelledImages, load_data
from ..device import resolve_device
from ..measure.attention import evaluate_attention
from ..measure.classification import evaluate, evaluate_each
from ..models import create_model, load_model, save_model
from ..models.create import check_backbone
from ..training.supervised import accelerator_on, train
from .config import RunConfig
from .machine import peak_memory_mb, reset_peak_memory
from .store import Store, make_record

TEST_IMAGES = 8192  # of photo-digits, in "val" as in "test"
CURVE_IMAGES = 1024  # of "val": the training curve looks at no test image
POINTS_OF_A_CURVE = 6  # at least


def train_and_measure(
    config: RunConfig,
    device: str = "auto",
    progress: bool = True,
    *,
    compile: bool = False,
    observe: Callable[[nn.Module], object] | None = None,
) -> tuple[nn.Module, dict[str, float | int], pd.DataFrame]:
    """Train the model of a configuration from scratch and measure it, by default on the test split.

    The same configuration on the same device and number of threads gives the same model.

    Args:
        config: what to train.
        device: "auto" is cuda, then mps, then cpu.
        progress: show a bar over the epochs.
        compile: see :func:`simpool_lite.training.supervised.train`. Not a part of the configuration, as it changes no
            more than the rounding.
        observe: called with the model at each point of the training curve; must not draw random numbers.

    Returns:
        The model, in evaluation mode; its measurements (see :mod:`simpool_lite.measure`) with ``correct`` (of each
        image, bool), ``parameters``, ``images_per_second`` (training steps only), ``peak_memory_mb`` (of this process)
        and ``seconds``; the training curve: one row per epoch, or six of one, with ``epoch step train_loss`` and
        ``top1 loss attention_entropy logit_spread`` on some images of "val".

    Raises:
        FloatingPointError: the loss is no longer finite.
        ValueError: the batch cannot be split evenly among the processes, or what the configuration names does
            not exist.
    """
    started = time.perf_counter()

    def measure(model: nn.Module) -> dict[str, float]:
        figures = evaluate(model, curve_data, accelerator.device, accelerator=accelerator)
        if observe is not None:
            observe(model)
        return figures

    with accelerator_on(device) as accelerator:
        reset_peak_memory(accelerator.device)
        set_seed(config.seed)
        train_data, test_data = load_split(config, "train"), load_split(config, config.measured_on)
        curve_data = load_split(config, "val", CURVE_IMAGES)
        model, curve, images_per_second = train(
            make_model(config, train_data),
            train_data,
            accelerator,
            epochs=config.epochs,
            batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            seed=config.seed,
            measure=measure,
            measurements=max(config.epochs, POINTS_OF_A_CURVE),
            compile=compile,
            progress=progress,
            description=f"{config.backbone} {config.pool}",
        )
        final, correct = evaluate_each(model, test_data, accelerator.device, accelerator=accelerator)
        measured = {
            "top1": final["top1"],
            "loss": final["loss"],
            "correct": correct,
            **evaluate_attention(model, test_data, accelerator.device, accelerator=accelerator),
            "parameters": sum(p.numel() for p in model.parameters()),
            "images_per_second": images_per_second,
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
        compile: see :func:`train_and_measure`.
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
        model, measured, curve = train_and_measure(config, device, progress, compile=compile)
    except Exception as error:  # one bad run must not end a grid of hundreds
        record = make_record(config, {}, **labels, status="failed", reason=f"{type(error).__name__}: {error}")
        store.add(record)  # by every process that fails: the launcher may end the main one first
        if number_of_processes() > 1:
            raise
        return record
    record = make_record(config, measured, **labels)
    if rank() == 0:
        if keep_model:
            save_model(model, store.new_model_path(config))
        store.add(record, curve)
    return record


def make_model(config: RunConfig, data: LabelledImages) -> nn.Module:
    """The model of a run, for images and classes of ``data``.

    Raises:
        ValueError: the file to start from is of another backbone or pooling.
    """
    if config.start is not None:
        model = load_model(config.start)
        for name in ("backbone", "pool"):
            if (theirs := model.create_config[name]) != (ours := getattr(config, name)):
                raise ValueError(f"start: {config.start} has {name}={theirs!r}, got {ours!r}; pass what it has")
        model.reset_classifier(len(data.classes))
        return model
    return create_model(num_classes=len(data.classes), img_size=data[0][0].shape[-1], **config.model())


def load_split(config: RunConfig, split: str, at_most: int = TEST_IMAGES) -> LabelledImages:
    """The data of a run; size, mean and std of photographs follow the backbone's timm configuration.

    Photo-digits is tested on ``at_most`` images, and on no more than it trains on. "val" is apart from the others.
    """
    if config.dataset == "photo-digits":
        options = {**config.data_options, "without_val": True}
        if split != "train":
            options["num_images"] = min(options.get("num_images", at_most), at_most)
            options.pop("seed", None) if config.regime == "head" else None
        return load_data(config.dataset, split, target=config.target, **options)
    check_backbone(config.backbone)
    timm_config = timm.get_pretrained_cfg(config.backbone)
    form = {"image_size": timm_config.input_size[-1], "mean": timm_config.mean, "std": timm_config.std}
    form |= {"without_val": True} | ({"augment": False} if config.regime == "head" else {}) | config.data_options
    return load_data(config.dataset, split, data_root=config.data_root, **form)


def rank() -> int:
    """This process's number among those that train one model."""
    return distributed.get_rank() if is_distributed() else int(os.environ.get("RANK", 0))  # the launcher's


def number_of_processes() -> int:
    return distributed.get_world_size() if is_distributed() else 1


def is_distributed() -> bool:
    return distributed.is_available() and distributed.is_initialized()
