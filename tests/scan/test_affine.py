"""`scan.affine`: every kind of decay and every method against a loop in float64 NumPy.

Derivatives are compared with those of `lax.scan` in float64 on decays written out in full. The systems forget: a
float32 error stays within 1e-5 of the largest state; a swapped order, a lost init or a wrong decay is of size one.
"""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxprob import scan
from jaxprob.scan import Complex, Exponential
from tests.scan import _loops as loops
from tests.scan._loops import quick

BAR = 1e-5
METHODS = ("sequential", "chunked", "associative")


class Kind(NamedTuple):
    """One kind of decay: shapes of its arrays, how they make arguments and the numbers they stand for.

    Attributes:
      shapes: time axis (None for all steps) and other axes of the arrays of a decay.
      state: shape of a state.
      decay: the arrays -> what `affine` takes.
      number: the arrays -> decays as numbers, of NumPy or of JAX.
      pairs: whether increments and states come as a `Complex`.
      native: whether they come as complex arrays.
    """

    shapes: tuple[tuple[Any, ...], ...]
    state: tuple[int, ...]
    decay: Any = lambda a: a
    number: Any = lambda a: a
    pairs: bool = False
    native: bool = False


def polar(modulus, phase):
    return jnp.exp(modulus) * (jnp.cos(phase) + 1j * jnp.sin(phase))


KINDS = {
    "numbers": Kind(((None,),), ()),
    "one number a step": Kind(((None,),), (2, 3)),
    "elementwise": Kind(((None, 3),), (3,)),
    "broadcast": Kind(((None, 3, 1),), (3, 2)),
    "constant": Kind(((1, 3),), (3,)),
    "dense": Kind(((None, 3, 3),), (3,)),
    "constant dense": Kind(((1, 3, 3),), (3,)),
    "blocks": Kind(((None, 2, 3, 3),), (2, 3)),
    "one matrix for all blocks": Kind(((None, 1, 3, 3),), (2, 3)),
    "exponential": Kind(((None, 3),), (3,), Exponential, jnp.exp),
    "exponential, complex states": Kind(((None, 3),), (3,), Exponential, jnp.exp, pairs=True),
    "exponential, phase": Kind(((None, 3), (None, 3)), (3,), Exponential, polar, pairs=True),
    "constant exponential, phase": Kind(((1, 2, 3), (1, 2, 3)), (2, 3), Exponential, polar, pairs=True),
    "pairs": Kind(((None, 3), (None, 3)), (3,), Complex, lambda a, b: a + 1j * b, pairs=True),
    "pairs, dense": Kind(((1, 2, 2), (1, 2, 2)), (2,), Complex, lambda a, b: a + 1j * b, pairs=True),
    "complex": Kind(((None, 3), (None, 3)), (3,), lambda a, b: lax.complex(a, b), lambda a, b: a + 1j * b, native=True),
}
each_method = pytest.mark.parametrize("method", METHODS)


class Problem(NamedTuple):
    """Real float32 arrays: of the decay, and of increment and init (real and imaginary part)."""

    decay: Any
    increment: Any
    init: Any


def draw(name, steps, seed=0):
    kind, rng = KINDS[name], np.random.default_rng([seed, steps])
    parts = 2 if kind.pairs or kind.native else 1
    a = [rng.uniform(-1, 1, size=[steps if n is None else n for n in shape]) for shape in kind.shapes]
    dense = len(kind.shapes[0]) > len(kind.state) + 1
    if kind.decay is Exponential:
        a = [-np.exp(a[0]), *(3 * x for x in a[1:])]  # decays from 0.07 to 0.7
    elif dense:
        a = [0.8 * x / (kind.state[-1] * len(a)) ** 0.5 for x in a]  # sums of squares of rows below 0.7 in the mean
    else:
        a = [0.98 * x / len(a) ** 0.5 for x in a]
    arrays = [rng.normal(size=(parts, *shape)) for shape in ((steps, *kind.state), kind.state)]
    return jax.tree.map(np.float32, Problem(tuple(a), *map(tuple, arrays)))


