"""Linear bijectors against matrices in NumPy, on vectors and on images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import distributions as d
from jaxprob.distributions import flows

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
ORDER = (2, 0, 3, 1)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def reflections(vectors):
    matrix = np.eye(vectors.shape[1])
    for v in vectors:
        matrix = matrix @ (np.eye(len(v)) - 2 * np.outer(v, v) / (v @ v))
    return matrix


def lower_upper(triangles, log_diagonal):
    lower = np.tril(triangles, -1) + np.eye(4)
    upper = np.triu(triangles, 1) + np.diag(np.exp(log_diagonal))
    return (lower @ upper)[list(ORDER)]


def cases(dtype):
    """Name, bijector, its matrix and its shift."""
    vectors, triangles, diagonal, loc = numbers(3, 4), numbers(4, 4, seed=1), numbers(4, seed=2), numbers(4, seed=3)

    def cast(*arrays):
        return [jnp.asarray(array, dtype) for array in arrays]

    return {
        "permutation": (flows.Permutation(ORDER), np.eye(4)[list(ORDER)], 0),
        "orthogonal": (flows.Orthogonal(*cast(vectors)), reflections(vectors), 0),
        "lower_upper": (flows.LowerUpper(ORDER, *cast(triangles, diagonal)), lower_upper(triangles, diagonal), 0),
        "act_norm": (flows.ActNorm(*cast(loc, diagonal)), np.diag(np.exp(diagonal)), loc),
    }


@DTYPES
@pytest.mark.parametrize("name", ["permutation", "orthogonal", "lower_upper", "act_norm"])
def test_it_is_its_matrix(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        bijector, matrix, shift = cases(dtype)[name]
        tolerance = 1e-4 if dtype == jnp.float32 else 1e-10
        u = np.concatenate([numbers(5, 4, seed=9), np.zeros((1, 4)), 1e4 * np.eye(4)[:1]])
        log_volume = np.linalg.slogdet(matrix)[1]
        x, log_det = jax.jit(bijector.forward_and_log_det)(jnp.asarray(u, dtype))
        np.testing.assert_allclose(x, u @ matrix.T + shift, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(log_det, np.full(7, log_volume), atol=tolerance)
        back, inverse_log_det = jax.jit(bijector.inverse_and_log_det)(jnp.asarray(u, dtype))
        expected = np.linalg.solve(matrix, (u - shift).T).T
        np.testing.assert_allclose(back, expected, rtol=tolerance, atol=10 * tolerance)
        np.testing.assert_allclose(inverse_log_det, np.full(7, -log_volume), atol=tolerance)
        for value in (x, log_det, back, inverse_log_det):
            assert value.dtype == dtype
        # More leading axes, and one vector.
        batch = jnp.asarray(u[:6].reshape(2, 3, 4), dtype)
        np.testing.assert_allclose(bijector.forward(batch), x[:6].reshape(2, 3, 4), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(bijector.inverse(batch[1, 2]), back[5], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lower_upper", "act_norm"])
def test_on_images_each_pixel_counts(name):
    bijector, matrix, shift = cases(jnp.float32)[name]
    images = jnp.asarray(numbers(3, 2, 5, 4), jnp.float32)
    x, log_det = d.IndependentBijector(bijector, 2).forward_and_log_det(images)
    np.testing.assert_allclose(x, np.asarray(images) @ matrix.T + shift, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_det, np.full(3, 10 * np.linalg.slogdet(matrix)[1]), rtol=1e-5)


def test_an_orthogonal_matrix_is_orthogonal_whatever_its_vectors():
    vectors = jnp.asarray(np.concatenate([1e-30 * numbers(1, 4), 1e30 * numbers(1, 4), np.zeros((1, 4))]), jnp.float32)
    matrix = np.asarray(flows.Orthogonal(vectors).matrix)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(matrix, reflections(np.asarray(vectors[:2], float)), atol=1e-6)
    gradients = jax.grad(lambda vectors: jnp.sum(flows.Orthogonal(vectors).forward(jnp.ones(4))))(vectors)
    assert np.isfinite(gradients).all()


@pytest.mark.parametrize("name", ["orthogonal", "lower_upper", "act_norm"])
def test_gradients_are_finite_differences(name, x64):
    bijector = cases(jnp.float64)[name][0]
    leaves, structure = jax.tree.flatten(bijector)
    directions = [jnp.asarray(numbers(*leaf.shape, seed=5)) for leaf in leaves]
    x = jnp.asarray(numbers(3, 4, seed=6))

    @jax.jit
    def total(step):
        moved = jax.tree.unflatten(structure, [a + step * b for a, b in zip(leaves, directions, strict=True)])
        u, log_det = moved.inverse_and_log_det(x)
        return jnp.sum(u**3) + jnp.sum(log_det)

    np.testing.assert_allclose((total(1e-5) - total(-1e-5)) / 2e-5, jax.grad(total)(0.0), rtol=1e-6)


@DTYPES
def test_act_norm_starts_from_data(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        batch = jnp.asarray(numbers(50, 2, 3) * np.array([1.0, 0.0, 30.0]) + np.array([5.0, 7.0, -2.0]), dtype)
        norm = flows.ActNorm.from_data(batch)
        u = np.asarray(norm.inverse(batch), float)
        np.testing.assert_allclose(u.mean(axis=(0, 1)), 0, atol=1e-5)
        np.testing.assert_allclose(u.std(axis=(0, 1)), [1, 0, 1], atol=1e-5)
        assert {leaf.dtype for leaf in jax.tree.leaves(norm)} == {jnp.dtype(dtype)}
        assert jax.tree.structure(norm) == jax.tree.structure(flows.ActNorm(0, 0))


def test_squeeze_gathers_two_by_two_pixels():
    images = jnp.asarray(numbers(2, 4, 6, 3), jnp.float32)
    squeezed, log_det = flows.Squeeze().forward_and_log_det(images)
    assert squeezed.shape == flows.Squeeze().forward_shape(images.shape) == (2, 2, 3, 12)
    assert flows.Squeeze().inverse_shape(squeezed.shape) == images.shape
    np.testing.assert_array_equal(log_det, np.zeros(2))
    for row in range(2):
        for column in range(3):
            block = images[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            np.testing.assert_array_equal(squeezed[:, row, column], block.reshape(2, 12))
    np.testing.assert_array_equal(flows.Squeeze().inverse(squeezed), images)


def test_leaves_are_what_is_trained():
    assert jax.tree.leaves(flows.Permutation(ORDER)) == []
    assert len(jax.tree.leaves(flows.LowerUpper.identity(ORDER))) == 2
    np.testing.assert_array_equal(flows.LowerUpper.identity(ORDER).forward(jnp.arange(4.0)), ORDER)
    assert all(case[0].keeps_reals for case in cases(jnp.float32).values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flows.Permutation((0, 2)), r"Permutation: order is \(0, 2\)"),
        (lambda: flows.LowerUpper((1, 1), jnp.eye(2), jnp.zeros(2)), r"LowerUpper: order is \(1, 1\)"),
        (lambda: flows.ActNorm.from_data(jnp.ones(3)), r"batch is of shape \(3,\)"),
        (lambda: flows.Squeeze().forward(jnp.ones((3, 4, 1))), r"u is of shape \(3, 4, 1\)"),
        (lambda: flows.Squeeze().forward(jnp.ones((4, 1))), r"u is of shape \(4, 1\)"),
        (lambda: flows.Squeeze().inverse(jnp.ones((3, 4, 6))), r"x is of shape \(3, 4, 6\)"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
