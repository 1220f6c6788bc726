"""Decomposes a network: plan -> moments -> factorise -> rebuild -> report."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from tfdwd import (
    blas,
    bridge,
    calibration,
    candidates,
    checks,
    costs,
    factorize,
    graph,
    rebuild,
    recalibration,
    reporting,
)
from tfdwd.batches import calibration_batches
from tfdwd.candidates import Conv, Option, find_convolutions, matching
from tfdwd.errors import Error
from tfdwd.fisher import with_identity
from tfdwd.moments import Moments
from tfdwd.plans import Layer, LayerPlan, Plan
from tfdwd.records import Count
from tfdwd.shapes import images_at_once

METHODS = ("svd", "gsvd", "sequential", "joint", "channel")
STACKS = ("separable", "bottleneck", "auto")
# How often a layer before a ReLU is fitted again; the first time brings most of what there is to
# gain (benchmarks/ablation.py measures it).
RECTIFICATIONS = 2


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
        _check_planned(rank, convs, stack, include, exclude, method)
        plan = [(conv, _planned(conv, rank.layer(conv.path))) for conv in convs]
    else:
        wishes = _choose(convs, rank, include, exclude, on_unsupported)
        plan = [(conv, _decide(conv, wish, stack, method)) for conv, wish in wishes]
    layers = [conv.layer for conv, decision in plan if decision.options]
    solver = _Solver({id(c.layer): d.options for c, d in plan}, method, recalibrate)
    first: list[list[np.ndarray]] = []  # images, for what comes after the sweep
    if data is None:
        expansions = {
            id(layer): rebuild.expand(layer, *solver.without_data(layer)) for layer in layers
        }
    else:
        inputs = _keeping_first(
            calibration_batches(data, model, images_at_once(model), images), first
        )
        expansions = calibration.sweep(
            traced, inputs, layers, solver, across_layers=across_layers,
            weigh=method == "joint", keep_rows=method == "joint", seed=seed,
        )  # fmt: skip
    student = rebuild.rebuild(model, expansions)
    if first and recalibrate and across_layers:
        replaced = [conv.path for conv, decision in plan if decision.options]
        few = list(calibration.in_own_batches(first, traced))
        changed = recalibration.reestimate_norms(model, student, few, replaced)
        logging.info("re-estimated %d batch norms elsewhere", len(changed))
    report = _report(model, student, method, plan, solver, expansions)
    for record in report.layers:
        logging.info("%s", record)
    return (student, report) if return_report else student


def _keeping_first(
    source: Iterable[tuple[list[np.ndarray], Any]], kept: list[list[np.ndarray]]
) -> Iterator[list[np.ndarray]]:
    """Passes batches of inputs on and keeps the first images of them in ``kept``."""
    missing = recalibration.IMAGES
    for arrays, _ in source:
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


# ---------------------------------------------------------------------- plan


@dataclasses.dataclass(frozen=True)
class _Decision:
    """Either the stacks of which the better one is taken, or why the convolution is kept."""

    options: tuple[Option, ...] = ()
    reason: str = ""


def _check_planned(
    plan: Plan, convs: Sequence[Conv], stack: str, include: Any, exclude: Any, method: str
) -> None:
    if stack != "separable" or include is not None or exclude is not None:
        raise Error("rank=plan: expected no stack, include or exclude beside it; edit the plan")
    if method not in ("svd", "joint"):
        raise Error(f"rank=plan: expected method 'joint' or 'svd', got {method!r}")
    planned, found = [layer.name for layer in plan.layers], [conv.path for conv in convs]
    if planned != found:
        raise Error(
            f"rank=plan: expected a plan of this model, whose convolutions are {found}; got one of "
            f"{planned}"
        )


def _planned(conv: Conv, layer: LayerPlan) -> _Decision:
    if not layer.replaced:
        return _Decision(reason=layer.reason)
    if conv.obstacle:
        raise Error(f"rank=plan: layer {conv.path!r} cannot be replaced: it is {conv.obstacle}")
    c, q, n = conv.sizes
    if layer.stack == "separable" and layer.rank > min(q, n):
        raise Error(f"rank=plan: rank of {conv.path!r}: expected 1..{min(q, n)}, got {layer.rank}")
    if layer.stack == "separable":
        return _Decision((candidates.separable(conv, layer.rank),))
    exact = n * min(c, q)
    if layer.width > exact:
        raise Error(
            f"rank=plan: width of {conv.path!r}: expected 1..{exact}, which is exact, got "
            f"{layer.width}"
        )
    each = costs.bottleneck_macs(c, q, n, 1, conv.outputs, conv.inputs)
    return _Decision((Option("bottleneck", layer.width, layer.width * each),))


def _choose(
    convs: Sequence[Conv],
    rank: int | Mapping[str, int],
    include: str | Sequence[str] | None,
    exclude: str | Sequence[str] | None,
    on_unsupported: str,
) -> list[tuple[Conv, "_Wish"]]:
    """What the caller wants of each convolution."""
    included, excluded = matching(convs, "include", include), matching(convs, "exclude", exclude)
    everywhere = None if isinstance(rank, Mapping) else checks.whole("rank", rank, 1)
    limits = [min(conv.sizes[1:]) for conv in convs if not conv.obstacle]
    if everywhere and limits and everywhere > max(limits):
        raise Error(
            f"rank: expected 1..{max(limits)}, at which the stack of any layer here is exact, got "
            f"{everywhere}"
        )
    by_name = rank if isinstance(rank, Mapping) else {}
    named = {
        name: (checks.whole(f"rank of {name!r}", value, 1), matching(convs, "rank", name))
        for name, value in by_name.items()
    }
    wishes = []
    for conv in convs:
        given = [size for size, paths in named.values() if conv.path in paths]
        asked = bool(given) or (include is not None and conv.path in included)
        reason = conv.obstacle
        if reason and asked and on_unsupported == "error":
            raise Error(
                f"layer {conv.path!r}: expected a regular convolution, but it is {reason}; leave "
                "it out or pass on_unsupported='skip'"
            )
        if not reason and conv.path in excluded:
            reason = "excluded"
        if not reason and include is not None and conv.path not in included:
            reason = "not included"
        if not reason and everywhere is None and not given:
            reason = "no rank given for it"
        if not reason and not asked:
            reason = candidates.why_not_unasked(conv)
        wishes.append((conv, _Wish(given[0] if given else everywhere or 0, bool(given), reason)))
    return wishes


@dataclasses.dataclass(frozen=True)
class _Wish:
    """The rank for a convolution, whether it was given by name, or why it stays."""

    rank: int
    by_name: bool
    reason: str


def _decide(conv: Conv, wish: _Wish, stack: str, method: str) -> _Decision:
    if wish.reason:
        return _Decision(reason=wish.reason)
    (_, q, n), rank = conv.sizes, wish.rank
    if wish.by_name and rank > min(q, n):
        raise Error(
            f"rank of {conv.path!r}: expected 1..{min(q, n)} for its {q} taps and {n} outputs, "
            f"got {rank}"
        )
    apart = candidates.separable(conv, rank)
    options = []
    if method == "channel":
        options.append(candidates.channel(conv, apart.macs))
    else:
        if stack != "bottleneck" and rank <= min(q, n):
            options.append(apart)
        narrow = candidates.bottleneck(conv, apart.macs)
        if stack != "separable" and narrow:
            options.append(narrow)
    cheaper = tuple(option for option in options if option.macs < conv.macs)
    if cheaper:
        return _Decision(cheaper)
    if wish.by_name and options:
        logging.warning("layer %r: rank %d saves nothing", conv.path, rank)
        return _Decision(tuple(options))
    return _Decision(
        reason=f"would not get cheaper: {conv.macs:,} MACs, {apart.macs:,} at rank {rank}"
    )


# ---------------------------------------------------------------------- solve


class _Solver:
    """Finds stacks; keeps for each convolution what it chose and how well that does."""

    def __init__(self, options: Mapping[int, tuple[Option, ...]], method: str, recalibrate: bool):
        self._options = options
        self._method = method
        self._recalibrate = recalibrate
        self.chosen: dict[int, Option] = {}
        self.errors: dict[int, tuple[float, float]] = {}  # of the stack; of the best kernel
        self.metrics: dict[int, str] = {}  # "fisher" or "identity"

    def without_data(self, conv: keras.layers.Conv2D) -> tuple[factorize.Stack, np.ndarray | None]:
        """Approximates the kernel itself."""
        kernel = rebuild.kernel_of(conv)
        if not np.isfinite(kernel).all():
            raise Error(f"layer {conv.name!r}: expected finite weights, got NaN or infinity")
        flat = kernel.reshape(-1, kernel.shape[2])
        white = factorize.Target(factorize.Gram.identity(len(flat)), flat, kernel)
        return self._best(conv, white), _bias_of(conv)

    def __call__(
        self, conv: keras.layers.Conv2D, collected: calibration.Collected
    ) -> tuple[factorize.Stack, np.ndarray | None]:
        """Fits the responses; "joint", where a ReLU follows, again with the freedom it leaves."""
        kernel, plain = rebuild.kernel_of(conv), collected.moments
        with blas.threads(len(plain.sum_x)):
            inputs = factorize.gram(plain.xx)
            target = factorize.target(inputs, plain.xy, kernel)
        best = target.kernel.reshape(plain.xy.shape)
        irreducible = _missed(best, np.sum(best * (target.product - inputs.ridge * best)), plain)
        if self._method == "svd":
            stack, bias = self.without_data(conv)
            if self._recalibrate:
                stack, bias = _recalibrated(stack, plain, target)
        else:
            metric = None if collected.fisher is None else with_identity(collected.fisher)
            if collected.fisher is not None:
                reached = bool(np.trace(collected.fisher) > 0)
                self.metrics[id(conv)] = "fisher" if reached else "identity"
            stack = self._best(conv, target, metric)
            stack, bias = self._with_bias(conv, stack, plain, target)
            for _ in range(RECTIFICATIONS * collected.can_rectify):
                assert not isinstance(stack, factorize.Channel)  # rows are kept for "joint" alone
                wanted = collected.rectified(stack, bias)
                equations = factorize.equations(inputs, wanted.xy, kernel)
                with blas.threads(1):
                    stack = factorize.refit(equations, stack, metric)
                stack, bias = self._with_bias(conv, stack, wanted, equations)
        variance = float(factorize.variances(stack, inputs.matrix).sum())
        error = _missed(stack.kernel().reshape(best.shape), variance, plain)
        self.errors[id(conv)] = error, irreducible
        return factorize.equalized(stack, inputs.matrix, plain.mean_x), bias

    def _with_bias(
        self,
        conv: keras.layers.Conv2D,
        stack: factorize.Stack,
        wanted: Moments,
        equations: factorize.Equations,
    ) -> tuple[factorize.Stack, np.ndarray | None]:
        if not self._recalibrate:
            return stack, _bias_of(conv)
        return _recalibrated(stack, wanted, equations)

    def _best(
        self,
        conv: keras.layers.Conv2D,
        target: factorize.Target,
        metric: np.ndarray | None = None,
    ) -> factorize.Stack:
        """The stack of least error among the options."""
        with blas.threads(1):
            answers = [
                (self._factorize(option, target, metric), option)
                for option in self._options[id(conv)]
            ]
        if len(answers) > 1:
            answers.sort(key=lambda answer: target.error(answer[0].kernel(), metric))
        stack, self.chosen[id(conv)] = answers[0]
        return stack

    def _factorize(
        self, option: Option, target: factorize.Target, metric: np.ndarray | None
    ) -> factorize.Stack:
        if option.stack == "bottleneck":
            return factorize.bottleneck(target, option.size, metric)
        if option.stack == "channel":
            return factorize.channel(target, option.size)
        if self._method == "sequential":
            return factorize.sequential(target, option.size)
        if self._method == "joint":
            return factorize.joint(target, option.size, metric)
        return factorize.gsvd(target, option.size)  # "svd" too: its metric is the identity


def _bias_of(conv: keras.layers.Conv2D) -> np.ndarray | None:
    return None if conv.bias is None else keras.ops.convert_to_numpy(conv.bias)


def _missed(kernel: np.ndarray, variance: float, moments: Moments) -> float:
    """Part of the response's variance that a kernel (c * q, n) misses; its own is ``variance``."""
    total = float(np.trace(moments.yy))
    if total <= 1e-12 * float(np.sum(moments.mean_y**2)):  # constant, as far as float32 can tell
        return 0.0
    return float(total - 2 * np.vdot(kernel, moments.xy) + variance) / total