def arguments(name, problem):
    """What `affine` takes."""
    kind = KINDS[name]
    problem = jax.tree.map(jnp.asarray, problem)
    form = (lambda *x: Complex(*x)) if kind.pairs else lax.complex if kind.native else (lambda x: x)
    return kind.decay(*problem.decay), form(*problem.increment), form(*problem.init)


def numbers(name, problem):
    """The numbers these arguments stand for, in float64 or complex128."""
    problem = jax.tree.map(np.float64, problem)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        decay = np.asarray(KINDS[name].number(*problem.decay))
    return decay, *(x[0] if len(x) == 1 else x[0] + 1j * x[1] for x in (problem.increment, problem.init))


def plain(result):
    """A result as numbers."""
    if isinstance(result, Complex):
        assert result.real.dtype == result.imaginary.dtype
        return np.float64(result.real) + 1j * np.float64(result.imaginary)
    return np.asarray(result)


def check(name, got, problem, want=None, **options):
    want = loops.affine(*numbers(name, problem), **options) if want is None else want
    kind = KINDS[name]
    assert isinstance(got.states, Complex) is kind.pairs
    assert all(x.dtype == (jnp.complex64 if kind.native else jnp.float32) for x in jax.tree.leaves(got))
    assert loops.error(plain(got.states), want[0]) <= BAR
    assert loops.error(plain(got.final), want[1]) <= 4 * BAR  # it may be a small state
    last = jax.tree.map(lambda x: x[0 if options.get("reverse") else -1], got.states)
    jax.tree.map(np.testing.assert_array_equal, got.final, last)


WAYS = {
    "sequential": lambda steps: {"method": "sequential"},
    "chunked": lambda steps: {"method": "chunked"},
    "chunks of 1": lambda steps: {"method": "chunked", "chunk": 1},
    "chunks of 3": lambda steps: {"method": "chunked", "chunk": 3},
    "a chunk of more": lambda steps: {"method": "chunked", "chunk": steps + 5},
    "associative": lambda steps: {"method": "associative"},
}
LENGTHS = (1, 2, 3, 17, 1024)
CHOICES = tuple(itertools.product([False, True], ["none", "random", "first", "all"]))


def ways_of(name):
    """The three methods, and one length of chunk after the other."""
    lengths = list(WAYS)[2:5]
    return ["sequential", "chunked", lengths[list(KINDS).index(name) % 3], "associative"]


