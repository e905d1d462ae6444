"""Exact samplers of Poisson and binomial counts, in float32 up to counts of 1e9.

`jax.random.poisson` decides acceptance by differences of log-gammas that in float32 carry errors above one from rates
of 1e6 on (its draws at 1e8 have a variance half as large again), and refuses keys other than threefry. These accept by
the stable log mass and keep the low digits of a count in integers. Sources: Hoermann (1993), "The transformed rejection
method for generating Poisson random variables" (PTRS) and "The generation of binomial random variates" (BTRS).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.distributions._log_mass import deviance, stirling

# Below this mean the hats of transformed rejection do not cover the mass: count arrivals one by one instead.
_SMALL = 10.0


@partial(jax.jit, static_argnames="shape")
def poisson(key: core.Key, rate: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Poisson counts of the default integer dtype.

    Args:
      key: random key of any implementation.
      rate: floating, broadcasts to `shape`; at most about 2e9 (32-bit counts).
      shape: shape of the result.
    """
    rate = jnp.broadcast_to(jax.lax.stop_gradient(rate), shape)
    key_small, key_large = core.random.split(key)
    large = rate >= _SMALL
    few = _arrivals(key_small, jnp.where(large, 0.0, rate), lambda u: -jnp.log(u))

    mean = jnp.where(large, rate, _SMALL)
    log_mean = jnp.log(mean)
    b = 0.931 + 2.53 * jnp.sqrt(mean)
    a = -0.059 + 0.02483 * b

    def log_mass(count: jax.Array, excess: jax.Array) -> jax.Array:
        return -stirling(count) - deviance(count, mean, log_mean, excess)

    many = _rejection(
        key_large,
        large,
        mean,
        a=a,
        b=b,
        shift=0.43,
        limit=0.9277 - 3.6224 / (b - 2.0),
        log_scale=jnp.log(1.1239 + 1.1328 / (b - 3.4)),
        log_mass=log_mass,
        high=jnp.full_like(mean, jnp.inf),
    )
    return jnp.where(large, many, few)


