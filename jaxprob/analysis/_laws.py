"""Laws that every building block of inference with weighted samples has to obey.

A program denotes an unnormalised measure mu, represented by random weighted samples: E[sum_i w_i f(x_i)] is the
integral of f with respect to mu, for every f. Resampling, spawning, a Metropolis-Hastings-Green move, and whatever is
composed of them must leave mu as it is. That is what is tested here, by simulation.

Source: Scibior, Kammar, Vakar, Staton, Yang, Cai, Ostermann, Moss, Heunen and Ghahramani (2018), "Denotational
validation of higher-order Bayesian inference", POPL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.analysis import _chains as chains

_AT_ONCE = 256
"""Repetitions in one vectorised batch: this many populations are in memory at a time."""
_ROUNDING = 32
"""Units of relative rounding below which a change is none; a large log weight adds its own size to them."""


class LawCheck(NamedTuple):
    """What `check_measure_preserving` returns: one entry for each test function.

    Attributes:
      z: (function,), the mean change divided by its standard error (and rounding); 0 where nothing ever changed. Under
        the law it is close to standard normal: |z| > 4 happens once in 16,000 tests.
      ratio: (function,), estimate after over expectation before; 1 under the law.
      standard_error: (function,), of `ratio`.
    """

    z: jax.Array
    ratio: jax.Array
    standard_error: jax.Array


def check_measure_preserving(
    key: core.Key,
    transform: Callable[[core.Key, Any], Any],
    program: Callable[[core.Key], Any],
    test_functions: Sequence[Callable[[Any], Any]],
    repeats: int = 4000,
    *,
    expected: Any = None,
) -> LawCheck:
    """Tests the law E[sum_i w'_i f(x'_i)] = E[sum_i w_i f(x_i)] for a transformation of weighted populations.

    Each repetition draws a population, transforms it and takes the difference of the two sums, so that the noise they
    share cancels. Use f = 1 among the test functions: it is the evidence. Sums with a heavy tail (an evidence estimated
    with few particles) are not normal after any affordable number of repetitions: more particles, not a larger limit.

    Args:
      key: random key.
      transform: `(key, population) -> population`; the number of particles may change.
      program: `key -> population`, where a population is a pair `(samples, log_weights)`, or a NamedTuple that starts
        with these two: samples are a pytree with a leading axis (particle,), log weights are (particle,).
      test_functions: functions of one sample to a scalar.
      repeats: number of repetitions.
      expected: (function,), the exact integrals of the test functions, where they are known. The sums after the
        transformation are then compared with these and not with the sums before. Divide by the evidence (take its
        logarithm from the log weights) where it is out of the range of floats.

    Returns:
      `LawCheck(z, ratio, standard_error)`.

    Raises:
      ValueError: if there is no test function, `repeats` is less than 2, or `expected` has another length.

    >>> def program(key):
    ...     x = jax.random.normal(key, (20,))
    ...     return x, -0.5 * (x - 1) ** 2
    >>> def resample(key, population):
    ...     x, log_weights = population
    ...     total = jax.nn.logsumexp(log_weights)
    ...     index = jax.random.categorical(key, log_weights, shape=(20,))
    ...     return x[index], jnp.full(20, total - jnp.log(20.0))
    >>> law = check_measure_preserving(jax.random.key(0), resample, program, [lambda x: 1.0, lambda x: x], 500)
    >>> bool(jnp.all(jnp.abs(law.z) < 4))
    True

    Source: Scibior et al. (2018), section 4.
    """
    key = core.as_key(key, "check_measure_preserving")
    if not test_functions:
        raise core.bad_value("check_measure_preserving", "test_functions", "empty", "at least one function")
    if repeats < 2:
        raise core.bad_value("check_measure_preserving", "repeats", repeats, "2 or more")
    if expected is not None and jnp.shape(expected) != (len(test_functions),):
        raise core.bad_value("check_measure_preserving", "expected", expected, f"{len(test_functions)} numbers")

    def once(index: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        draw_key, transform_key = core.random.split(core.random.fold_in(key, index))
        population = program(draw_key)
        return *_sums(population, test_functions), *_sums(transform(transform_key, population), test_functions)

    all_of_them = jax.jit(lambda indices: chains.in_batches(once, (indices,), _AT_ONCE))
    log_scale_before, before, log_scale_after, after = all_of_them(jnp.arange(repeats))
    log_scale = jnp.maximum(jnp.max(log_scale_before), jnp.max(log_scale_after))
    rounding = (_ROUNDING + jnp.abs(log_scale)) * jnp.finfo(after.dtype).eps
    if expected is not None:
        target = jnp.asarray(expected, after.dtype)
        sums = jnp.exp(log_scale_after)[:, None] * after
        return _compare(sums - target[None], target, rounding)
    # One common scale: z and ratio do not depend on it, and evidences may be outside the range of floats.
    sums_before = jnp.exp(log_scale_before - log_scale)[:, None] * before
    sums_after = jnp.exp(log_scale_after - log_scale)[:, None] * after
    return _compare(sums_after - sums_before, jnp.mean(sums_before, axis=0), rounding)


def _sums(population: Any, test_functions: Sequence[Callable[[Any], Any]]) -> tuple[jax.Array, jax.Array]:
    """The logarithm of the largest weight, and sum_i w_i f(x_i) in units of it, (function,)."""
    samples, log_weights = population[0], population[1]
    largest = jnp.max(log_weights)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    weights = jnp.exp(log_weights - largest)

    def weighted(function: Callable[[Any], Any]) -> jax.Array:
        values = jax.vmap(lambda sample: jnp.asarray(function(sample), weights.dtype))(samples)
        # A weight of 0 counts for nothing, also where f is infinite.
        return jnp.sum(jnp.where(weights > 0, weights * values, 0))

    return largest, jnp.stack([weighted(function) for function in test_functions])


def _compare(changes: jax.Array, target: jax.Array, rounding: jax.Array) -> LawCheck:
    """z-scores of mean changes (repeat, function), and the relative change with its standard error."""
    mean = jnp.mean(changes, axis=0)
    error = jnp.std(changes, axis=0, ddof=1) / math.sqrt(changes.shape[0])
    # A sum that is the same but for rounding may be rounded the same way every time.
    error = jnp.hypot(error, rounding * jnp.abs(target))
    z = jnp.where(error > 0, mean / jnp.where(error > 0, error, 1), jnp.where(mean == 0, 0, jnp.inf * mean))
    return LawCheck(z, 1 + mean / target, error / jnp.abs(target))
