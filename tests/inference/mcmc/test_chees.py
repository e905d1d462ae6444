"""ChEES and SNAPER: slopes and transitions against NumPy, what is learnt against theory, chains on any devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxprob import analysis, core
from jaxprob.inference import mcmc
from jaxprob.inference.mcmc import _chees, _jittered
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import Metric

POOLED = core.Shared(0, None)
BOTH = pytest.mark.parametrize("make", [mcmc.chees, mcmc.snaper])


def mirrored(index):
    return int(f"{index:032b}"[::-1], 2) / 2**32


def test_van_der_corput():
    for index in (1, 2, 3, 6, 7, 100, 12345, 2**31 - 1):
        np.testing.assert_allclose(_jittered.van_der_corput(jnp.int32(index)), mirrored(index), atol=2**-24)


def skewed(q):
    return -0.5 * jnp.sum(q["a"] ** 2) - jnp.exp(q["b"]) + 2 * q["b"] - 0.4 * q["a"][0] * q["b"]


def test_a_transition_is_that_of_plain_numpy(x64):
    factor, step, length = np.array([0.5, 2.0, 1.0]), 0.7, 3.1
    kernel = _jittered.jittered_hmc(
        as_log_density(skewed, "test"), jnp.float64(step), Metric(jnp.asarray(factor)), jnp.float64(length), 4, "test"
    )
    tree = {"a": jnp.array([1.0, -0.3]), "b": jnp.float64(0.2)}
    state, x = kernel.init(tree, jax.random.key(0)), np.array([1.0, -0.3, 0.2])

    def density(x):
        return -0.5 * (x[0] ** 2 + x[1] ** 2) - np.exp(x[2]) + 2 * x[2] - 0.4 * x[0] * x[2]

    def gradient(x):
        return np.array([-x[0] - 0.4 * x[2], -x[1], 2 - np.exp(x[2]) - 0.4 * x[0]])

    rates, numbers = [], []
    for index in range(12):
        number = min(max(int(np.ceil(mirrored(index + 1) * length / step)), 1), 4)
        momentum_key, uniform_key = jax.random.split(jax.random.key(index))
        z = np.asarray(jax.random.normal(momentum_key, (3,), jnp.float64))
        y, start = x, 0.5 * z @ z - density(x)
        for _ in range(number):
            z = z + 0.5 * step * factor * gradient(y)
            y = y + step * factor * z
            z = z + 0.5 * step * factor * gradient(y)
        energy = 0.5 * z @ z - density(y)
        if float(jax.random.uniform(uniform_key, (), jnp.float64)) < np.exp(start - energy):
            x = y
        state, info = kernel.step(jax.random.key(index), state)
        np.testing.assert_allclose(core.ravel(state.position)[0], x, rtol=1e-9)
        np.testing.assert_allclose(info.acceptance_rate, min(1, np.exp(start - energy)), rtol=1e-9)
        assert info.num_steps == number
        assert state.transitions == index + 1
        rates.append(float(info.acceptance_rate))
        numbers.append(number)
    assert np.mean(rates) < 0.95
    assert set(numbers) == {1, 2, 3, 4}


def test_chains_share_one_loop():
    """The condition of the mapped loop is one number; chains out of step with each other get theirs all the same."""
    kernel = _jittered.jittered_hmc(
        as_log_density(skewed, "test"), jnp.float32(0.4), Metric(jnp.float32(1)), jnp.float32(3), 100, "test"
    )
    starts = {"a": jnp.ones((8, 2)), "b": jnp.linspace(-1, 1, 8)}
    states = jax.vmap(kernel.init)(starts, jax.random.split(jax.random.key(0), 8))
    states = states._replace(transitions=jnp.arange(8, dtype=jnp.int32))
    program = jax.make_jaxpr(jax.vmap(kernel.step))(jax.random.split(jax.random.key(1), 8), states)
    assert "while" in str(program)
    assert "reduce_or" not in str(program)  # what a condition a chain would be reduced by
    together, info = jax.vmap(kernel.step)(jax.random.split(jax.random.key(1), 8), states)
    assert len(set(info.num_steps.tolist())) > 4
    for index in range(8):
        key = jax.random.split(jax.random.key(1), 8)[index]
        alone, _ = kernel.step(key, jax.tree.map(lambda x, index=index: x[index], states))
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b[index], rtol=1e-4, atol=1e-5)


def test_slopes_are_those_of_the_criteria(x64, rng):
    """Finite differences of the criteria along exact trajectories of a standard normal."""
    x, z, h = rng.normal(size=(6, 4)), rng.normal(size=(6, 4)), rng.uniform(0.2, 1, 6)
    unit, step = np.array([0.5, -0.5, 0.1, 0.7]), 0.3
    unit = unit / np.linalg.norm(unit)

    def ends(length):
        angle = (h * length)[:, None]
        return x * np.cos(angle) + z * np.sin(angle), z * np.cos(angle) - x * np.sin(angle)

    def squared(length):
        return 0.25 * ((ends(length)[0] ** 2).sum(1) - (x**2).sum(1)) ** 2

    def along(length):
        return ((ends(length)[0] @ unit) ** 2 - (x @ unit) ** 2) ** 2 / (length + step)

    length, small = 1.7, 1e-5
    moves = _chees._Moves(*(jnp.asarray(a) for a in (x, *ends(length), h)))
    for slopes, criterion in (
        (_chees._chees_slopes(moves, jnp.float64(length)), squared),
        (_chees._snaper_slopes(moves, jnp.asarray(unit), jnp.float64(length), jnp.float64(step)), along),
    ):
        up, down = criterion(length * np.exp(small)), criterion(length * np.exp(-small))
        np.testing.assert_allclose(slopes, (up - down) / (2 * small), rtol=1e-6, atol=1e-8)


def run_pooled(tuning, key, num_steps, positions):
    chains = len(jax.tree.leaves(positions)[0])
    state = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")(positions, jax.random.split(key, chains))

    def body(state, index):
        keys = jax.vmap(lambda chain: core.fold(key, chain, index))(jnp.arange(chains))
        step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")
        state, info = step(keys, state)
        return state, (core.position_of(state), info)

    return jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(num_steps)))(state)


def expected_length(make, step):
    """Where the mean slope is zero on a standard normal: jitter uniform, numbers of steps rounded up.

    Of the squares, the criterion after time t is proportional to sin(t)^2, its derivative to sin(2 t).
    """
    h = (np.arange(20_000) + 0.5) / 20_000

    def slope(length):
        t = np.ceil(h * length / step) * step
        if make is mcmc.chees:
            return np.mean(h * np.sin(2 * t))
        return np.mean(h * np.sin(2 * t) - np.sin(t) ** 2 / (length + step))

    return scipy.optimize.brentq(slope, 0.5, 3.5)


@BOTH
def test_the_trajectory_length_of_an_isotropic_gaussian(make):
    """Within 15 % of the stationary point; without rounding it is 2.25 (a mean of 1.12) for the squared distance."""
    scale = 3.0
    tuning = make(
        lambda q: -0.5 * jnp.sum(q * q) / scale**2,
        num_steps=1000,
        target_acceptance=0.98,
        metric="identity",
        axis_name="chain",
    )
    state, _ = run_pooled(tuning, jax.random.key(1), 1000, jax.random.normal(jax.random.key(0), (64, 5)))
    length, step = float(state.shared.trajectory_length) / scale, float(state.shared.step_size) / scale
    expected = expected_length(make, step)
    assert abs(length / expected - 1) < 0.15
    if make is mcmc.chees:
        np.testing.assert_allclose(expected_length(make, 1e-4), 2.2467, rtol=1e-3)  # tan(2 T) = 2 T


SCALES = np.geomspace(0.1, 10, 100)


def wide_gaussian(q):
    return -0.5 * jnp.sum((q / jnp.asarray(SCALES, q.dtype)) ** 2)


def z_scores(draws):
    """Of means and squares of standardised draws (draw, chain, size), by the chains' own means."""
    of_chains = np.concatenate([draws.mean(axis=0), (draws**2).mean(axis=0) - 1], axis=1)
    return of_chains.mean(axis=0) / (of_chains.std(axis=0, ddof=1) / np.sqrt(len(of_chains)))


