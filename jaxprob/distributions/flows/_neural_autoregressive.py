"""Neural autoregressive flows: each number goes through a mixture of sigmoids that a network makes.

Source: Huang, Krueger, Lacoste and Courville (2018), "Neural autoregressive flows", section 3.1, deep sigmoidal flows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._bijectors import Bijector
from jaxprob.distributions._parameters import align, broadcast_to
from jaxprob.distributions.flows._architecture import Architecture
from jaxprob.distributions.flows._autoregressive import build_autoregressive
from jaxprob.distributions.flows._ordered_layers import OnePass, check_layers, check_one_pass
from jaxprob.distributions.flows._roots import increasing_root
from jaxprob.distributions.flows._transformers import bounded


@core.pytree
class SigmoidMixture(Bijector):
    r"""An increasing map of the real line: $x = \mathrm{logit}(\sum_j w_j \, \mathrm{sigmoid}(a_j u + b_j))$.

    All sums are over logarithms, so that nothing is lost far out, where x goes on as the flattest and the steepest
    line do. `inverse` finds a root between the smallest and the largest of (x - b_j) / a_j, which always hold it.

    Args:
      logits: (..., units), of the weights w.
      log_scales: (..., units), of a.
      shifts: (..., units), b.

    >>> parts = jnp.array([-1.0, 1.0])
    >>> float(SigmoidMixture(jnp.zeros(2), jnp.zeros(2), parts).forward(0.0))
    0.0
    """

    logits: Any
    log_scales: Any
    shifts: Any

    def _parts(self, u: Any) -> tuple[jax.Array, ...]:
        u = jnp.asarray(u)
        u, logits, log_scales, shifts = align(u[..., None], self.logits, self.log_scales, self.shifts)
        return u, jax.nn.log_softmax(logits, axis=-1), log_scales, shifts

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, log_weights, log_scales, shifts = self._parts(u)
        z = jnp.exp(log_scales) * u + shifts
        log_up, log_down = core.log_sigmoid(z), core.log_sigmoid(-z)
        above = core.logsumexp(log_weights + log_up, axis=-1)
        below = core.logsumexp(log_weights + log_down, axis=-1)
        log_slope = core.logsumexp(log_weights + log_scales + log_up + log_down, axis=-1)
        return above - below, log_slope - above - below

    def inverse(self, x: Any) -> jax.Array:
        x, _, log_scales, shifts = self._parts(x)
        ends = (x - shifts) * jnp.exp(-log_scales)
        low, high = jnp.min(ends, axis=-1), jnp.max(ends, axis=-1)
        target = broadcast_to(x[..., 0], low.shape)
        return increasing_root(lambda u: self.forward(u) - target, low, high)


@dataclasses.dataclass(frozen=True)
class SigmoidTransformer:
    """Makes a `SigmoidMixture`, with log scales held between -3 and 3, out of three parameters of each unit.

    Args:
      units: number of sigmoids.
    """

    units: int = 8

    @property
    def parameters(self) -> int:
        return 3 * self.units

    def __call__(self, parameters: jax.Array) -> Bijector:
        logits, log_scales, shifts = jnp.split(parameters, 3, axis=-1)
        # Apart at first, or all units would stay the same for ever.
        apart = np.linspace(-1, 1, self.units) if self.units > 1 else np.zeros(1)
        return SigmoidMixture(logits, bounded(log_scales), jnp.add(*align(shifts, apart.astype(shifts.dtype))))


def neural_autoregressive(
    layers: int = 2, hidden: Sequence[int] = (64, 64), units: int = 8, *, one_pass: OnePass = "density"
) -> Architecture:
    """Flows of vectors made of `Autoregressive` layers whose maps are mixtures of sigmoids.

    The order of the numbers is reversed between layers.

    Args:
      layers: number of layers; it costs no compile time.
      hidden: sizes of the hidden layers of each `MaskedPerceptron`.
      units: sigmoids of each map.
      one_pass: the direction that takes one pass: "density", for data, or "sampling", draws with their log density,
        for variational guides. The other finds n roots one after the other.

    Raises:
      TypeError: if `hidden` is something else.
      ValueError: if a number is not whole and positive, or `one_pass` is something else.

    >>> flow = neural_autoregressive(2, (16,), 4).init(jax.random.key(0), 3)
    >>> flow.log_prob(jnp.zeros((5, 3))).shape
    (5,)
    """
    name = "neural_autoregressive"
    hidden = check_layers(name, layers, hidden)
    core.check_whole(name, units=units)
    check_one_pass(name, one_pass)
    build = core.Bound(build_autoregressive, name, layers, hidden, SigmoidTransformer(units), one_pass)
    return Architecture(name, build)
