"""Decomposes a network: select -> sweep -> rebuild -> recalibrate -> report."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import (
    bridge,
    calibration,
    checks,
    costs,
    factorize,
    fitting,
    graph,
    rebuild,
    reporting,
    selection,
)
from tfdwd.batches import calibration_batches
from tfdwd.candidates import find_convolutions
from tfdwd.errors import Error
from tfdwd.plans import Layer, Plan
from tfdwd.records import Count
from tfdwd.selection import Selected
from tfdwd.shapes import images_at_once

METHODS = ("svd", "gsvd", "sequential", "joint", "channel")
STACKS = ("separable", "bottleneck", "auto")


@dataclasses.dataclass(frozen=True)
class LayerReport(Layer):
    """What became of one convolution.

    Attributes beside those of a `tfdwd.plans.Layer`:
      error: part of the response's variance on the calibration data that the stack misses, 0..1
        (more for a stack that is worse than a constant); None without data. Where a ReLU follows,
        what it cuts off counts too, though "joint" knows better than to fit it.
      irreducible: the part that no kernel at all could mend, given what the layers before it
        lost; None without data.
      metric: how "joint" weighs the channels of the response: "fisher", or "identity" where no
        gradient of the outputs reaches the layer, since an operation behind it has none; empty
        without "joint".
    """

    error: float | None = None
    irreducible: float | None = None
    metric: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replaced == bool(self.reason) or self.replaced != bool(self.stack):
            raise Error(f"layer {self.name!r}: a replaced layer has a stack, a kept one a reason")
        if not self.replaced and self.macs_after != self.macs_before:
            raise Error(f"layer {self.name!r}: kept, yet its MACs differ")

    def __str__(self) -> str:
        if not self.replaced:
            return f"{self.name}: kept, {self.reason}"
        error = "" if self.error is None else f", error {self.error:.4f}"
        return (
            f"{self.name}: {self.stack} {self.rank or self.width}, "
            f"MACs {self.macs_before:,} -> {self.macs_after:,}{error}"
            f"{', no gradient reaches it' if self.metric == 'identity' else ''}"
        )


@dataclasses.dataclass(frozen=True)
class DecompositionReport(reporting.Report):
    """What became of a model.

    Attributes:
      method: the method that was used.
      layers: one record per convolution, from the inputs to the outputs.
      macs_before, macs_after: of one image; 0 where the model leaves the image's size open.
      parameters_before, parameters_after: of the whole models.
    """

    method: str
    layers: tuple[LayerReport, ...]
    macs_before: Count
    macs_after: Count
    parameters_before: Count
    parameters_after: Count

    def _parts(self) -> reporting.Parts:
        rows = [
            (
                *reporting.layer_cells(layer),
                "" if layer.error is None else f"{layer.error:.4f}",
                "" if layer.irreducible is None else f"{layer.irreducible:.4f}",
                layer.reason,
            )
            for layer in self.layers
        ]
        headers = ["layer", "stack", "MACs", "after", "error", "irreducible", "why kept"]
        last = (
            f"method {self.method}; MACs {self.macs_before:,} -> {self.macs_after:,}, "
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,}"
        )
        deaf = [layer.name for layer in self.layers if layer.metric == "identity"]
        if deaf:
            last += (
                "\nno gradient of the outputs reaches these layers; all channels of their "
                f"responses were fitted alike: {', '.join(deaf)}"
            )
        return [(headers, rows), last]


def decompose(
    model: keras.Model,
    data: Any = None,
    *,
    rank: int | Mapping[str, int] | Plan = 1,
    stack: str = "separable",
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    method: str | None = None,
    across_layers: bool = True,
    recalibrate: bool = True,
    on_unsupported: str = "skip",
    return_report: bool = False,
    images: int | None = None,
    seed: int = 0,
) -> keras.Model | tuple[keras.Model, DecompositionReport]:
    """Expands a trained network's regular convolutions into depthwise + pointwise stacks.

    Args:
      model: a Functional or Sequential Keras 3 model (or a tf_keras one); stays as it is.
      data: calibration images, unlabelled (labels are ignored): an array (images, ...), a
        tf.data.Dataset or an iterable of batches. 1,000 images are plenty. Without data each
        kernel is approximated for itself (method "svd"), which loses far more.
      rank: depthwise filters per channel: 1 is cheapest. One for all layers, or
        {layer name: rank}, which replaces these layers alone, even where that saves nothing. Or
        a `tfdwd.plan`, which settles ``stack``, ``include`` and ``exclude`` too.
      stack: "separable" (depthwise, pointwise; the paper's), "bottleneck" (pointwise, depthwise,
        pointwise) at no more MACs than the separable one of that rank, or "auto": for each layer
        whichever of the two errs less.
      include, exclude: names or shell patterns of layers; a layer in a nested model answers to
        its name and to "model/name". A layer that reads fewer than four channels (the first of
        most networks) is replaced only if ``include`` or ``rank`` names it.
      method: "svd", "gsvd", "sequential", "joint" (default with data) or "channel" (the baseline
        of Zhang et al. 2015, at no more MACs than the separable stack).
      across_layers: fit each layer to what the replaced layers before it really deliver.
      recalibrate: match each response's mean (and, where that lowers the error, its variance).
      on_unsupported: "skip" keeps a layer that ``include`` or ``rank`` names and that cannot be
        replaced, with a reason; "error" raises.
      return_report: also return a report with one record per convolution.
      images: how many of the first images of ``data`` to use. If None, all that an array or other
        data of known length has, and the first 2,048 of a generator, with a warning if there are as
        many. Several workers take as many each.
      seed: of the positions at which responses are sampled.

    Returns:
      The student: a Functional model of plain Keras layers that loads without tfdwd, with the
      inputs, outputs, layer names and dtype policies of ``model``; and the report if asked for.

    Raises:
      tfdwd.Error: an option, the model or the data is not as described.

    Example:
      >>> model = keras.Sequential([keras.Input((8, 8, 16)), keras.layers.Conv2D(32, 3)])
      >>> student = decompose(model, np.random.default_rng(0).normal(size=(32, 8, 8, 16)))
      >>> [type(layer).__name__ for layer in student.layers][1:]
      ['DepthwiseConv2D', 'Conv2D']

    Source: He et al., arXiv 1910.09455; "joint" and the bottleneck stack are this project's.
    """
    if method is None:
        method = "svd" if data is None else "joint"
    checks.switches(
        across_layers=across_layers, recalibrate=recalibrate, return_report=return_report
    )
    _check_options(method, stack, on_unsupported, data, seed)
    model = bridge.to_keras3(model)
    rebuild.rebuild(model, {})  # refuses what cannot be copied before there is work to lose
    traced = graph.trace(model)
    convs = find_convolutions(traced)
    if isinstance(rank, Plan):
        _check_planned(stack, include, exclude, method)
        selected = selection.planned(convs, rank)
    else:
        selected = selection.uniform(
            convs, rank, stack=stack, method=method, include=include, exclude=exclude,
            on_unsupported=on_unsupported,
        )  # fmt: skip
    batches = None
    if data is not None:
        read = calibration_batches(data, model, images_at_once(model), images)
        batches = (arrays for arrays, _ in read)
    student, fitted = decomposed(
        model, traced, selected, batches, method=method, across_layers=across_layers,
        recalibrate=recalibrate, seed=seed,
    )  # fmt: skip
    report = _report(model, student, method, selected, fitted)
    for record in report.layers:
        logging.info("%s", record)
    return (student, report) if return_report else student


def decomposed(
    model: keras.Model,
    traced: graph.Graph,
    selected: Sequence[Selected],
    batches: Iterable[Sequence[np.ndarray]] | None,
    *,
    method: str = "joint",
    across_layers: bool = True,
    recalibrate: bool = True,
    seed: int = 0,
    metrics: Mapping[int, np.ndarray] | None = None,
    settings: calibration.Settings = calibration.DEFAULT,
    sweep: Callable[..., Iterable[list[calibration.Collected]]] = calibration.levels,
    starts: Mapping[int, fitting.Starts] | None = None,
) -> tuple[keras.Model, dict[int, fitting.Fitted]]:
    """The work of `decompose` on what it has checked.

    Args:
      model, traced: the network, whose convolutions ``selected`` are.
      selected: what may become of each.
      batches: images, an array (batch, ...) for each input; None for method "svd" without data.
      method, across_layers, recalibrate, seed: as for `decompose`.
      metrics, settings: as for `tfdwd.calibration.levels`.
      sweep: that, or what passes on what it yields and looks at it or changes it.
      starts: {id(convolution): as for `tfdwd.fitting.fit`}.

    Returns:
      The student; {id(convolution): what was fitted}.
    """
    options = {id(one.conv.layer): one.options for one in selected if one.options}
    layers = [one.conv.layer for one in selected if one.options]
    fitted: dict[int, fitting.Fitted] = {}
    expansions: dict[int, rebuild.Expansion] = {}
    first: list[Sequence[np.ndarray]] = []  # images, for what comes after the sweep
    if batches is None:
        for layer in layers:
            fitted[id(layer)] = fitting.without_data(layer, options[id(layer)])
            expansions[id(layer)] = _expanded(layer, fitted[id(layer)])
    else:
        joint = method == "joint"
        for level in sweep(
            traced, _keeping_first(batches, first), layers, expansions,
            across_layers=across_layers, weigh=joint and settings.fisher, metrics=metrics,
            keep_rows=joint and settings.rectifications > 0, seed=seed, settings=settings,
        ):  # fmt: skip
            for collected in level:
                key = id(collected.conv)
                fitted[key] = fitting.fit(
                    collected, options[key], method=method, recalibrate=recalibrate,
                    settings=settings, starts=(starts or {}).get(key),
                )  # fmt: skip
                expansions[key] = _expanded(collected.conv, fitted[key])
    student = rebuild.rebuild(model, expansions)
    if first and recalibrate and across_layers:
        replaced = [one.conv.path for one in selected if one.options]
        few = list(calibration.in_own_batches(first, traced))
        changed = calibration.reestimate_norms(model, student, few, replaced)
        logging.info("re-estimated %d batch norms elsewhere", len(changed))
    return student, fitted


def _expanded(conv: keras.layers.Conv2D, fitted: fitting.Fitted) -> rebuild.Expansion:
    return rebuild.expand(conv, factorize.of_equal_size(fitted.stack), fitted.bias)


def _keeping_first(
    source: Iterable[Sequence[np.ndarray]], kept: list[Sequence[np.ndarray]]
) -> Iterator[Sequence[np.ndarray]]:
    """Passes batches of inputs on and keeps the first images of them in ``kept``."""
    missing = calibration.NORM_IMAGES
    for arrays in source:
        if missing > 0:
            kept.append([array[:missing].copy() for array in arrays])
            missing -= len(arrays[0])
        yield arrays


def _check_options(method: str, stack: str, on_unsupported: str, data: Any, seed: Any) -> None:
    for option, value, known in (
        ("method", method, METHODS),
        ("stack", stack, STACKS),
        ("on_unsupported", on_unsupported, ("skip", "error")),
    ):
        checks.choice(option, value, known)
    checks.whole("seed", seed, 0)
    if keras.backend.backend() != "tensorflow":
        raise Error(
            f"expected Keras on TensorFlow, got it on {keras.backend.backend()}; decompose with "
            "KERAS_BACKEND=tensorflow and load the saved student with the other"
        )
    if data is None and method != "svd":
        raise Error(f"method {method!r}: expected calibration data, got none; pass data=images")
    if stack != "separable" and method not in ("svd", "joint"):
        raise Error(f"stack={stack!r}: expected method 'joint' or 'svd', got {method!r}")


def _check_planned(stack: str, include: Any, exclude: Any, method: str) -> None:
    if stack != "separable" or include is not None or exclude is not None:
        raise Error("rank=plan: expected no stack, include or exclude beside it; edit the plan")
    if method not in ("svd", "joint"):
        raise Error(f"rank=plan: expected method 'joint' or 'svd', got {method!r}")


def _report(
    model: keras.Model,
    student: keras.Model,
    method: str,
    selected: Sequence[Selected],
    fitted: Mapping[int, fitting.Fitted],
) -> DecompositionReport:
    layers = []
    for one in selected:
        conv, found = one.conv, fitted.get(id(one.conv.layer))
        option = found.option if found else None
        separable = option is not None and option.stack == "separable"
        layers.append(
            LayerReport(
                name=conv.path,
                replaced=found is not None,
                reason=one.reason,
                stack=option.stack if option else "",
                rank=option.size if option and separable else 0,
                width=option.size if option and not separable else 0,
                macs_before=conv.macs,
                macs_after=option.macs if option else conv.macs,
                parameters_before=conv.parameters,
                parameters_after=found.parameters if found else conv.parameters,
                error=found.error if found else None,
                irreducible=found.irreducible if found else None,
                metric=found.metric if found else "",
            )
        )
    fixed = all(None not in spec.shape[1:] for spec in model.inputs)
    before, after = (costs.count(network).macs if fixed else 0 for network in (model, student))
    return DecompositionReport(
        method=method,
        layers=tuple(layers),
        macs_before=before,
        macs_after=after,
        parameters_before=model.count_params(),
        parameters_after=student.count_params(),
    )