def least_per_gradient(draws, info):
    """The smallest effective sample size of a coordinate or its square, for each gradient."""
    x = jnp.moveaxis(jnp.asarray(draws[:, :, ::9]), 1, 0)
    sizes = jnp.minimum(analysis.effective_sample_size(x), analysis.effective_sample_size(x * x))
    return float(sizes.min()) / float(np.asarray(info.num_steps).sum())


def test_a_hundred_scales():
    """Tuned on 64 chains, then frozen: acceptance, moments, and effective draws for each gradient beside NUTS.

    Of 200 z-scores none is above 5.5 (false alarm 2e-4 x 1e-3). The harmonic mean of acceptances is within 0.08 of its
    target: dual averaging over the 240 transitions after the last window leaves about 0.05.
    """
    starts = jax.random.normal(jax.random.key(0), (64, 100))
    per_gradient = {}
    for make in (mcmc.chees, mcmc.snaper, partial(mcmc.warmup, mcmc.nuts, metric="diagonal")):
        tuning = make(wide_gaussian, num_steps=400, axis_name="chain")
        state, (draws, info) = run_pooled(tuning, jax.random.key(1), 800, starts)
        draws, info = np.asarray(draws[400:], float) / SCALES, jax.tree.map(lambda x: x[400:], info)
        scores = z_scores(draws)
        name = getattr(make, "__name__", "nuts")
        per_gradient[name] = least_per_gradient(draws, info)
        rates = np.asarray(info.acceptance_rate, float)
        assert np.abs(scores).max() < 5.5
        assert np.mean(scores**2) < 1.5
        if name == "nuts":
            continue
        harmonic = np.mean(64 / np.sum(1 / rates, axis=1))
        assert abs(harmonic - 0.651) < 0.08
        factor = np.asarray(state.shared.metric.factor)
        np.testing.assert_allclose(factor, SCALES, rtol=0.1)
        assert len(set(np.asarray(info.step_size).ravel().tolist())) == 1  # frozen
    assert per_gradient["chees"] > 0.5 * per_gradient["nuts"]
    assert per_gradient["snaper"] > 0.5 * per_gradient["nuts"]


