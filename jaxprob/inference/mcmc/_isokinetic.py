"""Isokinetic dynamics: unit speed, and a direction that the gradient turns.

In whitened coordinates the direction u is a unit vector, dx/dt = L u and du/dt = (1 - u u') L'g / (size - 1), where
M^-1 = L L' and g is the gradient of the log density.

Source: Ver Steeg & Galstyan (2021), "Hamiltonian Dynamics with Non-Newtonian Momentum for Rapid Sampling"; Robnik, De
Luca, Silverstein & Seljak (2023), "Microcanonical Hamiltonian Monte Carlo"; McLachlan (1995) for the integrator.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._hamiltonian import Flat, Point
from jaxprob.inference.mcmc._metric import Metric

_MINIMAL_NORM = 0.1931833275037836  # McLachlan (1995): least norm of the error's third-order terms
KICKS = {"mclachlan": (_MINIMAL_NORM, 1 - 2 * _MINIMAL_NORM, _MINIMAL_NORM), "leapfrog": (0.5, 0.5)}


def as_kicks(integrator: str, function: str) -> tuple[float, ...]:
    """The shares of the step in each turn of a named integrator; raises a `ValueError` for an unknown name."""
    if integrator not in KICKS:
        raise core.bad_value(function, "integrator", core.describe(integrator), "'mclachlan' or 'leapfrog'")
    return KICKS[integrator]


def integrate(
    flat: Flat, metric: Metric, point: Point, step: jax.Array, kicks: tuple[float, ...]
) -> tuple[Point, jax.Array]:
    """One step of an integrator that turns and drifts by turns.

    Args:
      flat: the log density.
      metric: the metric.
      point: where to start; its momentum is a direction.
      step: (), above zero. The way back is that from the end with the opposite direction.
      kicks: shares of the step in each turn, symmetric; between them are drifts of equal length.

    Returns:
      where it ends, and the change of kinetic energy ().
    """
    drift = step / (len(kicks) - 1)
    direction, kinetic = _turn(point.momentum, point.force, kicks[0] * step)
    for share in kicks[1:]:
        position = point.position + drift * metric.velocity(direction)
        log_density, gradient = flat.evaluate(position)
        force = metric.force(gradient)
        direction, more = _turn(direction, force, share * step)
        point, kinetic = Point(position, direction, force, gradient, log_density), kinetic + more
    return point, kinetic


def _turn(direction: jax.Array, force: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The direction u after a time under a constant force f, and the kinetic energy gained.

    With e = f / |f|, c = u'e and delta = step |f| / (size - 1): u becomes the normalised
    `u + (sinh(delta) + c (cosh(delta) - 1)) e`, and the energy (size - 1) log(cosh(delta) + c sinh(delta)), which is
    also minus the log of the factor by which it scales volumes of directions. A force that is not
    finite counts as none.
    """
    others = direction.size - 1
    largest = jnp.max(jnp.abs(force))
    acts = (largest > 0) & jnp.all(jnp.isfinite(force))
    # Scaled first, so that squares neither overflow nor underflow.
    largest = jnp.where(acts, largest, 1)
    scaled = jnp.where(acts, force / largest, 0)
    norm = jnp.where(acts, jnp.sqrt(core.ordered_dot(scaled, scaled)), 1)
    toward = scaled / norm
    delta = jnp.where(acts, step * (largest / others) * norm, 0)
    # In terms of exp(-delta), which cannot overflow, and of u + e: 1 + c is lost to rounding where the chain climbs
    # straight away from a mode, and all that follows depends on it.
    zeta, both = jnp.exp(-delta), direction + toward
    near = jnp.minimum(core.ordered_dot(both, both) / 4, 1)  # (1 + c) / 2
    turned = zeta * both + (near * (1 - zeta) ** 2 - zeta**2) * toward
    length = jnp.sqrt(core.ordered_dot(turned, turned))
    turned = jnp.where(length > 0, turned / jnp.where(length > 0, length, 1), direction)
    lost = (1 - near) * jnp.expm1(-2 * delta)
    exponent = jnp.where(lost > -0.5, jnp.log1p(lost), jnp.logaddexp(jnp.log(near), jnp.log1p(-near) - 2 * delta))
    return turned, others * (delta + exponent)


def refresh(key: core.Key, direction: jax.Array, turn: jax.Array) -> jax.Array:
    """A direction forgotten in part: after `turn` = 1 about a share 1 / e of it is left."""
    noise = core.random.normal(key, direction.shape, direction.dtype)
    return _normalised(jnp.exp(-turn) * direction + jnp.sqrt(-jnp.expm1(-2 * turn) / direction.size) * noise)


def any_direction(key: core.Key, size: int, dtype: Any) -> jax.Array:
    """A direction (size,) uniform on the sphere."""
    return _normalised(core.random.normal(key, (size,), dtype))


def _normalised(vector: jax.Array) -> jax.Array:
    return vector / jnp.sqrt(core.ordered_dot(vector, vector))
