"""What can be chosen in fine-tuning, checked when it is put together."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdwd.errors import Error

OPTIMIZERS = ("adamw", "sgd")
_HIGHEST_RATE = 1000.0


@dataclass(frozen=True)
class Options:
    """The numbers of `tfdwd.finetune`, of the same names and meanings there.

    Raises:
      tfdwd.Error: a wrong type, or a number out of its range.
    """

    epochs: int
    optimizer: str
    learning_rate: float
    warmup: float
    weight_decay: float
    labels_weight: float
    features_weight: float
    label_smoothing: float
    ema: float | None
    batch_size: int
    steps_per_epoch: int | None
    seed: int

    def __post_init__(self) -> None:
        _whole("epochs", self.epochs, 1)
        _whole("batch_size", self.batch_size, 1)
        if self.steps_per_epoch is not None:
            _whole("steps_per_epoch", self.steps_per_epoch, 1)
        _whole("seed", self.seed, 0, 2**32 - 1)
        if self.optimizer not in OPTIMIZERS:
            raise Error(
                f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}"
            )
        for name in ("learning_rate", "weight_decay", "labels_weight", "features_weight"):
            number(name, getattr(self, name))
        for name in ("warmup", "label_smoothing", "ema"):
            part = getattr(self, name)
            if part is not None:
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


def number(name: str, value: Any) -> None:
    """Refuses what is no finite number of at least 0.

    Raises:
      tfdwd.Error: names `name`.
    """
    right = isinstance(value, int | float | np.integer | np.floating)
    if not right or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise Error(f"{name}: expected a finite number of 0 or more, got {value!r}")


def _whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        range_text = f"of at least {low}" if high is None else f"of {low}..{high}"
        raise Error(f"{name}: expected a whole number {range_text}, got {value!r}")
