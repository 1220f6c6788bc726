"""What must hold of every network that goes in, tried on random ones."""

import collections
import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import ml_dtypes
import networks
import numpy as np
import pytest
import trials
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from keras import layers

import tfdwd
from tfdwd import lite
from tfdwd.decomposition import DecompositionReport

_STEP = {
    "float32": np.finfo(np.float32).eps,
    "mixed_float16": np.finfo(np.float16).eps,
    "float16": np.finfo(np.float16).eps,
    "mixed_bfloat16": ml_dtypes.finfo(ml_dtypes.bfloat16).eps,
    "bfloat16": ml_dtypes.finfo(ml_dtypes.bfloat16).eps,
    "float64": np.finfo(np.float32).eps,  # in which responses are collected and outputs compared
}


@dataclasses.dataclass(frozen=True)
class Way:
    """How a network is decomposed, and what is looked at beside the properties that are cheap.

    Attributes:
      method, stack: options of `tfdwd.decompose`; every method but "svd" gets data.
      again: whether it is done twice, and must come out the same.
      export: whether the student is exported.
    """

    method: str
    stack: str
    again: bool
    export: bool


def ways(dearest: int) -> st.SearchStrategy[Way]:
    """Ways; what costs much is looked at once in so many."""
    rarely = st.sampled_from([False] * (dearest - 1) + [True])
    methods = ["svd"] * dearest + ["gsvd", "sequential", "joint", "joint", "channel"]
    stacks = {"svd": ["separable", "auto"], "joint": ["separable", "auto", "bottleneck"]}
    return st.sampled_from(methods).flatmap(
        lambda method: st.builds(
            Way, st.just(method), st.sampled_from(stacks.get(method, ["separable"])), rarely, rarely
        )
    )


def spatial_convolutions(model: Any, path: str = "") -> Iterator[tuple[str, layers.Conv2D]]:
    """(path, layer) of all regular spatial convolutions, whatever holds them; shared ones once."""
    for layer in model._flatten_layers(recursive=False, include_self=False):
        if isinstance(layer, layers.Conv2D) and layer.groups == 1 and set(layer.kernel_size) != {1}:
            yield path + layer.name, layer
        yield from spatial_convolutions(layer, f"{path}{layer.name}/")


def records_of(report: DecompositionReport, model: keras.Model) -> dict[str, layers.Conv2D]:
    """The convolution of each record; fails where one has none of its own.

    What stands around a convolution that a layer hides is the library's to name, so what counts is
    the end of the path.
    """
    left = [record.name for record in report.layers]
    found, seen = {}, set()
    for path, layer in sorted(spatial_convolutions(model), key=lambda pair: -len(pair[0])):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        parts = path.split("/")
        for end in ("/".join(parts[start:]) for start in range(len(parts))):
            names = [name for name in left if name == end or name.endswith("/" + end)]
            if names:
                left.remove(names[0])
                found[names[0]] = layer
                break
        else:
            raise AssertionError(f"{path} has no record; the records: {left}")
    return found


def largest_difference(found: list[np.ndarray], expected: list[np.ndarray]) -> float:
    """Of all outputs that are finite, relative to each output's largest value."""
    assert [y.shape for y in found] == [y.shape for y in expected]
    largest = 0.0
    for a, b in zip(found, expected, strict=True):
        if np.isfinite(b).all() and np.abs(b).max(initial=0) > 0:
            assert np.isfinite(a).all(), "the student is infinite where the original is not"
            largest = max(largest, float(np.abs(a - b).max() / np.abs(b).max()))
    return largest


def allowed_difference(drawn: networks.Drawn, expected: list[np.ndarray]) -> float:
    """What rounding may do to the outputs: it grows as far as the network itself lets it.

    A kernel that is split in two rounds a few times more; that is as if each input had been wrong
    by some steps of the dtype that the network computes in.
    """
    step = float(_STEP[drawn.policy])
    moved = largest_difference(drawn.run(drawn.model, 1 + 4 * step), expected)
    return 40 * (step + moved)


def is_one_clear_line(error: tfdwd.Error) -> bool:
    text = str(error)
    return 10 < len(text) < 600 and "\n" not in text and "Traceback" not in text


