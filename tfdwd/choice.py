"""Of all combinations of stacks within a budget the one of least loss: an integer program; pure."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import scipy.optimize

from tfdwd.errors import Error
from tfdwd.plans import Option

# What it costs a layer's factor to be twice the common one, as a relative error of a student.
_STIFF = 0.1
# How far from 1 the factor between what stacks save in a network and alone is expected to be: that
# of all, and that of each stack; and what is wrong in the time of a network, as a part of it.
_COMMON, _OWN, _NOISE = 0.2, 0.1, 0.01

Taken = tuple[int, ...]  # of each convolution's candidates the number of the one that is taken


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One thing that may become of a convolution.

    Attributes:
      option: the stack; None keeps the convolution.
      macs, parameters: of all its calls together, and of its weights.
      error: predicted loss.
      ms: alone; None where it was not measured.
    """

    option: Option | None
    macs: int
    parameters: int
    error: float
    ms: float | None


Choices = Sequence[Sequence[Candidate]]  # of each convolution, keeping it first


def added(choices: Choices, of: str) -> list[np.ndarray]:
    """What each candidate adds to what keeping everything costs; less than 0 where it saves.

    Args:
      choices: candidates of each convolution.
      of: "latency" (ms), "macs", "params" or "max_error" (loss).
    """
    value: Callable[[Candidate, Candidate], float] = {
        "latency": lambda c, kept: (c.ms or 0.0) - (kept.ms or 0.0) if c.option else 0.0,
        "macs": lambda c, kept: c.macs - kept.macs,
        "params": lambda c, kept: c.parameters - kept.parameters,
        "max_error": lambda c, kept: c.error,
    }[of]
    return [np.array([value(c, own[0]) for c in own], float) for own in choices]


def total(choices: Choices, taken: Taken, of: str) -> float:
    """What a whole choice adds.

    Example:
      >>> kept, stack = Candidate(None, 9, 9, 0.0, 2.0), Candidate(Option("", 1, 4), 4, 4, 0.1, 0.5)
      >>> total([[kept, stack], [kept, stack]], (1, 0), "latency")
      -1.5
    """
    return float(sum(own[i] for own, i in zip(added(choices, of), taken, strict=True)))


def best(
    choices: Choices,
    kind: str,
    room: float,
    losses: Sequence[np.ndarray] | None = None,
    weights: Sequence[np.ndarray] | None = None,
) -> Taken | None:
    """The choice of least loss that adds at most ``room``; for "max_error" the fastest such.

    Args:
      choices: candidates of each convolution.
      kind: of what ``room`` is, as for `added`.
      room: what may be added; less than 0 where something must be saved.
      losses: of each convolution's candidates, if not those predicted.
      weights: what each candidate adds of ``kind``, if not what `added` says.

    Returns:
      The choice; None if there is none.

    Raises:
      tfdwd.Error: the integer program was not solved.
    """
    weights = added(choices, kind) if weights is None else list(weights)
    if sum(own.min() for own in weights) > room:
        return None
    if not choices:
        return ()
    goal = added(choices, "latency" if kind == "max_error" else "max_error")
    if losses is not None:
        goal = list(losses)
    first = np.cumsum([0, *map(len, choices)])
    one_each = np.zeros((len(choices), first[-1]))
    for row, (a, b) in enumerate(itertools.pairwise(first)):
        one_each[row, a:b] = 1
    wanted, cost = np.concatenate(goal), np.concatenate(weights)
    solution = scipy.optimize.milp(
        # Of equals the smaller.
        wanted / (np.abs(wanted).max() or 1.0) + 1e-9 * cost / (np.abs(cost).max() or 1.0),
        integrality=np.ones(len(cost)),
        bounds=scipy.optimize.Bounds(0, 1),
        constraints=[
            scipy.optimize.LinearConstraint(one_each, 1, 1),
            scipy.optimize.LinearConstraint(cost[None], ub=room),
        ],
        options={"mip_rel_gap": 0},
    )
    if solution.x is None:
        raise Error(f"the integer program was not solved: {solution.message}")
    return tuple(int(np.argmax(solution.x[a:b])) for a, b in itertools.pairwise(first))


