"""What a sampler that starts at a prior needs of a posterior: its two parts, and draws from the first."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc import _parallel_tempering as paths
from jaxprob.inference.mcmc._numbers import known_vector
from jaxprob.inference.smc._population import Population, effective_size

HALVINGS = 64  # of the interval in which the next temperature lies, which may be very close to the last


def posterior_may_follow(factory: Callable[..., core.Algorithm]) -> Callable[..., Any]:
    """Lets a factory `(posterior=None, **options)` be called without any density, for a `partial` of itself.

    So that one may write `jaxprob.sample(posterior, key, algorithm=smc.tempered(particles=4096))`.
    """

    @functools.wraps(factory)
    def either(posterior: Any = None, **options: Any) -> Any:
        densities = posterior, options.get("log_prior"), options.get("log_likelihood")
        if any(density is not None for density in densities):
            return factory(posterior, **options)
        inspect.signature(factory).bind(None, **options)  # a name it does not take is told now
        return functools.partial(either, **options)

    return either


class Path(NamedTuple):
    """A path from a prior to a posterior; the log density at beta is `base + beta tilt`.

    Attributes:
      parts: `position -> (base (), tilt ())`: log prior and log likelihood, or a reference and the way from it.
      sample_prior: `key -> position`, or None where particles are given.
    """

    parts: Callable[[Any], tuple[jax.Array, jax.Array]]
    sample_prior: Callable[[core.Key], Any] | None

    def at(self, beta: jax.Array) -> core.LogDensity:
        """The log density at an inverse temperature."""

        def density(position: Any) -> jax.Array:
            base, tilt = self.parts(position)
            return paths.tempered(base, beta, tilt)

        return density

    def tilts(self, positions: Any) -> jax.Array:
        """The tilts of particles, (particle,)."""
        return jax.vmap(lambda position: self.parts(position)[1])(positions)


def as_path(
    function: str, posterior: Any, reference: Any, log_prior: Any, log_likelihood: Any, sample_prior: Any
) -> Path:
    """The path that the arguments of a sampler describe.

    Args:
      function: name of the public function that was called, for the message.
      posterior: an object that splits its log density (`models.Posterior`), or a log density, which goes with
        `reference`; None where `log_prior` and `log_likelihood` are given.

    Raises:
      TypeError: for an argument that is no function, or arguments that do not go together.
    """
    if hasattr(posterior, "split_log_density"):
        for name, value in {"reference": reference, "log_prior": log_prior, "log_likelihood": log_likelihood}.items():
            if value is not None:
                raise core.bad_type(function, name, "given with a posterior", "None, as the posterior has its own")
        prior = posterior.sample_prior if sample_prior is None else sample_prior
        metropolis.check_callable(function, sample_prior=prior)
        return Path(_both(function, posterior.split_log_density), prior)
    if hasattr(posterior, "log_density"):
        if reference is None:
            todo = "Or pass posterior.log_density with a reference to come from"
            raise core.bad_type(function, "posterior", posterior, "one with split_log_density and sample_prior", todo)
        posterior = posterior.log_density
    if posterior is not None and (log_prior is not None or log_likelihood is not None):
        raise core.bad_type(function, "posterior", "given with a prior and a likelihood", "one or the other")
    parts, bounded = paths.path(function, posterior, reference, log_prior, log_likelihood)
    if not bounded:
        raise core.bad_type(
            function, "reference", reference, "a function", "A path from 0 needs what particles come from"
        )
    if sample_prior is not None:
        metropolis.check_callable(function, sample_prior=sample_prior)
    return Path(parts, sample_prior)


def _both(function: str, split: Callable[[Any], tuple[Any, Any]]) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    def parts(position: Any) -> tuple[jax.Array, jax.Array]:
        found = []
        for name, value in zip(("log prior", "log likelihood"), split(position), strict=True):
            number = metropolis.number(function, f"the value of the {name}", value)
            found.append(number.astype(core.accumulator_dtype(number.dtype)))
        return found[0], found[1]

    return parts


def first_particles(function: str, path: Path, position: Any, particles: int, key: core.Key) -> tuple[Any, int]:
    """The particles to begin with, those given or draws from the prior, and how many they are.

    Raises:
      TypeError: if there is neither a position nor a prior to draw from.
      ValueError: for positions without one leading axis.
    """
    if position is None:
        if path.sample_prior is None:
            todo = "Give sample_prior, or positions to init"
            raise core.bad_type(function, "sample_prior", "None", "a function where init has no positions", todo)
        position = jax.vmap(path.sample_prior)(core.chain_keys(key, jnp.arange(particles)))
    numbers = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(position)}
    if len(numbers) != 1 or not (number := numbers.pop()) or number[0] < 2:
        got = "of leaves without one leading axis"
        raise core.bad_value(function, "position", got, "None, or two or more positions (particle, ...)")
    return position, number[0]


def furthest(enough: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array) -> jax.Array:
    """The largest number from `low` to `high` at which something is still true that is so at first and not later."""

    def halve(bounds: tuple[jax.Array, jax.Array], _: jax.Array) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = 0.5 * (low + high)
        near = enough(middle)
        return jnp.where(near, middle, low), jnp.where(near, high, middle)

    found, _ = scan.repeat(halve, (low, high), HALVINGS)
    return jnp.where(enough(high), high, found)


def next_temperature(tilts: jax.Array, beta: jax.Array, target: jax.Array, log_weights: Any = 0.0) -> jax.Array:
    """The next inverse temperature: where the share of effective particles is the target, or 1."""

    rest = 1 - beta
    step = furthest(lambda step: effective_share(tilts, step, log_weights) >= target, jnp.zeros_like(beta), rest)
    # Always further, by at least one number; below the smallest normal one there may be none.
    least = jnp.where(beta == 0, jnp.finfo(beta.dtype).tiny, jnp.nextafter(beta, jnp.ones_like(beta)))
    arrived = (step == rest) | ~jnp.any(jnp.isfinite(tilts))
    return jnp.where(arrived, 1, jnp.clip(beta + step, least, 1))


def effective_share(tilts: jax.Array, step: jax.Array, log_weights: Any = 0.0) -> jax.Array:
    """Effective sample size of weights times `exp(step tilts)` as a share of the finite ones; 0 if there is none."""
    logs = log_weights + tilts
    finite = jnp.isfinite(logs)
    scaled = jnp.where(finite, log_weights + step * jnp.where(finite, tilts, 0), -jnp.inf)
    return effective_size(scaled) / jnp.maximum(jnp.sum(finite), 1).astype(tilts.dtype)


def equally_weighted(particles: Any, number: int, log_scale: jax.Array) -> Population:
    """A population of weights 1 / number."""
    return Population(particles, jnp.full((number,), -math.log(number), log_scale.dtype), log_scale)


def as_ladder(function: str, inverse_temperatures: Any) -> jax.Array:
    """Inverse temperatures as an array; raises a `ValueError` unless they are a ladder, where they are known."""

    def fits(values: np.ndarray) -> bool:
        return values.size > 0 and bool((np.diff(values, prepend=0) > 0).all()) and values[-1] == 1

    return known_vector(
        function, "inverse_temperatures", inverse_temperatures, fits, "numbers above 0 that increase to 1"
    )
