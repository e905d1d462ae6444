"""What can be combined in parallel: for each monoid its elements, an associative `combine` and the identity.

Elements are single, without axes of time or batch; `vmap` makes many. Any scan may combine neighbours in any grouping,
never in another order. Source: Blelloch (1990), "Prefix sums and their applications".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxprob.core import bad_value, logsumexp, matmul, matvec
from jaxprob.scan import _gaussian_monoids as _gaussian
from jaxprob.scan._gaussian_monoids import FilterElement as FilterElement
from jaxprob.scan._gaussian_monoids import SmootherElement as SmootherElement
from jaxprob.scan._gaussian_monoids import SquareRootFilterElement as SquareRootFilterElement
from jaxprob.scan._gaussian_monoids import SquareRootSmootherElement as SquareRootSmootherElement
from jaxprob.scan._gaussian_monoids import eye_like

E = TypeVar("E")


class Monoid(NamedTuple, Generic[E]):
    """An associative operation on pytrees, with its identity.

    Attributes:
      combine: `combine(before, after)` of two elements, equal in structure, shapes and dtypes to each of them. `before`
        comes earlier in the order of processing: in a reverse scan it is later in time.
      identity: the identity with the shapes and dtypes of the element given, whose values it does not read; None for an
        operation that has none.

    >>> joined = Monoid(combine=jnp.minimum, identity=lambda x: jnp.full_like(x, jnp.inf))
    >>> joined.combine(joined.identity(jnp.float32(0)), jnp.float32(3)).item()
    3.0
    """

    combine: Callable[[E, E], E]
    identity: Callable[[E], E] | None


class Affine(NamedTuple):
    """The map `x -> decay x + increment`, elementwise or by a matrix; of `affine_diagonal` and `affine_dense`.

    `(A1, b1)` before `(A2, b2)` is `(A2 A1, A2 b1 + b2)`.

    Attributes:
      decay: any shape where it multiplies elementwise, (n, n) where it is a matrix.
      increment: the shape of an elementwise decay; (n,) beside a matrix.

    >>> affine_diagonal.combine(Affine(jnp.array(0.5), jnp.array(1.0)), Affine(jnp.array(2.0), jnp.array(3.0)))
    Affine(decay=Array(1., dtype=float32...), increment=Array(5., dtype=float32...))
    """

    decay: jax.Array
    increment: jax.Array


def _combine_diagonal(before: Affine, after: Affine) -> Affine:
    return Affine(after.decay * before.decay, after.decay * before.increment + after.increment)


def _combine_dense(before: Affine, after: Affine) -> Affine:
    return Affine(matmul(after.decay, before.decay), matvec(after.decay, before.increment) + after.increment)


affine_diagonal: Monoid[Affine] = Monoid(
    _combine_diagonal, lambda like: Affine(jnp.ones_like(like.decay), jnp.zeros_like(like.increment))
)
affine_dense: Monoid[Affine] = Monoid(
    _combine_dense, lambda like: Affine(eye_like(like.decay), jnp.zeros_like(like.increment))
)


class RunningSoftmax(NamedTuple):
    """Softmax-weighted mean of values met so far; of `softmax`. The element of one key is `(score, 1, value)`.

    The mean is `numerator / sum`, the log of the sum of all weights `max + log(sum)`. A score of -inf masks its value,
    NaN included, as soon as any score is finite; where none is, the values met count equally, and `max` is -inf.
    Derivatives of the mean and of the log sum are right, at ties as well; that of `max` alone is shared by ties.

    Attributes:
      max: scalar, the largest score, below inf.
      sum: scalar, the sum of `exp(score - max)`.
      numerator: the shape of a value, the sum of `exp(score - max) value`, in the dtype of `max` and `sum`.

    Source: Milakov and Gimelshein (2018), "Online normalizer calculation for softmax".

    >>> one = RunningSoftmax(jnp.array(0.0), jnp.array(1.0), jnp.array(2.0))
    >>> both = softmax.combine(one, RunningSoftmax(jnp.array(1e4), jnp.array(1.0), jnp.array(5.0)))
    >>> (both.numerator / both.sum).item()
    5.0
    """

    max: jax.Array
    sum: jax.Array
    numerator: jax.Array


def _combine_softmax(before: RunningSoftmax, after: RunningSoftmax) -> RunningSoftmax:
    top = jnp.maximum(before.max, after.max)

    def rescaled(part: RunningSoftmax) -> tuple[jax.Array, jax.Array]:
        # Only a tie at -inf is replaced: at any other the derivatives of the two maxima must cancel.
        gap = jnp.where(top == -jnp.inf, 0.0, part.max - top)
        masked, weight = gap == -jnp.inf, jnp.exp(gap)
        # The inner choice keeps a masked NaN out of the derivative of the weight.
        return weight * jnp.where(masked, 0.0, part.sum), weight * jnp.where(masked, 0.0, part.numerator)

    (sum_before, numerator_before), (sum_after, numerator_after) = rescaled(before), rescaled(after)
    return RunningSoftmax(top, sum_before + sum_after, numerator_before + numerator_after)


softmax: Monoid[RunningSoftmax] = Monoid(
    _combine_softmax,
    lambda like: RunningSoftmax(
        jnp.full_like(like.max, -jnp.inf), jnp.zeros_like(like.sum), jnp.zeros_like(like.numerator)
    ),
)


def _paths(function: str, before: jax.Array, after: jax.Array) -> jax.Array:
    """`before[i, k] + after[k, j]` at [i, k, j]: (S, S, S)."""
    for name, matrix in (("before", before), ("after", after)):
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape != before.shape:
            expected = "one square matrix (S, S)" if name == "before" else f"shape {before.shape}, as before"
            raise bad_value(function, name, f"of shape {matrix.shape}", expected, "vmap makes many")
    return before[:, :, None] + after[None]


def _combine_log_matmul(before: jax.Array, after: jax.Array) -> jax.Array:
    return logsumexp(_paths("monoids.log_matmul", before, after), 1)


def _combine_max_plus(before: jax.Array, after: jax.Array) -> jax.Array:
    best = jnp.max(_paths("monoids.max_plus", before, after), 1)
    # Without this the derivative of an impossible score would be shared by all the impossible paths.
    return jnp.where(best == -jnp.inf, -jnp.inf, best)


def _log_eye_like(matrix: jax.Array) -> jax.Array:
    return jnp.where(eye_like(matrix) == 1, 0.0, -jnp.inf).astype(matrix.dtype)


log_matmul: Monoid[jax.Array] = Monoid(_combine_log_matmul, _log_eye_like)
"""Matrices (S, S) of log weights: `log sum_k exp(a[i, k] + b[k, j])`, the sum over all paths of a hidden Markov model.

