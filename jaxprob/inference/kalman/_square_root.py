"""Square roots of covariances, of any rank: what every filter and smoother here is made of.

A root L is lower triangular, with columns of zeros for directions in which there is no variance. It is moved by
rotations alone, so that no variance is ever the difference of two larger ones: float32 keeps its digits where noise
spans twelve orders of magnitude, the initial state is known, or noise is singular.

Source: Carlson (1973), "Fast triangular formulation of the square root filter"; Golub & Van Loan (2013), "Matrix
computations", algorithm 5.2.6, for modified Gram-Schmidt.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprob import core

HALF_LOG_TAU = 0.5 * math.log(2 * math.pi)
UNROLLED = 8  # rows up to which loops are written out, and products spelled out: XLA fuses them into a few kernels


def product(one: jax.Array, other: jax.Array) -> jax.Array:
    """The product of two matrices, (n, k) and (k, c)."""
    if one.shape[1] <= UNROLLED and one.shape[0] <= UNROLLED:
        return jnp.sum(jnp.expand_dims(one, 2) * jnp.expand_dims(other, 0), 1)
    return core.matmul(one, other)


def loop(length: int, body: Any, carry: Any, once: bool = False) -> Any:
    """`carry = body(i, carry)` for each i, written out where there are few and this is not done `once`."""
    if length > (1 if once else UNROLLED):
        return lax.fori_loop(0, length, body, carry)
    for index in range(length):
        carry = body(index, carry)
    return carry


def triangularize(rows: jax.Array, sizes: jax.Array | None = None, once: bool = False) -> jax.Array:
    """The root L of A A^T: lower triangular, with a column of zeros for each row of A that depends on those above it.

    Args:
      rows: A, (n, k).
      sizes: (n,), of what rows are sums of, where that may cancel: a row that is left with rounding keeps its value,
        but the derivative of its direction would be noise.
      once: whether this is no part of a loop over time: a small program then counts for more than a fast one.

    Returns:
      (n, n). Derivatives of whatever depends on L L^T are right at any rank.
    """
    n = rows.shape[0]
    if rows.shape[1] == 0 or n == 0:
        return jnp.zeros((n, n), rows.dtype)
    # The square of what rounding leaves of a row that depends on others.
    squares = lax.stop_gradient(jnp.sum(rows * rows, 1))
    share = (8 * rows.shape[1] * jnp.finfo(rows.dtype).eps) ** 2
    least, firm = share * squares, share * (squares if sizes is None else jnp.maximum(squares, sizes * sizes))
    if n <= UNROLLED:
        return _gram_schmidt(rows, least, firm, once)
    # Reflections are faster than a loop over columns, but leave anything in the column of a row that depends on others.
    factor = core.tria(rows)
    regular = jnp.all(lax.stop_gradient(jnp.diagonal(factor)) ** 2 > firm)
    return lax.cond(
        regular, lambda rows, factor: factor, lambda rows, _: _gram_schmidt(rows, least, firm), rows, factor
    )


def _gram_schmidt(rows: jax.Array, least: jax.Array, firm: jax.Array, once: bool = False) -> jax.Array:
    """The root of `triangularize`.

    A row whose square is `least` or less, once those above are taken out, depends on them; of one whose square is no
    more than `firm`, the direction is held fixed in derivatives.
    """
    n = rows.shape[0]

    def column(i: Any, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
        row = rest[i]
        fixed = lax.stop_gradient(row)
        # What the loop is bound by is the number of sums: one has the square of the row and all products with it.
        is_firm = jnp.sum(fixed * fixed) > firm[i]
        products = jnp.sum(rest * jnp.expand_dims(jnp.where(is_firm, row, fixed), 0), 1)
        square = products[i]
        independent = square > least[i]
        scale = jnp.where(independent, lax.rsqrt(jnp.where(independent, square, 1)), 0)
        scale = jnp.where(is_firm, scale, lax.stop_gradient(scale))
        along = jnp.where((np if isinstance(i, int) else jnp).arange(n) >= i, products * scale, 0)
        direction = jnp.where(is_firm, row, fixed) * scale
        return rest - jnp.expand_dims(along, 1) * jnp.expand_dims(direction, 0), along

    if once or n > UNROLLED:

        def body(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            rest, along = column(i, carry[0])
            return rest, carry[1].at[:, i].set(along)

        return loop(n, body, (rows, jnp.zeros_like(rows, shape=(n, n))), once)[1]
    rest, columns = rows, []
    for i in range(n):
        rest, along = column(i, rest)
        columns.append(along)
    return jnp.stack(columns, 1)


def square_root(covariance: jax.Array, once: bool = False) -> jax.Array:
    """The root of a positive semi-definite matrix (n, n); NaN where it is not one beyond rounding. `once` as above."""
    root: jax.Array = _ROOTS[once](covariance)[0]
    return root


def _scales(covariance: jax.Array) -> jax.Array:
    """What makes it a correlation, (n, 1): powers of tiny variances, of which derivatives are made, would overflow."""
    variances = jnp.sum(jnp.where(np.eye(covariance.shape[0], dtype=bool), covariance, 0), 1, keepdims=True)
    # One that is zero may have a derivative, and one that is NaN stays.
    return jnp.sqrt(jnp.where((variances == 0) | (variances < 0), 1, variances))


def _factorize(covariance: jax.Array, once: bool) -> jax.Array:
    n = covariance.shape[0]
    least = 8 * n * jnp.finfo(covariance.dtype).eps
    scale = _scales(covariance)
    inverse = 1 / scale

    def column(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        rest, factor = carry
        pivot = rest[i, i]
        positive = pivot > least
        along = jnp.where(positive & (jnp.arange(n) >= i), rest[:, i] * lax.rsqrt(jnp.where(positive, pivot, 1)), 0)
        along = jnp.where((pivot < -least) | (covariance[i, i] < 0), jnp.nan, along)
        return rest - jnp.expand_dims(along, 1) * jnp.expand_dims(along, 0), factor.at[:, i].set(along)

    none = core.varying(jnp.zeros_like(covariance), covariance)
    return scale * loop(n, column, (covariance * inverse * inverse.T, none), once)[1]


def _moved_with(covariance: jax.Array, factor: jax.Array, moved: jax.Array) -> jax.Array:
    """The derivative of the root L of P: L times what L^-1 dP L^-T has below its diagonal, and half of that on it.

    Columns of zeros stay: along a direction without variance a root has no derivative.
    """
    n = factor.shape[0]
    scale = _scales(covariance)
    eye = jnp.asarray(np.eye(n), factor.dtype)
    there = jnp.sum(eye * factor, 0, keepdims=True) > 0
    # Of the correlation, and with what it lacks to be regular.
    regular = jnp.where(there, factor / scale, eye)
    # Not by LAPACK, which in jaxlib 0.10 may wait for itself where it is given a batch.
    inverse = right_solve(regular, eye, once=True) / scale.T
    both = core.matmul(core.matmul(inverse, moved), inverse.T)
    weights = jnp.asarray(np.tri(n, k=-1) + 0.5 * np.eye(n), factor.dtype)
    return scale * core.matmul(regular, jnp.where(there, weights * both, 0))


def _as_primitive(once: bool) -> Any:
    def square_root(covariance: jax.Array) -> tuple[jax.Array]:
        return (jnp.vectorize(functools.partial(_factorize, once=once), signature="(n,n)->(n,n)")(covariance),)

    def derivative(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[tuple[jax.Array], tuple[jax.Array]]:
        (factor,) = made(primals[0])
        move = jnp.vectorize(_moved_with, signature="(n,n),(n,n),(n,n)->(n,n)")
        return (factor,), (move(primals[0], factor, tangents[0]),)

    made = core.primitive(square_root, derivative, lambda shape: (shape,))
    return made


_ROOTS = {once: _as_primitive(once) for once in (False, True)}


def right_solve(factor: jax.Array, matrix: jax.Array, least: Any = 0, once: bool = False) -> jax.Array:
    """X with X L = B, for a root L (n, n) and B (k, n) whose rows are in the span of those of L. `once` as above.

    Columns of zeros in L have zeros in X, and so has what is left of B where it is no larger than `least`, () or (k,).
    """
    n = factor.shape[0]

    def column(index: Any, solution: jax.Array) -> jax.Array:
        i = n - 1 - index
        pivot = factor[i, i]
        known = jnp.sum(solution * jnp.expand_dims(factor[:, i], 0), 1)
        rest = matrix[:, i] - known
        there = (jnp.abs(pivot) > 0) & (jnp.abs(rest) > least)
        value = jnp.where(there, rest / jnp.where(there, pivot, 1), 0)
        return solution.at[:, i].set(value)

    return loop(n, column, core.varying(jnp.zeros(matrix.shape, matrix.dtype), (factor, matrix)), once)


class Moments(NamedTuple):
    """A normal law of the state, with columns of means.

    Attributes:
      mean: (n, 1 + d), the mean, and how it moves with each diffuse number.
      factor: (n, n), root of the covariance.
    """

    mean: jax.Array
    factor: jax.Array


class Seen(NamedTuple):
    """What one number observed said.

    Attributes:
      innovation: (1 + d,), it less its prediction, divided by the standard deviation of that.
      log_scale: (), log of that standard deviation times sqrt(2 pi): minus this and half the square of the innovation
        make the log density. inf for a number that cannot be.
    """

    innovation: jax.Array
    log_scale: jax.Array


class Turn(NamedTuple):
    """How a root L of P becomes that of P - P h h^T P / s when a number is seen, with f = L^T h and s = r + f^T f.

    Attributes:
      f: (n,).
      total: s, ().
      inverse: 1 / sqrt(s), (); 0 where s is 0.
      gain: L f, (n,).
      kept, moved: (n,), of column i what is kept, sqrt(s_i / s_{i-1}), and by how much the later ones enter,
        f_i / sqrt(s_i s_{i-1}), for the partial sums s_i = r + f_{i+1}^2 + ... + f_{n-1}^2.
    """

    f: jax.Array
    total: jax.Array
    inverse: jax.Array
    gain: jax.Array
    kept: jax.Array
    moved: jax.Array


def turn(factor: jax.Array, row: jax.Array, variance: jax.Array) -> Turn:
    """The turn of a root (n, n) by a number h x + N(0, r)."""
    n = row.shape[0]
    f = jnp.sum(factor * jnp.expand_dims(row, 1), 0)
    squares = f * f
    if n <= UNROLLED:
        sums = variance + jnp.sum(np.tri(n, n + 1, dtype=f.dtype) * jnp.expand_dims(squares, 1), 0)
    else:
        sums = variance + jnp.concatenate([lax.cumsum(squares, reverse=True), jnp.zeros_like(squares, shape=(1,))])
    # One kernel has all roots. Where a sum is zero so is f; where only the later one is, the noise is none, and the
    # column becomes zero.
    inverse = jnp.where(sums > 0, lax.rsqrt(jnp.where(sums > 0, sums, 1)), 0)
    both = inverse[:-1] * inverse[1:]
    kept = jnp.where(sums[:-1] > 0, sums[1:] * both, 1)
    return Turn(f, sums[0], inverse[0], jnp.sum(factor * jnp.expand_dims(f, 0), 1), kept, f * both)


def later(f: jax.Array) -> jax.Array:
    """Ones strictly below the diagonal, (n, n)."""
    return jnp.asarray(np.tril(np.ones(2 * f.shape, bool), -1), f.dtype)


def observe_one(
    moments: Moments, row: jax.Array, variance: jax.Array, value: jax.Array, seen: jax.Array
) -> tuple[Moments, Seen]:
    """Conditions on one number y = h x + N(0, r): Carlson's update of a triangular root.

    The partial sums s_i = r + f_{i+1}^2 + ... + f_{n-1}^2 of f = L^T h are all positive terms, and

        L+_i = sqrt(s_i / s_{i-1}) L_i - f_i / sqrt(s_i s_{i-1}) sum_{j > i} f_j L_j

    is the root of L (I - f f^T / s) L^T; it is triangular, as L is.

    Args:
      moments: of the state.
      row: h, (n,).
      variance: r, ().
      value: y, (1 + d,), the number, and zeros.
      seen: (), bool; nothing changes where it is false.
    """
    mean, factor = moments
    n = row.shape[0]
    f, total, inverse, gain, kept, moved = turn(factor, row, variance)
    gains = product(factor * jnp.expand_dims(f, 0), later(f))
    rest, taken = factor * jnp.expand_dims(kept, 0), gains * jnp.expand_dims(moved, 0)
    new_factor = _without_rounding(rest - taken, jnp.abs(rest) + jnp.abs(taken), 2)

    there = seen & (total > 0)
    residual = value - jnp.sum(mean * jnp.expand_dims(row, 1), 0)
    innovation = jnp.where(there, residual * inverse, 0)
    new_mean = mean + jnp.expand_dims(gain * inverse, 1) * jnp.expand_dims(innovation, 0)
    new = Moments(new_mean, jnp.where(there, new_factor, factor))
    # A number known beforehand is no surprise, or an impossible one.
    size = jnp.abs(value[0]) + jnp.sum(jnp.abs(mean[:, 0] * row))
    close = jnp.abs(residual[0]) <= 64 * n * jnp.finfo(f.dtype).eps * size
    impossible = seen & ~(total > 0) & ~close
    log_scale = HALF_LOG_TAU + 0.5 * jnp.log(jnp.where(there, total, 1))
    return new, Seen(innovation, jnp.where(impossible, jnp.inf, jnp.where(there, log_scale, 0)))


def _without_rounding(sums: jax.Array, sizes: jax.Array, terms: int) -> jax.Array:
    """Sums of so many terms, zero where they are no larger than their rounding: what is known has no variance left.

    Derivatives are those of the sums.
    """
    rounding = jnp.abs(sums) <= terms * jnp.finfo(sums.dtype).eps * sizes
    return sums - lax.stop_gradient(jnp.where(rounding, sums, 0))


def observe(
    moments: Moments, rows: jax.Array, noise: jax.Array, values: jax.Array, seen: jax.Array
) -> tuple[Moments, Seen]:
    """Conditions on the numbers observed at one time, one after the other.

    Args:
      moments: of the state.
      rows: H, (m, n).
      noise: R, (m, m), or (m,) variances.
      values: y - d, (m, 1 + d), zero where missing.
      seen: (m,), bool.

    Returns:
      the new moments, and a `Seen` with leading axes (m,): each number against its prediction from all before it.
    """
    m = rows.shape[0]
    if noise.ndim == 2:
        rows, noise, values = decorrelate(rows, noise, values, seen) if m > 1 else (rows, noise[0], values)
    if m <= UNROLLED:
        found = []
        for i in range(m):
            moments, one = observe_one(moments, rows[i], noise[i], values[i], seen[i])
            found.append(one)
        return moments, jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)

    def body(i: Any, carry: tuple[Moments, Seen]) -> tuple[Moments, Seen]:
        moments, one = observe_one(carry[0], rows[i], noise[i], values[i], seen[i])
        return moments, jax.tree.map(lambda all, x: all.at[i].set(x), carry[1], one)

    empty = Seen(jnp.zeros_like(values), jnp.zeros_like(values[:, 0]))
    return lax.fori_loop(0, m, body, (moments, empty))


def decorrelate(
    rows: jax.Array, noise: jax.Array, values: jax.Array, seen: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Numbers with independent noise that say the same: R = U diag(r) U^T, U of unit diagonal, of what is not missing.

    Missing numbers take no part: their row of U is that of the identity.
    """
    m = noise.shape[0]
    noise = jnp.where(jnp.expand_dims(seen, 0) & jnp.expand_dims(seen, 1), noise, 0)
    least = 8 * m * jnp.finfo(noise.dtype).eps * lax.stop_gradient(jnp.diagonal(noise))
    width = rows.shape[1]
    system = jnp.concatenate([noise, rows, values], 1)

    def eliminate(i: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        system, variances = carry
        pivot = system[i, i]
        positive = pivot > least[i]
        below = jnp.where(positive & (jnp.arange(m) > i), system[:, i] / jnp.where(positive, pivot, 1), 0)
        variance = jnp.where(positive, pivot, jnp.where(pivot < -least[i], jnp.nan, 0))
        return system - jnp.expand_dims(below, 1) * jnp.expand_dims(system[i], 0), variances.at[i].set(variance)

    system, variances = loop(m, eliminate, (system, jnp.zeros((m,), noise.dtype)))
    return system[:, m : m + width], variances, system[:, m + width :]


def predict(moments: Moments, dynamics: jax.Array, offset: jax.Array, noise: jax.Array) -> Moments:
    """The law of the next state, x+ = F x + b + G w, with the root G (n, k) of the noise; b (n,), or (n, 1 + d)."""
    offset = jnp.expand_dims(offset, 1) if offset.ndim == 1 else offset
    rest = moments.mean.shape[1] - offset.shape[1]
    mean = product(dynamics, moments.mean) + jnp.pad(offset, ((0, 0), (0, rest)))
    # What a row would be if nothing in it cancelled.
    sizes = core.matvec(jnp.abs(dynamics), jnp.sqrt(jnp.sum(lax.stop_gradient(moments.factor) ** 2, 1)))
    rows = jnp.concatenate([product(dynamics, moments.factor), noise], 1)
    return Moments(mean, triangularize(rows, lax.stop_gradient(sizes)))
