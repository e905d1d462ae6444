"""Completing an example of which a part is missing, by draws of what is hidden and of what is missing in turn.

Source: Rezende, Mohamed & Wierstra (2014), "Stochastic backpropagation and approximate inference in deep generative
models", section 6.3 and appendix F.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.models.latent._model import LatentVariableModel


def impute(
    key: core.Key, model: LatentVariableModel, params: Any, x: Any, seen: Any, sweeps: int, *, condition: Any = None
) -> jax.Array:
    """Draws of an example given the part of it that is seen; exact in the long run if the recognition is exact.

    Each sweep draws the latent vector from the recognition of the example as it is, then what is missing from the
    likelihood. What is missing begins as a draw of the model, and the first sweeps still depend on it.

    Args:
      key: random key.
      model: a `LatentVariableModel`.
      params: its parameters.
      x: one example; what is not seen is not looked at.
      seen: booleans of the same shape.
      sweeps: how many.
      condition: of a conditional model.

    Returns:
      (sweeps, *shape of x), the example after each sweep; averages over the later ones are means.

    Raises:
      TypeError: if `seen` is not booleans.
      ValueError: if shapes do not fit, or a conditional model has no condition.

    >>> from jaxprob.models import latent
    >>> model = latent.autoencoder(3, 2, 8)
    >>> params = model.init(jax.random.key(0))
    >>> draws = impute(jax.random.key(1), model, params, jnp.ones(3), jnp.array([True, False, True]), 5)
    >>> draws.shape, draws[:, 0].tolist()
    ((5, 3), [1.0, 1.0, 1.0, 1.0, 1.0])
    """
    name = "latent.impute"
    key, x, seen = core.as_key(key, name), jnp.asarray(x), jnp.asarray(seen)
    core.check_whole(name, sweeps=sweeps)
    if seen.dtype != bool:
        raise core.bad_type(name, "seen", seen, "booleans, true where an entry is seen")
    if seen.shape != x.shape:
        raise core.bad_value(name, "seen", f"of shape {seen.shape}", f"shape {x.shape}, as x", "vmap makes many")
    if model.conditional != (condition is not None):
        expected = "a condition for a conditional model, and None for another"
        raise core.bad_value(name, "condition", core.describe(condition), expected)
    given = () if condition is None else (condition,)

    def filled(key: core.Key, z: Any) -> jax.Array:
        return jnp.where(seen, x, model.likelihood(params, z, *given).sample(key).astype(x.dtype))

    def sweep(now: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = model.recognition(params, now, *given).sample(core.fold(key, 1, index, 0))
        after = filled(core.fold(key, 1, index, 1), z)
        return after, after

    first = filled(core.fold(key, 0, 1), model.prior(params, *given).sample(core.fold(key, 0, 0)))
    return scan.scan(sweep, first, jnp.arange(sweeps))[1]
