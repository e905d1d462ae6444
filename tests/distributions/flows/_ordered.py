"""What the tests of flows of ordered numbers have in common; expectations are closed forms and autodiff."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxprob import distributions as d


def perturbed(tree, seed, scale=0.3):
    """The tree with normal noise added to every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    keys = [jax.random.fold_in(jax.random.key(seed), i) for i in range(len(leaves))]
    noise = [jax.random.normal(key, leaf.shape, leaf.dtype) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, [leaf + scale * e for leaf, e in zip(leaves, noise, strict=True)])


def made(architecture, size, context_size=0, dtype=jnp.float32, seed=1, scale=0.3):
    """A flow that is far from its first parameters, made in one program."""

    def make():
        start = architecture.init(jax.random.key(0), size, context_size=context_size, dtype=dtype)
        return perturbed(start, seed, scale)

    return jax.jit(make)()


def points(size, dtype, extra=()):
    """Random points, the origin, and far ones."""
    random = 2 * np.random.default_rng(1).normal(size=(5, size))
    far = np.array([[30.0], [-30.0]]) * np.linspace(1, 0.5, size)
    return jnp.asarray(np.concatenate([random, np.zeros((1, size)), far, *extra]), dtype)


@jax.jit
def forward(bijector, u):
    return bijector.forward_and_log_det(u)


@jax.jit
def inverse(bijector, x):
    return bijector.inverse_and_log_det(x)


@functools.partial(jax.jit, static_argnums=2)
def _jacobians(bijector, u, reverse_mode):
    jacobian = jax.jacrev if reverse_mode else jax.jacfwd

    def one(u):
        def value(u):
            x = bijector.forward(u)
            return x, x

        jac, x = jacobian(value, has_aux=True)(u)
        return x, jac

    return jax.vmap(one)(u)


def in_float64(*trees):
    return jax.tree.map(lambda x: np.float64(x) if x.dtype == np.float32 else x, trees)


def differentiated(bijector, u, reverse_mode=False):
    """`forward` of single vectors and log |det| of its Jacobian by autodiff, in float64.

    Far out a Jacobian in float32, of entries of all sizes, does not know its determinant.
    """
    with jax.enable_x64(True):
        x, jacobians = _jacobians(*in_float64(bijector, u), reverse_mode)
        return np.asarray(x), np.linalg.slogdet(np.asarray(jacobians))[1]


def log_det_of_the_way_back(there, back, bijector, at):
    """What `back` says, in float64, where `there` leads from these points: at the points that float32 has, not near."""
    with jax.enable_x64(True):
        wide, at = in_float64(bijector, at)
        return np.asarray(back(wide, there(wide, at)[0])[1])


@jax.jit
def densities(bijector, x):
    """The log density of each row of x, and the gradients of their sum."""

    def total(bijector, x):
        u, log_det = jax.vmap(bijector.inverse_and_log_det)(x)
        log_densities = log_det - jnp.sum(u**2, axis=-1) / 2
        return jnp.sum(log_densities), log_densities

    (_, log_densities), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(bijector, x)
    return log_densities, gradients


def check_map(bijector, at, tolerance, reverse_mode=False):
    """Inverses both ways, log-determinants against autodiff, single vectors against batches, the dtype."""
    size = 1 + np.abs(at)
    x, log_det = forward(bijector, at)
    back, back_log_det = inverse(bijector, x)
    np.testing.assert_allclose(back / size, at / size, atol=tolerance)
    np.testing.assert_allclose(back_log_det, -log_det_of_the_way_back(inverse, forward, bijector, x), atol=tolerance)
    u, inverse_log_det = inverse(bijector, at)
    again, again_log_det = forward(bijector, u)
    np.testing.assert_allclose(again / size, at / size, atol=tolerance)
    np.testing.assert_allclose(
        inverse_log_det, -log_det_of_the_way_back(inverse, forward, bijector, at), atol=tolerance
    )
    np.testing.assert_allclose(again_log_det, -log_det_of_the_way_back(forward, inverse, bijector, u), atol=tolerance)
    singles, expected = differentiated(bijector, at, reverse_mode)
    np.testing.assert_allclose(singles / size, x / size, atol=tolerance)
    np.testing.assert_allclose(log_det, expected, atol=tolerance)
    assert np.ptp(log_det) > 0.01, "a map that is too simple tests nothing"
    for value in (x, log_det, u, inverse_log_det):
        assert value.dtype == at.dtype


def check_gradients(bijector, x):
    """The gradient of the log densities against finite differences along one direction."""
    step, tolerance = {"float32": (1e-3, 5e-3), "float64": (1e-5, 1e-6)}[str(x.dtype)]
    gradients = densities(bijector, x)[1]
    direction = perturbed(jax.tree.map(jnp.zeros_like, (bijector, x)), 3, 1.0)
    ends = []
    for sign in (-1, 1):
        moved = jax.tree.map(lambda a, b, sign=sign: a + sign * step * b, (bijector, x), direction)
        ends.append(np.sum(np.asarray(densities(*moved)[0], float)))
    pairs = zip(*map(jax.tree.leaves, (gradients, direction)), strict=True)
    slope = sum(np.sum(np.asarray(a * b, float)) for a, b in pairs)
    np.testing.assert_allclose((ends[1] - ends[0]) / (2 * step), slope, rtol=tolerance)


