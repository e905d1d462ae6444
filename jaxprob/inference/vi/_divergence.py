"""The divergence of one distribution from another, where it has a closed form."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import (
    Bernoulli,
    Categorical,
    Concatenated,
    Distribution,
    Independent,
    MultivariateNormal,
    MultivariateNormalDiagonal,
    MultivariateNormalLowRank,
    MultivariateNormalRankOnePrecision,
    Normal,
    OneHotCategorical,
    flows,
)
from jaxprob.distributions._multivariate import LOG_2PI

_VECTORS = (
    MultivariateNormal,
    MultivariateNormalDiagonal,
    MultivariateNormalLowRank,
    MultivariateNormalRankOnePrecision,
)


def kl_divergence(q: Distribution, p: Distribution) -> jax.Array:
    r"""The Kullback-Leibler divergence in nats, in closed form.

    $$KL(q \| p) = E_q[\log q(x) - \log p(x)]$$

    Args:
      q: a normal distribution (of numbers or of vectors, with whatever covariance), a Bernoulli or a categorical one,
        or `Independent` or `Concatenated` ones of these.
      p: of the same kind; of normal vectors one with a diagonal covariance, or both with a dense one.

    Returns:
      one number for each member of the batch.

    Raises:
      TypeError: if there is no closed form here.
      ValueError: if events differ in shape.

    >>> kl_divergence(Normal(1.0, 1.0), Normal(0.0, 1.0)).item()
    0.5
    """
    for argument, given in (("q", q), ("p", p)):
        if not isinstance(given, Distribution):
            raise core.bad_type("kl_divergence", argument, given, "a distribution")
    if q.event_shape != p.event_shape:
        got = f"of event shape {p.event_shape}"
        raise core.bad_value("kl_divergence", "p", got, f"the event shape {q.event_shape} of q")
    found = _closed(q, p)
    if found is None:
        got = f"a {type(q).__name__} beside a {type(p).__name__}"
        todo = "Estimate it from draws, as vi.amortized_elbo(kl='sampled') does"
        raise core.bad_type("kl_divergence", "q", got, "a pair with a closed form", todo)
    return found


def _closed(q: Any, p: Any) -> jax.Array | None:
    if isinstance(q, Independent) and isinstance(p, Independent) and q.ndims == p.ndims:
        each = _closed(q.base, p.base)
        ndims = q.ndims or 0
        return None if each is None else jnp.sum(each, tuple(range(each.ndim - ndims, each.ndim)))
    if isinstance(q, Concatenated) and isinstance(p, Concatenated) and q.sizes == p.sizes:
        parts = [_closed(a, b) for a, b in zip(q.parts, p.parts, strict=True)]
        return None if any(part is None for part in parts) else functools.reduce(jnp.add, parts)  # type: ignore[arg-type]
    if any(isinstance(q, kind) and isinstance(p, kind) for kind in (Categorical, OneHotCategorical)):
        logs = [core.safe_log(d.probs) if d.logits is None else jax.nn.log_softmax(d.logits) for d in (q, p)]
        return jnp.sum(_expected(jnp.exp(logs[0]), *_aligned(*logs)), -1)
    if isinstance(q, Bernoulli) and isinstance(p, Bernoulli):
        (one, zero, *log_q), (_, _, *log_p) = q.parameters, p.parameters
        both = zip((one, zero), log_q, log_p, strict=True)
        return functools.reduce(jnp.add, [_expected(share, *_aligned(a, b)) for share, a, b in both])
    if isinstance(q, Normal) and isinstance(p, Normal):
        return _normal(*_aligned(q.loc, q.scale, p.loc, p.scale))
    if isinstance(p, MultivariateNormal) and isinstance(q, MultivariateNormal):
        return _dense(q, p)
    return _against_independent(q, p)


def _expected(share: jax.Array, log_q: jax.Array, log_p: jax.Array) -> jax.Array:
    """share (log_q - log_p), 0 where the share is: without a gradient that is not finite."""
    there = share > 0
    return jnp.where(there, share * (jnp.where(there, log_q, 0) - jnp.where(there, log_p, 0)), 0)


def _normal(loc: jax.Array, scale: jax.Array, other_loc: jax.Array, other_scale: jax.Array) -> jax.Array:
    """Of single numbers; close to equality as a sum of two that are not negative."""
    log_ratio = jnp.log(scale) - jnp.log(other_scale)
    apart = (loc - other_loc) / other_scale
    return 0.5 * (apart**2 + jnp.expm1(2 * log_ratio) - 2 * log_ratio)


def _dense(q: MultivariateNormal, p: MultivariateNormal) -> jax.Array:
    white = core.solve_triangular(p.cholesky, q.cholesky)
    apart = core.quadratic_form(p.cholesky, q.mean() - p.mean())
    log_ratio = core.log_determinant(p.cholesky) - core.log_determinant(q.cholesky)
    return 0.5 * (jnp.sum(white**2, (-2, -1)) + apart - q.event_shape[0] + log_ratio)


def _against_independent(q: Any, p: Any) -> jax.Array | None:
    """Of a normal vector from one with independent numbers: it takes the variances and the entropy of q alone."""
    if not isinstance(q, (*_VECTORS, Concatenated, flows.StandardNormal)) or len(q.event_shape) != 1:
        return None
    if not isinstance(p, (MultivariateNormalDiagonal, flows.StandardNormal)):
        return None
    if isinstance(q, Concatenated) and not all(isinstance(part, (*_VECTORS, flows.StandardNormal)) for part in q.parts):
        return None
    zero = jnp.zeros((), core.result_dtype(q))
    loc, scale = (p.loc, p.scale) if isinstance(p, MultivariateNormalDiagonal) else (zero, zero + 1)
    if isinstance(q, MultivariateNormalDiagonal):
        return jnp.sum(_normal(*_aligned(q.loc, q.scale, loc, scale)), -1)
    mean, variance, loc, scale = _aligned(q.mean(), q.variance(), loc, scale)
    cross = jnp.sum(0.5 * (variance + (mean - loc) ** 2) / scale**2 + jnp.log(scale), -1)
    return cross + 0.5 * q.event_shape[0] * LOG_2PI - q.entropy()


def _aligned(*arrays: Any) -> list[jax.Array]:
    """Arrays of one rank and floating dtype, broadcast."""
    dtype, ndim = core.result_dtype(arrays), max(jnp.ndim(a) for a in arrays)
    wide = [jnp.expand_dims(jnp.asarray(a, dtype), tuple(range(ndim - jnp.ndim(a)))) for a in arrays]
    return list(jnp.broadcast_arrays(*wide))
