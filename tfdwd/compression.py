"""`compress`: the whole way from a network to a faster .tflite file, in steps that are kept."""

import hashlib
import os
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import (
    __version__,
    benchmarking,
    bridge,
    checks,
    conversion,
    decomposition,
    evaluation,
    files,
    planning,
    report,
    reporting,
    training,
)
from tfdwd import outputs as kinds
from tfdwd.batches import (
    batches,
    can_be_read_again,
    first,
    is_labelled,
    is_whole,
    length_of,
)
from tfdwd.errors import Error, one_line
from tfdwd.evaluation import Evaluation
from tfdwd.execution import predictor
from tfdwd.outcome import Compression, Step, Tuning
from tfdwd.plans import Plan
from tfdwd.records import dumps, loads
from tfdwd.search import budget_of
from tfdwd.shapes import images_at_once, in_batches

_CALIBRATION = 1024  # images that stacks are fitted on
_TESTED = 0.1  # part of the images that is kept for the test where there is none
_FEWEST = 100  # images, from which so small a part is enough to measure on
_LOOKED_AT = 256  # images of a stream that stand for all of them
_STEPS = "steps.json"
_NETWORKS = ("original", "student")
# Metrics that are the better the higher they are.
_HIGHER = ("top1", "top5", "accuracy", "mean_iou", "psnr", "agreement")
_OF_CLASSES = ("top1", "top5", "mean_iou")


