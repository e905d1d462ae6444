"""Bounds on a log evidence from several draws, as functions of their log weights, with gradients for autodiff.

A log weight is log p(x) - log q(x) of a draw x of a guide q. All functions reduce axis 0, the draws, and take weights
of zero (-inf): value and gradient are finite unless every draw has one.

Source: Burda, Grosse & Salakhutdinov (2016), "Importance weighted autoencoders"; and as said at each function.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core


@jax.custom_jvp
def with_gradient_of(value: jax.Array, surrogate: jax.Array) -> jax.Array:
    """A value whose gradient is that of something else of its shape and dtype.

    >>> value, gradient = jax.value_and_grad(lambda x: with_gradient_of(jnp.round(x), x**2))(3.5)
    >>> float(value), float(gradient)
    (4.0, 7.0)
    """
    return value


@with_gradient_of.defjvp
def _with_gradient_of_jvp(primals: tuple[Any, Any], tangents: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[1]


def normalized_weights(log_weights: jax.Array) -> jax.Array:
    """The weights (draw, ...) divided by their sum, without gradient; zeros where all are.

    >>> normalized_weights(jnp.asarray([0.0, -jnp.inf, 0.0])).tolist()
    [0.5, 0.0, 0.5]
    """
    shifted, _ = _shifted(log_weights)
    weights = jnp.exp(shifted)
    total = jnp.sum(weights, axis=0, keepdims=True)
    return weights / jnp.where(total == 0, 1, total)


def _shifted(log_weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log weights less the largest, without gradient, and the largest; 0 in place of one that is not finite."""
    fixed = lax.stop_gradient(log_weights)
    top = jnp.max(fixed, axis=0, keepdims=True)
    top = jnp.where(top == -jnp.inf, 0, top)
    return fixed - top, top[0]


def importance_weighted_bound(log_weights: jax.Array) -> jax.Array:
    r"""The importance-weighted bound, with the gradient of its formula (the path gradient).

    $$\log \frac{1}{n} \sum_i w_i$$

    Args:
      log_weights: (draw, ...).

    Returns:
      (...): -inf with a gradient of zero where all weights are zero.

    >>> importance_weighted_bound(jnp.log(jnp.asarray([0.0, 4.0]))).item()  # log 2
    0.693...

    Source: Burda, Grosse & Salakhutdinov (2016), equation 8.
    """
    return core.logsumexp(log_weights, axis=0) - math.log(log_weights.shape[0])


def renyi_bound(log_weights: jax.Array, order: Any) -> jax.Array:
    r"""Renyi's bound of an order a, with the gradient of its formula: order 1 is the ELBO, order 0 importance-weighted.

    $$\frac{1}{1 - a} \log \frac{1}{n} \sum_i w_i^{1 - a}$$

    Args:
      log_weights: (draw, ...).
      order: (), any finite number.

    Returns:
      (...): from order 1 on one weight of zero makes the bound -inf, with a gradient of zero.

    >>> log_weights = jnp.asarray([0.0, 1.0])
    >>> [round(renyi_bound(log_weights, order).item(), 4) for order in (0.0, 0.999, 1.0)]
    [0.6201, 0.5001, 0.5]

    Source: Li & Turner (2016), "Renyi divergence variational inference", equation 8.
    """
    power = 1 - jnp.asarray(order, log_weights.dtype)
    lost = log_weights == -jnp.inf
    kept = jnp.sum(~lost, axis=0, keepdims=True).astype(log_weights.dtype)
    centre = jnp.sum(jnp.where(lost, 0, lax.stop_gradient(log_weights)), axis=0, keepdims=True) / jnp.maximum(kept, 1)
    away = jnp.where(lost, 0, log_weights - centre)
    # Where all powers are near 1, the logarithm of their mean would lose the digits that the division asks for.
    near = jnp.all((jnp.abs(power * away) < 1) & ~lost, axis=0, keepdims=True)
    small = jnp.where(near, away, 0)
    excess = jnp.mean(small * core.expm1_over_x(power * small), axis=0)
    close = excess * _log1p_over_x(power * excess)
    powers = jnp.where(lost, -jnp.inf, power * jnp.where(near, 0, away))
    far = importance_weighted_bound(powers) / jnp.where(power == 0, 1, power)
    value = centre[0] + jnp.where(near[0], close, far)
    return jnp.where((power <= 0) & jnp.any(lost, axis=0), -jnp.inf, value)


