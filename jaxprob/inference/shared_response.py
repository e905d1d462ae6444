"""Responses of several subjects to the same course of events: latents they share, that are smooth in time.

    x_s(t) = W_s z(t) + mu_s + noise,   z_k a Gaussian process of variance one and of its own lengthscale

Each subject has loadings of its own. The processes are Matern, so that everything is a Kalman filter over as many
numbers as there are latents, whatever the number of subjects and voxels (`kalman.collapse`). Without a smoothness the
latents of all times are independent: the probabilistic shared response model.

Source: Yu et al. (2009), "Gaussian-process factor analysis for low-dimensional single-trial analysis of neural
population activity"; Chen et al. (2015), "A reduced-dimension fMRI shared response model".
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import block_diag

from jaxprob import core, scan
from jaxprob.inference import kalman
from jaxprob.models.state_space import LinearGaussian, matern


@core.pytree
class SharedResponse:
    """A shared response model of K latents in S subjects of V voxels.

    Attributes:
      loadings: W, (S, V, K).
      mean: mu, (S, V).
      noise: (S, V), variances.
      lengthscales: (K,), in units of time; or (1,) for one of all.
      smoothness: of the Matern processes, 0.5, 1.5, 2.5, ...; None for latents that are independent at all times.
    """

    loadings: Any
    mean: Any
    noise: Any
    lengthscales: Any
    smoothness: float | None = core.static(default=2.5)

    def at(self, times: Any) -> LinearGaussian:
        """The model of all subjects' voxels, one after the other, at given times (T,)."""
        times, dtype = jnp.asarray(times), self.loadings.dtype
        k = self.loadings.shape[2]
        if self.smoothness is None:
            zero, eye = jnp.zeros((k, k), dtype), jnp.eye(k, dtype=dtype)
            latents, size = LinearGaussian(jnp.zeros(k, dtype), eye, zero, eye, eye, jnp.ones(k, dtype)), 1
        else:
            scales = jnp.broadcast_to(self.lengthscales, (k,))
            parts = [matern(times, scale, 1.0, self.smoothness) for scale in scales]
            size = parts[0].state_size
            blocks = jax.vmap(block_diag)
            latents = LinearGaussian(
                initial_mean=jnp.concatenate([part.initial_mean for part in parts]),
                initial_covariance=block_diag(*(part.initial_covariance for part in parts)),
                dynamics=blocks(*(part.dynamics for part in parts)),
                dynamics_covariance=blocks(*(part.dynamics_covariance for part in parts)),
                emission=jnp.eye(k * size, dtype=dtype),
                emission_covariance=jnp.ones(k * size, dtype),
                time_varying=parts[0].time_varying,
            )
        rows = self.loadings.reshape(-1, k)
        return LinearGaussian(
            latents.initial_mean,
            latents.initial_covariance,
            latents.dynamics,
            latents.dynamics_covariance,
            emission=jnp.zeros((rows.shape[0], k * size), dtype).at[:, ::size].set(rows),
            emission_covariance=self.noise.reshape(-1),
            emission_offset=self.mean.reshape(-1),
            time_varying=latents.time_varying,
        )


class Latents(NamedTuple):
    """What is known of the latents.

    Attributes:
      mean: (T, K).
      covariance: (T, K, K).
      log_likelihood: (), of all responses.
    """

    mean: jax.Array
    covariance: jax.Array
    log_likelihood: jax.Array


def log_likelihood(model: SharedResponse, responses: Any, times: Any) -> jax.Array:
    """The log density of the responses, (), with the latents integrated out.

    Args:
      model: a `SharedResponse`.
      responses: (S, T, V); NaN is missing.
      times: (T,), not falling.

    Raises:
      ValueError: if shapes do not fit.
    """
    responses, times = _check("shared_response.log_likelihood", responses, times, model)
    return _log_likelihood(model, responses, times)


def posterior(model: SharedResponse, responses: Any, times: Any) -> Latents:
    """The latents given all responses.

    Args:
      model: a `SharedResponse`.
      responses: (S, T, V); NaN is missing.
      times: (T,), not falling.

    Raises:
      ValueError: if shapes do not fit.
    """
    responses, times = _check("shared_response.posterior", responses, times, model)
    return _posterior(model, responses, times)


