"""Metropolis-Hastings, and its general form after Green: an auxiliary draw and an involution.

Any Metropolis-Hastings step is an instance of the general one: draw v given x, map (x, v) by an involution, accept or
stay. Jumps between spaces of different dimension, deterministic moves and moves on program traces are others.

Source: Green (1995), "Reversible jump Markov chain Monte Carlo computation and Bayesian model determination"; in the
form of Neklyudov et al. (2020), "Involutive MCMC", algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core


class MetropolisState(NamedTuple):
    """The state of a chain.

    Attributes:
      position: pytree, where the chain is; any dtypes.
      log_density: (), its log density.
    """

    position: Any
    log_density: jax.Array


class MetropolisInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      acceptance_rate: the probability with which this proposal was accepted.
      accepted: whether it was.
      log_density: of the new state.
    """

    acceptance_rate: jax.Array
    accepted: jax.Array
    log_density: jax.Array


def metropolis_hastings_green(
    log_density: core.LogDensity,
    proposal: Callable[[Any], Any],
    involution: Callable[[Any, Any], tuple[Any, Any, Any]],
) -> core.Algorithm:
    """The Metropolis-Hastings-Green step: reversible for `exp(log_density)`, between spaces of any dimension.

    From x draw v ~ q(. | x), let (x', v') = f(x, v), and go to x' with probability
    `min(1, p(x') q(v' | x') |det df(x, v)| / (p(x) q(v | x)))`, else stay.

    Args:
      log_density: `position -> scalar`. A proposal where it is -inf or NaN is rejected.
      proposal: `position -> q`, an object with `sample(key) -> v` and `log_prob(v) -> scalar`: a distribution, or a
        joint model where v has several parts. v is any pytree, of the same shapes for all positions.
      involution: `(position, v) -> (position', v', log |det|)` that is its own inverse: `f(x', v') = (x, v)`. The
        determinant is that of the derivative of the continuous parts; return 0.0 where the map keeps volumes or all is
        discrete. Models of different dimension are padded to one shape, and the determinant is that of the coordinates
        in use, of which there must be as many in (x, v) as in (x', v').

    Returns:
      an algorithm whose state is a `MetropolisState`. Positions may be any pytree, discrete parts included.

    Raises:
      TypeError: if an argument cannot be called.
      ValueError: while tracing, if the involution changes a shape or dtype, or a log density is not one number.

    >>> from jaxprob.distributions import Normal
    >>> walk = metropolis_hastings_green(
    ...     lambda x: -0.5 * x**2, lambda x: Normal(0.0, 1.0), lambda x, v: (x + v, -v, 0.0)
    ... )
    >>> state, info = walk.step(jax.random.key(0), walk.init(jnp.float32(0.0), jax.random.key(1)))
    >>> bool(info.accepted) == (state.position.item() != 0.0)
    True
    """
    name = "metropolis_hastings_green"
    check_callable(name, log_density=log_density, proposal=proposal, involution=involution)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, MetropolisInfo]:
        key = core.as_key(key, name)
        forward = proposal(state.position)
        auxiliary = forward.sample(core.fold(key, 0))
        position, reverse, log_determinant = involution(state.position, auxiliary)
        core.check_same_structure(name, "the position that involution returns", position, state.position)
        core.check_same_structure(name, "the auxiliary value that involution returns", reverse, auxiliary)
        terms = (
            number(name, "log_prob of the proposal", proposal(position).log_prob(reverse)),
            -number(name, "log_prob of the proposal", forward.log_prob(auxiliary)),
            number(name, "log |det| of involution", log_determinant),
        )
        return accept(core.fold(key, 1), state, state_at(name, log_density, position), *terms)

    return core.Algorithm(lambda position, key: initial(name, log_density, position), step)