def check_tails(bijector, size):
    """Finite densities and gradients as far out as 10,000, in float32, and gradients near the origin."""
    rows = np.array([[1e4], [-1e4], [3e2], [0.0]]) * np.ones(size)
    rows = np.concatenate([rows, np.array([[(-1e4) ** (i % 2) for i in range(size)]]), rows[:3] * np.eye(size)[:1]])
    x = jnp.asarray(rows, jnp.float32)
    for value in jax.tree.leaves((densities(bijector, x), forward(bijector, x))):
        assert np.isfinite(value).all()
    check_gradients(bijector, jnp.tile(points(size, x.dtype)[:4], (2, 1)))


@jax.jit
def log_probs(flow, x, contexts=None):
    """(context, row) of the log density; of rows alone without contexts."""
    if contexts is None:
        return flow.log_prob(x)
    return jax.vmap(lambda context: flow.given(context).log_prob(x))(contexts)


def edges(count):
    """Ends of cells from -550 to 550 that are narrow about 0 and wide far out, for densities with long tails."""
    return np.sinh(np.linspace(-7, 7, count + 1))


def grid(size, count):
    """A point in each cell, (count ** size, size), and the volumes that go with them in sums over the grid."""
    step = 14 / count
    t = np.linspace(-7 + step / 2, 7 - step / 2, count)
    places = np.stack(np.meshgrid(*[np.sinh(t)] * size, indexing="ij"), axis=-1).reshape(-1, size)
    volumes = np.prod(np.stack(np.meshgrid(*[step * np.cosh(t)] * size, indexing="ij"), axis=-1), axis=-1)
    return jnp.asarray(places, jnp.float32), volumes.reshape(-1)


def check_mass(flow, size, contexts=None, tolerance=1e-3):
    """The density adds up to 1, for each context, and differs between them."""
    x, volumes = grid(size, {1: 2000, 2: 280}[size])
    density = np.exp(np.asarray(log_probs(flow, x, contexts), float))
    np.testing.assert_allclose(density @ volumes, 1.0, atol=tolerance)
    if contexts is not None:
        assert np.abs(density[0] - density[1]) @ volumes > 0.05


def check_draws(flow, draws=4000, count=280, cells=8):
    """A chi-square test of draws in two dimensions against the density on a grid; 1 in 1,000 fails by chance."""
    x, log_prob = jax.jit(lambda flow: flow.sample_and_log_prob(jax.random.key(5), (draws,)))(flow)
    np.testing.assert_allclose(log_prob, log_probs(flow, x), atol=2e-3)
    points, volumes = grid(2, count)
    probabilities = np.exp(np.asarray(log_probs(flow, points), float)) * volumes
    # Cells of about equal counts that begin and end where cells of the grid do.
    lines = edges(count)
    inner = [np.quantile(np.asarray(x)[:, i], np.linspace(0, 1, cells + 1)[1:-1]) for i in range(2)]
    inner = [np.unique(lines[np.argmin(np.abs(lines[:, None] - ends), axis=0)]) for ends in inner]

    def cell(rows):
        columns = [np.searchsorted(ends, np.asarray(rows)[:, i]) for i, ends in enumerate(inner)]
        return columns[0] * (len(inner[1]) + 1) + columns[1]

    number = (len(inner[0]) + 1) * (len(inner[1]) + 1)
    expected = draws * np.bincount(cell(points), weights=probabilities, minlength=number)
    observed = np.bincount(cell(x), minlength=number)
    enough = expected >= 5
    # Cells that are too small for the test join the largest.
    first = np.argmax(expected)
    expected[first] += expected[~enough].sum()
    observed[first] += observed[~enough].sum()
    statistic = np.sum(((observed - expected) ** 2 / np.maximum(expected, 1))[enough])
    assert stats.chi2.sf(statistic, enough.sum() - 1) > 1e-3


def check_keys(architecture, size, context_size=0):
    """No two arrays of parameters are drawn with one key: the same bits would give the same signs."""
    flow = jax.jit(lambda: architecture.init(jax.random.key(0), size, context_size=context_size))()
    stacked = isinstance(getattr(flow.bijector, "layers", None), d.Bijector)
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(flow)]
    arrays = [part for array in arrays for part in (array if stacked else array[None])]
    signs = [np.sign(array.ravel()) for array in arrays if array.size >= 12 and array.any()]
    assert len(signs) > 1
    for one, other in itertools.combinations(signs, 2):
        count = min(one.size, other.size)
        assert (one[:count] != other[:count]).any()


def equations(architecture, size):
    """Number of equations of the program of the gradient of a density, those of inner programs counted."""
    flow = jax.eval_shape(lambda: architecture.init(jax.random.key(0), size))
    x = jax.ShapeDtypeStruct((4, size), jnp.float32)

    def count(jaxpr):
        inner = [leaf for equation in jaxpr.eqns for leaf in jax.tree.leaves(list(equation.params.values()))]
        programs = [getattr(leaf, "jaxpr", leaf) for leaf in inner]
        return len(jaxpr.eqns) + sum(count(program) for program in programs if hasattr(program, "eqns"))

    return count(jax.make_jaxpr(jax.grad(lambda flow, x: jnp.sum(flow.log_prob(x))))(flow, x).jaxpr)
