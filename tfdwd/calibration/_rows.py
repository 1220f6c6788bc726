"""What a convolution gives, and what it reads, at some positions."""

import keras
import numpy as np
import tensorflow as tf


def response(conv: keras.layers.Conv2D, x: tf.Tensor) -> tf.Tensor:
    """A convolution before its activation, (batch, h, w, n) float32."""
    y = conv.convolution_op(tf.cast(x, tf.float32), tf.cast(conv.kernel, tf.float32))
    return y if conv.bias is None else y + tf.cast(conv.bias, tf.float32)


def rows_at(x: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Rows (positions, n), float32, of (batch, h, w, n).

    Args:
      x: (batch, h, w, n).
      positions: (positions,) int32, into batch * h * w.
    """
    return tf.cast(tf.gather(tf.reshape(x, (-1, x.shape[-1])), positions), tf.float32)


def patches_at(
    conv: keras.layers.Conv2D, x: tf.Tensor, positions: tf.Tensor, size: tuple[int, int]
) -> tf.Tensor:
    """im2col at some output positions only.

    Args:
      conv: gives taps, strides, padding and dilation.
      x: (batch, h, w, c).
      positions: (positions,) int32, into batch * height * width of the outputs.
      size: (height, width) of the outputs.

    Returns:
      (positions, c * q) float32, channel-major.
    """
    padded = []
    pads = []
    for length, taps, stride, dilation in zip(
        x.shape[1:3], conv.kernel_size, conv.strides, conv.dilation_rate, strict=True
    ):
        reach = (-(-length // stride) - 1) * stride + (taps - 1) * dilation + 1
        total = max(reach - length, 0) if conv.padding == "same" else 0
        pads.append((total // 2, total - total // 2))
        padded.append(length + total)
    x = tf.pad(x, [(0, 0), *pads, (0, 0)])
    height, width = size
    image, row, column = (
        positions // (height * width), positions // width % height, positions % width,
    )  # fmt: skip
    corner = (image * padded[0] + row * conv.strides[0]) * padded[1] + column * conv.strides[1]
    down, right = (
        np.indices(conv.kernel_size).reshape(2, -1) * np.array(conv.dilation_rate)[:, None]
    )
    taps = (down * padded[1] + right).astype(np.int32)
    rows = tf.gather(tf.reshape(x, (-1, x.shape[3])), corner[:, None] + taps)  # (rows, q, c)
    channel_major = tf.transpose(tf.cast(rows, tf.float32), (0, 2, 1))
    return tf.reshape(channel_major, (-1, x.shape[3] * len(taps)))
