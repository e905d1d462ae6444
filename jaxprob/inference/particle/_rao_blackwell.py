"""Rao-Blackwellised particle filters: part of the state is sampled, the rest is linear and normal given that.

Each particle carries the Kalman moments of the linear part, so that only the sampled part has Monte Carlo error.

Source: Doucet, de Freitas, Murphy & Russell (2000), "Rao-Blackwellised particle filtering for dynamic Bayesian
networks"; Chen & Liu (2000), "Mixture Kalman filters".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.distributions import Categorical, Distribution
from jaxprob.inference import smc
from jaxprob.inference.kalman._square_root import Moments, observe, predict, square_root
from jaxprob.inference.kalman._steps import check_observations
from jaxprob.inference.particle._filter import Filtered, moments, run
from jaxprob.inference.particle._model import Datum, Laws, by, log_prob, sample_each
from jaxprob.inference.smc._devices import as_mesh
from jaxprob.models.state_space import SwitchingLinearGaussian

NAME = "ConditionallyLinear"


@core.pytree
class ConditionallyLinear:
    """A state-space model of a sampled part u and a part x that is linear and normal given the path of u.

        u_0 ~ initial,   u_t | u_{t-1} ~ transition(u_{t-1}, t - 1),   x_0 | u_0 ~ N(m, P)
        x_t = F x_{t-1} + b + N(0, Q),   y_t = H x_t + d + N(0, R)

    Functions with parameters are `jax.tree_util.Partial`.

    Attributes:
      initial: `Distribution` of u_0.
      transition: `(u, t) -> Distribution` of u at t + 1.
      linear_initial: `(u_0) -> (m (n,), P (n, n))`.
      dynamics: `(u_{t-1}, u_t, t) -> (F (n, n), b (n,), Q (n, n))`, what leads to x_t.
      emission: `(u_t, t) -> (H (m, n), d (m,), R (m, m) or variances (m,))`.

    Raises:
      TypeError: if `initial` is no distribution, or the others are no functions.
      ValueError: if the shapes of the matrices do not fit together.
    """

    initial: Any
    transition: Any
    linear_initial: Any
    dynamics: Any
    emission: Any

    def __post_init__(self) -> None:
        if not isinstance(self.initial, Distribution):
            raise core.bad_type(NAME, "initial", self.initial, "a Distribution")
        for name in ("transition", "linear_initial", "dynamics", "emission"):
            function = getattr(self, name)
            if not callable(function):
                raise core.bad_type(NAME, name, function, "a function")
            if not isinstance(function, Partial):
                object.__setattr__(self, name, Partial(function))
        u, time = jax.eval_shape(lambda: self.initial.sample(jax.random.key(0))), jnp.int32(1)
        start = _shapes(lambda u: self.linear_initial(u), u)
        moved = _shapes(lambda u: self.dynamics(u, u, time), u)
        seen = _shapes(lambda u: self.emission(u, time), u)
        n, m = (start[0] or (1,))[0], (seen[0] or (1,))[0] if seen else 1
        wanted = (
            ("linear_initial", start, [((n,), (n, n))]),
            ("dynamics", moved, [((n, n), (n,), (n, n))]),
            ("emission", seen, [((m, n), (m,), (m, m)), ((m, n), (m,), (m,))]),
        )
        for name, shapes, allowed in wanted:
            if shapes not in allowed:
                raise core.bad_value(NAME, name, f"a function that returns shapes {shapes}", f"shapes {allowed[0]}")

    @property
    def observation_size(self) -> int:
        """m, numbers observed at a time."""
        return _shapes(lambda: self.emission(self.initial.sample(jax.random.key(0)), jnp.int32(0)))[0][0]

    def fits(self, steps: int) -> bool:
        """Whether the model spans that many observations: any number."""
        return steps >= 0


class Parts(NamedTuple):
    """The two parts of a state.

    Attributes:
      sampled: u.
      linear: x, (n,).
    """

    sampled: Any
    linear: Any


class MixtureParticle(NamedTuple):
    """A particle: the sampled part, and the normal law of the linear part given its path and the observations.

    Attributes:
      sampled: u.
      mean: (n,).
      factor: (n, n), root of the covariance.
      log_density: (), of the last observation given the path and those before.
    """

    sampled: Any
    mean: jax.Array
    factor: jax.Array
    log_density: jax.Array


def rao_blackwellised(
    key: core.Key,
    model: ConditionallyLinear | SwitchingLinearGaussian,
    ys: Any,
    *,
    particles: int = 1000,
    proposal: Any = None,
    resampler: smc.Resampler | None = None,
    missing: Any = None,
    keep: Any = None,
    chunk: int | None = None,
    devices: Any = None,
) -> Filtered:
    """A particle filter whose particles carry the moments of the linear part.

    Args:
      key: random key.
      model: a `ConditionallyLinear`, or a `SwitchingLinearGaussian`, whose regimes are sampled.
      ys: (time, m). NaN is missing, entry by entry.
      particles: how many.
      proposal: None, or `particle.guided(...)` for the sampled part: its `previous` is a particle, with fields
        `sampled`, `mean`, `factor`. Its density is taken out of the weights.
      resampler: `smc.adaptive()` by default.
      missing: booleans of the shape of `ys`, true where not observed.
      keep: as for `particle.filter`.
      chunk: as for `particle.filter`.
      devices: as for `particle.filter`.

    Returns:
      `particle.Filtered`; `mean` and `variance` have fields `sampled` and `linear`, the latter with the variance within
      particles and between them.

    Raises:
      TypeError, ValueError: as `particle.filter` does.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> one = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> model = SwitchingLinearGaussian([1.0], [[1.0]], [one])
    >>> found = rao_blackwellised(jax.random.key(0), model, jnp.array([1.0, jnp.nan, 3.0]), particles=3)
    >>> print(f"{found.log_likelihood:.3f} {found.mean.linear[-1, 0]:.3f}")  # exact: there is one path
    -3.954 2.286
    """
    name = "particle.rao_blackwellised"
    key = core.as_key(key, name)
    if isinstance(model, SwitchingLinearGaussian):
        model = _of_switching(model)
    if not isinstance(model, ConditionallyLinear):
        raise core.bad_type(name, "model", model, "a ConditionallyLinear or a SwitchingLinearGaussian")
    core.check_whole(name, particles=particles)
    values, seen = check_observations(name, model, model.observation_size, ys, missing)
    if not values.shape[0]:
        raise core.bad_value(name, "ys", "of no time", "at least one observation")
    if proposal is not None and not hasattr(proposal, "takes_missing"):
        raise core.bad_type(name, "proposal", proposal, "particle.guided(...) or None")
    laws = Laws(model.initial, Partial(_next, model), None, Partial(_nothing), Partial(_nothing))
    program = smc.FeynmanKac(
        Partial(_draw_first, model, laws, proposal),
        Partial(_weigh_first, laws, proposal),
        smc.Batched(Partial(_draw_next, model, laws, proposal)),
        Partial(_weigh_next, laws, proposal),
    )
    mesh = as_mesh(name, devices, particles)
    return run(key, program, Datum(values, seen), particles, resampler, keep, chunk, _moments, mesh)


def _next(model: ConditionallyLinear, previous: MixtureParticle, time: Any) -> Distribution:
    return model.transition(previous.sampled, time)


def _nothing(*args: Any) -> Any:
    return jnp.zeros(())


def _draw_first(model: ConditionallyLinear, laws: Laws, proposal: Any, key: core.Key, datum: Datum) -> MixtureParticle:
    like = laws.state
    data, kind = jax.random.key_data(key), jax.random.key_impl(key)

    def draw(law: Distribution) -> jax.Array:
        return law.sample(jax.random.wrap_key_data(data, impl=kind)).astype(like.dtype)

    if proposal is None:
        sampled = draw(laws.initial)
    else:
        sampled = by(proposal, datum, lambda: draw(proposal.initial(laws, datum)), lambda: draw(laws.initial))
    dtype = _dtype(datum)
    mean, covariance = (x.astype(dtype) for x in model.linear_initial(sampled))
    before = Moments(jnp.expand_dims(mean, 1), square_root(covariance))
    return _observed(model, sampled, before, jnp.int32(0), datum)


def _draw_next(
    model: ConditionallyLinear, laws: Laws, proposal: Any, key: core.Key, previous: Any, time: Any, datum: Datum
) -> MixtureParticle:
    data, kind = jax.random.key_data(key), jax.random.key_impl(key)

    def draw(law_of: Callable[[Any], Distribution]) -> jax.Array:
        return sample_each(jax.random.wrap_key_data(data, impl=kind), law_of, previous, laws.state)

    def own(one: Any) -> Distribution:
        return laws.next_state(one, time - 1)

    if proposal is None:
        sampled = draw(own)
    else:
        proposed = Partial(proposal.transition, laws, time=time, datum=datum)
        sampled = by(proposal, datum, lambda: draw(proposed), lambda: draw(own))

    def move(old: MixtureParticle, new: Any) -> MixtureParticle:
        dtype = old.mean.dtype
        matrix, offset, covariance = (x.astype(dtype) for x in model.dynamics(old.sampled, new, time))
        before = predict(Moments(jnp.expand_dims(old.mean, 1), old.factor), matrix, offset, square_root(covariance))
        return _observed(model, new, before, time, datum)

    return jax.vmap(move)(previous, sampled)


def _observed(model: ConditionallyLinear, u: Any, before: Moments, time: Any, datum: Datum) -> MixtureParticle:
    """The particle after the observation of a time."""
    dtype = before.mean.dtype
    matrix, offset, covariance = (x.astype(dtype) for x in model.emission(u, time))
    values = jnp.expand_dims(jnp.where(datum.seen, datum.values.astype(dtype) - offset, 0), 1)
    after, found = observe(before, matrix, covariance, values, datum.seen)
    log_density = -jnp.sum(found.log_scale) - 0.5 * jnp.sum(found.innovation**2)
    return MixtureParticle(u, after.mean[:, 0], after.factor, log_density)


def _weigh_first(laws: Laws, proposal: Any, particle: MixtureParticle, datum: Datum) -> jax.Array:
    if proposal is None:
        return particle.log_density

    def ratio() -> jax.Array:
        target, proposed = laws.initial, proposal.initial(laws, datum)
        gap = log_prob(target, particle.sampled) - log_prob(proposed, particle.sampled)
        return gap.astype(particle.log_density.dtype)

    return particle.log_density + by(proposal, datum, ratio, lambda: jnp.zeros_like(particle.log_density))


def _weigh_next(laws: Laws, proposal: Any, previous: Any, particle: Any, time: Any, datum: Datum) -> jax.Array:
    if proposal is None:
        return particle.log_density

    def ratio() -> jax.Array:
        target = laws.next_state(previous, time - 1)
        proposed = proposal.transition(laws, previous, time=time, datum=datum)
        gap = log_prob(target, particle.sampled) - log_prob(proposed, particle.sampled)
        return gap.astype(particle.log_density.dtype)

    return particle.log_density + by(proposal, datum, ratio, lambda: jnp.zeros_like(particle.log_density))


def _moments(population: smc.Population) -> tuple[Parts, Parts]:
    """Means and variances of both parts; the linear one's with what is left of it within particles."""
    particles = population.particles
    within = jnp.sum(particles.factor**2, 2)
    mean, spread = moments(smc.Population((particles.sampled, particles.mean, within), population.log_weights))
    return Parts(mean[0], mean[1]), Parts(spread[0], spread[1] + mean[2])


