"""Which convolutions of a network are replaced, by which stacks, and why the others are kept."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from tfdwd import candidates, checks, costs
from tfdwd.candidates import Conv, matching
from tfdwd.errors import Error
from tfdwd.plans import LayerPlan, Option, Plan


@dataclasses.dataclass(frozen=True)
class Selected:
    """A convolution with the stacks that may take its place, or with the reason why it is kept."""

    conv: Conv
    options: tuple[Option, ...] = ()
    reason: str = ""


def searched(convs: Sequence[Conv], include: Any, exclude: Any) -> list[Selected]:
    """For a plan: all stacks of fewer MACs.

    Args:
      convs: those of the network.
      include, exclude: as for `tfdwd.decompose`.

    Raises:
      tfdwd.Error: a pattern matches nothing.
    """
    found = []
    for conv, reason, _ in _reasons(convs, include, exclude, {}):
        options = () if reason else tuple(candidates.options(conv))
        found.append(
            Selected(conv, options, reason or ("" if options else "no stack has fewer MACs"))
        )
    return found


def uniform(
    convs: Sequence[Conv],
    rank: int | Mapping[str, int],
    *,
    stack: str = "separable",
    method: str = "joint",
    include: Any = None,
    exclude: Any = None,
    on_unsupported: str = "skip",
) -> list[Selected]:
    """One rank for all, or a rank for each of some layers that are named.

    Args:
      convs: those of the network.
      rank, stack, method, include, exclude, on_unsupported: as for `tfdwd.decompose`.

    Raises:
      tfdwd.Error: a name or pattern matches nothing, a rank is out of range, or a layer that is
        asked for cannot be replaced and ``on_unsupported`` is "error".
    """
    everywhere = None if isinstance(rank, Mapping) else checks.whole("rank", rank, 1)
    limits = [min(conv.sizes[1:]) for conv in convs if not conv.obstacle]
    if everywhere and limits and everywhere > max(limits):
        raise Error(
            f"rank: expected 1..{max(limits)}, at which the stack of any layer here is exact, got "
            f"{everywhere}"
        )
    by_name = rank if isinstance(rank, Mapping) else {}
    ranks: dict[str, int] = {}
    for name, value in by_name.items():
        size = checks.whole(f"rank of {name!r}", value, 1)
        for path in matching(convs, "rank", name):
            ranks.setdefault(path, size)
    found = []
    for conv, reason, asked in _reasons(convs, include, exclude, ranks):
        if asked and conv.obstacle and on_unsupported == "error":
            raise Error(
                f"layer {conv.path!r}: expected a regular convolution, but it is {reason}; leave "
                "it out or pass on_unsupported='skip'"
            )
        if not reason and everywhere is None and conv.path not in ranks:
            reason = "no rank given for it"
        if reason:
            found.append(Selected(conv, reason=reason))
            continue
        named = conv.path in ranks
        size = ranks[conv.path] if named else everywhere or 0
        found.append(_of_rank(conv, size, stack, method, named))
    return found


def planned(convs: Sequence[Conv], plan: Plan) -> list[Selected]:
    """What a plan says.

    Raises:
      tfdwd.Error: the plan is of another network, or a layer cannot be replaced as it says.
    """
    names, found = [layer.name for layer in plan.layers], [conv.path for conv in convs]
    if names != found:
        raise Error(
            f"rank=plan: expected a plan of this model, whose convolutions are {found}; got one of "
            f"{names}"
        )
    return [
        Selected(conv, (_planned(conv, layer),))
        if layer.replaced
        else Selected(conv, (), layer.reason)
        for conv, layer in zip(convs, plan.layers, strict=True)
    ]


def _reasons(
    convs: Sequence[Conv], include: Any, exclude: Any, named: Mapping[str, int]
) -> list[tuple[Conv, str, bool]]:
    """Each convolution, why it is kept whatever it costs ("" if not), whether it is asked for."""
    included, excluded = matching(convs, "include", include), matching(convs, "exclude", exclude)
    found = []
    for conv in convs:
        asked = conv.path in named or (include is not None and conv.path in included)
        reason = conv.obstacle
        if not reason and conv.path in excluded:
            reason = "excluded"
        if not reason and include is not None and conv.path not in included:
            reason = "not included"
        if not reason and not asked and not named:
            reason = candidates.why_not_unasked(conv)
        found.append((conv, reason, asked))
    return found


def _planned(conv: Conv, layer: LayerPlan) -> Option:
    if conv.obstacle:
        raise Error(f"rank=plan: layer {conv.path!r} cannot be replaced: it is {conv.obstacle}")
    c, q, n = conv.sizes
    if layer.stack == "separable":
        if layer.rank > min(q, n):
            raise Error(
                f"rank=plan: rank of {conv.path!r}: expected 1..{min(q, n)}, got {layer.rank}"
            )
        return candidates.separable(conv, layer.rank)
    exact = n * min(c, q)
    if layer.width > exact:
        raise Error(
            f"rank=plan: width of {conv.path!r}: expected 1..{exact}, which is exact, got "
            f"{layer.width}"
        )
    each = costs.bottleneck_macs(c, q, n, 1, conv.outputs, conv.inputs)
    return Option("bottleneck", layer.width, layer.width * each)


def _of_rank(conv: Conv, rank: int, stack: str, method: str, named: bool) -> Selected:
    _, q, n = conv.sizes
    if named and rank > min(q, n):
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
        return Selected(conv, cheaper)
    if named and options:
        logging.warning("layer %r: rank %d saves nothing", conv.path, rank)
        return Selected(conv, tuple(options))
    reason = f"would not get cheaper: {conv.macs:,} MACs, {apart.macs:,} at rank {rank}"
    return Selected(conv, reason=reason)
