"""Quantisation-aware models against LiteRT, which is what they are to predict."""

import logging
import sys
from pathlib import Path
from typing import Any

import cases
import keras
import numpy as np
import pytest
from keras import layers, ops

import tfdwd
from tfdwd import lite, quantization

tf_keras = pytest.importorskip("tf_keras")


def _stack(rank: int) -> keras.Model:
    """Depthwise, pointwise, batch norm, ReLU; then a residual sum and a classifier."""
    keras.utils.set_random_seed(rank)
    x = image = keras.Input((8, 8, 4), name="image")
    parts = [layers.DepthwiseConv2D(3, padding="same", name=f"d{i}")(x) for i in range(rank)]
    x = layers.Concatenate(name="joined")(parts) if rank > 1 else parts[0]
    x = layers.Conv2D(4, 1, name="p")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Add(name="sum")([x, image])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(5, activation="softmax", name="scores")(x))


def _seen(model: keras.Model, images: np.ndarray) -> Any:
    """An aware model that saw images in training but learnt nothing."""
    aware = tfdwd.quantize_aware(model)
    for layer in aware.layers:
        if isinstance(layer, tf_keras.layers.BatchNormalization):
            layer.momentum = 1.0
    aware.compile(tf_keras.optimizers.SGD(0.0), "mse")
    expected = np.asarray(model(images), np.float32)
    aware.fit(images, expected, batch_size=len(images), verbose=0)
    return aware


def _images(count: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def _held(aware: Any) -> set[str]:
    """Layers whose outputs have a range of their own."""
    return {
        layer.name
        for layer in aware.layers
        if getattr(getattr(layer, "quantize_config", None), "output", False)
    }


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_agrees_with_litert(rank: int, tmp_path: Path) -> None:
    images = _images(64, (8, 8, 4))
    aware = _seen(_stack(rank), images)
    path = tmp_path / "aware.tflite"
    report = tfdwd.export(aware, path, quantize="int8", data=images)
    file = lite.Model(path)
    assert [file.inputs[0].name, file.outputs[0].name] == ["image", "scores"]
    # One step of the scores is 1/256; a sum that falls between two steps may go either way.
    assert report.outputs[0].largest_difference < 2 / 256 / np.max(aware(images))
    assert report.operators["DEPTHWISE_CONV_2D"] == rank
    assert not {"DEQUANTIZE", "MUL"} & report.operators.keys()


def test_depthwise_weights_have_a_scale_for_each_channel(tmp_path: Path) -> None:
    images = _images(8, (8, 8, 4))
    tfdwd.export(_seen(_stack(1), images), tmp_path / "a.tflite", quantize="int8")
    scales = {
        tuple(tensor["shape"]): len(tensor["quantization_parameters"]["scales"])
        for tensor in lite.Model(tmp_path / "a.tflite").interpreter.get_tensor_details()
    }
    assert scales[(1, 3, 3, 4)] == 4
    assert scales[(4, 1, 1, 4)] == 4


def test_the_ranges_of_training_are_kept(tmp_path: Path) -> None:
    aware = _seen(_stack(1), 5 * _images(8, (8, 8, 4)))
    tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8", data=_images(40, (8, 8, 4)))
    low, high = (
        float(weight.numpy())
        for weight in aware.get_layer("image_range").weights
        if weight.name.split("_")[-1] in ("low:0", "high:0")
    )
    assert high - low > 20  # 256 images at five times the scale, four standard deviations each side
    assert lite.Model(tmp_path / "a.tflite").inputs[0].scale == pytest.approx((high - low) / 255)


def test_convolution_batch_norm_and_relu_are_one() -> None:
    assert _held(tfdwd.quantize_aware(_stack(1))) == {
        "image_range", "d0", "relu", "sum", "pool", "scores_linear",
    }  # fmt: skip
    # The parts of a concatenation have its range.
    assert "d0" not in _held(tfdwd.quantize_aware(_stack(2)))
    assert "joined" in _held(tfdwd.quantize_aware(_stack(2)))


def test_a_tensor_that_is_read_twice_is_held() -> None:
    x = image = keras.Input((4, 4, 2))
    x = layers.Conv2D(2, 1, name="conv")(x)
    y = layers.ReLU(name="relu")(x)
    assert "conv" in _held(tfdwd.quantize_aware(keras.Model(image, [x, y])))


def test_before_training_it_computes_as_the_model_but_for_the_weights() -> None:
    model, images = _stack(2), _images(16, (8, 8, 4))
    weights = [weight.copy() for weight in model.get_weights()]
    expected = np.asarray(model(images))
    # 8 bits for each channel: an error of at most 1/254 of the largest weight.
    np.testing.assert_allclose(tfdwd.quantize_aware(model)(images), expected, atol=0.02)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


def test_it_learns() -> None:
    images = _images(64, (8, 8, 4))
    labels = (images.mean((1, 2, 3)) > 0).astype(int)
    aware = tfdwd.quantize_aware(_stack(2))
    aware.compile(tf_keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    losses = aware.fit(images, labels, epochs=30, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]


def test_every_kind_of_network(tmp_path: Path) -> None:
    """Nested, shared and separable layers, operations, padding, several inputs and outputs."""
    inner = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.ZeroPadding2D(1),
            layers.Conv2D(4, 3, activation="relu6", name="conv"),
        ],
        name="inner",
    )
    first, second = keras.Input((8, 8, 4), name="first"), keras.Input((8, 8, 4), name="second")
    x = inner(layers.Rescaling(0.5, offset=0.25)(first)) + inner(second)
    x = layers.SeparableConv2D(6, 3, depth_multiplier=2, activation="relu")(x)
    x = layers.Concatenate()([x[..., :3] * x[..., 3:], layers.MaxPooling2D(1)(x)])
    x = layers.Conv2DTranspose(4, 2, strides=2, activation="silu")(x)
    x = layers.Dropout(0.1)(layers.LeakyReLU()(x))
    outputs = {
        "z": layers.Dense(3, name="other")(layers.Flatten()(x)),
        "a": layers.Dense(2, activation="sigmoid", name="head")(layers.GlobalMaxPooling2D()(x)),
    }
    model = cases.randomised(keras.Model({"first": first, "second": second}, outputs))
    inputs = {"first": _images(32, (8, 8, 4)), "second": _images(32, (8, 8, 4))[::-1]}
    aware = tfdwd.quantize_aware(model)
    expected = {name: np.asarray(value) for name, value in model(inputs).items()}
    aware.compile(tf_keras.optimizers.SGD(0.0), "mse")
    aware.fit(inputs, expected, batch_size=32, verbose=0)
    report = tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8", data=inputs)
    assert [output.name for output in report.outputs] == ["a", "z"]
    # Two dozen operators of 8 bits, of which the silu and the max lose most.
    assert min(output.sqnr_db for output in report.outputs) > 20
    for name, found in aware(inputs).items():
        scale = np.abs(expected[name]).max()
        np.testing.assert_allclose(found, expected[name], atol=0.15 * scale)


