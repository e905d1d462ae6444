"""Planar and radial layers and the flows made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from jaxprob.distributions import flows
from tests.distributions.flows import _ordered as check

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
FACTORIES = pytest.mark.parametrize("factory", [flows.planar, flows.radial], ids=["planar", "radial"])
TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-10}


def flow(factory, size=2, layers=4, dtype=jnp.float32, seed=1, scale=0.5):
    return check.perturbed(factory(layers).init(jax.random.key(0), size, dtype=dtype), seed, scale)


def slope(raw):
    return np.log1p(np.exp(raw + np.log(np.expm1(0.999)))) + 0.001


def planar(along=1.0, dtype=jnp.float32):
    return flows.Planar(jnp.array([along, 0.5, -1.0], dtype), jnp.array([1.0, -0.4, 0.3], dtype), jnp.array(0.2, dtype))


def radial(push=1.0, dtype=jnp.float32):
    return flows.Radial(jnp.array([0.5, -1.0, 0.0], dtype), jnp.array(0.3, dtype), jnp.array(push, dtype))


@DTYPES
@pytest.mark.parametrize("layer", [planar, radial])
@pytest.mark.parametrize("strength", [-2.0, 3.0])
def test_inverse_and_log_determinant(layer, strength, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        made = layer(strength, dtype)
        # The center of a radial layer, and the plane of a planar one.
        at = check.points(3, dtype, [[[0.5, -1.0, 0.0], [-0.2, 0.0, 0.0]]])
        check.check_map(made, at, TOLERANCE[dtype])
        if dtype == jnp.float64:
            check.check_gradients(made, at[:5])


def test_a_planar_layer_is_its_formula():
    made = planar(-4.0)
    direction, weight, bias = (np.asarray(leaf, float) for leaf in jax.tree.leaves(made))
    along = direction @ weight
    assert along < -1  # so that without the change it would have no inverse
    changed = slope(along) - 1
    direction = direction + (changed - along) * weight / (weight @ weight)
    u = np.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(made.forward(u), u + direction * np.tanh(weight @ u + bias), rtol=1e-5)


def test_the_inverse_of_a_planar_layer_by_scipy(x64):
    made, x = planar(-4.0, jnp.float64), np.array([0.3, -1.0, 2.0])
    found = optimize.root(lambda u: np.asarray(made.forward(u)) - x, x, tol=1e-12).x
    np.testing.assert_allclose(made.inverse(x), found, atol=1e-9)


def test_a_radial_layer_is_its_formula():
    u = np.array([1.5, -1.0, 2.0])
    center, width = np.array([0.5, -1.0, 0.0]), np.exp(0.3)
    for push in (-3.0, 0.0, 2.0):
        beta = width * (slope(push) - 1)
        stretch = 1 + beta / (width + np.linalg.norm(u - center))
        np.testing.assert_allclose(radial(push).forward(u), center + (u - center) * stretch, rtol=1e-5)
    with np.errstate(all="raise"):
        np.testing.assert_allclose(radial(1.0).forward(center), center)


@pytest.mark.parametrize("layer", [planar, radial])
def test_layers_that_nearly_fold_space_stay_one_to_one(layer):
    x = check.points(3, jnp.float32, [[[0.5, -1.0, 0.0], [-0.2, 0.0, 0.0]]])
    for strength in (-12.0, -30.0, -1e3, 1e3):
        made = layer(strength)
        u, log_det = check.inverse(made, x)
        assert np.isfinite(log_det).all()
        reach = np.abs(np.asarray(x)).max(axis=1, keepdims=True) + abs(strength)
        assert (np.abs(np.asarray(check.forward(made, u)[0] - x)) / reach < 1e-5).all(), strength
        for leaf in jax.tree.leaves(check.densities(made, x[:5])):
            assert np.isfinite(leaf).all()


def test_a_weight_of_zeros_is_a_shift():
    made = flows.Planar(jnp.array([1.0, 2.0]), jnp.zeros(2), jnp.array(0.5))
    x, log_det = made.forward_and_log_det(jnp.zeros(2))
    np.testing.assert_allclose(x, np.tanh(0.5) * np.array([1.0, 2.0]), rtol=1e-6)
    np.testing.assert_allclose(log_det, 0, atol=1e-6)
    gradients = jax.grad(lambda made: jnp.sum(made.forward(jnp.zeros(2))))(made)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@FACTORIES
def test_densities_have_mass_one(factory):
    check.check_mass(flow(factory), 2)
    check.check_mass(flow(factory, 1), 1)


@FACTORIES
def test_contexts_by_conditional(factory):
    made = flows.conditional(factory(3), (8,)).init(jax.random.key(0), 2, context_size=2)
    contexts = jnp.array([[1.0, -2.0], [-1.0, 0.5]])
    check.check_mass(check.perturbed(made, 2), 2, contexts)


@FACTORIES
def test_draws_have_the_density(factory):
    check.check_draws(flow(factory))


@FACTORIES
def test_far_out_everything_is_finite(factory):
    check.check_tails(flow(factory, 3).bijector, 3)


@FACTORIES
def test_it_starts_as_the_standard_normal(factory):
    x = check.points(3, jnp.float32)[:5]
    start = factory(3).init(jax.random.key(0), 3)
    np.testing.assert_allclose(start.log_prob(x), stats.norm.logpdf(x).sum(axis=-1), rtol=1e-5)


@FACTORIES
def test_depth_costs_no_program(factory):
    assert check.equations(factory(2), 3) == check.equations(factory(32), 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.planar(0), "layers is 0"),
        (lambda: flows.radial(1.5), r"layers is 1\.5"),
        (lambda: flows.planar(1).init(jax.random.key(0), (2, 2)), "that of a vector"),
        (lambda: flows.radial(1).init(jax.random.key(0), 2, context_size=3), "context_size is 3; expected 0"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
