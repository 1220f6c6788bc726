"""benchmarks/folding.py: students that train as larger networks compute the same when folded."""

import importlib
from types import ModuleType

import keras
import numpy as np
import pytest

import tfdwd

IMAGES = np.random.default_rng(0).normal(size=(32, 12, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def folding(pytestconfig: pytest.Config) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pytestconfig.rootpath / "benchmarks")
        return importlib.import_module("folding")


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    x = image = keras.Input((12, 12, 3))
    for filters, taps, strides in ((8, 3, 1), (12, 3, 2), (6, 5, 1)):
        x = keras.layers.Conv2D(filters, taps, strides, padding="same", use_bias=filters > 6)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(image, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))


def _changed(network: keras.Model) -> None:
    """As if trained: other weights, and other moving averages."""
    source = np.random.default_rng(1)
    changes = [source.uniform(0.8, 1.2, w.shape) for w in network.get_weights()]
    network.set_weights([w * c for w, c in zip(network.get_weights(), changes, strict=True)])


def _equal(one: keras.Model, other: keras.Model) -> None:
    given = [network.predict(IMAGES, verbose=0) for network in (one, other)]
    assert np.abs(given[0]).max() > 0.01
    np.testing.assert_allclose(*given, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stack", ["separable", "auto"])
def test_branches_begin_as_nothing_and_are_folded(
    folding: ModuleType, model: keras.Model, stack: str
) -> None:
    student = tfdwd.flatten(tfdwd.decompose(model, IMAGES, rank=2, stack=stack))
    branched = folding.branched(student, IMAGES)
    _equal(branched, student)
    for layer in branched.layers:
        if isinstance(layer, folding.Branched):
            layer.tap_norm.gamma.assign(np.full(layer.tap_norm.gamma.shape, 0.7))
    _changed(branched)
    folded = folding.folded(branched)
    assert not any(isinstance(layer, folding.Branched) for layer in folded.layers)
    _equal(folded, branched)
    assert np.abs(folded(IMAGES) - student(IMAGES)).max() > 0.01  # it did change


@pytest.mark.parametrize("stack", ["separable", "auto"])
def test_a_merged_student_is_the_original_with_what_the_student_learnt(
    folding: ModuleType, model: keras.Model, stack: str
) -> None:
    student = tfdwd.flatten(tfdwd.decompose(model, IMAGES, rank=2, stack=stack))
    _changed(student)
    merged = folding.merged(model, student)
    assert [type(layer) for layer in merged.layers] == [type(layer) for layer in model.layers]
    _equal(merged, student)
