"""Less noise for gradients by the score: what has mean zero under the guide is subtracted.

The gradient of log q(x) has mean zero under q, so that any number that does not depend on a draw may be subtracted from
what the draw's is multiplied by.

Source: Ranganath, Gerrish & Blei (2014), "Black box variational inference", section 3; Kool, van Hoof & Welling (2019),
"Buy 4 REINFORCE samples, get a baseline for free!".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def less_the_others(values: jax.Array) -> jax.Array:
    """Values (draw, ...), each less the mean of the others; a single draw's as it is.

    >>> less_the_others(jnp.asarray([1.0, 2.0, 6.0])).tolist()
    [-3.0, -1.5, 4.5]
    """
    number = values.shape[0]
    if number == 1:
        return values
    return (values - jnp.mean(values, axis=0, keepdims=True)) * (number / (number - 1))


def fitted_score_gradient(values: jax.Array, guide: Any, positions: Any) -> jax.Array:
    r"""A scalar whose gradient, with respect to the guide, estimates that of the mean of `values`; its value is none.

    With h the gradient of log q for one parameter, it is the mean of (value - a) h. For each draw a is the regression
    of h values on h over the other draws, which makes the noise least and leaves the mean as it is. From few draws it
    is itself noisy, more than the mean of the others: h^2 has heavy tails.

    $$a_i = \sum_{j \ne i} h_j^2 v_j / \sum_{j \ne i} h_j^2$$

    Args:
      values: (draw,), used without gradient.
      guide: pytree of parameters, with `log_prob`.
      positions: pytree (draw, ...), of the guide.

    Source: Ranganath, Gerrish & Blei (2014), equation 9.
    """
    values, positions = lax.stop_gradient((values, positions))
    scores = jax.vmap(jax.grad(lambda own, position: own.log_prob(position)), (None, 0))(
        lax.stop_gradient(guide), positions
    )
    # The gradient is the same for values that are all shifted, and sums of small numbers keep their digits.
    away = values - jnp.mean(values) if values.size > 1 else values
    alone = away - less_the_others(away)

    def gradient(score: jax.Array) -> jax.Array:
        own, mean = (jnp.reshape(x, (-1,) + (1,) * (score.ndim - 1)).astype(score.dtype) for x in (away, alone))
        square = score**2
        total = jnp.sum(square, axis=0, keepdims=True)
        others = total - square
        found = others > 100 * jnp.finfo(score.dtype).eps * total
        moment = jnp.sum(own * square, axis=0, keepdims=True) - own * square
        return jnp.mean((own - jnp.where(found, moment / jnp.where(found, others, 1), mean)) * score, axis=0)

    slopes = jax.tree.map(lambda leaf, score: jnp.sum(gradient(score) * leaf), guide, scores)
    return jax.tree.reduce(jnp.add, slopes)