@pytest.mark.parametrize(("name", "way"), [(name, way) for name in KINDS for way in ways_of(name)])
def test_equals_a_loop(name, way):
    """Each kind, and each method, meets every length, direction and reset, and each length every pair of the others."""
    where = 8 * list(KINDS).index(name) + 2 * ways_of(name).index(way)
    for k in (where, where + 1):
        steps = LENGTHS[k % 5]
        reverse, reset = CHOICES[(k + k // 8) % 8]
        problem = draw(name, steps)
        decay, increment, init = arguments(name, problem)
        options = {"reverse": reverse, "reset": loops.masks(np.random.default_rng(k), steps)[reset]}
        run = quick(functools.partial(scan.affine, **options, **WAYS[way](steps)))
        check(name, run(decay, increment, init), problem, **options)


@each_method
@pytest.mark.parametrize("name", ["elementwise", "dense", "exponential, phase"])
def test_long_series(name, method):
    options = {"reverse": name == "dense", "reset": None if name == "elementwise" else (0, 9, 40_000, 65_535)}
    problem, reset = draw(name, 65536), options["reset"]
    options["reset"] = None if reset is None else np.isin(np.arange(65536), reset)
    got = quick(functools.partial(scan.affine, method=method, **options))(*arguments(name, problem))
    check(name, got, problem, long_loop(name, options["reverse"], reset), **options)


@functools.cache
def long_loop(name, reverse, resets):
    reset = None if resets is None else np.isin(np.arange(65536), resets)
    return loops.affine(*numbers(name, draw(name, 65536)), reverse=reverse, reset=reset)


def start_of_zeros(name):
    kind = KINDS[name]
    zero = np.zeros(kind.state, np.float32)
    return (zero, zero) if kind.pairs or kind.native else (zero,)


@each_method
def test_without_init_and_without_steps(method):
    for name in ("elementwise", "exponential, phase", "complex", "one matrix for all blocks"):
        problem = draw(name, 4)
        decay, increment, init = arguments(name, problem)
        check(name, scan.affine(decay, increment, method=method), problem._replace(init=start_of_zeros(name)))
        empty = jax.tree.map(lambda x: x[:0], (decay, increment))
        got = scan.affine(*empty, init, method=method, reset=jnp.zeros(0, bool))
        jax.tree.map(np.testing.assert_array_equal, got.final, init)
        jax.tree.map(np.testing.assert_array_equal, got.states, empty[1])
        zeros = scan.affine(*empty, method=method).final
        jax.tree.map(np.testing.assert_array_equal, zeros, jax.tree.map(jnp.zeros_like, init))


# --- derivatives


def run(name, problem, reverse, reset, **options):
    """States and final as real arrays."""
    got = scan.affine(*arguments(name, problem), reverse=reverse, reset=reset, **options)
    return [part for x in got for part in ([x.real, x.imag] if jnp.iscomplexobj(x) else jax.tree.leaves(x))]


def looped(name, problem, reverse, reset):
    """The same by `lax.scan`, on decays written out at every step."""
    join = lambda x: x[0] if len(x) == 1 else x[0] + 1j * x[1]  # noqa: E731
    decay, increment, init = KINDS[name].number(*problem.decay), join(problem.increment), join(problem.init)
    steps, dense = len(increment), decay.ndim > increment.ndim
    decay = jnp.broadcast_to(decay, (steps, *decay.shape[1:]))
    decay = decay.reshape(steps, *[1] * (increment.ndim - 1)) if decay.ndim == 1 else decay

    def step(state, x):
        factor, added, restart = x
        state = state if restart is None else jnp.where(restart, init, state)
        moved = jnp.einsum("...ij,...j->...i", factor, state) if dense else factor * state
        return moved + added, moved + added

    with jax.numpy_dtype_promotion("standard"):
        init = init.astype(jnp.result_type(init, decay))
        final, states = lax.scan(step, init, (decay, increment, reset), reverse=reverse)
    return [part for x in (states, final) for part in ([x.real, x.imag] if jnp.iscomplexobj(x) else [x])]


def objective(function):
    """Bends what `function` gives, with another weight on each number."""

    def total(name, problem, *args, **options):
        found = function(name, problem, *args, **options)
        return sum(jnp.sum(jnp.sin(x + 0.1 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))) for x in found)

    return total


def in_float64(function, *problems):
    """What `function` gives for float64 problems."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        problems = jax.tree.map(lambda x: jnp.asarray(np.float64(x)), problems)
        return jax.tree.map(np.asarray, quick(function)(*problems))


def close(got, want, bar=BAR):
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert loops.error(x, y) <= bar


@functools.cache
def slopes_of_loop(name, steps, reverse, mask):
    total = functools.partial(objective(looped), name, reverse=reverse, reset=None if mask is None else np.array(mask))
    return in_float64(jax.value_and_grad(total), draw(name, steps, seed=1))


def check_slopes(name, steps, reverse, mask, **options):
    """The value and gradients with respect to decay, increment and init."""
    reset = None if mask is None else np.array(mask)
    total = functools.partial(objective(run), name, reverse=reverse, reset=reset, **options)
    got = quick(jax.value_and_grad(total))(draw(name, steps, seed=1))
    close(got, slopes_of_loop(name, steps, reverse, mask), 2 * BAR)


SLOPES = [(name, method) for k, name in enumerate(KINDS) for method in ("sequential", METHODS[1 + k // 2 % 2])]


@pytest.mark.parametrize(("name", "method"), SLOPES)
def test_gradients(name, method):
    """Through resets; every other kind backwards, so that each algebra goes both ways by each method."""
    mask = (False, False, True, False, True, False, False)
    check_slopes(name, 7, list(KINDS).index(name) % 2 == 1, mask, method=method, chunk=3)


@each_method
@pytest.mark.parametrize("name", ["elementwise", "constant dense", "exponential", "pairs"])
def test_gradients_without_resets(name, method):
    """The other way round than above: what flows back into init goes through one step only."""
    check_slopes(name, 7, list(KINDS).index(name) % 2 == 0, None, method=method, chunk=2)


@each_method
@pytest.mark.parametrize("mask", [(True, False, False), (False, False, True), (True, True, True)])
def test_gradients_with_resets_at_the_ends(mask, method):
    check_slopes("constant", 3, mask == (True, False, False), mask, method=method)


@each_method
def test_gradients_of_one_step(method):
    check_slopes("dense", 1, False, (True,), method=method)
    check_slopes("constant", 1, True, None, method=method)


def test_gradients_of_a_loop_in_float32_are_no_nearer():
    """The bar is one that JAX's own derivative of a loop meets, with no room for another factor."""
    problem, mask = draw("dense", 7, seed=1), (False, False, True, False, True, False, False)
    got = quick(jax.value_and_grad(lambda p: objective(looped)("dense", p, False, np.array(mask))))(problem)
    close(got, slopes_of_loop("dense", 7, False, mask))


def second(function, name, reverse, **options):
    """Forward over reverse: the Hessian of decay and init. Reverse over reverse: the slope of a sum of squares."""
    mask = np.array([False, False, True, False])

    def both(problem):
        def total(free):
            return objective(function)(name, problem._replace(**free), reverse, mask, **options)

        def squares(free):
            return sum(jnp.sum(x * x) for x in jax.tree.leaves(jax.grad(total)(free)))

        free = {"decay": problem.decay, "init": problem.init}
        return jax.hessian(total)(free), jax.grad(squares)(free)

    return both


@functools.cache
def second_of_loop(name, reverse):
    return in_float64(second(looped, name, reverse), draw(name, 4, seed=2))


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("elementwise", method) for method in METHODS),
        ("constant dense", "sequential"),
        ("constant dense", "associative"),
        ("exponential, phase", "sequential"),
        ("exponential, phase", "chunked"),
    ],
)
def test_second_derivatives(name, method):
    reverse = list(KINDS).index(name) % 2 == 1
    got = quick(second(run, name, reverse, method=method, chunk=3))(draw(name, 4, seed=2))
    close(got, second_of_loop(name, reverse), 4 * BAR)


