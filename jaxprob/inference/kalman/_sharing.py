"""A batch of series of one model: where nothing is missing, covariances are those of any series, and are moved once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.kalman._steps import Steps


def sharing(function: Callable[[Steps], Any], otherwise: Callable[[Steps], Any] | None = None) -> Callable[..., Any]:
    """A function of steps that under `vmap` looks at whether anything is missing in the batch.

    Args:
      function: of `Steps`, to arrays. In a batch of which nothing is missing, `seen` is the same for all.
      otherwise: what else to do with a batch; `function` by default.
    """

    def batch(function: Callable[[Steps], Any], batched: tuple[Steps], steps: Steps) -> Any:
        (which,) = batched
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, which)
        if not which.varying.seen or which.start.factor or any(jax.tree.leaves(_of_covariances(which))):
            return None

        def alike(steps: Steps) -> Any:
            every, none = _with_seen(steps, jnp.ones_like(steps.varying.seen[0])), _with_seen(axes, None)
            return jax.vmap(function, in_axes=(none,))(every)

        def each(steps: Steps) -> Any:
            return jax.vmap(otherwise or function, in_axes=(axes,))(steps)

        return core.whole(lambda steps: lax.cond(core.all_of_batch(jnp.all(steps.varying.seen)), alike, each, steps))(
            steps
        )

    return core.whole(function, batch)


def _with_seen(steps: Steps, seen: Any) -> Steps:
    return steps._replace(varying=steps.varying._replace(seen=seen))


def _of_covariances(steps: Steps) -> list[Any]:
    """What covariances depend on, but for the first of them and for what is missing."""
    names = ("dynamics", "dynamics_root", "emission", "emission_covariance")
    return [getattr(part, name) for part in (steps.constant, steps.varying) for name in names]