def metropolis_hastings(
    log_density: core.LogDensity,
    propose: Callable[[core.Key, Any], Any],
    log_proposal_ratio: Callable[[Any, Any], Any] | None = None,
) -> core.Algorithm:
    """The Metropolis-Hastings step: reversible for `exp(log_density)`.

    From x draw x' and go there with probability `min(1, p(x') q(x | x') / (p(x) q(x' | x)))`, else stay.

    Args:
      log_density: `position -> scalar`. A proposal where it is -inf or NaN is rejected.
      propose: `(key, position) -> position'`.
      log_proposal_ratio: `(position, position') -> log q(position | position') - log q(position' | position)`; leave it
        out where the proposal is symmetric.

    Returns:
      an algorithm whose state is a `MetropolisState`. Positions may be any pytree, discrete parts included.

    Raises:
      TypeError: if an argument cannot be called.
      ValueError: while tracing, if the proposal has another shape or dtype, or a log density is not one number.

    >>> walk = metropolis_hastings(lambda x: -0.5 * x**2, lambda key, x: x + jax.random.normal(key))
    >>> state, info = walk.step(jax.random.key(0), walk.init(jnp.float32(0.0), jax.random.key(1)))
    >>> bool(info.accepted) == (state.position.item() != 0.0)
    True

    Source: Hastings (1970).
    """
    name = "metropolis_hastings"
    ratio = (lambda position, proposed: 0.0) if log_proposal_ratio is None else log_proposal_ratio
    check_callable(name, log_density=log_density, propose=propose, log_proposal_ratio=ratio)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, MetropolisInfo]:
        key = core.as_key(key, name)
        position = propose(core.fold(key, 0), state.position)
        core.check_same_structure(name, "the position that propose returns", position, state.position)
        correction = number(name, "the value of log_proposal_ratio", ratio(state.position, position))
        return accept(core.fold(key, 1), state, state_at(name, log_density, position), correction)

    return core.Algorithm(lambda position, key: initial(name, log_density, position), step)


def accept(key: core.Key, current: Any, proposed: Any, *corrections: jax.Array) -> tuple[Any, MetropolisInfo]:
    """The new state: `proposed` with probability min(1, exp(difference of log densities + corrections)).

    Args:
      key: used up.
      current: any NamedTuple of arrays with a field `log_density`, such as `MetropolisState` or `State`.
      proposed: of the same structure and shapes.
      *corrections: (), what else the log of the ratio is a sum of.

    Returns:
      one of the two states, and what happened. What is not a number is a rejection.
    """
    dtype = current.log_density.dtype
    # A chain that starts where there is no density moves to the first place that has one, whatever the corrections.
    here = jnp.where(jnp.isnan(current.log_density), -jnp.inf, current.log_density)
    log_ratio = proposed.log_density.astype(dtype) - here
    for correction in corrections:
        log_ratio = log_ratio + correction.astype(dtype)
    log_ratio = jnp.where((here == -jnp.inf) & (proposed.log_density > -jnp.inf), jnp.inf, log_ratio)
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    accepted = -core.random.exponential(key, (), dtype) <= log_ratio
    state = jax.tree.map(
        lambda new, old: jnp.where(accepted, jnp.asarray(new).astype(old.dtype), old), proposed, current
    )
    return state, MetropolisInfo(jnp.exp(jnp.minimum(log_ratio, 0)), accepted, state.log_density)


def initial(name: str, log_density: core.LogDensity, position: Any) -> MetropolisState:
    """The state of a chain at a position."""
    # Strongly typed, so that the state comes out of a step as it went in.
    return state_at(name, log_density, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), position))


def state_at(name: str, log_density: core.LogDensity, position: Any) -> MetropolisState:
    """A position with its log density, in the dtype that log densities are kept in."""
    value = number(name, "the value of log_density", log_density(position))
    return MetropolisState(position, value.astype(core.accumulator_dtype(value.dtype)))


def number(name: str, argument: str, value: Any) -> jax.Array:
    """A value of `argument`, a function of the user's, as a scalar; raises a `ValueError` for any other shape."""
    value = core.as_float(value)
    if value.shape:
        todo = "Sum over everything the density is a product of"
        raise core.bad_value(name, argument, f"of shape {value.shape}", "one number", todo)
    return value


def check_callable(name: str, **arguments: Any) -> None:
    """Raises a `TypeError` that names the first argument which is no function."""
    for argument, value in arguments.items():
        if not callable(value):
            raise core.bad_type(
                name, argument, value, "a function", "For a conditioned model pass posterior.log_density"
            )