def along(function, name, reverse, **options):
    """Slopes along one direction."""
    mask = np.arange(7) % 4 == 1
    return lambda p, d: jax.jvp(lambda p: function(name, p, reverse, mask, **options), (p,), (d,))[1]


def directions(name):
    """All arguments at once, and one alone."""
    whole = draw(name, 7, seed=9)
    zero = jax.tree.map(np.zeros_like, whole)
    return [whole, *(zero._replace(**{field: getattr(whole, field)}) for field in Problem._fields)]


@functools.cache
def along_of_loop(name, reverse):
    both = lambda p, ds: [along(looped, name, reverse)(p, d) for d in ds]  # noqa: E731
    return in_float64(both, draw(name, 7), directions(name))


@each_method
@pytest.mark.parametrize("name", ["one number a step", "blocks", "constant exponential, phase", "complex"])
def test_forward_derivatives(name, method):
    reverse = list(KINDS).index(name) % 2 == 1
    slopes = quick(along(run, name, reverse, method=method, chunk=2))
    for d, want in zip(directions(name), along_of_loop(name, reverse), strict=True):
        close(slopes(draw(name, 7), d), want, 2 * BAR)


def test_derivatives_with_respect_to_one_argument_alone():
    """Backwards, where JAX's rule for a linear solve wants all right-hand sides to be variables."""
    problem = draw("elementwise", 5)
    whole = quick(jax.grad(lambda p: objective(run)("elementwise", p, False, None)))(problem)
    for field in Problem._fields:
        part = quick(
            jax.grad(lambda x: objective(run)("elementwise", problem._replace(**{field: x}), False, None))  # noqa: B023
        )(getattr(problem, field))
        close(part, getattr(whole, field), 0.0)


