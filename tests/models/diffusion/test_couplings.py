"""Couplings against scipy's assignments and NumPy's Sinkhorn; what noise of each example they give, and its law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from jaxprob.models import diffusion
from jaxprob.models.diffusion._couplings import assignment, optimal_transport, transport_plan


def least(cost):
    rows, columns = linear_sum_assignment(cost)
    return cost[rows, columns].sum()


def sinkhorn(cost, epsilon, iterations=5000):
    """Cuturi's algorithm as he wrote it, in double precision."""
    kernel = np.exp(-(cost - cost.min()) / (epsilon * cost.std()))
    rows, columns = (np.full(number, 1 / number) for number in cost.shape)
    right = np.ones(cost.shape[1])
    for _ in range(iterations):
        left = rows / (kernel @ right)
        right = columns / (kernel.T @ left)
    return left[:, None] * kernel * right


def distances(xs, ys):
    return ((xs[:, None] - ys[None]) ** 2).reshape(len(xs), len(ys), -1).sum(-1)


# Assignments.


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 9), (30, 30)])
def test_assignment_is_scipys(rng, shape):
    solve = jax.jit(jax.vmap(assignment))
    costs = np.stack(
        [
            rng.uniform(size=shape),
            1e4 * rng.normal(size=shape) - 3e4,  # negative ones
            rng.integers(0, 3, shape).astype(float),  # ties
            np.ones(shape),
            np.zeros(shape),
            np.outer(rng.uniform(size=shape[0]), rng.uniform(size=shape[1])),  # long paths
        ]
    )
    columns = np.asarray(solve(jnp.asarray(costs, jnp.float32)))
    for cost, found in zip(costs, columns, strict=True):
        assert len(set(found.tolist())) == shape[0]
        assert found.min() >= 0
        assert found.max() < shape[1]
        np.testing.assert_allclose(cost[np.arange(shape[0]), found].sum(), least(cost), rtol=2e-6, atol=1e-6)


def test_assignment_avoids_what_is_not_finite(rng):
    cost = rng.uniform(size=(6, 6))
    forbidden = rng.uniform(size=(6, 6)) < 0.5
    forbidden[np.arange(6), rng.permutation(6)] = False
    for wrong in (np.nan, np.inf):
        found = np.asarray(assignment(jnp.asarray(np.where(forbidden, wrong, cost), jnp.float32)))
        assert not forbidden[np.arange(6), found].any()
        np.testing.assert_allclose(cost[np.arange(6), found].sum(), least(np.where(forbidden, 100, cost)), rtol=1e-5)
    assert sorted(assignment(jnp.full((4, 4), jnp.nan)).tolist()) == [0, 1, 2, 3]


# Plans.


@pytest.mark.parametrize("epsilon", [5.0, 0.3, 0.05])
def test_plan_is_sinkhorns(rng, epsilon):
    cost = rng.uniform(size=(7, 5)) * 1e3 - 400
    plan = transport_plan(jnp.asarray(cost, jnp.float32), epsilon, 3000, 1e-6)
    assert plan.error < 1e-5
    np.testing.assert_allclose(np.exp(plan.log_plan), sinkhorn(cost, epsilon), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3, 1e-4])
def test_small_entropy_is_stable_in_float32(rng, epsilon):
    """Where numbers themselves would underflow, which a look at the kernel shows."""
    cost = distances(rng.normal(size=(24, 2)), rng.normal(size=(24, 2)))
    plan = transport_plan(jnp.asarray(cost, jnp.float32), epsilon, 5000)
    weights = np.exp(np.asarray(plan.log_plan, np.float64))
    assert plan.error < 2e-2
    np.testing.assert_allclose(weights.sum(0), 1 / 24, rtol=2e-2)
    np.testing.assert_allclose(weights.sum(1), 1 / 24, rtol=2e-2)
    # The entropy of the plan is at most log 24^2, and that of an assignment log 24.
    excess = (weights * cost).sum() - least(cost) / 24
    assert -2e-2 * cost.std() < excess < epsilon * cost.std() * np.log(24) + 2e-2 * cost.std()
    assert (np.exp(-cost / (epsilon * cost.std())) == 0).any() == (epsilon < 5e-3)


