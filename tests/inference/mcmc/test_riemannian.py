"""Riemannian kernels: SoftAbs against NumPy, the integrator against SciPy, and what a constant metric reduces to."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from jaxprob import core
from jaxprob.inference import mcmc
from jaxprob.inference.mcmc import _implicit as implicit
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._riemannian import manifolds
from jaxprob.inference.mcmc._softabs import softabs

ALPHA = 3.0
WIDTH = 1.5


# A funnel with one arm: jax, and by hand.
def funnel(q):
    return -0.5 * (q[0] / WIDTH) ** 2 - 0.5 * q[0] - 0.5 * q[1] ** 2 * jnp.exp(-q[0])


def numpy_softabs(matrix, alpha):
    values, vectors = np.linalg.eigh(matrix)
    scaled = alpha * values
    safe = np.where(np.abs(scaled) < 1e-4, 1.0, scaled)
    f = np.where(np.abs(scaled) < 1e-4, 1 + scaled**2 / 3, safe / np.tanh(safe)) / alpha
    return vectors @ np.diag(f) @ vectors.T


def numpy_metric(q):
    v, x = q
    cross = -x * np.exp(-v)
    return numpy_softabs(np.array([[WIDTH**-2 + 0.5 * x**2 * np.exp(-v), cross], [cross, np.exp(-v)]]), ALPHA)


def numpy_energy(q, p):
    v, x = q
    density = -0.5 * (v / WIDTH) ** 2 - 0.5 * v - 0.5 * x**2 * np.exp(-v)
    metric = numpy_metric(q)
    return -density + 0.5 * np.linalg.slogdet(metric)[1] + 0.5 * p @ np.linalg.solve(metric, p)


def slope(function, x, h=1e-5):
    """Central differences of the fourth order."""
    steps = h * np.eye(len(x))
    near = [function(x + e) - function(x - e) for e in steps]
    far = [function(x + 2 * e) - function(x - 2 * e) for e in steps]
    return (8 * np.array(near) - np.array(far)) / (12 * h)


def curved(q):
    z = jnp.tanh(q) + 0.5
    return jnp.diag(1 + 0.5 * jnp.sin(q)) + jnp.outer(z, z)


METRICS = {"softabs": None, "curved": curved}


def integrator(metric, tolerance=1e-11):
    """`(q, p, step) -> (q', p', valid, energies before and after)`, float64."""
    manifold_of = manifolds("riemannian_hmc", as_log_density(funnel, "test"), metric, ALPHA, 100, tolerance)

    @jax.jit
    def step(q, p, size):
        manifold = manifold_of(mcmc.State(q, q[0], q))
        place, momentum, valid = implicit.generalised_leapfrog(manifold, q, p, size)
        before = implicit.energy(implicit.place_at(manifold, q), p)
        return place.position, momentum, valid, before, implicit.energy(place, momentum)

    return step


SPECTRA = {
    "apart": [-3.0, -0.2, 0.7, 40.0],
    "repeated": [1.3, 1.3, 1.3, -2.0],
    "zero": [0.0, 0.0, 1.0, -1.0],
    "all zero": [0.0, 0.0, 0.0, 0.0],
    "close": [0.4, 0.4 + 1e-9, -0.1, -0.1 - 1e-6],
    "huge": [1e5, 1e5 + 1e-3, -1e5, 1e-8],
}


def rotated(spectrum, rng):
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    return rotation @ np.diag(spectrum) @ rotation.T


@pytest.mark.parametrize("name", SPECTRA)
def test_softabs_of_known_eigenvalues(name, x64, rng):
    matrix = rotated(SPECTRA[name], rng)
    largest = np.abs(matrix).max() + 1
    expected = numpy_softabs(matrix, ALPHA)
    np.testing.assert_allclose(softabs(jnp.asarray(matrix), jnp.asarray(ALPHA)), expected, atol=1e-13 * largest)
    single = softabs(jnp.asarray(matrix, "float32"), jnp.float32(ALPHA))
    assert single.dtype == "float32"
    np.testing.assert_allclose(single, expected, atol=3e-6 * largest)


@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "huge"])
def test_derivative_of_softabs_is_that_of_differences(name, x64, rng):
    matrix, direction = rotated(SPECTRA[name], rng), rng.normal(size=(4, 4))
    direction = direction + direction.T
    expected = slope(lambda t: numpy_softabs(matrix + t[0] * direction, ALPHA), np.zeros(1), 1e-3)[0]
    for dtype, error in (("float64", 2e-9), ("float32", 3e-5)):
        arguments = jnp.asarray(matrix, dtype), jnp.asarray(direction, dtype)
        function = partial(softabs, alpha=jnp.asarray(ALPHA, dtype))
        _, tangent = jax.jvp(function, arguments[:1], arguments[1:])
        size = np.abs(expected).max() + 1
        np.testing.assert_allclose(tangent, expected, atol=error * size)
        # And the transpose, which is what the kernels use: the derivative is self-adjoint.
        (cotangent,) = jax.vjp(function, arguments[0])[1](arguments[1])
        np.testing.assert_allclose(cotangent, expected, atol=error * size)


def test_derivative_of_softabs_of_huge_eigenvalues_is_that_of_the_absolute_value(x64):
    values = jnp.asarray(SPECTRA["huge"])
    _, tangent = jax.jvp(lambda m: softabs(m, jnp.asarray(ALPHA)), (jnp.diag(values),), (jnp.ones((4, 4)),))
    expected = np.array([[1, 1, 0, 1], [1, 1, 0, 1], [0, 0, -1, -1], [1, 1, -1, 0]])
    np.testing.assert_allclose(tangent, expected, atol=1e-5)


def test_softabs_of_what_is_no_number_is_no_number():
    assert np.isnan(np.asarray(softabs(jnp.diag(jnp.array([1.0, np.nan])), jnp.float32(1.0)))).any()


@pytest.mark.parametrize("size", [0.1, -0.3])
def test_a_step_solves_the_equations_of_the_generalised_leapfrog(size, x64, rng):
    """Against SciPy's root finder, with a Hamiltonian in NumPy and derivatives by differences."""
    step, valid_steps = integrator(None), 0
    for _ in range(10):
        q, p = rng.normal(size=2), rng.normal(size=2)

        def equations(unknown, q=q, p=p):
            half, new = unknown[:2], unknown[2:]
            speed = np.linalg.solve(numpy_metric(q), half) + np.linalg.solve(numpy_metric(new), half)
            kick = slope(lambda x: numpy_energy(x, half), q)
            return np.concatenate([half - p + 0.5 * size * kick, new - q - 0.5 * size * speed])

        root = scipy.optimize.root(equations, np.concatenate([p, q]), tol=1e-12)
        half, expected = root.x[:2], root.x[2:]
        position, momentum, valid, before, after = step(q, p, size)
        if not valid:
            continue
        valid_steps += 1
        np.testing.assert_allclose(position, expected, atol=1e-7)
        last = half - 0.5 * size * slope(lambda x, half=half: numpy_energy(x, half), expected)
        np.testing.assert_allclose(momentum, last, atol=1e-7)
        np.testing.assert_allclose(before, numpy_energy(q, p), rtol=1e-10)
        np.testing.assert_allclose(after, numpy_energy(np.asarray(position), np.asarray(momentum)), rtol=1e-10)
    assert valid_steps >= 8


