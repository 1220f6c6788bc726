"""What can be chosen in fine-tuning, checked when it is put together."""

from dataclasses import dataclass

from tfdwd.checks import choice, number, positive, whole
from tfdwd.errors import Error

OPTIMIZERS = ("adamw", "sgd")
_HIGHEST_RATE = 1000.0


@dataclass(frozen=True)
class Options:
    """The numbers of `tfdwd.finetune`, of the same names and meanings there.

    Raises:
      tfdwd.Error: a wrong type, or a number out of its range.
    """

    epochs: int | None
    minutes: float | None
    optimizer: str
    learning_rate: float
    warmup: float
    weight_decay: float
    labels_weight: float
    features_weight: float | None
    label_smoothing: float
    ema: float | None
    batch_size: int
    steps_per_epoch: int | None
    seed: int

    def __post_init__(self) -> None:
        if self.epochs is not None:
            whole("epochs", self.epochs, 1)
        if self.minutes is not None:
            positive("minutes", self.minutes)
            if self.epochs is not None:
                raise Error("expected epochs= or minutes=, got both")
        whole("batch_size", self.batch_size, 1)
        if self.steps_per_epoch is not None:
            whole("steps_per_epoch", self.steps_per_epoch, 1)
        whole("seed", self.seed, 0, 2**32 - 1)
        choice("optimizer", self.optimizer, OPTIMIZERS)
        for name in ("learning_rate", "weight_decay", "labels_weight"):
            number(name, getattr(self, name))
        if self.features_weight is not None:
            number("features_weight", self.features_weight)
        for name in ("warmup", "label_smoothing", "ema"):
            part = getattr(self, name)
            if name == "ema" and part is None:
                continue
            number(name, part)
            if part >= 1:
                raise Error(f"{name}: expected 0 or more and less than 1, got {part}")
        if self.learning_rate > _HIGHEST_RATE:
            raise Error(
                f"learning_rate: expected at most {_HIGHEST_RATE:g}, got {self.learning_rate}"
            )
        if self.learning_rate * self.weight_decay >= 1:
            raise Error(
                "weight_decay: expected learning_rate * weight_decay, the part that one step takes "
                f"off a kernel, to be less than 1, got {self.learning_rate * self.weight_decay:g}"
            )
