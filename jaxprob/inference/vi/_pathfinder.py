"""Pathfinder: the best of the Gaussians that L-BFGS passes on its way to a mode, from several starts.

Each iterate has an estimate of the inverse Hessian, and with it a Gaussian whose evidence lower bound a few draws
estimate. The best lies on the way and need not be at a mode, where there may be little mass or none. The walk and the
choice are one loop: nothing of a path is kept but its best Gaussian.

Source: Zhang, Carpenter, Gelman & Vehtari (2022), "Pathfinder: parallel quasi-Newton variational inference".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._hamiltonian import Flat, flatten, to_vector
from jaxprob.inference.smc import multinomial
from jaxprob.inference.vi import _lbfgs as lbfgs
from jaxprob.inference.vi._quasi_newton_metric import QuasiNewtonMetric
from jaxprob.inference.vi._start import as_target, check_start

STARTS = 100  # how often a start without density is drawn again
ARRIVED = 1e-3  # rise of the log density still to be expected at what counts as a mode
RADIUS = 2.0  # of the cube around a position in which further paths start, as in Stan


@core.pytree
class Pathfinder:
    """A Gaussian approximation with a covariance of low rank, and draws that several of them are weighted to.

    Attributes:
      mean: pytree, of the best path's Gaussian.
      inverse_mass_matrix: a `QuasiNewtonMetric` that holds the factor of its covariance. Kernels take it as their
        `inverse_mass_matrix`.
      elbo: (), its evidence lower bound, estimated by as many draws as were asked for: at most the log of the log
        density's normalising constant, and lower by the Kullback-Leibler divergence from the Gaussian to the target.
        -inf if no path found anything.
      path_elbo: (path,), that of each path.
      draws: pytree (draw, ...), positions drawn from the Gaussians of all paths and resampled by their importance.
      ess: (), effective size of the weighted draws of all paths. If it is a small part of their number, the
        approximation is poor, and `draws` repeats a few.
      converged: (), bool, whether the best path ended at a mode; its Gaussian may be good where it did not.
    """

    mean: Any
    inverse_mass_matrix: QuasiNewtonMetric
    elbo: jax.Array
    path_elbo: jax.Array
    draws: Any
    ess: jax.Array
    converged: jax.Array

    def sample(self, key: core.Key) -> Any:
        """One draw of the best path's Gaussian, a position."""
        mean, unravel = to_vector(self.mean)
        noise = core.random.normal(core.as_key(key, "sample"), mean.shape, mean.dtype)
        return unravel(mean + self.inverse_mass_matrix.velocity(noise))

    def log_prob(self, position: Any) -> jax.Array:
        """Log density of the best path's Gaussian at a position, ()."""
        core.check_same_structure("log_prob", "position", position, self.mean, dtypes=False)
        dtype = self.inverse_mass_matrix.factor.dtype
        mean, vector = (core.ravel(tree)[0].astype(dtype) for tree in (self.mean, position))
        return _log_prob(_Gaussian(mean, self.inverse_mass_matrix), vector)

    def initial(self, key: core.Key) -> Any:
        """One of `draws`: where a chain of the log density starts (one of a posterior: `initial="pathfinder"`)."""
        number = jax.tree.leaves(self.draws)[0].shape[0]
        index = core.random.randint(core.as_key(key, "initial"), (), 0, number)
        return jax.tree.map(lambda leaf: leaf[index], self.draws)


class _Gaussian(NamedTuple):
    mean: jax.Array  # (size,)
    metric: QuasiNewtonMetric


class _Path(NamedTuple):
    """The carry of a path."""

    walk: lbfgs.Walk
    best: _Gaussian
    elbo: jax.Array  # (), of the best


