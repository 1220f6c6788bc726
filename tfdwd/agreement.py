"""How well a .tflite file agrees with the Keras model that it was made from."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfdwd import lite
from tfdwd import outputs as kinds
from tfdwd.errors import Error
from tfdwd.records import Record, Share
from tfdwd.shapes import in_batches, own_batch

if TYPE_CHECKING:
    import keras

_BATCH = 16  # images that Keras runs at once
_SQNR_LIMIT = 200.0  # dB; an exact output has no noise at all


@dataclass(frozen=True)
class OutputAgreement(Record):
    """How well one output of a .tflite file agrees with the Keras model.

    Attributes:
      name: of the output.
      largest_difference: the largest absolute difference over the largest absolute value of the
        Keras output.
      sqnr_db: power of the Keras output over that of the difference, in dB, at most 200.
      top1_agreement: part of the images whose largest output is the same one, 0..1. Of a map of
        probabilities (batch, ..., classes), or of whole numbers or booleans, the part of its pixels
        that are the same. None for all other outputs than these and (batch, classes).
    """

    name: str
    largest_difference: float
    sqnr_db: float
    top1_agreement: Share | None


@dataclass(frozen=True)
class LayerNoise(Record):
    """What quantising costs at one layer.

    Attributes:
      name: of the Keras layer, or of what the .tflite file calls it where it knows of none.
      sqnr_db: power of the float file's tensor over that of the difference to the quantised one's.
      added: noise over signal here, less that of the noisiest input; what the layer itself adds.
    """

    name: str
    sqnr_db: float
    added: float


def of_outputs(
    model: "keras.Model",
    file: lite.Model,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    limit: float,
) -> tuple[OutputAgreement, ...]:
    """Runs images through both.

    Args:
      model: the Keras model, run at inference.
      file: the .tflite file.
      images: one array (images, ...) for each input.
      names: of the outputs.
      limit: the largest difference that may be, over the output's scale.

    Returns:
      The agreement of each output.

    Raises:
      tfdwd.Error: the model gives NaN or infinity, or the two differ by more than the limit.
    """
    from tfdwd.execution import outputs_of

    batch = file.inputs[0].shape[0]
    expected = outputs_of(model, images, own_batch(model.inputs) or min(_BATCH, len(images[0])))
    if any(output.shape[:1] != images[0].shape[:1] for output in expected):
        # An output that is not (batch, ...), such as a scalar over all images of a batch.
        expected = outputs_of(model, images, batch)
    found = in_batches(file.run, images, batch)
    for name, reference, output in zip(names, expected, found, strict=True):
        if not np.isfinite(_as_real(reference)).all():
            raise Error(
                f"output {name!r} of model {model.name!r} is NaN or infinite for some of the "
                "images, in Keras too; check the weights and the scale of the images"
            )
        if reference.shape != output.shape:
            raise Error(
                f"output {name!r} of the .tflite file has the shape {output.shape}, in Keras "
                f"{reference.shape}: the conversion of one of the model's layers is wrong; nothing "
                "was written"
            )
    given = zip(names, expected, found, strict=True)
    return tuple(_agreement(name, reference, output, limit) for name, reference, output in given)


def _agreement(
    name: str, reference: np.ndarray, output: np.ndarray, limit: float
) -> OutputAgreement:
    expected, found = _as_real(reference), _as_real(output)
    scale = np.abs(expected).max(initial=0.0)
    difference = np.abs(found - expected).max(initial=0.0) / (scale or 1.0)
    same = _same_choice(reference, output)
    # Where a network decides, a rounding error may turn a decision here and there.
    off = 1.0 - same if same is not None and reference.dtype.kind in "biu" else difference
    # Written so that NaN is refused too.
    if not off <= limit or not np.isfinite(difference):
        raise Error(
            f"output {name!r} of the .tflite file differs from Keras by {difference:.1e} of its "
            f"scale, expected at most {limit:.0e}: the conversion of one of the model's layers is "
            "wrong, or the output depends on the other images of a batch; nothing was written"
        )
    return OutputAgreement(name, float(difference), _sqnr_db(_noise(expected, found)), same)


def _same_choice(reference: np.ndarray, output: np.ndarray) -> float | None:
    """Part of the images, or of their pixels, that are given the same class."""
    if not reference.size:
        return None
    if reference.dtype.kind in "biu":
        return float(np.mean(reference == output))
    if reference.ndim < 2 or reference.shape[-1] < 2 or reference.dtype.kind == "c":
        return None
    if reference.ndim > 2 and kinds.kind_of(reference) != kinds.PROBABILITIES:
        return None
    return float(np.mean(reference.argmax(-1) == output.argmax(-1)))


def _as_real(values: np.ndarray) -> np.ndarray:
    """Float64, or complex128 where the values are complex."""
    return values.astype(np.result_type(values.dtype, np.float64), copy=False)


def _noise(reference: np.ndarray, found: np.ndarray) -> float:
    """Power of the difference over that of the reference."""
    reference, found = _as_real(reference), _as_real(found)
    power = float(np.sum(np.abs(reference) ** 2))
    return float(np.sum(np.abs(found - reference) ** 2)) / (power or 1.0)


def _sqnr_db(noise: float) -> float:
    return float(-10 * np.log10(max(noise, 10 ** (-_SQNR_LIMIT / 10))))


# ---------------------------------------------------------------------- layers


def of_layers(
    model: "keras.Model",
    reference: Mapping[str, np.ndarray],
    quantized: bytes,
    operators: Sequence[lite.Operator],
    images: Sequence[np.ndarray],
) -> tuple[LayerNoise, ...]:
    """Compares the tensors that the float and the quantised file have by the same name.

    Args:
      model: of Keras; gives the names of the layers.
      reference: the tensors of the float file for the images, by name.
      quantized: the quantised file.
      operators: of that file.
      images: one array (images, ...) for each input.

    Returns:
      The noise of each layer, the costliest first.
    """
    # Another interpreter than the one that is compared with Keras: a delegate shows no tensors.
    file = lite.Model(quantized, keep=True)
    found = file.activations(images, {name for operator in operators for name in operator.writes})
    noise = {
        name: _noise(values, found[name])
        for name, values in reference.items()
        if name in found and found[name].shape == values.shape
    }
    layers = []
    given_out = file.output_tensors()
    layer_of = writers(model, [name for operator in operators for name in operator.writes])
    for operator in operators:
        before = [noise[name] for name in operator.reads if name in noise]
        for name in operator.writes:
            if name in noise:
                added = noise[name] - max(before, default=0.0)
                layer = given_out.get(name) or layer_of[name]
                layers.append(LayerNoise(layer, _sqnr_db(noise[name]), added))
    return tuple(sorted(layers, key=lambda layer: -layer.added))


def writer(model: "keras.Model", name: str) -> str:
    """The layer of weights behind a tensor "net/bn/mul;net/conv/add1" of layers that were fused."""
    scopes = name.split(";")
    found = [layer_name(model, scope) for scope in scopes]
    known = {layer.name: layer for layer in all_layers(model)}
    weighted = [n for n in found if n in known and hasattr(known[n], "kernel")]
    named = [n for n in found if n in known]
    return [*weighted, *named, scopes[0]][0]


def writers(model: "keras.Model", names: Sequence[str]) -> dict[str, str]:
    """The `writer` of each of a file's tensors, which all together tell layers from each other.

    The scope "conv_1" is of the layer "conv" where a layer "conv_1" has the scope "conv_1_2":
    TensorFlow adds a number to the scopes of both.
    """
    known = {layer.name for layer in all_layers(model)}
    parts = {part for name in names for part in re.split("[/;]", name)}
    numbered = {_without_number(part) for part in parts - known}
    moved = {
        part: _without_number(part)
        for part in parts & known & numbered
        if _without_number(part) in known
    }
    return {
        name: writer(model, re.sub("[^/;]+", lambda hit: moved.get(hit[0], hit[0]), name))
        for name in names
    }


def _without_number(part: str) -> str:
    return re.sub(r"_\d+$", "", part)


def layer_name(model: "keras.Model", scope: str) -> str:
    """The layer in a scope such as ``"model_1/erf_1/Erf@__inference_serve_53"``.

    TensorFlow adds ``_1`` to a scope that it has seen before, as when the model was built.
    """
    parts = scope.partition("@")[0].split("/")
    outer = list(all_layers(model))
    # Of a TimeDistributed the layer inside runs on its own.
    for layers in outer, [inner for layer in outer for inner in layer._flatten_layers()]:
        # As `tfdwd.inference.names_for_tensorflow` makes them where they are no scopes.
        names: dict[str, str] = {
            name: layer.name
            for layer in layers
            for name in (layer.name, "x" + re.sub(r"[^A-Za-z0-9_.]", "_", layer.name))
        }
        for part in reversed(parts):
            for name in (part, _without_number(part)):
                if name in names:
                    return names[name]
    return "/".join(parts)


def all_layers(model: "keras.Model") -> Iterator["keras.Layer"]:
    """The layers of a model and of the models inside it, without those models themselves."""
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer
