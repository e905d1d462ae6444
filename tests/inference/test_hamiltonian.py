"""Hamiltonian kernels: HMC against NumPy, and laws that one transition from an exact draw must leave as they are."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import core
from jaxprob.inference import mcmc
from tests.inference._quartic import numpy_density, numpy_gradient, quartic


@pytest.mark.parametrize("metric", ["scalar", "diagonal", "dense"])
def test_a_transition_of_hmc_is_that_of_numpy(metric, x64, rng):
    cases, size, steps = 100, 3, 5
    positions = rng.normal(size=(cases, size))
    sizes = np.exp(rng.uniform(np.log(0.02), np.log(1.0), cases))
    roots = rng.normal(size=(cases, size, size)) * 0.5 + np.eye(size)
    inverse_masses = {
        "scalar": rng.uniform(0.2, 2.0, cases),
        "diagonal": rng.uniform(0.2, 2.0, (cases, size)),
        "dense": roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(size),
    }[metric]

    def keys():
        return jax.random.split(jax.random.key(7), cases)

    @jax.jit
    @jax.vmap
    def ours(key, position, step, mass):
        kernel = mcmc.hmc(quartic, step, mass, num_integration_steps=steps)
        return kernel.step(key, kernel.init(position, key))

    states, infos = ours(keys(), positions, sizes, inverse_masses)
    whitened, uniforms = jax.jit(jax.vmap(lambda key: draws_of_a_transition(key, size)))(keys())
    moved = 0
    for case in range(cases):
        inverse = np.asarray(inverse_masses[case])
        inverse = inverse * np.eye(size) if inverse.ndim == 0 else np.diag(inverse) if inverse.ndim == 1 else inverse
        q = positions[case]
        p = np.linalg.solve(np.linalg.cholesky(inverse).T, np.asarray(whitened[case]))
        before = -numpy_density(q) + 0.5 * p @ inverse @ p
        for _ in range(steps):
            p = p + 0.5 * sizes[case] * numpy_gradient(q)
            q = q + sizes[case] * inverse @ p
            p = p + 0.5 * sizes[case] * numpy_gradient(q)
        after = -numpy_density(q) + 0.5 * p @ inverse @ p
        rate = min(1.0, np.exp(before - after)) if np.isfinite(after) else 0.0
        accepted = bool(float(uniforms[case]) < rate)
        moved += accepted
        np.testing.assert_allclose(infos.acceptance_rate[case], rate, rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(states.position[case], q if accepted else positions[case], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(states.log_density[case], numpy_density(states.position[case]), rtol=1e-9)
        np.testing.assert_allclose(states.log_density_gradient[case], numpy_gradient(states.position[case]), atol=1e-8)
        assert infos.diverging[case] == (not after - before < 1000)
    assert 20 < moved < cases


def draws_of_a_transition(key, size):
    """What `hmc` draws from a key: a whitened momentum and a uniform."""
    momentum_key, uniform_key = jax.random.split(key)
    return jax.random.normal(momentum_key, (size,), "float64"), jax.random.uniform(uniform_key, (), "float64")


# Exactness. Chains start from independent draws of the target; after any number of transitions they still are that,
# whatever the step size, the metric or the depth of the trees, and however many trajectories diverge.
CHAINS = 20_000
CORRELATION = 0.8


def mixed(position):
    """log Gamma(2, 1), a correlated Gaussian and a Student t with 4 degrees of freedom."""
    a, (x, y), t = position["a"], position["b"], position["t"]
    gaussian = -0.5 * (x**2 - 2 * CORRELATION * x * y + y**2) / (1 - CORRELATION**2)
    return 2 * a - jnp.exp(a) + gaussian - 2.5 * jnp.log1p(t**2 / 4)


def exact_draws(rng):
    b = rng.normal(size=(CHAINS, 2))
    b[:, 1] = CORRELATION * b[:, 0] + np.sqrt(1 - CORRELATION**2) * b[:, 1]
    draws = {"a": np.log(rng.gamma(2.0, size=CHAINS)), "b": b, "t": rng.standard_t(4, size=CHAINS)}
    return {name: jnp.asarray(x, jnp.float32) for name, x in draws.items()}


def transitions(kernel, starts, number=3):
    def chain(key, position):
        def step(state, index):
            return kernel.step(core.fold(key, index), state)

        return jax.lax.scan(step, kernel.init(position, key), jnp.arange(number))

    keys = jax.random.split(jax.random.key(11), len(jax.tree.leaves(starts)[0]))
    return jax.jit(jax.vmap(chain))(keys, starts)


DENSE = np.array([[1.0, 0.5, 0, 0.2], [0.5, 2, 0, 0], [0, 0, 0.7, 0.1], [0.2, 0, 0.1, 1.5]], np.float32)
KERNELS = {
    "nuts": partial(mcmc.nuts, step_size=0.4),
    "nuts, dense": partial(mcmc.nuts, step_size=0.4, inverse_mass_matrix=DENSE),
    "nuts, coarse": partial(mcmc.nuts, step_size=0.75, inverse_mass_matrix=np.array([1.0, 0.5, 1.5, 2.0], np.float32)),
    "nuts, cut short": partial(mcmc.nuts, step_size=0.15, max_tree_depth=2),
    "hmc": partial(mcmc.hmc, step_size=0.3, num_integration_steps=6),
    "hmc, dense and coarse": partial(
        mcmc.hmc, step_size=0.6, inverse_mass_matrix=DENSE, num_integration_steps=3
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_draws_of_the_target_stay_draws_of_the_target(name, rng):
    """Four Kolmogorov-Smirnov tests and five moments a kernel: false alarms below 1e-5 each."""
    starts = exact_draws(rng)
    states, infos = transitions(KERNELS[name](mixed), starts)
    after = jax.tree.map(lambda x: np.asarray(x, float), states.position)
    laws = {
        "a": (np.exp(after["a"]), scipy.stats.gamma(2)),
        "x": (after["b"][:, 0], scipy.stats.norm),
        "y": (after["b"][:, 1], scipy.stats.norm),
        "t": (after["t"], scipy.stats.t(4)),
    }
    for values, law in laws.values():
        assert scipy.stats.kstest(values, law.cdf).pvalue > 1e-5
    # And they hang together as they should: a pair that is correlated, and pairs that are not.
    scores = {
        key: scipy.stats.norm.ppf(np.clip(law.cdf(values), 1e-9, 1 - 1e-9)) for key, (values, law) in laws.items()
    }
    for one, two, expected in (("x", "y", CORRELATION), ("a", "x", 0), ("a", "t", 0), ("x", "t", 0), ("y", "a", 0)):
        error = np.std(scores[one] * scores[two]) / np.sqrt(CHAINS)
        assert abs(np.mean(scores[one] * scores[two]) - expected) < 4.5 * error
    changed = np.mean(np.asarray(states.position["t"] != starts["t"]))
    assert changed > 0.5
    if "coarse" in name:
        assert np.mean(np.asarray(infos.acceptance_rate)) < 0.8  # the test is about errors of the integrator too


@pytest.mark.parametrize("kernel", [mcmc.nuts, mcmc.hmc])
def test_a_wall_of_minus_infinity_is_never_crossed(kernel, rng):
    """An exponential law on (0, inf), untransformed: false alarms below 1e-5."""
    starts = jnp.asarray(rng.exponential(size=CHAINS), jnp.float32)
    states, infos = transitions(kernel(lambda x: jnp.where(x > 0, -x, -jnp.inf), step_size=0.5), starts)
    assert bool((states.position > 0).all())
    assert scipy.stats.kstest(np.asarray(states.position, float), "expon").pvalue > 1e-5
    assert bool(infos.diverging.any())
    assert bool(jnp.isfinite(infos.acceptance_rate).all())


def test_a_wrong_kernel_would_be_seen(rng):
    """The test of exactness has the power to see an acceptance that is left out."""
    wrong = mcmc.hmc(lambda q: mixed(q) * 1.4, 0.3, num_integration_steps=6)
    states, _ = transitions(wrong, exact_draws(rng))
    assert scipy.stats.kstest(np.asarray(states.position["b"][:, 0], float), "norm").pvalue < 1e-5


@pytest.mark.parametrize("kernel", [mcmc.nuts, mcmc.hmc])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(kernel, dtype, x64):
    algorithm = kernel(lambda q: -0.5 * jnp.sum(q["a"] ** 2), step_size=0.5)
    position = {"a": jax.ShapeDtypeStruct((3,), dtype)}
    state = jax.eval_shape(algorithm.init, position, jax.random.key(0))
    after, info = jax.eval_shape(algorithm.step, jax.random.key(0), state)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert after.position["a"].dtype == dtype
    working = "float32" if dtype == "bfloat16" else dtype
    assert {str(x.dtype) for x in info if jnp.issubdtype(x.dtype, jnp.floating)} == {working}
    assert all(x.shape == () for x in info)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mcmc.hmc(quartic, num_integration_steps=0), "hmc: num_integration_steps is 0; expected"),
        (lambda: mcmc.hmc(quartic, step_size=-1.0), "hmc: step_size is"),
        (lambda: mcmc.nuts(quartic, step_size=np.nan), "nuts: step_size is"),
        (lambda: mcmc.nuts(quartic, max_tree_depth=0), "nuts: max_tree_depth is 0; expected an integer from 1 to 20"),
        (lambda: mcmc.nuts(quartic, inverse_mass_matrix=np.array([1.0, -1.0])), "not positive definite"),
        (lambda: mcmc.nuts(quartic, inverse_mass_matrix=np.ones((2, 3))), "a scalar, a vector or a square matrix"),
        (
            lambda: mcmc.nuts(quartic, 0.1, np.ones(2)).init(jnp.ones(3), jax.random.key(0)),
            r"of shape \(2,\); expected",
        ),
        (lambda: mcmc.nuts(lambda q: q).init(jnp.ones(3), jax.random.key(0)), "one floating-point number"),
    ],
)
def test_bad_arguments_give_one_line(call, words):
    with pytest.raises(ValueError, match=words):
        call()