# --- transformations, dtypes, extremes


@each_method
def test_compiled_and_mapped(method):
    """`vmap` over all arguments and over one; compiled inside another function; the same numbers."""
    name, steps = "dense", 6
    problems = [draw(name, steps, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *[arguments(name, p) for p in problems])
    resets = jnp.stack([loops.masks(np.random.default_rng(k), steps)["random"] for k in range(3)])
    one = functools.partial(scan.affine, method=method, reverse=True, chunk=4)
    all_at_once = jax.jit(jax.vmap(lambda a, b, x, r: one(a, b, x, reset=r)))(*stacked, resets)
    for k, problem in enumerate(problems):
        check(name, jax.tree.map(lambda x: x[k], all_at_once), problem, reverse=True, reset=resets[k])  # noqa: B023
        eager = one(*arguments(name, problem), reset=resets[k])
        compiled = jax.jit(one)(*arguments(name, problem), reset=resets[k])
        jax.tree.map(np.testing.assert_array_equal, eager, compiled)
    shared = jax.jit(jax.vmap(one, (None, None, 0)))(*arguments(name, problems[0])[:2], stacked[2])
    for k, problem in enumerate(problems):
        mixed = problems[0]._replace(init=problem.init)
        check(name, jax.tree.map(lambda x: x[k], shared), mixed, reverse=True)  # noqa: B023


def test_nothing_is_compiled_twice():
    problem = arguments("dense", draw("dense", 6))
    for method in METHODS:
        scan.affine(*problem, method=method)
        with loops.compilations() as compiled:
            scan.affine(*problem, method=method)
        assert compiled == []


@each_method
def test_float64_stays(method, x64):
    problem = jax.tree.map(np.float64, draw("exponential, phase", 100))
    decay, increment, init = arguments("exponential, phase", problem)
    got = scan.affine(decay, increment, init, method=method)
    assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype(jnp.float64)}
    want = loops.affine(*numbers("exponential, phase", problem))
    assert loops.error(plain(got.states), want[0]) < 1e-14
    # float32 beside it is brought to it; alone it stays, also where 64 bits are allowed.
    assert scan.affine(jnp.float32([0.5]), increment.real, method=method).states.dtype == jnp.float64
    assert scan.affine(jnp.float32([0.5]), jnp.ones(3, jnp.float32), method=method).final.dtype == jnp.float32


@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_low_precision_is_summed_in_float32(method):
    """Increments in bfloat16 over 65,536 steps that decay by 0.9999: the sum of 10,000 of them stays within 2 %.

    In bfloat16 0.9999 is 1 and the sum is of all, several times too large: that would not go unnoticed here.
    """
    steps, decay = 65536, np.float32(0.9999)
    increment = jnp.asarray(np.random.default_rng(0).uniform(0, 2, size=(steps, 2)), jnp.bfloat16)
    exact = np.asarray(increment, np.float64)
    want = loops.affine(np.full((1, 1), np.float64(decay)), exact, np.zeros(2))
    for a in (jnp.full((1, 1), decay), Exponential(jnp.log(jnp.full((1, 1), decay)))):
        got = scan.affine(a, increment, method=method)
        assert (got.states.dtype, got.final.dtype) == (jnp.bfloat16, jnp.float32)
        assert np.max(np.abs(np.asarray(got.states, np.float64) / want[0] - 1)[100:]) < 0.02
        assert np.max(np.abs(np.float64(got.final) / want[1] - 1)) < 1e-3
    rounded = scan.affine(jnp.full((1, 1), decay, jnp.bfloat16), increment, method=method).final
    assert np.all(np.float64(rounded) / want[1] > 5)


