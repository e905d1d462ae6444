"""Covariances that stand still, and batches that share them: the step-by-step filter of each series alone says so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxprob.inference import kalman
from jaxprob.inference.kalman import _steady as steady
from jaxprob.inference.kalman._steady import BLOCK
from jaxprob.inference.kalman._steps import as_observations, prepare
from jaxprob.models.state_space import LinearGaussian
from tests.inference.kalman._models import make

TIMES = 9 * BLOCK + 17


def close(got, expected, rtol=1e-9):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        scale = np.max(np.abs(other), initial=1e-3)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * scale)


def both(model, ys, method):
    slopes = jax.jit(jax.value_and_grad(lambda m, ys: kalman.log_likelihood(m, ys, method=method), argnums=(0, 1)))
    return kalman.filter(model, ys, method=method), slopes(model, ys)


@pytest.mark.parametrize("name", ["random", "autoregression", "constant_velocity", "correlated_noise"])
def test_gaps_here_and_there(name, x64):
    """A gap in two blocks, one entry in another, in the last one none; where it goes on, covariances are as before."""
    model, ys = make(name, times=TIMES)
    ys[4 * BLOCK - 5 : 4 * BLOCK + 3] = np.nan
    ys[6 * BLOCK + 7, 0] = np.nan
    found = both(model, ys, "steady")
    close(found, both(model, ys, "sequential"))
    close(kalman.log_likelihood(model, ys, method="steady"), found[1][0])


def test_it_does_take_the_short_way(x64, monkeypatch):
    """What a steady block makes is wrong on purpose: it is seen in the blocks after a gap too, and nowhere else."""
    model, ys = make("random", times=TIMES)
    ys[5 * BLOCK + 1] = np.nan
    steps = prepare(model, *as_observations("test", model, ys, None))
    right = jax.jit(lambda steps: steady.run(steps)[2].innovation)(steps)[..., 0]
    original = steady._steadily

    def wrong(*args):
        after, means, innovations = original(*args)
        return after, means, innovations + 1

    monkeypatch.setattr(steady, "_steadily", wrong)
    moved = np.abs(jax.jit(lambda steps: steady.run(steps)[2].innovation)(steps)[..., 0] - right) > 0.5
    by_block = [moved[i * BLOCK : (i + 1) * BLOCK].all() for i in range(10)]
    assert by_block[2:5] == [True] * 3
    assert not moved[5 * BLOCK : 6 * BLOCK].any()
    assert by_block[-1]
    assert not moved[:BLOCK].any()


def test_derivatives_where_the_first_covariance_is_the_last(x64):
    """It never moves, but its derivative does, for two thousand times: those of a model that forgets slowly."""
    variance = 1e-3
    for _ in range(50_000):
        variance = 0.999**2 * variance * 0.5 / (variance + 0.5) + 1e-6
    model = LinearGaussian(
        np.zeros(1), np.array([[variance]]), np.array([[0.999]]), np.array([[1e-6]]), np.ones((1, 1)), np.array([0.5])
    )
    ys = np.random.default_rng(0).normal(size=(3000, 1))
    close(both(model, ys, "steady"), both(model, ys, "sequential"))


@pytest.mark.parametrize(
    ("method", "gaps"),
    [("sequential", True)]
    + [
        pytest.param(method, gaps, marks=pytest.mark.slow)
        for method in ("sequential", "steady", "parallel")
        for gaps in (False, True)
        if (method, gaps) != ("sequential", True)
    ],
)
def test_a_batch_of_series(method, gaps, x64):
    model, ys = make("correlated_noise", times=9 * BLOCK if method == "steady" else 20)
    batch = np.stack([ys, 2 * ys, ys[::-1]])
    if gaps:
        batch[1, 7] = np.nan

    def each(ys):
        slopes = jax.value_and_grad(lambda model: kalman.log_likelihood(model, ys, method=method))(model)
        return kalman.filter(model, ys, method=method), slopes

    close(jax.jit(jax.vmap(each))(batch), jax.tree.map(lambda *x: np.stack(x), *map(jax.jit(each), batch)))

    def total(model):
        return jnp.sum(jax.vmap(lambda ys: kalman.log_likelihood(model, ys, method=method))(batch) ** 2)

    def one_by_one(model):
        return jnp.sum(jax.lax.map(lambda ys: kalman.log_likelihood(model, ys, method=method), batch) ** 2)

    close(jax.jit(jax.grad(total))(model), jax.jit(jax.grad(one_by_one))(model))


def test_a_batch_of_means_is_differentiated(x64):
    model, ys = make("random", times=20)
    batch = np.stack([ys, -ys])

    def total(scale, run):
        moved = dataclasses.replace(model, dynamics_covariance=scale * model.dynamics_covariance)
        return jnp.sum(run(lambda ys: kalman.filter(moved, ys).mean)(batch) ** 2)

    def one_by_one(function):
        return lambda batch: jnp.stack([function(ys) for ys in batch])

    for derivative in (jax.grad, jax.jacfwd):
        one, other = (jax.jit(derivative(lambda s, run=run: total(s, run)))(1.0) for run in (jax.vmap, one_by_one))
        close(one, other)


def test_batches_of_batches_and_of_models(x64):
    model, ys = make("random", times=20)
    batch = np.stack([ys, 2 * ys])
    scales = jnp.array([0.5, 2.0])

    def likelihood(scale, ys):
        return kalman.log_likelihood(dataclasses.replace(model, emission=scale * model.emission), ys)

    found = jax.jit(jax.vmap(jax.vmap(likelihood, (None, 0)), (0, None)))(scales, batch)
    close(found, np.array([[likelihood(scale, ys) for ys in batch] for scale in scales]))
    close(jax.vmap(likelihood)(scales, batch), np.diagonal(found))
    several = jax.vmap(jax.vmap(lambda ys: likelihood(1.0, ys)))(np.stack([batch, batch + 1]))
    close(several, np.array([[likelihood(1.0, ys) for ys in some] for some in (batch, batch + 1)]))


def on_two_devices(function):
    mesh = Mesh(np.array(jax.devices()[:2]), "i")
    return jax.shard_map(jax.vmap(function), mesh=mesh, in_specs=P("i"), out_specs=P("i"))


def test_the_likelihood_of_series_on_several_devices():
    """Inside `shard_map`, of a model that is the same on all of them, whose gradient is that of their sum."""
    model, ys = make("random", times=20, dtype=np.float32)
    batch = np.stack([ys, 2 * ys, -ys, ys[::-1]])

    def total(model, run):
        return jnp.sum(run(lambda ys: kalman.log_likelihood(model, ys))(batch))

    one, other = (
        jax.jit(jax.value_and_grad(lambda m, run=run: total(m, run)))(model) for run in (on_two_devices, jax.vmap)
    )
    close(one, other, 1e-4)


def test_models_of_their_own_on_several_devices():
    model, ys = make("random", times=20, dtype=np.float32)

    def each(scale):
        own = dataclasses.replace(model, dynamics_covariance=scale * model.dynamics_covariance)
        return kalman.log_likelihood(own, ys)

    scales = jnp.arange(1.0, 5.0)
    one, other = (jax.jit(run(jax.value_and_grad(each)))(scales) for run in (on_two_devices, jax.vmap))
    close(one, other, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("times", [20, 8 * BLOCK])
def test_states_of_series_on_several_devices(times):
    model, ys = make("correlated_noise", times=times, dtype=np.float32)
    batch = np.stack([ys, 2 * ys, -ys, ys[::-1]])

    def each(ys):
        slope = jax.grad(lambda ys: kalman.log_likelihood(model, ys))(ys)
        return kalman.smooth(model, ys).mean, kalman.filter(model, ys), slope

    close(jax.jit(on_two_devices(each))(batch), jax.jit(jax.vmap(each))(batch), 1e-4)


def test_a_batch_moves_its_covariances_once():
    """The carry of the loop that a batch without gaps takes has one root; that of the other has one for each series."""
    model, ys = make("random", times=20, dtype=np.float32)
    text = jax.jit(jax.vmap(lambda ys: kalman.log_likelihood(model, ys))).lower(np.stack([ys] * 5)).as_text()
    n = model.state_size
    loops = [line for line in text.splitlines() if "stablehlo.while" in line]
    assert any(f"tensor<{n}x{n}xf32>" in line and "tensor<5x" in line for line in loops)
    assert any(f"tensor<5x{n}x{n}xf32>" in line for line in loops)
