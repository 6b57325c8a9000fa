"""What one training run is: everything that its result depends on, and nothing else."""

import hashlib
import json
from dataclasses import asdict, dataclass, field

from ..checks import check_bool, check_choice, check_int, check_number, check_options, check_path, check_text

# Raised when training or evaluation changes meaning, so that old records are not taken for new ones.
PROTOCOL = 2
REGIMES = ("head", "once", "long")
SMALLEST = {"seed": 0, "epochs": 0, "batch_size": 1}
TEXTS, PATHS = ("backbone", "pool", "dataset", "target"), ("data_root", "start")
OPTIONS = ("pool_kwargs", "model_options", "data_options", "trunk")
MAY_BE_NONE = ("target", "trunk", *PATHS)


@dataclass(frozen=True)
class RunConfig:
    """Configuration of one run.

    Args:
        backbone: convnet_micro, vit_micro or any model of timm.
        pool: a pooling of simpool_lite.list_pools(), or cls, a transformer's own class token.
        pool_kwargs: arguments of the pooling.
        norm_first: a transformer's final norm comes before the pooling.
        model_options: further arguments of simpool_lite.create_model().
        pretrained: start from published weights, see simpool_lite.create_model().
        start: fine-tune this file of save_model(), such as what `dino` writes; its classifier, if any, begins anew.
        dataset: a data set of simpool_lite.load_data().
        target: what to learn, for photo-digits only.
        data_options: further arguments of simpool_lite.load_data().
        data_root: folder of the images.
        seed: of the initialisation and the order of the images; the data do not depend on it.
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        learning_rate: the maximum of the schedule.
        weight_decay: of AdamW.
        regime: "once" trains a network end to end and tests it on :data:`~simpool_lite.experiments.run.TEST_IMAGES`
            images; "long" does so with four times the training images; "head" trains the pooling, a BatchNorm without
            affine and a linear classifier on the features of a frozen trunk.
        measured_on: the split that the measurements are of: "test", or "val" for choices.
        trunk: for "head": fields of the configuration whose trained network gives the features.
    """

    backbone: str
    pool: str
    pool_kwargs: dict = field(default_factory=dict)
    norm_first: bool = True
    model_options: dict = field(default_factory=dict)
    pretrained: bool | str = False
    dataset: str = "photo-digits"
    target: str | None = None
    data_options: dict = field(default_factory=dict)
    data_root: str | None = None
    seed: int = 0
    epochs: int = 40
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    regime: str = "once"
    measured_on: str = "test"
    trunk: dict | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        check_choice("regime", self.regime, REGIMES)
        check_choice("measured_on", self.measured_on, ("test", "val"))
        if (self.regime == "head") != (self.trunk is not None):
            wanted = "the fields of the trunk's configuration" if self.regime == "head" else "None"
            raise ValueError(f"trunk: expected {wanted} with regime={self.regime!r}, got {self.trunk!r}")
        check_bool("norm_first", self.norm_first)
        checked = {name: check_int(name, getattr(self, name), least) for name, least in SMALLEST.items()}
        checked["learning_rate"] = check_number("learning_rate", self.learning_rate, above_zero=True)
        checked["weight_decay"] = check_number("weight_decay", self.weight_decay, above_zero=True, zero=True)
        for names, check in ((TEXTS, check_text), (OPTIONS, check_options), (PATHS, check_path)):
            for name in names:
                if (value := getattr(self, name)) is not None or name not in MAY_BE_NONE:
                    checked[name] = check(name, value)
        if not isinstance(self.pretrained, bool | str):
            raise TypeError(f"pretrained: expected True, False or the name of weights, got {self.pretrained!r}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def model(self) -> dict:
        """The arguments of :func:`~simpool_lite.create_model`, without those that the images decide."""
        names = ("backbone", "pool", "pool_kwargs", "norm_first", "pretrained")
        return {name: getattr(self, name) for name in names} | self.model_options

    def trunk_config(self) -> "RunConfig":
        """The configuration of the network that gives the features."""
        return RunConfig(**self.trunk)

    def hash(self) -> str:
        """Twelve hexadecimal digits that name this configuration under the current protocol."""
        values = asdict(self)
        if not self.model_options:
            del values["model_options"]  # younger than the first records, which keep their names
        if self.start is None:
            del values["start"]
        text = json.dumps(values | {"protocol": PROTOCOL}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