def pathfinder(
    log_density: Any,
    initial: Any = None,
    key: core.Key | None = None,
    *,
    num_paths: int = 4,
    num_draws: int = 1000,
    elbo_draws: int = 25,
    memory: int = 6,
    max_steps: int = 200,
    tolerance: Any = 1e-6,
) -> Pathfinder:
    """Quasi-Newton variational inference from several starts.

    A path costs some 1.2 gradients and `elbo_draws` densities for each of its iterations, and memory of the order
    `memory * size`; the paths run side by side. Of each path's Gaussian `num_draws` draws are weighted against the
    mixture of all of them, and weights are truncated at their mean times the root of their number (Ionides 2008; no
    Pareto tail is fitted).

    Args:
      log_density: `position -> scalar` on unconstrained positions, or a posterior.
      initial: a position, from which one path starts and the others nearby, uniform on (-2, 2) around it; or a function
        `key -> position`, called for each path; by default the posterior's own. A start without a finite density is
        drawn again, up to 100 times.
      key: random key.
      num_paths: starts.
      num_draws: of the result, and of each path's Gaussian.
      elbo_draws: for the evidence lower bound of one Gaussian. Draws without a finite density count as outside of the
        Gaussian, which is cut off there.
      memory: moves that make the inverse Hessian: its rank is that of a diagonal plus twice as many. Wide
        directions across the scalars come out too narrow, unless moves are several times as many as scalars.
      max_steps: iterations of a path at the most.
      tolerance: (), rise of the log density still to be expected, below which a path is over.

    Returns:
      a `Pathfinder`. If no path found a finite density, which is said at once unless it is traced, `elbo` is -inf.

    Raises:
      TypeError: if `log_density` is neither a function nor a posterior, or the key is none.
      ValueError: for no `initial` where one is needed, one around which no log density is finite, or a count below 1.

    >>> result = pathfinder(lambda q: -0.5 * ((q - 1) ** 2).sum(), jnp.zeros(2), jax.random.key(0))
    >>> [round(x, 3) for x in result.mean.tolist()], bool(result.converged), round(float(result.elbo), 2)
    ([1.0, 1.0], True, 1.84)

    Source: Zhang et al. (2022), algorithms 1 to 4; the mixture is the balance heuristic of Veach & Guibas (1995).
    """
    name = "pathfinder"
    target, position, draw = as_target(log_density, initial, name)
    counts = {"num_paths": num_paths, "num_draws": num_draws, "elbo_draws": elbo_draws, "memory": memory}
    for argument, count in (counts | {"max_steps": max_steps}).items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise core.bad_value(name, argument, count, "an integer of at least 1")
    key = core.as_key(key, name)
    like = position if draw is None else jax.eval_shape(draw, key)
    flat = flatten(target, jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), jnp.result_type(leaf)), like))
    tolerance = core.as_float(tolerance).astype(flat.dtype)

    indices = jnp.arange(num_paths, dtype=jnp.int32)
    keys = jax.vmap(lambda index: core.fold(key, 0, index))(indices)
    starts = jax.vmap(lambda own, index: _find_start(flat, core.fold(own, 0), index, position, draw))(keys, indices)
    check_start(jax.vmap(flat.evaluate)(starts)[0], name, f" ({num_paths} paths, {STARTS} starts drawn for each)")
    paths = jax.vmap(
        lambda own, start: _follow(flat, core.fold(own, 1), start, elbo_draws, memory, max_steps, tolerance)
    )(keys, starts)
    draws, ess, elbo = _resample(flat, core.fold(key, 1), paths, num_draws)
    best = jnp.argmax(elbo)
    mean, metric = jax.tree.map(lambda leaf: leaf[best], paths.best)
    return Pathfinder(
        mean=flat.unravel(mean),
        inverse_mass_matrix=metric,
        elbo=elbo[best],
        path_elbo=elbo,
        draws=jax.vmap(flat.unravel)(draws),
        ess=ess,
        converged=jnp.isfinite(elbo[best]) & (paths.walk.gain[best] <= jnp.maximum(tolerance, ARRIVED)),
    )


