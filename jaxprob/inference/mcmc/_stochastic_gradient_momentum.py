"""Langevin dynamics with momentum and stochastic gradients: SGHMC, and the thermostat SGNHT.

Both integrate their stochastic differential equation by a symmetric splitting: half a drift, half a kick, friction and
noise exactly, half a kick, half a drift. That costs one gradient a step, like Euler's method of the original papers,
and its bias is of the second order in the step size where Euler's is of the first.

Source: Chen, Fox & Guestrin (2014), "Stochastic gradient Hamiltonian Monte Carlo"; Ding et al. (2014), "Bayesian
sampling using stochastic gradient thermostats"; Chen, Ding & Carin (2015), "On the convergence of stochastic gradient
MCMC algorithms with high-order integrators", for the splitting; Leimkuhler & Shang (2016), "Adaptive thermostats for
noisy gradient systems".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _stochastic_gradient as stochastic
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.mcmc._stochastic_gradient import Place, Settings


class SGHMCState(NamedTuple):
    """The state of a chain of `sghmc`.

    Attributes:
      position: pytree, where the chain is.
      momentum: (size,), whitened: standard normal in equilibrium (see `Metric`).
      transitions: (), int32, made so far; schedules read it.
    """

    position: Any
    momentum: jax.Array
    transitions: jax.Array


class SGNHTState(NamedTuple):
    """The state of a chain of `sgnht`.

    Attributes:
      position: pytree, where the chain is.
      momentum: (size,), whitened: standard normal in equilibrium.
      thermostat: (), the friction, as it has come out so far.
      transitions: (), int32, made so far; schedules read it.
    """

    position: Any
    momentum: jax.Array
    thermostat: jax.Array
    transitions: jax.Array


class StochasticMomentumInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      step_size: of this transition.
      temperature: wanted; 0 where a schedule leaves the noise out, and the draw is none.
      kinetic_temperature: mean square of the whitened momenta, on average the temperature if all is well.
      friction: of this transition; for `sgnht` the thermostat after it.
      gradient_norm: Euclidean, of the estimated gradient; inf where it is not finite.
      diverging: whether the move led to what is not finite; then the chain stayed and its momentum was turned round.
    """

    step_size: jax.Array
    temperature: jax.Array
    kinetic_temperature: jax.Array
    friction: jax.Array
    gradient_norm: jax.Array
    diverging: jax.Array


def sghmc(
    gradient: Callable[[core.Key, Any], Any],
    step_size: Any = 1e-2,
    inverse_mass_matrix: Any = 1.0,
    *,
    friction: Any = 1.0,
    gradient_variance: Any = 0.0,
    temperature: Any = 1.0,
) -> core.Algorithm:
    """Stochastic gradient Hamiltonian Monte Carlo: Langevin dynamics of the second order.

    dx = L p dt,  dp = L'g dt - C p dt + sqrt(2 (C - B) T) dW,  with M^-1 = L L'

    The step size e is the time step of these equations, as that of `hmc`: the friction takes away a part 1 - exp(-C e)
    of a momentum in each step. B = e V / 2 is the noise that gradients of variance V bring themselves; to leading order
    the noise added is N(0, 2 (C - B) e), and exactly it is what leaves the momenta at temperature T. Where B exceeds C
    none is added, and the chain is too hot. With exact gradients, or noise of the variance told, the bias is of the
    order e^2, and none at all in the positions of a Gaussian; noise that is not told adds a part e V / (2 C) to the
    variances.

    Args:
      gradient: `(key, position) -> gradient`, unbiased: one of `minibatch_gradient`, `control_variate_gradient`,
        `full_gradient`, or a function of one's own.
      step_size: (), e; or a schedule `transitions -> ()`.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, a
        scalar, or a `Metric`.
      friction: (), C, above zero, per unit of time: momenta are forgotten in a time of 1 / C.
      gradient_variance: (), or (size,), V, the variance of the noise in the components of L'g, which are those of the
        gradient itself where the metric is the identity.
      temperature: (), T, or a schedule; the chain samples the density to the power 1 / T, and climbs where T is 0.

    Returns:
      Algorithm whose state is an `SGHMCState` and whose info is a `StochasticMomentumInfo`.

    Raises:
      TypeError: if `gradient` is no function.
      ValueError: for an argument outside its range or of a wrong shape; while tracing, if the gradient is not like the
        position.

    >>> kernel = sghmc(lambda key, q: -q, step_size=0.1)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(info.diverging)
    False

    Source: Chen, Fox & Guestrin (2014), equation 13 and algorithm 2; Chen, Ding & Carin (2015), equation 10.
    """
    settings = stochastic.as_settings("sghmc", gradient, step_size, inverse_mass_matrix, temperature)
    rate = known_number("sghmc", "friction", friction, lambda c: 0 < c < jnp.inf, "a finite number above zero")
    variance = core.as_float(gradient_variance)
    if variance.ndim > 1:
        raise core.bad_value("sghmc", "gradient_variance", variance, "a scalar or a vector of variances")

    def init(position: Any, key: core.Key) -> SGHMCState:
        position, momentum = _start(settings, position, key)
        if variance.ndim and variance.shape != momentum.shape:
            got, want = f"of shape {variance.shape}", f"a scalar or shape {momentum.shape}"
            raise core.bad_value("sghmc", "gradient_variance", got, want)
        return SGHMCState(position, momentum, jnp.int32(0))

    def step(key: core.Key, state: SGHMCState) -> tuple[SGHMCState, StochasticMomentumInfo]:
        here = stochastic.place(settings, state)
        dtype, size = here.vector.dtype, here.step_size
        gradient_key, noise_key = core.random.split(core.as_key(key, "sghmc"))
        halfway, slope, momentum = _to_the_middle(here, gradient_key, state.momentum)
        time = rate.astype(dtype) * size
        kept = jnp.exp(-time)
        # Both halves of a kick have the same noise, and friction acts on the first.
        brought = (0.5 * size * (1 + kept)) ** 2 * variance.astype(dtype)
        added = jnp.maximum(-jnp.expm1(-2 * time) * here.temperature - brought, 0)
        momentum = kept * momentum + jnp.sqrt(added) * core.random.normal(noise_key, momentum.shape, dtype)
        momentum = momentum + 0.5 * size * slope
        new = _drift(here, halfway, momentum)
        (new, momentum), diverging = stochastic.keep_finite([new, momentum], [here.vector, -state.momentum])
        info = _info(here, slope, momentum, rate.astype(dtype), diverging)
        return SGHMCState(here.unravel(new), momentum, state.transitions + 1), info

    return core.Algorithm(init, step)


