"""Recommendation by an autoencoder of counts: which items a user chose, as draws from one law over items.

Train with dropout of what the recognition sees, and a weight of the divergence that rises to a cap below 1:

    schedule = optax.linear_schedule(0.0, 0.2, 2000)

    def loss(params, batch, key):
        objective = vi.amortized_elbo(model, kl_weight=schedule(batch["step"]), corrupt=latent.dropout(0.5))
        return objective.loss(params, batch["counts"], key)

Source: Liang, Krishnan, Hoffman & Jebara (2018), "Variational autoencoders for collaborative filtering".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.distributions import Distribution, IndependentSupport, Multinomial, NonNegativeInteger, Support
from jaxprob.models.latent._autoencoder import autoencoder
from jaxprob.models.latent._model import LatentVariableModel
from jaxprob.models.latent._networks import in_dtype_of


@core.pytree
class _Counts(Distribution):
    """Counts given their total, whatever it is; a sample has no total to go by."""

    logits: Any  # (k,)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.logits)

    @property
    def support(self) -> Support:
        return IndependentSupport(NonNegativeInteger(), 1)

    def mean(self) -> jax.Array:
        """For a total of 1."""
        return jax.nn.softmax(self.logits)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        total = jnp.sum(value, -1)
        return Multinomial(total, logits=self.logits).log_prob(value)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        raise self._undefined("sample")


def multinomial_autoencoder(items: int, latent: int, hidden: int | tuple[int, ...] = 128) -> LatentVariableModel:
    """An autoencoder of counts of items; the recognition sees them divided by their Euclidean norm.

    Args:
      items: number of items.
      latent: numbers of z.
      hidden: sizes of the hidden layers of both perceptrons.

    Returns:
      `LatentVariableModel`; its likelihood is multinomial given the total of each user.

    Raises:
      ValueError: if a size is no whole number.

    >>> model = multinomial_autoencoder(5, 2, 8)
    >>> params = model.init(jax.random.key(0))
    >>> model.likelihood(params, jnp.zeros(2)).mean().sum().round(3).item()
    1.0
    """
    core.check_whole("latent.multinomial_autoencoder", items=items)
    model = autoencoder(items, latent, hidden, _Counts)
    return dataclasses.replace(model, recognition=core.Bound(_recognition, model.recognition))


def _recognition(recognition: Callable[..., Distribution], params: Any, x: Any) -> Distribution:
    x = in_dtype_of(params, x)
    square = jnp.sum(x * x)
    return recognition(params, x / jnp.sqrt(jnp.where(square > 0, square, 1)))


def dropout(rate: float) -> Callable[[core.Key, Any], jax.Array]:
    """A corruption for `vi.amortized_elbo`: entries are zero with probability `rate`, the others grow to make up.

    Raises:
      ValueError: if `rate` is not between 0 and 1.

    >>> sorted(set(dropout(0.5)(jax.random.key(0), jnp.ones(99)).tolist()))
    [0.0, 2.0]
    """
    if not core.is_number(rate) or not 0 <= rate < 1:
        raise core.bad_value("latent.dropout", "rate", rate, "a number from 0 to below 1")
    return core.Bound(_dropped, float(rate))


def _dropped(rate: float, key: core.Key, x: Any) -> jax.Array:
    x = core.as_float(x)
    return jnp.where(core.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def recommend(model: LatentVariableModel, params: Any, x: Any) -> jax.Array:
    """Log probabilities of the items for a user who chose x (items,), at the mean of the recognition.

    Returns:
      (items,): -inf for what was chosen already.
    """
    x = jnp.asarray(x)
    law = model.likelihood(params, model.recognition(params, x).mean())
    return jnp.where(x > 0, -jnp.inf, core.safe_log(law.mean()))


def recall_at(scores: Any, held_out: Any, number: int) -> jax.Array:
    """The part of the held-out items that is among the highest scores, of one user.

    Args:
      scores: (items,).
      held_out: (items,), above 0 for items that should be found.
      number: how many of the highest scores are looked at.

    Returns:
      (): divided by the number of items, or by `number` if that is less; NaN where nothing is held out.

    Raises:
      ValueError: if shapes do not fit, or `number` is above that of items.

    >>> recall_at(jnp.array([3.0, 2.0, 1.0]), jnp.array([1, 0, 1]), 2).item()
    0.5

    Source: Liang et al. (2018), section 4.2.
    """
    found, total = _hits("latent.recall_at", scores, held_out, number)
    return jnp.sum(found) / jnp.minimum(total, number)


def normalized_discounted_cumulative_gain_at(scores: Any, held_out: Any, number: int) -> jax.Array:
    """The sum over held-out items among the highest scores of 1 / log2(1 + rank), of its largest value; of one user.

    Args:
      scores: (items,).
      held_out: (items,), above 0 for items that should be found.
      number: how many of the highest scores are looked at.

    Returns:
      (): from 0 to 1; NaN where nothing is held out.

    Raises:
      ValueError: if shapes do not fit, or `number` is above that of items.

    >>> normalized_discounted_cumulative_gain_at(jnp.array([3.0, 2.0, 1.0]), jnp.array([1, 1, 0]), 2).item()
    1.0

    Source: Liang et al. (2018), section 4.2.
    """
    found, total = _hits("latent.normalized_discounted_cumulative_gain_at", scores, held_out, number)
    gains = 1 / jnp.log2(jnp.arange(2, number + 2, dtype=found.dtype))
    best = jnp.where(jnp.arange(number, dtype=total.dtype) < total, gains, 0)
    return jnp.sum(found * gains) / jnp.sum(best)


def _hits(name: str, scores: Any, held_out: Any, number: int) -> tuple[jax.Array, jax.Array]:
    """Whether each of the highest scores is a held-out item, highest first; and how many such items there are."""
    scores, wanted = core.as_float(scores), jnp.asarray(held_out) > 0
    if scores.ndim != 1 or scores.shape != wanted.shape:
        got = f"of shape {wanted.shape} beside scores of shape {scores.shape}"
        raise core.bad_value(name, "held_out", got, "both (items,)", "vmap makes many")
    core.check_whole(name, number=number)
    if number > scores.shape[0]:
        raise core.bad_value(name, "number", number, f"at most the {scores.shape[0]} items")
    _, best = lax.top_k(scores, number)
    return wanted[best].astype(scores.dtype), jnp.sum(wanted).astype(scores.dtype)
