"""The solvers against brute force over explicit rows."""

import dataclasses
import functools
import itertools
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdwd import factorize
from tfdwd.errors import Error
from tfdwd.factorize._bottleneck import principal_start

# (c, q, n): more outputs than taps, fewer, one channel, one output, 1x3 taps, one tap.
SHAPES = [(4, 9, 12), (5, 9, 6), (1, 9, 5), (6, 9, 1), (5, 3, 8), (1, 3, 1), (3, 25, 4), (4, 1, 3)]


def correlated_rows(c, q, rows=800, seed=0):
    """Rows (rows, c * q) that overlap between channels and between taps, as images' do."""
    source = np.random.default_rng(seed)
    return source.normal(size=(rows, c * q)) @ source.normal(size=(c * q, c * q)) ** 3


def problem(shape, seed=0, spoil=None):
    """(X, Y, kernel): responses of a random kernel, after `spoil` has had its way with the rows."""
    c, q, n = shape
    x = correlated_rows(c, q, seed=seed)
    if spoil:
        x = spoil(x, c, q)
    x = x - x.mean(axis=0)
    kernel = np.random.default_rng(seed + 1).normal(size=shape)
    return x, x @ kernel.reshape(c * q, n), kernel


def target_of(x, y, kernel, ridge=1e-10):
    return factorize.target(factorize.gram(x.T @ x, ridge), x.T @ y, kernel)


def dead_channels(x, c, q):
    x = x.copy().reshape(-1, c, q)
    x[:, ::2] = 0
    return x.reshape(-1, c * q)


def dead_taps(x, c, q):
    x = x.copy().reshape(-1, c, q)
    x[:, :, 0] = 0
    return x.reshape(-1, c * q)


def ill_conditioned(x, c, q):
    """Condition number of the moments 1e12."""
    left, _, right = np.linalg.svd(x, full_matrices=False)
    return left * np.geomspace(1, 1e-6, c * q) @ right