def test_dtypes_of_states_and_final():
    """States in the dtype of increment and init; final in that of init, or of the sums."""
    low, high = jnp.bfloat16, jnp.float32
    for increment, init, states, final in [
        (low, None, low, high),
        (low, low, low, low),
        (low, high, high, high),
        (high, low, high, low),
        (jnp.float16, None, jnp.float16, high),
        (jnp.int32, None, high, high),
    ]:
        x = jnp.ones((4, 2), increment)
        start = None if init is None else jnp.ones(2, init)
        for pairs in (False, True):
            form = (lambda x: Complex(x, x)) if pairs else (lambda x: x)
            got = scan.affine(jnp.full((1, 1), 0.5, low), form(x), None if start is None else form(start))
            assert {leaf.dtype for leaf in jax.tree.leaves(got.states)} == {jnp.dtype(states)}
            assert {leaf.dtype for leaf in jax.tree.leaves(got.final)} == {jnp.dtype(final)}
            ends = 1.875 if init is None else 1.9375
            assert jax.tree.leaves(got.final)[0].tolist() == [ends, ends]


@pytest.mark.parametrize(
    ("method", "reverse"), [("sequential", False), ("sequential", True), ("chunked", True), ("associative", False)]
)
def test_goes_on_from_final(method, reverse):
    """Increments in bfloat16: what is carried on keeps the digits of the sums. Step by step as well."""
    name, steps, cut = "dense", 12, 5
    decay, increment, _ = arguments(name, draw(name, steps))
    increment = increment.astype(jnp.bfloat16)
    one = jax.jit(functools.partial(scan.affine, reverse=reverse, method=method))
    whole = one(decay, increment)
    early, late = (slice(cut, None), slice(None, cut)) if reverse else (slice(None, cut), slice(cut, None))
    first = one(decay[early], increment[early])
    rest = one(decay[late], increment[late], first.final)
    state, singles = jnp.zeros(3), []
    for t in loops.order(steps, reverse):
        state = one(decay[t : t + 1], increment[t : t + 1], state).final
        singles.append(state)
    wide = one(decay, jnp.float32(increment))
    assert rest.final.dtype == state.dtype == jnp.float32
    singles = jnp.stack(singles[::-1] if reverse else singles)
    if method == "sequential":
        for mine in (rest.final, state):
            np.testing.assert_array_equal(mine, whole.final)
        np.testing.assert_array_equal(singles, wide.states)
        np.testing.assert_array_equal(rest.states, wide.states[late])
        np.testing.assert_array_equal(first.states, whole.states[early])
    close([rest.final, state, singles], [whole.final, whole.final, wide.states])


@each_method
def test_a_decay_of_zero_forgets(method):
    """Also by a logarithm of minus infinity, with finite derivatives."""
    problem = draw("exponential, phase", 6)
    gone = np.array(problem.decay[0])
    gone[3] = -np.inf
    problem = problem._replace(decay=(gone, problem.decay[1]))
    got = scan.affine(*arguments("exponential, phase", problem), method=method)
    check("exponential, phase", got, problem)
    np.testing.assert_array_equal(
        plain(got.states)[3], np.float64(problem.increment[0][3]) + 1j * problem.increment[1][3]
    )
    slopes = quick(jax.grad(lambda p: objective(run)("exponential, phase", p, False, None, method=method)))(problem)
    close(
        slopes,
        in_float64(jax.grad(lambda p: objective(looped)("exponential, phase", p, False, None)), problem),
    )
    assert not np.any(slopes.decay[0][3])


