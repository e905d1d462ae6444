"""Mixtures fitted by expectation maximisation: each step raises the likelihood, or leaves it.

Starts are drawn as those of k-means++ are, and the best of several is kept. Covariances are held above a small part of
the data's variances, so that the likelihood is bounded; the step that is constrained so is taken exactly.

Source: Dempster, Laird & Rubin (1977), "Maximum likelihood from incomplete data via the EM algorithm"; Arthur &
Vassilvitskii (2007), "k-means++"; Ingrassia & Rocci (2007) for eigenvalues that are held in an interval.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    Mixture,
    MultivariateNormal,
    MultivariateNormalDiagonal,
    Poisson,
)
from jaxprob.inference._expectation_maximization import Fitted, check_steps, iterate


def _never(components: Any, xs: jax.Array) -> jax.Array:
    return jnp.zeros(components.batch_shape, bool)


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of component, with its weighted maximum likelihood.

    Attributes:
      name: of the factory.
      maximize: `(xs, weights) -> Distribution` with batch (k,), from xs (example, n) and weights (example, k).
      features: `xs -> (example, f)`, between which distances are taken for a start.
      valid: `xs -> bool`, a NumPy predicate of data.
      expected: what `valid` asks for, in words.
      held: `(components, xs) -> (k,)`, whether a component is held at a bound of the family.
    """

    name: str
    maximize: Callable[[jax.Array, jax.Array], Distribution]
    features: Callable[[jax.Array], jax.Array]
    valid: Callable[[np.ndarray], Any] = np.isfinite
    expected: str = "finite numbers"
    held: Callable[[Any, jax.Array], jax.Array] = _never


class MixtureFit(NamedTuple):
    """A mixture that was fitted.

    Attributes:
      model: a `Mixture`.
      log_likelihoods: (steps + 1,), of the models before each step, and of the last one.
      converged: (), whether the last step raised the log likelihood by no more than the tolerance.
      smallest_weight: (), of a component.
      degenerate: (k,), whether a component is held at the floor of its covariance or has less than one example.
    """

    model: Mixture
    log_likelihoods: jax.Array
    converged: jax.Array
    smallest_weight: jax.Array
    degenerate: jax.Array


def full_normal(floor: float = 1e-6) -> Family:
    """Normal vectors, each component with a covariance of its own: `MultivariateNormal`.

    Args:
      floor: the least eigenvalue of a covariance, of data that are divided by their standard deviations.
    """
    core.check_positive("mixture.full_normal", floor=floor)
    return Family("full_normal", core.Bound(_full, floor), _standardized, held=core.Bound(_is_held, floor))


def diagonal_normal(floor: float = 1e-6) -> Family:
    """Normal vectors of independent numbers: `MultivariateNormalDiagonal`.

    Args:
      floor: the least variance, of that of all data.
    """
    core.check_positive("mixture.diagonal_normal", floor=floor)
    return Family("diagonal_normal", core.Bound(_diagonal, floor), _standardized, held=core.Bound(_is_held, floor))


def poisson() -> Family:
    """Vectors of independent counts: `Independent(Poisson)`."""
    return Family("poisson", _poisson, _roots, _is_count, "whole numbers, at least 0")


def bernoulli() -> Family:
    """Vectors of independent bits: `Independent(Bernoulli)`."""
    return Family("bernoulli", _bernoulli, _as_they_are, _is_bit, "zeros and ones")


def categorical(num_categories: int) -> Family:
    """Vectors of independent categories: `Independent(Categorical)`.

    Args:
      num_categories: of each entry, numbered from 0.
    """
    core.check_whole("mixture.categorical", least=2, num_categories=num_categories)
    return Family(
        "categorical",
        core.Bound(_categorical, num_categories),
        core.Bound(_indicators, num_categories),
        core.Bound(_is_category, num_categories),
        f"whole numbers from 0 to {num_categories - 1}",
    )


def responsibilities(model: Mixture, xs: Any) -> jax.Array:
    """The probability of each component given each example: (example, k).

    Args:
      model: a `Mixture` of one family, with batch ().
      xs: (example, *event).
    """
    return _expected(model, jnp.asarray(xs))[0]


