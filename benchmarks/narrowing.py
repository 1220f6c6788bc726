"""A network with fewer channels in all of its layers: what one would try before decomposing it.

For plain and residual networks of regular convolutions, batch norms, activations, additions and
poolings. Of channels that belong together, such as those that are added, the ones of the largest
kernels are kept (Li et al., "Pruning filters for efficient ConvNets", arXiv 1608.08710), and each
layer is refitted by least squares to the original's responses, given what the narrow layers before
it give (He et al., "Channel pruning", arXiv 1707.06168, section 3.1.1, step ii).
"""

import keras
import numpy as np
from keras import layers

from tfdwd import graph

ROWS = 20_000  # of patches, for each layer
RIDGE = 1e-4  # part of the mean of the diagonal
PASSES = (
    layers.BatchNormalization, layers.Activation, layers.ReLU, layers.Add, layers.Dropout,
    layers.MaxPooling2D, layers.AveragePooling2D, layers.GlobalAveragePooling2D, layers.Flatten,
    layers.Rescaling,
)  # fmt: skip


def narrowed(model: keras.Model, part: float, images: np.ndarray | None = None) -> keras.Model:
    """A copy with this part of the channels, at least one.

    Args:
      model: Functional, of the layers above; inputs and outputs keep their channels.
      part: 0..1.
      images: to refit the kept channels on; None for random weights.
    """
    traced = graph.trace(model)
    groups = _groups(traced)
    kept = _kept(traced, groups, part)
    config = model.get_config()
    for call in traced.calls:
        [own] = [c for c in config["layers"] if c["name"] == call.operation.name]
        own.pop("build_config", None)  # which has the original's channels
        for name in ("filters", "units"):
            if name in own["config"]:
                own["config"][name] = len(kept[groups[call.outputs[0]]])
    small = keras.Model.from_config(config)
    if images is None:
        return small
    for call in traced.calls:
        reads, gives = (kept[groups[n]] for n in (call.inputs[0], call.outputs[0]))
        layer = small.get_layer(call.operation.name)
        layer.set_weights([_sliced(w, reads, gives) for w in call.operation.get_weights()])
        if isinstance(layer, layers.Conv2D | layers.Dense):
            _refit(model, small, layer.name, gives, images)
    return small


def _groups(traced: graph.Graph) -> dict[int, int]:
    """{tensor number: that of the tensor whose channels are the same}."""
    parent = {number: number for number in traced.specs}

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for call in traced.calls:
        if isinstance(call.operation, layers.Conv2D | layers.Dense):
            continue
        same = {traced.specs[n].shape[-1] for n in (*call.inputs, *call.outputs)}
        if not isinstance(call.operation, PASSES) or len(same) > 1:
            raise ValueError(f"{call.path}: no layer whose channels can be followed")
        for number in (*call.inputs[1:], *call.outputs):
            parent[root(number)] = root(call.inputs[0])
    return {number: root(number) for number in traced.specs}


def _kept(traced: graph.Graph, groups: dict[int, int], part: float) -> dict[int, np.ndarray]:
    """{group: the channels that are kept, ascending}."""
    norms: dict[int, np.ndarray] = {}
    for call in traced.calls:
        if isinstance(call.operation, layers.Conv2D | layers.Dense):
            kernel = call.operation.get_weights()[0]
            norm = np.sqrt(np.square(kernel.reshape(-1, kernel.shape[-1])).sum(0))
            group = groups[call.outputs[0]]
            norms[group] = norms.get(group, 0) + norm / norm.mean()
    whole = {groups[n] for n in (*traced.inputs, *traced.outputs)}
    found = {g: np.arange(traced.specs[g].shape[-1]) for g in groups.values()}
    for group in norms.keys() - whole:
        count = max(1, round(part * len(norms[group])))
        found[group] = np.sort(np.argsort(-norms[group], kind="stable")[:count])
    return found


def _sliced(weight: np.ndarray, reads: np.ndarray, gives: np.ndarray) -> np.ndarray:
    """Of a kernel (..., reads, gives), or of a vector (gives,)."""
    return weight[gives] if weight.ndim == 1 else weight[..., reads, :][..., gives]


def _refit(model, small, name: str, gives: np.ndarray, images: np.ndarray) -> None:
    layer, original = small.get_layer(name), model.get_layer(name)
    if layer.activation is keras.activations.linear:
        y = _run(model, original.output, images)
    elif isinstance(layer, layers.Dense):
        y = _response(original, _run(model, original.input, images))
    else:
        return  # its response is not linear in the kernel
    x, y = _run(small, layer.input, images), y[..., gives]
    kernel = layer.get_weights()[0]
    if isinstance(layer, layers.Conv2D):
        x = np.asarray(
            keras.ops.image.extract_patches(
                x, layer.kernel_size, layer.strides, padding=layer.padding
            )
        )
    x, y = (array.reshape(-1, array.shape[-1]).astype(np.float64) for array in (x, y))
    rows = np.random.default_rng(0).permutation(len(x))[:ROWS]
    x, y = x[rows], y[rows]
    if layer.use_bias:
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    moments = x.T @ x
    moments[np.diag_indices_from(moments)] += RIDGE * np.trace(moments) / len(moments)
    fitted = np.linalg.solve(moments, x.T @ y)
    weights = [fitted[: kernel.size // kernel.shape[-1]].reshape(kernel.shape)]
    layer.set_weights([*weights, fitted[-1]] if layer.use_bias else weights)


def _response(layer: layers.Dense, x: np.ndarray) -> np.ndarray:
    """What a dense layer gives before its activation."""
    kernel, *bias = layer.get_weights()
    return x @ kernel + (bias[0] if bias else 0)


def _run(model: keras.Model, tensor: keras.KerasTensor, images: np.ndarray) -> np.ndarray:
    if tensor is model.inputs[0]:
        return images.astype(np.float32)
    return keras.Model(model.inputs, tensor).predict(images, batch_size=64, verbose=0)
