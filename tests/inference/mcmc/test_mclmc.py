"""Microcanonical Langevin Monte Carlo: its integrator, its bias, its warm-up, and the adjusted kernel's."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprob import core
from jaxprob.inference import mcmc
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _isokinetic as isokinetic
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import as_metric

SIZE = 4
ROOT = np.array([[0.5, 0, 0, 0], [0.8, 0.9, 0, 0], [-0.3, 0.4, 1.6, 0], [0.2, 0.1, -0.5, 0.7]])
MATRIX = np.array([[1.0, 0.5, 0, 0.2], [0.5, 2, 0, 0], [0, 0, 0.7, 0.1], [0.2, 0, 0.1, 1.5]])
SHARES = {"mclachlan": [0.1931833275037836, 0.6136333449924328, 0.1931833275037836], "leapfrog": [0.5, 0.5]}


def log_density(q):
    """Not Gaussian: quartic in one direction."""
    precision = jnp.asarray(np.linalg.inv(ROOT @ ROOT.T), q.dtype)
    return -0.5 * jnp.sum(precision * jnp.expand_dims(q, 0) * jnp.expand_dims(q, 1)) - 0.1 * q[2] ** 4


def oracle_value_and_gradient(q):
    precision = np.linalg.inv(ROOT @ ROOT.T)
    gradient = -precision @ q
    gradient[2] -= 0.4 * q[2] ** 3
    return -0.5 * q @ precision @ q - 0.1 * q[2] ** 4, gradient


def oracle_turn(u, force, time):
    """The solution by hyperbolic functions, as in the papers."""
    norm = np.linalg.norm(force)
    e, delta = force / norm, time * norm / (len(u) - 1)
    c = u @ e
    grown = np.cosh(delta) + c * np.sinh(delta)
    return (u + (np.sinh(delta) + c * (np.cosh(delta) - 1)) * e) / grown, (len(u) - 1) * np.log(grown)


def oracle_trajectory(q, u, step, steps, factor, shares):
    """Position, direction and change of energy."""
    first = oracle_value_and_gradient(q)[0]
    kinetic = 0.0
    for _ in range(steps):
        for index, share in enumerate(shares):
            if index:
                q = q + step / (len(shares) - 1) * factor @ u
            u, more = oracle_turn(u, factor.T @ oracle_value_and_gradient(q)[1], share * step)
            kinetic += more
    return q, u, kinetic - oracle_value_and_gradient(q)[0] + first


def point_at(flat, metric, position, direction):
    state = hamiltonian.init(as_log_density(log_density, "test"), metric, position, "test")
    return hamiltonian.start(flat, metric, direction, state)


def trajectory(position, direction, step, steps, integrator="mclachlan", matrix=1.0):
    """The last point and the change of energy of our integrator."""
    metric = as_metric(matrix, "test").astype(position.dtype)
    flat = hamiltonian.flatten(as_log_density(log_density, "test"), position)
    first = point_at(flat, metric, position, direction)
    step = jnp.asarray(step, position.dtype)

    def further(_, carry):
        point, kinetic = carry
        point, more = isokinetic.integrate(flat, metric, point, step, isokinetic.KICKS[integrator])
        return point, kinetic + more

    last, kinetic = jax.lax.fori_loop(0, steps, further, (first, jnp.zeros((), position.dtype)))
    return last, kinetic - last.log_density + first.log_density


def unit(rng, size=SIZE):
    vector = rng.normal(size=size)
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("integrator", ["mclachlan", "leapfrog"])
def test_a_step_is_that_of_a_numpy_chain(integrator, x64, rng):
    step, length = 0.7, 1.5
    kernel = mcmc.mclmc(log_density, step, length, MATRIX, integrator=integrator)
    state = kernel.init(jnp.asarray(rng.normal(size=SIZE)), jax.random.key(0))
    for index in range(3):
        new, info = kernel.step(core.fold(jax.random.key(1), index), state)
        noise = np.asarray(jax.random.normal(core.fold(jax.random.key(1), index), (SIZE,), jnp.float64))
        u = np.exp(-step / length) * np.asarray(state.direction)
        u = u + np.sqrt((1 - np.exp(-2 * step / length)) / SIZE) * noise
        u /= np.linalg.norm(u)
        factor = np.linalg.cholesky(MATRIX)
        q, u, change = oracle_trajectory(np.asarray(state.position), u, step, 1, factor, SHARES[integrator])
        np.testing.assert_allclose(new.position, q, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(new.direction, u, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(info.energy_change, change, rtol=1e-9, atol=1e-11)
        assert int(info.num_steps) == {"mclachlan": 2, "leapfrog": 1}[integrator]
        state = new


@pytest.mark.parametrize("integrator", ["mclachlan", "leapfrog"])
def test_an_adjusted_transition_is_that_of_a_numpy_chain(integrator, x64, rng):
    step, steps = {"mclachlan": 2.5, "leapfrog": 1.0}[integrator], 3
    kernel = mcmc.adjusted_mclmc(log_density, step, steps, MATRIX, integrator=integrator)
    state = kernel.init(jnp.asarray(rng.normal(size=SIZE)), jax.random.key(0))
    decisions = set()
    for index in range(12):
        new, info = kernel.step(core.fold(jax.random.key(1), index), state)
        keys = jax.random.split(core.fold(jax.random.key(1), index), 3)
        u = np.asarray(jax.random.normal(keys[0], (SIZE,), jnp.float64))
        uniform = float(jax.random.uniform(keys[1], (), jnp.float64))
        q = np.asarray(state.position)
        factor = np.linalg.cholesky(MATRIX)
        end, _, change = oracle_trajectory(q, u / np.linalg.norm(u), step, steps, factor, SHARES[integrator])
        accepted = uniform < np.exp(-change)
        decisions.add(bool(accepted))
        np.testing.assert_allclose(new.position, end if accepted else q, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(info.acceptance_rate, min(1, np.exp(-change)), rtol=1e-8)
        assert int(info.num_steps) == steps * {"mclachlan": 2, "leapfrog": 1}[integrator]
        state = new
    assert decisions == {True, False}


def test_numbers_of_steps_are_drawn_evenly():
    kernel = mcmc.adjusted_mclmc(lambda q: -0.5 * jnp.sum(q**2), 0.5, (2, 5), integrator="leapfrog")
    state = kernel.init(jnp.ones(3), jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4000)
    numbers = np.asarray(jax.vmap(lambda key: kernel.step(key, state)[1].num_steps)(keys))
    seen = np.bincount(numbers, minlength=6)
    assert seen[:2].sum() == 0
    assert scipy.stats.chisquare(seen[2:]).pvalue > 1e-6  # false alarm 1e-6


@pytest.mark.parametrize("integrator", ["mclachlan", "leapfrog"])
def test_the_way_back_is_the_way_there(integrator, x64, rng):
    position, direction = jnp.asarray(rng.normal(size=SIZE)), jnp.asarray(unit(rng))
    there, change = trajectory(position, direction, 0.4, 20, integrator, MATRIX)
    back, gone = trajectory(there.position, -there.momentum, 0.4, 20, integrator, MATRIX)
    assert float(jnp.max(jnp.abs(there.position - position))) > 0.1
    np.testing.assert_allclose(back.position, position, atol=1e-10)
    np.testing.assert_allclose(-back.momentum, direction, atol=1e-10)
    np.testing.assert_allclose(gone, -change, atol=1e-10)


@pytest.mark.parametrize("integrator", ["mclachlan", "leapfrog"])
def test_energy_errors_fall_with_the_step_size(integrator, x64, rng):
    """As h^3 in a step, as h^2 over a time: the mean squares of 200 trajectories, order from halving twice."""
    positions = jnp.asarray(rng.normal(size=(200, SIZE)))
    directions = jnp.asarray(np.stack([unit(rng) for _ in range(200)]))

    def error(step, steps):
        run = jax.jit(jax.vmap(lambda q, u: trajectory(q, u, step, steps, integrator)[1]))
        return np.sqrt(np.mean(np.asarray(run(positions, directions)) ** 2))

    one = np.log2(error(0.02, 1) / error(0.005, 1)) / 2
    assert 2.9 < one < 3.1
    time = np.log2(error(0.04, 25) / error(0.01, 100)) / 2
    assert 1.9 < time < 2.1


def test_kinetic_energy_is_minus_the_log_of_the_change_of_volume(x64, rng):
    """The turn of a direction, extended to R^n by its length: the determinant is that on the sphere."""
    for strength in (0.01, 1.0, 5.0):
        direction, force = unit(rng, 5), strength * rng.normal(size=5)

        def extended(u, force=force):
            length = jnp.sqrt(jnp.sum(u**2))
            return length * isokinetic._turn(u / length, jnp.asarray(force), jnp.asarray(1.3))[0]

        sign, log_determinant = np.linalg.slogdet(np.asarray(jax.jacfwd(extended)(jnp.asarray(direction))))
        kinetic = float(isokinetic._turn(jnp.asarray(direction), jnp.asarray(force), jnp.asarray(1.3))[1])
        assert sign > 0
        np.testing.assert_allclose(log_determinant, -kinetic, rtol=1e-9, atol=1e-12)


def oracle_kinetic(u, force, time):
    """In logarithms and extended precision: nothing overflows."""
    u, force = u.astype(np.longdouble), force.astype(np.longdouble)
    norm = np.sqrt(np.sum(force**2))
    e, delta = force / norm, time * norm / (len(u) - 1)
    half = np.sum((u / np.sqrt(u @ u) + e) ** 2) / 4
    with np.errstate(divide="ignore"):
        return float((len(u) - 1) * np.logaddexp(np.log(half) + delta, np.log1p(-half) - delta))


@pytest.mark.parametrize("strength", [1e-38, 1e-30, 1e-10, 1e-3, 1.0, 30.0, 1e3, 1e10, 1e30])
@pytest.mark.parametrize("along", [None, 1.0, -1.0])
def test_turns_in_float32_for_every_size_of_a_force(strength, along, rng):
    u = unit(rng).astype(np.float32)
    pull = unit(rng) if along is None else along * u + 1e-4 * unit(rng)
    force = (strength * pull).astype(np.float32)
    turned, kinetic = isokinetic._turn(jnp.asarray(u), jnp.asarray(force), jnp.float32(0.5))
    assert turned.dtype == kinetic.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(np.asarray(turned, float)), 1, rtol=1e-6)
    expected = oracle_kinetic(u, force, 0.5)
    # Against a pull 1e-4 from opposite, 1 + c is known to 1e-3 of itself only.
    np.testing.assert_allclose(kinetic, expected, rtol=1e-5, atol=3e-7 if along != -1 else 1e-2)
    if strength >= 1e3:
        np.testing.assert_allclose(turned, force / np.linalg.norm(force.astype(np.float64)), atol=1e-5)
    if strength <= 1e-10:
        np.testing.assert_allclose(turned, u, atol=1e-6)


@pytest.mark.parametrize("force", [0.0, np.nan, np.inf, 1e-45])
def test_no_force_and_no_number_leave_the_direction(force, rng):
    u = jnp.asarray(unit(rng), jnp.float32)
    turned, kinetic = isokinetic._turn(u, jnp.full((SIZE,), force, jnp.float32), jnp.float32(0.5))
    np.testing.assert_allclose(turned, u, atol=2e-7)
    assert float(kinetic) == 0


def test_straight_against_a_great_force_is_an_equilibrium():
    u = jnp.array([1.0, 0.0], jnp.float32)
    turned, kinetic = isokinetic._turn(u, jnp.array([-1e6, 0.0], jnp.float32), jnp.float32(1.0))
    np.testing.assert_array_equal(turned, u)
    np.testing.assert_allclose(kinetic, -1e6)


def test_float32_and_float64_agree(x64, rng):
    position, direction = rng.normal(size=SIZE), unit(rng)
    wide, narrow = (
        trajectory(jnp.asarray(position, dtype), jnp.asarray(direction, dtype), 0.5, 10)
        for dtype in (jnp.float64, jnp.float32)
    )
    assert narrow[0].position.dtype == narrow[1].dtype == jnp.float32
    np.testing.assert_allclose(narrow[0].position, wide[0].position, atol=2e-5)
    np.testing.assert_allclose(narrow[0].momentum, wide[0].momentum, atol=2e-5)
    np.testing.assert_allclose(narrow[1], wide[1], atol=2e-5)


def test_low_precision_positions_work_in_float32():
    kernel = mcmc.mclmc(lambda q: -0.5 * jnp.sum(q * q), 0.5, 2.0)
    state = kernel.init(jnp.ones(3, jnp.bfloat16), jax.random.key(0))
    new, info = kernel.step(jax.random.key(1), state)
    assert new.position.dtype == jnp.bfloat16
    assert new.direction.dtype == info.energy_change.dtype == jnp.float32


def second_moments(kernel, starts, scales, steps, seed):
    """Of each chain (chain, size), in units of the truth, and the mean squared energy change of each."""
    chains = len(starts)

    @jax.jit
    @jax.vmap
    def run(key, position):
        def body(index, carry):
            state, total, squares = carry
            state, info = kernel.step(core.fold(key, index + 1), state)
            return state, total + (state.position / scales) ** 2, squares + info.energy_change**2

        state = kernel.init(position, core.fold(key, 0))
        start = state, jnp.zeros_like(position), jnp.float32(0)
        return jax.lax.fori_loop(0, steps, body, start)[1:]

    moments, squares = run(jax.random.split(jax.random.key(seed), chains), starts)
    return np.asarray(moments) / steps, np.asarray(squares) / steps


def test_the_bias_falls_with_the_square_of_the_step_size(rng):
    """Second moments of a standard normal in 8 dimensions, with leapfrog, whose bias is the larger one.

    Measured 0.011, 0.049 and 0.23 for steps of 1, 2 and 4. That the order is between 1.5 and 2.5 is known to 5 standard
    errors (a false alarm would take one in 1e6).
    """
    starts = jnp.asarray(rng.normal(size=(1024, 8)), jnp.float32)

    def bias(step):
        kernel = mcmc.mclmc(lambda q: -0.5 * jnp.sum(q * q), step, 8**0.5, integrator="leapfrog")
        moments = second_moments(kernel, starts, jnp.ones(8), int(1000 / step), 3)[0].mean(axis=1) - 1
        return moments.mean(), moments.std(ddof=1) / np.sqrt(len(moments))

    (one, one_error), (two, two_error), (four, four_error) = (bias(step) for step in (1.0, 2.0, 4.0))
    assert one > 5 * one_error
    assert two - one > 5 * np.hypot(one_error, two_error)
    assert four - 2**1.5 * two > 5 * np.hypot(four_error, 2**1.5 * two_error)
    assert 2**2.5 * two - four > 5 * np.hypot(four_error, 2**2.5 * two_error)


BOTH = core.Shared(0, None)
SCALES = np.geomspace(0.1, 10, 50).astype(np.float32)


def wide_gaussian(q):
    return -0.5 * jnp.sum((q / jnp.asarray(SCALES, q.dtype)) ** 2)


def warmed(tuning, starts, num_steps, seed=2):
    chains = len(starts)
    init = jax.vmap(tuning.init, out_axes=BOTH, axis_name="chain")
    step = jax.vmap(tuning.step, in_axes=(0, BOTH), out_axes=(BOTH, 0), axis_name="chain")

    @jax.jit
    def run(state):
        def body(index, state):
            return step(jax.random.split(core.fold(jax.random.key(seed), index), chains), state)[0]

        return jax.lax.fori_loop(0, num_steps, body, state)

    return run(init(starts, jax.random.split(jax.random.key(1), chains)))


@pytest.mark.parametrize(
    ("metric", "chains", "integrator", "bias"),
    [
        ("diagonal", 16, "mclachlan", 0.03),
        ("diagonal", 1, "mclachlan", 0.03),
        ("diagonal", 16, "leapfrog", 0.05),
        (None, 16, "mclachlan", 0.03),
    ],
)
def test_second_moments_are_right_after_warm_up(metric, chains, integrator, bias, rng):
    """50 scales from 0.1 to 10. The bias, averaged over coordinates, is known to far less than its bound.

    Each coordinate's own is within its bound and 5.5 standard errors (Student t, 63: false alarm 8e-7 each).
    """
    starts = jnp.asarray(3 * rng.normal(size=(chains, 50)), jnp.float32)
    tuning = mcmc.mclmc_warmup(wide_gaussian, num_steps=1000, metric=metric, axis_name="chain", integrator=integrator)
    state = warmed(tuning, starts, 1000)
    shared = state.shared
    if metric == "diagonal":
        np.testing.assert_allclose(shared.metric.factor / SCALES, 1, rtol=1e-3)  # exact for a diagonal Gaussian
        assert 0.7 * 50**0.5 < float(shared.trajectory_length) < 1.3 * 50**0.5
    else:
        np.testing.assert_array_equal(shared.metric.factor, 1)
        assert 0.5 < float(shared.trajectory_length) / np.sqrt(np.sum(SCALES**2)) < 1.5
    exact = jnp.asarray(SCALES * rng.normal(size=(64, 50)), jnp.float32)
    moments, squares = second_moments(tuning.finish(state), exact, jnp.asarray(SCALES), 1500, 5)
    overall = moments.mean(axis=1)
    assert overall.std(ddof=1) / 8 < 0.01
    assert abs(overall.mean() - 1) < bias
    error = moments.std(axis=0, ddof=1) / 8
    assert (np.abs(moments.mean(axis=0) - 1) < bias + 5.5 * error).all()
    assert 0.4 < squares.mean() / 50 / 5e-4 < 2.5  # the variance that was asked for


def test_warm_up_in_few_steps_tunes_the_step_size_alone():
    state = warmed(mcmc.mclmc_warmup(wide_gaussian, num_steps=5, axis_name="chain"), jnp.ones((2, 50)), 8)
    assert int(state.shared.transitions) == 5
    np.testing.assert_array_equal(state.shared.metric.factor, 1)
    assert 0 < float(state.shared.step_size) < 7


def test_warm_up_recovers_from_holes():
    """A density that is nowhere but in a ball: steps that end outside make steps smaller, and not for ever."""

    def ball(q):
        return jnp.where(jnp.sum(q * q) < 9, -0.5 * jnp.sum(q * q), -jnp.inf)

    state = warmed(mcmc.mclmc_warmup(ball, num_steps=600, axis_name="chain"), jnp.full((4, 3), 0.5), 600)
    assert 0.1 < float(state.shared.step_size) < 10
    assert np.isfinite(np.asarray(state.chain.kernel.log_density)).all()


def test_warm_up_on_devices_is_that_on_one():
    tuning = mcmc.mclmc_warmup(lambda q: -0.5 * jnp.sum((q / 2) ** 2), num_steps=120, axis_name=("devices", "chain"))
    starts = jnp.asarray(np.random.default_rng(3).normal(size=(8, 3)), jnp.float32)

    def run(positions, keys):
        both = partial(jax.vmap, axis_name="chain")
        state = both(tuning.init, out_axes=BOTH)(positions, jax.vmap(lambda key: core.fold(key, 0))(keys))

        def body(index, state):
            turn = jax.vmap(lambda key: core.fold(key, index + 1))(keys)
            return both(tuning.step, in_axes=(0, BOTH), out_axes=(BOTH, 0))(turn, state)[0]

        return jax.lax.fori_loop(0, 120, body, state)

    results = []
    for devices in (1, 8):
        mesh = jax.make_mesh((devices,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        spread = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(P("devices"), P("devices")),
            out_specs=core.Shared(P("devices"), P()),
            check_vma=False,
        )
        results.append(jax.jit(spread)(starts, jax.random.split(jax.random.key(0), 8)))
    one, eight = results
    np.testing.assert_allclose(eight.shared.step_size, one.shared.step_size, rtol=2e-2)
    np.testing.assert_allclose(eight.shared.metric.factor, one.shared.metric.factor, rtol=2e-2)


@pytest.mark.parametrize("target", [0.7, 0.9])
def test_warm_up_takes_the_adjusted_kernel_to_its_acceptance_rate(target, rng):
    """Within 0.1: at the mean of the log step sizes tried the rate is above the mean of their rates, which is tuned."""
    tuning = mcmc.warmup(
        mcmc.adjusted_mclmc,
        wide_gaussian,
        num_steps=400,
        target_acceptance=target,
        metric="diagonal",
        axis_name="chain",
        num_integration_steps=(1, 4),
    )
    state = warmed(tuning, jnp.asarray(SCALES * rng.normal(size=(8, 50)), jnp.float32), 400)
    kernel = tuning.finish(state)
    starts = jnp.asarray(SCALES * rng.normal(size=(64, 50)), jnp.float32)

    @jax.jit
    @jax.vmap
    def rates(key, position):
        def body(index, carry):
            state, total = carry
            state, info = kernel.step(core.fold(key, index + 1), state)
            return state, total + info.acceptance_rate

        return jax.lax.fori_loop(0, 200, body, (kernel.init(position, core.fold(key, 0)), jnp.float32(0)))[1] / 200

    rate = np.asarray(rates(jax.random.split(jax.random.key(7), 64), starts))
    assert rate.std(ddof=1) / 8 < 0.01
    assert abs(rate.mean() - target) < 0.1
    np.testing.assert_allclose(state.shared.metric.factor / SCALES, 1, rtol=0.1)


def test_one_call_tunes_both_kernels():
    """The adjusted one as `warmup` does, to an acceptance rate of 0.9 if nothing else is said; partials count."""
    adjusted = partial(mcmc.adjusted_mclmc, num_integration_steps=(1, 2))

    def first(tuning):
        return tuning.step(jax.random.key(1), tuning.init(jnp.ones(50), jax.random.key(0)))

    ours = first(mcmc.mclmc_warmup(wide_gaussian, kernel=adjusted, num_steps=30))
    theirs = mcmc.warmup(adjusted, wide_gaussian, num_steps=30, target_acceptance=0.9, metric="diagonal")
    jax.tree.map(np.testing.assert_array_equal, ours, first(theirs))
    options = {"num_steps": 30, "target_acceptance": 0.7, "metric": "dense"}
    given = mcmc.mclmc_warmup(wide_gaussian, kernel=adjusted, **options)
    theirs = mcmc.warmup(adjusted, wide_gaussian, **options)
    assert first(given)[0].shared.metric.factor.shape == (50, 50)
    jax.tree.map(np.testing.assert_array_equal, first(given), first(theirs))
    for options, gradients in (({"kernel": partial(mcmc.mclmc, integrator="leapfrog")}, 1), ({}, 2)):
        assert first(mcmc.mclmc_warmup(wide_gaussian, num_steps=30, **options))[1].num_steps == gradients


def test_a_chain_turns_back_at_a_hole_and_says_so():
    kernel = mcmc.mclmc(lambda q: jnp.where(q[0] < 0.5, -0.5 * jnp.sum(q * q), jnp.nan), 2.0, 1e6)
    state = kernel.init(jnp.zeros(3), jax.random.key(0))._replace(direction=jnp.array([1.0, 0.0, 0.0]))
    new, info = kernel.step(jax.random.key(1), state)
    assert bool(info.diverging)
    assert float(info.energy_change) == np.inf
    np.testing.assert_array_equal(new.position, state.position)
    np.testing.assert_allclose(new.direction, -state.direction, atol=1e-2)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: mcmc.mclmc(3, 0.1, 1.0), TypeError, "mclmc: log_density"),
        (lambda: mcmc.mclmc(log_density, 0.0, 1.0), ValueError, "mclmc: step_size"),
        (lambda: mcmc.mclmc(log_density, 0.1, -1.0), ValueError, "mclmc: trajectory_length"),
        (lambda: mcmc.mclmc(log_density, 0.1, 1.0, -1.0), ValueError, "mclmc: inverse_mass_matrix"),
        (lambda: mcmc.mclmc(log_density, 0.1, 1.0, integrator="euler"), ValueError, "mclmc: integrator"),
        (
            lambda: mcmc.mclmc(jnp.sum, 0.1, 1.0).init(jnp.ones(1), jax.random.key(0)),
            ValueError,
            "position is of 1 scalars; expected two or more",
        ),
        (
            lambda: mcmc.adjusted_mclmc(jnp.sum, 0.1, 1).init(jnp.float32(1.0), jax.random.key(0)),
            ValueError,
            "position is of 1 scalars; expected two or more",
        ),
        (lambda: mcmc.adjusted_mclmc(log_density, 0.1, 0), ValueError, "num_integration_steps"),
        (lambda: mcmc.adjusted_mclmc(log_density, 0.1, (3, 2)), ValueError, "num_integration_steps"),
        (lambda: mcmc.adjusted_mclmc(log_density, 0.1, 2.5), ValueError, "num_integration_steps"),
        (lambda: mcmc.mclmc_warmup(3), TypeError, "mclmc_warmup: log_density"),
        (lambda: mcmc.mclmc_warmup(log_density, metric="dense"), ValueError, "mclmc_warmup: metric"),
        (lambda: mcmc.mclmc_warmup(log_density, num_steps=-1), ValueError, "mclmc_warmup: num_steps"),
        (
            lambda: mcmc.mclmc_warmup(log_density, desired_energy_variance=0.0),
            ValueError,
            "mclmc_warmup: desired_energy_variance",
        ),
        (
            lambda: mcmc.mclmc_warmup(log_density, kernel=mcmc.adjusted_mclmc, desired_energy_variance=1e-3),
            ValueError,
            "mclmc_warmup: desired_energy_variance is 0.001 for an adjusted kernel; expected None",
        ),
        (
            lambda: mcmc.mclmc_warmup(log_density, kernel=mcmc.adjusted_mclmc, metric=None),
            ValueError,
            "mclmc_warmup: metric is None for an adjusted kernel; expected one that warmup knows",
        ),
        (lambda: mcmc.mclmc_warmup(log_density, kernel=mcmc.elliptical_slice), ValueError, "warmup: kernel is ellip"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()