SPOILED = {
    "few rows": lambda x, c, q: x[: max(2, c * q // 3)],  # singular moments
    "ill-conditioned": ill_conditioned,
    "dead channels": dead_channels,
    "dead taps": dead_taps,
    "copies": lambda x, c, q: np.tile(x.reshape(-1, c, q)[:, :1], (1, c, 1)).reshape(-1, c * q),
    "all zero": lambda x, c, q: 0 * x,
    "one row": lambda x, c, q: x[:1],
}

METHODS = {
    "svd": lambda target, rank: factorize.svd(target.kernel, rank),
    "gsvd": factorize.gsvd,
    "sequential": factorize.sequential,
    "joint": factorize.joint,
}


def missed(x, y, stack):
    """The error by its definition: sum of squares of the response minus the stack's."""
    return np.sum((y - x @ stack.kernel().reshape(x.shape[1], -1)) ** 2)


def finite(stack):
    return all(np.isfinite(array).all() for array in vars(stack).values())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_error_is_the_sum_of_squares_of_what_is_missed(shape):
    x, y, kernel = problem(shape)
    target = target_of(x, y, kernel)
    stack = factorize.svd(kernel, 1)
    assert target.error(stack.kernel()) == pytest.approx(missed(x, y, stack), rel=1e-6, abs=1e-6)


def test_the_error_splits_into_what_no_kernel_mends_and_the_rest():
    """|y - xE|^2 = |y - xM|^2 + |A^(1/2)(M - E)|^2."""
    x, y, kernel = problem((3, 9, 4))
    y = y + np.random.default_rng(5).normal(size=y.shape)
    target = target_of(x, y, kernel, ridge=1e-13)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(target.kernel.reshape(best.shape), best, atol=1e-4)
    stack = factorize.gsvd(target, 1)
    total = np.sum((y - x @ best) ** 2) + target.error(stack.kernel())
    assert missed(x, y, stack) == pytest.approx(total, rel=1e-8)


def test_target_stays_with_the_kernel_where_the_inputs_say_nothing():
    x, y, kernel = problem((4, 9, 5), spoil=dead_channels)
    target = target_of(x, y, 3 * kernel, ridge=1e-6)
    np.testing.assert_allclose(target.kernel[::2], 3 * kernel[::2], rtol=1e-6)
    np.testing.assert_allclose(target.kernel[1::2], kernel[1::2], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_svd_is_numpys_truncated_one_per_channel(shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    for rank in range(1, min(shape[1:]) + 1):
        left, sizes, right = np.linalg.svd(kernel, full_matrices=False)
        expected = (left[..., :rank] * sizes[:, None, :rank]) @ right[:, :rank]
        np.testing.assert_allclose(factorize.svd(kernel, rank).kernel(), expected, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gsvd_is_the_svd_of_the_kernel_under_the_root_of_the_channels_own_moments(shape):
    c, q, n = shape
    x, y, kernel = problem(shape)
    target = target_of(x, y, kernel)
    for rank in range(1, min(q, n) + 1):
        found = factorize.gsvd(target, rank).kernel()
        for i in range(c):
            own = slice(i * q, (i + 1) * q)
            values, vectors = np.linalg.eigh(target.gram.matrix[own, own])
            root = vectors * np.sqrt(values) @ vectors.T
            left, sizes, right = np.linalg.svd(root @ target.kernel[i], full_matrices=False)
            best = np.linalg.solve(root, left[:, :rank] * sizes[:rank] @ right[:rank])
            np.testing.assert_allclose(root @ found[i], root @ best, atol=1e-6 * sizes[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_rank_works_and_the_full_one_is_exact(method, shape):
    c, q, n = shape
    x, y, kernel = problem(shape)
    target = target_of(x, y, kernel)
    scale = np.sum(y**2)
    errors = []
    for rank in range(1, min(q, n) + 1):
        stack = METHODS[method](target, rank)
        assert stack.depthwise.shape == (c, q, rank)
        assert stack.pointwise.shape == (c, rank, n)
        errors.append(missed(x, y, stack) / scale)
    # Squares of float64 rounding over kernels whose moments have condition numbers up to 1e9.
    assert errors[-1] < 1e-9
    if method == "svd":
        gaps = [np.sum((kernel - factorize.svd(kernel, r).kernel()) ** 2) for r in (1, min(q, n))]
        assert gaps[1] <= gaps[0]
    else:
        assert errors[0] <= 1
    if method == "gsvd" and c == 1:  # alone in its layer, each channel's best is the best
        assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("method", METHODS)
def test_moments_that_determine_little_or_nothing(method, spoil):
    for shape in [(4, 9, 6), (5, 3, 8), (1, 9, 5), (6, 9, 1)]:
        x, y, kernel = problem(shape, spoil=SPOILED[spoil])
        target = target_of(x, y, kernel, ridge=1e-4)  # the default
        for rank in (1, min(shape[1:])):
            stack = METHODS[method](target, rank)
            assert finite(stack)
            if method != "svd":
                total = target.error(0 * kernel)
                assert target.error(stack.kernel()) <= total * (1 + 1e-9)
        # At full rank the stack is the target's kernel, also where the inputs say nothing.
        np.testing.assert_allclose(
            stack.kernel(), target.kernel, atol=1e-5 * max(1, np.abs(target.kernel).max())
        )


@pytest.mark.parametrize("spoil", SPOILED)
def test_bottleneck_and_channel_on_such_moments(spoil):
    for shape in [(4, 9, 6), (5, 3, 8), (1, 9, 5), (6, 9, 1)]:
        c, q, n = shape
        x, y, kernel = problem(shape, spoil=SPOILED[spoil])
        target = target_of(x, y, kernel, ridge=1e-4)
        total = target.error(0 * kernel)
        for width in (1, 5, n * min(c, q) + 3):
            stack = factorize.bottleneck(target, width)
            assert finite(stack)
            assert stack.kernel().shape == shape
            assert target.error(stack.kernel()) <= total * (1 + 1e-9)
        for filters in {1, n}:
            assert finite(factorize.channel(target, filters))


def slack(target):
    """What rounding may add to an error: it is a difference of terms as large as the response's,
    each with relative rounding of float64 times the number of terms."""
    return 1e-10 * target.error(0 * target.kernel)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spoil", [None, *SPOILED])
def test_no_step_raises_the_error(spoil, seed):
    shape = [(6, 9, 8), (5, 3, 4), (8, 9, 3)][seed]
    x, y, kernel = problem(shape, seed, SPOILED.get(spoil))
    target = target_of(x, y, kernel, ridge=1e-6)
    for rank in {1, 2, min(shape[1:])}:
        start = factorize.sequential(target, rank)
        steps = [start, *factorize.joint_steps(target, start, 4)]
        errors = [target.error(step.kernel()) for step in steps]
        for before, after in itertools.pairwise(errors):
            assert after <= before + slack(target)
    for width in (1, 7, shape[2] * min(shape[:2])):
        start = principal_start(target, width)
        errors = [
            target.error(step.kernel()) for step in factorize.bottleneck_steps(target, start, 6)
        ]
        for before, after in itertools.pairwise(errors):
            assert after <= before + slack(target)


@pytest.mark.parametrize("seed", range(40))
def test_joint_is_never_above_sequential_nor_that_above_gsvd(seed):
    source = np.random.default_rng(seed)
    shape = tuple(int(size) for size in source.integers([1, 1, 1], [9, 10, 12]))
    x, y, kernel = problem(shape, seed, [None, *SPOILED.values()][seed % 8])
    y = y + seed % 3 * y.std() * source.normal(size=y.shape)
    target = target_of(x, y, kernel, ridge=1e-6)
    rank = int(source.integers(1, min(shape[1:]) + 1))
    root = source.normal(size=(shape[2], shape[2]))
    metric = root @ root.T + 0.01 * np.eye(shape[2])
    for weight in (None, metric):
        lower = np.eye(shape[2]) if weight is None else np.linalg.cholesky(weight)
        weighted = factorize.Target(target.gram, target.product @ lower, target.kernel @ lower)
        error = {
            "gsvd": weighted.error(factorize.gsvd(weighted, rank).kernel()),
            "sequential": weighted.error(factorize.sequential(weighted, rank).kernel()),
            "joint": weighted.error(factorize.joint(target, rank, weight).kernel() @ lower),
        }
        assert error["sequential"] <= error["gsvd"] + slack(weighted)
        assert error["joint"] <= error["sequential"] + slack(weighted)


def test_joint_is_far_better_on_correlated_inputs_and_a_little_on_white_ones():
    shape = (16, 9, 16)
    kernel = np.random.default_rng(1).normal(size=shape)
    source = np.random.default_rng(0)
    white = source.normal(size=(4000, 16 * 9))
    smooth = white @ np.exp(-np.abs(np.subtract.outer(np.arange(144), np.arange(144))) / 30)
    for x, low, high in ((white, 0.9, 1.0), (smooth, 0.0, 0.5)):
        target = target_of(x, x @ kernel.reshape(-1, 16), kernel, 1e-6)
        ratio = target.error(factorize.joint(target, 1).kernel()) / target.error(
            factorize.sequential(target, 1).kernel()
        )
        assert low < ratio < high


@pytest.mark.parametrize("solve", [factorize.joint, factorize.bottleneck])
def test_the_metric(solve):
    x, y, kernel = problem((6, 9, 8), seed=3)
    target = target_of(x, y, kernel, 1e-6)
    plain = solve(target, 2)
    with_identity = solve(target, 2, np.eye(8))
    np.testing.assert_allclose(with_identity.kernel(), plain.kernel(), atol=1e-8)
    np.testing.assert_allclose(
        target.error(solve(target, 2, 7 * np.eye(8)).kernel()),
        target.error(plain.kernel()),
        rtol=1e-3,
    )

    weights = np.array([100.0] + [1.0] * 7)
    favoured = solve(target, 2, np.diag(weights))

    def errors(stack):
        return np.sum((y - x @ stack.kernel().reshape(54, 8)) ** 2, axis=0)

    assert errors(favoured)[0] < 0.8 * errors(plain)[0]
    assert errors(favoured)[1:].sum() > errors(plain)[1:].sum()
    assert errors(favoured) @ weights < errors(plain) @ weights


@pytest.mark.parametrize("shape", [(3, 9, 4), (9, 3, 2), (1, 9, 3), (4, 9, 1)], ids=str)
def test_bottleneck_is_exact_at_the_width_stated_and_beyond(shape):
    c, q, n = shape
    x, y, kernel = problem(shape)
    target = target_of(x, y, kernel, 1e-6)
    for width in (n * min(c, q), n * min(c, q) + 2):
        stack = factorize.bottleneck(target, width)
        assert stack.reduce.shape == (c, width) and stack.depthwise.shape == (q, width)
        assert target.error(stack.kernel()) < 1e-9 * target.error(0 * kernel)


def test_bottleneck_errors_fall_with_the_width():
    target = target_of(*problem((8, 9, 8), seed=2), 1e-6)
    errors = [target.error(factorize.bottleneck(target, w).kernel()) for w in (1, 4, 16, 40)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("spoil", [None, "ill-conditioned", "dead channels"])
def test_few_rounds_in_float32_predict_what_all_rounds_reach(spoil):
    shape = (12, 9, 16)
    x, y, kernel = problem(shape, 5, SPOILED.get(spoil))
    target = target_of(x, y, kernel, 1e-4)
    root = np.random.default_rng(0).normal(size=(16, 16))
    metric = root @ root.T + 0.1 * np.eye(16)

    def error(stack):
        return target.error(stack.kernel(), metric)

    total = error(factorize.svd(0 * kernel, 1))
    widths = [24, 3, 8]
    fits = factorize.bottlenecks(target, widths, metric)
    assert list(fits) == widths and factorize.bottlenecks(target, [], metric) == {}
    for width, stack in fits.items():
        assert stack.reduce.shape == (12, width) and stack.depthwise.dtype == np.float64
        all_rounds = error(factorize.bottleneck(target, width, metric))
        assert error(stack) <= 1.1 * all_rounds + 1e-6 * total
    ranks = [3, 1]
    stacks = factorize.joints(target, ranks, metric)
    assert list(stacks) == ranks
    for rank, stack in stacks.items():
        all_rounds = error(factorize.joint(target, rank, metric))
        assert error(stack) <= 1.1 * all_rounds + 1e-6 * total
    with pytest.raises(Error, match="width of a bottleneck: expected 1 or more, got 0"):
        factorize.bottlenecks(target, [3, 0])
    with pytest.raises(Error, match=r"rank: expected 1\.\.9"):
        factorize.joints(target, [10])


def test_ladders_are_the_same_on_any_number_of_cores(monkeypatch):
    target = target_of(*problem((12, 9, 16)), 1e-4)
    found = []
    for cores in (1, 3, None):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        stacks = [
            *factorize.bottlenecks(target, [4, 9, 13]).values(),
            *factorize.joints(target, [1, 2, 3]).values(),
        ]
        found.append([stack.kernel() for stack in stacks])
    for one, few, unknown in zip(*found, strict=True):
        np.testing.assert_array_equal(one, few)
        np.testing.assert_array_equal(one, unknown)


def test_errors_of_stacks_are_those_of_their_kernels():
    x, y, kernel = problem((4, 9, 6))
    target = target_of(x, y, kernel, 1e-6)
    stacks = {kind: solve(target) for kind, solve in STACKS.items()}
    half = np.random.default_rng(0).normal(size=(6, 2))
    for metric in (None, half @ half.T):  # the second is singular
        found = factorize.errors(target, stacks, metric)
        for kind, stack in stacks.items():
            assert found[kind] == pytest.approx(target.error(stack.kernel(), metric), rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 9, 6), (6, 9, 1), (1, 3, 4)], ids=str)
def test_channel_projects_on_the_principal_components_of_the_response(shape):
    x, y, kernel = problem(shape)
    target = target_of(x, y, kernel)
    variances = np.linalg.eigvalsh(y.T @ y)[::-1]
    for filters in range(1, shape[2] + 1):
        stack = factorize.channel(target, filters)
        assert stack.filters.shape == (*shape[:2], filters)
        lost = variances[filters:].sum()  # Eckart and Young
        assert missed(x, y, stack) == pytest.approx(lost, rel=1e-5, abs=1e-7 * variances[0])


STACKS = {
    "separable": functools.partial(factorize.joint, rank=2),
    "bottleneck": functools.partial(factorize.bottleneck, width=5),
    "channel": functools.partial(factorize.channel, filters=2),
}


@pytest.mark.parametrize("kind", STACKS)
def test_variances_and_scaled_by_explicit_rows(kind):
    x, y, kernel = problem((4, 9, 6))
    stack = STACKS[kind](target_of(x, y, kernel, 1e-6))
    outputs = x @ stack.kernel().reshape(36, 6)
    np.testing.assert_allclose(factorize.variances(stack, x.T @ x), (outputs**2).sum(axis=0))
    gain = np.arange(6.0)
    np.testing.assert_allclose(stack.scaled(gain).kernel(), stack.kernel() * gain)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("rank", [0, -1, 7])
def test_wrong_ranks(method, rank):
    target = target_of(*problem((3, 9, 6)))
    with pytest.raises(Error, match=rf"rank: expected 1\.\.6 for 9 taps and 6 outputs, got {rank}"):
        METHODS[method](target, rank)


def test_wrong_widths_filters_and_metrics():
    target = target_of(*problem((3, 9, 6)))
    with pytest.raises(Error, match="width of a bottleneck: expected 1 or more, got 0"):
        factorize.bottleneck(target, 0)
    for filters in (0, 7):
        with pytest.raises(Error, match=rf"expected 1\.\.6, got {filters}"):
            factorize.channel(target, filters)
    for solve in (factorize.joint, factorize.bottleneck):
        with pytest.raises(Error, match=r"metric: expected shape \(6, 6\), got \(5, 5\)"):
            solve(target, 2, np.eye(5))
        with pytest.raises(Error, match="expected a positive definite matrix"):
            solve(target, 2, np.diag([1, 1, 1, 1, 1, -1.0]))


def test_a_gram_with_negative_eigenvalues_from_rounding_is_factored_all_the_same():
    xx = np.diag([1.0, 1.0, -1e-3])
    factored = factorize.gram(xx)
    assert factored.ridge > 1e-3
    assert np.linalg.eigvalsh(factored.matrix).min() > 0


def test_the_answer_does_not_depend_on_the_units_of_the_inputs():
    x, y, kernel = problem((4, 9, 6))
    for scale in (1e-6, 1e6):
        target = target_of(scale * x, y, kernel / scale, 1e-4)
        reference = target_of(x, y, kernel, 1e-4)
        for solve in (factorize.sequential, factorize.joint):
            np.testing.assert_allclose(
                target.error(solve(target, 1).kernel()),
                reference.error(solve(reference, 1).kernel()),
                rtol=1e-5,
            )


@pytest.mark.slow
@pytest.mark.parametrize("what", ["joint", "bottleneck"])
def test_large_layers_stay_inside_4_gib(what):
    program = f"""
import resource
import numpy as np
from tfdwd import factorize
from tfdwd.factorize._bottleneck import principal_start
c, q, n = 512, 9, 512
source = np.random.default_rng(0)
x = source.normal(size=(6000, c * q)).astype(np.float32)
x += 3 * np.repeat(source.normal(size=(6000, c)).astype(np.float32), q, axis=1)
kernel = source.normal(size=(c, q, n)) / 70
gram = x.T @ x / 6000
target = factorize.target(factorize.gram(gram), gram @ kernel.reshape(c * q, n), kernel)
del x, gram
if {what!r} == "joint":
    steps = factorize.joint_steps(target, factorize.sequential(target, 3), 2)
else:
    start = principal_start(target, 258)
    steps = factorize.bottleneck_steps(target, start, 3)
errors = [target.error(step.kernel()) for step in steps]
assert np.isfinite(errors).all()
assert errors[-1] < errors[0] < target.error(0 * kernel)
assert (np.diff(errors) < 1e-10 * errors[0]).all(), errors
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 4


# ---------------------------------------------------------------------- scales for int8


def inner_tensors(stack, x):
    """What the factors but the last write, for rows x; the weights of the last."""
    if isinstance(stack, factorize.Separable):
        c, q, m = stack.depthwise.shape
        z = np.einsum("xcq,cqm->xcm", x.reshape(-1, c, q), stack.depthwise)
        return [z.reshape(len(x), -1)], stack.pointwise.reshape(c * m, -1)
    if isinstance(stack, factorize.Channel):
        return [x @ stack.filters.reshape(x.shape[1], -1)], stack.expand
    c, q = len(stack.reduce), len(stack.depthwise)
    columns = (stack.reduce[:, None] * stack.depthwise).reshape(c * q, -1)
    return [x.reshape(-1, c, q)[:, :, q // 2] @ stack.reduce, x @ columns], stack.expand


def rounded(values, axis=None):
    step = np.abs(values).max(axis=axis, keepdims=True) / 127
    return np.round(values / step) * step


@pytest.mark.parametrize("kind", ["separable", "bottleneck", "channel"])
def test_equalized_stacks_are_the_same_in_float_and_lose_less_in_int8(kind):
    source = np.random.default_rng(0)
    # Channels whose inputs differ a thousandfold, as behind batch norms; means of both signs.
    spread = np.repeat(np.logspace(-1.5, 1.5, 8), 9)
    x = (source.normal(size=(4000, 72)) + source.normal(size=72)) * spread
    kernel = source.normal(size=(8, 9, 12)) / spread.reshape(8, 9, 1)
    stack = {
        "separable": lambda: factorize.svd(kernel, 2),
        "bottleneck": lambda: factorize.Bottleneck(
            source.normal(size=(8, 10)), source.normal(size=(9, 10)), source.normal(size=(10, 12))
        ),
        "channel": lambda: factorize.Channel(
            source.normal(size=(8, 9, 6)) / spread.reshape(8, 9, 1), source.normal(size=(6, 12))
        ),
    }[kind]()
    equal = factorize.equalized(stack, np.cov(x.T, bias=True), x.mean(axis=0))
    np.testing.assert_allclose(equal.kernel(), stack.kernel(), rtol=1e-9, atol=1e-9)
    wanted = x @ stack.kernel().reshape(72, -1)
    noises = []
    for one in (stack, equal):
        inner, weights = inner_tensors(one, x)
        found = rounded(inner[-1]) @ rounded(weights, axis=0)
        noises.append(np.mean(np.square(found - wanted)))
    assert noises[1] < {"separable": 0.1, "bottleneck": 1, "channel": 1}[kind] * noises[0]
    assert all(np.mean(z, axis=0).min() > -1e-9 for z in inner_tensors(equal, x)[0])


@pytest.mark.parametrize("kind", ["separable", "bottleneck", "channel"])
def test_factors_are_made_of_equal_size_without_a_bit_of_difference(kind):
    source = np.random.default_rng(0)
    stack = {
        "separable": lambda: factorize.Separable(
            source.normal(size=(8, 9, 2)), 300 * source.normal(size=(8, 2, 12))
        ),
        "bottleneck": lambda: factorize.Bottleneck(
            source.normal(size=(8, 10)) / 70, source.normal(size=(9, 10)),
            50 * source.normal(size=(10, 12)),
        ),
        "channel": lambda: factorize.Channel(
            source.normal(size=(8, 9, 6)) / 1000, source.normal(size=(6, 12))
        ),
    }[kind]()  # fmt: skip
    equal = factorize.of_equal_size(stack)
    x = source.normal(size=(50, 72)).astype(np.float32)
    np.testing.assert_array_equal(equal.apply(x), stack.apply(x))
    sizes = [np.sqrt(np.mean(np.square(factor))) for factor in dataclasses.astuple(equal)]
    assert max(sizes) < 3 * min(sizes)
    nothing = type(stack)(*(0 * factor for factor in dataclasses.astuple(stack)))
    assert finite(factorize.of_equal_size(nothing))


def test_a_channel_that_never_fires_does_not_stop_the_scales():
    stack = factorize.svd(np.random.default_rng(0).normal(size=(3, 9, 4)), 1)
    xx = np.kron(np.diag([1.0, 0, 0]), np.eye(9))
    equal = factorize.equalized(stack, xx, np.zeros(27))
    np.testing.assert_allclose(equal.kernel(), stack.kernel())
    still = factorize.equalized(stack, 0 * xx, np.zeros(27))
    np.testing.assert_allclose(still.kernel(), stack.kernel())


# ---------------------------------------------------------------------- numbers at the edge


@st.composite
def edges(draw):
    """(x, y, kernel) of few rows, dead, constant, equal or very unequal channels, odd kernels."""
    c, q, n = draw(st.tuples(st.integers(1, 6), st.sampled_from([1, 3, 9]), st.integers(1, 6)))
    source = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = source.normal(size=(draw(st.sampled_from([1, 2, 5, 60])), c, q))
    for spoil in draw(st.sets(st.sampled_from(["dead", "same", "constant", "unequal", "mean"]))):
        if spoil == "dead":
            x[:, ::2] = 0
        elif spoil == "same":
            x[:] = x[:, :1]
        elif spoil == "constant":
            x[:] = x[:1]
        elif spoil == "unequal":
            x *= np.geomspace(1, 1e-9, c)[:, None]
        else:
            x -= x.mean(axis=0)
    kernel = source.normal(size=(c, q, n))
    factor = draw(st.sampled_from(["all", "none", "some outputs", "some inputs", "tiny"]))
    if factor == "some outputs":
        kernel[..., ::2] = 0
    elif factor == "some inputs":
        kernel[::2] = 0
    else:
        kernel *= {"all": 1.0, "none": 0.0, "tiny": 1e-38}[factor]
    x = x.reshape(len(x), c * q)
    y = x @ kernel.reshape(c * q, n)
    if draw(st.booleans()):
        y = y + np.abs(y).max() * source.normal(size=y.shape)
    return x, y, kernel


def all_stacks(target, part, metric=None):
    """A stack of each kind; of the smallest size at ``part`` 0, of the largest at 1."""
    c, q, n = target.kernel.shape
    rank, width, filters = (1 + round(part * (top - 1)) for top in (min(q, n), n * min(c, q), n))
    found = {name: METHODS[name](target, rank) for name in ("svd", "gsvd", "sequential")}
    found["joint"] = factorize.joint(target, rank, metric)
    found["bottleneck"] = factorize.bottleneck(target, width, metric, 3)
    found["joints"] = factorize.joints(target, [rank], metric)[rank]
    found["bottlenecks"] = factorize.bottlenecks(target, [width], metric)[width]
    found["channel"] = factorize.channel(target, filters)
    equations = factorize.Equations(target.gram, 1.01 * target.product)
    for name in ("joint", "bottleneck"):
        found[f"{name}, refitted"] = factorize.refit(equations, found[name], metric)
    return found


IN_FLOAT32 = ("joints", "bottlenecks")
EDGES = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@EDGES
@given(edges(), st.sampled_from([0.0, 0.5, 1.0]), st.booleans())
def test_every_stack_is_finite_and_no_worse_than_a_constant(problem, part, weighted):
    x, y, kernel = problem
    target = target_of(x, y, kernel, 1e-4)
    n = kernel.shape[2]
    metric = np.eye(n) + 1e6 * np.ones((n, n)) if weighted else None
    for name, stack in all_stacks(target, part, metric).items():
        own = metric if name.startswith(("joint", "bottleneck")) else None
        rounding = 1e-5 if name in IN_FLOAT32 else 1e-9
        error, total = (target.error(k, own) for k in (stack.kernel(), 0 * kernel))
        assert finite(stack) and np.isfinite(error), name
        assert error >= -1e-9 * total, name
        # The first two look at each channel alone; refitting aims at another response.
        if name not in ("svd", "gsvd") and "refitted" not in name:
            assert error <= (1 + rounding) * total, name
        if part == 1 and name in ("gsvd", "sequential", "joint"):
            assert error <= 1e-9 * total, name
        equal = factorize.equalized(stack, x.T @ x, x.mean(axis=0))
        assert finite(equal)
        size = np.abs(stack.kernel()).max()
        np.testing.assert_allclose(equal.kernel(), stack.kernel(), atol=1e-9 * size)
        evened = factorize.of_equal_size(stack)
        np.testing.assert_allclose(evened.kernel(), stack.kernel(), rtol=1e-9, atol=0)


@EDGES
@given(edges(), st.sampled_from([0.0, 0.5]), *[st.sampled_from([-83, -30, 30, 83])] * 2)
def test_units_of_inputs_and_outputs_change_nothing(problem, part, inputs, outputs):
    x, y, kernel = problem
    if not x.any():
        return  # then the ridge has no unit
    scales = 2.0**inputs, 2.0**outputs
    plain = target_of(x, y, kernel, 1e-4)
    other = target_of(scales[0] * x, scales[1] * y, kernel * (scales[1] / scales[0]), 1e-4)
    total = plain.error(0 * kernel)
    stacks = all_stacks(plain, part), all_stacks(other, part)
    for name, stack in stacks[0].items():
        found = other.error(stacks[1][name].kernel()) / scales[1] ** 2
        rounding = 1e-4 if name in IN_FLOAT32 else 1e-6
        assert abs(found - plain.error(stack.kernel())) <= rounding * total, name


@pytest.mark.parametrize("scale", [0.0, 1e-320, 1e-300, 1e-50, 1e50, 1e300])
@pytest.mark.parametrize("ridge", [0.0, 1e-4])
def test_a_gram_of_any_scale_is_factored(scale, ridge):
    rows = np.random.default_rng(0).normal(size=(3, 5))  # of rank 3
    for xx in (rows.T @ rows, -np.eye(5), np.diag([1.0, -1, 0, 0, 0]), np.ones((5, 5)) - np.eye(5)):
        factored = factorize.gram(scale * xx, ridge)
        lower = np.tril(factored.lower)
        np.testing.assert_allclose(lower @ lower.T, factored.matrix, rtol=1e-6, atol=1e-9 * scale)
        assert factored.ridge <= max(100 * scale, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_a_clear_error(value):
    x, y, kernel = problem((3, 9, 6))
    target = target_of(x, y, kernel)
    broken = kernel.copy()
    broken[1, 2, 3] = value
    message = "expected finite numbers, got NaN or infinity"
    with pytest.raises(Error, match=f"covariance of the inputs: {message}"):
        factorize.gram(np.full((4, 4), value))
    with pytest.raises(Error, match=f"covariance of the inputs with the response: {message}"):
        factorize.target(target.gram, np.full((27, 6), value), kernel)
    for solve in (lambda: factorize.svd(broken, 1), lambda: factorize.target(target.gram, x.T @ y,
                                                                             broken)):  # fmt: skip
        with pytest.raises(Error, match=f"(kernel|response): {message}"):
            solve()
    with pytest.raises(Error, match=f"metric: {message}"):
        factorize.joint(target, 1, np.full((6, 6), value))
