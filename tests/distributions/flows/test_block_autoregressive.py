"""Block neural autoregressive flows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.distributions import flows
from tests.distributions.flows import _ordered as check

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
TOLERANCE = {jnp.float32: 1e-4, jnp.float64: 1e-10}


@functools.cache
def flow(size=2, layers=2, context_size=0, dtype=jnp.float32, one_pass="density", seed=1):
    factory = flows.block_autoregressive(layers, 4, hidden_layers=1, one_pass=one_pass)
    return check.made(factory, size, context_size, dtype, seed)


@functools.cache
def steep(size=2, dtype=jnp.float32, seed=1, context_size=0, hidden_layers=1):
    """One layer whose network is far from small."""
    factory = flows.block_autoregressive(1, 4, hidden_layers=hidden_layers, one_pass="sampling")
    made = check.made(factory, size, context_size, dtype, seed, 1.0).bijector.layers.bijectors[0]
    layer = jax.tree.map(lambda leaf: leaf[0], made)
    return flows.BlockAutoregressive(layer.log_slope, layer.layers, layer.from_context, context_width=context_size)


@DTYPES
def test_inverse_and_log_determinant(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        layer = steep(3, dtype, hidden_layers=1 if dtype == jnp.float32 else 2)
        check.check_map(layer, check.points(3, dtype), TOLERANCE[dtype])


def test_a_layer_is_its_formula_in_numpy():
    layer = steep(2)
    hidden = u = np.array([0.4, -1.3])
    for i, affine in enumerate(layer.layers):
        size, before, after = affine.log_diagonal.shape
        matrix = np.zeros((size * before, size * after))
        for block_out in range(size):
            for block_in in range(block_out + 1):
                rows = slice(block_in * before, (block_in + 1) * before)
                columns = slice(block_out * after, (block_out + 1) * after)
                own = block_in == block_out
                part = np.exp(affine.log_diagonal[block_in]) if own else np.asarray(affine.lower)[rows, columns]
                matrix[rows, columns] = part
        matrix *= np.exp(np.asarray(affine.log_scale)) / np.linalg.norm(matrix, axis=0)
        hidden = hidden @ matrix + np.asarray(affine.bias)
        hidden = np.tanh(hidden) if i == 0 else hidden
    expected = np.exp(np.asarray(layer.log_slope)) * u + hidden
    np.testing.assert_allclose(check.forward(layer, jnp.asarray(u, jnp.float32))[0], expected, rtol=1e-5)


def test_the_jacobian_is_triangular_with_a_positive_diagonal():
    jacobian = jax.jit(jax.vmap(jax.jacfwd(steep(3).forward)))(check.points(3, jnp.float32)[:5])
    assert not np.triu(jacobian, 1).any()
    assert (np.diagonal(jacobian, axis1=1, axis2=2) > 0).all()
    assert (np.abs(jacobian).max(axis=0)[np.tril_indices(3, -1)] > 1e-4).all()


def test_densities_of_a_context_have_mass_one():
    check.check_mass(flow(context_size=2, seed=4), 2, jnp.array([[1.0, -2.0], [-1.0, 0.5]]))


def test_a_density_of_one_number_has_mass_one():
    check.check_mass(flow(1), 1)


@pytest.mark.slow
def test_draws_have_the_density():
    check.check_draws(flow())


def test_far_out_everything_is_finite_and_gradients_are_right():
    check.check_tails(steep(3), 3)


@pytest.mark.slow
def test_far_out_all_is_finite_where_the_density_takes_one_pass():
    check.check_tails(flow(3).bijector, 3)


def test_large_weights_do_not_overflow():
    layer = steep(3)
    large = jax.tree.map(lambda leaf: 30 * leaf, layer)
    large = flows.BlockAutoregressive(layer.log_slope, large.layers)
    x = check.points(3, jnp.float32)
    for leaf in jax.tree.leaves((check.forward(large, x), check.densities(large, x))):
        assert np.isfinite(leaf).all()


def test_either_direction_takes_one_pass():
    x = jax.ShapeDtypeStruct((4, 3), jnp.float32)
    for one_pass in ("density", "sampling"):
        architecture = flows.block_autoregressive(2, 4, one_pass=one_pass)
        bijector = jax.eval_shape(lambda a=architecture: a.init(jax.random.key(0), 3)).bijector
        density = str(jax.make_jaxpr(lambda b, x: b.inverse_and_log_det(x))(bijector, x))
        draws = str(jax.make_jaxpr(lambda b, x: b.forward_and_log_det(x))(bijector, x))
        assert ("while" in density, "while" in draws) == (one_pass == "sampling", one_pass == "density")


def test_it_starts_near_the_standard_normal():
    start = flows.block_autoregressive(2, 4).init(jax.random.key(0), 3)
    log_det = check.inverse(start.bijector, check.points(3, jnp.float32)[:5])[1]
    assert np.abs(log_det).max() < 1
    slopes = jax.jit(jax.vmap(jax.jacfwd(start.bijector.inverse)))(check.points(3, jnp.float32)[:5])
    assert np.abs(np.asarray(slopes) - np.eye(3)).max() < 0.5


def test_no_key_is_used_twice():
    check.check_keys(flows.block_autoregressive(2, 4, hidden_layers=2), 3, 4)


def test_depth_costs_no_program():
    assert check.equations(flows.block_autoregressive(2), 3) == check.equations(flows.block_autoregressive(32), 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.block_autoregressive(0), "layers is 0"),
        (lambda: flows.block_autoregressive(1, 0), "block is 0"),
        (lambda: flows.block_autoregressive(1, hidden_layers=0), "hidden_layers is 0"),
        (lambda: flows.block_autoregressive(1, one_pass="both"), "one_pass is both"),
        (lambda: flows.block_autoregressive(1).init(jax.random.key(0), ()), "that of a vector"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert "\n" not in str(error.value)
