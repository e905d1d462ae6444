"""Unbiased estimates of the gradient of a log density, from all data or from a few rows of it.

Only an estimator knows how many rows there are: it multiplies what it sees of a batch by N / n, and whoever uses it
gets an estimate of the gradient for all N rows.

Source: Welling & Teh (2011), "Bayesian learning via stochastic gradient Langevin dynamics"; Baker, Fearnhead, Fox &
Nemeth (2019), "Control variates for stochastic gradient MCMC".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._log_density import as_log_density


class GradientEstimator(NamedTuple):
    """A random gradient whose expectation is the gradient of a log density.

    Calling it, `(key, position) -> gradient`, draws a batch and takes the gradient there. Stochastic-gradient kernels
    take any function of that form.

    Attributes:
      draw: `key -> batch`, the indices of rows (batch_size,), int32; empty where all rows are used.
      at: `(batch, position) -> gradient`, a pytree like `position`.
    """

    draw: Callable[[core.Key], jax.Array]
    at: Callable[[jax.Array, Any], Any]

    def __call__(self, key: core.Key, position: Any) -> Any:
        """The gradient estimated from one batch."""
        return self.at(self.draw(key), position)


def full_gradient(log_density: core.LogDensity) -> GradientEstimator:
    """The exact gradient as an estimator without noise.

    Args:
      log_density: `position -> scalar`.

    Returns:
      an estimator that needs no random numbers.

    Raises:
      TypeError: if `log_density` is no function.

    >>> estimator = full_gradient(lambda q: -0.5 * (q**2).sum())
    >>> estimator(jax.random.key(0), jnp.array([1.0, 2.0])).tolist()
    [-1.0, -2.0]
    """
    target = as_log_density(log_density, "full_gradient")
    return GradientEstimator(
        lambda key: jnp.zeros((0,), jnp.int32), lambda batch, position: target.value_and_gradient(position)[1]
    )


def minibatch_gradient(
    log_prior: Callable[[Any], Any],
    log_likelihood: Callable[[Any, Any], Any],
    data: Any,
    batch_size: int,
    *,
    replace: bool = True,
) -> GradientEstimator:
    """The gradient from a batch of rows.

    grad log p(q) + N / n * sum over the batch of grad log p(row | q)

    Args:
      log_prior: `position -> scalar`.
      log_likelihood: `(position, row) -> scalar`, of one row of the data.
      data: pytree of arrays (N, ...).
      batch_size: n, from 1 to N; each estimate costs as many gradients of one row.
      replace: whether rows are drawn independently of each other, which costs O(n). Otherwise a batch is a random
        subset, of all subsets with equal probability: its noise has a variance smaller by the factor
        (N - n) / (N - 1), and finding it costs n steps in sequence, whatever N (Floyd's algorithm).

    Returns:
      an unbiased estimator.

    Raises:
      TypeError: if an argument is no function.
      ValueError: if two leaves of `data` have different leading axes, or for a `batch_size` outside 1 to N; while
        tracing, if a log density is not one number.

    >>> rows = jnp.arange(8.0)
    >>> estimator = minibatch_gradient(lambda q: -0.5 * q**2, lambda q, row: -0.5 * (row - q) ** 2, rows, 2)
    >>> estimator.at(jnp.array([1, 3]), jnp.float32(0.0)).item()  # 8 / 2 * (1 + 3)
    16.0

    Source: Welling & Teh (2011), equation 4.
    """
    name = "minibatch_gradient"
    data, rows = _check(name, log_prior, log_likelihood, data, batch_size)

    def at(batch: jax.Array, position: Any) -> Any:
        return jax.grad(_scaled(name, log_prior, log_likelihood, data, rows, batch))(position)

    return GradientEstimator(lambda key: _draw(core.as_key(key, name), rows, batch_size, replace), at)


def control_variate_gradient(
    log_prior: Callable[[Any], Any],
    log_likelihood: Callable[[Any, Any], Any],
    data: Any,
    batch_size: int,
    centre: Any,
    *,
    replace: bool = True,
) -> GradientEstimator:
    """The gradient from the exact one at a centre and, from a batch of rows, the difference to it.

    grad log p(q) + sum of all grad log p(row | c) + N / n * sum over the batch of
    (grad log p(row | q) - grad log p(row | c))

    The closer q is to the centre the smaller the noise, and at the centre there is none: a mode serves well. Far from
    the centre the noise is larger than that of `minibatch_gradient`.

    Args:
      log_prior: `position -> scalar`.
      log_likelihood: `(position, row) -> scalar`, of one row of the data.
      data: pytree of arrays (N, ...).
      batch_size: n, from 1 to N; each estimate costs twice as many gradients of one row.
      centre: c, a position; its gradient for all N rows is taken once, here.
      replace: as in `minibatch_gradient`.

    Returns:
      an unbiased estimator.

    Raises:
      TypeError: if an argument is no function.
      ValueError: as `minibatch_gradient` does; while tracing, for positions of another structure than `centre`.

    >>> rows = jnp.arange(8.0)
    >>> estimator = control_variate_gradient(
    ...     lambda q: -0.5 * q**2, lambda q, row: -0.5 * (row - q) ** 2, rows, 2, centre=jnp.float32(3.0)
    ... )
    >>> estimator.at(jnp.array([1, 3]), jnp.float32(0.0)).item()  # 28, whatever the batch
    28.0

    Source: Baker et al. (2019), equation 6.
    """
    name = "control_variate_gradient"
    data, rows = _check(name, log_prior, log_likelihood, data, batch_size)
    centre = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), centre)
    everything = _scaled(name, lambda q: 0.0, log_likelihood, data, rows, None)
    exact = jax.grad(everything)(centre)

    def at(batch: jax.Array, position: Any) -> Any:
        core.check_same_structure(name, "position", position, centre)
        here = jax.grad(_scaled(name, log_prior, log_likelihood, data, rows, batch))(position)
        there = jax.grad(_scaled(name, lambda q: 0.0, log_likelihood, data, rows, batch))(centre)
        return jax.tree.map(lambda a, b, c: a + (b - c), exact, here, there)

    return GradientEstimator(lambda key: _draw(core.as_key(key, name), rows, batch_size, replace), at)


def _check(name: str, log_prior: Any, log_likelihood: Any, data: Any, batch_size: Any) -> tuple[Any, int]:
    """The data as arrays, and how many rows there are."""
    for argument, value in (("log_prior", log_prior), ("log_likelihood", log_likelihood)):
        if not callable(value):
            raise core.bad_type(name, argument, value, "a function")
    data = jax.tree.map(jnp.asarray, data)
    leaves = core.named_leaves(data)
    lengths = {leaf.shape[0] if leaf.ndim else 0 for _, leaf in leaves}
    if len(lengths) != 1 or 0 in lengths:
        got = "with leaves " + ", ".join(f"{path} of shape {leaf.shape}" for path, leaf in leaves)
        raise core.bad_value(name, "data", got if leaves else "empty", "arrays with one leading axis of rows")
    rows = lengths.pop()
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or not 1 <= batch_size <= rows:
        raise core.bad_value(name, "batch_size", batch_size, f"an integer from 1 to {rows}, the number of rows")
    return data, rows


def _scaled(
    name: str, log_prior: Any, log_likelihood: Any, data: Any, rows: int, batch: jax.Array | None
) -> Callable[[Any], jax.Array]:
    """The log density as a batch of rows shows it, or all of them."""
    seen = data if batch is None else jax.tree.map(lambda leaf: leaf[batch], data)
    scale = 1.0 if batch is None else rows / batch.shape[0]

    def log_density(position: Any) -> jax.Array:
        values = core.as_float(jax.vmap(log_likelihood, (None, 0))(position, seen))
        if values.ndim != 1:
            got = f"of shape {values.shape[1:]}"
            raise core.bad_value(name, "the value of log_likelihood", got, "one number, of one row")
        prior = core.as_float(log_prior(position))
        if prior.shape:
            raise core.bad_value(name, "the value of log_prior", f"of shape {prior.shape}", "one number")
        dtype = core.accumulator_dtype(core.result_dtype(values, prior))
        return prior.astype(dtype) + scale * jnp.sum(values.astype(dtype))

    return log_density


def _draw(key: core.Key, rows: int, batch_size: int, replace: bool) -> jax.Array:
    if replace:
        return core.random.randint(key, (batch_size,), 0, rows, jnp.int32)
    last = rows - batch_size + jnp.arange(batch_size, dtype=jnp.int32)
    proposals = core.random.randint(key, (batch_size,), 0, last + 1, jnp.int32)

    def choose(index: Any, chosen: jax.Array) -> jax.Array:
        # One that is taken already stands for the row that only now may be drawn: so every subset is equally likely.
        taken = jnp.any(chosen == proposals[index])
        return chosen.at[index].set(jnp.where(taken, last[index], proposals[index]))

    return core.fori_loop(0, batch_size, choose, jnp.full((batch_size,), -1, jnp.int32))
