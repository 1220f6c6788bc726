"""Records of what is to become of each convolution: no LiteRT, no Keras."""

import dataclasses
from typing import Any

from tfdwd import checks, reporting
from tfdwd.errors import Error
from tfdwd.records import Amount, Count, Positive, Record, Share


@dataclasses.dataclass(frozen=True)
class Option:
    """One stack that could take a convolution's place; ``size`` is its rank, width or filters."""

    stack: str
    size: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Layer(Record):
    """What is said of one convolution, planned or done.

    Attributes:
      name: the layer's name, with the names of the nested models around it: "backbone/conv1".
      replaced: whether a stack takes its place.
      reason: why it is kept; empty if it is replaced.
      stack: "separable", "bottleneck", "channel", or empty if kept.
      rank: of a separable stack; 0 otherwise.
      width: of a bottleneck, or filters of a channel decomposition; 0 otherwise.
      macs_before, macs_after: of one image, all calls of a shared layer together.
      parameters_before, parameters_after: kernels and biases.
    """

    name: str
    replaced: bool
    reason: str
    stack: str
    rank: Count
    width: Count
    macs_before: Count
    macs_after: Count
    parameters_before: Count
    parameters_after: Count


@dataclasses.dataclass(frozen=True)
class LayerPlan(Layer):
    """What is to become of one convolution. To be edited by hand where that is wanted.

    Its other attributes are those of a `Layer`, whose stack is separable or a bottleneck.

    Attributes:
      error: predicted loss in log-likelihood, in nats for each image; 0 if kept.
      ms_before, ms_after: measured alone, in milliseconds, all calls together; None if it was not
        measured, as nothing could take its place.
    """

    error: float = 0.0
    ms_before: Amount | None = None
    ms_after: Amount | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {"separable": (self.rank, self.width), "bottleneck": (self.width, self.rank)}
        if not self.replaced and (self.stack or not self.reason):
            raise Error(f"layer {self.name!r}: a kept layer has a reason and no stack")
        if self.replaced and (self.stack not in sizes or self.reason):
            raise Error(
                f"layer {self.name!r}: a replaced layer has no reason and a stack, separable or "
                f"bottleneck; got {self.stack!r}"
            )
        if self.replaced and (sizes[self.stack][0] < 1 or sizes[self.stack][1] != 0):
            raise Error(
                f"layer {self.name!r}: a separable stack has a rank from 1 and the width 0, a "
                f"bottleneck a width from 1 and the rank 0; got {self.rank} and {self.width}"
            )


@dataclasses.dataclass(frozen=True)
class Tried(Record):
    """A whole student that was decomposed and compared with the original.

    Attributes:
      name: how it was found.
      ms: of the whole student, as `Plan.ms_after`.
      error: predicted loss, as `Plan.error`.
      loss, agreement: measured, as those of a `Plan`.
    """

    name: str
    ms: Amount
    error: float
    loss: Amount
    agreement: Share


@dataclasses.dataclass(frozen=True)
class Plan(reporting.Report):
    """Which layers to replace by what; `tfdwd.decompose(model, data, rank=plan)` does it.

    Attributes:
      layers: one record per convolution, from the inputs to the outputs.
      budget: what was asked for, such as "latency=0.5".
      ms_before: of the whole network, in milliseconds: the tenth percentile of what was measured,
        as for the layers.
      ms_after: of the student, predicted: a student of the same stacks and random weights was
        timed beside the original. By a table from another device: what each layer saves is less.
      error: predicted loss of all layers in log-likelihood, in nats for each image. A ranking of
        plans rather than a promise: it takes the layers' errors for small and independent.
      quantize, threads, device, runtime: how and where the times were measured.
      loss: measured on images that were held back from the fit: of probabilities the divergence
        from the original's, in nats; of all else the squared error in units of the original's
        variance; several outputs add up. None in plans of earlier versions.
      agreement: part of those images, or of their places, that get the original's class (or 1 -
        the squared error); the mean over the outputs.
      tried: the students that this one was chosen over, itself among them.
    """

    layers: tuple[LayerPlan, ...]
    budget: str
    ms_before: Amount
    ms_after: Amount
    error: float
    quantize: str
    threads: Positive
    device: str
    runtime: str
    loss: Amount | None = None
    agreement: Share | None = None
    tried: tuple[Tried, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [layer.name for layer in self.layers]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise Error(f"layers[{number}].name: expected each layer once, got {name!r} twice")

    def layer(self, name: str) -> LayerPlan:
        """The record of one convolution."""
        return {layer.name: layer for layer in self.layers}[name]

    def _parts(self) -> reporting.Parts:
        rows = [
            (
                *reporting.layer_cells(layer),
                "" if layer.ms_before is None else f"{layer.ms_before:.4f}",
                "" if layer.ms_after is None else f"{layer.ms_after:.4f}",
                f"{layer.error:.4f}",
                layer.reason,
            )
            for layer in self.layers
        ]
        headers = ["layer", "stack", "MACs", "after", "ms", "after", "loss", "why kept"]
        parts: list[Any] = [(headers, rows)]
        if self.tried:
            parts.append(
                (
                    ["student", "ms", "predicted loss", "measured loss", "agreement"],
                    [
                        (
                            one.name, f"{one.ms:.3f}", f"{one.error:.4f}", f"{one.loss:.4f}",
                            f"{one.agreement:.4f}",
                        )
                        for one in sorted(self.tried, key=lambda one: one.loss)
                    ],
                )
            )  # fmt: skip
        measured = "" if self.loss is None else f", measured {self.loss:.4f}"
        parts.append(
            f"{self.budget}: {self.ms_before:.3f} ms -> {self.ms_after:.3f} ms, loss predicted "
            f"{self.error:.4f}{measured}; quantised: {self.quantize}, {self.threads} thread(s), "
            f"{self.device}, {self.runtime}"
        )
        return parts


@dataclasses.dataclass(frozen=True)
class Tradeoff(reporting.Report):
    """Plans of one network for several times: what each costs.

    Attributes:
      plans: from the slowest to the fastest.
    """

    plans: tuple[Plan, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.plans:
            raise Error("Tradeoff.plans: expected at least one plan, got none")
        if any(plan.loss is None for plan in self.plans):
            raise Error("Tradeoff.plans: expected plans whose loss was measured")

    def plan(self, latency: float) -> Plan:
        """The plan of least measured loss within a part of the original's time.

        Raises:
          tfdwd.Error: none is; the message says what can be had.
        """
        checks.number("latency", latency)
        within = [plan for plan in self.plans if plan.ms_after <= latency * plan.ms_before]
        if not within:
            least = min(plan.ms_after / plan.ms_before for plan in self.plans)
            raise Error(f"latency={latency}: expected at least {least:.3f}, the fastest plan's")
        return min(within, key=lambda plan: plan.loss or 0.0)

    def _parts(self) -> reporting.Parts:
        rows = [
            (
                f"{plan.ms_after / plan.ms_before:.3f}",
                f"{plan.ms_after:.3f}",
                f"{sum(layer.replaced for layer in plan.layers)}/{len(plan.layers)}",
                f"{plan.error:.4f}",
                f"{plan.loss:.4f}",
                f"{plan.agreement:.4f}",
            )
            for plan in self.plans
        ]
        headers = ["time", "ms", "replaced", "predicted loss", "measured loss", "agreement"]
        first = self.plans[0]
        last = (
            f"original {first.ms_before:.3f} ms; quantised: {first.quantize}, {first.threads} "
            f"thread(s), {first.device}, {first.runtime}"
        )
        return [(headers, rows), last]
