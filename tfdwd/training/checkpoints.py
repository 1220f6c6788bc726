"""What fine-tuning keeps in a folder: the student, the best one, and all that a resumption needs.

The folder holds last.keras and best.keras (of a quantise-aware model last.weights.h5 and
best.weights.h5) and state.npz.
"""

import io
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfdwd import bridge, files, outputs
from tfdwd.errors import Error, one_line
from tfdwd.training.augmentation import Moves

_STATE = "state.npz"
_HISTORY = ("loss", "val_loss", "val_agreement", "val_top1")


@dataclass(frozen=True)
class Best:
    """The best weights that a run has had, those it began with among them.

    Attributes:
      before: {name: value} that was measured before the first step.
      values: the same of these weights; the first one says which weights are best.
      weights: of the student.
    """

    before: Mapping[str, float]
    values: Mapping[str, float]
    weights: Sequence[np.ndarray]


@dataclass(frozen=True)
class State:
    """Where a run stands after an epoch.

    Attributes:
      epoch: number of epochs that are done.
      epochs: that there are in all.
      rate: the highest learning rate.
      moves: that images are changed by.
      features: paths of the layers whose outputs are compared.
      history: of each of them.
      kinds, deviations: of the outputs, as they were found on the first images of the run.
      variables: of student and optimizer, as `variables_of` orders them.
      best: the best weights; None where nothing is measured.
    """

    epoch: int
    epochs: int
    rate: float
    moves: Moves
    features: Sequence[str]
    history: Mapping[str, list[float]]
    kinds: Sequence[str]
    deviations: Sequence[float]
    variables: Sequence[np.ndarray]
    best: Best | None


def check_folder(folder: Path, option: str) -> None:
    """Refuses a folder that does not exist or cannot be written to.

    Raises:
      tfdwd.Error: names the option.
    """
    if not os.path.isdir(folder):
        what = "is no folder" if os.path.exists(folder) else "does not exist; create it first"
        raise Error(f"{option}: {folder} {what}")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise Error(f"{option}: cannot write to {folder}: {error.strerror or error}") from error


def variables_of(learner: Any) -> list[Any]:
    """All that training changes: weights, seeds of dropout, and what the optimizer remembers."""
    variables = learner.optimizer.variables  # a method in tf_keras
    return [*learner.student.variables, *(variables() if callable(variables) else variables)]


def values_of(variables: Sequence[Any]) -> list[np.ndarray]:
    """Copies of the values of variables, in NumPy's own types."""
    arrays = [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
    return [a.astype(np.float32) if a.dtype.name == "bfloat16" else a for a in arrays]


def read(folder: Path) -> State | None:
    """The state in the folder, or None.

    Raises:
      tfdwd.Error: it is damaged.
    """
    path = folder / _STATE
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            held = {name: content[name] for name in content.files}
        state = State(
            int(held["epoch"]),
            int(held["epochs"]),
            float(held["rate"]),
            _moves(held["moves"]),
            [str(path) for path in held["features"]],
            {name: [float(value) for value in held[name]] for name in _HISTORY if name in held},
            [str(kind) for kind in held["kinds"]],
            [float(value) for value in held["deviations"]],
            [held[f"w{number}"] for number in range(int(held["count"]))],
            _best(held),
        )
        if state.epoch < 1 or any(len(values) != state.epoch for values in state.history.values()):
            raise ValueError(f"{state.epoch} epochs do not fit its history")
        if not (
            set(state.kinds) <= set(outputs.KINDS)
            and len(state.kinds) == len(state.deviations)
            and all(0 < deviation < np.inf for deviation in state.deviations)
            and all(array.dtype.kind in "biuf" for array in state.variables)
            and state.epochs >= state.epoch
            and 0 <= state.rate < np.inf
        ):
            raise ValueError("it holds what no run writes")
    except Exception as error:  # NumPy raises whatever its readers of zip and arrays raise
        raise Error(
            f"{path}: expected the state of a run, but it cannot be read ({one_line(error)}): it "
            "is damaged or from another version; remove it and start again, or omit resume"
        ) from error
    return state


def _best(held: Mapping[str, np.ndarray]) -> Best | None:
    if "best_count" not in held:
        return None
    before, values = (
        {name: float(held[f"{which}_{name}"]) for name in _HISTORY if f"{which}_{name}" in held}
        for which in ("before", "best")
    )
    weights = [held[f"best_w{number}"] for number in range(int(held["best_count"]))]
    if (
        not before
        or list(before) != list(values)
        or any(a.dtype.kind not in "biuf" for a in weights)
    ):
        raise ValueError("its best weights are not what a run writes")
    return Best(before, values, weights)


def _moves(held: np.ndarray) -> Moves:
    mirrors, down, right, mixes = map(int, held)
    return Moves(bool(mirrors), (down, right), bool(mixes))


def write(folder: Path, state: State) -> None:
    """Writes the state, whole or not at all."""
    arrays: dict[str, Any] = {f"w{number}": value for number, value in enumerate(state.variables)}
    arrays |= {name: np.array(values) for name, values in state.history.items()}
    if state.best is not None:
        arrays["best_count"] = np.array(len(state.best.weights))
        arrays |= {f"best_w{number}": value for number, value in enumerate(state.best.weights)}
        arrays |= {f"before_{name}": np.array(v) for name, v in state.best.before.items()}
        arrays |= {f"best_{name}": np.array(v) for name, v in state.best.values.items()}
    sheet = io.BytesIO()
    np.savez(
        sheet,
        epoch=np.array(state.epoch),
        epochs=np.array(state.epochs),
        rate=np.array(state.rate),
        moves=np.array([state.moves.mirrors, *state.moves.shifts, state.moves.mixes]),
        features=np.array(state.features, dtype=str),
        count=np.array(len(state.variables)),
        kinds=np.array(state.kinds),
        deviations=np.array(state.deviations),
        **arrays,
    )
    files.write_whole(folder / _STATE, sheet.getvalue())


def restore(learner: Any, state: State, folder: Path) -> None:
    """Puts the state's variables into student and optimizer.

    Raises:
      tfdwd.Error: they are of another model or optimizer.
    """
    variables = variables_of(learner)
    if not _fit(state.variables, variables) or (
        state.best is not None and not _fit(state.best.weights, learner.student.weights)
    ):
        raise Error(
            f"{folder / _STATE}: expected the checkpoint of this model with the same optimizer, "
            "got another; name another folder or omit resume"
        )
    put(state.variables, variables)


def put(values: Sequence[np.ndarray], variables: Sequence[Any]) -> None:
    """Gives variables the values that `values_of` took."""
    for variable, array in zip(variables, values, strict=True):
        variable.assign(array)


def _fit(values: Sequence[np.ndarray], variables: Sequence[Any]) -> bool:
    return [array.shape for array in values] == [tuple(variable.shape) for variable in variables]


def save_student(student: Any, folder: Path, name: str) -> None:
    """Saves the student under a name such as "best", whole or not at all."""
    if bridge.kit(student) is keras:
        files.save_model(student, folder / f"{name}.keras")
        return
    # See tfdwd.quantize_aware: it cannot be loaded from .keras.
    with tempfile.TemporaryDirectory() as own:
        path = Path(own) / f"{name}.weights.h5"
        student.save_weights(path)
        files.write_whole(folder / path.name, path.read_bytes())
