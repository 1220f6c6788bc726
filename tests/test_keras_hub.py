"""KerasHub's backbones, whose blocks hide their convolutions, the whole way to int8."""

import keras
import numpy as np
import pytest
from cases import difference, outputs_of

import tfdwd
from tfdwd import candidates, graph

hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed: pip install tfdwd[hub]")
pytestmark = [
    pytest.mark.slow,
    # KerasHub gives its dict of inputs or its layers odd names; nothing of it is wrong here.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SIZE = (64, 64, 3)


def resnet(block, **options):
    return hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type=block,
        image_shape=SIZE,
        **options,
    )


def efficientnet(kinds, **options):
    return hub.models.EfficientNetBackbone(
        stackwise_kernel_sizes=[3, 3, 3],
        stackwise_num_repeats=[1, 2, 2],
        stackwise_input_filters=[16, 16, 24],
        stackwise_output_filters=[16, 24, 32],
        stackwise_expansion_ratios=[1, 4, 4],
        stackwise_squeeze_and_excite_ratios=[0.0, 0.0, 0.25],
        stackwise_strides=[1, 2, 2],
        stackwise_block_types=kinds,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stem_conv_padding="same",
        input_shape=SIZE,
        **options,
    )


def deeplab():
    return hub.models.DeepLabV3Backbone(
        image_encoder=resnet("basic_block"),
        spatial_pyramid_pooling_key="P3",
        low_level_feature_key="P2",
        dilation_rates=[2, 3],
        upsampling_size=2,
        projection_filters=8,
        image_shape=SIZE,
    )


def mobilenet():
    return hub.models.MobileNetBackbone(
        stackwise_expansion=[[16, 24], [32, 48]],
        stackwise_num_blocks=[2, 2],
        stackwise_num_filters=[[8, 8], [16, 16]],
        stackwise_kernel_size=[[3, 3], [5, 5]],
        stackwise_num_strides=[[2, 1], [2, 1]],
        stackwise_se_ratio=[[None, None], [0.25, 0.25]],
        stackwise_activation=[["relu", "relu"], ["hard_swish", "hard_swish"]],
        stackwise_padding=[[1, 1], [2, 2]],
        output_num_filters=32,
        input_activation="hard_swish",
        output_activation="hard_swish",
        input_num_filters=8,
        image_shape=SIZE,
        depthwise_filters=8,
        depthwise_stride=2,
        depthwise_residual=False,
        squeeze_and_excite=0.5,
        last_layer_filter=32,
    )


def csp():
    return hub.models.CSPNetBackbone(
        stem_filters=8,
        stem_kernel_size=3,
        stem_strides=2,
        stackwise_depth=[1, 2],
        stackwise_strides=[1, 2],
        stackwise_num_filters=[16, 24],
        block_type="dark_block",
        stage_type="csp",
        bottle_ratio=[0.5],
        block_ratio=[0.5],
        image_shape=SIZE,
    )


BACKBONES = {
    "ResNet": lambda: resnet("basic_block"),
    "ResNet V2, bottlenecks": lambda: resnet("bottleneck_block", use_pre_activation=True),
    "EfficientNet": lambda: efficientnet(["v1", "v1", "v1"]),
    "EfficientNetV2": lambda: efficientnet(["fused", "fused", "unfused"]),
    "MobileNet": mobilenet,
    "DenseNet": lambda: hub.models.DenseNetBackbone([2, 2], growth_rate=8, image_shape=SIZE),
    "VGG": lambda: hub.models.VGGBackbone([1, 2], [8, 16], image_shape=SIZE),
    "CSPNet": csp,
    "DeepLabV3": deeplab,
}


def lively(model):
    """Moves the batch norms' statistics off 0 and 1, which would hide what is lost."""
    random = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            for weight in layer.weights:
                weight.assign(random.uniform(0.5, 1.5, weight.shape))
    return model


@pytest.mark.parametrize("name", BACKBONES)
def test_the_whole_way(name, tmp_path):
    keras.utils.set_random_seed(0)
    model = lively(BACKBONES[name]())
    images = np.random.default_rng(1).uniform(0, 1, (32, *SIZE)).astype(np.float32)
    regular = [
        layer
        for layer in model._flatten_layers()
        if type(layer) is keras.layers.Conv2D and layer.kernel_size != (1, 1) and layer.groups == 1
    ]
    found = candidates.find_convolutions(graph.trace(model))
    ranks = {conv.path: min(conv.sizes[1:]) for conv in found if not conv.obstacle}
    assert {id(conv.layer) for conv in found if not conv.obstacle} == set(map(id, regular))
    full, report = tfdwd.decompose(model, rank=ranks, return_report=True)
    assert {layer.name for layer in report.layers if layer.replaced} == set(ranks)
    # He-scaled weights of some ten layers in float32.
    assert difference(outputs_of(full, images), outputs_of(model, images)) < 1e-4

    student = tfdwd.decompose(model, images)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert difference(outputs_of(loaded, images), outputs_of(student, images)) < 1e-6
    exact = tfdwd.export(student, tmp_path / "student.tflite", data=images)
    assert max(output.largest_difference for output in exact.outputs) < 1e-4
    tfdwd.export(student, tmp_path / "int8.tflite", quantize="int8", data=images)
    assert (tmp_path / "int8.tflite").stat().st_size > 0