def fit(
    key: core.Key,
    xs: Any,
    count: int,
    family: Family | None = None,
    *,
    starts: int = 8,
    steps: int = 200,
    tolerance: float = 1e-3,
) -> MixtureFit:
    """A mixture fitted by EM from several starts, of which the likeliest without a degenerate component is kept.

    Args:
      key: random key.
      xs: (example, n).
      count: k, of components.
      family: of components, such as `mixture.poisson()`; `mixture.full_normal()` by default.
      starts: how many.
      steps: of EM from each, all of which are taken.
      tolerance: the gain of log likelihood in the last step up to which EM counts as converged.

    Returns:
      `MixtureFit`.

    Raises:
      TypeError: if `family` is none.
      ValueError: if data are not what the family asks for, or there are fewer examples than components.

    >>> xs = jnp.concatenate([jnp.linspace(-1, 1, 20), jnp.linspace(9, 11, 20)])[:, None]
    >>> sorted(fit(jax.random.key(0), xs, 2).model.components.loc[:, 0].round(1).tolist())
    [0.0, 10.0]
    """
    name = "mixture.fit"
    family = full_normal() if family is None else family
    core.check_whole(name, count=count, starts=starts)
    xs = _read(name, xs, family, steps)
    if xs.shape[0] < count:
        raise core.bad_value(name, "count", count, f"at most the {xs.shape[0]} examples")
    return _fit(core.as_key(key, name), xs, tolerance, count, family, starts, steps)


def fit_from(
    model: Mixture, xs: Any, family: Family | None = None, *, steps: int = 200, tolerance: float = 1e-3
) -> MixtureFit:
    """A mixture fitted by EM from a given one.

    Args:
      model: a `Mixture` with `weights` and components as the family makes them, with batch (k,).
      xs: (example, n).
      family: of components; `mixture.full_normal()` by default.
      steps: of EM, all of which are taken.
      tolerance: the gain of log likelihood in the last step up to which EM counts as converged.

    Returns:
      `MixtureFit`.

    Raises:
      TypeError: if `model` is no such mixture.
      ValueError: if data are not what the family asks for.
    """
    name = "mixture.fit_from"
    family = full_normal() if family is None else family
    xs = _read(name, xs, family, steps)
    if not isinstance(model, Mixture) or model.weights is None or model.batch_shape:
        raise core.bad_type(name, "model", model, "one Mixture with weights")
    like = jax.eval_shape(lambda xs: family.maximize(xs, jnp.ones((xs.shape[0], model.weights.size), xs.dtype)), xs)
    if jax.tree.structure(model.components) != jax.tree.structure(like):  # type: ignore[operator]
        got = f"a mixture of {type(model.components).__name__}"
        raise core.bad_type(name, "model", got, f"one of components as mixture.{family.name} makes them")
    # Parameters that components share become one for each.
    spread = lambda old, new: jnp.broadcast_to(old, new.shape).astype(new.dtype)  # noqa: E731
    model = Mixture(model.weights.astype(xs.dtype), jax.tree.map(spread, model.components, like))
    return _fit_from(model, xs, tolerance, family, steps)


