import subprocess
import sys

import keras
import pytest
from cases import network
from keras import layers

from tfdwd import costs
from tfdwd.errors import Error
from tfdwd.models import ShuffleNetV2


def macs(layer, shape):
    return costs.count(keras.Sequential([keras.Input(shape), layer])).macs


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Conv2D(5, 3), (9, 8, 3), 7 * 6 * 3 * 3 * 3 * 5),
        (layers.Conv2D(5, (1, 3), padding="same", strides=(1, 2)), (9, 7, 3), 9 * 4 * 3 * 3 * 5),
        (layers.Conv2D(6, 3, dilation_rate=2), (9, 8, 3), 5 * 4 * 9 * 3 * 6),
        (layers.Conv2D(6, 3, groups=3), (9, 8, 12), 7 * 6 * 9 * 4 * 6),
        (layers.Conv2D(5, 1, use_bias=False), (9, 8, 3), 9 * 8 * 3 * 5),
        (layers.DepthwiseConv2D(3, strides=2, padding="same"), (9, 8, 3), 5 * 4 * 9 * 3),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (9, 8, 3), 7 * 6 * 9 * 3 * 2),
        (layers.SeparableConv2D(5, 3), (9, 8, 4), 7 * 6 * (9 * 4 + 4 * 5)),
        # Each input position is multiplied with the whole kernel, wherever it is put.
        (layers.Conv2DTranspose(5, 3, strides=2), (4, 6, 3), 4 * 6 * 9 * 3 * 5),
        (layers.Conv1D(5, 3), (10, 4), 8 * 3 * 4 * 5),
        (layers.Conv3D(5, 3), (5, 6, 7, 2), 3 * 4 * 5 * 27 * 2 * 5),
        (layers.Conv1DTranspose(5, 4, strides=3), (10, 2), 10 * 4 * 2 * 5),
        (layers.Dense(7), (6,), 6 * 7),
        (layers.Dense(7), (10, 6), 10 * 6 * 7),
        (layers.BatchNormalization(), (9, 8, 3), 0),
        (layers.PReLU(), (9, 8, 3), 0),
        (layers.MaxPooling2D(), (9, 8, 3), 0),
        (layers.Conv2D(5, 3, data_format="channels_first"), (3, 9, 8), 7 * 6 * 9 * 3 * 5),
    ],
    ids=lambda value: value.name if isinstance(value, layers.Layer) else None,
)
def test_macs_of_one_layer(layer, shape, expected):
    assert macs(layer, shape) == expected


def test_a_shared_layer_costs_macs_at_each_use_and_parameters_once():
    found = costs.count(network("siamese"))
    one = 64 * 9 * 3 * 6 + 64 * 9 * 6 * 4
    assert found.macs == 2 * one
    assert found.parameters == (9 * 3 * 6 + 6) + (9 * 6 * 4 + 4)
    assert found.bytes == 4 * found.parameters


def test_nested_models_count_at_the_size_at_which_they_are_called():
    assert costs.count(network("nested of open size")).macs == 64 * 9 * 3 * 6 + 64 * 9 * 6 * 4


def test_open_sizes_need_input_shape():
    model = keras.Sequential([keras.Input((None, None, 3), name="x"), layers.Conv2D(5, 3)])
    with pytest.raises(Error, match=r"expected a fixed size .* pass input_shape"):
        costs.count(model)
    for shape in ((10, 12, 3), [(10, 12, 3)], {"x": (10, 12, 3)}):
        assert costs.count(model, shape).macs == 8 * 10 * 27 * 5
    assert costs.count(model, input_shape=(5, 5, 3)).macs == 3 * 3 * 27 * 5
    with pytest.warns(DeprecationWarning, match="is called input_shape= now.* removed in 0.3.0"):
        assert costs.count(model, input_shapes=[(5, 5, 3)]).macs == 3 * 3 * 27 * 5
    with pytest.raises(Error, match=r"layer 'conv2d.*' cannot run where the inputs are .*2, 2, 3"):
        costs.count(model, (2, 2, 3))


def test_a_fixed_batch_costs_what_one_image_costs():
    parts = [keras.Input(batch_shape=(4, 6, 6, 3)), layers.Conv2D(5, 3), layers.Flatten()]
    model = keras.Sequential([*parts, layers.Dense(2)])
    assert costs.count(model).macs == costs.count(model, (6, 6, 3)).macs == 16 * 27 * 5 + 80 * 2


def test_what_is_not_counted_is_named():
    x = keras.Input((10, 8), name="x")
    y = layers.LSTM(4, name="memory")(layers.Dense(8, name="in")(x))
    found = costs.count(keras.Model(x, layers.Dense(2)(y)))
    assert found.uncounted == ("memory",)
    assert found.macs == 10 * 8 * 8 + 4 * 2
    assert found.parameters == (8 * 8 + 8) + 4 * (8 * 4 + 4 * 4 + 4) + (4 * 2 + 2)


