"""Gibbs sampling of switching linear-Gaussian models: exact where the filters approximate.

States given the regimes are a path of one linear-Gaussian model, regimes given the states one of a chain: each is drawn
as a whole, and neither draw is ever rejected.

Source: Carter & Kohn (1994), "On Gibbs sampling for state space models"; Fox, Sudderth, Jordan & Willsky (2011),
"Bayesian nonparametric inference of switching dynamic linear models".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference import crf
from jaxprob.inference.kalman._smoother import sample
from jaxprob.inference.kalman._square_root import Moments, observe
from jaxprob.inference.kalman._steps import check_observations
from jaxprob.models.state_space import LinearChain, SwitchingLinearGaussian


class SwitchingGibbsState(NamedTuple):
    """Where a chain is.

    Attributes:
      position: {"regimes": (time,) integers, "states": (time, n)}.
    """

    position: dict[str, jax.Array]


class SwitchingGibbsInfo(NamedTuple):
    """What a step says.

    Attributes:
      log_density: (), of the states drawn and the observations, whatever the regimes.
    """

    log_density: jax.Array


def switching_gibbs(model: SwitchingLinearGaussian, ys: Any, *, missing: Any = None) -> core.Algorithm:
    """Blocked Gibbs sampling of the regimes and states of a model given a series.

    Where regimes are told by the states alone and seldom change, it moves slowly: the states hold the regimes.

    Args:
      model: a `SwitchingLinearGaussian` whose noises are positive definite, that of the start as well.
      ys: (time, m), or (time,) where m = 1. NaN is missing, entry by entry.
      missing: booleans of the same shape, true where an entry is missing.

    Returns:
      `core.Algorithm`, whose position is {"regimes": (time,), "states": (time, n)}. The states it begins with are not
      read.

    Raises:
      ValueError: if a shape does not fit, an observation is infinite, or there is none.
      TypeError: if the model is none.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> one = jnp.eye(1)
    >>> calm, wild = (LinearGaussian(jnp.zeros(1), one, one, q * one, one, jnp.ones(1)) for q in (0.01, 9.0))
    >>> model = SwitchingLinearGaussian([0.5, 0.5], [[0.9, 0.1], [0.1, 0.9]], [calm, wild])
    >>> kernel = switching_gibbs(model, jnp.array([0.0, 0.1, 0.0, 7.0, 2.0]))
    >>> start = {"regimes": jnp.zeros(5, jnp.int32), "states": jnp.zeros((5, 1))}
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(start, jax.random.key(1)))
    >>> state.position["regimes"].shape, state.position["states"].shape
    ((5,), (5, 1))
    """
    function = "kalman.switching_gibbs"
    if not isinstance(model, SwitchingLinearGaussian):
        raise core.bad_type(function, "model", model, "a SwitchingLinearGaussian")
    values, seen = check_observations(function, model, model.observation_size, ys, missing)
    times = values.shape[0]
    if not times:
        raise core.bad_value(function, "ys", "of no times", "at least one")

    def init(position: dict[str, jax.Array], key: core.Key) -> SwitchingGibbsState:
        del key
        if not isinstance(position, dict) or set(position) != {"regimes", "states"}:
            raise core.bad_value(function, "position", position, "a dict of 'regimes' and 'states'")
        for name, shape in (("regimes", (times,)), ("states", (times, model.state_size))):
            if jnp.shape(position[name]) != shape:
                raise core.bad_value(function, name, position[name], f"shape {shape}")
        regimes = jnp.asarray(position["regimes"]).astype(jnp.int32)
        return SwitchingGibbsState({"regimes": regimes, "states": jnp.asarray(position["states"], values.dtype)})

    def step(key: core.Key, state: SwitchingGibbsState) -> tuple[SwitchingGibbsState, SwitchingGibbsInfo]:
        state_key, regime_key = core.random.split(key)
        path = model.along(state.position["regimes"])
        states = sample(state_key, path, values, missing=~seen, method="sequential").astype(values.dtype)
        chain = _chain(model, states, values, seen)
        regimes = crf.sample(regime_key, chain).astype(jnp.int32)
        info = SwitchingGibbsInfo(crf.log_normalizer(chain))
        return SwitchingGibbsState({"regimes": regimes, "states": states}), info

    return core.Algorithm(init, step)


def _chain(model: SwitchingLinearGaussian, states: jax.Array, ys: jax.Array, seen: jax.Array) -> LinearChain:
    """The regimes given the states and observations."""

    def scores(regime: Any) -> jax.Array:
        """Log densities (time,) of a state given the one before, and of what is observed, in one regime."""
        begun = jnp.expand_dims(states[0] - regime.initial_mean, 0)
        moved = states[1:] - core.matvec(regime.dynamics, states[:-1]) - jnp.expand_dims(regime.dynamics_offset, 0)
        noise = ys - core.matvec(regime.emission, states) - jnp.expand_dims(regime.emission_offset, 0)
        every = jnp.ones(states.shape, bool)
        density = jax.vmap(_log_density, (0, None, 0))
        first = density(begun, regime.initial_covariance, every[:1])
        later = density(moved, regime.dynamics_covariance, every[1:])
        return jnp.concatenate([first, later]) + density(noise, regime.emission_covariance, seen)

    emissions = jax.vmap(scores)(model.models).T
    return LinearChain(emissions, core.safe_log(model.transition), core.safe_log(model.initial))


def _log_density(residual: jax.Array, covariance: jax.Array, seen: jax.Array) -> jax.Array:
    """Of noise (m,), those of its entries that were seen."""
    nothing = Moments(jnp.zeros((1, 1), residual.dtype), jnp.zeros((1, 1), residual.dtype))
    rows = jnp.zeros((residual.shape[0], 1), residual.dtype)
    values = jnp.expand_dims(jnp.where(seen, residual, 0), 1)
    found = observe(nothing, rows, covariance, values, seen)[1]
    return -jnp.sum(found.log_scale) - 0.5 * jnp.sum(found.innovation**2)
