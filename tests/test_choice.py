"""The integer program, against trying all combinations; uniform students; corrections."""

import itertools

import numpy as np
import pytest

from tfdwd import choice
from tfdwd.choice import Candidate
from tfdwd.plans import Option

KEPT = Candidate(None, 100, 100, 0.0, 1.0)


def random_choices(source):
    choices = []
    for _ in range(4):
        draws = source.uniform(size=(3, 4))
        choices.append(
            [KEPT]
            + [
                Candidate(Option("separable", i + 1, 0), int(99 * a), int(99 * b), c, d)
                for i, (a, b, c, d) in enumerate(draws)
            ]
        )
    return choices


@pytest.mark.parametrize("kind", ["latency", "macs", "params", "max_error"])
@pytest.mark.parametrize("corrected", [False, True])
def test_the_choice_is_that_of_trying_all(kind, corrected):
    source = np.random.default_rng(0)
    room = {"latency": -1.8, "macs": -180, "params": -170, "max_error": 1.2}[kind]
    for _ in range(20):
        choices = random_choices(source)
        losses = [source.uniform(size=4) for _ in choices] if corrected else None

        def costs_of(taken, choices=choices, losses=losses):
            own = [c[i] for c, i in zip(choices, taken, strict=True)]
            goal = sum(c.error for c in own)
            if losses is not None:
                goal = sum(loss[i] for loss, i in zip(losses, taken, strict=True))
            elif kind == "max_error":
                goal = sum(c.ms - 1.0 for c in own)
            used = {
                "latency": sum(c.ms - 1.0 for c in own),
                "macs": sum(c.macs - 100 for c in own),
                "params": sum(c.parameters - 100 for c in own),
                "max_error": sum(c.error for c in own),
            }[kind]
            return used, goal

        allowed = [
            goal
            for taken in itertools.product(range(4), repeat=4)
            for used, goal in [costs_of(taken)]
            if used <= room + 1e-9
        ]
        taken = choice.best(choices, kind, room, losses)
        used, goal = costs_of(taken)
        assert used <= room + 1e-6 and goal == pytest.approx(min(allowed), abs=1e-6)
        assert choice.total(choices, taken, kind) == pytest.approx(used)


def test_what_cannot_be_met():
    assert choice.best([[KEPT]], "macs", -1) is None
    assert choice.best([], "macs", 0) == ()


def test_uniform_students():
    def option(stack, size, macs, error):
        return Candidate(Option(stack, size, macs), macs, 1, error, 0.5)

    layer = [
        KEPT,
        option("separable", 1, 30, 0.5),
        option("separable", 2, 60, 0.2),
        option("bottleneck", 3, 20, 0.7),
        option("bottleneck", 4, 28, 0.4),
        option("bottleneck", 9, 59, 0.3),
    ]
    limits = [{1: 30, 2: 60, 3: 90}] * 2
    found = {(how, rank): taken for how, rank, taken in choice.uniform([layer] * 2, limits)}
    assert found["separable", 1] == (1, 1) and found["separable", 2] == (2, 2)
    assert found["bottleneck", 1] == (4, 4) and found["bottleneck", 2] == (5, 5)
    assert found["auto", 1] == (4, 4) and found["auto", 2] == (2, 2)
    assert found["auto, the first kept,", 2] == (0, 2)
    assert ("separable", 3) not in found  # not among the candidates: all would be kept
    assert found["bottleneck", 3] == (5, 5)


def test_corrections_come_from_what_was_measured():
    source = np.random.default_rng(0)
    predicted = source.uniform(0.1, 1.0, (9, 5))
    true = np.array([1.0, 2.0, 3.0, 4.0, 2.0])
    found = choice.corrections(predicted, predicted @ true)
    np.testing.assert_allclose(predicted @ found, predicted @ true, rtol=0.03)
    assert np.argsort(found)[0] == 0 and np.argsort(found)[-1] == 3
    # Of one student there is nothing to tell the layers apart by.
    np.testing.assert_allclose(choice.corrections(np.ones((1, 4)), np.array([8.0])), 2.0)


def test_times_in_a_network_are_learnt_from_students():
    source = np.random.default_rng(0)
    choices = random_choices(source)
    alone = choice.added(choices, "latency")
    # Some stacks save more in a network than alone, some less, and all of them a quarter more.
    real = [own * 1.25 * source.uniform(0.95, 1.05, size=4) for own in alone]
    every = list(itertools.product(range(4), repeat=4))

    def ms(taken):
        return 10 + sum(own[i] for own, i in zip(real, taken, strict=True))

    errors = []
    for known in (0, 1, 5, 30):
        students = {tuple(taken): ms(taken) for taken in source.permutation(every)[:known]}
        found = choice.in_a_network(choices, 10.0, students)
        assert all(own[0] == 0 for own in found)
        told = [10 + sum(own[i] for own, i in zip(found, taken, strict=True)) for taken in every]
        errors.append(np.abs(np.array(told) - [ms(taken) for taken in every]).mean())
    assert np.all(np.diff(errors) < 0) and errors[-1] < errors[0] / 5
    assert choice.in_a_network([], 1.0, {}) == []