def _of_switching(model: SwitchingLinearGaussian) -> ConditionallyLinear:
    return ConditionallyLinear(
        Categorical(logits=core.safe_log(model.initial)),
        Partial(_regime, core.safe_log(model.transition)),
        Partial(_beginning, model.models),
        Partial(_entering, model.models),
        Partial(_emitting, model.models),
    )


def _regime(log_transition: jax.Array, regime: Any, time: Any) -> Distribution:
    return Categorical(logits=log_transition[regime])


def _beginning(models: Any, regime: Any) -> tuple[jax.Array, ...]:
    return tuple(getattr(models, name)[regime] for name in ("initial_mean", "initial_covariance"))


def _emitting(models: Any, regime: Any, time: Any) -> tuple[jax.Array, ...]:
    return tuple(getattr(models, name)[regime] for name in ("emission", "emission_offset", "emission_covariance"))


def _entering(models: Any, old: Any, new: Any, time: Any) -> tuple[jax.Array, ...]:
    return tuple(getattr(models, name)[new] for name in ("dynamics", "dynamics_offset", "dynamics_covariance"))


def _dtype(datum: Datum) -> Any:
    return core.accumulator_dtype(core.result_dtype(datum.values))


def _shapes(function: Callable[..., Any], *args: Any) -> tuple[tuple[int, ...], ...]:
    """Shapes of what a function returns, found without computing anything."""
    return tuple(leaf.shape for leaf in jax.tree.leaves(jax.eval_shape(function, *args)))
