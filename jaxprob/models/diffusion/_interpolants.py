"""Stochastic interpolants: a path with noise on its way from data to a source that may be any other law.

`x_t = alpha(t) data + beta(t) source + gamma(t) z` with independent normal z. A denoiser learns two expectations given
x_t, that of the path's slope `alpha' data + beta' source` and that of z, from which follow the velocity of the law of
x_t, its score, and stochastic equations with any noise. Both are bounded where the velocity's own derivative of gamma
is not, at the ends.

Source: Albergo, Boffi & Vanden-Eijnden (2023), "Stochastic interpolants: a unifying framework for flows and
diffusions"; there data are at time 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion._process import Denoiser, NoisingProcess, check_time

PATHS = ("linear", "trigonometric", "encoder_decoder")


class Endpoints(NamedTuple):
    """An example with the point of the source that it is joined to.

    Attributes:
      data: an example.
      source: of the same shape.
    """

    data: Any
    source: Any


class Interpolated(NamedTuple):
    """A point of a path, and what it is made of beside the data.

    Attributes:
      position: x_t, all that the denoiser sees.
      source: the end at time 1.
      latent: z.
    """

    position: jax.Array
    source: jax.Array
    latent: jax.Array


@core.pytree
class StochasticInterpolant(NoisingProcess):
    """Paths between data and a source; `stochastic_interpolant` makes it.

    An example is an array, which is joined to standard normal numbers, or `Endpoints`. `corrupt` gives an
    `Interpolated`; samplers go with arrays. A denoiser's output has a last axis of two: the expected slope of the path,
    and the expected z.

    Args:
      path: "linear", "trigonometric" or "encoder_decoder".
      latent_scale: a; gamma^2 is `a t (1 - t)`.
      diffusion: of samplers' stochastic equation.
      margin: share of the unit of time by which gamma keeps away from its zeros.
    """

    path: str = core.static(default="linear")
    latent_scale: float = core.static(default=2.0)
    diffusion: float = core.static(default=1.0)
    margin: float = core.static(default=1e-4)

    def coefficients(self, t: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """alpha, beta and gamma at a time."""
        t = core.as_float(t)
        inner = self.margin + (1 - 2 * self.margin) * t
        if self.path == "encoder_decoder":
            # All noise half way, whatever the data: cos^2 there and its slope are zero, so that the halves join.
            there = jnp.cos(math.pi * t) ** 2
            early, zero = t < 0.5, jnp.zeros_like(t)
            alpha, beta = jnp.where(early, there, zero), jnp.where(early, zero, there)
            return alpha, beta, jnp.sin(math.pi * inner) ** 2
        gamma = jnp.sqrt(self.latent_scale * inner * (1 - inner))
        if self.path == "linear":
            return 1 - t, t, gamma
        rest = jnp.sqrt(1 - gamma**2)
        return rest * jnp.cos(0.5 * math.pi * t), rest * jnp.sin(0.5 * math.pi * t), gamma

    def slopes(self, t: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The derivatives of alpha, beta and gamma with respect to time."""
        t = core.as_float(t)
        return jax.jvp(self.coefficients, (t,), (jnp.ones_like(t),))[1]

    def _as(self, x: jax.Array, numbers: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(number.astype(x.dtype) for number in numbers)

    # The path.

    def corrupt(self, key: core.Key, x0: Any, t: Any) -> Interpolated:
        check_time("corrupt", t)
        data = _data(x0)
        if isinstance(x0, Endpoints):
            source = core.as_float(x0.source).astype(data.dtype)
        else:
            source = core.random.normal(core.fold(key, 1), data.shape, data.dtype)
        latent = core.random.normal(core.fold(key, 0), data.shape, data.dtype)
        alpha, beta, gamma = self._as(data, self.coefficients(t))
        return Interpolated(alpha * data + beta * source + gamma * latent, source, latent)

    def sample_prior(self, key: core.Key, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        """Standard normal numbers; of another source, give samplers its draws as their start."""
        return core.random.normal(key, shape, jnp.result_type(float) if dtype is None else dtype)

    # Learning.

    def target(self, x0: Any, xt: Any, t: Any) -> jax.Array:
        check_time("target", t)
        if not isinstance(xt, Interpolated):
            todo = "An array does not say what it is made of"
            raise core.bad_type("target", "xt", core.describe(xt), "what corrupt returns, an Interpolated", todo)
        data = _data(x0).astype(xt.position.dtype)
        alpha, beta, _ = self._as(data, self.slopes(t))
        return jnp.stack([alpha * data + beta * xt.source, xt.latent], -1)

    def weight(self, t: Any) -> jax.Array:
        return jnp.ones_like(core.as_float(t))

    def loss(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        target = self.target(x0, xt, t)
        return jnp.mean((output - target).astype(core.accumulator_dtype(target.dtype)) ** 2)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, 2)

    def output(self, denoiser: Denoiser, x: Any, t: Any, condition: Any, shape: tuple[int, ...]) -> jax.Array:
        return super().output(denoiser, x.position if isinstance(x, Interpolated) else x, t, condition, shape)

    def check_data(self, function: str, x0: Any) -> None:
        if isinstance(x0, Endpoints) and jnp.shape(x0.data) != jnp.shape(x0.source):
            got, expected = f"of shape {jnp.shape(x0.source)}", f"{jnp.shape(x0.data)}, as the data"
            raise core.bad_value(function, "source", got, expected)
        _data(x0)

    # What a denoiser says.

    def velocity(self, output: jax.Array, xt: Any, t: Any) -> jax.Array:
        """dx/dt of the ordinary differential equation that keeps the law of x_t."""
        return self.drift(output, xt, t, 0.0)

    def score(self, output: jax.Array, xt: Any, t: Any) -> jax.Array:
        """The gradient of the log density of x_t."""
        (gamma,) = self._as(output, self.coefficients(t)[2:])
        return -output[..., 1] / gamma

    def drift(self, output: jax.Array, xt: Any, t: Any, diffusion: Any) -> jax.Array:
        """The drift of a stochastic equation that keeps the law of x_t, with noise `sqrt(2 diffusion gamma) dw`.

        Forwards, from data to source, for a positive `diffusion`; for a negative one that of the equation backwards in
        time, `dx = drift dt + sqrt(2 |diffusion| gamma) dw`.
        """
        (gamma_slope,) = self._as(output, self.slopes(t)[2:])
        return output[..., 0] + (gamma_slope - jnp.asarray(diffusion, output.dtype)) * output[..., 1]

    def reverse_step(self, key: core.Key, xt: Any, output: Any, t: Any, s: Any) -> jax.Array:
        """A draw of x_s given x_t: a step of Euler and Maruyama; of Euler where `diffusion` is zero."""
        xt = core.as_float(xt)
        length = (core.as_float(t) - s).astype(xt.dtype)
        mean = xt - length * self.drift(output, xt, t, -self.diffusion)
        (gamma,) = self._as(xt, self.coefficients(t)[2:])
        scale = jnp.sqrt(2 * self.diffusion * gamma * length)
        return mean + scale * core.random.normal(key, xt.shape, xt.dtype)


def _data(x0: Any) -> jax.Array:
    return core.as_float(x0.data if isinstance(x0, Endpoints) else x0)


def stochastic_interpolant(
    path: str = "linear", *, latent_scale: float = 2.0, diffusion: float = 1.0, margin: float = 1e-4
) -> StochasticInterpolant:
    """Paths from data to a source of any law, with noise on the way.

    For a source other than standard normal numbers, batches for the loss are `Endpoints` (example, ...), and samplers
    are given draws of it as their `start`. A coupling brings the two batches into order first: `source =
    coupling(key, data, source)`.

    Args:
      path: "linear", `alpha = 1 - t` and `beta = t`; "trigonometric", a quarter of a circle, of variance one for data
        and source of variance one; "encoder_decoder", from data to noise in the first half and from noise to the source
        in the second.
      latent_scale: a of gamma^2 = a t (1 - t); below 4 for "trigonometric", and without meaning for "encoder_decoder".
      diffusion: noise of samplers, `sqrt(2 diffusion gamma) dw`; 0 for the ordinary differential equation.
      margin: by how much gamma keeps away from the ends of time, where its slope may be infinite: samples keep noise of
        a standard deviation `sqrt(a margin)`.

    Raises:
      ValueError: for an unknown path, or a number out of range.

    >>> process = stochastic_interpolant("trigonometric")
    >>> alpha, beta, gamma = process.coefficients(0.3)
    >>> print((alpha**2 + beta**2 + gamma**2).round(4))
    1.0

    Source: Albergo, Boffi & Vanden-Eijnden (2023), section 4 and table 2 for the paths, corollary 18 for the equations.
    """
    name = "diffusion.stochastic_interpolant"
    if path not in PATHS:
        raise core.bad_value(name, "path", core.describe(path), f"one of {PATHS}")
    core.check_positive(name, latent_scale=latent_scale, margin=margin)
    if path == "trigonometric" and latent_scale >= 4:
        raise core.bad_value(name, "latent_scale", latent_scale, "less than 4", "gamma would be more than 1")
    if not core.is_number(diffusion) or not 0 <= diffusion < math.inf:
        raise core.bad_value(name, "diffusion", diffusion, "a number, 0 or more")
    if margin >= 0.5:
        raise core.bad_value(name, "margin", margin, "a share below 1/2")
    return StochasticInterpolant(path, float(latent_scale), float(diffusion), float(margin))
