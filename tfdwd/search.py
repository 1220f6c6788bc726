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
_BARRED = 1e3  # times a layer's largest loss
_UNIFORM = 6  # uniform students that are timed, at most
_WORSE = 2.0  # times the best one's predicted loss: from there on a uniform student is not tried
_SPARE = 1.05  # times the budget: what is expected of a student's time is at most so wrong


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
        for name, taken in itertools.chain(self._uniform(), self._others()):
            if self._is_over():
                break
            self._measure(name, taken)
        while len(self.tried) < _STUDENTS and not self._is_over():
            losses = self._losses()
            again = self._near(self._program(losses))
            name = "integer program, corrected"
            if again is None or self._is_tried(again):
                again, name = self._other_way(losses), "integer program, otherwise"
            if again is None:
                break
            self._measure(name, again)
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

    def _is_tried(self, taken: Taken) -> bool:
        return taken in [known for _, known, _ in self.tried]

    def _added(self) -> list[np.ndarray]:
        """What candidates add of the budget's kind, times as the students that were timed say."""
        known, kind = self.problem, self.budget.kind
        if kind != "latency":
            return choice.added(known.choices, kind)
        return choice.in_a_network(known.choices, self._before, known.timed)

    def _program(self, losses: Sequence[np.ndarray] | None = None) -> Callable[[], Taken | None]:
        """Proposes the choice of least loss within the budget."""
        kind = self.budget.kind

        def propose() -> Taken | None:
            weights = self._added()
            room = self._limit - self.problem.totals.get(kind, 0.0)
            if kind == "latency":  # the fastest has its chance, whatever its layers say
                room = max(room, float(sum(own.min() for own in weights)) + 1e-9 * self._limit)
            return choice.best(self.problem.choices, kind, room, losses, weights)

        return propose

    def _other_way(self, losses: Sequence[np.ndarray]) -> Taken | None:
        """The likeliest choice that does without one kind of stack that the best student has.

        Its layer's factor is told by nothing else than students that differ there.
        """
        best = min(self.tried, key=lambda one: one[2].loss)[1]
        found: list[tuple[float, Taken]] = []
        for place, own in enumerate(self.problem.choices):
            taken = own[best[place]].option
            barred = [(c.option and c.option.stack) == (taken and taken.stack) for c in own]
            if all(barred):
                continue
            wanted = list(losses)
            wanted[place] = np.where(barred, _BARRED * max(1.0, wanted[place].max()), wanted[place])
            way = self._program(wanted)()
            if way is not None and not self._is_tried(way) and not barred[way[place]]:
                found.append((_sum(wanted, way), way))
        for _, way in sorted(found):
            if self._is_over():
                break
            if self.budget.kind != "latency" or self._ms(way) <= _TOLERANCE * self._limit:
                return way
        return None

    def _uniform(self) -> Iterator[tuple[str, Taken]]:
        """Uniform students within the budget, those of the least predicted loss first."""
        choices, timed = self.problem.choices, self.budget.kind == "latency"
        worst = _WORSE * self.predicted(self.tried[0][1])
        found: dict[Taken, str] = {self.tried[0][1]: ""}
        for how, rank, taken in choice.uniform(choices, list(map(_limits, self.problem.selected))):
            if self.predicted(taken) <= worst:
                found.setdefault(taken, f"uniform {how} {rank}")
        left = sorted(list(found.items())[1:], key=lambda one: self.predicted(one[0]))
        for _ in range(_UNIFORM):
            # What was timed meanwhile says better which of those that are left may be within it.
            spare = _SPARE if timed else 1.0
            left = [one for one in left if self._expected(one[0]) <= spare * self._limit]
            if not left or self._is_over():
                break
            taken, name = left.pop(0)
            if not timed or self._ms(taken) <= _TOLERANCE * self._limit:
                yield name, taken

    def _others(self) -> Iterator[tuple[str, Taken]]:
        """What the program finds if losses add up otherwise: if large ones count less, or more."""
        losses = choice.added(self.problem.choices, "max_error")
        for power in _POWERS:
            if self._is_over():
                break
            taken = self._near(self._program([own**power for own in losses]))
            if taken is not None and not self._is_tried(taken):
                yield f"integer program, losses to the power of {power}", taken

    def _losses(self) -> list[np.ndarray]:
        """The candidates' predicted losses, corrected by what was measured."""
        losses = choice.added(self.problem.choices, "max_error")
        predicted = np.array(
            [[own[i] for own, i in zip(losses, taken, strict=True)] for _, taken, _ in self.tried]
        )
        measured = np.array([max(found.loss, 1e-12) for _, _, found in self.tried])
        factors = choice.corrections(np.maximum(predicted, 1e-15), measured)
        return [own * factor for own, factor in zip(losses, factors, strict=True)]

    def _near(self, propose: Callable[[], Taken | None]) -> Taken | None:
        """The largest choice within the budget that some rule proposes.

        What the layers save alone is not what the student saves. For a budget of time students are
        made and timed until one takes what it may: each time says more of what the next will take.

        Args:
          propose: gives a choice that should be within the budget, by what is known by then.
        """
        if self.budget.kind != "latency":
            return propose()
        within: list[tuple[float, Taken]] = []
        seen: set[Taken] = set()
        for _ in range(_TRIES):
            taken = propose()
            if taken is None or taken in seen:
                break
            seen.add(taken)
            ms = self._ms(taken)
            if ms <= self._limit * _TOLERANCE:
                within.append((ms, taken))
                if ms >= _NEAR * self._limit:
                    break
            if not any(taken):
                break
        return max(within)[1] if within else None

    def _expected(self, taken: Taken) -> float:
        """What a choice is expected to take of the budget's kind."""
        return self.problem.totals.get(self.budget.kind, 0.0) + _sum(self._added(), taken)

    def _ms(self, taken: Taken) -> float:
        """The time of a student, of which the log says how far it is from what was expected."""
        expected = self._expected(taken)
        ms = self.problem.ms(taken)
        logging.info("for %.4f ms: expected %.4f, got %.4f ms", self._limit, expected, ms)
        return ms

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


def _sum(values: Sequence[np.ndarray], taken: Taken) -> float:
    return float(sum(own[i] for own, i in zip(values, taken, strict=True)))


def _limits(one: Selected) -> dict[int, int]:
    """{rank: MACs of the separable stack of that rank} of a convolution that may be replaced."""
    if not one.options:
        return {}
    return {rank: candidates.separable(one.conv, rank).macs for rank in candidates.RANKS}