def sgnht(
    gradient: Callable[[core.Key, Any], Any],
    step_size: Any = 1e-2,
    inverse_mass_matrix: Any = 1.0,
    *,
    friction: Any = 1.0,
    temperature: Any = 1.0,
) -> core.Algorithm:
    """The stochastic gradient Nosé-Hoover thermostat: SGHMC that finds out its friction.

    dx = L p dt,  dp = L'g dt - xi p dt + sqrt(2 A T) dW,  d xi = (p'p / size - T) dt

    The thermostat xi grows while the momenta are too hot. It settles where friction balances the noise, that added and
    that of the gradient: at A + e V / 2, so that noise of an unknown variance V does no harm if it is the same in all
    directions of L'g and at all positions. The step size e is the time step of these equations. Without noise in the
    gradient the bias is of the order e^2.

    Args:
      gradient: `(key, position) -> gradient`, as for `sghmc`.
      step_size: (), e; or a schedule `transitions -> ()`.
      inverse_mass_matrix: as for `sghmc`.
      friction: (), A, above zero: strength of the noise added, and where the thermostat begins.
      temperature: (), T, or a schedule, as for `sghmc`.

    Returns:
      Algorithm whose state is an `SGNHTState` and whose info is a `StochasticMomentumInfo`.

    Raises:
      TypeError: if `gradient` is no function.
      ValueError: for an argument outside its range; while tracing, if the gradient is not like the position.

    >>> kernel = sgnht(lambda key, q: -q, step_size=0.1)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(info.diverging)
    False

    Source: Ding et al. (2014), algorithm 2; Leimkuhler & Shang (2016), section 3.
    """
    settings = stochastic.as_settings("sgnht", gradient, step_size, inverse_mass_matrix, temperature)
    strength = known_number("sgnht", "friction", friction, lambda a: 0 < a < jnp.inf, "a finite number above zero")

    def init(position: Any, key: core.Key) -> SGNHTState:
        position, momentum = _start(settings, position, key)
        return SGNHTState(position, momentum, strength.astype(momentum.dtype), jnp.int32(0))

    def step(key: core.Key, state: SGNHTState) -> tuple[SGNHTState, StochasticMomentumInfo]:
        here = stochastic.place(settings, state)
        dtype, size, heat = here.vector.dtype, here.step_size, here.temperature
        gradient_key, noise_key = core.random.split(core.as_key(key, "sgnht"))
        halfway, slope, momentum = _to_the_middle(here, gradient_key, state.momentum)
        thermostat = state.thermostat + 0.5 * size * (_mean_square(momentum) - heat)
        time = thermostat * size
        added = 2 * strength.astype(dtype) * heat * size * core.expm1_over_x(-2 * time)
        noise = core.random.normal(noise_key, momentum.shape, dtype)
        momentum = jnp.exp(-time) * momentum + jnp.sqrt(added) * noise
        thermostat = thermostat + 0.5 * size * (_mean_square(momentum) - heat)
        momentum = momentum + 0.5 * size * slope
        new = _drift(here, halfway, momentum)
        (new, momentum, thermostat), diverging = stochastic.keep_finite(
            [new, momentum, thermostat], [here.vector, -state.momentum, state.thermostat]
        )
        info = _info(here, slope, momentum, thermostat, diverging)
        return SGNHTState(here.unravel(new), momentum, thermostat, state.transitions + 1), info

    return core.Algorithm(init, step)


def _start(settings: Settings, position: Any, key: core.Key) -> tuple[Any, jax.Array]:
    """A position, and momenta in equilibrium."""
    position = stochastic.initial_position(settings, position)
    vector = core.ravel(position)[0]
    key = core.as_key(key, settings.name)
    return position, core.random.normal(key, vector.shape, core.accumulator_dtype(vector.dtype))


def _drift(here: Place, vector: jax.Array, momentum: jax.Array) -> jax.Array:
    """Half a step at the velocity of a momentum."""
    return vector + 0.5 * here.step_size * here.metric.velocity(momentum)


def _to_the_middle(here: Place, key: core.Key, momentum: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Half a drift and half a kick: the position halfway, the force there and the momentum."""
    halfway = _drift(here, here.vector, momentum)
    force = here.metric.force(here.gradient(key, halfway))
    return halfway, force, momentum + 0.5 * here.step_size * force


def _mean_square(momentum: jax.Array) -> jax.Array:
    return core.ordered_dot(momentum, momentum) / momentum.size


def _info(
    here: Place, force: jax.Array, momentum: jax.Array, friction: jax.Array, diverging: jax.Array
) -> StochasticMomentumInfo:
    return StochasticMomentumInfo(
        step_size=here.step_size,
        temperature=here.temperature,
        kinetic_temperature=_mean_square(momentum),
        friction=friction,
        gradient_norm=stochastic.gradient_norm(force),
        diverging=diverging,
    )