def _log1p_over_x(x: jax.Array) -> jax.Array:
    tiny = jnp.abs(x) < jnp.finfo(x.dtype).eps ** 0.5
    safe = jnp.where(tiny, 1, x)
    return jnp.where(tiny, 1 - x / 2, jnp.log1p(safe) / safe)


def doubly_reparameterized_bound(log_weights: jax.Array) -> jax.Array:
    """The importance-weighted bound with a gradient whose noise, relative to it, falls as draws are added.

    The gradient is the sum of the squares of the normalised weights times the gradients of the log weights. It is right
    for what moves the draws alone: the log weights must not depend in any other way on what is differentiated. So the
    guide's density is taken at parameters without gradient, and a model's parameters are without gradient too; where
    they are learned, add the gradient of `importance_weighted_bound` at draws without one.

    Args:
      log_weights: (draw, ...), of reparameterised draws: log p(x) - stop_gradient(guide).log_prob(x).

    Returns:
      (...).

    Source: Tucker, Lawson, Gu & Maddison (2019), "Doubly reparameterized gradient estimators", equation 8.
    """
    weights = normalized_weights(log_weights)
    return with_gradient_of(importance_weighted_bound(log_weights), jnp.sum(weights**2 * log_weights, axis=0))


def vimco_bound(log_weights: jax.Array, log_q: jax.Array) -> jax.Array:
    """The importance-weighted bound with a gradient for draws that have no path, such as discrete ones.

    Each draw is credited with what the bound would lose without it: if its weight were the geometric mean of the
    others. Parameters of a model that the log weights depend on get their gradient too.

    Args:
      log_weights: (draw, ...), of draws without gradient: log p(x) - log q(x).
      log_q: (draw, ...), log density of each draw under the guide, or log probability.

    Returns:
      (...).

    Source: Mnih & Rezende (2016), "Variational inference for Monte Carlo objectives", equations 7 to 10.
    """
    bound = importance_weighted_bound(log_weights)
    credit = _credit(log_weights)
    surrogate = bound + jnp.sum(credit * log_q, axis=0)
    return with_gradient_of(bound, surrogate)


def _credit(log_weights: jax.Array) -> jax.Array:
    """(draw, ...): the bound less a bound made of the other draws, without gradient."""
    number = log_weights.shape[0]
    shifted, top = _shifted(log_weights)
    bound = jnp.expand_dims(importance_weighted_bound(shifted), 0)
    own = jnp.reshape(jnp.eye(number, dtype=bool), (number, number) + (1,) * (log_weights.ndim - 1))
    table = jnp.broadcast_to(jnp.expand_dims(shifted, 0), (number, *shifted.shape))
    mean = jnp.sum(jnp.where(own, 0, table), axis=1, keepdims=True) / max(number - 1, 1)
    baseline = importance_weighted_bound(jnp.moveaxis(jnp.where(own, mean, table), 1, 0))
    # Where the others all have a weight of zero, or there are none, they say nothing: no baseline.
    others = jnp.any(~own & (table > -jnp.inf), axis=1)
    credit = jnp.where(others, bound - jnp.where(others, baseline, 0), bound + jnp.expand_dims(top, 0))
    return jnp.where(jnp.isfinite(credit), credit, 0)


def forward_divergence(log_weights: jax.Array, log_q: jax.Array) -> jax.Array:
    r"""An estimate of KL(p || q) by normalised weights, with the gradient of the reweighted wake phase.

    $$\sum_i \bar w_i \log (n \bar w_i), \qquad \text{gradient} \; -\sum_i (\bar w_i - 1/n) \nabla \log q(x_i)$$

    The gradient of the guide's log density has mean zero under the guide, so that 1/n times it changes no mean; the
    noise then vanishes where the guide is exact. Both are biased by O(1/n), as normalised weights are.

    Args:
      log_weights: (draw, ...), of draws without gradient.
      log_q: (draw, ...), log density of each draw under the guide.

    Returns:
      (...), at least 0; inf where all weights are zero.

    Source: Bornschein & Bengio (2015), "Reweighted wake-sleep", equation 9 and section 3.
    """
    number = log_weights.shape[0]
    weights = normalized_weights(log_weights)
    value = math.log(number) + jnp.sum(core.xlogy(weights, weights), axis=0)
    value = jnp.where(jnp.all(weights == 0, axis=0), jnp.inf, value)
    return with_gradient_of(value, -jnp.sum((weights - 1 / number) * log_q, axis=0))