def correlated(size, rng):
    vectors = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return vectors @ np.diag(np.geomspace(0.3, 3, size) ** 2) @ vectors.T


@BOTH
def test_a_correlated_gaussian(make, rng):
    covariance = correlated(10, rng)
    precision = jnp.asarray(np.linalg.inv(covariance), jnp.float32)

    def log_density(q):
        return -0.5 * jnp.sum(precision * jnp.expand_dims(q, 0) * jnp.expand_dims(q, 1))

    tuning = make(log_density, num_steps=400, axis_name="chain")
    state, (draws, _) = run_pooled(
        tuning, jax.random.key(4), 1000, jax.random.normal(jax.random.key(0), (64, 10)) * 0.1
    )
    whitened = np.asarray(draws[400:], float) @ np.linalg.inv(np.linalg.cholesky(covariance)).T
    scores = z_scores(whitened)
    assert np.abs(scores).max() < 5.5  # of 20: false alarm 2e-5
    factor = np.asarray(state.shared.metric.factor, float)
    values, vectors = np.linalg.eigh(covariance / np.outer(factor, factor))
    root = np.sqrt(values[-1])
    assert 0.7 < state.shared.trajectory_length / root < 2.8
    if make is mcmc.snaper:
        direction = np.asarray(state.shared.direction, float)
        assert abs(vectors[:, -1] @ direction) / np.linalg.norm(direction) > 0.97
        np.testing.assert_allclose(np.linalg.norm(direction), values[-1], rtol=0.25)


def small(q):
    return -0.5 * jnp.sum(q["a"] ** 2) - 2 * (q["b"] - q["a"][0]) ** 2