@pytest.mark.parametrize("reset", [False, True])
def test_not_a_number_harms_what_comes_after_only(reset):
    """Step by step; up to a reset, which a loop starts again behind."""
    decay, increment, init = arguments("elementwise", draw("elementwise", 9))
    mask = jnp.arange(9) == 6 if reset else None
    for bad in ((decay.at[4].set(jnp.nan), increment), (decay, increment.at[4].set(jnp.nan))):
        clean = scan.affine(decay, increment, init, reset=mask, method="sequential").states
        states = scan.affine(*bad, init, reset=mask, method="sequential").states
        np.testing.assert_array_equal(states[:4], clean[:4])
        assert np.isnan(states[4:6]).all()
        if reset:
            np.testing.assert_array_equal(states[6:], clean[6:])
        else:
            assert np.isnan(states[6:]).all()


def test_the_chunked_program_does_not_grow():
    """Of the gradient as well, where that of the tree does."""

    def size(method, steps):
        def total(a, b, x):
            return jnp.sum(scan.affine(a, b, x, method=method).states ** 2)

        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((steps, 2, 2), (steps, 2), (2,))]
        return str(jax.jit(jax.grad(total, (0, 1, 2))).lower(*shapes).as_text()).count(" = ")

    # 1,024 and 65,536 have whole square roots, so that nothing is added at the end of either.
    assert size("chunked", 1024) == size("chunked", 65536)
    assert size("associative", 65536) > 1.3 * size("associative", 1024)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["elementwise", "matrix", "logarithm"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("where", ["increment", "decay"])
def test_nothing_crosses_a_reset(bad, kind, reverse, where):
    """In no method: what is not finite before a reset is not there after it, inside a chunk and between chunks."""
    steps, at = 12, 9 if reverse else 2
    reset = np.isin(np.arange(steps), [1, 7] if not reverse else [10, 4])
    decay, increment = np.full((steps, 2), 0.5, np.float32), np.ones((steps, 2), np.float32)
    decay = decay[..., None] * np.eye(2, dtype=np.float32) if kind == "matrix" else decay
    decay = np.log(decay) if kind == "logarithm" else decay
    (increment if where == "increment" else decay)[at] = bad
    init = np.array([3.0, -1.0], np.float32)
    later = np.arange(steps) <= 4 if reverse else np.arange(steps) >= 7
    want, state = np.zeros((steps, 2)), init.astype(float)
    for t in sorted(np.flatnonzero(later), reverse=reverse):
        state = 0.5 * state + 1
        want[t] = state
    given = Exponential(decay) if kind == "logarithm" else decay
    for method, chunk in (("sequential", None), ("chunked", 3), ("chunked", 5), ("associative", None)):
        run = functools.partial(scan.affine, init=init, reverse=reverse, reset=reset, method=method, chunk=chunk)
        states = np.asarray(run(given, increment).states)
        np.testing.assert_allclose(states[later], want[later], rtol=1e-6)
        assert not np.isfinite(states[at]).all()


@pytest.mark.parametrize("at", [0, 4])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", ["elementwise", "matrix"])
def test_no_gradient_crosses_a_reset(at, reverse, kind):
    """A decay that is not a number, at the first step or at the reset itself, harms no gradient on the other side."""
    time = np.arange(8)[::-1] if reverse else np.arange(8)  # in the order of processing
    reset, kept = time == 4, time >= 4 if at == 0 else time < 4
    decay = np.where(time == at, np.nan, 0.5).astype(np.float32)[:, None]
    decay = decay[..., None] if kind == "matrix" else decay
    left = np.where(kept, (7 if at == 0 else 3) - time, 0)  # steps until the end of the side that counts
    want = np.where(kept, 2 - 0.5**left, 0)

    for method, chunk in (("sequential", None), ("chunked", 3), ("associative", None)):
        run = functools.partial(scan.affine, decay, init=np.ones(1, np.float32), reverse=reverse, reset=reset)

        def total(increment, run=run, method=method, chunk=chunk):
            states = run(increment, method=method, chunk=chunk).states[:, 0]
            return jnp.sum(jnp.where(kept, states, 0))

        gradient = jax.grad(total)(jnp.ones((8, 1)))[:, 0]
        np.testing.assert_allclose(np.asarray(gradient)[kept], want[kept], rtol=1e-6)