def test_too_few_iterations_are_told_and_more_are_not_taken(rng):
    cost = jnp.asarray(distances(rng.normal(size=(24, 2)), rng.normal(size=(24, 2))), jnp.float32)
    few, many = transport_plan(cost, 1e-3, 3), transport_plan(cost, 0.5, 1000)
    assert few.error > 0.1
    assert few.iterations == 3
    assert many.error < 2e-3
    assert many.iterations < 50
    assert transport_plan(jnp.zeros((3, 3)), 0.1).error < 1e-5
    # A loose tolerance is of the plan that was asked for, not of those with more entropy on the way to it.
    loose = transport_plan(cost, 0.01, 1000, 0.2)
    assert loose.error < 0.25


# Noise of a batch.


def test_without_entropy_noise_is_a_cheapest_order(rng):
    examples, noise = (rng.normal(size=(12, 3, 2)).astype(np.float32) for _ in range(2))
    got = np.asarray(optimal_transport(0.0)(jax.random.key(0), jnp.asarray(examples + 100), jnp.asarray(noise)))
    order = linear_sum_assignment(distances(examples.astype(float), noise.astype(float)))[1]
    assert np.array_equal(got, noise[order])


def test_draws_follow_the_plan(rng):
    """Frequencies of 4,000 draws of each of four examples; 16 z-scores, above 4.5 once in 10,000 times."""
    examples, noise = (rng.normal(size=(4, 2)) for _ in range(2))
    shares = 4 * sinkhorn(distances(examples, noise), 0.2)
    coupling = optimal_transport(0.2)
    keys = jax.random.split(jax.random.key(3), 4000)
    got = jax.vmap(coupling, (0, None, None))(keys, jnp.asarray(examples, jnp.float32), jnp.asarray(noise, jnp.float32))
    chosen = np.abs(np.asarray(got)[:, :, None] - noise[None, None]).sum(-1) < 1e-5
    assert (chosen.sum(-1) == 1).all()
    z = (chosen.mean(0) - shares) / np.sqrt(np.maximum(shares * (1 - shares), 1e-5) / 4000)
    # The plan's margins are within a thousandth, which is a tenth of a standard error.
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_noise_of_a_class_keeps_its_law(epsilon):
    """Noise of one of two classes far apart, over 300 batches: z-scores, above 4 once in 8,000 times."""
    labels = jnp.asarray([0, 1] * 8)
    examples = jnp.where(labels == 0, -3.0, 3.0)[:, None] + 0.1 * jnp.arange(16.0)[:, None]

    def first_class(key, coupling):
        keys = jax.random.split(key)
        noise = jax.random.normal(keys[0], (16, 1))
        mine = coupling(keys[1], examples, noise, labels)[::2, 0]
        return jnp.stack([jnp.mean(mine), jnp.mean(mine**2) - 1])

    def z(coupling):
        drawn = np.asarray(jax.vmap(lambda key: first_class(key, coupling))(jax.random.split(jax.random.key(1), 300)))
        return drawn.mean(0) / (drawn.std(0) / np.sqrt(300))

    assert np.abs(z(optimal_transport(epsilon))).max() < 4
    assert z(optimal_transport(epsilon, condition_weight=0.0))[0] < -30


def test_conditions_that_differ_are_kept_apart(rng):
    coupling = optimal_transport(0.0, condition_weight=1e3)
    examples, noise = jnp.asarray(rng.normal(size=(8, 2))), jnp.arange(8.0)[:, None] * jnp.ones((1, 2))
    labels = jnp.asarray([0, 0, 1, 1, 2, 2, 2, 2])
    gone = jnp.asarray([[0.0], [jnp.nan], [jnp.nan], [0.0], [50.0], [50.0], [jnp.nan], [50.0]])
    for conditions in (labels, {"a": labels, "b": jnp.zeros((8, 2), bool)}, gone):
        joined = np.asarray(coupling(jax.random.key(0), examples, noise, conditions))[:, 0].astype(int)
        assert sorted(joined) == list(range(8))
        kinds = np.nan_to_num(np.asarray(jax.tree.leaves(conditions)[0]).reshape(8), nan=-1)
        assert np.array_equal(kinds[joined], kinds)
    # Vectors: the nearer of two, though it costs more by itself.
    examples, noise = jnp.array([[0.0], [1.0]]), jnp.array([[1.0], [0.0]])
    vectors = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    assert coupling(jax.random.key(0), examples, noise, vectors).tolist() == noise.tolist()
    ignoring = optimal_transport(0.0, condition_weight=0.0)
    assert ignoring(jax.random.key(0), examples, noise, vectors).tolist() == examples.tolist()