def fit(
    responses: Any,
    times: Any,
    latents: int,
    *,
    smoothness: float | None = 2.5,
    lengthscale: Any = None,
    tied: bool = False,
    num_steps: int = 100,
    learning_rate: float = 0.1,
) -> tuple[SharedResponse, jax.Array]:
    """A model fitted by expectation-maximization; lengthscales climb the likelihood by Adam, a step for each.

    It begins at the principal components of all voxels together.

    Args:
      responses: (S, T, V); NaN is missing.
      times: (T,), not falling.
      latents: K.
      smoothness: of the latents; None for independent ones.
      lengthscale: where lengthscales begin; by default ten steps of time.
      tied: whether all latents have the same.
      num_steps: of expectation-maximization.
      learning_rate: of the logarithms of the lengthscales.

    Returns:
      the model, and the log-likelihoods (num_steps,) before each step.

    Raises:
      ValueError: if shapes do not fit, or there are more latents than voxels or times.

    >>> series = jnp.sin(jnp.arange(50.0) / 3)
    >>> noise = 0.1 * jax.random.normal(jax.random.key(0), (2, 50, 4))
    >>> model, found = fit(jnp.expand_dims(series, (0, 2)) + noise, jnp.arange(50.0), 1, num_steps=5)
    >>> model.loadings.shape, bool(found[-1] > found[0])
    ((2, 4, 1), True)
    """
    name = "shared_response.fit"
    responses, times = _check(name, responses, times)
    most = min(responses.shape[0] * responses.shape[2], responses.shape[1])
    if isinstance(latents, bool) or not isinstance(latents, int) or not 1 <= latents <= most:
        raise core.bad_value(name, "latents", latents, f"an integer from 1 to {most}, of voxels or times")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise core.bad_value(name, "num_steps", num_steps, "an integer of at least 1")
    if lengthscale is None:
        lengthscale = 10 * (times[-1] - times[0]) / max(times.shape[0] - 1, 1)
    start = _start(responses, jnp.asarray(lengthscale, responses.dtype), latents, smoothness)
    if tied:
        start = dataclasses.replace(start, lengthscales=start.lengthscales[:1])
    return _fit(start, responses, times, num_steps, learning_rate)


def project(responses: Any, latents: Latents) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loadings (V, K), mean (V,) and noise (V,) of a subject whose responses to the same events are new.

    Args:
      responses: (T, V); NaN is missing.
      latents: as `posterior` of the other subjects found them.

    Raises:
      ValueError: if shapes do not fit.
    """
    responses = core.as_float(responses)
    if responses.ndim != 2 or responses.shape[0] != latents.mean.shape[0]:
        expected = f"shape ({latents.mean.shape[0]}, voxels)"
        raise core.bad_value("shared_response.project", "responses", f"of shape {responses.shape}", expected)
    loadings, mean, noise = _regress(jnp.expand_dims(responses, 0), latents)
    return loadings[0], mean[0], noise[0]


def orthonormalize(model: SharedResponse, latents: Latents) -> tuple[jax.Array, jax.Array]:
    """Orthonormal loadings (S, V, K) of all voxels together, and the means (T, K) of the latents that belong to them.

    Latents come in order of the variance that they explain; their products with the loadings stay what they are.
    """
    s, v, k = model.loadings.shape
    left, values, right = jnp.linalg.svd(model.loadings.reshape(-1, k), full_matrices=False)
    return left.reshape(s, v, k), core.matmul(latents.mean, (jnp.expand_dims(values, 1) * right).T)


def _check(function: str, responses: Any, times: Any, *model: Any) -> tuple[jax.Array, jax.Array]:
    responses, times = core.as_float(responses), core.as_float(times)
    subjects = "(subjects, times, voxels)"
    if model and not isinstance(model[0], SharedResponse):
        raise core.bad_type(function, "model", model[0], "a SharedResponse")
    if responses.ndim != 3 or not responses.size:
        raise core.bad_value(function, "responses", f"of shape {responses.shape}", subjects)
    if times.shape != responses.shape[1:2]:
        raise core.bad_value(function, "times", f"of shape {times.shape}", f"shape {responses.shape[1:2]}")
    if model and model[0].mean.shape != (responses.shape[0], responses.shape[2]):
        got, want = (
            f"of shape {responses.shape}",
            f"{model[0].mean.shape[0]} subjects of {model[0].mean.shape[1]} voxels",
        )
        raise core.bad_value(function, "responses", got, want)
    return responses, times.astype(responses.dtype)


def _collapse(model: SharedResponse, responses: jax.Array, times: jax.Array) -> kalman.Collapsed:
    return kalman.collapse(model.at(times), jnp.swapaxes(responses, 0, 1).reshape(times.shape[0], -1))


@jax.jit
def _log_likelihood(model: SharedResponse, responses: jax.Array, times: jax.Array) -> jax.Array:
    found = _collapse(model, responses, times)
    return kalman.log_likelihood(found.model, found.ys) + jnp.sum(found.log_constants)


@jax.jit
def _posterior(model: SharedResponse, responses: jax.Array, times: jax.Array) -> Latents:
    found = _collapse(model, responses, times)
    smoothed = kalman.smooth(found.model, found.ys)
    size = found.model.state_size // model.loadings.shape[2]
    total = smoothed.log_likelihood + jnp.sum(found.log_constants)
    return Latents(smoothed.mean[:, ::size], smoothed.covariance[:, ::size, ::size], total)


def _regress(responses: jax.Array, latents: Latents) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Loadings, mean and noise that maximise the expected log density of responses (S, T, V)."""
    seen = ~jnp.isnan(responses)
    there, values = seen.astype(responses.dtype), jnp.where(seen, responses, 0)
    means = jnp.concatenate([latents.mean, jnp.ones_like(latents.mean[:, :1])], 1)
    squares = jnp.pad(latents.covariance, ((0, 0), (0, 1), (0, 1)))
    squares = squares + jnp.expand_dims(means, 2) * jnp.expand_dims(means, 1)
    moments = jnp.einsum("stv,tij->svij", there, squares, precision="highest")
    products = jnp.einsum("stv,ti->svi", values, means, precision="highest")
    count = jnp.sum(there, 1)
    # A voxel that is never seen keeps loadings of zero.
    never = jnp.expand_dims(count == 0, (2, 3))
    moments = jnp.where(never, jnp.expand_dims(jnp.eye(means.shape[1], dtype=moments.dtype), (0, 1)), moments)
    weights = jnp.linalg.solve(moments, jnp.expand_dims(products, -1))[..., 0]
    left = jnp.einsum(
        "stv,stv->sv", there, (values - jnp.einsum("svi,ti->stv", weights, means, precision="highest")) ** 2
    )
    spread = jnp.einsum("svi,tij,svj,stv->sv", weights[..., :-1], latents.covariance, weights[..., :-1], there)
    noise = jnp.where(count > 0, (left + spread) / jnp.maximum(count, 1), 1)
    return weights[..., :-1], weights[..., -1], jnp.maximum(noise, jnp.finfo(noise.dtype).tiny ** 0.5)


