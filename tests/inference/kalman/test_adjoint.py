"""Derivatives of the likelihood with respect to every entry of a model, against differences of the joint law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import kalman
from jaxprob.inference.kalman._filter import RUN, _of_steps
from jaxprob.inference.kalman._parallel import as_tree
from jaxprob.inference.kalman._steps import prepare
from jaxprob.models.state_space import LinearGaussian
from tests.inference.kalman._dense import condition
from tests.inference.kalman._models import MODELS, make

ENTRIES = (
    "initial_mean",
    "initial_covariance",
    "dynamics",
    "dynamics_covariance",
    "dynamics_offset",
    "emission",
    "emission_covariance",
    "emission_offset",
)


def paths(model, rng):
    """For each entry a way through it: covariances stay of their rank, and zeros of matrices zeros."""
    for name in ENTRIES:
        array = np.asarray(getattr(model, name), np.float64)
        if "covariance" not in name:
            change = rng.normal(size=array.shape) * (array != 0 if name in ("dynamics", "emission") else 1)
            yield name, change, lambda eps, array=array, change=change: array + eps * change
        elif array.ndim - (name in model.time_varying) == 1:
            change = array * rng.normal(size=array.shape)
            yield name, change, lambda eps, array=array, change=change: array + eps * change
        else:
            turn, eye = rng.normal(size=array.shape[-2:]) * 0.3, np.eye(array.shape[-1])
            change = turn @ array + array @ turn.T
            yield name, change, lambda e, array=array, turn=turn, eye=eye: (eye + e * turn) @ array @ (eye + e * turn).T


@pytest.mark.parametrize("name", [name for name in MODELS if name != "growing_noise"])
def test_each_entry(name, x64):
    model, ys = make(name, gaps=True)
    slopes = jax.jit(jax.grad(lambda model: kalman.log_likelihood(model, ys)))(model)
    for entry, change, path in paths(model, np.random.default_rng(1)):

        def moved(eps, entry=entry, path=path):
            return condition(dataclasses.replace(model, **{entry: path(eps)}), ys)[0]

        # Fourth-order differences.
        eps = 1e-3
        expected = (8 * (moved(eps) - moved(-eps)) - (moved(2 * eps) - moved(-2 * eps))) / (12 * eps)
        np.testing.assert_allclose(np.sum(getattr(slopes, entry) * change), expected, rtol=1e-6, atol=1e-7)


def test_variances_of_twelve_orders_of_magnitude_in_float32():
    """Against float64: the derivatives keep the digits that the likelihood keeps."""

    def slopes(dtype):
        model, ys = make("growing_noise", gaps=True, dtype=dtype)
        # Relative changes, as the entries themselves are of all sizes.
        found = jax.jit(jax.grad(lambda model: kalman.log_likelihood(model, ys)))(model)
        return {k: np.asarray(getattr(found, k) * getattr(model, k), np.float64) for k in ENTRIES}

    single = slopes(np.float32)
    with jax.enable_x64(True):
        double = slopes(np.float64)
    for name in ENTRIES:
        largest = np.abs(double[name]).max()
        np.testing.assert_allclose(single[name], double[name], rtol=1e-4, atol=1e-4 * max(largest, 1e-3))


@pytest.mark.parametrize("method", ["sequential", "auto"])
def test_both_modes_and_second_derivatives(method, x64):
    """The Hessian against differences of gradients; `auto` is steady, with a diffuse start, for so many times."""
    times = 1100 if method == "auto" else 12
    ys = np.random.default_rng(0).normal(size=times).cumsum()

    def likelihood(x):
        dynamics, noise = jnp.array([[1.0, 1.0], [0.0, 0.9]]), jnp.diag(jnp.stack([x[0], x[1]]))
        emission = jnp.stack([jnp.ones(()), 0.2 * x[2]])[None]
        diffuse = np.eye(2)[:, :1]
        model = LinearGaussian(
            np.zeros(2), np.diag([0.0, 1.0]), dynamics, noise, emission, x[2:], initial_diffuse=diffuse
        )
        return kalman.log_likelihood(model, ys, method=method)

    x = jnp.array([0.5, 0.2, 0.7])
    gradient = jax.jit(jax.grad(likelihood))
    np.testing.assert_allclose(jax.jit(jax.jacfwd(likelihood))(x), gradient(x), rtol=1e-10)
    expected = np.stack([(gradient(x + d) - gradient(x - d)) / 2e-5 for d in 1e-5 * np.eye(3)])
    np.testing.assert_allclose(jax.jit(jax.hessian(likelihood))(x), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "second"),
    [("sequential", "over reverse"), ("sequential", "over forward"), ("parallel", "over reverse")]
    + [pytest.param(m, s, marks=pytest.mark.slow) for m, s in (("parallel", "over forward"), ("tree", "over reverse"))],
)
def test_hessians_against_differences_of_the_joint_law(method, second, x64, monkeypatch):
    """A known start and noise of rank one; likelihoods of NumPy, differenced: what is left is 1e-6 of the largest."""
    if method == "tree":
        monkeypatch.setitem(RUN, "parallel", as_tree)
    ys = np.random.default_rng(3).normal(size=(7, 1))

    def model(x, xp):
        one, zero = xp.ones(()), xp.zeros(())
        drive = xp.stack([0.5 * one, one])[:, None] * xp.exp(x[0])
        dynamics = xp.stack([xp.stack([one, one]), xp.stack([zero, x[2]])])
        return LinearGaussian(
            np.zeros(2), np.zeros((2, 2)), dynamics, drive @ drive.T, np.array([[1.0, 0.0]]), xp.exp(x[1])[None]
        )

    def expected(x):
        return condition(model(x, np), ys)[0]

    x, step = np.array([0.1, -0.3, 0.8]), 1e-3
    units = step * np.eye(3)
    differences = [
        [expected(x + a + b) - expected(x + a - b) - expected(x - a + b) + expected(x - a - b) for b in units]
        for a in units
    ]

    def likelihood(x):
        return _of_steps("parallel" if method == "tree" else method, prepare(model(x, jnp), ys, ys == ys))

    slope = jax.jacrev if second == "over reverse" else jax.jacfwd
    found = np.asarray(jax.jit(jax.jacfwd(slope(likelihood)))(x))
    np.testing.assert_allclose(found, np.array(differences) / (4 * step**2), atol=1e-5)


def test_directions_left_with_rounding(x64):
    """Differences of differences in the state and no noise of their own: roots have columns of rounding."""
    ys = np.random.default_rng(0).normal(size=27).cumsum().cumsum()
    ys[[5, 6]] = np.nan

    def likelihood(theta):
        coefficients = jnp.convolve(jnp.stack([jnp.ones(()), theta[0]]), jnp.zeros(5).at[0].set(1).at[4].set(theta[1]))
        size = coefficients.shape[0]
        average = coefficients[None]
        last = jnp.concatenate([jnp.array([[0.0, 0, 0, 1]]), average], 1)  # one season ago, and the moving average
        once = jnp.concatenate([jnp.ones((1, 1)), last], 1)
        shift = jnp.eye(size, k=-1)
        dynamics = jnp.concatenate(
            [
                once,
                jnp.concatenate([jnp.zeros((1, 1)), last], 1),
                jnp.concatenate([jnp.zeros((3, 1)), jnp.eye(3, 4), jnp.zeros((3, size))], 1),
                jnp.concatenate([jnp.zeros((size, 5)), shift], 1),
            ]
        )
        stationary, noise = np.zeros((5 + size, 5 + size)), np.zeros((5 + size, 5 + size))
        stationary[5:, 5:], noise[5, 5] = np.eye(size), 1.0
        model = LinearGaussian(
            np.zeros(5 + size), stationary, dynamics, noise, once, np.zeros(1), initial_diffuse=np.eye(5 + size)[:, :5]
        )
        return kalman.log_likelihood(model, ys)

    theta = jnp.array([-0.4, -0.7])
    likelihood = jax.jit(likelihood)
    expected = [(likelihood(theta + d) - likelihood(theta - d)) / 2e-4 for d in 1e-4 * np.eye(2)]
    np.testing.assert_allclose(jax.grad(likelihood)(theta), expected, rtol=1e-5)
