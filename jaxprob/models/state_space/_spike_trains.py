"""Spike trains of neurons that excite and inhibit each other, by weights that switch with a hidden state.

    counts_{t,n} | z_t = s ~ Poisson(softplus(b_{s,n} + sum_m W_{s,nm} h_{t,m})),   h_t = sum_l decay^{l-1} counts_{t-l}

Source: Li, Kim, Rodgers, Choi & Wu (2024), "One-hot generalized linear model for switching brain state discovery".
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions import Poisson
from jaxprob.models.state_space._hidden_markov import HiddenMarkov

KINDS = 3  # of a connection: inhibitory, none, excitatory
INHIBITORY, NONE, EXCITATORY = range(KINDS)


@core.pytree
class FreeWeights:
    """Weights of their own in each state, drawn to a mean that the states share.

    Attributes:
      values: (K, N, N), entry (s, n, m) from neuron m to n.
      shared: (N, N), their mean; None for weights without a prior.
      spread: (), standard deviation around it.
      scale: (), standard deviation of the mean around zero.
    """

    values: Any
    shared: Any = None
    spread: Any = 0.3
    scale: Any = 1.0

    def __post_init__(self) -> None:
        _convert(self)

    def weights(self) -> jax.Array:
        """(K, N, N)."""
        return self.values

    def log_prior(self) -> jax.Array:
        """(), up to a constant."""
        if self.shared is None:
            return jnp.zeros((), self.values.dtype)
        spread, scale = jax.lax.stop_gradient((self.spread, self.scale))
        apart = (self.values - jnp.expand_dims(self.shared, 0)) / spread
        return -0.5 * (jnp.sum(apart**2) + jnp.sum((self.shared / scale) ** 2))


@core.pytree
class OneHotWeights:
    """Weights that are inhibitory, none or excitatory, a pattern that the states share, times a strength of their own.

    W_s = (A_s[excitatory] - A_s[inhibitory]) softplus(strength_s), with A_s one-hot, relaxed to softmax(logits / tau),
    and categorical of the same, learnable probabilities in all states.

    Attributes:
      logits: (K, N, N, 3), of the pattern.
      prior_logits: (N, N, 3), of the probabilities that the states share.
      strength: (K, N, N), before softplus.
      temperature: (), tau.
      scale: (), of the half-normal prior of the strengths.
    """

    logits: Any
    prior_logits: Any
    strength: Any
    temperature: Any = 0.5
    scale: Any = 1.0

    def __post_init__(self) -> None:
        _convert(self)

    def weights(self) -> jax.Array:
        """(K, N, N)."""
        pattern = jax.nn.softmax(self.logits / jax.lax.stop_gradient(self.temperature), -1)
        return (pattern[..., EXCITATORY] - pattern[..., INHIBITORY]) * core.softplus(self.strength)

    def log_prior(self) -> jax.Array:
        """(), up to a constant: minus the divergence of the patterns from what states share, and that of strengths."""
        own, shared = jax.nn.log_softmax(self.logits), jax.nn.log_softmax(self.prior_logits)
        divergence = jnp.sum(jnp.exp(own) * (own - jnp.expand_dims(shared, 0)))
        strengths = core.softplus(self.strength) / jax.lax.stop_gradient(self.scale)
        return -divergence - 0.5 * jnp.sum(strengths**2)

    def relaxed(self, key: core.Key) -> OneHotWeights:
        """With Gumbel noise in the logits of the pattern: a relaxed draw of it (Gumbel-softmax)."""
        noise = core.random.gumbel(key, self.logits.shape, self.logits.dtype, mode="high")
        return OneHotWeights(self.logits + noise, self.prior_logits, self.strength, self.temperature, self.scale)


@core.pytree
class Rates:
    """What the emission of a `spike_trains` model is made of.

    Attributes:
      bias: b, (K, N).
      connections: `FreeWeights` or `OneHotWeights`.
      decay: (), or (N,) of each sending neuron, of the history of spikes, from 0 to 1; it is not learnt.
    """

    bias: Any
    connections: Any
    decay: Any

    def log_prior(self) -> jax.Array:
        """(), of the connections."""
        return self.connections.log_prior()

    def relaxed(self, key: core.Key) -> Rates:
        """With a relaxed draw of the pattern of one-hot connections; itself for others."""
        if not isinstance(self.connections, OneHotWeights):
            return self
        return Rates(self.bias, self.connections.relaxed(key), self.decay)


def spike_trains(
    initial: Any,
    transition: Any,
    bias: Any,
    connections: FreeWeights | OneHotWeights,
    *,
    decay: Any = 0.5,
    lags: int = 8,
) -> HiddenMarkov:
    """A `HiddenMarkov` model of spike counts (time, N), autoregressive in them; nothing fired before the first time.

    Args:
      initial: (K,), probabilities of the first state.
      transition: (K, K).
      bias: b, (K, N), before softplus.
      connections: weights of each state, `FreeWeights` or `OneHotWeights`.
      decay: of the history of spikes, () or (N,), in [0, 1).
      lags: times after which a spike is forgotten altogether; `decay ** lags` is to be small.

    Raises:
      ValueError: if shapes do not fit, or a decay is outside [0, 1).

    >>> model = spike_trains([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], jnp.zeros((2, 3)), FreeWeights(jnp.zeros((2, 3, 3))))
    >>> states, counts = model.sample(jax.random.key(0), 5)
    >>> counts.shape, model.emission.args[0].bias.shape
    ((5, 3), (2, 3))
    """
    name = "spike_trains"
    bias, decay = core.as_float(bias), core.as_float(decay)
    if bias.ndim != 2:
        raise core.bad_value(name, "bias", f"of shape {bias.shape}", "shape (K, N)")
    states, neurons = bias.shape
    if not isinstance(connections, (FreeWeights, OneHotWeights)):
        raise core.bad_type(name, "connections", connections, "FreeWeights or OneHotWeights")
    shape = jax.eval_shape(lambda: connections.weights()).shape
    if shape != (states, neurons, neurons):
        raise core.bad_value(name, "connections", f"of shape {shape}", f"shape {(states, neurons, neurons)}")
    if decay.shape not in ((), (neurons,)):
        raise core.bad_value(name, "decay", f"of shape {decay.shape}", f"shape () or ({neurons},)")
    if not isinstance(decay, jax.core.Tracer) and not ((np.asarray(decay) >= 0) & (np.asarray(decay) < 1)).all():
        raise core.bad_value(name, "decay", decay, "numbers in [0, 1)")
    if isinstance(lags, bool) or not isinstance(lags, int) or lags < 1:
        raise core.bad_value(name, "lags", lags, "a number of times, at least 1")
    emission = jax.tree_util.Partial(_law, Rates(bias, connections, jnp.broadcast_to(decay, (neurons,))))
    return HiddenMarkov(initial, transition, emission, history=jnp.zeros((lags, neurons), bias.dtype))


def _law(rates: Rates, _: None, before: jax.Array) -> Poisson:
    """Of the counts (N,) of a time in each state, given those of the times before, oldest first."""
    dtype = rates.bias.dtype
    age = jnp.expand_dims(jnp.arange(before.shape[0] - 1, -1, -1).astype(dtype), 1)
    past = jnp.sum(before.astype(dtype) * jax.lax.stop_gradient(jnp.expand_dims(rates.decay, 0)) ** age, 0)
    drive = rates.bias + core.matvec(rates.connections.weights(), jnp.expand_dims(past, 0))
    # The logarithm of softplus, which is the drive itself far below zero, where softplus underflows.
    low = drive < -20
    return Poisson(log_rate=jnp.where(low, drive, jnp.log(core.softplus(jnp.where(low, 0, drive)))))


def _convert(node: Any) -> None:
    """All fields that are given to arrays."""
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if value is not None:
            object.__setattr__(node, field.name, core.as_float(value))
