"""Noise that is a function: draws of a stochastic process at the times of a series.

Diffusion with it is a diffusion of functions: what it says of some times does not depend on which others are asked for,
as independent noise, of infinite roughness, would have it.

Source: Biloš, Rasul, Schneider, Nevmyvaka & Günnemann (2023), "Modeling temporal data as continuous functions with
stochastic process diffusion", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.models.diffusion._noise import Noise


@core.pytree
class OrnsteinUhlenbeckNoise(Noise):
    """See `ornstein_uhlenbeck_noise`.

    Args:
      decay: (time,), correlation with the value before; 0 for the first.
      scale: (time,), standard deviation of what is new.
    """

    decay: jax.Array
    scale: jax.Array

    def shaped(self, z: jax.Array) -> jax.Array:
        rows = z.reshape(z.shape[0], -1)
        decay = jnp.broadcast_to(self.decay.astype(z.dtype)[:, None], rows.shape)
        new = self.scale.astype(z.dtype)[:, None] * rows
        return scan.affine(decay, new, jnp.zeros_like(rows[0])).states.reshape(z.shape)

    def whitened(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(x.shape[0], -1)
        before = jnp.concatenate([jnp.zeros_like(rows[:1]), rows[:-1]])
        new = (rows - self.decay.astype(x.dtype)[:, None] * before) / self.scale.astype(x.dtype)[:, None]
        return new.reshape(x.shape)

    def log_scale(self, shape: tuple[int, ...]) -> jax.Array:
        return math.prod(shape[1:]) * jnp.sum(jnp.log(self.scale))


def ornstein_uhlenbeck_noise(times: Any, lengthscale: Any) -> OrnsteinUhlenbeckNoise:
    """Noise of unit variance with correlation `exp(-|dt| / lengthscale)`, in time linear in the length.

    Args:
      times: (time,), rising. Examples have shape (time,) or (time, ...), with independent noise along other axes.
      lengthscale: ().

    Raises:
      ValueError: if times do not rise, or the length scale is not positive.

    >>> noise = ornstein_uhlenbeck_noise(jnp.array([0.0, 1.0, 3.0]), 2.0)
    >>> noise.whitened(noise.shaped(jnp.ones(3))).round(5).tolist()
    [1.0, 1.0, 1.0]

    Source: Biloš et al. (2023), section 3.1.
    """
    times, lengthscale = _known("diffusion.ornstein_uhlenbeck_noise", times, lengthscale)
    rate = -jnp.diff(times) / lengthscale
    decay = jnp.concatenate([jnp.zeros_like(times[:1]), jnp.exp(rate)])
    return OrnsteinUhlenbeckNoise(decay, jnp.concatenate([jnp.ones_like(times[:1]), jnp.sqrt(-jnp.expm1(2 * rate))]))


@core.pytree
class GaussianProcessNoise(Noise):
    """See `gaussian_process_noise`.

    Args:
      factor: (time, time), lower triangular.
    """

    factor: jax.Array

    def shaped(self, z: jax.Array) -> jax.Array:
        rows = z.reshape(z.shape[0], -1)
        return core.matmul(self.factor.astype(z.dtype), rows).reshape(z.shape)

    def whitened(self, x: jax.Array) -> jax.Array:
        rows = x.reshape(x.shape[0], -1)
        return core.solve_triangular(self.factor.astype(x.dtype), rows).reshape(x.shape)

    def log_scale(self, shape: tuple[int, ...]) -> jax.Array:
        return math.prod(shape[1:]) * jnp.sum(jnp.log(jnp.diag(self.factor)))


def gaussian_process_noise(
    times: Any,
    lengthscale: Any,
    kernel: Callable[[jax.Array], jax.Array] | None = None,
    nugget: float = 1e-3,
) -> GaussianProcessNoise:
    """Noise that is a stationary Gaussian process of unit variance.

    Args:
      times: (time,), rising. Examples have shape (time,) or (time, ...), with independent noise along other axes.
      lengthscale: ().
      kernel: correlation as a function of a distance in length scales; `exp(-d^2 / 2)` by default.
      nugget: share of the variance that is independent from time to time. A smooth kernel at near times needs one, and
        with less than 1e-4 float32 has no digits left of what whitened values are. An error of a denoiser that varies
        from time to time counts by the inverse of this in the loss: with a smooth kernel let it say x_0
        (`prediction="clean"`), not the noise.

    Raises:
      ValueError: if times do not rise, the length scale is not positive, or the nugget no share.

    >>> noise = gaussian_process_noise(jnp.array([0.0, 1.0, 3.0]), 2.0)
    >>> noise.whitened(noise.shaped(jnp.ones(3))).round(4).tolist()
    [1.0, 1.0, 1.0]

    Source: Biloš et al. (2023), section 3.1.
    """
    name = "diffusion.gaussian_process_noise"
    times, lengthscale = _known(name, times, lengthscale)
    core.check_positive(name, nugget=nugget)
    if nugget > 1:
        raise core.bad_value(name, "nugget", nugget, "a share of at most 1")
    distance = jnp.abs(times[:, None] - times[None, :]) / lengthscale
    covariance = jnp.exp(-0.5 * distance**2) if kernel is None else kernel(distance)
    covariance = (1 - nugget) * covariance + nugget * jnp.eye(times.size, dtype=times.dtype)
    return GaussianProcessNoise(core.cholesky(covariance))


def _known(function: str, times: Any, lengthscale: Any) -> tuple[jax.Array, jax.Array]:
    """Times and a length scale of one dtype, checked where they are known."""
    times, lengthscale = core.as_float(times), core.as_float(lengthscale)
    if times.ndim != 1 or not times.size:
        raise core.bad_value(function, "times", times, "a vector (time,) of one time or more")
    if not isinstance(times, jax.core.Tracer) and not np.all(np.diff(np.asarray(times)) > 0):
        raise core.bad_value(function, "times", "not rising", "times that rise", "Sort them, and keep each once")
    if not isinstance(lengthscale, jax.core.Tracer) and not bool(jnp.all(lengthscale > 0)):
        raise core.bad_value(function, "lengthscale", lengthscale, "a positive number")
    return times, lengthscale.astype(times.dtype)