@pytest.mark.parametrize("metric", METRICS)
def test_a_step_keeps_volumes_and_leads_back(metric, x64, rng):
    step, valid_steps = integrator(METRICS[metric], 1e-14), 0
    for _ in range(10):
        q, p = rng.normal(size=2), rng.normal(size=2)

        def flow(x):
            return np.concatenate(step(x[:2], x[2:], 0.3)[:2])

        position, momentum, valid, *_ = step(q, p, 0.3)
        if not valid:
            continue
        valid_steps += 1
        np.testing.assert_allclose(np.linalg.det(slope(flow, np.concatenate([q, p]), 1e-3)), 1.0, atol=1e-8)
        back, reverse, valid, *_ = step(position, -momentum, 0.3)
        assert valid
        np.testing.assert_allclose(back, q, atol=1e-8)
        np.testing.assert_allclose(reverse, -p, atol=1e-8)
    assert valid_steps >= 8


@pytest.mark.parametrize("metric", METRICS)
def test_the_error_of_the_energy_is_of_order_two(metric, x64):
    step, errors = integrator(METRICS[metric]), []
    for number in (20, 40, 80):
        q, p, energies = jnp.array([0.5, 0.4]), jnp.array([-0.7, 0.9]), []
        for _ in range(number):
            q, p, valid, before, after = step(q, p, 1.0 / number)
            assert valid
            energies += [before, after]
        errors.append(abs(energies[-1] - energies[0]))
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


INVERSE_MASSES = {
    "diagonal": np.diag([0.5, 2.0, 1.3]),
    "dense": np.array([[0.7, 0.3, -0.2], [0.3, 1.6, 0.5], [-0.2, 0.5, 1.1]]),
}


def skewed(q):
    return 2 * q[0] - jnp.exp(q[0]) - 0.5 * (q[1] ** 2 - q[1] * q[2] + q[2] ** 2)


