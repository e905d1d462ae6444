"""Meshes: chains and data over virtual devices give the result of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import jaxprob
from jaxprob import core, models, runtime
from jaxprob.distributions import Normal
from jaxprob.runtime._mesh import data_specs, resolve_mesh
from tests.runtime import _targets

NOISE = 8.0  # so that the posterior has scales near one, and NUTS needs no tuning


@core.pytree
class Regression:
    """A posterior with its data as leaves."""

    x: jax.Array
    y: jax.Array
    scale: jax.Array

    @property
    def observed(self):
        return {"y": self.y}

    def log_density(self, beta):
        mean = jnp.matmul(self.x, beta, precision="highest")
        return -0.5 * jnp.sum(((self.y - mean) / NOISE) ** 2) - 0.5 * jnp.sum((beta / self.scale) ** 2)

    def initial(self, key):
        return jax.random.normal(key, (self.x.shape[1],))


@pytest.fixture
def regression(rng):
    x = rng.normal(size=(64, 3)).astype(np.float32)
    y = (x @ [1.0, -2.0, 0.5] + NOISE * rng.normal(size=64)).astype(np.float32)
    return Regression(jnp.asarray(x), jnp.asarray(y), jnp.float32(10.0))


def test_a_mesh_has_what_was_asked_for():
    assert dict(runtime.mesh().shape) == {"chains": 8, "data": 1}
    assert dict(runtime.mesh(data=4).shape) == {"chains": 2, "data": 4}
    assert dict(runtime.mesh(chains=3, data=2).shape) == {"chains": 3, "data": 2}
    with pytest.raises(ValueError, match=r"mesh: chains x data is 3 x 3; expected at most 8 devices\."):
        runtime.mesh(chains=3, data=3)
    with pytest.raises(ValueError, match="mesh: data is 0; expected"):
        runtime.mesh(data=0)


@pytest.mark.parametrize(("chains", "used"), [(1, 1), (4, 4), (6, 6), (7, 7), (9, 3), (64, 8), (11, 1)])
def test_by_default_as_many_devices_as_divide_the_chains(chains, used):
    assert resolve_mesh(None, chains).shape["chains"] == used


def test_devices_that_do_not_divide_the_chains():
    with pytest.raises(ValueError, match="sample: devices is 3; expected a number that divides the 4 chains"):
        resolve_mesh(3, 4)
    with pytest.raises(ValueError, match="sample: chains is 4; expected a multiple of the mesh's 8 devices"):
        resolve_mesh(runtime.mesh(), 4)
    with pytest.raises(TypeError, match="sample: devices is 'cpu'; expected None"):
        resolve_mesh("cpu", 4)


def test_data_are_cut_and_parameters_are_not(regression):
    specs = data_specs(regression, runtime.mesh(chains=2, data=4))
    assert specs.x == specs.y == P("data")
    assert specs.scale == P()


def test_data_that_do_not_divide(regression):
    odd = Regression(regression.x[:63], regression.y[:63], regression.scale)
    with pytest.raises(ValueError, match=r"sample: devices is 4 devices along 'data' .*\[63\]; expected"):
        jaxprob.sample(odd, jax.random.key(0), chains=2, draws=2, devices=runtime.mesh(chains=2, data=4))
    target, initial = _targets.matrix()
    with pytest.raises(ValueError, match="leading length none; expected a posterior whose observations divide"):
        jaxprob.sample(
            target, jax.random.key(0), initial=initial, chains=2, draws=2, devices=runtime.mesh(chains=2, data=4)
        )


@pytest.mark.parametrize("shape", [(1, 8), (2, 4), (4, 1)])
def test_a_chains_by_data_mesh_gives_the_result_of_one_device(regression, shape):
    options = {"chains": 4, "draws": 100, "warmup": 0}
    one = jaxprob.sample(regression, jax.random.key(1), devices=1, **options)
    mesh = runtime.mesh(chains=shape[0], data=shape[1])
    many = jaxprob.sample(regression, jax.random.key(1), devices=mesh, **options)
    # The same trajectories up to rounding, while rounding has not grown: the likelihood is summed in another order.
    np.testing.assert_array_equal(many.stats["num_steps"][:, :5], one.stats["num_steps"][:, :5])
    np.testing.assert_allclose(many.draws[:, :5], one.draws[:, :5], rtol=2e-3, atol=2e-3)
    # The exact posterior is normal: means within 5 standard errors of an effective sample of 100 (false alarm 2e-6).
    x, y = np.asarray(regression.x, np.float64), np.asarray(regression.y, np.float64)
    covariance = np.linalg.inv(x.T @ x / NOISE**2 + np.eye(3) / 100)
    mean = covariance @ x.T @ y / NOISE**2
    z = (many.draws[:, 10:].mean((0, 1)) - mean) / np.sqrt(np.diag(covariance) / 100)
    assert np.abs(z).max() < 5


def test_parameters_as_many_as_data_lie_whole_on_every_device():
    """XLA would cut them too, and chains that leave their loops at different times would wait for each other."""

    @models.joint
    def groups(sigma):
        mu = yield "mu", Normal(0.0, 4.0)
        shift = yield "shift", Normal(0.0, 3.0)  # with it even the number of all parameters can be cut
        theta = yield "theta", Normal(jnp.full_like(sigma, mu + shift), 4.0)
        yield "y", Normal(theta, sigma)

    y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    sigma = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    posterior = groups(jnp.asarray(sigma, jnp.float32)).condition(y=y)
    options = {"chains": 8, "draws": 200, "warmup": 100}
    found = jaxprob.sample(posterior, jax.random.key(1), devices=runtime.mesh(chains=4, data=2), **options)
    # Exact: y is normal given mu + shift, and theta given both. Of 1,600 draws 400 count as independent; means within
    # 4.5 standard errors (false alarm 6e-5 for nine numbers).
    weight = 1 / (4.0**2 + sigma**2)
    variance = 1 / (1 / 25 + weight.sum())
    mean = variance * (weight * y).sum()
    shrunk = (y * 4.0**2 + sigma**2 * mean) * weight
    deviation = np.sqrt((sigma**2 * weight) ** 2 * variance + sigma**2 * 4.0**2 * weight)
    assert abs((found.draws["mu"] + found.draws["shift"]).mean() - mean) < 4.5 * np.sqrt(variance / 400)
    assert np.all(np.abs(found.draws["theta"].mean((0, 1)) - shrunk) < 4.5 * deviation / 20)


def test_pmap_gives_the_same_bits():
    target, initial = _targets.elementwise()
    options = {"initial": initial, "chains": 8, "draws": 50, "warmup": 100}
    a = jaxprob.sample(target, jax.random.key(1), devices=4, **options)
    b = jaxprob.sample(target, jax.random.key(1), devices=4, executor="pmap", **options)
    np.testing.assert_array_equal(a.draws, b.draws)
    np.testing.assert_array_equal(a.stats["step_size"], b.stats["step_size"])


def test_one_two_and_eight_devices_give_the_same_bits():
    target, initial = _targets.elementwise()
    options = {"initial": initial, "chains": 8, "draws": 50, "warmup": 100}
    one, two, eight = (jaxprob.sample(target, jax.random.key(1), devices=number, **options) for number in (1, 2, 8))
    np.testing.assert_array_equal(one.draws, two.draws)
    np.testing.assert_array_equal(one.draws, eight.draws)
