"""Langevin dynamics with stochastic gradients: SGLD, and SGLD with an adaptive diagonal preconditioner.

No proposal is ever rejected, so that the law of the draws is not quite the posterior: it is wrong by the order of the
step size, and by the noise of the gradient. A transition costs one estimate of the gradient and no density. It is
made where the move ends, for the next move: a chain never is where the gradient is not finite.

Source: Welling & Teh (2011), "Bayesian learning via stochastic gradient Langevin dynamics"; Li, Chen, Carlson & Carin
(2016), "Preconditioned stochastic gradient Langevin dynamics for deep neural networks".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._hamiltonian import as_step_size
from jaxprob.inference.mcmc._metric import Metric, as_metric, check_size
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.mcmc._schedules import Schedule


class SGLDState(NamedTuple):
    """The state of a chain of `sgld`.

    Attributes:
      position: pytree, where the chain is.
      gradient: (size,), estimated there; zero if a chain begins where it is not finite.
      transitions: (), int32, made so far; schedules read it.
    """

    position: Any
    gradient: jax.Array
    transitions: jax.Array


class PSGLDState(NamedTuple):
    """The state of a chain of `psgld`.

    Attributes:
      position: pytree, where the chain is.
      gradient: (size,), estimated there; zero if a chain begins where it is not finite.
      mean_square: (size,), decaying sum of the squared gradient, which is a mean once divided by 1 - decay^transitions.
      transitions: (), int32, made so far; schedules read it.
    """

    position: Any
    gradient: jax.Array
    mean_square: jax.Array
    transitions: jax.Array


class StochasticGradientInfo(NamedTuple):
    """What happened in one transition; every field is a scalar.

    Attributes:
      step_size: of this transition.
      temperature: of the noise; 0 where a schedule leaves the noise out, and the draw is none.
      gradient_norm: Euclidean, of the gradient estimated where the move led; inf where it is not finite.
      diverging: whether the move led to where the gradient is not finite; then the chain stayed.
    """

    step_size: jax.Array
    temperature: jax.Array
    gradient_norm: jax.Array
    diverging: jax.Array


class Settings(NamedTuple):
    """What stochastic-gradient kernels are built of.

    Attributes:
      name: of the kernel, for messages.
      gradient: `(key, position) -> gradient`.
      step_size: `transitions -> ()`.
      temperature: `transitions -> ()`.
      metric: in which the chain moves.
    """

    name: str
    gradient: Callable[[core.Key, Any], Any]
    step_size: Schedule
    temperature: Schedule
    metric: Metric


class Place(NamedTuple):
    """A position as a vector, and what is needed for a move from there, in the working dtype.

    Attributes:
      vector: (size,).
      unravel: `(size,) -> position` with the shapes and dtypes of the user's pytree.
      gradient: `(key, (size,)) -> (size,)`, estimated.
      metric: in which the chain moves.
      step_size: ().
      temperature: ().
    """

    vector: jax.Array
    unravel: Callable[[jax.Array], Any]
    gradient: Callable[[core.Key, jax.Array], jax.Array]
    metric: Metric
    step_size: jax.Array
    temperature: jax.Array


def sgld(
    gradient: Callable[[core.Key, Any], Any],
    step_size: Any = 1e-3,
    inverse_mass_matrix: Any = 1.0,
    *,
    temperature: Any = 1.0,
) -> core.Algorithm:
    """Stochastic gradient Langevin dynamics.

    x' = x + e / 2 * M^-1 g + sqrt(e T) L z, with M^-1 = L L', z standard normal and g an estimate of the gradient.

    The step size e is that of Welling & Teh: the variance of the noise. On a Gaussian with variance s^2, with M = 1 and
    an exact gradient, the variance of the draws is s^2 / (1 - e / (4 s^2)); noise of variance v in the gradient makes
    it larger by the factor 1 + e v / 4. The chain is unstable from e = 4 s^2 on.

    Args:
      gradient: `(key, position) -> gradient`, unbiased: one of `minibatch_gradient`, `control_variate_gradient`,
        `full_gradient`, or a function of one's own.
      step_size: (), e; or a schedule `transitions -> ()`, such as `polynomial_schedule`.
      inverse_mass_matrix: an estimate of the posterior covariance: (size,) its diagonal, (size, size) all of it, a
        scalar, or a `Metric`.
      temperature: (), T, or a schedule; the chain samples the density to the power 1 / T, and climbs where T is 0.

    Returns:
      Algorithm whose state is an `SGLDState` and whose info is a `StochasticGradientInfo`.

    Raises:
      TypeError: if `gradient` is no function.
      ValueError: for a step size, a matrix or a temperature that cannot be one; while tracing, if the gradient is not
        like the position.

    >>> kernel = sgld(lambda key, q: -q, step_size=0.1)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> int(state.transitions), bool(info.diverging)
    (1, False)

    Source: Welling & Teh (2011), equation 4.
    """
    settings = as_settings("sgld", gradient, step_size, inverse_mass_matrix, temperature)

    def init(position: Any, key: core.Key) -> SGLDState:
        position = initial_position(settings, position)
        return SGLDState(position, _first_gradient(settings, position, key), jnp.int32(0))

    def step(key: core.Key, state: SGLDState) -> tuple[SGLDState, StochasticGradientInfo]:
        here = place(settings, state)
        gradient_key, noise_key = core.random.split(core.as_key(key, "sgld"))
        noise = core.random.normal(noise_key, here.vector.shape, here.vector.dtype)
        drift = 0.5 * here.step_size * here.metric.force(state.gradient)
        diffusion = jnp.sqrt(here.step_size * here.temperature) * noise
        moved = here.vector + here.metric.velocity(drift + diffusion)
        found = here.gradient(gradient_key, moved)
        (new, gradient), diverging = keep_finite([moved, found], [here.vector, state.gradient])
        info = StochasticGradientInfo(here.step_size, here.temperature, gradient_norm(found), diverging)
        return SGLDState(here.unravel(new), gradient, state.transitions + 1), info

    return core.Algorithm(init, step)


def psgld(
    gradient: Callable[[core.Key, Any], Any],
    step_size: Any = 1e-3,
    *,
    decay: Any = 0.99,
    damping: Any = 1e-5,
    temperature: Any = 1.0,
) -> core.Algorithm:
    """Stochastic gradient Langevin dynamics preconditioned by the size of past gradients, as RMSprop does.

    V' = a V + (1 - a) g^2,  G = 1 / (d + sqrt(V' / (1 - a^t))),  x' = x + e / 2 * G g + sqrt(e T G) z

    The term Gamma, the derivative of G, is left out, as its authors do: the bias that this makes falls with 1 - a. The
    division by 1 - a^t, which they do not have, keeps the first steps from being far too long. Gradients are those of
    the whole log density, N / n times the sum over a batch, and not means over rows.

    Args:
      gradient: `(key, position) -> gradient`, as for `sgld`.
      step_size: (), e; or a schedule `transitions -> ()`. Its unit is that of the position: on a Gaussian with standard
        deviation s in each direction G is about s.
      decay: (), a, between 0 and 1.
      damping: (), d, above zero: bounds G where gradients vanish.
      temperature: (), T, or a schedule, as for `sgld`.

    Returns:
      Algorithm whose state is a `PSGLDState` and whose info is a `StochasticGradientInfo`.

    Raises:
      TypeError: if `gradient` is no function.
      ValueError: for an argument outside its range; while tracing, if the gradient is not like the position.

    >>> kernel = psgld(lambda key, q: -q, step_size=0.1)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(info.diverging)
    False

    Source: Li et al. (2016), algorithm 1.
    """
    settings = as_settings("psgld", gradient, step_size, 1.0, temperature)
    rate = known_number("psgld", "decay", decay, lambda a: 0 < a < 1, "a number between 0 and 1")
    floor = known_number("psgld", "damping", damping, lambda d: 0 < d < jnp.inf, "a finite number above zero")

    def init(position: Any, key: core.Key) -> PSGLDState:
        position = initial_position(settings, position)
        gradient = _first_gradient(settings, position, key)
        return PSGLDState(position, gradient, jnp.zeros_like(gradient), jnp.int32(0))

    def step(key: core.Key, state: PSGLDState) -> tuple[PSGLDState, StochasticGradientInfo]:
        here = place(settings, state)
        dtype = here.vector.dtype
        gradient_key, noise_key = core.random.split(core.as_key(key, "psgld"))
        kept, transitions = rate.astype(dtype), state.transitions + 1
        squares = kept * state.mean_square + (1 - kept) * state.gradient**2
        scale = 1 / (floor.astype(dtype) + jnp.sqrt(squares / (1 - kept ** transitions.astype(dtype))))
        noise = core.random.normal(noise_key, here.vector.shape, dtype)
        moved = here.vector + 0.5 * here.step_size * scale * state.gradient
        moved = moved + jnp.sqrt(here.step_size * here.temperature * scale) * noise
        found = here.gradient(gradient_key, moved)
        (new, gradient, squares), diverging = keep_finite(
            [moved, found, squares], [here.vector, state.gradient, state.mean_square]
        )
        info = StochasticGradientInfo(here.step_size, here.temperature, gradient_norm(found), diverging)
        return PSGLDState(here.unravel(new), gradient, squares, transitions), info

    return core.Algorithm(init, step)


def as_settings(name: str, gradient: Any, step_size: Any, inverse_mass_matrix: Any, temperature: Any) -> Settings:
    """Checks what a kernel is built of."""
    if not callable(gradient):
        todo = "mcmc.full_gradient(log_density) makes one"
        raise core.bad_type(name, "gradient", gradient, "a function of a key and a position", todo)
    steps = step_size if callable(step_size) else _constant(as_step_size(step_size, name))
    if callable(temperature):
        heat = temperature
    else:
        heat = _constant(known_number(name, "temperature", temperature, lambda t: 0 <= t < jnp.inf, "0 or more"))
    return Settings(name, gradient, steps, heat, as_metric(inverse_mass_matrix, name))


def _constant(value: jax.Array) -> Schedule:
    return lambda transitions: value


def initial_position(settings: Settings, position: Any) -> Any:
    """A position as strongly typed arrays; raises a `ValueError` if the metric is one for another size."""
    check_size(settings.metric, core.size(position), settings.name)
    vector, unravel = core.ravel(position)
    return unravel(vector)


def place(settings: Settings, state: Any) -> Place:
    """What a transition from a state needs."""
    vector, unravel, gradient = _as_vector(settings, state.position)
    dtype = vector.dtype

    def now(schedule: Schedule) -> jax.Array:
        return core.as_float(schedule(state.transitions)).astype(dtype)

    metric = settings.metric.astype(dtype)
    return Place(vector, unravel, gradient, metric, now(settings.step_size), now(settings.temperature))


def _as_vector(settings: Settings, position: Any) -> tuple[jax.Array, Any, Any]:
    """A position in the working dtype, the way back, and the gradient of such vectors."""
    vector, unravel = core.ravel(position)
    low, dtype = vector.dtype, core.accumulator_dtype(vector.dtype)

    def position_of(flat: jax.Array) -> Any:
        return unravel(flat.astype(low))

    def gradient(key: core.Key, flat: jax.Array) -> jax.Array:
        position = position_of(flat)
        estimate = settings.gradient(key, position)
        core.check_same_structure(settings.name, "the gradient", estimate, position, dtypes=False)
        return core.ravel(estimate)[0].astype(dtype)

    return vector.astype(dtype), position_of, gradient


def _first_gradient(settings: Settings, position: Any, key: core.Key) -> jax.Array:
    """The gradient estimated at a position (size,), zero where it is not finite: then noise leads out."""
    vector, _, evaluate = _as_vector(settings, position)
    gradient = evaluate(core.as_key(key, settings.name), vector)
    return jnp.where(jnp.all(jnp.isfinite(gradient)), gradient, 0)


def keep_finite(new: list[jax.Array], old: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
    """The new vectors if all they hold is finite, else the old ones; and whether it was not."""
    sound = jnp.all(jnp.stack([jnp.all(jnp.isfinite(vector)) for vector in new]))
    return [jnp.where(sound, a, b) for a, b in zip(new, old, strict=True)], ~sound


def gradient_norm(gradient: jax.Array) -> jax.Array:
    """The Euclidean norm; inf where it is not a number."""
    norm = core.norm(gradient)
    return jnp.where(jnp.isnan(norm), jnp.inf, norm)