@pytest.mark.parametrize(
    ("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2), ("float64", 8)]
)
def test_bytes_are_those_of_the_weights_own_dtype(dtype, size):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype=dtype)])
    assert costs.count(model).bytes == size * (4 * 3 + 3)


def test_bytes_of_the_odd_dtypes():
    assert [costs._item_bytes(d) for d in ("float8_e4m3fn", "uint8", "int4", "bool")] == [1] * 4


def test_mixed_precision_keeps_its_weights_in_32_bits():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype="mixed_float16")])
    assert costs.count(model).bytes == 4 * (4 * 3 + 3)


def test_formulas_of_the_stacks():
    assert costs.separable_macs(8, 9, 16, 2, 100) == 100 * (8 * 2 * 9 + 8 * 2 * 16)
    assert costs.bottleneck_macs(8, 9, 16, 5, 100) == 100 * (8 * 5 + 5 * 9 + 5 * 16)
    assert costs.bottleneck_macs(8, 9, 16, 5, 100, 400) == 400 * 8 * 5 + 100 * (5 * 9 + 5 * 16)
    assert costs.channel_macs(8, 9, 16, 3, 100) == 100 * (8 * 9 * 3 + 3 * 16)


def test_importing_it_needs_no_keras():
    program = "import sys, tfdwd.costs; sys.exit('keras' in sys.modules or 'h5py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


# Trainable parameters as published implementations have them; MACs at 224 x 224 of all
# convolutions and the classifier, in millions: Ma et al. 2018, table 8 states 41, 146, 299 and
# 591 M, which count additions of other layers too. The regular twin: the same with 3x3 kernels.
SHUFFLENETS = {
    (0.5, "separable"): (1_366_792, 40.5),
    (1.0, "separable"): (2_278_604, 144.9),
    (1.5, "separable"): (3_503_624, 295.8),
    (2.0, "separable"): (7_393_996, 583.3),
    (0.5, "regular"): (None, 107.3),
    (1.0, "regular"): (None, 529.3),
    (1.5, "regular"): (None, 1177.0),
    (2.0, "regular"): (None, 2273.4),
}


@pytest.mark.parametrize(
    ("width", "conv"),
    [
        pytest.param(
            *key,
            marks=()
            if key in ((0.5, "separable"), (2.0, "separable"), (0.5, "regular"))
            else pytest.mark.slow,
        )
        for key in SHUFFLENETS
    ],
)
def test_shufflenet_v2_is_the_published_one(width, conv):
    parameters, millions = SHUFFLENETS[width, conv]
    model = ShuffleNetV2(width, conv=conv)
    found = costs.count(model)
    assert round(found.macs / 1e6, 1) == millions
    assert found.uncounted == ()
    if parameters:
        trainable = sum(keras.ops.size(weight) for weight in model.trainable_weights)
        assert int(trainable) == parameters


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.7}, r"width: expected one of \[0.5, 1.0, 1.5, 2.0\], got 0.7"),
        ({"conv": "dense"}, "conv: expected 'separable' or 'regular', got 'dense'"),
        ({"stem": "large"}, "stem: expected 'imagenet' or 'small', got 'large'"),
        ({"channels": (8, 12, 15, 24)}, r"three stages, the stages' even, got \(8, 12, 15, 24\)"),
        ({"channels": (8, 12, 24)}, r"three stages, the stages' even, got \(8, 12, 24\)"),
    ],
)
def test_shufflenet_v2_refuses_other_options(options, message):
    with pytest.raises(Error, match=message):
        ShuffleNetV2(**options)


def test_the_small_shufflenet():
    model = ShuffleNetV2(
        stem="small", input_shape=(28, 28, 1), classes=10, repeats=(2, 3, 2),
        channels=(12, 20, 40, 80), last_channels=64,
    )  # fmt: skip
    assert model.output_shape == (None, 10)
    assert model.get_layer("stem_conv").filters == 12
    assert model.get_layer("stage2_unit1_concat").output.shape == (None, 14, 14, 20)
    assert model.get_layer("stage4_unit1_concat").output.shape[-1] == 80
    assert model.get_layer("last_conv").filters == 64
    units = {layer.name[:12] for layer in model.layers if layer.name.startswith("stage")}
    assert len(units) == 2 + 3 + 2


def test_the_channel_shuffle_interleaves_the_halves():
    model = ShuffleNetV2(0.5, stem="small", input_shape=(8, 8, 3), classes=2, repeats=(1, 1, 1))
    shuffle = keras.Model(
        model.get_layer("stage2_unit1_concat").output, model.get_layer("stage2_unit1_merge").output
    )
    x = keras.ops.broadcast_to(keras.ops.arange(48.0), (1, 4, 4, 48))
    found = keras.ops.convert_to_numpy(shuffle(x))[0, 2, 3]
    assert found.tolist() == [half * 24 + i for i in range(24) for half in (0, 1)]