-inf is an impossible step, with a zero derivative where no path is possible; entries are below inf. Nothing underflows,
as a matrix product of exponentials would. The price: intermediates (S, S, S), 8 MB a pair in float32 for S = 100, and
on a CPU 40 times the time of that product.
Source: Hassan, Särkkä and García-Fernández (2021), "Temporal parallelization of inference in hidden Markov models".
"""

max_plus: Monoid[jax.Array] = Monoid(_combine_max_plus, _log_eye_like)
"""Matrices (S, S) of log weights: `max_k a[i, k] + b[k, j]`, the score of the best path (Viterbi).

-inf is an impossible step; entries are below inf. Derivatives are shared by the best paths and zero where none is
possible; they need an intermediate (S, S, S).
"""


class RunningMax(NamedTuple):
    """The largest value so far and where it was, the earliest of equals; of `running_max`. NaN is larger than any.

    Attributes:
      value: any shape; each entry has a maximum of its own.
      index: the shape of `value`, signed integers, not negative: -1 is the place of the identity.

    >>> first, second = (RunningMax(jnp.array(3.0), jnp.array(i)) for i in (0, 1))
    >>> running_max.combine(first, second).index.item()
    0
    """

    value: jax.Array
    index: jax.Array  # type: ignore[assignment]


def _combine_running_max(before: RunningMax, after: RunningMax) -> RunningMax:
    is_nan = before.value != before.value
    # The index decides about the identity, whose value may be met: -inf, or the lowest integer.
    keep = (after.index < 0) | ((before.index >= 0) & (is_nan | (before.value >= after.value)))
    return RunningMax(jnp.where(keep, before.value, after.value), jnp.where(keep, before.index, after.index))


def _running_max_identity(like: RunningMax) -> RunningMax:
    is_float = jnp.issubdtype(like.value.dtype, jnp.floating)
    lowest = -jnp.inf if is_float else jnp.iinfo(like.value.dtype).min
    return RunningMax(jnp.full_like(like.value, lowest), jnp.full_like(like.index, -1))


running_max: Monoid[RunningMax] = Monoid(_combine_running_max, _running_max_identity)

composition: Monoid[jax.Array] = Monoid(
    lambda before, after: after[before], lambda like: jnp.zeros_like(like) + jnp.arange(like.shape[0], dtype=like.dtype)
)
"""Maps of {0, ..., S - 1} into itself, as integers (S,): `after o before`, `s -> after[before[s]]`.

