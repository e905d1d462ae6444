"""Each monoid beside an oracle in float64 NumPy that goes another way, random elements, and the errors allowed.

The other ways: homogeneous matrices for affine maps, sums over all keys or all paths for softmax and the log semirings,
one linear system for all states of a chain of Gaussian elements.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxprob.scan import monoids as m


class Case(NamedTuple):
    monoid: Any
    draw: Any  # (rng, n, spread) -> element of float64 arrays; scales go from 10^-spread to 10^spread
    product: Any  # list of elements -> what they should give, a tuple of float64 arrays
    view: Any  # element -> the same tuple
    tolerance: Any  # (case, list of elements, eps) -> the absolute errors allowed, a tuple
    smooth: bool = True


def scale(rng, spread):
    return 10.0 ** rng.uniform(-spread, spread)


# --- affine maps


def draw_diagonal(rng, n, spread):
    decay, increment = rng.normal(size=(2, n)) * 10.0 ** rng.uniform(-spread, spread, size=(2, n))
    return m.Affine(decay * rng.choice([0.0, 1.0, 1.0], n), increment * rng.choice([0.0, 1.0, 1.0], n))


def draw_dense(rng, n, spread):
    rank = rng.integers(0, n + 1)
    decay = rng.normal(size=(n, rank)) @ rng.normal(size=(rank, n))
    return m.Affine(scale(rng, spread) * decay, scale(rng, spread) * rng.normal(size=n))


def diagonal_product(elements):
    """Each increment times the decays after it, summed."""
    decays = np.stack([e.decay for e in elements])
    terms = [np.prod(decays[k + 1 :], 0) * e.increment for k, e in enumerate(elements)]
    return np.prod(decays, 0), np.sum(terms, 0)


def homogeneous(decay, increment):
    return np.block([[decay, increment[:, None]], [np.zeros_like(increment)[None], np.ones((1, 1))]])


def dense_product(elements):
    whole = functools.reduce(lambda total, e: homogeneous(*e) @ total, elements, np.eye(len(elements[0].increment) + 1))
    return whole[:-1, :-1], whole[:-1, -1]


def absolute_values(case, elements, eps):
    """The classical bound: a sum of products errs by eps, times its length, times the same with absolute values."""
    size = 4 * len(elements) * (len(elements[0].increment) + 1)
    return tuple(size * eps * x for x in case.product([m.Affine(*map(np.abs, e)) for e in elements]))


# --- softmax


def draw_softmax(rng, n, spread):
    score = rng.choice([rng.normal(), float(rng.integers(-1, 2)), 1e4, -1e4, -np.inf])
    return m.RunningSoftmax(np.array(score), np.array(1.0), scale(rng, spread) * rng.normal(size=n))


def weights(elements):
    scores = np.array([e.max for e in elements])
    gap = np.zeros_like(scores) if scores.max() == -np.inf else scores - scores.max()
    return np.exp(gap), np.where(np.isinf(gap), 0.0, -gap)


def softmax_product(elements):
    """All weights at once."""
    w, _ = weights(elements)
    total = sum(x * e.sum for x, e in zip(w, elements, strict=True))
    numerator = sum(x * e.numerator for x, e in zip(w, elements, strict=True))
    return np.array(max(e.max for e in elements)), np.array(total), numerator


def softmax_tolerance(case, elements, eps):
    """A weight exp(-gap) errs by eps (1 + gap) of itself each time it is rescaled; the maximum is exact."""
    w, gap = weights(elements)
    error = 4 * len(elements) * eps * w * (1 + gap)
    return np.array(0.0), error.sum(), np.sum([x * abs(e.numerator) for x, e in zip(error, elements, strict=True)], 0)


# --- matrices of log weights


def draw_log_matrix(rng, n, spread):
    a = scale(rng, spread) * rng.normal(size=(n, n))
    kind = rng.integers(6)
    if kind == 0:
        a = np.round(a)  # ties
    elif kind == 1:
        a = a - 500.0 * rng.integers(0, 2, size=(n, n))  # what exponentials would lose
    elif kind == 2:
        a = np.where(rng.random((n, n)) < 0.4, -np.inf, a)
    elif kind == 3:
        a[rng.integers(n)] = -np.inf
    elif kind == 4 and rng.random() < 0.3:
        a[:] = -np.inf
    return a


def path_scores(elements):
    """The score of each path, one axis for each state: (S, ..., S), from the first state to the last."""
    n, steps = len(elements[0]), len(elements)
    axes = [[n if axis in (t, t + 1) else 1 for axis in range(steps + 1)] for t in range(steps)]
    return sum(e.reshape(shape) for e, shape in zip(elements, axes, strict=True))


def inner(elements):
    return tuple(range(1, len(elements)))


def max_plus_product(elements):
    return (np.max(path_scores(elements), inner(elements)),)


def log_matmul_product(elements):
    scores = path_scores(elements)
    top = np.max(scores, inner(elements), keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore"):
        sums = np.log(np.sum(np.exp(scores - top), inner(elements)))
    return (sums + top.reshape(sums.shape),)


def log_tolerance(case, elements, eps):
    """Each step rounds a score no larger than the largest ones together, and a logarithm of at most log(paths)."""
    largest = sum(np.max(np.abs(np.where(np.isfinite(e), e, 0.0))) for e in elements)
    return (len(elements) * eps * (2 * largest + 4 * len(elements)),)


# --- maxima and maps of states


def draw_running_max(rng, n, spread):
    value = rng.choice([-np.inf, -1.0, 0.0, 1.0, np.inf, np.nan], size=n, p=[0.2, 0.2, 0.2, 0.2, 0.1, 0.1])
    return m.RunningMax(value, rng.integers(0, 100, size=n))


def running_max_product(elements):
    values, indices = (np.stack(x) for x in zip(*elements, strict=True))
    first = np.argmax(values, 0)  # the first of equals, and of NaNs
    return tuple(np.take_along_axis(x, first[None], 0)[0] for x in (values, indices))


def draw_map(rng, n, spread):
    return rng.choice([rng.integers(0, n, size=n), np.full(n, rng.integers(n)), rng.permutation(n)])


def map_product(elements):
    return (np.array([functools.reduce(lambda s, e: e[s], elements, s) for s in range(len(elements[0]))]),)


def exact(case, elements, eps):
    return tuple(np.zeros(()) for _ in case.product(elements))


# --- Gaussian elements


def draw_root(rng, n, spread):
    """A square root of a covariance of any rank, zero included, or one with coordinates that are known."""
    if rng.random() < 0.5:
        return scale(rng, spread / 2) * rng.normal(size=(n, n)) * rng.choice([0.0, 1.0], size=(n, 1))
    rank = rng.integers(0, n + 1)
    return scale(rng, spread / 2) * rng.normal(size=(n, rank)) @ rng.normal(size=(rank, n))


def draw_root_filter(rng, n, spread):
    A = rng.normal(size=(n, n)) * rng.choice([0.0, 1.0, 1.0])
    b, eta = scale(rng, spread) * rng.normal(size=n), scale(rng, spread) * rng.normal(size=n)
    return m.SquareRootFilterElement(A, b, draw_root(rng, n, spread), eta, draw_root(rng, n, spread))


def draw_root_smoother(rng, n, spread):
    E = rng.normal(size=(n, n)) * rng.choice([0.0, 1.0, 1.0])
    return m.SquareRootSmootherElement(E, scale(rng, spread) * rng.normal(size=n), draw_root(rng, n, spread))


def square(root):
    return root @ root.T


def squared(element):
    """A filter or smoother element with covariances in the place of square roots."""
    if isinstance(element, m.SquareRootSmootherElement):
        return m.SmootherElement(element.E, element.g, square(element.D))
    return m.FilterElement(element.A, element.b, square(element.U), element.eta, square(element.Z))


def filter_product(elements):
    """All states of the chain at once, by the conditions for the most probable ones.

    With x_0 given and u the slope of what comes after, the states x_1 ... x_m and multipliers l_1 ... l_m are

        x_t = A_t x_{t-1} + b_t + C_t l_t      l_t = eta_{t+1} - J_{t+1} x_t + A_{t+1}^T l_{t+1}      l_m = u

    which needs no inverse of C or J. Then x_m = A x_0 + b + C u, and l_0 = eta - J x_0 + A^T u.
    """
    if len(elements) == 1:
        return tuple(elements[0])
    steps, n = len(elements), len(elements[0].b)
    eye, size = np.eye(n), 2 * steps * n

    def x(t):
        return slice((t - 1) * n, t * n)

    def multiplier(t):
        return slice((steps + t - 1) * n, (steps + t) * n)

    system, right = np.zeros((size, size)), np.zeros((size, 2 * n + 1))  # right: of x_0, of u, constant
    for t, e in enumerate(elements, 1):
        system[x(t), x(t)], system[x(t), multiplier(t)], right[x(t), -1] = eye, -e.C, e.b
        system[multiplier(t), multiplier(t)] = eye
        if t == 1:
            right[x(1), :n] = e.A
        else:
            system[x(t), x(t - 1)] = -e.A
            system[multiplier(t - 1), x(t - 1)], system[multiplier(t - 1), multiplier(t)] = e.J, -e.A.T
            right[multiplier(t - 1), -1] = e.eta
    right[multiplier(steps), n : 2 * n] = eye
    solution = np.linalg.solve(system, right)
    last, first = solution[x(steps)], elements[0]
    start = first.A.T @ solution[multiplier(1)]
    return last[:, :n], last[:, -1], last[:, n : 2 * n], start[:, -1] + first.eta, first.J - start[:, :n]


def smoother_product(elements):
    E, g = dense_product([m.Affine(e.E, e.g) for e in elements])
    L = np.zeros_like(E)
    for k, e in enumerate(elements):
        later = dense_product([m.Affine(np.eye(len(g)), g), *(m.Affine(x.E, x.g) for x in elements[k + 1 :])])[0]
        L = L + later @ e.L @ later.T
    return E, g, L


def of_squares(product):
    return lambda elements: product([squared(e) for e in elements])


def draw_filter(rng, n, spread):
    return squared(draw_root_filter(rng, n, spread))


def draw_smoother(rng, n, spread):
    return squared(draw_root_smoother(rng, n, spread))


def norm(x):
    return np.linalg.norm(x)


def filter_tolerance(case, elements, eps):
    """Ten times what rounding as in an LU decomposition of I + C J does to the product, drawn at random.

    G = (I + C J)^-1 and what it multiplies err by eps |G| (1 + |C| |J|) of themselves, and I - (I - G) by eps. Ten is
    for the constants, which grow with n; the largest error of 4,800 random products was 3 times what was drawn. In
    float64 99 % of what is allowed is below 4e-3 of the norm of the result, in float32 90 % below 3e-2.
    """
    plain = [squared(e) if isinstance(e, m.SquareRootFilterElement) else e for e in elements]
    rng, eye = np.random.default_rng(0), np.eye(len(plain[0].b))

    def rounded(a, b):
        whole = m.FilterElement(*filter_product([a, b]))
        G, _, P, _, _ = filter_product([a._replace(A=eye), b._replace(A=eye, b=0 * b.b, C=0 * b.C)])
        surprise, k = norm(b.eta - b.J @ a.b), 1 + norm(G) * (1 + norm(a.C) * norm(b.J))
        size = (
            norm(b.A) * (norm(a.A) + k * norm(G @ a.A)),
            norm(whole.b) + norm(b.A) * (norm(a.b) + k * norm(P) * surprise),
            norm(whole.C) + k * norm(b.A) ** 2 * norm(P),
            norm(whole.eta) + (norm(a.A) + k * norm(G @ a.A)) * surprise,
            norm(whole.J) + k * norm(G @ a.A) * norm(b.J) * norm(a.A),
        )

        def moved(x, size):
            noise = rng.normal(size=x.shape)
            noise = noise + noise.T if x.ndim == 2 else noise
            return x + eps * size * noise / norm(noise)

        return m.FilterElement(*map(moved, whole, size))

    def from_the_left():
        return functools.reduce(rounded, plain)

    def from_the_right():
        return functools.reduce(lambda b, a: rounded(a, b), plain[::-1])

    exactly = filter_product(plain)
    tries = [fold() for fold in (from_the_left, from_the_right) for _ in range(4)]
    moves = [[norm(x - y) for x, y in zip(t, exactly, strict=True)] for t in tries]
    noise = 1e-15 * max(norm(x) for e in plain for x in e)  # of NumPy, where the result is exactly zero
    return tuple(10 * (move + eps * norm(x)) + noise for move, x in zip(np.max(moves, 0), exactly, strict=True))


def smoother_tolerance(case, elements, eps):
    """As `absolute_values`; a square root from a QR decomposition errs by eps of the length of each row."""

    def absolute(e):
        if isinstance(e, m.SmootherElement):
            return m.SmootherElement(*map(np.abs, e))
        lengths = np.linalg.norm(e.D, axis=1)
        return m.SmootherElement(np.abs(e.E), np.abs(e.g), np.outer(lengths, lengths))

    size = 8 * len(elements) * (len(elements[0].g) + 1)
    return tuple(size * eps * x for x in smoother_product([absolute(e) for e in elements]))


# --- resets


def lifted(case):
    def draw(rng, n, spread):
        return m.Resettable(np.array(rng.random() < 0.3), case.draw(rng, n, spread))

    def since_reset(elements):
        start = max((k for k, e in enumerate(elements) if e.reset), default=0)
        return [e.element for e in elements[start:]]

    def product(elements):
        return np.array(any(e.reset for e in elements)), *case.product(since_reset(elements))

    def tolerance(_, elements, eps):
        return np.zeros(()), *case.tolerance(case, since_reset(elements), eps)

    def view(element):
        return element.reset, *case.view(element.element)

    return Case(m.with_resets(case.monoid), draw, product, view, tolerance)


def the_matrix(element):
    return (element,)


def as_squares(element):
    return tuple(squared(element))


of_filter, of_smoother = of_squares(filter_product), of_squares(smoother_product)
CASES = {
    "affine_diagonal": Case(m.affine_diagonal, draw_diagonal, diagonal_product, tuple, absolute_values),
    "affine_dense": Case(m.affine_dense, draw_dense, dense_product, tuple, absolute_values),
    "softmax": Case(m.softmax, draw_softmax, softmax_product, tuple, softmax_tolerance),
    "log_matmul": Case(m.log_matmul, draw_log_matrix, log_matmul_product, the_matrix, log_tolerance),
    "max_plus": Case(m.max_plus, draw_log_matrix, max_plus_product, the_matrix, log_tolerance, smooth=False),
    "running_max": Case(m.running_max, draw_running_max, running_max_product, tuple, exact, smooth=False),
    "composition": Case(m.composition, draw_map, map_product, the_matrix, exact, smooth=False),
    "gaussian_filter": Case(m.gaussian_filter, draw_filter, filter_product, tuple, filter_tolerance),
    "gaussian_smoother": Case(m.gaussian_smoother, draw_smoother, smoother_product, tuple, smoother_tolerance),
    "square_root_gaussian_filter": Case(
        m.square_root_gaussian_filter, draw_root_filter, of_filter, as_squares, filter_tolerance
    ),
    "square_root_gaussian_smoother": Case(
        m.square_root_gaussian_smoother, draw_root_smoother, of_smoother, as_squares, smoother_tolerance
    ),
}
CASES["with_resets(affine_dense)"] = lifted(CASES["affine_dense"])
CASES["with_resets(softmax)"] = lifted(CASES["softmax"])
CASES["with_resets(gaussian_filter)"] = lifted(CASES["gaussian_filter"])
# Scales from 10^-spread to 10^spread, in float32 as far as its digits reach.
SPREAD = {"float32": 0.5, "float64": 3.0}


def draw(name, seed, n, count, dtype, spread=None):
    """Elements of a dtype, and the same numbers in float64."""
    rng = np.random.default_rng(seed)
    elements = [CASES[name].draw(rng, n, SPREAD[dtype] if spread is None else spread) for _ in range(count)]

    def cast(x):
        kind = dtype if np.issubdtype(x.dtype, np.floating) else np.int32 if x.dtype == np.int64 else x.dtype
        return np.asarray(x, kind)

    rounded = [jax.tree.map(cast, e) for e in elements]
    return rounded, [wide(e) for e in rounded]


def wide(element):
    def one(x):
        x = np.asarray(x)
        return np.asarray(x, np.float64) if np.issubdtype(x.dtype, np.floating) else x

    return jax.tree.map(one, element)


def check(name, got, want, tolerance, like):
    """Within the absolute tolerance, infinities and NaN in the same places, the dtypes and shapes of `like`."""
    assert jax.tree.structure(got) == jax.tree.structure(like)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(like), strict=True):
        assert isinstance(x, jax.Array)
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
    for x, y, error in zip(CASES[name].view(wide(got)), want, tolerance, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        finite = np.isfinite(y)
        np.testing.assert_array_equal(np.where(finite, 0.0, x), np.where(finite, 0.0, y))
        gap = np.abs(np.where(finite, x, 0.0) - np.where(finite, y, 0.0))
        assert np.all(gap <= error + 1e-37), (gap, error)  # XLA flushes what is smaller in float32
