"""What approximations are made of: a log density, and where to look for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._log_density import LogDensity, as_log_density
from jaxprob.models.state_space import LinearGaussian, StateSpaceModel


def as_target(
    log_density: Any, initial: Any, function: str
) -> tuple[LogDensity, Any, Callable[[core.Key], Any] | None]:
    """The log density, a position to start from and a function that draws one; either of the last two is None.

    Args:
      log_density: `position -> scalar`, or a posterior, with `log_density` and `initial`.
      initial: a position, a function `key -> position`, or None for the posterior's own.
      function: name of the caller, for the error message.

    Raises:
      TypeError: if `log_density` is neither, such as a state-space model without its data.
      ValueError: if there is no way to know where to start.
    """
    if isinstance(log_density, StateSpaceModel | LinearGaussian):
        expected, todo = "a log density or a posterior", "Pass inference.state_posterior(model, ys)"
        raise core.bad_type(function, "target", log_density, expected, todo)
    posterior = hasattr(log_density, "log_density") and callable(log_density.log_density)
    target = as_log_density(log_density.log_density if posterior else log_density, function)
    if initial is None:
        initial = getattr(log_density, "initial", None)
        if not callable(initial):
            raise core.bad_value(function, "initial", None, "a position, or a function of a key that draws one")
    return (target, None, initial) if core.is_function(initial) else (target, initial, None)


def check_start(log_density: jax.Array, function: str, tried: str = "") -> None:
    """Raises a `ValueError` if it is known, outside of `jit` and `vmap`, that no start has a finite log density.

    Args:
      log_density: () or (path,), at the starts.
      function: name of the caller, for the error message.
      tried: how many starts were drawn, for the error message.
    """
    if isinstance(log_density, jax.core.Tracer) or bool(jnp.any(jnp.isfinite(log_density))):
        return
    got, todo = f"a position with log density {jnp.ravel(log_density)[0]}{tried}", "Pass another initial"
    raise core.bad_value(function, "initial", got, "a finite log density", f"{todo}, or check the model at that point")