@functools.partial(jax.jit, static_argnames=("latents", "smoothness"))
def _start(responses: jax.Array, lengthscale: jax.Array, latents: int, smoothness: float | None) -> SharedResponse:
    seen = ~jnp.isnan(responses)
    mean = jnp.sum(jnp.where(seen, responses, 0), 1) / jnp.maximum(jnp.sum(seen, 1, dtype=responses.dtype), 1)
    centred = jnp.where(seen, responses - jnp.expand_dims(mean, 1), 0)
    times = responses.shape[1]
    flat = jnp.swapaxes(centred, 0, 1).reshape(times, -1)
    left = jnp.linalg.svd(flat, full_matrices=False)[0][:, :latents] * math.sqrt(times)
    none = jnp.zeros((times, latents, latents), flat.dtype)
    found = _regress(responses, Latents(left, none, jnp.zeros((), flat.dtype)))
    return SharedResponse(*found, jnp.broadcast_to(lengthscale, (latents,)), smoothness)


@functools.partial(jax.jit, static_argnames="num_steps")
def _fit(
    start: SharedResponse, responses: jax.Array, times: jax.Array, num_steps: int, learning_rate: Any
) -> tuple[SharedResponse, jax.Array]:
    import optax  # takes half a second to import

    optimizer = optax.adam(learning_rate)

    def replace(model: SharedResponse, found: Any, logs: jax.Array) -> SharedResponse:
        loadings, mean, noise = found
        return SharedResponse(loadings, mean, noise, jnp.exp(logs), model.smoothness)

    def step(carry: Any, _: Any) -> tuple[Any, jax.Array]:
        model, state = carry
        latents = _posterior(model, responses, times)
        logs = jnp.log(model.lengthscales)
        model = replace(model, _regress(responses, latents), logs)
        if model.smoothness is not None:
            parts = (model.loadings, model.mean, model.noise)
            slope = jax.grad(lambda x: -_log_likelihood(replace(model, parts, x), responses, times))(logs)
            with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts with rates
                move, state = optimizer.update(slope, state)
            model = replace(model, parts, optax.apply_updates(logs, move))
        return (model, state), latents.log_likelihood

    (model, _), found = scan.scan(step, (start, optimizer.init(jnp.log(start.lengthscales))), jnp.arange(num_steps))
    return model, found