def test_what_cannot_be_trained_is_named(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    x = image = keras.Input((8, 8, 4))
    x = layers.BatchNormalization(name="lonely")(x)
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.ELU(name="elu")(x)
    model = keras.Model(image, layers.Dense(3, name="dense")(layers.Flatten()(x)), name="net")
    with caplog.at_level(logging.WARNING, "absl"):
        aware = tfdwd.quantize_aware(model)
    assert "model 'net': these layers" in caplog.text
    assert caplog.text.rstrip().endswith("file: lonely, elu")
    images = _images(32, (8, 8, 4))
    aware.compile("sgd", "mse")
    aware.fit(images, np.asarray(model(images)), verbose=0)
    report = tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8", data=images)
    assert report.outputs[0].sqnr_db > 25


def _in_row(*parts: Any, shape: tuple[int | None, ...] = (8, 8, 4)) -> keras.Model:
    keras.utils.set_random_seed(0)
    x = image = keras.Input(shape, name="image")
    for part in parts:
        x = part(x)
    return keras.Model(image, x)


def _own_activation(x: Any) -> Any:
    return ops.relu(x) * 0.5


def _hub() -> keras.Model:
    models = pytest.importorskip("keras_hub").models
    return models.MobileNetBackbone(
        stackwise_expansion=[[16, 24], [32]],
        stackwise_num_blocks=[2, 1],
        stackwise_num_filters=[[8, 8], [12]],
        stackwise_kernel_size=[[3, 3], [5]],
        stackwise_num_strides=[[2, 1], [1]],
        stackwise_se_ratio=[[None, None], [0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish"]],
        stackwise_padding=[[1, 1], [2]],
        output_num_filters=16,
        depthwise_filters=8,
        depthwise_stride=1,
        depthwise_residual=True,
        last_layer_filter=24,
        squeeze_and_excite=0.5,
        input_num_filters=8,
        input_activation="hard_swish",
        output_activation="hard_swish",
        image_shape=(16, 16, 3),
    )


ANY = {
    "hard swish": lambda: _in_row(
        layers.Conv2D(6, 3, activation="hard_swish"), layers.Activation("hard_silu")
    ),
    "hard sigmoid": lambda: _in_row(
        layers.Conv2D(6, 3, activation="hard_sigmoid"), lambda x: ops.hard_sigmoid(x - 0.5)
    ),
    "activations": lambda: _in_row(
        layers.Conv2D(6, 1, activation="gelu"), layers.Conv2D(6, 1, activation="leaky_relu"),
        layers.Conv2D(6, 1, activation=layers.PReLU("ones")), layers.Dense(4, _own_activation),
    ),
    "sizes": lambda: _in_row(
        layers.UpSampling2D(2), layers.Conv2D(4, 3), layers.Resizing(9, 9),
        layers.Conv2DTranspose(4, 3, strides=2, padding="same", activation="relu"),
    ),
    "operations": lambda: _in_row(
        layers.Conv2D(6, 3), lambda x: ops.relu(x + 0.5) * 2.0, lambda x: 1.0 - x,
        lambda x: ops.concatenate([x, ops.relu6(x)], -1), layers.Conv2D(8, 1),
        lambda x: ops.depth_to_space(x, 2), lambda x: ops.mean(x, [1, 2]), layers.Dense(3),
    ),
    "own layer": lambda: _in_row(cases.Doubled(name="mine"), layers.Conv2D(4, 3)),
    "recurrent": lambda: _in_row(layers.Reshape((64, 4)), layers.LSTM(3)),
    "norms": lambda: _in_row(layers.LayerNormalization(), layers.Conv2D(4, 3)),
    "half precision": lambda: _in_row(layers.Conv2D(4, 3, dtype="mixed_float16")),
    "scores of pixels": lambda: _in_row(layers.Conv2D(4, 3), layers.Softmax()),
    "one score": lambda: _in_row(layers.Flatten(), layers.Dense(1, "sigmoid")),
    "names": lambda: _in_row(
        layers.Conv2D(4, 3, name="my conv [1]"), layers.ReLU(name="_hidden"), layers.Dense(2)
    ),
    "hub": _hub,
}  # fmt: skip


@pytest.mark.parametrize("name", ANY)
def test_before_training_any_network_computes_as_it_did(name: str, tmp_path: Path) -> None:
    model = cases.randomised(ANY[name]())
    images = _images(16, model.input_shape[1:])
    flat = keras.tree.flatten(model(images))
    expected = [np.asarray(output, np.float32) for output in flat]
    aware = tfdwd.quantize_aware(model)
    found = [np.asarray(output) for output in keras.tree.flatten(aware(images))]
    for one, other in zip(found, expected, strict=True):
        # Kernels are rounded by at most 1/254 of their largest value, activations not at all.
        np.testing.assert_allclose(one, other, atol=0.03 * np.abs(other).max())
    aware.compile(tf_keras.optimizers.SGD(0.0), "mse")
    aware.fit(images, keras.tree.pack_sequence_as(model.output, expected), verbose=0)
    if name == "recurrent":  # a loop cannot be made int8
        return
    report = tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8", data=images)
    assert min(output.sqnr_db for output in report.outputs) > 15
    if name in ("hard swish", "hard sigmoid", "sizes", "operations", "names", "hub"):
        assert "DEQUANTIZE" not in report.operators  # all of it has 8 bits


def test_a_hard_swish_is_one_operator_of_8_bits(tmp_path: Path) -> None:
    images = _images(32, (8, 8, 4))
    aware = _seen(_in_row(layers.Conv2D(6, 3, activation="hard_swish"), layers.Dense(3)), images)
    report = tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8", data=images)
    assert report.operators["HARD_SWISH"] == 1
    assert not {"DEQUANTIZE", "MUL"} & report.operators.keys()


def test_mobilenet_v3_becomes_aware() -> None:
    model = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), alpha=0.35, weights=None, classes=5
    )
    images = 127 + 50 * _images(2, (32, 32, 3))
    np.testing.assert_allclose(tfdwd.quantize_aware(model)(images), model(images), atol=0.02)


def test_open_sizes_stay_open() -> None:
    model = _in_row(layers.Conv2D(3, 3, activation="relu"), shape=(None, None, 4))
    aware = tfdwd.quantize_aware(model)
    assert aware.input_shape == (None, None, None, 4)
    for size in (8, 12):
        images = _images(2, (size, size, 4))
        np.testing.assert_allclose(aware(images), model(images), atol=0.03)


def test_weights_of_layers_that_tf_keras_lacks_are_trained_saved_and_shared(tmp_path: Path) -> None:
    norm = layers.LayerNormalization(name="norm")
    frozen = layers.PReLU(name="frozen", trainable=False)
    model = _in_row(layers.Conv2D(4, 3), norm, frozen, norm, layers.Flatten(), layers.Dense(1))
    images = _images(8, (8, 8, 4))
    aware = tfdwd.quantize_aware(model)
    # Two of the convolution, two of the norm that is used twice, two of the dense layer.
    assert len(aware.trainable_weights) == 6
    aware.compile(tf_keras.optimizers.SGD(0.1), "mse")
    aware.fit(images, np.ones(8), verbose=0)
    gamma = next(w for w in aware.trainable_weights if "norm" in w.name and "gamma" in w.name)
    assert not np.allclose(gamma, 1)
    np.testing.assert_array_equal(norm.gamma, np.ones(4))
    aware.save_weights(tmp_path / "a.weights.h5")
    loaded = tfdwd.quantize_aware(model)
    loaded.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(loaded(images), aware(images))


def test_dropout_drops_in_training_only() -> None:
    aware = tfdwd.quantize_aware(_in_row(layers.Dropout(0.5), shape=(100,)))
    ones = np.ones((1, 100), np.float32)
    np.testing.assert_array_equal(aware(ones), ones)
    assert np.sum(aware(ones, training=True) == 0) > 10


def test_what_keras_has_quantised_is_refused() -> None:
    model = _in_row(layers.Conv2D(4, 3), layers.Dense(3, name="small"))
    model.layers[-1].quantize("int8")
    with pytest.raises(tfdwd.Error, match=r"'small': .*quantised \(int8_from_float32\)"):
        tfdwd.quantize_aware(model)


def test_a_layer_that_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if tf_keras' convolution had another meaning."""

    class Other(tf_keras.layers.Conv2D):
        def call(self, x: Any) -> Any:
            return 1.01 * super().call(x)

    monkeypatch.setattr(tf_keras.layers, "Conv2D", Other)
    with pytest.raises(tfdwd.Error, match=r"'odd' \(Conv2D\): .*differ by 1.0e-02"):
        tfdwd.quantize_aware(_in_row(layers.Conv2D(3, 3, name="odd")))


def test_untrained_or_in_another_precision_it_is_not_exported(tmp_path: Path) -> None:
    aware = tfdwd.quantize_aware(_stack(1))
    with pytest.raises(tfdwd.Error, match="expected one that was trained"):
        tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8")
    with pytest.raises(tfdwd.Error, match="expected quantize='int8', got 'float16'"):
        tfdwd.export(aware, tmp_path / "a.tflite", quantize="float16")
    assert list(tmp_path.iterdir()) == []


def test_saved_weights_are_loaded(tmp_path: Path) -> None:
    images, model = _images(8, (8, 8, 4)), _stack(2)
    aware = _seen(model, images)
    aware.save_weights(tmp_path / "aware.weights.h5")
    loaded = tfdwd.quantize_aware(model)
    loaded.load_weights(tmp_path / "aware.weights.h5")
    np.testing.assert_array_equal(loaded(images), aware(images))
    tfdwd.export(loaded, tmp_path / "a.tflite", quantize="int8")


def test_other_models_are_not_aware() -> None:
    assert not quantization.is_aware(tf_keras.Sequential([tf_keras.layers.Dense(1)]))


def test_without_the_extra_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_model_optimization", None)
    monkeypatch.delitem(sys.modules, "tfdwd.rounding", raising=False)
    monkeypatch.delattr(tfdwd, "rounding", raising=False)
    with pytest.raises(tfdwd.Error, match=r"pip install 'tfdwd\[qat\]'"):
        tfdwd.quantize_aware(_stack(1))
    model = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)])
    with pytest.raises(tfdwd.Error, match="expected a Keras 3 model"):  # as with the extra
        tfdwd.export(model, tmp_path / "a.tflite")


def test_a_backbone_held_to_inference_is_trained_for_int8(tmp_path: Path) -> None:
    """Transfer learning calls the backbone with training=False: its batch norms stay, not more."""
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(4, 3, name="conv")(image))
    x = layers.BatchNormalization()(layers.ReLU()(layers.Conv2D(4, 3)(x)))
    backbone = keras.Model(image, x)
    x = backbone(image, training=False)
    model = keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    images = _images(40, (8, 8, 3))
    aware = tfdwd.quantize_aware(model)
    norm = [np.array(w) for w in aware.get_layer("norm").get_weights()[2:]]
    kernel = aware.get_layer("conv").get_weights()[0]
    tfdwd.finetune(aware, images, teacher=model, epochs=1, validation=None)
    for before, after in zip(norm, aware.get_layer("norm").get_weights()[2:], strict=True):
        np.testing.assert_array_equal(after, before)
    assert (aware.get_layer("conv").get_weights()[0] != kernel).any()
    report = tfdwd.export(aware, tmp_path / "a.tflite", quantize="int8", data=images)
    assert min(output.sqnr_db for output in report.outputs) > 30