@pytest.mark.parametrize("inverse_mass", INVERSE_MASSES)
@pytest.mark.parametrize("kernel", ["hmc", "nuts"])
def test_with_a_constant_metric_the_draws_are_those_of_the_euclidean_kernel(kernel, inverse_mass, x64, rng):
    options = {"hmc": {"num_integration_steps": 4}, "nuts": {"max_tree_depth": 6}}[kernel]
    size, mass = 0.4, np.linalg.inv(INVERSE_MASSES[inverse_mass])
    # Of all factors that whiten momenta, the one for which the same normal numbers make the same momenta.
    scales = mcmc.Metric(jnp.asarray(np.linalg.inv(np.linalg.cholesky(mass)).T))
    euclidean = getattr(mcmc, kernel)(skewed, size, scales, **options)
    riemannian = getattr(mcmc, f"riemannian_{kernel}")(skewed, size, lambda q: jnp.asarray(mass, q.dtype), **options)
    starts = jnp.asarray(rng.normal(size=(50, 3)))

    def run(algorithm):
        @jax.jit
        @jax.vmap
        def transition(key, position):
            return algorithm.step(key, algorithm.init(position, key))

        return transition(jax.random.split(jax.random.key(3), 50), starts)

    (ours, our_info), (theirs, their_info) = run(riemannian), run(euclidean)
    np.testing.assert_allclose(ours.position, theirs.position, atol=1e-9)
    np.testing.assert_allclose(ours.log_density_gradient, theirs.log_density_gradient, atol=1e-9)
    np.testing.assert_allclose(our_info.acceptance_rate, their_info.acceptance_rate, atol=1e-9)
    np.testing.assert_array_equal(our_info.num_steps, their_info.num_steps)
    # The energies differ by the determinant of the metric, which is constant.
    shift = 0.5 * np.linalg.slogdet(mass)[1]
    np.testing.assert_allclose(our_info.energy, their_info.energy + shift, atol=1e-9)
    assert np.abs(np.asarray(ours.position - starts)).max() > 0.5


KERNELS = {"hmc": partial(mcmc.riemannian_hmc, num_integration_steps=3), "nuts": mcmc.riemannian_nuts}


