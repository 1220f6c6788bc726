"""What is measured of a student after each epoch: by it the best weights are chosen."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tfdwd import evaluation, likeness, outputs, workers
from tfdwd.batches import batches, can_be_read_again, is_labelled
from tfdwd.errors import Error
from tfdwd.execution import predictor
from tfdwd.shapes import in_batches
from tfdwd.training import losses
from tfdwd.training.epochs import Batch, all_labels, take
from tfdwd.training.task import Task

# Learner -> {name: value}; the first one says which weights are best.
Validation = Callable[[Any], dict[str, float]]


def is_better(name: str, value: float, other: float) -> bool:
    """Whether a value is better than another: a top-1 is higher, a loss lower."""
    return value > other if name == "val_top1" else value < other


def of_data(data: Any, model: Any, task: Task, *, batch_size: int, fixed: int | None) -> Validation:
    """Measures on the user's validation data: a classifier's top-1 with labels, else the loss.

    Args:
      data: the user's.
      model: the student.
      task: what it learns.
      batch_size: images that are run at once.
      fixed: the same, where student or teacher take no other number.

    Raises:
      tfdwd.Error: the data is empty, can be read only once or never ends; labels do not fit.
    """
    if not can_be_read_again(data):
        raise Error(
            "validation: expected arrays, a tf.data.Dataset, or a list of batches, that can be "
            f"read after each epoch; got {type(data).__name__}"
        )
    if getattr(data, "cardinality", None) and int(data.cardinality()) == -1:
        raise Error("validation: the data is endless; cut it with .take(n)")
    labelled = is_labelled(data, model)
    if task.needs_labels and not labelled:
        raise Error("validation: expected (inputs, labels), got data without labels")
    labels = all_labels(data, model) if labelled else None
    if labels is not None:
        task.checked(labels)
    if labelled and task.is_classifier:

        def top1(learner: Any) -> dict[str, float]:
            own = evaluation.evaluate(learner.student, data, metric="top1")
            return {"val_top1": _mean(own.top1 * own.count, own.count)}

        return top1
    return _mean_loss(data, model, task, batch_size=batch_size, fixed=fixed)


def of_images(
    found: Batch,
    model: Any,
    teacher: Any,
    task: Task,
    *,
    batch_size: int,
    fixed: int | None,
    soft: bool = True,
) -> Validation:
    """Measures on images that were held back, or on some of those that are trained on.

    Args:
      found: inputs and labels.
      model: the student.
      teacher: or None.
      task: what the student learns.
      batch_size, fixed: as for `of_data`.
      soft: whether answers are compared as they are learnt, see `losses.softened`.

    Returns:
      With labels in the task what gives the loss; else the teacher's answers are taken now, and it
      gives loss and agreement as `tfdwd.likeness` defines them, over all workers.
    """
    inputs, labels = found
    if task.needs_labels:
        data = (inputs if len(inputs) > 1 else inputs[0], labels)
        return _mean_loss(data, model, task, batch_size=batch_size, fixed=fixed)
    size = fixed or min(batch_size, len(inputs[0]))

    def answers(run: Any) -> list[np.ndarray]:
        return [
            _softened(array, kind) if soft else outputs.without_logits(array, kind)
            for kind, array in zip(task.kinds, in_batches(run, inputs, size), strict=True)
        ]

    weights = np.array(task.objective.weights)
    wanted = answers(predictor(teacher))
    if not all(np.isfinite(array).all() for array in wanted):
        raise Error(
            "the teacher's answers are NaN or infinite for some of the images that are held back "
            "or measured; look for damaged weights or images"
        )
    measures = [likeness.measure(array) for array in wanted]
    student = predictor(model)

    def validate(learner: Any) -> dict[str, float]:
        pairs = [
            measure(array) if weight else (0.0, 0.0)
            for measure, array, weight in zip(measures, answers(student), weights, strict=True)
        ]
        [sums, count] = workers.add_up([np.array(pairs).T, np.array(1.0)])
        distances, agreements = sums / count
        agreement = float(agreements.sum() / np.count_nonzero(weights))
        return {"val_loss": float(distances @ weights), "val_agreement": agreement}

    return validate


def _softened(array: np.ndarray, kind: str) -> np.ndarray:
    if kind == outputs.VALUES:
        return array
    return np.asarray(losses.softened(array, kind == outputs.LOGITS))


def joined(found: Sequence[Batch]) -> Batch:
    """Batches as one, as far as they are of the first one's sizes."""
    sizes = [array.shape[1:] for array in found[0][0]]
    alike = [b for b in found if [array.shape[1:] for array in b[0]] == sizes]
    inputs = [np.concatenate(arrays) for arrays in zip(*(own for own, _ in alike), strict=True)]
    if alike[0][1] is None:
        return inputs, None
    labels = keras.tree.map_structure(
        lambda *arrays: np.concatenate(arrays), *(own for _, own in alike)
    )
    return inputs, labels


def _mean(total: float, count: float) -> float:
    """The mean over all workers, which choose the best weights by it."""
    [sums] = workers.add_up([np.array([total, count])])
    return float(sums[0] / sums[1])


def _mean_loss(
    data: Any, model: Any, task: Task, *, batch_size: int, fixed: int | None
) -> Validation:
    def mean_loss(learner: Any) -> dict[str, float]:
        total = images = 0.0
        stream = batches(data, model, fixed or batch_size, task.needs_labels)
        for inputs, own in stream:
            rows = len(inputs[0])
            checked = task.checked(own, int(images))
            if fixed:  # the first images fill the last batch up
                filled = np.resize(np.arange(rows), fixed)
                inputs, checked = take(inputs, filled), take(checked, filled)
            learner.test_on_batch(tuple(inputs), checked)
            total += float(learner.get_metrics_result()["loss"]) * rows
            images += rows
        loss = _mean(total, images)
        if not np.isfinite(loss):
            raise Error(f"validation: the loss is {loss}; expected a finite one")
        return {"val_loss": loss}

    return mean_loss