@BOTH
def test_devices_change_no_bit(make):
    """Sixteen chains on 1, 2 and 8 devices: every leaf of every state the same, through windows and beyond the end."""
    tuning, states = make(small, num_steps=45, axis_name=("devices", "chain")), []
    for devices in (1, 2, 8):
        mesh = jax.make_mesh((devices,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])
        local = 16 // devices
        step = jax.vmap(tuning.step, in_axes=(0, POOLED), out_axes=(POOLED, 0), axis_name="chain")

        def program(key, start, local=local, step=step):
            keys = core.chain_keys(key, jax.lax.axis_index("devices") * local + jnp.arange(local))

            def body(index, state):
                return step(jax.vmap(lambda key: core.fold(key, index))(keys), state)[0]

            init = jax.vmap(tuning.init, out_axes=POOLED, axis_name="chain")
            return jax.lax.fori_loop(0, 55, body, init(start, keys))

        specs = core.Shared(P("devices"), P())
        run = jax.shard_map(program, mesh=mesh, in_specs=(P(), P("devices")), out_specs=specs, check_vma=False)
        starts = {"a": jnp.linspace(-1, 1, 48).reshape(16, 3), "b": jnp.linspace(1, 2, 16)}
        states.append(jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(5), starts)))
    assert states[0].shared.windows >= 3
    assert states[0].shared.transitions == 45
    for other in states[1:]:
        jax.tree.map(np.testing.assert_array_equal, states[0], other)


@BOTH
def test_frozen_step_is_that_of_the_kernel(make):
    tuning = make(small, num_steps=30)
    state, step = tuning.init({"a": jnp.ones(3), "b": jnp.ones(())}, jax.random.key(0)), jax.jit(tuning.step)
    for index in range(30):
        state, _ = step(core.fold(jax.random.key(9), index), state)
    kernel = tuning.finish(state)
    plain, kernel_step = state.chain.kernel, jax.jit(kernel.step)
    for index in range(10):
        warm, info = step(core.fold(jax.random.key(1), index), state)
        plain, kernel_info = kernel_step(core.fold(jax.random.key(1), index), plain)
        close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
        jax.tree.map(close, (warm.chain.kernel, info), (plain, kernel_info))
        jax.tree.map(np.testing.assert_array_equal, warm.shared, state.shared)
        state = warm


@BOTH
def test_another_length_compiles_nothing(make):
    step = None
    for num_steps in (0, 1, 10, 1000):
        tuning = make(small, num_steps=num_steps)
        state = tuning.init({"a": jnp.ones(3), "b": jnp.ones(())}, jax.random.key(0))
        step = step or jax.jit(tuning.step)
        step(jax.random.key(1), state)
        tuning.finish(state)
    assert step._cache_size() == 1


@BOTH
def test_holes_and_rates_that_are_nan(make):
    """A target with a hole of NaN: nothing learnt is ever NaN."""

    def log_density(q):
        return jnp.where(q[0] < 0.5, -0.5 * jnp.sum(q * q), jnp.nan)

    tuning = make(log_density, num_steps=60, axis_name="chain")
    state, (draws, info) = run_pooled(
        tuning, jax.random.key(1), 80, -jnp.abs(jax.random.normal(jax.random.key(0), (8, 3)))
    )
    for leaf in jax.tree.leaves((state, draws, info.acceptance_rate)):
        assert np.isfinite(np.asarray(leaf, float)).all()
    assert (draws[..., 0] < 0.5).all()
    assert float(_chees._harmonic_mean(jnp.array([0.5, jnp.nan]))) == 0
    np.testing.assert_allclose(_chees._harmonic_mean(jnp.array([0.5, 1.0])), 2 / 3, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_state_is_a_pytree_of_one_dtype(make, dtype, x64):
    tuning = make(lambda q: -0.5 * jnp.sum(q * q), num_steps=30)
    state = jax.eval_shape(tuning.init, jax.ShapeDtypeStruct((2,), dtype), jax.random.key(0))
    after, info = jax.eval_shape(tuning.step, jax.random.key(0), state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(after)] == [(x.shape, x.dtype) for x in jax.tree.leaves(state)]
    floats = [x for x in jax.tree.leaves((state, info)) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {str(x.dtype) for x in floats} == {dtype}


@BOTH
def test_bad_arguments(make):
    name = make.__name__
    with pytest.raises(TypeError, match=f"{name}: log_density is 3"):
        make(3)
    for argument, value in (("num_steps", -1), ("max_num_steps", 0), ("target_acceptance", 1.0), ("metric", "dense")):
        with pytest.raises(ValueError, match=f"{name}: {argument} is {value!r}"):
            make(small, **{argument: value})
    with pytest.raises(ValueError, match=f"{name}: step_size is 0"):
        make(small, initial_step_size=0.0)