@pytest.mark.parametrize("why", ["a huge step", "one iteration", "no metric elsewhere", "no metric anywhere"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_step_that_has_not_converged_is_a_divergence_and_the_chain_stays(kernel, why):
    build = KERNELS[kernel]
    here = jnp.array([0.3, -0.2])

    def broken(q):
        inside = jnp.all(q == here) & (why == "no metric elsewhere")
        return jnp.where(inside, 1.0, jnp.nan) * jnp.eye(2)

    algorithm = {
        "a huge step": lambda: build(funnel, 50.0),
        "one iteration": lambda: build(funnel, 0.5, max_fixed_point_iterations=1),
        "no metric elsewhere": lambda: build(funnel, 0.5, broken),
        "no metric anywhere": lambda: build(funnel, 0.5, broken),
    }[why]()

    @jax.jit
    @jax.vmap
    def transition(key):
        return algorithm.step(key, algorithm.init(here, key))

    state, info = transition(jax.random.split(jax.random.key(1), 20))
    assert info.diverging.all()
    np.testing.assert_array_equal(state.position, np.broadcast_to(here, (20, 2)))
    assert np.isfinite(state.log_density).all()
    np.testing.assert_array_equal(info.acceptance_rate, 0.0)
    if kernel == "hmc":
        assert not info.converged.any()


def test_a_trajectory_is_rejected_at_the_first_step_that_has_not_converged_and_a_bad_energy_is_no_such_step():
    """Step sizes at which some trajectories of the funnel have such a step, and some do not."""
    algorithm = mcmc.riemannian_hmc(funnel, 0.6, num_integration_steps=8, max_fixed_point_iterations=12)
    starts = jax.random.normal(jax.random.key(2), (200, 2))

    @jax.jit
    @jax.vmap
    def transition(key, position):
        return algorithm.step(key, algorithm.init(position, key))

    state, info = transition(jax.random.split(jax.random.key(1), 200), starts)
    failed = ~np.asarray(info.converged)
    assert 10 < failed.sum() < 190
    assert info.diverging[failed].all()
    np.testing.assert_array_equal(state.position[failed], starts[failed])
    np.testing.assert_array_equal(info.acceptance_rate[failed], 0.0)
    assert (np.asarray(info.num_steps)[~failed] == 8).all()
    assert (np.asarray(info.num_steps)[failed] < 8).any()  # nothing goes on from there
    assert np.any(state.position[~failed] != starts[~failed])
    # With a constant metric every step converges; a density that is a wall makes divergences all the same.
    wall = mcmc.riemannian_hmc(lambda q: jnp.where(q[0] < 0.5, 0.0, -1e4 * q[0]), 0.5, lambda q: jnp.eye(2))
    start = wall.init(jnp.array([0.4, 0.0]), jax.random.key(0))
    _, info = jax.jit(jax.vmap(lambda key: wall.step(key, start)))(jax.random.split(jax.random.key(3), 20))
    assert info.diverging.any()
    assert info.converged.all()


def test_a_step_that_does_not_lead_back_is_none(x64):
    """Steps so long that iterations from the end find another solution: each is flagged, or does lead back."""
    step, rng, flagged = integrator(curved, 1e-10), np.random.default_rng(4), 0
    for _ in range(200):
        q, p = rng.normal(size=2), 2 * rng.normal(size=2)
        position, momentum, valid, *_ = step(q, p, 1.2)
        flagged += not valid
        if valid:
            back, reverse, valid, *_ = step(position, -momentum, 1.2)
            assert valid
            np.testing.assert_allclose(back, q, atol=1e-7)
            np.testing.assert_allclose(reverse, -p, atol=1e-7)
    assert 10 < flagged < 190


@pytest.mark.parametrize("kernel", ["hmc", pytest.param("nuts", marks=pytest.mark.slow)])
def test_the_law_is_kept_where_most_steps_are_none(kernel):
    """Exact draws of the funnel, five transitions at a step size for which SoftAbs seldom converges or leads back.

    Eight z-scores, none above 5: false alarm 5e-6.
    """
    chains, transitions = 20_000, 5
    algorithm = {
        "hmc": partial(mcmc.riemannian_hmc, num_integration_steps=2),
        "nuts": partial(mcmc.riemannian_nuts, max_tree_depth=2),
    }[kernel](funnel, 1.2, alpha=ALPHA, max_fixed_point_iterations=20)

    @jax.jit
    @jax.vmap
    def run(key, position):
        def body(index, carry):
            state, divergences = carry
            state, info = algorithm.step(core.fold(key, index), state)
            return state, divergences + info.diverging.astype(jnp.int32)

        start = algorithm.init(position, core.fold(key, 0)), jnp.int32(0)
        state, divergences = jax.lax.fori_loop(1, transitions + 1, body, start)
        return state.position, divergences

    normals = np.asarray(jax.random.normal(jax.random.key(7), (chains, 2)))
    starts = np.stack([WIDTH * normals[:, 0], normals[:, 1] * np.exp(WIDTH * normals[:, 0] / 2)], axis=1)
    ends, divergences = run(jax.random.split(jax.random.key(4), chains), jnp.asarray(starts))
    assert np.mean(divergences) > 0.75 * transitions
    assert np.mean(np.any(ends != starts, axis=1)) > 0.3
    arm, across = np.asarray(ends, float).T
    z = np.stack([arm / WIDTH, across * np.exp(-arm / 2)])
    # Of standard normal numbers: mean and variance of each of these is 0 and 1.
    named = [*z, *((z**2 - 1) / np.sqrt(2)), *((z**3 - 3 * z) / np.sqrt(6)), z[0] * z[1]]
    named.append(z[0] * (z[1] ** 2 - 1) / np.sqrt(2))
    scores = np.mean(named, axis=1) * np.sqrt(chains)
    assert np.abs(scores).max() < 5, scores


@pytest.mark.parametrize("kernel", KERNELS)
def test_bad_arguments(kernel):
    build, name = KERNELS[kernel], f"riemannian_{kernel}"
    with pytest.raises(ValueError, match=f"{name}: step_size is .*expected one finite number above zero"):
        build(funnel, -1.0)
    with pytest.raises(ValueError, match=f"{name}: alpha is .*expected one finite number above zero"):
        build(funnel, 0.1, alpha=0.0)
    with pytest.raises(ValueError, match=f"{name}: tolerance is "):
        build(funnel, 0.1, tolerance=-1.0)
    with pytest.raises(TypeError, match=f"{name}: metric is .*inverse_mass_matrix"):
        build(funnel, 0.1, np.eye(2))
    with pytest.raises(ValueError, match=f"{name}: max_fixed_point_iterations is 0"):
        build(funnel, 0.1, max_fixed_point_iterations=0)
    with pytest.raises(TypeError, match=f"{name}: log_density is "):
        build(3.0, 0.1)
    algorithm = build(funnel, 0.1, lambda q: jnp.eye(3))
    with pytest.raises(ValueError, match=rf"{name}: the value of metric is of shape \(3, 3\); expected shape \(2, 2\)"):
        algorithm.step(jax.random.key(0), algorithm.init(jnp.zeros(2), jax.random.key(1)))
    with pytest.raises(ValueError, match="riemannian_hmc: num_integration_steps is 0"):
        mcmc.riemannian_hmc(funnel, num_integration_steps=0)
    with pytest.raises(ValueError, match="riemannian_nuts: max_tree_depth is 0"):
        mcmc.riemannian_nuts(funnel, max_tree_depth=0)
