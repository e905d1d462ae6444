"""Samplers of un-normalised densities that are learnt: one shape for all, their weighted draws, and their training.

A learnt sampler draws a path that ends in a position; the ratio of an un-normalised law of paths, whose end has the
target's law, to the law of the draws is the weight. The mean weight is therefore the normalising constant, exactly and
for any parameters; training makes the weights equal.

Source: Richter & Berner (2024), "Improved sampling via learned diffusions", for the view of all of them as ratios of
laws of paths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxprob import core, scan
from jaxprob.inference.smc._population import Population, effective_size, total_mass
from jaxprob.inference.smc._target import furthest
from jaxprob.inference.vi._bounds import normalized_weights
from jaxprob.inference.vi._objective import Objective


class WeightedDraws(NamedTuple):
    """Draws of a learnt sampler, each with its weight.

    Attributes:
      positions: pytree (draw, ...).
      log_weights: (draw,); the mean of their exponentials estimates the normalising constant without bias. -inf for a
        draw that is impossible under the target.
    """

    positions: Any
    log_weights: jax.Array

    @property
    def effective_sample_size(self) -> jax.Array:
        """`(sum w)^2 / sum w^2`, (), as a share of the draws; 0 without any mass."""
        return effective_size(self.log_weights) / self.log_weights.shape[-1]

    @property
    def log_evidence(self) -> jax.Array:
        """Log of the mean weight, (): an estimate of the log normalising constant; -inf without any mass."""
        number = jnp.asarray(self.log_weights.shape[-1], self.log_weights.dtype)
        return total_mass(self.log_weights) - jnp.log(number)

    @property
    def log_evidence_error(self) -> jax.Array:
        """Standard error of `log_evidence`, (), by the spread of the weights; NaN for a single draw or no mass.

        Where few draws carry the weight it is too small, as is the evidence.
        """
        number, share = self.log_weights.shape[-1], self.effective_sample_size
        known = (share > 0) & (number > 1)
        # A share is rounded, and may be above 1 where all weights are equal.
        spread = jnp.maximum(1 / jnp.where(known, share, 1) - 1, 0)
        return jnp.where(known, jnp.sqrt(spread / max(number - 1, 1)), jnp.nan)

    @property
    def population(self) -> Population:
        """The draws as weighted particles, which `smc.resample` and the other verbs of populations take."""
        number = jnp.asarray(self.log_weights.shape[-1], self.log_weights.dtype)
        return Population(self.positions, self.log_weights - jnp.log(number))


@core.pytree
class NeuralSampler:
    """A learnt sampler: a pytree of three pure functions.

    Attributes:
      init: `key -> params`.
      loss: `(params, batch, key) -> (scalar, metrics)`, so that `learning.Task(sampler.init, sampler.loss, optimizer)`
        trains it. `batch` is None: the loss draws its own paths. Where `buffer` is positive it may be `WeightedDraws`,
        whose age does not matter. Metrics: "elbo", the mean log weight, "log_evidence", "effective_sample_size" as a
        share, and "not_finite", the share of draws whose weight is no positive number.
      draw: `(key, params, num) -> WeightedDraws`; `num` is a whole number. Compiles itself, and works inside `jit`.
      buffer: draws that `sampler_training` keeps between steps; 0 for a loss that draws its own.
      every: steps after which those are drawn anew.
    """

    init: Callable[[core.Key], Any]
    loss: Callable[[Any, Any, core.Key], tuple[jax.Array, dict[str, jax.Array]]]
    draw: Callable[[core.Key, Any, int], WeightedDraws]
    buffer: int = core.static(default=0)
    every: int = core.static(default=1)

    @property
    def objective(self) -> Objective:
        """The sampler for `vi.ascent` and `vi.fit`, whose "elbo" is minus the loss."""
        return Objective(self.init, self.loss)


def check_scalar(function: str, log_density: Callable[[Any], Any], position: Any) -> None:
    """Raises a `ValueError` unless a log density is one number at positions of such shapes."""
    value = jax.eval_shape(log_density, position)
    if not isinstance(value, jax.ShapeDtypeStruct) or value.shape:
        got = f"of shape {value.shape}" if isinstance(value, jax.ShapeDtypeStruct) else core.describe(value)
        todo = "Sum over everything the density is a product of"
        raise core.bad_value(function, "the value of log_density", got, "one number", todo)


def drawing(name: str, path: Callable[..., Any], *leaves: Any) -> Callable[[core.Key, Any, int], WeightedDraws]:
    """The `draw` of a sampler from `path(*leaves, params, key) -> (position, log weight)` of one draw.

    Args:
      name: of the public factory, for messages.
      path: hashable.
      leaves: pytrees.
    """
    return Partial(core.Bound(_draw, name, path), *leaves)


def _draw(name: str, path: Any, *arguments: Any) -> WeightedDraws:
    *leaves, key, params, num = arguments
    core.check_whole(f"{name}.draw", num=num)
    return _draws(path, int(num), tuple(leaves), params, core.as_key(key, f"{name}.draw"))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draws(path: Any, num: int, leaves: tuple[Any, ...], params: Any, key: core.Key) -> WeightedDraws:
    keys = core.chain_keys(key, jnp.arange(num))
    return WeightedDraws(*jax.vmap(lambda key: path(*leaves, params, key))(keys))


def metrics_of(log_weights: jax.Array) -> dict[str, jax.Array]:
    """What is told of the draws (draw,) of a step, without gradient."""
    log_weights = jax.lax.stop_gradient(log_weights)
    draws = WeightedDraws(None, log_weights)
    return {
        "elbo": jnp.mean(log_weights),
        "log_evidence": draws.log_evidence,
        "effective_sample_size": draws.effective_sample_size,
        "not_finite": jnp.mean((~jnp.isfinite(log_weights)).astype(log_weights.dtype)),
    }


def flattened(log_weights: jax.Array, least: float) -> jax.Array:
    """Weights w^b (draw,) divided by their sum, without gradient, for the largest b up to 1 that leaves enough of them.

    They stand for the law between that of the draws and the target on the geometric path, as a step of annealing does.
    Draws whose weight is no positive number have none.

    Args:
      log_weights: (draw,).
      least: effective sample size to be left, as a share of the draws that have a weight.

    Source: Del Moral, Doucet & Jasra (2006), for the path; Blessing et al. (2025), "Trust region constrained measure
    transport in path space", for its use in training.
    """
    log_weights = jax.lax.stop_gradient(log_weights)
    finite = jnp.isfinite(log_weights)
    known = jnp.where(finite, log_weights, 0)
    number = jnp.sum(finite.astype(known.dtype))

    def at(power: jax.Array) -> jax.Array:
        return jnp.where(finite, power * known, -jnp.inf)

    zero = jnp.zeros((), known.dtype)
    power = furthest(lambda power: effective_size(at(power)) >= least * number, zero, zero + 1)
    return normalized_weights(at(power))


def log_variance(log_weights: jax.Array) -> jax.Array:
    """The variance of log weights, (), of draws that are held fixed.

    Source: Richter, Boustati, Nüsken, Ruiz & Akyildiz (2020), "VarGrad".
    """
    return jnp.var(log_weights, ddof=1)


class SamplerTrainingState(NamedTuple):
    """The state of the training of a learnt sampler.

    Attributes:
      position: pytree, the parameters.
      optimizer_state: of the optimiser.
      buffer: `WeightedDraws` that the loss uses until they are drawn anew; None for a loss that draws its own.
      steps: (), int32, taken.
    """

    position: Any
    optimizer_state: Any
    buffer: WeightedDraws | None
    steps: jax.Array


class SamplerTrainingInfo(NamedTuple):
    """What a step of training tells; every field is a scalar.

    Attributes:
      loss: before the step.
      elbo: mean log weight of the draws that were used.
      log_evidence: by these draws.
      effective_sample_size: of these draws, as a share.
      not_finite: share of them whose weight is no positive number.
      gradient_norm: of the loss.
      finite: bool, whether loss and gradient are; where they are not the parameters stay.
    """

    loss: jax.Array
    elbo: jax.Array
    log_evidence: jax.Array
    effective_sample_size: jax.Array
    not_finite: jax.Array
    gradient_norm: jax.Array
    finite: jax.Array


def sampler_training(sampler: NeuralSampler, optimizer: optax.GradientTransformation | None = None) -> core.Algorithm:
    """The training of a learnt sampler as an `Algorithm`, its buffer of draws a part of the state.

    So `runtime.run` checkpoints and resumes it, buffer included.

    Args:
      sampler: such as `masked_sampler(...)`.
      optimizer: of optax; Adam with a rate of 1e-3 by default.

    Returns:
      `Algorithm(init, step)`: `init(params, key)` takes parameters such as `sampler.init(key)`; states are
      `SamplerTrainingState` and `SamplerTrainingInfo`.

    Raises:
      TypeError: if `sampler` or `optimizer` is none.

    >>> from jaxprob.inference.diffusion import denoising_diffusion_sampler
    >>> sampler = denoising_diffusion_sampler(lambda x: -0.5 * x**2, initial=jnp.zeros(()), steps=4)
    >>> init, step = sampler_training(sampler)
    >>> state, info = step(jax.random.key(0), init(sampler.init(jax.random.key(1)), jax.random.key(2)))
    >>> info.finite.item()
    True
    """
    if not isinstance(sampler, NeuralSampler):
        todo = "Such as masked_sampler(log_density, vocabulary, sites)"
        raise core.bad_type("sampler_training", "sampler", sampler, "a learnt sampler", todo)
    optimizer = _adam() if optimizer is None else optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        todo = "Such as optax.adam(1e-3)"
        raise core.bad_type("sampler_training", "optimizer", optimizer, "an optax optimiser", todo)
    return core.Algorithm(
        Partial(core.Bound(_init_training, optimizer), sampler), Partial(core.Bound(_step_training, optimizer), sampler)
    )


@functools.cache
def _adam(steps: int | None = None) -> optax.GradientTransformation:
    """One object for each schedule, since two of optax's are never equal and would each compile a program."""
    return optax.adam(1e-3 if steps is None else optax.cosine_decay_schedule(1e-3, steps))


