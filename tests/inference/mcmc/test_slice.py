"""Slice sampling against Neal's figures 3 and 5 in NumPy; costs, widths, awkward starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core
from jaxprob.inference import mcmc
from tests.inference._quartic import numpy_density, quartic

SIZE, CASES = 3, 60


class Draws:
    """The random numbers of a sweep."""

    def __init__(self, key, lines):
        self.drops = np.asarray(jax.random.exponential(core.fold(key, 0), (lines,), "float64"))
        self.offsets, self.shares = np.asarray(jax.random.uniform(core.fold(key, 1), (2, lines), "float64"))
        self.key = key

    def uniform(self, evaluations):
        return float(jax.random.uniform(core.fold(self.key, 2, evaluations), (), "float64"))


def stepping_out(density, x0, y, w, u, v, m):
    """Neal (2003), figure 3, in its words. Returns the interval and the number of evaluations."""
    left = x0 - w * u
    right = left + w
    j = int(np.floor(m * v))
    k = (m - 1) - j
    count = 0
    while j > 0:
        count += 1
        if not y < density(left):
            break
        left, j = left - w, j - 1
    while k > 0:
        count += 1
        if not y < density(right):
            break
        right, k = right + w, k - 1
    return left, right, count


def sweep(draws, x, directions, widths, m):
    """Figures 3 and 5 along each direction in turn."""
    x, evaluations = x.copy(), 0
    for line, direction in enumerate(directions):
        start = x.copy()

        def along(t, start=start, direction=direction):
            return numpy_density(start + t * direction)

        y = along(0.0) - draws.drops[line]
        left, right, count = stepping_out(along, 0.0, y, widths[line], draws.offsets[line], draws.shares[line], m)
        evaluations += count
        while True:  # figure 5
            t = left + draws.uniform(evaluations) * (right - left)
            evaluations += 1
            if y < along(t):
                break
            if t < 0:
                left = t
            else:
                right = t
        x = start + t * direction
    return x, evaluations


@pytest.mark.parametrize("max_steps", [1, 2, 5, 100])
@pytest.mark.parametrize("kind", ["in turn", "random order", "hit and run"])
def test_a_transition_is_that_of_numpy(kind, max_steps, x64, rng):
    positions = rng.normal(size=(CASES, SIZE))
    widths = np.exp(rng.normal(size=(CASES, SIZE)) - 0.5)
    masses = np.array([[1.0, 0.5, 0.0], [0.5, 2.0, 0.3], [0.0, 0.3, 0.7]])

    def keys():
        return jax.random.split(jax.random.key(7), CASES)

    @jax.jit
    @jax.vmap
    def ours(key, position, width):
        if kind == "hit and run":
            kernel = mcmc.hit_and_run_slice(quartic, width[0], masses, max_steps=max_steps)
        else:
            kernel = mcmc.coordinate_slice(quartic, width, max_steps=max_steps, random_order=kind == "random order")
        return kernel.step(key, kernel.init(position, key))

    states, infos = ours(keys(), positions, widths)
    orders = set()
    for case, key in enumerate(keys()):
        if kind == "hit and run":
            normal = np.asarray(jax.random.normal(core.fold(key, 1), (SIZE,), "float64"))
            directions, each = [np.linalg.cholesky(masses) @ normal / np.linalg.norm(normal)], widths[case, :1]
        else:
            order = np.arange(SIZE)
            if kind == "random order":
                order = np.asarray(jax.random.permutation(core.fold(key, 1), jnp.arange(SIZE)))
                orders.add(tuple(order))
            directions, each = np.eye(SIZE)[order], widths[case][order]
        draws = Draws(core.fold(key, 0), len(directions))
        expected, evaluations = sweep(draws, positions[case], directions, each, max_steps)
        assert infos.evaluations[case] == evaluations
        np.testing.assert_allclose(states.position[case], expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(states.log_density[case], numpy_density(expected), rtol=1e-9)
        assert states.log_density[case] == infos.log_density[case]
    assert kind != "random order" or len(orders) == 6


def both(density, width=1.0, **options):
    return [mcmc.coordinate_slice(density, width, **options), mcmc.hit_and_run_slice(density, width, **options)]


def square(x):
    return -0.5 * jnp.sum(x * x)


def test_the_density_stands_in_the_program_once():
    for kernel in both(lambda x: jnp.sum(jax.lax.lgamma(x * x + 3))):
        state = kernel.init(jnp.ones(5), jax.random.key(0))
        program = str(jax.make_jaxpr(kernel.step)(jax.random.key(1), state))
        assert program.count("lgamma ") == 1
        assert "digamma" not in program


@pytest.mark.parametrize("max_steps", [1, 4, 100])
def test_where_all_is_flat_an_interval_has_as_many_widths_as_allowed(max_steps):
    """Each line costs every step out and one draw, which is uniform on the interval."""
    for kernel, lines in zip(both(lambda x: 0.0 * jnp.sum(x), 2.0, max_steps=max_steps), (3, 1), strict=True):
        state, info = jax.jit(kernel.step)(jax.random.key(0), kernel.init(jnp.zeros(3), jax.random.key(1)))
        assert info.evaluations == lines * max_steps
        assert np.all(np.abs(state.position) <= 2 * max_steps)
        assert np.all(state.position != 0)


@pytest.mark.parametrize("width", [1e-6, 1e3, 1e12])
def test_widths_far_too_small_and_too_large(width):
    """Too large a width costs the log of it; too small a one moves by as many widths as are allowed."""
    for kernel, lines in zip(both(square, width), (2, 1), strict=True):
        state = kernel.init(jnp.array([0.5, -0.3]), jax.random.key(0))
        for seed in range(20):
            before = state.position
            state, info = jax.jit(kernel.step)(jax.random.key(seed), state)
            assert info.evaluations <= lines * (100 + 1 if width < 1 else 200)
            assert np.all(np.isfinite(state.position))
            assert np.all(np.abs(state.position - before) <= 1.1 * 100 * width)
        assert np.all(state.position != jnp.array([0.5, -0.3]))


def test_widths_come_as_a_number_a_vector_or_a_tree(rng):
    position = {"a": jnp.asarray(rng.normal(size=(2, 2)), jnp.float32), "b": jnp.float32(0.5)}

    def density(q):
        return -0.5 * (jnp.sum(q["a"] ** 2) + q["b"] ** 2)

    def after(widths):
        kernel = mcmc.coordinate_slice(density, widths)
        return jax.jit(kernel.step)(jax.random.key(3), kernel.init(position, jax.random.key(0)))

    tree = {"a": jnp.full((2, 2), 2.0), "b": 2.0}
    for widths in (np.full(5, 2.0), jnp.full(5, 2.0), tree):
        jax.tree.map(np.testing.assert_array_equal, after(widths), after(2.0))
    tree["b"] = 0.1
    jax.tree.map(np.testing.assert_array_equal, after(tree), after(jnp.array([2.0, 2, 2, 2, 0.1])))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_scalars_in_any_dtype(dtype, x64):
    for kernel in both(lambda x: -0.5 * x * x):
        state = kernel.init(jnp.ones((), dtype), jax.random.key(0))
        for seed in range(5):
            state, _ = jax.jit(kernel.step)(jax.random.key(seed), state)
        assert state.position.dtype == dtype
        assert state.position != 1
        assert str(state.log_density.dtype) == ("float32" if dtype == "bfloat16" else dtype)
        np.testing.assert_allclose(state.log_density, -0.5 * float(state.position) ** 2, rtol=1e-2)


@pytest.mark.parametrize("start", [-np.inf, np.nan])
def test_a_chain_that_starts_where_there_is_no_density_gets_in_and_never_back(start):
    for kernel in both(lambda x: jnp.where(x[0] < 0, start, square(x)), 2.0):
        state = kernel.init(jnp.array([-1.0, 0.0]), jax.random.key(0))
        inside = False
        for seed in range(60):
            state, info = jax.jit(kernel.step)(jax.random.key(seed), state)
            inside |= bool(state.position[0] >= 0)
            assert inside == bool(state.position[0] >= 0)
            assert np.isfinite(info.log_density) == inside
        assert inside


def test_a_loop_always_ends():
    """Nowhere any density; a density that is a spike of one point; positions that are not numbers."""
    for density, start in (
        (lambda x: -jnp.inf + 0 * jnp.sum(x), 1.0),
        (lambda x: jnp.where(jnp.all(x == 1), 0.0, -jnp.inf), 1.0),
        (square, np.nan),
    ):
        for kernel in both(density):
            begin = jnp.full((2,), start, jnp.float32)
            state, info = jax.jit(kernel.step)(jax.random.key(0), kernel.init(begin, jax.random.key(1)))
            np.testing.assert_array_equal(state.position, begin)
            assert info.evaluations <= 2 * (200 + 2)


def test_bad_arguments():
    with pytest.raises(TypeError, match="coordinate_slice: log_density is 1"):
        mcmc.coordinate_slice(1)
    with pytest.raises(TypeError, match="hit_and_run_slice: log_density is 1"):
        mcmc.hit_and_run_slice(1)
    with pytest.raises(ValueError, match="coordinate_slice: widths is 0.0; expected finite numbers above zero"):
        mcmc.coordinate_slice(square, 0.0)
    with pytest.raises(ValueError, match="coordinate_slice: widths is"):
        mcmc.coordinate_slice(square, jnp.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="coordinate_slice: max_steps is 0; expected an integer of at least 1"):
        mcmc.coordinate_slice(square, max_steps=0)
    with pytest.raises(ValueError, match="coordinate_slice: widths"):
        mcmc.coordinate_slice(square, jnp.ones(2)).init(jnp.ones(3), jax.random.key(0))
    with pytest.raises(ValueError, match="hit_and_run_slice: width is a float32 array of shape \\(2,\\)"):
        mcmc.hit_and_run_slice(square, jnp.ones(2))
    with pytest.raises(ValueError, match="hit_and_run_slice: inverse_mass_matrix is of shape \\(2,\\)"):
        mcmc.hit_and_run_slice(square, 1.0, jnp.ones(2)).init(jnp.ones(3), jax.random.key(0))
    for kernel in both(lambda x: x):
        with pytest.raises(
            ValueError, match="slice: the value of log_density is of shape \\(3,\\); expected one number"
        ):
            kernel.init(jnp.ones(3), jax.random.key(0))
