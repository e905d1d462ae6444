"""Coupling layers and the flows made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxprob.distributions import flows
from tests.distributions.flows import _ordered as check

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
FACTORIES = pytest.mark.parametrize("factory", [flows.affine_coupling, flows.spline_coupling], ids=["affine", "spline"])
TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-10}


def flow(factory, size=2, context_size=0, dtype=jnp.float32, seed=1, layers=3, scale=0.3):
    made = factory(layers, (8,)).init(jax.random.key(0), size, context_size=context_size, dtype=dtype)
    return check.perturbed(made, seed, scale)


@DTYPES
@FACTORIES
def test_inverse_and_log_determinant(factory, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        bijector = flow(factory, 3, dtype=dtype).bijector
        ends = 4.0 * np.array([[1, 1, 1], [-1, 1, -1], [1, 0, -1]])
        at = check.points(3, dtype, [ends])
        check.check_map(bijector, at, TOLERANCE[dtype])
        if dtype == jnp.float64:
            # Gentler maps, whose finite differences have more digits.
            check.check_gradients(flow(factory, 3, dtype=dtype, scale=0.1).bijector, at[:5])


def test_an_affine_layer_is_its_formula():
    network = check.perturbed(flows.Perceptron.init(jax.random.key(0), (2 + 1, 8, 4)), 2)
    layer = flows.Coupling(network, flows.AffineTransformer(), 2, context_width=1)
    assert layer.context_size == 1
    u = jnp.array([0.5, -1.0, 2.0, 0.1])
    pairs = np.asarray(network(jnp.array([0.5, -1.0, 7.0]))).reshape(2, 2)
    scales = np.exp(3 * np.tanh(pairs[:, 1] / 3))
    x, log_det = layer.given(jnp.array([7.0])).forward_and_log_det(u)
    np.testing.assert_allclose(x, [*(pairs[:, 0] + scales * np.array([2.0, 0.1])), 0.5, -1.0], rtol=1e-6)
    np.testing.assert_allclose(log_det, np.log(scales).sum(), rtol=1e-5)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_layers_change_all_numbers_in_turns(size):
    made = flow(flows.affine_coupling, size, layers=4, seed=3).bijector
    dense = np.asarray(jax.jacfwd(made.forward)(jnp.linspace(-1, 1, size)))
    assert (dense != 0).all()
    # Two layers of even vectors change both halves, and put them back where they were.
    two = jax.tree.map(lambda leaf: leaf[:2], made)
    jacobian = np.asarray(jax.jacfwd(two.forward)(jnp.linspace(-1, 1, size)))
    if size % 2 == 0:
        assert (np.abs(np.diag(jacobian) - 1) > 1e-4).all()


@pytest.mark.parametrize("ndims", [1, 3])
def test_on_images_a_layer_is_one_event(ndims):
    network = check.perturbed(flows.Perceptron.init(jax.random.key(0), (1, 8, 4)), 2)
    layer = flows.Coupling(network, flows.AffineTransformer(), 1, ndims)
    images = jax.random.normal(jax.random.key(1), (5, 2, 3, 3))
    x, log_det = jax.jit(layer.forward_and_log_det)(images)
    back, inverse_log_det = jax.jit(layer.inverse_and_log_det)(x)
    np.testing.assert_allclose(back, images, atol=1e-5)
    np.testing.assert_allclose(inverse_log_det, -log_det, atol=1e-5)
    pixel, each = layer.forward_and_log_det(images[2, 1, 0]) if ndims == 1 else (x[2, 1, 0], None)
    np.testing.assert_allclose(x[2, 1, 0], pixel, rtol=1e-5)
    if ndims == 1:
        assert log_det.shape == (5, 2, 3)
        np.testing.assert_allclose(log_det[2, 1, 0], each, rtol=1e-5)
    else:
        single = flows.Coupling(network, flows.AffineTransformer(), 1).forward_and_log_det(images)[1]
        np.testing.assert_allclose(log_det, np.sum(single, axis=(1, 2)), rtol=1e-5)


@FACTORIES
def test_densities_of_a_context_have_mass_one(factory):
    contexts = jnp.array([[1.0, -2.0], [-1.0, 0.5]])
    # Gentle enough for the grid: slopes of splines go down to 1 / 1,000.
    check.check_mass(flow(factory, context_size=2, seed=5, scale=0.1), 2, contexts)


@FACTORIES
def test_draws_have_the_density(factory):
    check.check_draws(flow(factory))


@FACTORIES
def test_far_out_everything_is_finite(factory):
    check.check_tails(flow(factory, 3).bijector, 3)


@FACTORIES
def test_it_starts_as_the_standard_normal(factory):
    x = check.points(3, jnp.float32)[:5]
    start = factory(3, (8,)).init(jax.random.key(0), 3)
    np.testing.assert_allclose(start.log_prob(x), stats.norm.logpdf(x).sum(axis=-1), rtol=1e-5)
    weights = start.bijector.bijector.layers.network.weights[0]  # of each layer its own
    assert len(np.unique(np.asarray(weights))) == weights.size


@FACTORIES
def test_depth_costs_no_program(factory):
    assert check.equations(factory(2, (8,)), 3) == check.equations(factory(32, (8,)), 3)


@FACTORIES
def test_all_leaves_are_real_and_trained(factory):
    gradients = jax.jit(jax.grad(lambda f: jnp.sum(f.log_prob(check.points(3, jnp.float32)[:5]))))(flow(factory, 3))
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32
        assert leaf.any()


def test_the_formula_of_the_spline_is_in_the_density():
    made = flow(flows.spline_coupling)
    x = jnp.ones((4, 2))
    assert "sqrt" not in str(jax.make_jaxpr(made.log_prob)(x))
    assert "sqrt" in str(jax.make_jaxpr(made.bijector.forward)(x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.affine_coupling(0), "layers is 0"),
        (lambda: flows.affine_coupling(2, 64), "hidden is"),
        (lambda: flows.spline_coupling(2, (0,)), "hidden is 0"),
        (lambda: flows.spline_coupling(bins=0), "bins is 0"),
        (lambda: flows.spline_coupling(interval=0.0), r"interval is 0\.0"),
        (lambda: flows.spline_coupling(1).init(jax.random.key(0), 1), "that of a vector of 2 numbers or more"),
        (lambda: flows.affine_coupling(1).init(jax.random.key(0), (2, 2)), "that of a vector"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert "\n" not in str(error.value)