def trial(drawn: networks.Drawn, way: Way, folder: Path) -> str:
    """Tries all properties on one network; returns how it ended."""
    expected = drawn.run(drawn.model)  # first: a layer as activation is built when it runs
    weights = [np.array(value) for value in drawn.model.get_weights()]
    try:
        ended = _decomposed(drawn, way, folder, expected)
    except tfdwd.Error as error:
        assert is_one_clear_line(error), str(error)
        ended = f"error: {error}"
    for now, before in zip(drawn.model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(now, before)
    for now, before in zip(drawn.run(drawn.model), expected, strict=True):
        np.testing.assert_array_equal(now, before)
    return ended


def _decomposed(drawn: networks.Drawn, way: Way, folder: Path, expected: list[np.ndarray]) -> str:
    model, data = drawn.model, None if way.method == "svd" else drawn.data

    def decompose(**options: Any) -> tuple[keras.Model, DecompositionReport]:
        return tfdwd.decompose(model, data, method=way.method, return_report=True, **options)

    student, report = decompose(rank=1, stack=way.stack)
    convolutions = records_of(report, model)
    largest_difference(drawn.run(student), expected)
    if way.again:
        for one, other in zip(
            decompose(rank=1, stack=way.stack)[0].get_weights(), student.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    if way.method != "channel" and convolutions:
        ranks = {
            name: min(int(np.prod(conv.kernel.shape[:2])), conv.kernel.shape[3])
            for name, conv in convolutions.items()
        }
        whole, _ = decompose(rank=ranks)
        found = largest_difference(drawn.run(whole), expected)
        # The moments are sums of products in float32, off by e = 1e-6 of the inputs' variance or
        # so. Where the inputs vary by v of it, the ridge r = 1e-4 lets e * sqrt(v) / (v + r) of
        # that through to the responses, at most e / (2 * sqrt(r)) = 5e-5.
        allowed = allowed_difference(drawn, expected) + (0 if data is None else 1e-4)
        assert found <= allowed, f"full rank differs by {found:.1e}, more than {allowed:.1e}"
    _check_saved(drawn, student, folder)
    if way.export:
        return _exported(drawn, student, folder)
    return "decomposed"


def _check_saved(drawn: networks.Drawn, student: keras.Model, folder: Path) -> None:
    """Saves and loads the student where the original itself can be."""
    path = folder / "student.keras"
    try:
        drawn.model.save(path)
        keras.models.load_model(path)
    except Exception:
        return
    assert "tfdwd" not in json.dumps(student.get_config(), default=repr)
    student.save(path)
    loaded = keras.models.load_model(path)
    for found, expected in zip(drawn.run(loaded), drawn.run(student), strict=True):
        np.testing.assert_array_equal(found, expected)


def run_file(path: Path, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """The outputs of a .tflite file, in the order of its signature's entries."""
    model = lite.Model(path)
    size = model.inputs[0].shape[0]
    runs = [
        model.run([array[start : start + size] for array in arrays])
        for start in range(0, len(arrays[0]), size)
    ]
    return [np.concatenate(list(map(np.atleast_1d, parts))) for parts in zip(*runs, strict=True)]


def _exported(drawn: networks.Drawn, student: keras.Model, folder: Path) -> str:
    """Runs the exported student by LiteRT alone; the inputs and outputs are in Keras' order."""
    path = folder / "student.tflite"
    path.unlink(missing_ok=True)
    try:
        tfdwd.export(student, path, data=drawn.data)
    except tfdwd.Error as error:
        assert is_one_clear_line(error), str(error)
        assert not path.exists()
        return f"error: not exported, {error}"
    found, outputs = run_file(path, keras.tree.flatten(drawn.data)), drawn.run(student)
    # A scalar over all images is another one over the images of a batch.
    pairs = [(a, b) for a, b in zip(found, outputs, strict=True) if a.shape == b.shape]
    assert len(pairs) == len(outputs) or any(b.shape == (1,) for b in outputs)
    found, outputs = [a for a, _ in pairs], [b for _, b in pairs]
    # A thousandth, or what the network makes of the rounding of its input.
    assert largest_difference(found, outputs) <= 1e-3 + allowed_difference(drawn, outputs)
    return "exported"


def tuning_trial(drawn: networks.Drawn, stack: str) -> str:
    """Fine-tunes a student by the defaults from three seeds; returns how it ended."""
    data = keras.tree.map_structure(lambda array: np.concatenate([array] * 3), drawn.data)
    ends = set()
    try:
        start = tfdwd.decompose(drawn.model, rank=1, method="svd", stack=stack)
        for number in range(3):
            student = keras.models.clone_model(start)
            student.set_weights(start.get_weights())
            told = tfdwd.finetune(student, data, teacher=drawn.model, epochs=2, seed=number)
            if told.before and told.after == told.before:
                for own, first in zip(
                    student.trainable_weights, start.trainable_weights, strict=True
                ):
                    np.testing.assert_array_equal(own, first)
                ends.add("as it was")
            elif told.before:
                assert told.after["val_loss"] < told.before["val_loss"]
                ends.add("better")
    except tfdwd.Error as error:
        assert is_one_clear_line(error), str(error)
        return f"error: {error}"
    return next((end for end in ("better", "as it was") if end in ends), "nothing measured")


def _settings(count: int) -> Any:
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a network is small as it is; to shrink one takes minutes
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )


def draw_and_try(number: int, count: int, folder: Path, journal: Any) -> None:
    """What a child does, where the same is drawn whatever else was imported before."""

    @seed(number)
    @_settings(count)
    @given(networks.networks(), ways(dearest=3))
    def tried(drawn: networks.Drawn, way: Way) -> None:
        journal(f"{drawn!r}\n  {way}", lambda: trial(drawn, way, folder))

    tried()


def draw_and_tune(number: int, count: int, folder: Path, journal: Any) -> None:
    """As `draw_and_try`, of fine-tuning."""

    @seed(number)
    @_settings(count)
    @given(networks.networks(), st.sampled_from(["separable", "auto"]))
    def tried(drawn: networks.Drawn, stack: str) -> None:
        journal(f"{drawn!r}\n  {stack}", lambda: tuning_trial(drawn, stack))

    tried()


def test_random_networks(tmp_path: Path) -> None:
    trials.check(trials.in_children("test_properties:draw_and_try", range(2), 50, tmp_path, 120))


def check_tuned(folder: Path, children: int, count: int) -> list[trials.Trial]:
    """Fails where fine-tuning failed, or was seldom measured."""
    found = trials.in_children("test_properties:draw_and_tune", range(children), count, folder, 240)
    trials.check(found)
    measured = [trial for trial in found if trial.detail in ("better", "as it was")]
    assert len(measured) > len(found) / 2, trials.figures(found)
    return found


def test_fine_tuning_is_never_worse_than_the_start(tmp_path: Path) -> None:
    check_tuned(tmp_path, 2, 5)


@pytest.mark.nightly
def test_fine_tuning_of_200_random_networks(tmp_path: Path) -> None:
    found = check_tuned(tmp_path, 4, 50)
    ends = collections.Counter(trial.detail for trial in found if trial.kind == "ok")
    print(f"\nfine-tuning from three seeds: {trials.figures(found)}\n  {dict(ends)}")


@pytest.mark.nightly
def test_2000_random_networks(tmp_path: Path) -> None:
    trials_ = trials.in_children("test_properties:draw_and_try", range(40), 50, tmp_path, 120)
    print("\nrandom networks: " + trials.figures(trials_))
    trials.check(trials_)


@pytest.mark.nightly
def test_every_part_is_drawn() -> None:
    """Each kind of layer and step comes up: a network that is never drawn proves nothing."""
    seen: collections.Counter[str] = collections.Counter()

    for number in range(4):  # what one seed draws resembles itself

        @seed(number)
        @_settings(300)
        @given(networks.networks())
        def drawn(drawn: networks.Drawn) -> None:
            seen.update(set(re.findall(r"[A-Z]\w+(?=\()|ops\.\w+", repr(drawn))))

        drawn()
    parts = (
        "Conv2D Conv3D ConvLSTM2D MultiHeadAttention TimeDistributed Held Scaled Lambda Masking "
        "SpectralNormalization Embedding Rescaling ops.pad ops.split ops.mean"
    )
    assert set(parts.split()) <= set(seen) and {"LSTM", "GRU"} & set(seen), seen
