"""What one training run is: everything that its result depends on, and nothing else."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

# Raised when training or evaluation changes meaning, so that old records are not taken for new ones.
PROTOCOL = 1


@dataclass(frozen=True)
class RunConfig:
    """Configuration of one run.

    Args:
        backbone: see :func:`~simpool_lite.create_model`.
        pool: likewise.
        pool_kwargs: likewise.
        norm_first: likewise.
        model_options: further keywords of ``create_model``.
        pretrained: likewise.
        dataset: see :func:`~simpool_lite.load_data`.
        target: likewise.
        data_options: further options of ``load_data``.
        data_root: likewise.
        seed: of the initialisation and the order of the images; the data do not depend on it.
        epochs: passes over the training images.
        batch_size: images a step.
        learning_rate: the schedule's maximum.
        weight_decay: AdamW's.
    """

    backbone: str
    pool: str
    pool_kwargs: dict = field(default_factory=dict)
    norm_first: bool = True
    model_options: dict = field(default_factory=dict)
    pretrained: bool = False
    dataset: str = "photo-digits"
    target: str | None = None
    data_options: dict = field(default_factory=dict)
    data_root: str | None = None
    seed: int = 0
    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05

    def hash(self) -> str:
        """Twelve hexadecimal digits that name this configuration under the current protocol."""
        values = asdict(self)
        if not self.model_options:
            del values["model_options"]  # younger than the first records, which keep their names
        text = json.dumps(values | {"protocol": PROTOCOL}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