def uniform(
    choices: Choices, limits: Sequence[Mapping[int, int]]
) -> Iterator[tuple[str, int, Taken]]:
    """The same for all layers: one rank of either stack, or whichever of the two loses less.

    Args:
      choices: candidates of each convolution; what is not among them is kept.
      limits: of each convolution {rank: MACs of the separable stack of that rank}.

    Yields:
      How it was made, the rank, the choice. Each is made again with the first convolution kept.
    """
    for rank in sorted(set().union(*limits)):
        for stack in ("separable", "bottleneck", "auto"):
            taken = tuple(
                _of_rank(own, stack, rank, macs.get(rank, 0))
                for own, macs in zip(choices, limits, strict=True)
            )
            if not any(taken):
                continue
            yield stack, rank, taken
            first = next(place for place, index in enumerate(taken) if index)
            if any(taken[first + 1 :]):
                rest = (*taken[:first], 0, *taken[first + 1 :])
                yield f"{stack}, the first kept,", rank, rest


def _of_rank(own: Sequence[Candidate], stack: str, rank: int, macs: int) -> int:
    """The candidate that is the separable stack of a rank, or the widest bottleneck of its MACs."""
    found = {}
    for index, candidate in enumerate(own):
        option = candidate.option
        if option and option.stack == "separable" and option.size == rank:
            found["separable"] = index
        if option and option.stack == "bottleneck" and option.macs <= macs:
            known = found.get("bottleneck")
            if known is None or own[known].macs < candidate.macs:
                found["bottleneck"] = index
    if stack == "auto":
        return min(found.values(), key=lambda index: own[index].error, default=0)
    return found.get(stack, 0)


def corrections(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """By how much each layer's predicted losses are to be multiplied.

    One factor for all is what is known best; each layer departs from it as far as the students
    that were measured tell it apart from the others.

    Args:
      predicted: (students, layers).
      measured: (students,), positive.

    Returns:
      (layers,), positive.

    Example:
      >>> corrections(np.array([[1.0, 1.0], [2.0, 1.0]]), np.array([4.0, 6.0])).round(3)
      array([2., 2.])
    """
    common = float(np.exp(np.mean(np.log(measured / predicted.sum(1)))))
    if len(measured) < 2:
        return np.full(predicted.shape[1], common)
    # Relative errors of the students, and how far a layer's factor is from the common one.
    rows = np.concatenate(
        [common * predicted / measured[:, None], _STIFF * np.eye(len(predicted.T))]
    )
    right = np.concatenate([np.ones(len(measured)), np.full(predicted.shape[1], _STIFF)])
    found = scipy.optimize.lsq_linear(rows, right, bounds=(0.3, 3.0)).x
    return np.asarray(common * found)


def in_a_network(
    choices: Choices, before: float, students: Mapping[Taken, float]
) -> list[np.ndarray]:
    """What each candidate adds to the time of a network, by what it takes alone and in students.

    The best linear estimate, if what a stack saves in a network is what it saves alone times a
    factor near 1, part of which is common to all stacks.

    Args:
      choices: candidates of each convolution.
      before: ms of the original.
      students: {choice: ms} of the students that were timed.

    Returns:
      As `added`.

    Example:
      >>> kept, stack = Candidate(None, 9, 9, 0.0, 2.0), Candidate(Option("", 1, 4), 4, 4, 0.1, 1.0)
      >>> in_a_network([[kept, stack], [kept, stack]], 5.0, {(1, 0): 4.2})[0].round(2)
      array([ 0.  , -0.81])
    """
    alone = added(choices, "latency")
    flat = np.concatenate([*alone, []])
    first = np.cumsum([0, *map(len, choices)])[:-1]
    rows = np.zeros((len(students), len(flat)))
    for row, taken in zip(rows, students, strict=True):
        places = first + np.array(taken, int)
        row[places] = flat[places]
    # The factors' covariance is _COMMON^2 for any two and _OWN^2 more on the diagonal.
    beside = _COMMON**2 * rows.sum(1)[:, None] + _OWN**2 * rows
    missed = np.array([ms - before for ms in students.values()]) - rows.sum(1)
    noise = (_NOISE * before) ** 2 * np.eye(len(rows))
    factors = 1 + beside.T @ np.linalg.solve(beside @ rows.T + noise, missed)
    return [own * factors[a : a + len(own)] for own, a in zip(alone, first, strict=True)]