def _read(name: str, xs: Any, family: Any, steps: int) -> jax.Array:
    if not isinstance(family, Family):
        raise core.bad_type(name, "family", family, "a family of components", "Such as mixture.full_normal()")
    check_steps(name, steps)
    raw = jnp.asarray(xs)
    if raw.ndim != 2 or 0 in raw.shape:
        todo = "Pass xs[:, None]" if raw.ndim == 1 else ""
        raise core.bad_value(name, "xs", f"of shape {raw.shape}", "shape (example, n)", todo)
    if not isinstance(raw, jax.core.Tracer) and not np.all(family.valid(np.asarray(raw, np.float64))):
        raise core.bad_value(name, "xs", "something else somewhere", family.expected)
    xs = core.as_float(raw)
    return xs.astype(core.accumulator_dtype(xs.dtype))


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _fit(
    key: core.Key, xs: jax.Array, tolerance: Any, count: int, family: Family, starts: int, steps: int
) -> MixtureFit:
    def one(index: jax.Array) -> MixtureFit:
        return _fit_from(_start(core.fold(key, index), xs, count, family), xs, tolerance, family, steps)

    found = jax.vmap(one)(jnp.arange(starts))
    totals = found.log_likelihoods[:, -1]
    regular = ~jnp.any(found.degenerate, 1) & jnp.isfinite(totals)
    eligible = jnp.where(jnp.any(regular), regular, jnp.isfinite(totals))
    best = jnp.argmax(jnp.where(eligible, totals, -jnp.inf))
    return jax.tree.map(lambda leaf: leaf[best], found)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _fit_from(model: Mixture, xs: jax.Array, tolerance: Any, family: Family, steps: int) -> MixtureFit:
    def em_step(model: Mixture) -> tuple[Mixture, jax.Array]:
        shares, total = _expected(model, xs)
        return _maximized(model, xs, shares, family), jnp.sum(total)

    found: Fitted = iterate(em_step, model, steps, tolerance)
    weights = found.model.weights
    few = weights * xs.shape[0] < 1
    held = family.held(found.model.components, xs)
    return MixtureFit(found.model, found.log_likelihoods, found.converged, jnp.min(weights), few | held)