Back-pointers are such maps. Scanned in reverse from the last state they give the best path of Viterbi's algorithm.
"""

gaussian_filter: Monoid[FilterElement] = Monoid(_gaussian.combine_filter, _gaussian.filter_identity)
gaussian_smoother: Monoid[SmootherElement] = Monoid(_gaussian.combine_smoother, _gaussian.smoother_identity)
square_root_gaussian_filter: Monoid[SquareRootFilterElement] = Monoid(
    _gaussian.combine_square_root_filter, _gaussian.square_root_filter_identity
)
square_root_gaussian_smoother: Monoid[SquareRootSmootherElement] = Monoid(
    _gaussian.combine_square_root_smoother, _gaussian.square_root_smoother_identity
)


class Resettable(NamedTuple):
    """An element that may start the product anew; of `with_resets`.

    Attributes:
      reset: boolean scalar: whether what came before is forgotten. In a product, whether any of its elements did so.
      element: an element of the monoid lifted.
    """

    reset: jax.Array
    element: Any


def with_resets(monoid: Monoid[Any]) -> Monoid[Resettable]:
    """The monoid in which an element may forget what came before: `(r1, a) (r2, b) = (r1 or r2, b if r2 else a b)`.

    What is forgotten may be inf or NaN: neither the value nor, through this product, any derivative sees it. A product
    within what is forgotten is differentiated as any other, and zero times a NaN in it is NaN.

    Args:
      monoid: the monoid of the elements. Where it has no identity, neither has the result.

    Returns:
      the monoid of `Resettable` elements.

    >>> lifted = with_resets(Monoid(jnp.add, jnp.zeros_like))
    >>> before, after = (Resettable(jnp.array(r), jnp.array(x)) for r, x in ((False, jnp.nan), (True, 2.0)))
    >>> lifted.combine(before, after).element.item()
    2.0
    """
    identity = monoid.identity

    def combine(before: Resettable, after: Resettable) -> Resettable:
        def choose(if_reset: Any, if_not: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(after.reset, x, y), if_reset, if_not)

        # `combine` is differentiated even where its result is dropped: it is given something harmless there.
        harmless = after.element if identity is None else identity(after.element)
        product = monoid.combine(choose(harmless, before.element), after.element)
        return Resettable(before.reset | after.reset, choose(after.element, product))

    def lifted_identity(like: Resettable) -> Resettable:
        assert identity is not None
        return Resettable(jnp.zeros_like(like.reset), identity(like.element))

    return Monoid(combine, None if identity is None else lifted_identity)
