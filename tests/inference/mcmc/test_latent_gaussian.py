"""Latent Gaussian kernels: against NumPy, closed-form posteriors, limits, singular covariances, forms of the prior."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob import core
from jaxprob.inference import mcmc

SIZE, CASES = 3, 60
KERNELS = [
    mcmc.elliptical_slice,
    partial(mcmc.preconditioned_crank_nicolson, step_size=0.5),
    partial(mcmc.marginal_latent_gaussian, step_size=0.7),
]


def name_of(kernel):
    return getattr(kernel, "func", kernel).__name__


def log_likelihood(x):
    return -0.3 * jnp.sum(x**4) + 0.5 * jnp.sin(x[0] * x[1]) - 0.2 * (x[2] - 1) ** 2


def numpy_likelihood(x):
    return -0.3 * np.sum(x**4) + 0.5 * np.sin(x[0] * x[1]) - 0.2 * (x[2] - 1) ** 2


def numpy_slope(x):
    waves = 0.5 * np.cos(x[0] * x[1])
    return -1.2 * x**3 + np.array([waves * x[1], waves * x[0], -0.4 * (x[2] - 1)])


def normal(key):
    return np.asarray(jax.random.normal(key, (SIZE,), "float64"))


def ellipse_oracle(key, x, mean, covariance, step):
    """Murray, Adams & MacKay (2010), figure 2, in its words."""
    nu = np.linalg.cholesky(covariance) @ normal(core.fold(key, 0))
    log_y = numpy_likelihood(x) - float(jax.random.exponential(core.fold(key, 1), (), "float64"))
    theta = 2 * np.pi * float(jax.random.uniform(core.fold(key, 2, 0), (), "float64"))
    theta_min, theta_max, count = theta - 2 * np.pi, theta, 0
    while True:
        count += 1
        f = mean + (x - mean) * np.cos(theta) + nu * np.sin(theta)
        if numpy_likelihood(f) > log_y:
            return f, count
        if theta < 0:
            theta_min = theta
        else:
            theta_max = theta
        uniform = float(jax.random.uniform(core.fold(key, 2, count), (), "float64"))
        theta = theta_min + uniform * (theta_max - theta_min)


def decide(key, x, y, prior, forward, backward):
    """Metropolis-Hastings from full densities of the prior and of the proposals there and back."""
    before = numpy_likelihood(x) + prior.logpdf(x) + forward.logpdf(y)
    log_ratio = numpy_likelihood(y) + prior.logpdf(y) + backward.logpdf(x) - before
    accepted = -float(jax.random.exponential(core.fold(key, 1), (), "float64")) <= log_ratio
    return (y if accepted else x), np.exp(min(log_ratio, 0))


def crank_nicolson_oracle(key, x, mean, covariance, step):
    def law(here):
        return scipy.stats.multivariate_normal(mean + np.sqrt(1 - step**2) * (here - mean), step**2 * covariance)

    y = law(x).mean + step * np.linalg.cholesky(covariance) @ normal(core.fold(key, 0))
    return decide(key, x, y, scipy.stats.multivariate_normal(mean, covariance), law(x), law(y))


def marginal_oracle(key, x, mean, covariance, step):
    """The proposal as its inventors derive it: an auxiliary variable u, integrated out of p(x | u) p(u | x)."""
    delta = step**2
    a = np.linalg.inv(np.linalg.inv(covariance) + 2 / delta * np.eye(SIZE))

    def law(here):
        # u ~ N(here + delta/2 slope, delta/2 I); then p(there | u) ~ N(there; mean, C) N(u; there, delta/2 I)
        centre = here + delta / 2 * numpy_slope(here)
        location = a @ (np.linalg.solve(covariance, mean) + 2 / delta * centre)
        return scipy.stats.multivariate_normal(location, a + (2 / delta) ** 2 * a @ (delta / 2 * np.eye(SIZE)) @ a)

    # Eigenvectors have an order and a sign, which are conventions.
    diagonal = np.all(covariance == np.diag(np.diag(covariance)))
    vectors = np.eye(SIZE) if diagonal else np.asarray(jnp.linalg.eigh(covariance)[1])
    root = vectors * np.sqrt(np.diag(vectors.T @ law(x).cov_object.covariance @ vectors))
    y = law(x).mean + root @ normal(core.fold(key, 0))
    return decide(key, x, y, scipy.stats.multivariate_normal(mean, covariance), law(x), law(y))


ORACLES = [
    (lambda *prior, step_size: mcmc.elliptical_slice(*prior), ellipse_oracle),
    (mcmc.preconditioned_crank_nicolson, crank_nicolson_oracle),
    (mcmc.marginal_latent_gaussian, marginal_oracle),
]


@pytest.mark.parametrize("form", ["scalar", "diagonal", "dense"])
@pytest.mark.parametrize(("factory", "oracle"), ORACLES, ids=["ellipse", "crank-nicolson", "marginal"])
def test_a_transition_is_that_of_numpy(factory, oracle, form, x64, rng):
    positions, means = rng.normal(size=(CASES, SIZE)), rng.normal(size=(CASES, SIZE))
    sizes = rng.uniform(0.1, 0.99, CASES) if oracle is not marginal_oracle else np.exp(rng.normal(size=CASES))
    roots = rng.normal(size=(SIZE, SIZE)) * 0.5 + np.eye(SIZE)
    covariance = {"scalar": np.array(0.7), "diagonal": rng.uniform(0.3, 2, SIZE), "dense": roots @ roots.T}[form]
    matrix = covariance if form == "dense" else covariance * np.eye(SIZE)

    def keys():
        return jax.random.split(jax.random.key(7), CASES)

    @jax.jit
    @jax.vmap
    def ours(key, position, mean, step):
        kernel = factory(log_likelihood, mean, covariance, step_size=step)
        return kernel.step(key, kernel.init(position, key))

    states, infos = ours(keys(), positions, means, sizes)
    moved = 0
    for case, key in enumerate(keys()):
        expected, told = oracle(key, positions[case], means[case], matrix, sizes[case])
        if oracle is ellipse_oracle:
            assert infos.evaluations[case] == told
        else:
            np.testing.assert_allclose(infos.acceptance_rate[case], told, rtol=1e-7, atol=1e-12)
            assert infos.accepted[case] == np.any(expected != positions[case])
        moved += np.any(expected != positions[case])
        np.testing.assert_allclose(states.position[case], expected, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(states.log_density[case], numpy_likelihood(expected), rtol=1e-8, atol=1e-10)
    assert moved > 15
    assert oracle is ellipse_oracle or moved < CASES - 5


def test_the_marginal_sampler_becomes_langevins_where_the_prior_is_flat(x64, rng):
    """Prior variances of 1e12: proposal and rate are those of `mala`, whose rate is against Gaussian densities here."""
    step, x = 0.6, rng.normal(size=SIZE)
    kernel = mcmc.marginal_latent_gaussian(log_likelihood, 0.0, 1e12, step)
    for seed in range(10):
        state, info = kernel.step(jax.random.key(seed), kernel.init(jnp.asarray(x), jax.random.key(0)))
        y = x + step**2 / 2 * numpy_slope(x) + step * normal(core.fold(jax.random.key(seed), 0))
        forward = scipy.stats.norm(x + step**2 / 2 * numpy_slope(x), step).logpdf(y).sum()
        backward = scipy.stats.norm(y + step**2 / 2 * numpy_slope(y), step).logpdf(x).sum()
        rate = min(1, np.exp(numpy_likelihood(y) - numpy_likelihood(x) + backward - forward))
        np.testing.assert_allclose(info.acceptance_rate, rate, rtol=1e-6)
        np.testing.assert_allclose(state.position, y if info.accepted else x, rtol=1e-6)


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_without_a_likelihood_nothing_is_rejected(kernel):
    algorithm = kernel(lambda x: 0.0 * jnp.sum(x), 1.0, jnp.array([1.0, 4.0, 0.0]))
    state = algorithm.init(jnp.ones(3), jax.random.key(0))
    for seed in range(10):
        before = state.position
        state, info = jax.jit(algorithm.step)(jax.random.key(seed), state)
        assert np.all(state.position[:2] != before[:2])
        assert state.position[2] == 1
        assert info.evaluations == 1 if hasattr(info, "evaluations") else info.acceptance_rate > 1 - 1e-6


def test_the_longest_steps_forget_where_they_came_from():
    """Of pCN at 1, and of the marginal sampler in the limit where the likelihood is flat."""
    for size, factory in ((1.0, mcmc.preconditioned_crank_nicolson), (1e3, mcmc.marginal_latent_gaussian)):
        kernel = factory(lambda x: 0.0 * jnp.sum(x), 0.5, jnp.array([[2.0, 0.5], [0.5, 1.0]]), size)
        ends = [
            kernel.step(jax.random.key(1), kernel.init(jnp.full(2, start), jax.random.key(0)))[0].position
            for start in (-3.0, 5.0)
        ]
        np.testing.assert_allclose(ends[0], ends[1], atol=1e-4)


CHAINS = 20_000


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
@pytest.mark.parametrize("singular", ["matrix", "factor", "variance"])
def test_a_singular_prior_leaves_its_posterior_invariant(kernel, singular, rng):
    """Four scalars of two degrees of freedom, observed with noise: the posterior is known in closed form.

    Kolmogorov-Smirnov along the two directions with variance, false-alarm rate 1e-6 each; along the others nothing, but
    for the rounding of a matrix: sqrt(4 * 6e-8) of the largest standard deviation, which is about 3.
    """
    mean, noise, data = np.array([0.5, -1.0, 0.0, 2.0]), 0.8, np.array([1.0, 0.0, -0.5, 1.5])
    factor = rng.normal(size=(4, 2)) if singular != "variance" else np.diag([1.5, 0.0, 0.7, 0.0])[:, [0, 2]]
    covariance = factor @ factor.T
    # x = mean + factor s with s standard normal
    precision = np.eye(2) + factor.T @ factor / noise**2
    centre = np.linalg.solve(precision, factor.T @ (data - mean)) / noise**2
    draws = centre + np.linalg.solve(np.linalg.cholesky(precision).T, rng.normal(size=(2, CHAINS))).T
    start = jnp.asarray(mean + draws @ factor.T, jnp.float32)
    square = np.concatenate([factor, np.zeros((4, 2))], axis=1)
    given = {"matrix": covariance, "factor": mcmc.Metric(jnp.asarray(square, jnp.float32)), "variance": None}[singular]
    given = np.diag(covariance) if given is None else given
    algorithm = kernel(lambda x: -0.5 * jnp.sum(((x - jnp.asarray(data, x.dtype)) / noise) ** 2), mean, given)

    @jax.jit
    @jax.vmap
    def run(key, position):
        state = algorithm.init(position, key)
        return jax.lax.fori_loop(0, 3, lambda i, s: algorithm.step(core.fold(key, i), s)[0], state).position

    after = np.asarray(run(jax.random.split(jax.random.key(3), CHAINS), start), float)
    assert np.mean(np.any(after != np.asarray(start), axis=1)) > 0.5
    inside = np.linalg.lstsq(factor, (after - mean).T, rcond=None)[0].T
    np.testing.assert_allclose(mean + inside @ factor.T, after, atol=1e-2 if singular == "matrix" else 2e-5)
    spread = np.sqrt(np.diag(np.linalg.inv(precision)))
    for k in range(2):
        assert scipy.stats.kstest(inside[:, k], scipy.stats.norm(centre[k], spread[k]).cdf).pvalue > 1e-6


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_forms_of_the_prior_agree(kernel, rng):
    position = {"a": jnp.asarray(rng.normal(size=(2, 2)), jnp.float32), "b": jnp.float32(0.5)}
    root = rng.normal(size=(5, 5)) * 0.3 + np.eye(5)
    dense = jnp.asarray(root @ root.T, jnp.float32)

    def likelihood(q):
        return -0.5 * (jnp.sum(q["a"] ** 2) + jnp.sin(q["b"]))

    def after(mean, covariance):
        algorithm = kernel(likelihood, mean, covariance)
        return jax.jit(algorithm.step)(jax.random.key(3), algorithm.init(position, jax.random.key(0)))

    def same(one, two):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, two)

    scalar = after(0.3, 1.7)
    same(scalar, after(np.full(5, 0.3), np.full(5, 1.7)))
    same(scalar, after({"a": np.full((2, 2), 0.3), "b": 0.3}, mcmc.Metric(jnp.sqrt(jnp.float32(1.7)))))
    known = after(0.3, dense)
    if name_of(kernel) != "marginal_latent_gaussian":  # the signs of eigenvectors may differ
        same(known, after(0.3, mcmc.Metric(jnp.linalg.cholesky(dense))))
    traced = jax.jit(lambda covariance: after(0.3, covariance))(dense)
    same(known, traced)


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_a_known_covariance_is_factorised_outside_the_program(kernel):
    algorithm = kernel(lambda x: -jnp.sum(x**4), 0.0, np.eye(3) + 0.5)
    state = algorithm.init(jnp.ones(3), jax.random.key(0))

    def program(key, state):
        return kernel(lambda x: -jnp.sum(x**4), 0.0, np.eye(3) + 0.5).step(key, state)

    text = str(jax.make_jaxpr(program)(jax.random.key(0), state))
    assert "cholesky" not in text
    assert "eigh" not in text


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_scalars_and_vectors_of_one_in_any_dtype(kernel, dtype, x64):
    for shape in ((), (1,)):
        algorithm = kernel(lambda x: -0.5 * jnp.sum(x * x), 0.5, 2.0)
        state = algorithm.init(jnp.ones(shape, dtype), jax.random.key(0))
        for seed in range(8):
            state, info = jax.jit(algorithm.step)(jax.random.key(seed), state)
        assert state.position.dtype == dtype
        assert state.position.shape == shape
        assert np.all(state.position != 1)
        assert str(state.log_density.dtype) == ("float32" if dtype == "bfloat16" else dtype)
        assert info.log_density == state.log_density


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
@pytest.mark.parametrize("hole", [-np.inf, np.nan])
def test_a_chain_that_starts_where_there_is_no_likelihood_gets_in(kernel, hole):
    algorithm = kernel(lambda x: jnp.where(x[0] < 0, hole, -0.5 * jnp.sum(x * x)), 0.0, 1.0)
    state, inside = algorithm.init(jnp.array([-1.0, 0.0]), jax.random.key(0)), False
    for seed in range(60):
        state, info = jax.jit(algorithm.step)(jax.random.key(seed), state)
        inside |= bool(state.position[0] >= 0)
        assert inside == bool(state.position[0] >= 0)
        assert np.isfinite(info.log_density) == inside
        assert not hasattr(info, "acceptance_rate") or np.isfinite(info.acceptance_rate)
    assert inside


def test_an_ellipse_with_no_likelihood_at_all_is_left():
    algorithm = mcmc.elliptical_slice(lambda x: -jnp.inf + 0 * jnp.sum(x), 0.0, 1.0)
    state, info = jax.jit(algorithm.step)(jax.random.key(0), algorithm.init(jnp.ones(2), jax.random.key(1)))
    np.testing.assert_array_equal(state.position, 1)
    assert info.evaluations == 200


@pytest.mark.parametrize("size", [1e-6, 1e3])
def test_steps_of_the_marginal_sampler_far_too_small_and_too_large(size):
    algorithm = mcmc.marginal_latent_gaussian(lambda x: -50 * jnp.sum((x - 1) ** 2), 0.0, 1.0, size)
    state = algorithm.init(jnp.ones(3), jax.random.key(0))
    for seed in range(20):
        state, info = jax.jit(algorithm.step)(jax.random.key(seed), state)
        assert info.acceptance_rate > 0.999 if size < 1 else info.acceptance_rate < 0.2
    assert np.all(np.isfinite(state.position))


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_one_evaluation_stands_in_the_program(kernel):
    algorithm = kernel(lambda x: jnp.sum(jax.lax.lgamma(x * x + 3)), 0.0, np.eye(3))
    state = algorithm.init(jnp.ones(3), jax.random.key(0))
    program = str(jax.make_jaxpr(algorithm.step)(jax.random.key(1), state))
    assert program.count("lgamma ") == 1
    assert program.count("digamma ") == (1 if hasattr(state, "log_density_gradient") else 0)


def test_warmup_tunes_the_step_size_of_pcn_and_of_the_marginal_sampler():
    """The kernels have no metric, and leave the one they are given alone.

    The mean rate of transitions 300 to 450 of 500, where the step size has had time: over 64 seeds it had a standard
    deviation of 0.004 and 0.003 and was at most 0.005 too low.
    """

    def likelihood(x):
        return -2 * jnp.sum((x - 1) ** 2)

    for factory, wanted in ((mcmc.preconditioned_crank_nicolson, 0.3), (mcmc.marginal_latent_gaussian, 0.55)):

        def kernel(density, step_size, inverse_mass_matrix, factory=factory):
            return factory(density, 0.0, np.eye(8), step_size)

        tuning = mcmc.warmup(kernel, likelihood, num_steps=500, target_acceptance=wanted)

        @jax.jit
        def run(key, tuning=tuning):
            def one(index, carry):
                state, total = carry
                state, info = tuning.step(core.fold(key, index), state)
                return state, total + jnp.where((index >= 300) & (index < 450), info.acceptance_rate, 0)

            state = tuning.init(jnp.zeros(8), core.fold(key, 5000))
            return jax.lax.fori_loop(0, 450, one, (state, jnp.float32(0)))[1] / 150

        assert abs(run(jax.random.key(0)) - wanted) < 0.03


@pytest.mark.parametrize("kernel", KERNELS, ids=name_of)
def test_bad_arguments(kernel):
    name = name_of(kernel)
    wrong = np.array([[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(TypeError, match=f"{name}: log_"):
        kernel(1, 0.0, 1.0)
    for covariance in (-1.0, np.array([1.0, -0.1]), wrong, np.array([np.nan, 1.0])):
        with pytest.raises(ValueError, match=f"{name}: covariance is not positive semi-definite"):
            kernel(log_likelihood, 0.0, covariance)
    with pytest.raises(ValueError, match=f"{name}: covariance is a float32 array of shape \\(2, 3\\)"):
        kernel(log_likelihood, 0.0, np.ones((2, 3)))
    with pytest.raises(ValueError, match=f"{name}: covariance is of shape \\(2,.*has that many scalars"):
        kernel(log_likelihood, 0.0, np.ones(2)).init(jnp.ones(3), jax.random.key(0))
    with pytest.raises(ValueError, match=f"{name}: mean"):
        kernel(log_likelihood, np.ones(2), 1.0).init(jnp.ones(3), jax.random.key(0))
    if "step_size" in inspect.signature(getattr(kernel, "func", kernel)).parameters:
        with pytest.raises(ValueError, match=f"{name}: step_size is 0.0; expected"):
            kernel.func(log_likelihood, 0.0, 1.0, 0.0)


def test_a_step_of_pcn_is_at_most_one():
    with pytest.raises(ValueError, match="step_size is 1.5; expected a number above 0 and at most 1"):
        mcmc.preconditioned_crank_nicolson(log_likelihood, 0.0, 1.0, 1.5)

    def traced(size):
        kernel = mcmc.preconditioned_crank_nicolson(log_likelihood, 0.0, 1.0, size)
        return kernel.step(jax.random.key(0), kernel.init(jnp.zeros(3), jax.random.key(1)))

    jax.tree.map(np.testing.assert_array_equal, jax.jit(traced)(1.5), jax.jit(traced)(1.0))