def _expected(model: Mixture, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The responsibilities (example, k), and the log likelihood of each example; zeros for an example without."""
    log_weights = core.safe_log(model.weights) if model.logits is None else jax.nn.log_softmax(model.logits)
    components: Any = model.components
    each = components.log_prob(jnp.expand_dims(xs, 1))
    joint = jnp.where(jnp.expand_dims(log_weights, 0) > -jnp.inf, jnp.expand_dims(log_weights, 0) + each, -jnp.inf)
    total = core.logsumexp(joint, axis=1)
    known = jnp.expand_dims(total > -jnp.inf, 1)
    return jnp.where(known, jnp.exp(joint - jnp.where(known, jnp.expand_dims(total, 1), 0)), 0), total


def _maximized(model: Mixture, xs: jax.Array, shares: jax.Array, family: Family) -> Mixture:
    """The mixture after a step; a component that nothing belongs to stays as it is, with a weight of zero."""
    number = jnp.sum(shares, 0)
    kept = number > 0
    new = family.maximize(xs, jnp.where(jnp.expand_dims(kept, 0), shares, 1))
    widen = lambda leaf: jnp.expand_dims(kept, tuple(range(1, leaf.ndim)))  # noqa: E731
    components = jax.tree.map(lambda a, b: jnp.where(widen(a), a, b), new, model.components)
    return Mixture(number / jnp.sum(number), components)


def _start(key: core.Key, xs: jax.Array, count: int, family: Family) -> Mixture:
    """Each example to the nearest of centres that are drawn in proportion to squared distances from those before."""
    features = family.features(xs)

    def squared(index: jax.Array) -> jax.Array:
        return jnp.sum((features - jnp.expand_dims(features[index], 0)) ** 2, 1)

    def draw(nearest: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        # All alike where every example is a centre.
        log_chance = jnp.where(jnp.any(nearest > 0), core.safe_log(nearest), 0)
        away = squared(core.random.categorical(core.fold(key, index), log_chance, mode="high"))
        return jnp.minimum(nearest, away), away

    first = squared(core.random.randint(core.fold(key, 0), (), 0, xs.shape[0]))
    _, others = scan.scan(draw, first, jnp.arange(1, count))
    owner = jnp.argmin(jnp.concatenate([jnp.expand_dims(first, 0), others]), axis=0)
    hard = jnp.expand_dims(owner, 1) == jnp.expand_dims(jnp.arange(count), 0)
    # A tenth of each example to all: no component begins with a spread of zero.
    shares = 0.9 * hard.astype(xs.dtype) + 0.1 / count
    weights = jnp.mean(shares, 0)
    return Mixture(weights / jnp.sum(weights), family.maximize(xs, shares))


def _scale(xs: jax.Array) -> jax.Array:
    """The standard deviation of each column, 1 where it is zero."""
    scale = jnp.std(xs, axis=0)
    return jnp.where(scale > 0, scale, 1)


def _standardized(xs: jax.Array) -> jax.Array:
    return (xs - jnp.mean(xs, axis=0, keepdims=True)) / jnp.expand_dims(_scale(xs), 0)


def _means(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Weighted means (k, ...) of values (example, ...)."""
    shares = weights / jnp.sum(weights, axis=0, keepdims=True)
    return jnp.tensordot(shares.T, values, axes=1, precision=jax.lax.Precision.HIGHEST)


def _full(floor: float, xs: jax.Array, weights: jax.Array) -> Distribution:
    scale = _scale(xs)
    mean = _means(xs, weights)
    shares = weights / jnp.sum(weights, axis=0, keepdims=True)

    def factor(mean: jax.Array, share: jax.Array) -> jax.Array:
        away = (xs - jnp.expand_dims(mean, 0)) / jnp.expand_dims(scale, 0)
        values, vectors = jnp.linalg.eigh(core.matmul(away.T * jnp.expand_dims(share, 0), away))
        # The likeliest covariance of which no eigenvalue is below the floor.
        root = jnp.expand_dims(jnp.sqrt(jnp.maximum(values, floor)), 0)
        return core.tria(jnp.expand_dims(scale, 1) * vectors * root)

    return MultivariateNormal(mean, cholesky=jax.vmap(factor)(mean, shares.T))


def _diagonal(floor: float, xs: jax.Array, weights: jax.Array) -> Distribution:
    mean = _means(xs, weights)
    shares = weights / jnp.sum(weights, axis=0, keepdims=True)
    away = jnp.expand_dims(xs, 1) - jnp.expand_dims(mean, 0)
    variance = jnp.sum(jnp.expand_dims(shares, 2) * away**2, 0)
    return MultivariateNormalDiagonal(
        mean, jnp.sqrt(jnp.maximum(variance, floor * jnp.expand_dims(_scale(xs), 0) ** 2))
    )


def _is_held(floor: float, components: Any, xs: jax.Array) -> jax.Array:
    """Whether the least eigenvalue, in units of the data's scales, is at the floor."""
    scale = _scale(xs)
    if isinstance(components, MultivariateNormalDiagonal):
        least = jnp.min(components.scale / jnp.expand_dims(scale, 0), 1)
    else:
        factor = components.cholesky / jnp.expand_dims(scale, (0, 2))
        least = jnp.min(jnp.linalg.svd(factor, compute_uv=False), -1)
    return least**2 < 1.01 * floor


def _poisson(xs: jax.Array, weights: jax.Array) -> Distribution:
    return Independent(Poisson(_means(xs, weights)), 1)


def _bernoulli(xs: jax.Array, weights: jax.Array) -> Distribution:
    # Rounding may leave a mean of ones just above 1.
    return Independent(Bernoulli(jnp.clip(_means(xs, weights), 0, 1)), 1)


def _categorical(count: int, xs: jax.Array, weights: jax.Array) -> Distribution:
    is_one = jnp.expand_dims(xs, 2) == jnp.expand_dims(jnp.arange(count, dtype=xs.dtype), (0, 1))
    return Independent(Categorical(_means(is_one.astype(xs.dtype), weights)), 1)


def _roots(xs: jax.Array) -> jax.Array:
    """Of counts, whose square roots have nearly one variance."""
    return jnp.sqrt(xs)


def _as_they_are(xs: jax.Array) -> jax.Array:
    return xs


def _indicators(count: int, xs: jax.Array) -> jax.Array:
    return jax.nn.one_hot(xs.astype(int), count, dtype=xs.dtype).reshape(xs.shape[0], -1)


def _is_count(xs: np.ndarray) -> Any:
    return (xs >= 0) & (xs == np.floor(xs)) & np.isfinite(xs)


def _is_bit(xs: np.ndarray) -> Any:
    return (xs == 0) | (xs == 1)


def _is_category(count: int, xs: np.ndarray) -> Any:
    return _is_count(xs) & (xs < count)
