"""Counts with more zeros than their distribution explains."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._combinators import check_distribution, sample_batch
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._odds import odds
from jaxprob.distributions._parameters import PROBABILITY, align, broadcast_to, check_shapes, set_parameters
from jaxprob.distributions._supports import Support


@core.pytree
class ZeroInflated(Distribution):
    """Zero with probability `gate`, and otherwise a draw from `base`, which may be zero as well.

    Args:
      base: a discrete distribution of one number whose support contains 0.
      gate: (*batch), probability of a zero that `base` does not account for.

    Raises:
      TypeError: if `base` is not a discrete distribution of one number.
      ValueError: if a concrete `gate` lies outside [0, 1] or shapes do not broadcast.

    >>> float(ZeroInflated(Poisson(2.0), 0.25).mean())
    1.5
    """

    base: Distribution
    gate: Any

    def __post_init__(self) -> None:
        check_distribution("ZeroInflated", "base", self.base)
        if self.base.event_shape or not self.base.is_discrete:
            raise core.bad_type("ZeroInflated", "base", self.base, "a discrete distribution of one number")
        set_parameters(self, gate=PROBABILITY)
        check_shapes("ZeroInflated", **{"the batch of base": self.base.batch_shape, "gate": self.gate.shape})

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return np.broadcast_shapes(self.base.batch_shape, jnp.shape(self.gate))

    @property
    def support(self) -> Support:
        return self.base.support

    def mean(self) -> jax.Array:
        gate, mean = align(self.gate, self.base.mean())
        return broadcast_to((1 - gate) * mean, self.batch_shape)

    def variance(self) -> jax.Array:
        gate, mean, variance = align(self.gate, self.base.mean(), self.base.variance())
        return broadcast_to((1 - gate) * (variance + gate * mean**2), self.batch_shape)

    def cdf(self, value: Any) -> jax.Array:
        x, gate, below = align(value, self.gate, self.base.cdf(value))
        return jnp.where(x >= 0, gate + (1 - gate) * below, 0.0)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        key_gate, key_base = core.random.split(key)
        draws = sample_batch(self.base, key_base, shape, self.batch_shape)
        closed = core.random.bernoulli(key_gate, broadcast_to(self.gate, draws.shape))
        return jnp.where(closed, jnp.zeros_like(draws), draws)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        chances = odds(self.gate, None)
        x, gate, log_gate, log_open, log_base = align(
            value, chances.p, chances.log_p, chances.log_q, self.base.log_prob(value)
        )
        open_ = log_open + log_base
        # log(gate + (1 - gate) f), at x = 0: by expm1, which has the right gradient at gate = 0, unless f is tiny.
        usual = log_base > -30.0
        held = jnp.where(usual, log_base, 0.0)
        zero = jnp.where(usual, held + jnp.log1p(gate * jnp.expm1(-held)), core.logaddexp(log_gate, open_))
        return jnp.where(x == 0, zero, open_)
