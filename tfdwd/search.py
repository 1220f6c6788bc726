"""Tries whole students of one budget: predicts, makes, measures, corrects what was predicted."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from tfdwd import candidates, choice
from tfdwd.choice import Taken
from tfdwd.errors import Error
from tfdwd.likeness import Likeness
from tfdwd.problem import Problem, of_first_worker
from tfdwd.selection import Selected

_TRIES = 4  # at a student of the time asked for
_NEAR = 0.95  # of that time is close enough
_TOLERANCE = 1.02  # of what one network takes, two measurements tell so much apart
_STUDENTS = 10  # that are decomposed and compared with the original, at most
_POWERS = 0.7, 1.4
_UNIFORM = 6  # uniform students that are timed, at most
_WORSE = 2.0  # times the best one's predicted loss: from there on a uniform student is not tried
_SPARE = 1.05  # times the budget: what its layers alone say may be wrong by so much


@dataclasses.dataclass(frozen=True)
class Budget:
    """What may be spent: so much, or such a part of the original's."""

    kind: str
    amount: float
    is_part: bool
    text: str

    def limit(self, whole: float) -> float:
        return self.amount * whole if self.is_part else self.amount


def budget_of(budgets: Mapping[str, Any]) -> Budget:
    """The one budget that is given.

    Args:
      budgets: {"latency": ..., "macs": ..., "params": ..., "max_error": ...}, as for `tfdwd.plan`.

    Raises:
      tfdwd.Error: none, several, or one that makes no sense.
    """
    given = [(kind, value) for kind, value in budgets.items() if value is not None]
    if len(given) != 1:
        raise Error(
            f"plan: expected exactly one budget of {', '.join(budgets)}, got "
            f"{', '.join(kind for kind, _ in given) or 'none'}"
        )
    [(kind, value)] = given
    return Budget(kind, *_amount(kind, value), f"{kind}={value}")


def _amount(kind: str, value: Any) -> tuple[float, bool]:
    """The budget as a number, and whether it is a part of the original's."""
    text = str(value)
    milliseconds = kind == "latency" and isinstance(value, str) and text.endswith("ms")
    try:
        number = float(text.removesuffix("ms") if milliseconds else text)
    except ValueError:
        number = float("nan")
    if not number > 0 or (isinstance(value, str) and kind != "latency"):
        raise Error(
            f"{kind}: expected a positive number"
            + (
                ", a part of the original's, or milliseconds as '1.5ms'"
                if kind == "latency"
                else ""
            )
            + f", got {value!r}"
        )
    if kind == "latency" and not milliseconds and number > 1:
        raise Error(
            f"latency: expected a part of the original's up to 1, or '{text}ms', got {text}"
        )
    return number, not milliseconds and kind != "max_error" and number <= 1


