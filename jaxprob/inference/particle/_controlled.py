"""Controlled sequential Monte Carlo: particles are steered by functions that look ahead, learnt from runs before.

A twisting function `psi_t(x) = exp(-(x' A x + b' x + c))` stands for the density of all observations from time t on.
Where transitions are normal so are the twisted ones, and what is taken back from the weights has a closed form. Going
back in time, log psi_t is regressed on log G_t + log M_{t+1} psi_{t+1} over the particles of the run before. The
likelihood is unbiased whatever psi is, since it is fixed before the last run.

Source: Heng, Bishop, Deligiannidis & Doucet (2020), "Controlled sequential Monte Carlo", algorithms 2 and 3.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprob import core, scan
from jaxprob.distributions import Distribution, Independent, MultivariateNormal, Normal
from jaxprob.inference import smc
from jaxprob.inference.kalman import _conditional as conditional
from jaxprob.inference.particle._filter import Filtered, moments
from jaxprob.inference.particle._model import Datum, Laws, Model, as_data, laws_of

NAME = "particle.controlled"


class Twisting(NamedTuple):
    """`log psi(x) = -(z' A z + b' z + c)` with z = x - centre; or of all times, on a leading axis.

    Attributes:
      centre: (n,).
      quadratic: A, (n, n), symmetric positive semi-definite.
      linear: b, (n,).
      constant: c, ().
    """

    centre: jax.Array
    quadratic: jax.Array
    linear: jax.Array
    constant: jax.Array


class Steered(NamedTuple):
    """A particle and what it has been weighted by in advance.

    Attributes:
      state: (n,).
      ahead: (), log of the mean of the next twisting function.
    """

    state: jax.Array
    ahead: jax.Array


def controlled(
    key: core.Key,
    model: Model,
    ys: Any,
    *,
    particles: int = 1000,
    iterations: int = 3,
    resampler: smc.Resampler | None = None,
    missing: Any = None,
) -> Filtered:
    """A particle filter steered by learnt twisting functions: for likelihoods of low variance.

    Args:
      key: random key.
      model: a `StateSpaceModel` or `LinearGaussian` whose state is () or (n,), with normal laws of the states.
      ys: (time, *observation_shape). NaN is missing.
      particles: how many, in each run.
      iterations: how many runs the functions are learnt from; the first is a bootstrap filter. With 0 it is the result.
      resampler: `smc.adaptive()` by default.
      missing: booleans of the shape of `ys`, or (time,), true where not observed.

    Returns:
      `particle.Filtered` of the last run. `mean` and `variance` are those of the filtering laws, for which the weights
      are turned back; `kept` is the twisting functions, each for the observations from its time on.

    Raises:
      ValueError: if laws are not normal, and as `particle.filter` does.

    >>> from jaxprob.models.state_space import LinearGaussian
    >>> walk = LinearGaussian(jnp.zeros(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.eye(1), jnp.ones(1))
    >>> found = controlled(jax.random.key(0), walk, jnp.array([1.0, jnp.nan, 3.0]), particles=100)
    >>> print(f"{found.log_likelihood:.3f}")  # exact, as log psi is quadratic
    -3.954
    """
    key = core.as_key(key, NAME)
    core.check_whole(NAME, particles=particles)
    core.check_whole(NAME, 0, iterations=iterations)
    data = as_data(NAME, model, ys, missing)
    return _controlled(key, _real(model), data, core.as_partial(resampler), particles, iterations)


@core.pytree
class Twisted:
    """Twisting functions in the place of a proposal; of `twisted`."""

    iterations: int = core.static()

    def run(self, key: core.Key, model: Model, ys: Any, particles: int, resampler: Any) -> smc.Run:
        """The last run of `controlled`, with a key or keys (time,); its log likelihood is that of the observations."""
        data = ys if isinstance(ys, Datum) else as_data(NAME, model, ys)
        return _steered(key, _real(model), data, resampler, particles, self.iterations, None)[0]


def twisted(iterations: int = 3) -> Twisted:
    """A `proposal` for `particle.marginal_metropolis`, whose estimates of likelihoods are then `particle.controlled`'s.

    Functions are learnt anew for each parameter, of runs by the random numbers of its estimate. That is exact, as an
    estimate is unbiased whatever they are; it costs `iterations + 1` filters and as many regressions, and pays where a
    filter by the laws of the model would need many times the particles for a standard deviation near one.

    Args:
      iterations: how many runs the functions are learnt from, as for `particle.controlled`.

    Raises:
      ValueError: if it is not a whole number, 1 or more.

    >>> twisted(2).iterations
    2

    Source: Heng, Bishop, Deligiannidis & Doucet (2020).
    """
    core.check_whole("particle.twisted", iterations=iterations)
    return Twisted(iterations)


def _real(model: Model) -> Laws:
    """The laws of a model whose states are real."""
    laws = laws_of(NAME, model)
    if len(laws.state.shape) > 1 or not jnp.issubdtype(laws.state.dtype, jnp.floating):
        raise core.bad_value(NAME, "model", f"one of states {laws.state}", "real states of shape () or (n,)")
    return laws


@functools.partial(jax.jit, static_argnums=(4, 5))
def _controlled(key: core.Key, laws: Laws, data: Datum, resampler: Any, particles: int, iterations: int) -> Filtered:
    times = data.seen.shape[0]
    found, twisting = _steered(key, laws, data, resampler, particles, iterations, _look)
    (mean, variance), totals = found.kept
    population = found.state.population
    state = population.particles.state.reshape(particles, *laws.state.shape)
    return Filtered(
        mean.reshape(times, *laws.state.shape),
        variance.reshape(times, *laws.state.shape),
        totals,
        found.info.effective_sample_size,
        found.failed_at,
        dataclasses.replace(population, particles=state),
        kept=twisting,
    )


def _steered(
    key: core.Key, laws: Laws, data: Datum, resampler: Any, particles: int, iterations: int, look: Any
) -> tuple[smc.Run, Twisting]:
    """The last run, which keeps what it is told to look at, and the functions that it is steered by."""
    times, size = data.seen.shape[0], max(laws.state.size, 1)
    dtype = core.accumulator_dtype(core.result_dtype(laws.state))
    program = smc.FeynmanKac(
        Partial(_draw_first, laws),
        Partial(_weigh_first, laws),
        smc.Batched(Partial(_draw_next, laws)),
        Partial(_weigh_next, laws),
    )
    nothing = Twisting(*(jnp.zeros((times, *shape), dtype) for shape in _shapes(size)))

    def run(key: core.Key, twisting: Twisting, look: Any) -> smc.Run:
        after = jax.tree.map(lambda leaf: jnp.concatenate([leaf[1:], jnp.zeros_like(leaf[:1])]), twisting)
        return smc.run(key, program, (data, twisting, after), particles, resampler=resampler, keep=look)

    def learn(twisting: Twisting, index: jax.Array) -> Twisting:
        found = run(_folded(key, index), twisting, lambda population: population.particles.state)
        return _regress(laws, data, found.kept)

    twisting = scan.repeat(learn, nothing, iterations)
    return run(_folded(key, iterations), twisting, look), twisting


def _folded(key: core.Key, index: Any) -> core.Key:
    """A key, or each of keys (time,), with an index folded in."""
    return jax.vmap(lambda one: core.fold(one, index))(key) if key.ndim else core.fold(key, index)


def _look(population: smc.Population) -> Any:
    """Moments of the filtering law and the log likelihood so far: what was weighted in advance is taken back."""
    particles = population.particles
    plain = smc.Population(particles.state, population.log_weights - particles.ahead, population.log_scale)
    return moments(plain), plain.log_evidence


def _shapes(size: int) -> tuple[tuple[int, ...], ...]:
    """Of the entries of a `Twisting`."""
    return (size,), (size, size), (size,), ()


def log_twisting(twisting: Twisting, x: jax.Array) -> jax.Array:
    """log psi (), at a state (n,)."""
    z = x - twisting.centre
    return -(jnp.sum(z * core.matvec(twisting.quadratic, z)) + jnp.sum(twisting.linear * z) + twisting.constant)


def _tilted(law: Distribution, twisting: Twisting) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean (n,) and a root (n, n) of the normal law times psi, and log of the mean of psi under the law.

    With a root L of the covariance P, P' = L K^-1 L' where K = I + 2 L' A L: nothing singular is inverted.
    """
    base = law.base if isinstance(law, Independent) else law
    if not isinstance(base, Normal | MultivariateNormal):
        raise core.bad_value(NAME, "model", f"one with a {type(base).__name__} law of the state", "normal ones")
    mean, spread = conditional.moments(NAME, "transition", law, twisting.centre.dtype)
    root = jnp.diag(core.safe_sqrt(spread)) if spread.ndim == 1 else conditional.root_of(spread)
    z = mean - twisting.centre
    slope = 2 * core.matvec(twisting.quadratic, z) + twisting.linear
    inner = jnp.eye(z.shape[0], dtype=z.dtype) + 2 * core.matmul(root.T, core.matmul(twisting.quadratic, root))
    lower = core.cholesky(core.symmetrize(inner))
    turned = core.solve_triangular(lower, root.T).T  # L C^-T, a root of P'
    along = core.matvec(turned.T, slope)
    new_mean = mean - core.matvec(turned, along)
    log_mean = log_twisting(twisting, mean) + 0.5 * jnp.sum(along**2) - jnp.sum(jnp.log(jnp.diagonal(lower)))
    return new_mean, turned, log_mean


def _as_state(laws: Laws, x: jax.Array) -> jax.Array:
    return x.reshape(laws.state.shape).astype(laws.state.dtype)


def _ahead(laws: Laws, x: jax.Array, time: Any, after: Twisting) -> jax.Array:
    return _tilted(laws.next_state(_as_state(laws, x), time), after)[2]


def _draw_first(laws: Laws, key: core.Key, datum: Any) -> Steered:
    _, twisting, after = datum
    mean, root, _ = _tilted(laws.initial, twisting)
    x = mean + core.matvec(root, core.random.normal(key, mean.shape, mean.dtype))
    return Steered(x, _ahead(laws, x, 0, after))


def _weigh_first(laws: Laws, particle: Steered, datum: Any) -> jax.Array:
    now, twisting, _ = datum
    seen = laws.log_observation(_as_state(laws, particle.state), 0, now).astype(particle.state.dtype)
    normalizer = _tilted(laws.initial, twisting)[2]
    return seen + normalizer + particle.ahead - log_twisting(twisting, particle.state)


def _draw_next(laws: Laws, key: core.Key, previous: Steered, time: Any, datum: Any) -> Steered:
    _, twisting, after = datum
    noise = core.random.normal(key, previous.state.shape, previous.state.dtype)

    def one(old: jax.Array, noise: jax.Array) -> Steered:
        mean, root, _ = _tilted(laws.next_state(_as_state(laws, old), time - 1), twisting)
        x = mean + core.matvec(root, noise)
        return Steered(x, _ahead(laws, x, time, after))

    return jax.vmap(one)(previous.state, noise)


def _weigh_next(laws: Laws, previous: Steered, particle: Steered, time: Any, datum: Any) -> jax.Array:
    now, twisting, _ = datum
    seen = laws.log_observation(_as_state(laws, particle.state), time, now).astype(particle.state.dtype)
    return seen + particle.ahead - log_twisting(twisting, particle.state)


def _regress(laws: Laws, data: Datum, states: jax.Array) -> Twisting:
    """Twisting functions of all times by regression over particles (time, particle, n), from the last time back."""
    times, _, size = states.shape
    zero = Twisting(*(jnp.zeros(shape, states.dtype) for shape in _shapes(size)))

    def back(after: Twisting, now: Any) -> tuple[Twisting, Twisting]:
        time, datum, xs = now

        def target(x: jax.Array) -> jax.Array:
            seen = laws.log_observation(_as_state(laws, x), time, datum).astype(x.dtype)
            return seen + _ahead(laws, x, time, after)

        twisting = _fit(xs, jax.vmap(target)(xs))
        return twisting, twisting

    return scan.scan(back, zero, (jnp.arange(times), data, states), reverse=True)[1]


def _fit(xs: jax.Array, targets: jax.Array) -> Twisting:
    """A concave quadratic through targets (particle,) at xs (particle, n), by least squares."""
    number, size = xs.shape
    centre = jnp.mean(xs, 0)
    spread = jnp.sqrt(jnp.mean((xs - jnp.expand_dims(centre, 0)) ** 2, 0))
    scale = jnp.where(spread > 0, spread, 1)
    z = (xs - jnp.expand_dims(centre, 0)) / jnp.expand_dims(scale, 0)
    rows, columns = jnp.tril_indices(size)
    features = jnp.concatenate([z[:, rows] * z[:, columns], z, jnp.ones((number, 1), xs.dtype)], 1)
    known = jnp.isfinite(targets)
    level = jnp.sum(jnp.where(known, targets, 0)) / jnp.maximum(jnp.sum(known), 1).astype(xs.dtype)
    features = jnp.where(jnp.expand_dims(known, 1), features, 0)
    values = jnp.where(known, targets - level, 0)
    count = features.shape[1]
    gram = core.matmul(features.T, features) / number
    # A little towards zero, for directions in which particles do not differ.
    gram = gram + 16 * jnp.finfo(xs.dtype).eps * jnp.eye(count, dtype=xs.dtype) * (1 + jnp.trace(gram))
    solved = core.cholesky_solve(core.cholesky(gram), core.matvec(features.T, values) / number, vector=True)
    pairs = rows.shape[0]
    half = jnp.zeros((size, size), xs.dtype).at[rows, columns].set(-solved[:pairs])
    eigenvalues, vectors = jnp.linalg.eigh(core.symmetrize(half))
    # A function that grows without bound has no mean under the transitions.
    concave = core.matmul(vectors * jnp.expand_dims(jnp.maximum(eigenvalues, 0), 0), vectors.T)
    quadratic = concave / (jnp.expand_dims(scale, 0) * jnp.expand_dims(scale, 1))
    return Twisting(centre, core.symmetrize(quadratic), -solved[pairs:-1] / scale, -solved[-1] - level)