def compress(
    model: keras.Model,
    data: Any,
    *,
    folder: str | os.PathLike[str],
    latency: float | str = 0.5,
    quantize: str = "none",
    test: Any = None,
    metric: Any = None,
    outputs: str | Mapping[str, str] | None = None,
    minutes: float | None = None,
    max_loss: float | None = None,
    threads: int = 1,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Compression:
    """Makes a network faster, the whole way: plans, decomposes, fine-tunes, exports and measures.

    It calls `tfdwd.plan`, `decompose`, `finetune`, `export`, `evaluate` and `benchmark`, one after
    the other, with the images without their labels. Each step leaves its files in the folder and is
    not done again when the call is repeated, after an interruption or with other options for later
    steps: what was done counts as long as the network, the data, the options and the files are the
    same, by their content; of data that streams the first 256 images count, which need to be the
    same each time that it is read.

    Args:
      model: a Functional or Sequential Keras 3 model; it is not changed.
      data: images to calibrate and fine-tune on, of any kind that `tfdwd.decompose` takes.
      folder: for plan.json, decomposed.keras, student.keras, original.tflite, student.tflite,
        result.json, report.html, which shows it all, and what is needed to go on; made if its
        parent exists.
      latency: the time of a run: a part of the original's, or milliseconds ("1.5ms").
      quantize: the precision of the files, as for `tfdwd.export`.
      test: data to score the files on, as for `tfdwd.evaluate`: with labels, or images alone, on
        which the student's agreement with the original is taken. By default a tenth of the
        images is kept for that, which need to be arrays then.
      metric: as for `tfdwd.evaluate`, of labels.
      outputs: what an output is, as for `tfdwd.finetune`. By default it is found on images; what
        the labels of the test score as classes is logits if it is neither probabilities nor within
        0 and 1, but without labels logits count as values.
      minutes: for the search of the plan a quarter, 2 at most, and for fine-tuning the rest; what
        has to be done takes longer. By default 2, and as many epochs as `tfdwd.finetune` takes.
      max_loss: what the student may score less than the original, in the metric's unit (0.01 is one
        point of top-1).
      threads: that LiteRT is given.
      include, exclude: as for `tfdwd.decompose`.
      seed: of all that is random.

    Returns:
      What was done and measured; it prints as a table and is in the folder as result.json.

    Raises:
      tfdwd.Error: wrong options, models or data, before the first step where that can be known; a
        step fails; the student is slower than the original, or worse than max_loss, and the message
        says what to do. The files of the steps that were done stay.

    Example:
      >>> result = compress(model, images, latency=0.5, folder="out")  # doctest: +SKIP
      >>> result.speed_up, result.lost  # doctest: +SKIP
      (2.03, 0.012)
    """
    home = _checked_folder(folder)
    if max_loss is not None:
        checks.number("max_loss", max_loss)
    if minutes is not None:
        checks.positive("minutes", minutes)
    budget_of({"latency": latency})
    checks.whole("threads", threads, 1)
    checks.whole("seed", seed, 0, 2**32 - 1)
    conversion.check_quantize(quantize)
    images, tested = _shared_out(model, data, test, seed)
    checks.trainable(model)
    _check_can_be_kept(model)
    truth, scores = _truth(model, tested, metric, max_loss)
    said = _kinds(model, tested, scores, outputs)
    start = [__version__, model.to_json(), *model.get_weights(), _content(model, images)]
    kept = _Kept(home, _digest(start))
    searching = 2.0 if minutes is None else min(2.0, minutes / 4)
    tuning = None if minutes is None else minutes - searching
    base = {"quantize": quantize, "include": include, "exclude": exclude, "seed": seed}

    def planned() -> None:
        plan = planning.plan(
            model, images, latency=latency, quantize=quantize, threads=threads, include=include,
            exclude=exclude, cache=home / "latency.json", images=_CALIBRATION,
            minutes=searching, seed=seed,
        )  # fmt: skip
        files.write_whole(home / "plan.json", plan.to_json())

    def decomposed() -> None:
        student, done = decomposition.decompose(
            model, images, rank=read(Plan, "plan"), images=_CALIBRATION, seed=seed,
            return_report=True,
        )  # fmt: skip
        files.save_model(student, home / "decomposed.keras")
        files.write_whole(home / "decomposition.json", done.to_json())

    def tuned() -> None:
        student = bridge.load(home / "decomposed.keras")
        checkpoints = kept.folder_of("finetuning")
        found = training.finetune(
            student, images, teacher=model, minutes=tuning, outputs=said, folder=checkpoints,
            resume=True, seed=seed,
        )  # fmt: skip
        history = {name: tuple(values) for name, values in found.history.items()}
        files.save_model(student, home / "student.keras")
        files.write_whole(
            home / "tuning.json", Tuning(found.before, found.after, history).to_json()
        )
        shutil.rmtree(checkpoints)

    def exported() -> None:
        for name, network in ("original", model), ("student", bridge.load(home / "student.keras")):
            done = conversion.export(
                network, home / f"{name}.tflite", quantize=quantize, data=images
            )
            files.write_whole(home / f"{name}.json", done.to_json())

    def scored() -> None:
        for name in _NETWORKS:
            scores = evaluation.evaluate(home / f"{name}.tflite", tested, **truth)
            files.write_whole(home / f"{name}-score.json", scores.to_json())

    def timed() -> None:
        paths = {name: home / f"{name}.tflite" for name in _NETWORKS}
        found = benchmarking.benchmark(paths, threads=threads)
        files.write_whole(home / "benchmark.json", found.to_json())

    def read(kind: Any, name: str) -> Any:
        return kind.from_json(files.read_text(home / f"{name}.json"))

    steps: list[tuple[str, Mapping[str, Any], Sequence[str], Callable[[], None]]] = [
        (
            "plan",
            {**base, "latency": str(latency), "threads": threads, "minutes": searching},
            ["plan.json"],
            planned,
        ),
        ("decompose", {}, ["decomposed.keras", "decomposition.json"], decomposed),
        ("finetune", {"minutes": tuning, "outputs": said}, ["student.keras", "tuning.json"], tuned),
        ("export", {}, [f"{n}.{e}" for n in _NETWORKS for e in ("tflite", "json")], exported),
        ("benchmark", {}, ["benchmark.json"], timed),
        (
            "evaluate",
            {"metric": metric, "test": _content(model, tested, is_labelled(tested, model))},
            [f"{name}-score.json" for name in _NETWORKS],
            scored,
        ),
    ]
    with reporting.progress(len(steps), "compressing") as bar:
        for name, options, made, work in steps:
            bar.set_description(name)
            kept.step(name, options, made, work)
            bar.update()
    result = Compression(
        plan=read(Plan, "plan"),
        decomposition=read(decomposition.DecompositionReport, "decomposition"),
        tuning=read(Tuning, "tuning"),
        original=read(conversion.ExportReport, "original"),
        student=read(conversion.ExportReport, "student"),
        original_score=read(Evaluation, "original-score"),
        student_score=read(Evaluation, "student-score"),
        benchmark=read(benchmarking.BenchmarkReport, "benchmark"),
        steps=kept.times(),
    )
    files.write_whole(home / "result.json", result.to_json())
    shown = _examples(model, bridge.load(home / "student.keras"), tested)
    files.write_whole(home / "report.html", report.page(result, shown, _command()))
    _check_worth(result, max_loss)
    return result


class _Kept:
    """Which steps the folder holds already: by what they were made from, and what they made.

    Args:
      home: the folder.
      start: says by its content what all steps are made from.
    """

    def __init__(self, home: Path, start: str) -> None:
        self._home, self._key = home, start
        self._done: list[str] = []
        self._state: dict[str, Any] = {}
        if (home / _STEPS).exists():
            try:
                self._state = dict(loads(files.read_text(home / _STEPS)))
            except (Error, TypeError, ValueError) as error:
                logging.warning("%s is damaged, all steps are done again: %s", home / _STEPS, error)

    def step(
        self, name: str, options: Mapping[str, Any], made: Sequence[str], work: Callable[[], None]
    ) -> None:
        """Does a step, unless it was done from the same and its files are still the same.

        Args:
          name: of the step.
          options: what it depends on beside the step before it.
          made: names of the files that it makes.
          work: makes them.
        """
        self._key = _digest([self._key, name, repr(sorted(options.items()))])
        self._done.append(name)
        known = self._state.get(name)
        if isinstance(known, dict) and known.get("key") == self._key:
            if known.get("files") == self._contents(made):
                logging.info("%s: done before", name)
                return
        logging.info("%s", name)
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        logging.info("%s: %.0f s", name, seconds)
        self._state[name] = {"key": self._key, "seconds": seconds, "files": self._contents(made)}
        files.write_whole(self._home / _STEPS, dumps(self._state))

    def folder_of(self, name: str) -> Path:
        """A folder for the checkpoints of the step that is being done; those of others go."""
        own = self._home / f"{name}-{self._key[:16]}"
        for other in self._home.glob(f"{name}-*"):
            if other != own:
                shutil.rmtree(other, ignore_errors=True)
        own.mkdir(exist_ok=True)
        return own

    def times(self) -> tuple[Step, ...]:
        """What the steps took."""
        return tuple(Step(name, float(self._state[name]["seconds"])) for name in self._done)

    def _contents(self, made: Sequence[str]) -> dict[str, str]:
        paths = [self._home / name for name in made]
        return {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in paths
            if path.is_file()
        }


def _digest(parts: Iterable[Any]) -> str:
    """One name for texts and arrays, by their content."""
    whole = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            whole.update(f"{len(part)} {part}".encode())
            continue
        array = np.ascontiguousarray(part)
        whole.update(f"{array.dtype.str} {array.shape} ".encode())
        whole.update(array.data.cast("B") if array.size else b"")
    return whole.hexdigest()


def _content(model: keras.Model, data: Any, with_labels: bool = False) -> str:
    """Data by its content: arrays count whole, of other data the first images."""
    if is_whole(data, model):
        return _digest(keras.tree.flatten(data))

    def opened() -> str:
        read = batches(data, model, _LOOKED_AT, with_labels, images=_LOOKED_AT)
        found = [(inputs, labels) if with_labels else inputs for inputs, labels in read]
        return _digest(keras.tree.flatten(found))

    found = opened()
    if opened() != found:
        logging.warning(
            "the data comes in another order each time that it is read: what is done now cannot be "
            "gone on with; shuffle it less, or not at all"
        )
    return found


def _check_can_be_kept(model: keras.Model) -> None:
    """Refuses layers that Keras could not load again out of the files of the steps.

    Raises:
      tfdwd.Error: names the layer.
    """
    for layer in model.layers:
        if isinstance(layer, keras.Model) and getattr(layer, "inputs", None):
            _check_can_be_kept(layer)
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Keras warns of layers without build
                keras.layers.deserialize(keras.layers.serialize(layer))
        except Exception as error:  # a user's own layer raises anything
            raise Error(
                f"layer {layer.name!r} of type {type(layer).__name__}: expected one that Keras can "
                "save and load again, since each step is kept as a file; register its class with "
                "@keras.saving.register_keras_serializable() and give it get_config, or make a "
                f"class of a Lambda ({one_line(error)[:100]})"
            ) from error


def _checked_folder(folder: Any) -> Path:
    home = checks.path("folder", folder)
    try:
        home.mkdir(exist_ok=True)
    except OSError as error:
        raise Error(f"folder: cannot make {home}: {error.strerror}") from error
    files.check_output(home / "result.json")
    return home


def _shared_out(model: keras.Model, data: Any, test: Any, seed: int) -> tuple[Any, Any]:
    """Images to work with, and data to test on; arrays in another order, should theirs be sorted.

    Raises:
      tfdwd.Error: there is no test data, and the images are no arrays or too few to share them out.
    """
    if not can_be_read_again(data) or not can_be_read_again(test):
        raise Error(
            "data and test are read several times: expected arrays, a tf.data.Dataset or a list of "
            "batches, got a generator"
        )
    if not is_whole(data, model):
        if test is None:
            raise Error(
                "test: expected data to score the files on, since data that streams cannot be "
                "shared out; pass test="
            )
        if length_of(data) is None:
            raise Error(
                "data: expected arrays, or data that knows its number of batches, since epochs are "
                "counted by it; give a list of batches, or a tf.data.Dataset with "
                "tf.data.experimental.assert_cardinality"
            )
        return data, test
    [(images, _)] = batches(data, model, 2**31)
    count = int(len(images[0]) * _TESTED) if test is None else 0
    if test is None and count < _FEWEST:
        raise Error(
            f"test: expected data to score the files on, since of {len(images[0])} images a tenth "
            f"is less than {_FEWEST}; pass test="
        )

    def some(rows: np.ndarray) -> Any:
        parts = [array[rows] for array in images]
        return parts if len(parts) > 1 else parts[0]

    order = np.random.default_rng(seed).permutation(len(images[0]))
    return some(order[count:]), some(order[:count]) if test is None else test


def _truth(
    model: keras.Model, tested: Any, metric: Any, max_loss: float | None
) -> tuple[dict[str, Any], Sequence[evaluation.Score]]:
    """What outputs are compared with, as options of `tfdwd.evaluate`, and its scores.

    Scores are those of the model on a few images.

    Raises:
      tfdwd.Error: labels and metric do not fit the model, or `max_loss` not the metric.
    """
    labelled = is_labelled(tested, model)
    if not labelled and metric is not None:
        raise Error("metric: expected test= with labels beside it")
    truth = {"metric": metric} if labelled else {"reference": model}
    scores = evaluation.evaluate(model, tested, images=_LOOKED_AT, **truth).scores
    if max_loss is not None and scores[0].metric not in _HIGHER:
        raise Error(
            f"max_loss: expected a metric that is the better the higher it is, one of "
            f"{', '.join(_HIGHER)}; got {scores[0].metric}"
        )
    return truth, scores


def _kinds(
    model: keras.Model, tested: Any, scores: Sequence[evaluation.Score], said: Any
) -> dict[str, str]:
    """What each output is: as the user says, or as a few images and the labels' metric show it.

    Raises:
      tfdwd.Error: the user says what cannot be.
    """
    answers = in_batches(predictor(model), first(model, tested, _LOOKED_AT), images_at_once(model))
    names = kinds.names_of(model)
    found = dict(zip(names, kinds.kinds(answers, names, said), strict=True))
    of_classes = {score.output for score in scores if score.metric in _OF_CLASSES}
    by_user = kinds.by_output(said, names, "outputs")
    for name, own, array in zip(names, by_user, answers, strict=True):
        in_0_1 = array.min(initial=0) >= 0 and array.max(initial=0) <= 1
        if own is None and name in of_classes and found[name] == kinds.VALUES and not in_0_1:
            found[name] = kinds.LOGITS
    return found


def _examples(model: keras.Model, student: keras.Model, tested: Any) -> str:
    """Images of a model of one input with both networks' answers, as HTML."""
    if len(model.inputs) > 1:
        return ""
    images = first(model, tested, _LOOKED_AT)
    answers = (in_batches(predictor(one), images, images_at_once(one)) for one in (model, student))
    return report.examples_of(images[0], *answers)


def _command() -> str:
    """The command that runs, where it is one of tfdwd's."""
    name = Path(sys.argv[0]).name
    return shlex.join([name, *sys.argv[1:]]) if name.startswith("tfdwd") else ""


def _check_worth(result: Compression, max_loss: float | None) -> None:
    student = result.benchmark.timings[1]
    if student.speed_up <= 1:
        raise Error(
            f"the student is {1 / student.speed_up:.2f} times as slow as the original on "
            f"{result.benchmark.device}, though the plan had {result.plan.ms_after:.3f} of "
            f"{result.plan.ms_before:.3f} ms; pass a smaller latency=, or another quantize= or "
            f"threads= (all that was measured is in {result.student.path} and beside it)"
        )
    if max_loss is not None and result.lost > max_loss:
        first = result.original_score.scores[0]
        raise Error(
            f"the student loses {result.lost:.4g} of {first.metric} ({first.shown()} before), more "
            f"than max_loss={max_loss:g}; pass a larger latency=, or more minutes= or images to "
            "fine-tune it; tfdwd.tradeoff shows what each latency costs (the files are kept)"
        )