def _init_training(
    optimizer: optax.GradientTransformation, sampler: NeuralSampler, params: Any, key: core.Key
) -> SamplerTrainingState:
    params = jax.tree.map(jnp.asarray, params)
    with jax.numpy_dtype_promotion("standard"):
        optimizer_state = optimizer.init(params)
    buffer = sampler.draw(core.as_key(key, "sampler_training"), params, sampler.buffer) if sampler.buffer else None
    return SamplerTrainingState(params, optimizer_state, buffer, jnp.zeros((), jnp.int32))


def _step_training(
    optimizer: optax.GradientTransformation, sampler: NeuralSampler, key: core.Key, state: SamplerTrainingState
) -> tuple[SamplerTrainingState, SamplerTrainingInfo]:
    key = core.as_key(key, "sampler_training")
    params, buffer = state.position, state.buffer
    if sampler.buffer:
        # The first buffer is drawn by init.
        old = (state.steps > 0) & (state.steps % sampler.every == 0)
        data, implementation = jax.random.key_data(core.fold(key, 0)), jax.random.key_impl(key)

        def anew(data: jax.Array) -> WeightedDraws:
            return sampler.draw(jax.random.wrap_key_data(data, impl=implementation), params, sampler.buffer)

        buffer = jax.lax.cond(old, anew, lambda _: buffer, data)
    (value, metrics), gradient = jax.value_and_grad(sampler.loss, has_aux=True)(params, buffer, core.fold(key, 1))
    norm = core.norm(gradient)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)

    def move(_: None) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):
            updates, optimizer_state = optimizer.update(gradient, state.optimizer_state, params)
            return optax.apply_updates(params, updates), optimizer_state

    params, optimizer_state = jax.lax.cond(finite, move, lambda _: (params, state.optimizer_state), None)
    info = SamplerTrainingInfo(loss=value, gradient_norm=norm, finite=finite, **metrics)
    return SamplerTrainingState(params, optimizer_state, buffer, state.steps + 1), info