@pytest.mark.parametrize("epsilon", [0.0, 0.1])
def test_precision_sizes_and_awkward_batches(rng, epsilon, x64):
    coupling = optimal_transport(epsilon, iterations=50)
    for dtype in (jnp.bfloat16, jnp.float32, jnp.float64):
        noise = jnp.asarray(rng.normal(size=(5, 2)), dtype)
        got = coupling(jax.random.key(0), noise, noise)
        assert got.dtype == dtype
        assert got.shape == noise.shape
    one = jnp.ones((1, 3))
    assert np.array_equal(coupling(jax.random.key(0), jnp.zeros((1, 3)), one), one)
    same = coupling(jax.random.key(0), jnp.zeros((3, 1)), jnp.zeros((3, 1)))
    assert np.array_equal(same, np.zeros((3, 1)))
    lost = coupling(jax.random.key(0), jnp.asarray([[jnp.nan], [0.0], [1.0]]), jnp.arange(3.0)[:, None])
    assert np.isfinite(lost).all()


def test_couples_batches_of_the_loss(rng):
    """Lines to the coupled noise are shorter, and with it all that a denoiser that says 0 is wrong by."""
    process, xs = diffusion.flow_matching(), jnp.asarray(rng.normal(size=(32, 2)), jnp.float32)

    def mean_square(coupling):
        objective = diffusion.loss(process, lambda params, x, t, condition: 0 * x, coupling=coupling)
        return float(objective(None, xs, jax.random.key(0)))

    free, coupled, exact = map(mean_square, (None, optimal_transport(0.05), optimal_transport(0.0)))
    assert exact < coupled < 0.7 * free
    assert optimal_transport(0.05) == optimal_transport(0.05)
    assert optimal_transport(0.05) != optimal_transport(0.06)


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (
            lambda: optimal_transport(-1.0),
            "diffusion.optimal_transport: epsilon is -1.0; expected a number, 0 or more.",
        ),
        (lambda: optimal_transport(jnp.nan), "diffusion.optimal_transport: epsilon is nan; expected a number"),
        (lambda: optimal_transport(condition_weight="a"), "condition_weight is a; expected a number, 0 or more."),
        (lambda: optimal_transport(iterations=0), "iterations is 0; expected a whole number, 1 or more."),
        (
            lambda: optimal_transport()(jax.random.key(0), jnp.zeros((3, 2)), jnp.zeros((4, 2))),
            "noise is of shape (4, 2); expected (3, 2), as the examples, one or more.",
        ),
        (
            lambda: optimal_transport()(jax.random.key(0), jnp.zeros((0, 2)), jnp.zeros((0, 2))),
            "noise is of shape (0, 2); expected (0, 2), as the examples, one or more.",
        ),
        (
            lambda: optimal_transport()(jax.random.key(0), jnp.zeros((3, 2)), jnp.zeros((3, 2)), jnp.zeros(2)),
            "conditions is of shape (2,); expected one for each of 3 examples.",
        ),
        (lambda: assignment(jnp.zeros((3, 2))), "diffusion.assignment: cost is of shape (3, 2); expected a matrix"),
        (lambda: transport_plan(jnp.zeros(3)), "diffusion.transport_plan: cost is of shape (3,); expected a matrix"),
        (lambda: transport_plan(jnp.zeros((2, 2)), 0.0), "epsilon is 0.0; expected a positive number."),
    ],
)
def test_bad_arguments(call, line):
    with pytest.raises(ValueError) as caught:
        call()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