def _recalibrated(
    stack: factorize.Stack, wanted: Moments, equations: factorize.Equations
) -> tuple[factorize.Stack, np.ndarray]:
    """The stack with each output's gain and bias fitted to the wanted responses.

    This is the re-estimation of the batch norm behind the layer, folded into the stack; the gain
    is the one of least error, so it is 1 where the last factor came from least squares.
    """
    kernel = stack.kernel().reshape(wanted.xy.shape)
    variances = factorize.variances(stack, equations.gram.matrix)
    gain = np.sum(kernel * equations.product, axis=0) / np.where(variances > 0, variances, 1)
    gain = np.where(gain > 0, gain, 1)
    return stack.scaled(gain), wanted.mean_y - gain * (wanted.mean_x @ kernel)


# ---------------------------------------------------------------------- report


def _report(
    model: keras.Model,
    student: keras.Model,
    method: str,
    plan: Sequence[tuple[Conv, _Decision]],
    solver: _Solver,
    expansions: Mapping[int, rebuild.Expansion],
) -> DecompositionReport:
    layers = []
    for conv, decision in plan:
        key = id(conv.layer)
        if key not in expansions:
            layers.append(
                LayerReport(
                    conv.path,
                    False,
                    decision.reason,
                    "",
                    0,
                    0,
                    conv.macs,
                    conv.macs,
                    conv.parameters,
                    conv.parameters,
                )
            )
            continue
        option = solver.chosen[key]
        parameters = sum(layer.count_params() for layer in expansions[key].layers)
        size = (option.size, 0) if option.stack == "separable" else (0, option.size)
        error, irreducible = solver.errors.get(key, (None, None))
        layers.append(
            LayerReport(
                conv.path,
                True,
                "",
                option.stack,
                *size,
                conv.macs,
                option.macs,
                conv.parameters,
                parameters,
                error,
                irreducible,
                solver.metrics.get(key, ""),
            )
        )
    fixed = all(None not in spec.shape[1:] for spec in model.inputs)
    before, after = (costs.count(network).macs if fixed else 0 for network in (model, student))
    return DecompositionReport(
        method, tuple(layers), before, after, model.count_params(), student.count_params()
    )