class SamplerFit(NamedTuple):
    """A learnt sampler that was trained.

    Attributes:
      params: the parameters, for `sampler.draw`.
      info: `SamplerTrainingInfo` of each step (steps,).
      not_finite: (), int32, steps whose loss or gradient was not finite and that moved nothing.
    """

    params: Any
    info: SamplerTrainingInfo
    not_finite: jax.Array


def fit_sampler(
    sampler: NeuralSampler,
    key: core.Key,
    *,
    steps: int = 2000,
    optimizer: optax.GradientTransformation | None = None,
) -> SamplerFit:
    """Trains a learnt sampler for a number of steps.

    Args:
      sampler: such as `masked_sampler(...)`.
      key: random key.
      steps: of the optimiser.
      optimizer: of optax; by default Adam whose rate falls from 1e-3 to 0 along a cosine.

    Returns:
      a `SamplerFit`. May be called inside `jit`, where nothing is said of a start without mass but `not_finite`.

    Raises:
      ValueError: for steps below 1, or if the target is not finite at any draw of the start, or is NaN at one.

    >>> from jaxprob.inference.diffusion import masked_sampler
    >>> sampler = masked_sampler(lambda x: jnp.where(x.sum() == 2, 2.0, 0.0), 2, 2)
    >>> found = fit_sampler(sampler, jax.random.key(0), steps=100, optimizer=optax.adam(1e-2))
    >>> draws = sampler.draw(jax.random.key(1), found.params, 1000)
    >>> abs(float(draws.log_evidence - jnp.log(3 + jnp.exp(2.0)))) < 0.05
    True
    """
    core.check_whole("fit_sampler", steps=steps)
    key = core.as_key(key, "fit_sampler")
    algorithm = sampler_training(sampler, _adam(int(steps)) if optimizer is None else optimizer)
    params = sampler.init(core.fold(key, 0))
    _check_start(sampler, params, core.fold(key, 1))
    return _fit(int(steps), algorithm.init, algorithm.step, params, core.fold(key, 2))


def _check_start(sampler: NeuralSampler, params: Any, key: core.Key) -> None:
    """Raises a `ValueError` if it is known, outside of `jit`, that the target is of no use where draws start."""
    log_weights = sampler.draw(key, params, max(sampler.buffer, 64)).log_weights
    if isinstance(log_weights, jax.core.Tracer):
        return
    number, todo = log_weights.size, "Check the density, or pass another initial to a sampler that has one"
    unknown, found = int(jnp.sum(jnp.isnan(log_weights))), int(jnp.sum(jnp.isfinite(log_weights)))
    if unknown or not found:
        got = f"NaN at {unknown}" if unknown else "not finite at any"
        raise core.bad_value("fit_sampler", "log_density", f"{got} of {number} draws of the start", "numbers", todo)


@functools.partial(jax.jit, static_argnums=0)
def _fit(steps: int, init: Any, step: Any, params: Any, key: core.Key) -> SamplerFit:
    def once(state: SamplerTrainingState, index: jax.Array) -> Any:
        return step(core.fold(key, 1, index), state)

    state, info = scan.bounded(once, init(params, core.fold(key, 0)), steps, steps)
    return SamplerFit(state.position, info, jnp.sum((~info.finite).astype(jnp.int32)))
