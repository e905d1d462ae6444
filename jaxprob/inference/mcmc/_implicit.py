"""The generalised leapfrog integrator, for Hamiltonians whose metric depends on the position.

H(q, p) = -log density(q) + log det G(q) / 2 + p' G(q)^-1 p / 2. Two of its three parts are implicit and solved by
fixed-point iteration. A step counts only if both have converged, and if the same iterations from its end, with the
momentum reversed, lead back: else the map would not be its own inverse there, and a chain would be biased.

Source: Girolami & Calderhead (2011), "Riemann manifold Langevin and Hamiltonian Monte Carlo methods", section 6;
the check is that of Zappa, Holmes-Cerfon & Goodman (2018), "Monte Carlo on manifolds", for implicit maps at large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._hamiltonian import ROUNDING, Flat, Point

RETURN = 10.0  # how far from its start the way back may end, in units of the tolerance: that of two sloppy solutions


class Manifold(NamedTuple):
    """A density and a metric on flat vectors.

    Attributes:
      flat: the log density.
      metric: `(size,) -> (size, size)`, symmetric positive definite.
      tolerance: (), of the fixed-point iterations, in standard deviations.
      most: fixed-point iterations at most, for each solution.
    """

    flat: Flat
    metric: Callable[[jax.Array], jax.Array]
    tolerance: jax.Array
    most: int


class Place(NamedTuple):
    """What is known at a position: the density, and the metric with the way from matrices to its derivative.

    Attributes:
      position: (size,).
      log_density: ().
      gradient: (size,), of the log density.
      factor: (size, size), lower Cholesky factor of the metric G.
      trace: (size,), tr(G^-1 dG/dq_k).
      pull: `symmetric M (size, size) -> (size,)`, tr(M dG/dq_k).
    """

    position: jax.Array
    log_density: jax.Array
    gradient: jax.Array
    factor: jax.Array
    trace: jax.Array
    pull: Callable[[jax.Array], jax.Array]


def place_at(manifold: Manifold, position: jax.Array) -> Place:
    """All that a step needs at a position (size,)."""
    log_density, gradient = manifold.flat.evaluate(position)
    metric, pull = jax.vjp(manifold.metric, position)
    factor = core.cholesky(metric)
    inverse = core.cholesky_solve(factor, jnp.eye(position.size, dtype=position.dtype))
    return Place(position, log_density, gradient, factor, pull(inverse)[0], lambda matrix: pull(matrix)[0])


def velocity(factor: jax.Array, momentum: jax.Array) -> jax.Array:
    """dH/dp = G^-1 p, of a momentum (size,) and the factor of G."""
    return core.cholesky_solve(factor, momentum, vector=True)


def force(place: Place, momentum: jax.Array) -> jax.Array:
    """-dH/dq = gradient - (tr(G^-1 dG) - v' dG v) / 2 with v = G^-1 p, of a momentum (size,)."""
    speed = velocity(place.factor, momentum)
    return place.gradient - 0.5 * (place.trace - place.pull(jnp.outer(speed, speed)))


def energy(place: Place, momentum: jax.Array) -> jax.Array:
    """H at a place, with a momentum (size,)."""
    kinetic = core.quadratic_form(place.factor, momentum) + core.log_determinant(place.factor)
    return 0.5 * kinetic - place.log_density


def generalised_leapfrog(
    manifold: Manifold, position: jax.Array, momentum: jax.Array, step: jax.Array
) -> tuple[Place, jax.Array, jax.Array]:
    """One step of the generalised leapfrog.

    p* = p + step/2 F(q, p*);  q' = q + step/2 (V(q, p*) + V(q', p*));  p' = p* + step/2 F(q', p*), with the force F and
    the velocity V.

    Args:
      manifold: density and metric.
      position: (size,).
      momentum: (size,).
      step: (), step size, negative to go back in time.

    Returns:
      the new place, the new momentum (size,), and whether the step is one, (): both solutions have converged, and
      backwards they lead to where it began.
    """
    here = place_at(manifold, position)
    halfway, kicked = _kick(manifold, here, momentum, 0.5 * step)
    there, drifted = _drift(manifold, here, halfway, step)
    end = place_at(manifold, there)
    after = halfway + 0.5 * step * force(end, halfway)
    halfway_again, kicked_back = _kick(manifold, end, after, -0.5 * step)
    here_again, drifted_back = _drift(manifold, end, halfway, -step)
    returned = _near(manifold, _of_momentum(end), halfway_again, halfway, RETURN)
    returned &= _near(manifold, _of_position(here), here_again, position, RETURN)
    return end, after, kicked & drifted & kicked_back & drifted_back & returned


def point(place: Place, momentum: jax.Array) -> Point:
    """A point of phase space; its momentum is p itself, and its force is only the gradient of the log density."""
    return Point(place.position, momentum, place.gradient, place.gradient, place.log_density)


def _kick(manifold: Manifold, place: Place, momentum: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _fixed_point(manifold, lambda p: momentum + step * force(place, p), momentum, _of_momentum(place))


def _drift(manifold: Manifold, place: Place, momentum: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    before = velocity(place.factor, momentum)

    def update(position: jax.Array) -> jax.Array:
        after = velocity(core.cholesky(manifold.metric(position)), momentum)
        return place.position + 0.5 * step * (before + after)

    return _fixed_point(manifold, update, place.position + step * before, _of_position(place))


Whiten = Callable[[jax.Array], jax.Array]


def _of_momentum(place: Place) -> Whiten:
    return lambda p: core.solve_triangular(place.factor, p, vector=True)


def _of_position(place: Place) -> Whiten:
    return lambda q: core.matvec(place.factor.T, q)


def _near(manifold: Manifold, whiten: Whiten, one: jax.Array, two: jax.Array, factor: float = 1.0) -> jax.Array:
    """Whether two vectors are the same to the tolerance, or to rounding where that is coarser; never with a NaN."""
    rounding = ROUNDING * jnp.finfo(two.dtype).eps * core.norm(whiten(two))
    return core.norm(whiten(one - two)) <= factor * (manifold.tolerance + rounding)


def _fixed_point(
    manifold: Manifold, update: Callable[[jax.Array], jax.Array], start: jax.Array, whiten: Whiten
) -> tuple[jax.Array, jax.Array]:
    """The solution of x = update(x), and whether it has been found."""

    def unfinished(carry: Any) -> jax.Array:
        value, converged, iteration = carry
        return ~converged & (iteration < manifold.most) & jnp.all(jnp.isfinite(value))

    def iterate(carry: Any) -> Any:
        value, _, iteration = carry
        new = update(value)
        return new, _near(manifold, whiten, new, value), iteration + 1

    # Made from what differs between chains, so that `vmap` and `shard_map` see a carry of one kind.
    no = (start[0] == start[0]) & False
    value, converged, _ = core.while_loop(unfinished, iterate, (start, no, no.astype(jnp.int32)))
    return value, converged