def _find_start(
    flat: Flat, key: core.Key, path: jax.Array, position: Any, draw: Callable[[core.Key], Any] | None
) -> jax.Array:
    """A start (size,) with a finite density, or the last that was tried."""

    def candidate(attempt: jax.Array) -> jax.Array:
        own = core.fold(key, attempt)
        if draw is not None:
            return core.ravel(draw(own))[0].astype(flat.dtype)
        centre = core.ravel(position)[0].astype(flat.dtype)
        around = centre + core.random.uniform(own, centre.shape, flat.dtype, -RADIUS, RADIUS)
        return jnp.where((path == 0) & (attempt == 0), centre, around)

    def again(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        log_density, gradient = flat.evaluate(carry[1])
        bad = ~jnp.isfinite(log_density) | ~jnp.all(jnp.isfinite(gradient))
        return bad & (carry[0] < STARTS)

    first = (jnp.int32(1), candidate(jnp.int32(0)))
    return core.while_loop(again, lambda carry: (carry[0] + 1, candidate(carry[0])), first)[1]


def _follow(
    flat: Flat, key: core.Key, start: jax.Array, elbo_draws: int, memory: int, max_steps: int, tolerance: jax.Array
) -> _Path:
    """A path, with the best Gaussian on it."""

    def turn(path: _Path) -> _Path:
        walk = lbfgs.advance(flat, path.walk, max_steps, tolerance)
        gaussian = _Gaussian(walk.position + walk.metric.velocity(walk.metric.force(walk.gradient)), walk.metric)
        elbo = _elbo(flat, core.fold(key, walk.iterations), gaussian, elbo_draws)
        better = path.walk.active & (walk.updates > 0) & (elbo > path.elbo)
        best, elbo = jax.tree.map(lambda a, b: jnp.where(better, a, b), (gaussian, elbo), (path.best, path.elbo))
        return _Path(walk, best, elbo)

    walk = lbfgs.start(flat, start, memory)
    path = _Path(walk, _Gaussian(walk.position, walk.metric), jnp.full_like(walk.gain, -jnp.inf))
    return core.while_loop(lambda path: path.walk.active, turn, path)


def _elbo(flat: Flat, key: core.Key, gaussian: _Gaussian, number: int) -> jax.Array:
    """The evidence lower bound of the Gaussian, estimated by some draws."""
    positions, log_probs = _draw(key, gaussian, number)
    return _bound(_log_densities(flat, positions), log_probs)


def _bound(log_densities: jax.Array, log_probs: jax.Array) -> jax.Array:
    """The lower bound from draws, of what lies where the density is finite; -inf where it never is."""
    difference = log_densities - log_probs
    inside = jnp.isfinite(difference)
    count = jnp.sum(inside.astype(difference.dtype))
    mean = jnp.sum(jnp.where(inside, difference, 0)) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean + jnp.log(count / difference.size), -jnp.inf)


def _log_densities(flat: Flat, positions: jax.Array) -> jax.Array:
    return jax.vmap(lambda x: flat.evaluate(x)[0])(positions)


def _draw(key: core.Key, gaussian: _Gaussian, number: int) -> tuple[jax.Array, jax.Array]:
    """Draws (number, size) and their log densities (number,)."""
    noise = core.random.normal(key, (number, gaussian.mean.size), gaussian.mean.dtype)
    positions = jnp.expand_dims(gaussian.mean, 0) + jax.vmap(gaussian.metric.velocity)(noise)
    return positions, -0.5 * jnp.sum(noise**2, axis=1) - _log_volume(gaussian)


def _log_prob(gaussian: _Gaussian, position: jax.Array) -> jax.Array:
    white = gaussian.metric.whiten(position - gaussian.mean)
    return -0.5 * jnp.sum(white**2) - _log_volume(gaussian)


def _log_volume(gaussian: _Gaussian) -> jax.Array:
    return gaussian.metric.log_determinant + 0.5 * gaussian.mean.size * math.log(2 * math.pi)


def _resample(flat: Flat, key: core.Key, paths: _Path, number: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Draws of all paths, resampled (number, size), the effective size of what they were resampled from, and the lower
    bounds (path,), from draws that had no part in choosing the Gaussians."""
    count = paths.elbo.size
    own = jax.vmap(lambda index: core.fold(key, 0, index))(jnp.arange(count))
    positions, own_log_probs = jax.vmap(_draw, (0, 0, None))(own, paths.best, number)
    pool = positions.reshape(count * number, flat.size)
    log_densities = _log_densities(flat, pool)
    # A path that found nothing has no part in the mixture, and its draws no weight.
    found = jnp.isfinite(paths.elbo)
    bounds = jax.vmap(_bound)(log_densities.reshape(count, number), own_log_probs)
    log_probs = jax.vmap(jax.vmap(_log_prob, (None, 0)), (0, None))(paths.best, pool)
    mixture = core.logsumexp(jnp.where(jnp.expand_dims(found, 1), log_probs, -jnp.inf), axis=0)
    usable = jnp.repeat(found, number, total_repeat_length=count * number) & jnp.isfinite(log_densities - mixture)
    log_weights = jnp.where(usable, log_densities - mixture, -jnp.inf)
    total = core.logsumexp(log_weights)
    # At most the mean times the root of their number.
    log_weights = jnp.minimum(log_weights, total - 0.5 * jnp.log(jnp.maximum(jnp.sum(usable), 1).astype(flat.dtype)))
    ess = jnp.exp(2 * core.logsumexp(log_weights) - core.logsumexp(2 * log_weights))
    chosen = multinomial(core.fold(key, 1), log_weights, number)
    return pool[chosen], jnp.where(jnp.isfinite(total), ess, 0), jnp.where(found, bounds, -jnp.inf)
