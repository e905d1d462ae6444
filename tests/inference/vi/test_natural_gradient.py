"""Natural gradients: the recursion in NumPy on a Gaussian, curvature from gradients, a regression, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import runtime
from jaxprob.inference import vi

SIZE = 4


def gaussian(seed=1):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(SIZE, SIZE))
    precision = root @ root.T / SIZE + 0.5 * np.eye(SIZE)
    return rng.normal(size=SIZE), precision


def density_of(mean, precision):
    mean, precision = jnp.asarray(mean), jnp.asarray(precision)
    return lambda x: -0.5 * jnp.dot(x - mean, precision @ (x - mean), precision="highest")


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_steps_on_a_gaussian_are_the_recursion(covariance, x64):
    mean, target = gaussian()
    algorithm = vi.natural_gradient(
        density_of(mean, target), step_size=0.3, covariance=covariance, scale=2.0, initial=jnp.zeros(SIZE)
    )
    state = algorithm.init(None, jax.random.key(0))
    m, s = np.zeros(SIZE), 0.25 * np.eye(SIZE)
    kept = target if covariance == "full" else np.diag(np.diag(target))
    for i in range(5):
        state, info = jax.jit(algorithm.step)(jax.random.key(i), state)
        change = kept - s
        s = s + 0.3 * change + 0.5 * 0.3**2 * change @ np.linalg.inv(s) @ change
        m = m + 0.3 * np.linalg.solve(s, -target @ (m - mean))
        np.testing.assert_allclose(state.position, m, rtol=1e-9)
        found = state.precision if covariance == "full" else np.diag(state.precision)
        np.testing.assert_allclose(found, s, rtol=1e-9, atol=1e-12)
        assert bool(info.finite)


def test_it_arrives_at_an_exact_posterior():
    mean, precision = gaussian()
    algorithm = vi.natural_gradient(
        density_of(mean.astype(np.float32), precision.astype(np.float32)), step_size=0.5, initial=jnp.zeros(SIZE)
    )
    run = runtime.run(algorithm, jax.random.key(0), algorithm.init(None, jax.random.key(1)), 60)
    np.testing.assert_allclose(run.state.position, mean, atol=1e-4)
    np.testing.assert_allclose(run.state.precision, precision, atol=1e-4)
    _, info = algorithm.step(jax.random.key(2), run.state)
    # The bound is the log of the constant, and noiseless but for the draws' quadratic form.
    assert abs(float(info.elbo) - 0.5 * np.linalg.slogdet(2 * np.pi * np.linalg.inv(precision))[1]) < 3


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_curvature_from_gradients_is_unbiased(covariance, x64):
    mean, target = gaussian()
    density = density_of(mean, target)
    algorithm = vi.natural_gradient(
        density, step_size=1e-3, covariance=covariance, curvature="stein", initial=jnp.ones(SIZE)
    )
    state = algorithm.init(None, jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 4000)
    after = jax.jit(jax.vmap(algorithm.step, (0, None)))(keys, state)[0].precision
    # To first order in the step: S' = S + rho (P - S).
    change = (np.asarray(after) - np.asarray(state.precision)) / 1e-3
    kept = target - np.eye(SIZE) if covariance == "full" else np.diag(target) - 1
    error = change.std(0) / np.sqrt(len(keys))
    # At most 16 numbers: |z| < 4.5 fails once in 9,000. The second-order term is 1e-3 / 2 times a square of G.
    assert (np.abs(change.mean(0) - kept) < 4.5 * error + 1e-3 * 20).all()
    assert error.max() < 0.1


def test_a_logistic_regression_is_that_of_the_other_way():
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(60, 3)), jnp.float32)
    ys = jnp.asarray(rng.random(60) < 1 / (1 + np.exp(-np.asarray(xs) @ np.array([1.5, -1.0, 0.3]))))

    def density(w):
        logits = jnp.dot(xs, w, precision="highest")
        return jnp.sum(jax.nn.log_sigmoid(jnp.where(ys, logits, -logits))) - 0.5 * jnp.sum(w**2)

    algorithm = vi.natural_gradient(density, step_size=0.05, draws=32, initial=jnp.zeros(3))
    run = runtime.run(algorithm, jax.random.key(0), algorithm.init(None, jax.random.key(1)), 300)
    fitted = vi.fit(density, jax.random.key(0), vi.full_rank(), initial=jnp.zeros(3)).guide.distribution.bijector
    sd = np.sqrt(np.diag(np.linalg.inv(run.state.precision)))
    np.testing.assert_allclose(run.state.position, fitted.loc, atol=0.03 * sd.min())
    np.testing.assert_allclose(sd, np.linalg.norm(fitted.factor, axis=1), rtol=0.02)
    guide = run.state.guide
    draws = np.asarray(guide.sample(jax.random.key(3), 20_000))
    # Three standard deviations with a relative error of 1 / sqrt(40,000): 4.5 of them.
    np.testing.assert_allclose(draws.std(0), sd, rtol=4.5 / np.sqrt(40_000))


def test_a_density_that_is_not_finite_moves_nothing():
    algorithm = vi.natural_gradient(lambda x: jnp.log(x), scale=10.0, initial=jnp.ones(()))
    state = algorithm.init(None, jax.random.key(0))
    after, info = algorithm.step(jax.random.key(1), state)
    assert not bool(info.finite)
    np.testing.assert_array_equal(after.precision, state.precision)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"step_size": 0.0}, "step_size"),
        ({"step_size": 1.5}, "step_size"),
        ({"draws": 3}, "draws is 3"),
        ({"draws": 0}, "draws is 0"),
        ({"covariance": "band"}, "covariance"),
        ({"curvature": "none"}, "curvature"),
        ({"scale": -1.0}, "scale"),
        ({"initial": None}, "initial"),
    ],
)
def test_bad_input_is_told_in_one_line(options, words):
    with pytest.raises((ValueError, TypeError), match=words) as caught:
        vi.natural_gradient(lambda x: -(x**2), **{"initial": jnp.zeros(()), **options})
    assert "\n" not in str(caught.value)
