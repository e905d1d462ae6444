"""A step size tuned without a metric: it reaches the acceptance wanted, for chains together, and then stands still."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core, scan
from jaxprob.inference import mcmc

CHAINS, SITES, LEVELS = 16, 40, 10
PLACES = np.random.default_rng(0).uniform(2, 7, SITES)


def density(x):
    """Rounded normals in a row, that pull at each other."""
    x = x.astype(jnp.result_type(float))
    near = jnp.sum((x[1:] - x[:-1]) ** 2)
    return -0.5 * jnp.sum((x - jnp.asarray(PLACES, x.dtype)) ** 2) / 1.5 - 0.2 * near


def tuning(num_steps=400, **options):
    options = {"num_categories": LEVELS, "target_acceptance": 0.55, "axis_name": "chain"} | options
    return mcmc.step_size_warmup(mcmc.discrete_langevin, density, num_steps=num_steps, **options)


def run(algorithm, key, steps):
    """All chains: the last state, and their acceptance rates (step, chain)."""
    axes = core.Shared(0, None)
    start = jnp.full((CHAINS, SITES), 5, jnp.int32)

    @jax.jit
    def chains(key):
        init = jax.vmap(algorithm.init, in_axes=(0, 0), out_axes=axes, axis_name="chain")
        step = jax.vmap(algorithm.step, in_axes=(0, axes), out_axes=(axes, 0), axis_name="chain")

        def one(state, index):
            state, info = step(jax.random.split(core.fold(key, index), CHAINS), state)
            return state, info.acceptance_rate

        state = init(start, jax.random.split(core.fold(key, steps), CHAINS))
        return scan.scan(one, state, jnp.arange(steps))

    return chains(key)


@pytest.mark.parametrize(("target", "first"), [(0.55, 0.2), (0.55, 50.0), (0.8, 0.01)])
def test_it_reaches_the_acceptance_wanted(target, first):
    """Sixteen chains, 600 transitions after the tuning.

    Over twelve keys the first two cases were off by 0.01 at most in the mean, with a standard deviation of 0.010: false
    alarms 1 in 10,000.
    """
    state, rates = run(tuning(target_acceptance=target, initial_step_size=first), jax.random.key(1), 1000)
    after = np.asarray(rates)[400:]
    assert abs(after.mean() - target) < 0.05
    assert int(state.shared.transitions) == 400


def test_it_then_is_the_kernel_as_tuned():
    """The same numbers as of `discrete_langevin` with the step size that was found."""
    warmup = tuning(50, axis_name=None)
    state = warmup.init(jnp.full(SITES, 5, jnp.int32), jax.random.key(0))
    state = jax.jit(
        lambda state: scan.repeat(lambda s, i: warmup.step(core.fold(jax.random.key(1), i), s)[0], state, 50)
    )(state)
    plain = mcmc.discrete_langevin(density, LEVELS, state.shared.step_size)
    on, _ = warmup.step(jax.random.key(2), state)
    then, _ = plain.step(jax.random.key(2), state.chain.kernel)
    finished, _ = warmup.finish(state).step(jax.random.key(2), state.chain.kernel)
    np.testing.assert_array_equal(core.position_of(on), then.position)
    np.testing.assert_array_equal(finished.position, then.position)
    assert float(on.shared.step_size) == float(state.shared.step_size)  # tuning stands still
    assert core.position_of(on).dtype == jnp.int32


def test_a_target_that_no_step_reaches_ends_finite():
    """On a flat density every step is accepted."""
    warmup = mcmc.step_size_warmup(mcmc.discrete_langevin, lambda x: 0.0 * jnp.sum(x.astype(float)), num_categories=2)
    state = warmup.init(jnp.zeros(3, jnp.int32), jax.random.key(0))
    run_all = jax.jit(lambda s: scan.repeat(lambda s, i: warmup.step(core.fold(jax.random.key(1), i), s)[0], s, 300))
    state = run_all(state)
    assert np.isfinite(float(state.shared.step_size))
    assert float(state.shared.step_size) > 100
    state, info = warmup.finish(state).step(jax.random.key(3), state.chain.kernel)
    assert float(info.acceptance_rate) == 1.0


def test_bad_arguments():
    for options, line in (
        ({"num_steps": -1}, "num_steps is -1; expected an integer of at least 0"),
        ({"target_acceptance": 1.0}, "target_acceptance is 1.0; expected a number between 0 and 1"),
        ({"initial_step_size": 0.0}, "initial_step_size is 0.0; expected one finite number above zero"),
    ):
        with pytest.raises(ValueError, match=f"^step_size_warmup: {line}"):
            tuning(**options)
    with pytest.raises(TypeError, match="^step_size_warmup: log_density is 3"):
        mcmc.step_size_warmup(mcmc.discrete_langevin, 3, num_categories=2)