@partial(jax.jit, static_argnames="shape")
def binomial(key: core.Key, total: jax.Array, p: jax.Array, q: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Binomial counts of the default integer dtype.

    Args:
      key: random key of any implementation.
      total: integers, number of trials.
      p: floating, probability of success.
      q: floating, probability of failure, so that neither is a rounded complement of the other.
      shape: shape of the result, to which all broadcast.
    """
    total, p, q = (jnp.broadcast_to(jax.lax.stop_gradient(x), shape) for x in (total, p, q))
    total = total.astype(int)
    flip = p > q
    p, q = jnp.where(flip, q, p), jnp.where(flip, p, q)
    trials = total.astype(p.dtype)
    key_small, key_large = core.random.split(key)
    large = trials * p >= _SMALL
    # Gaps between successes are geometric: ceil(log u / log q).
    log_q = jnp.where(p > 0, jnp.log1p(-p), -0.0)
    few = _arrivals(key_small, jnp.where(large, 0.0, trials), lambda u: jnp.ceil(jnp.log(u) / log_q), closed=True)

    trials = jnp.where(large, trials, 4 * _SMALL)
    p, q = jnp.where(large, p, 0.5), jnp.where(large, q, 0.5)
    mean = trials * p
    spread = jnp.sqrt(mean * q)
    b = 1.15 + 2.53 * spread
    log_p, log_q, log_trials = jnp.log(p), jnp.log1p(-p), jnp.log(trials)

    def log_mass(count: jax.Array, excess: jax.Array) -> jax.Array:
        rest = trials - count
        return (
            -stirling(count)
            - stirling(rest)
            - deviance(count, mean, log_trials + log_p, excess)
            - deviance(rest, trials * q, log_trials + log_q, -excess)
        )

    mode = jnp.floor((trials + 1.0) * p)
    many = _rejection(
        key_large,
        large,
        mean,
        a=-0.0873 + 0.0248 * b + 0.01 * p,
        b=b,
        shift=0.5,
        limit=0.92 - 4.2 / b,
        log_scale=jnp.log((2.83 + 5.1 / b) * spread) + log_mass(mode, mean - mode),
        log_mass=log_mass,
        high=trials,
    )
    count = jnp.where(large, many, few)
    return jnp.where(flip, total - count, count)


def _uniform(key: core.Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Uniform numbers in the open unit interval."""
    return core.random.uniform(key, shape, dtype, minval=float(jnp.finfo(dtype).tiny))


def _none(key: core.Key, *arrays: jax.Array) -> jax.Array:
    """False for each entry of the arrays, which broadcast, made from them and the key.

    A loop that begins with it has a carry that, under `shard_map`, varies over the mesh wherever one of them does.
    """
    shape = jnp.broadcast_shapes(*(array.shape for array in arrays))
    none = jnp.broadcast_to(jnp.sum(jax.random.key_data(key)) < 0, shape)  # of unsigned integers
    for array in arrays:
        none = none & jnp.broadcast_to(array == array, shape)
    return none


def _arrivals(
    key: core.Key, horizon: jax.Array, gap: Callable[[jax.Array], jax.Array], closed: bool = False
) -> jax.Array:
    """The number of arrivals before `horizon` (or at it, if `closed`), with gaps `gap(uniform)` between them."""

    def before(time: jax.Array) -> jax.Array:
        return time <= horizon if closed else time < horizon

    def advance(carry: tuple[core.Key, jax.Array, jax.Array]) -> tuple[core.Key, jax.Array, jax.Array]:
        key, time, count = carry
        key, sub = core.random.split(key)
        time = jnp.where(before(time), time + gap(_uniform(sub, time.shape, time.dtype)), time)
        return key, time, count + before(time).astype(int)

    none = _none(key, horizon)
    start = (key, none.astype(horizon.dtype), none.astype(int))
    return core.while_loop(lambda carry: jnp.any(before(carry[1])), advance, start)[2]


def _rejection(
    key: core.Key,
    wanted: jax.Array,
    mean: jax.Array,
    *,
    a: jax.Array,
    b: jax.Array,
    shift: float,
    limit: jax.Array,
    log_scale: jax.Array,
    log_mass: Callable[[jax.Array, jax.Array], jax.Array],
    high: jax.Array,
) -> jax.Array:
    """Transformed rejection: counts around `mean` for the `wanted` entries.

    A proposal is `floor((2 a / s + b) u + mean + shift)` with `s = 1/2 - |u|`; it is accepted outright in the squeeze
    `s >= 0.07, v <= limit`, and otherwise if `log v + log_scale - log(a / s^2 + b) <= log_mass`.
    """
    whole = jnp.floor(mean)
    fraction = mean - whole
    base = whole.astype(int)

    def trial(carry: tuple[core.Key, jax.Array, jax.Array]) -> tuple[core.Key, jax.Array, jax.Array]:
        key, count, done = carry
        key, sub = core.random.split(key)
        u, v = _uniform(sub, (2, *mean.shape), mean.dtype)
        u = u - 0.5
        s = 0.5 - jnp.abs(u)
        safe = jnp.maximum(s, 1e-6)
        offset = jnp.floor((2.0 * a / safe + b) * u + (fraction + shift))
        proposal = whole + offset
        inside = (proposal >= 0) & (proposal <= high) & (s > 1e-6)
        held = jnp.where(inside, proposal, whole)
        # mean - count from the small parts alone: exact where `proposal` itself is rounded.
        target = log_mass(held, jnp.where(inside, fraction - offset, fraction))
        accepted = jnp.log(v) + log_scale - jnp.log(a / (safe * safe) + b) <= target
        accepted = inside & (accepted | ((s >= 0.07) & (v <= limit)))
        count = jnp.where(accepted & ~done, base + jnp.where(inside, offset, 0.0).astype(int), count)
        return key, count, done | accepted

    none = _none(key, mean)
    start = (key, none.astype(int), ~wanted | none)
    return core.while_loop(lambda carry: ~jnp.all(carry[2]), trial, start)[1]


@partial(jax.jit, static_argnames="shape")
def multinomial(key: core.Key, total: jax.Array, probs: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Multinomial counts (*shape, k) of the default integer dtype: one binomial after the other.

    Args:
      key: random key of any implementation.
      total: integers, broadcasts to `shape`.
      probs: (..., k), leading axes broadcast to `shape`.
      shape: shape of the result less its last axis.
    """
    size = probs.shape[-1]
    # What is left from each outcome on, summed from the end so that no small remainder is a difference.
    left = jnp.flip(jnp.cumsum(jnp.flip(probs, -1), axis=-1), -1)
    after = jnp.concatenate([left[..., 1:], jnp.zeros_like(left[..., :1])], axis=-1)
    safe = jnp.where(left > 0, left, 1.0)
    p, q = jnp.moveaxis(probs / safe, -1, 0), jnp.moveaxis(jnp.where(left > 0, after / safe, 1.0), -1, 0)

    def draw(remaining: jax.Array, x: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        count = binomial(core.random.fold_in(key, x[0]), remaining, x[1], x[2], shape)
        return remaining - count, count

    start = jnp.broadcast_to(total, shape).astype(int)
    start = start + _none(key, start, probs[..., 0]).astype(int)
    _, counts = scan.scan(draw, start, (jnp.arange(size), p, q))
    return jnp.moveaxis(counts, 0, -1)