class Search:
    """Tries whole students of one budget.

    Attributes:
      tried: (name, choice, likeness) of each student that was decomposed.
    """

    def __init__(self, problem: Problem, budget: Budget, minutes: float) -> None:
        self.problem, self.budget = problem, budget
        self.tried: list[tuple[str, Taken, Likeness]] = []
        self._before = problem.totals["latency"]
        self._limit = budget.limit(problem.totals.get(budget.kind, 1.0))
        self._gain = 1.0  # what a student saves over what its layers save alone
        self._end = time.monotonic() + 60 * minutes

    def found(self) -> Taken:
        """The choice of least measured loss within the budget.

        Raises:
          tfdwd.Error: there is none within it.
        """
        first = self._near(self._program())
        if first is None:
            raise Error(self._unmet())
        self._measure("integer program", first)
        if self.budget.kind == "max_error" or not any(first):
            return first
        for name, taken in itertools.chain(self._others(), self._uniform()):
            if self._is_over():
                break
            self._measure(name, taken)
        while len(self.tried) < _STUDENTS and not self._is_over():
            again = self._near(self._program(self._losses()))
            if again is None or again in [taken for _, taken, _ in self.tried]:
                break
            self._measure("integer program, corrected", again)
        return min(self.tried, key=lambda one: one[2].loss)[1]

    def predicted(self, taken: Taken) -> float:
        """The predicted loss of a choice."""
        return choice.total(self.problem.choices, taken, "max_error")

    def _measure(self, name: str, taken: Taken) -> None:
        found = self.problem.likeness(taken)
        self.tried.append((name, taken, found))
        logging.info(
            "%s: %.4f ms, loss %.4f predicted, %.4f measured, agreement %.4f",
            name, self.problem.ms(taken), self.predicted(taken), found.loss, found.agreement,
        )  # fmt: skip

    def _is_over(self) -> bool:
        return bool(of_first_worker(time.monotonic() > self._end))

    def _program(
        self, losses: Sequence[np.ndarray] | None = None
    ) -> Callable[[float], Taken | None]:
        kind = self.budget.kind
        start = self.problem.totals.get(kind, 0.0)
        return lambda aim: choice.best(self.problem.choices, kind, aim - start, losses)

    def _others(self) -> Iterator[tuple[str, Taken]]:
        """What the program finds if losses add up otherwise: if large ones count less, or more."""
        losses = choice.added(self.problem.choices, "max_error")
        for power in _POWERS:
            taken = self._near(self._program([own**power for own in losses]))
            if taken is not None and taken not in [known for _, known, _ in self.tried]:
                yield f"integer program, losses to the power of {power}", taken

    def _uniform(self) -> Iterator[tuple[str, Taken]]:
        """Uniform students within the budget, those of the least predicted loss first."""
        choices, kind = self.problem.choices, self.budget.kind
        timed = kind == "latency"
        gain, spare = (self._gain, _SPARE) if timed else (1.0, 1.0)
        start = self.problem.totals[kind]
        worst = _WORSE * self.predicted(self.tried[0][1])
        found: dict[Taken, str] = {self.tried[0][1]: ""}
        for how, rank, taken in choice.uniform(choices, list(map(_limits, self.problem.selected))):
            size = start + gain * choice.total(choices, taken, kind)
            if size <= spare * self._limit and self.predicted(taken) <= worst:
                found.setdefault(taken, f"uniform {how} {rank}")
        likely = sorted(list(found.items())[1:], key=lambda one: self.predicted(one[0]))
        for taken, name in likely[:_UNIFORM]:
            if not timed or self.problem.ms(taken) <= _TOLERANCE * self._limit:
                yield name, taken

    def _losses(self) -> list[np.ndarray]:
        """The candidates' predicted losses, corrected by what was measured."""
        losses = choice.added(self.problem.choices, "max_error")
        predicted = np.array(
            [[own[i] for own, i in zip(losses, taken, strict=True)] for _, taken, _ in self.tried]
        )
        measured = np.array([max(found.loss, 1e-12) for _, _, found in self.tried])
        factors = choice.corrections(np.maximum(predicted, 1e-15), measured)
        return [own * factor for own, factor in zip(losses, factors, strict=True)]

    def _near(self, propose: Callable[[float], Taken | None]) -> Taken | None:
        """The largest choice within the budget that some rule proposes.

        What the layers save alone is not what the student saves. For a budget of time students are
        made and timed until one takes what it may: each counts on the layers to save as much less,
        or more, than alone as those of the one before did.

        Args:
          propose: from a size (of the budget's kind, the layers alone) to a choice of at most it.
        """
        if self.budget.kind != "latency":
            return propose(self._limit)
        within: list[tuple[float, Taken]] = []
        seen: set[Taken] = set()
        for _ in range(_TRIES):
            aim = self._before - (self._before - self._limit) / self._gain
            taken = propose(max(aim, self._least()))
            if taken is None or taken in seen:
                break
            seen.add(taken)
            ms = self.problem.ms(taken)
            logging.info("aimed at %.4f ms for %.4f ms, got %.4f ms", aim, self._limit, ms)
            if ms <= self._limit * _TOLERANCE:
                within.append((ms, taken))
                if ms >= _NEAR * self._limit:
                    break
            alone = -choice.total(self.problem.choices, taken, "latency")
            if alone <= 0:
                break
            self._gain = max((self._before - ms) / alone, 1e-3)
        return max(within)[1] if within else None

    def _least(self) -> float:
        """The least that the layers alone may take, and a little, for rounding."""
        saved = [own.min() for own in choice.added(self.problem.choices, "latency")]
        return self._before + float(sum(saved)) + 1e-9 * self._limit

    def _unmet(self) -> str:
        kind, whole = self.budget.kind, self.problem.totals.get(self.budget.kind, 0.0)
        least = whole + float(sum(own.min() for own in choice.added(self.problem.choices, kind)))
        if kind == "latency" and self.problem.timed:
            least = min(self.problem.timed.values())
        unit = " ms" if kind == "latency" else ""
        part = f", {least / whole:.3f} of the original's" if whole else ""
        return (
            f"{self.budget.text}: expected a budget that can be met; the least is "
            f"{least:.6g}{unit}{part}, with every layer replaced by the smallest stack that was "
            "measured to be faster"
        )


def _limits(one: Selected) -> dict[int, int]:
    """{rank: MACs of the separable stack of that rank} of a convolution that may be replaced."""
    if not one.options:
        return {}
    return {rank: candidates.separable(one.conv, rank).macs for rank in candidates.RANKS}
