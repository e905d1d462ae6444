"""Affine-invariant ensembles: walkers that propose from where the others are, without gradients and without tuning.

An ensemble is one chain whose position has a leading axis of walkers. Its walkers move in two halves, each given the
other: the walkers of a half are proposed, evaluated and accepted together. An affine map of the target maps the draws,
so that scales and correlations cost nothing.

Source: Goodman & Weare (2010), "Ensemble samplers with affine invariance"; Foreman-Mackey et al. (2013), "emcee: the
MCMC hammer", for the halves; ter Braak (2006), "A Markov chain Monte Carlo version of the genetic algorithm
Differential Evolution".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._metropolis import MetropolisState
from jaxprob.inference.mcmc._numbers import known_number


class EnsembleState(NamedTuple):
    """The state of an ensemble.

    Attributes:
      position: pytree (walker, ...), where each walker is.
      log_density: (walker,), the log density of each.
    """

    position: Any
    log_density: jax.Array


class EnsembleInfo(NamedTuple):
    """What happened in one transition of an ensemble; every field is a scalar.

    Attributes:
      acceptance_rate: mean over walkers of the probability with which the proposal was accepted.
      log_density: mean over walkers, of the new state.
    """

    acceptance_rate: jax.Array
    log_density: jax.Array


# `(key, walkers (half, size), others (half, size)) -> (proposals (half, size), log corrections (half,))`
Move = Callable[[core.Key, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def stretch(log_density: core.LogDensity, scale: Any = 2.0) -> core.Algorithm:
    """The stretch move of an ensemble: reversible for independent draws of `exp(log_density)`, a density a walker.

    Each walker x picks a walker c of the other half and proposes `x' = c + z (x - c)`, with z between 1 / scale and
    scale and density proportional to `1 / sqrt(z)`, and goes there with probability
    `min(1, z^(size - 1) p(x') / p(x))`.

    Args:
      log_density: `position -> scalar`, of one walker; a position is any pytree of floating arrays. Nothing is
        differentiated.
      scale: (), above one; an array or a tracer.

    Returns:
      Algorithm whose position is a pytree with a leading axis of walkers, whose state is an `EnsembleState` and whose
      info is an `EnsembleInfo`. There must be an even number of walkers, at least two for each scalar of a position,
      and they must differ in every direction (a little noise will do): where all walkers agree they agree for ever.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a scale that is not above one; by `init`, for a number of walkers that will not do, or for walkers
        that are known to lie in a plane.

    >>> kernel = stretch(lambda x: -0.5 * (x**2).sum())
    >>> starts = jax.random.normal(jax.random.key(0), (10, 3))
    >>> state, info = kernel.step(jax.random.key(1), kernel.init(starts, jax.random.key(2)))
    >>> state.position.shape
    (10, 3)

    Source: Goodman & Weare (2010), equations 7 to 10.
    """
    scale = known_number("stretch", "scale", scale, lambda x: 1 < x < math.inf, "a finite number above one")

    def move(key: core.Key, walkers: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
        half, size = walkers.shape
        widest = scale.astype(walkers.dtype)
        uniform = core.random.uniform(core.fold(key, 0), (half,), walkers.dtype)
        factor = ((widest - 1) * uniform + 1) ** 2 / widest
        centre = others[core.random.randint(core.fold(key, 1), (half,), 0, half)]
        return centre + jnp.expand_dims(factor, 1) * (walkers - centre), (size - 1) * jnp.log(factor)

    return _ensemble("stretch", log_density, move, fewest=2)


def differential_evolution(log_density: core.LogDensity, gamma: Any = None, sigma: Any = 1e-5) -> core.Algorithm:
    """The differential-evolution move of an ensemble: reversible like `stretch`, a density a walker.

    Each walker x picks two walkers a and b of the other half and proposes `x' = x + gamma (1 + sigma z) (a - b)`, z
    standard normal. The noise is on the factor rather than added, so that the move stays affine invariant.

    Args:
      log_density: `position -> scalar`, of one walker; a position is any pytree of floating arrays. Nothing is
        differentiated.
      gamma: (), above zero; None for `2.38 / sqrt(2 size)`, best on Gaussians. One proposes jumps between modes.
      sigma: (), at least zero.

    Returns:
      Algorithm as of `stretch`; of walkers there must be four at least.

    Raises:
      TypeError: if `log_density` is no function.
      ValueError: for a `gamma` or `sigma` that cannot be one; by `init`, for a number of walkers that will not do, or
        for walkers that are known to lie in a plane.

    >>> kernel = differential_evolution(lambda x: -0.5 * (x**2).sum())
    >>> starts = jax.random.normal(jax.random.key(0), (10, 3))
    >>> state, info = kernel.step(jax.random.key(1), kernel.init(starts, jax.random.key(2)))
    >>> state.position.shape
    (10, 3)

    Source: ter Braak (2006), equation 2; the noise is that of emcee's `DEMove`.
    """
    name = "differential_evolution"
    if gamma is not None:
        gamma = known_number(name, "gamma", gamma, lambda x: 0 < x < math.inf, "a finite number above zero, or None")
    sigma = known_number(name, "sigma", sigma, lambda x: 0 <= x < math.inf, "a finite number of at least zero")

    def move(key: core.Key, walkers: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
        half, size = walkers.shape
        factor = jnp.asarray(2.38 / math.sqrt(2 * size) if gamma is None else gamma, walkers.dtype)
        noise = core.random.normal(core.fold(key, 0), (half,), walkers.dtype)
        one = core.random.randint(core.fold(key, 1), (half,), 0, half)
        # Another one than the first: all pairs are equally likely, in either order.
        two = (one + core.random.randint(core.fold(key, 2), (half,), 1, half)) % half
        factors = factor * (1 + sigma.astype(walkers.dtype) * noise)
        return walkers + jnp.expand_dims(factors, 1) * (others[one] - others[two]), jnp.zeros_like(noise)

    return _ensemble(name, log_density, move, fewest=4)


def _ensemble(name: str, log_density: core.LogDensity, move: Move, fewest: int) -> core.Algorithm:
    metropolis.check_callable(name, log_density=log_density)

    def init(position: Any, key: core.Key) -> EnsembleState:
        _check_walkers(name, position, fewest)
        state = jax.vmap(lambda walker: metropolis.initial(name, log_density, walker))(position)
        return EnsembleState(state.position, state.log_density)

    def step(key: core.Key, state: EnsembleState) -> tuple[EnsembleState, EnsembleInfo]:
        key = core.as_key(key, name)
        half = state.log_density.shape[0] // 2

        def turn(index: jax.Array, carry: tuple[Any, ...]) -> tuple[Any, ...]:
            """One half moves, and the halves change places."""
            moving, resting, rate = carry
            moved, rates = _move(name, log_density, move, core.fold(key, index), moving, resting.position)
            return resting, moved, rate + jnp.mean(rates) / 2

        halves = [jax.tree.map(lambda x, k=k: x[k * half : (k + 1) * half], MetropolisState(*state)) for k in (0, 1)]
        # A loop of two, so that the density stands in the program once.
        first, second, rate = core.fori_loop(0, 2, turn, (*halves, jnp.zeros((), state.log_density.dtype)))
        new = EnsembleState(*jax.tree.map(lambda x, y: jnp.concatenate([x, y]), first, second))
        return new, EnsembleInfo(rate, jnp.mean(new.log_density))

    return core.Algorithm(init, step)


def _move(
    name: str, log_density: core.LogDensity, move: Move, key: core.Key, moving: MetropolisState, others: Any
) -> tuple[MetropolisState, jax.Array]:
    """One move of one half: its new state, and (half,) the acceptance rate of each walker."""
    half = moving.log_density.shape[0]
    _, unravel = hamiltonian.to_vector(jax.tree.map(lambda x: x[0], moving.position))
    vectors = [jax.vmap(lambda walker: hamiltonian.to_vector(walker)[0])(q) for q in (moving.position, others)]
    proposals, corrections = move(core.fold(key, 0), *vectors)

    def accept(index: jax.Array, state: MetropolisState, vector: jax.Array, correction: jax.Array) -> Any:
        proposed = metropolis.state_at(name, log_density, unravel(vector))
        new, info = metropolis.accept(core.fold(key, 1, index), state, proposed, correction)
        return new, info.acceptance_rate

    return jax.vmap(accept)(jnp.arange(half), moving, proposals, corrections)


def _check_walkers(name: str, position: Any, fewest: int) -> None:
    """Raises a `ValueError` unless there are enough walkers, an even number, and they span all directions."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(position)]
    todo = "The position of an ensemble has a leading axis of walkers in every leaf"
    if not leaves or any(leaf.ndim == 0 for leaf in leaves) or len({leaf.shape[0] for leaf in leaves}) != 1:
        got = f"a pytree with leaves of shapes {[leaf.shape for leaf in leaves]}"
        raise core.bad_value(name, "position", got, "leaves (walker, ...)", todo)
    walkers = leaves[0].shape[0]
    size = sum(leaf.size // walkers for leaf in leaves) if walkers else 0
    needed = max(fewest, 2 * size)
    if walkers < needed or walkers % 2:
        got = f"an ensemble of {walkers} walkers for positions of {size} scalars"
        raise core.bad_value(name, "position", got, f"an even number of at least {needed}", todo)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    points = np.concatenate([np.asarray(leaf, float).reshape(walkers, -1) for leaf in leaves], axis=1)
    apart = points - points.mean(axis=0)
    scales = apart.std(axis=0)
    rounding = 4 * walkers * max(float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)
    if np.isfinite(apart).all() and (
        not (scales > 0).all() or np.linalg.matrix_rank(apart / scales, rtol=rounding) < size
    ):
        todo = "Add a little noise to each: an ensemble never leaves the plane its walkers lie in"
        raise core.bad_value(name, "position", "an ensemble whose walkers lie in a plane", "walkers apart", todo)
