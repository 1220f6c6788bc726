"""ShuffleNet V2 and its twin with regular convolutions."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from tfdwd.errors import Error

# Channels of (stem, stage 2, stage 3, stage 4, last 1x1): Ma et al. 2018, table 5.
_CHANNELS = {
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}


def ShuffleNetV2(  # noqa: N802 - a network is named like a class, as in keras.applications
    width: float = 1.0,
    *,
    conv: str = "separable",
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    stem: str = "imagenet",
    repeats: Sequence[int] = (4, 8, 4),
    channels: Sequence[int] | None = None,
    last_channels: int | None = None,
    name: str = "shufflenet_v2",
) -> keras.Model:
    """Builds ShuffleNet V2, freshly initialised, for pixels in 0..255.

    Each depthwise 3x3 + pointwise pair of the published network has no activation between its
    two halves. ``conv="regular"`` puts one regular 3x3 convolution in the place of each pair;
    decomposing that twin at rank 1 gives a network of the published shape and cost.

    Args:
      width: 0.5, 1.0, 1.5 or 2.0; without effect where ``channels`` is given.
      conv: "separable" (as published) or "regular".
      input_shape: (height, width, channels) of the images, pixels in 0..255.
      classes: outputs of the softmax.
      stem: "imagenet" (stride-2 convolution and max pooling, the published one) or "small"
        (stride 1, no pooling; for 28 to 64 px).
      repeats: units in stages 2, 3 and 4.
      channels: of the stem and of stages 2, 3 and 4, those of the stages even; the published ones
        of the width if None.
      last_channels: outputs of the last 1x1 convolution; the published number if None.
      name: name of the model.

    Returns:
      A functional model, (batch, height, width, channels) float32 -> (batch, classes) float32.

    Raises:
      tfdwd.Error: an argument is not one of the above.

    Example:
      >>> model = ShuffleNetV2(0.5, conv="regular", input_shape=(32, 32, 3), classes=10,
      ...                      stem="small")
      >>> model.output_shape
      (None, 10)

    Source: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture
    Design", arXiv 1807.11164, figure 3 (c, d) and table 5. The twin: He et al., arXiv
    1910.09455, section 4.
    """
    if width not in _CHANNELS:
        raise Error(f"width: expected one of {sorted(_CHANNELS)}, got {width!r}")
    if conv not in ("separable", "regular"):
        raise Error(f"conv: expected 'separable' or 'regular', got {conv!r}")
    if stem not in ("imagenet", "small"):
        raise Error(f"stem: expected 'imagenet' or 'small', got {stem!r}")
    *published, published_last = _CHANNELS[width]
    stem_channels, *stages = published if channels is None else channels
    if len(stages) != 3 or min(stem_channels, *stages) < 1 or any(n % 2 for n in stages):
        raise Error(
            "channels: expected those of the stem and of three stages, the stages' even, got "
            f"{channels!r}"
        )

    inputs = keras.Input(input_shape, name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="rescale")(inputs)
    x = _conv_bn_relu(x, stem_channels, 3, 2 if stem == "imagenet" else 1, "stem")
    if stem == "imagenet":
        x = layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    for stage, (width_of, count) in enumerate(zip(stages, repeats, strict=True), start=2):
        for unit in range(1, count + 1):
            x = _unit(x, width_of, 2 if unit == 1 else 1, conv, f"stage{stage}_unit{unit}")
    x = _conv_bn_relu(x, last_channels or published_last, 1, 1, "last")
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    outputs = layers.Dense(classes, activation="softmax", name="probabilities")(x)
    return keras.Model(inputs, outputs, name=name)


def _unit(x: Any, channels: int, stride: int, conv: str, name: str) -> Any:
    """One unit: half of the channels pass by (stride 1) or are pooled by a convolution."""
    half = channels // 2
    if stride == 1:
        shortcut, branch = x[..., :half], x[..., half:]
    else:
        shortcut, branch = _spatial_conv(x, half, stride, conv, f"{name}_shortcut"), x
    branch = _conv_bn_relu(branch, half, 1, 1, f"{name}_expand")
    branch = _spatial_conv(branch, half, stride, conv, f"{name}_branch")
    x = layers.Concatenate(name=f"{name}_concat")([shortcut, branch])
    return _channel_shuffle(x, name)


def _spatial_conv(x: Any, channels: int, stride: int, conv: str, name: str) -> Any:
    if conv == "regular":
        return _conv_bn_relu(x, channels, 3, stride, name)
    x = layers.DepthwiseConv2D(3, stride, "same", use_bias=False, name=f"{name}_depthwise")(x)
    x = layers.BatchNormalization(name=f"{name}_depthwise_bn")(x)
    return _conv_bn_relu(x, channels, 1, 1, name)


def _conv_bn_relu(x: Any, channels: int, kernel: int, stride: int, name: str) -> Any:
    x = layers.Conv2D(channels, kernel, stride, "same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def _channel_shuffle(x: Any, name: str) -> Any:
    """Interleaves the two halves; in four dimensions, since LiteRT transposes no more quickly."""
    _, height, width, channels = x.shape
    x = layers.Reshape((height * width, 2, channels // 2), name=f"{name}_split")(x)
    x = layers.Permute((1, 3, 2), name=f"{name}_shuffle")(x)
    return layers.Reshape((height, width, channels), name=f"{name}_merge")(x)
