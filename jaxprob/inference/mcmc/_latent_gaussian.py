"""Kernels for a latent Gaussian vector: a prior N(mean, covariance) that is known, and any log likelihood.

Each leaves the prior as it is without ever rejecting, so that the likelihood alone decides, however many dimensions
there are: Gaussian processes, random effects, discretised fields. Densities in states and infos are with respect to the
prior, that is, they are likelihoods.

Source: Murray, Adams & MacKay (2010), "Elliptical slice sampling"; Cotter et al. (2013), "MCMC methods for functions:
modifying old algorithms to make them faster"; Titsias & Papaspiliopoulos (2018), "Auxiliary gradient-based sampling
algorithms".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _metropolis as metropolis
from jaxprob.inference.mcmc._hamiltonian import State
from jaxprob.inference.mcmc._log_density import as_log_density
from jaxprob.inference.mcmc._metric import Metric, check_size, factorise
from jaxprob.inference.mcmc._metropolis import MetropolisInfo, MetropolisState
from jaxprob.inference.mcmc._slice import MISSES, SliceInfo


class _Spectrum(NamedTuple):
    """A covariance `rotation diag(variances) rotation'`; of a diagonal one the rotation is 1."""

    variances: jax.Array  # () or (size,)
    rotation: Metric


class _Arc(NamedTuple):
    """The carry of the loop over evaluations; angles on the ellipse from where the chain is."""

    angle: jax.Array  # (), to look at next
    least: jax.Array  # (), the interval
    most: jax.Array  # ()
    position: Any  # pytree, the latest looked at
    log_density: jax.Array  # (), there
    evaluations: jax.Array  # ()
    found: jax.Array  # (), bool


def elliptical_slice(log_likelihood: core.LogDensity, mean: Any, covariance: Any) -> core.Algorithm:
    """Elliptical slice sampling: reversible for `N(x; mean, covariance) exp(log_likelihood(x))`, nothing to tune.

    With v ~ N(0, covariance) a point is chosen on the ellipse `mean + (x - mean) cos(a) + v sin(a)`, on a slice of the
    likelihood.

    Args:
      log_likelihood: `position -> scalar`; a position is any pytree of floating arrays. Nothing is differentiated.
      mean: of the prior: a scalar, (size,) in flattening order, or a pytree like the position.
      covariance: of the prior: a scalar, (size,) its diagonal, or (size, size), symmetric positive semi-definite and,
        if it is a tracer, definite; or a `Metric` with a factor L of it, `L L' = covariance`. Factorised once. Along a
        direction without variance the chain must start at the mean, and stays there: exactly so for a diagonal or a
        factor; to the root of the rounding error of the largest variance for a matrix.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `SliceInfo`; log densities are log likelihoods.
      A step costs about two to six evaluations, the more the likelihood says; under `vmap` each chain costs as many as
      the slowest.

    Raises:
      TypeError: if `log_likelihood` is no function.
      ValueError: for a mean or a covariance that cannot be one.

    >>> kernel = elliptical_slice(lambda x: -0.5 * ((x - 1) ** 2).sum(), mean=0.0, covariance=jnp.array([1.0, 4.0]))
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.zeros(2), jax.random.key(1)))
    >>> int(info.evaluations) >= 1, bool((state.position != 0).all())
    (True, True)

    Source: Murray, Adams & MacKay (2010), figure 2.
    """
    name = "elliptical_slice"
    metropolis.check_callable(name, log_likelihood=log_likelihood)
    factor = _as_factor(covariance, name)

    def init(position: Any, key: core.Key) -> MetropolisState:
        _check_prior(name, mean, factor, position)
        return metropolis.initial(name, log_likelihood, position)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, SliceInfo]:
        key = core.as_key(key, name)
        vector, unravel = hamiltonian.to_vector(state.position)
        dtype, precise = vector.dtype, state.log_density.dtype
        centre = hamiltonian.spread_like(name, "mean", mean, state.position)
        apart, across = vector - centre, _prior_draw(core.fold(key, 0), factor, vector)
        here = jnp.where(jnp.isnan(state.log_density), -jnp.inf, state.log_density)
        height = here - core.random.exponential(core.fold(key, 1), (), precise)
        angle_key = core.fold(key, 2)

        def turn(arc: _Arc) -> _Arc:
            position = unravel(centre + apart * jnp.cos(arc.angle) + across * jnp.sin(arc.angle))
            value = metropolis.state_at(name, log_likelihood, position).log_density.astype(precise)
            # At least as high, so that an interval which shrinks to where the chain is finds a point.
            found = (value >= height) & (value > -jnp.inf)
            before = arc.angle < 0
            least, most = jnp.where(before, arc.angle, arc.least), jnp.where(before, arc.most, arc.angle)
            evaluations = arc.evaluations + 1
            uniform = core.random.uniform(core.fold(angle_key, evaluations), (), dtype)
            return _Arc(least + uniform * (most - least), least, most, position, value, evaluations, found)

        first = 2 * math.pi * core.random.uniform(core.fold(angle_key, 0), (), dtype)
        begin = _Arc(
            first, first - 2 * math.pi, first, state.position, state.log_density, jnp.int32(0), jnp.zeros((), bool)
        )
        last = core.while_loop(lambda arc: ~arc.found & (arc.evaluations < MISSES), turn, begin)
        found = MetropolisState(last.position, last.log_density)
        state = jax.tree.map(lambda new, old: jnp.where(last.found, new, old), found, state)
        return state, SliceInfo(last.evaluations, state.log_density)

    return core.Algorithm(init, step)


def preconditioned_crank_nicolson(
    log_likelihood: core.LogDensity, mean: Any, covariance: Any, step_size: Any
) -> core.Algorithm:
    """Preconditioned Crank-Nicolson: reversible for `N(x; mean, covariance) exp(log_likelihood(x))`.

    `x' = mean + sqrt(1 - step_size^2) (x - mean) + step_size v` with v ~ N(0, covariance), accepted with probability
    `min(1, likelihood(x') / likelihood(x))`.

    Args:
      log_likelihood: `position -> scalar`; a position is any pytree of floating arrays. Nothing is differentiated.
      mean: of the prior: a scalar, (size,) in flattening order, or a pytree like the position.
      covariance: of the prior: a scalar, (size,) its diagonal, or (size, size), symmetric positive semi-definite and,
        if it is a tracer, definite; or a `Metric` with a factor L of it, `L L' = covariance`. Factorised once. Along a
        direction without variance the chain must start at the mean, and stays there: exactly so for a diagonal or a
        factor; to the root of the rounding error of the largest variance for a matrix.
      step_size: (), above 0 and at most 1, where each proposal is a fresh draw of the prior; an array or a tracer,
        which counts as 1 where it is above.

    Returns:
      Algorithm whose state is a `MetropolisState` and whose info is a `MetropolisInfo`; log densities are log
      likelihoods. One evaluation a step.

    Raises:
      TypeError: if `log_likelihood` is no function.
      ValueError: for a mean, a covariance or a step size that cannot be one.

    >>> kernel = preconditioned_crank_nicolson(lambda x: -0.5 * ((x - 1) ** 2).sum(), 0.0, 1.0, step_size=0.5)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.zeros(2), jax.random.key(1)))
    >>> bool(info.accepted) == bool((state.position != 0).all())
    True

    Source: Cotter et al. (2013), section 4; Neal (1998), "Regression and classification using Gaussian process priors".
    """
    name = "preconditioned_crank_nicolson"
    metropolis.check_callable(name, log_likelihood=log_likelihood)
    factor = _as_factor(covariance, name)
    step_size = hamiltonian.as_step_size(step_size, name)
    if not isinstance(step_size, jax.core.Tracer) and float(step_size) > 1:
        raise core.bad_value(name, "step_size", step_size, "a number above 0 and at most 1")

    def init(position: Any, key: core.Key) -> MetropolisState:
        _check_prior(name, mean, factor, position)
        return metropolis.initial(name, log_likelihood, position)

    def step(key: core.Key, state: MetropolisState) -> tuple[MetropolisState, MetropolisInfo]:
        key = core.as_key(key, name)
        vector, unravel = hamiltonian.to_vector(state.position)
        centre = hamiltonian.spread_like(name, "mean", mean, state.position)
        size = jnp.minimum(step_size.astype(vector.dtype), 1)
        # 1 - sqrt(1 - b^2) without cancellation: a small step must still pull towards the mean.
        pull = size * size / (1 + jnp.sqrt(1 - size * size))
        move = size * _prior_draw(core.fold(key, 0), factor, vector) - pull * (vector - centre)
        proposed = metropolis.state_at(name, log_likelihood, unravel(vector + move))
        return metropolis.accept(core.fold(key, 1), state, proposed)

    return core.Algorithm(init, step)


def marginal_latent_gaussian(
    log_likelihood: core.LogDensity, mean: Any, covariance: Any, step_size: Any
) -> core.Algorithm:
    """The marginal gradient sampler (mGrad): reversible for `N(x; mean, covariance) exp(log_likelihood(x))`.

    With g the gradient of the log likelihood, C the covariance and d = step_size^2 the proposal is that of Langevin's
    dynamics in which the prior is integrated exactly:
    `x' ~ N(mean + 2/d A (x - mean + d/2 g), A + 2/d A^2)`, `A = (C^-1 + 2/d I)^-1`.

    Args:
      log_likelihood: `position -> scalar` on any pytree of floating arrays; one gradient a step.
      mean: of the prior: a scalar, (size,) in flattening order, or a pytree like the position.
      covariance: of the prior: a scalar, (size,) its diagonal, or (size, size), symmetric positive semi-definite; or a
        `Metric` with a factor L of it, `L L' = covariance`. Decomposed once into eigenvectors, by which a step
        multiplies four times. Along a direction without variance the chain must start at the mean, and stays there:
        exactly so for a diagonal or a factor; to the root of the rounding error of the largest variance for a matrix.
      step_size: (), an array or a tracer: of Langevin's dynamics, as that of `mala`, which this becomes where the prior
        is flat. Best where 0.5 to 0.6 of the proposals are accepted. A large one makes proposals of the prior, moved
        by the gradient.

    Returns:
      Algorithm whose state is a `State` and whose info is a `MetropolisInfo`; log densities are log likelihoods.

    Raises:
      TypeError: if `log_likelihood` is no function.
      ValueError: for a mean, a covariance or a step size that cannot be one.

    >>> kernel = marginal_latent_gaussian(lambda x: -0.5 * ((x - 1) ** 2).sum(), 0.0, 1.0, step_size=0.5)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.zeros(2), jax.random.key(1)))
    >>> bool(info.accepted) == bool((state.position != 0).all())
    True

    Source: Titsias & Papaspiliopoulos (2018), section 3.2, equations 8 and 9, with d for delta.
    """
    name = "marginal_latent_gaussian"
    target = as_log_density(log_likelihood, name)
    spectrum = _as_spectrum(covariance, name)
    step_size = hamiltonian.as_step_size(step_size, name)

    def init(position: Any, key: core.Key) -> State:
        _check_prior(name, mean, Metric(spectrum.variances), position)
        return hamiltonian.init(target, spectrum.rotation, position, name)

    def step(key: core.Key, state: State) -> tuple[State, MetropolisInfo]:
        key = core.as_key(key, name)
        flat, rotation, size = hamiltonian.prepare(target, spectrum.rotation, step_size, state)
        variances, width = jnp.maximum(spectrum.variances, 0).astype(flat.dtype), size * size
        # Per eigenvector with variance c: A is c d / (2 c + d), 2/d A is `keep`, and A + 2/d A^2 is c (1 - keep^2).
        keep, loss = 2 * variances / (2 * variances + width), width / (2 * variances + width)
        spread = jnp.sqrt(variances * loss * (1 + keep))

        def drift(force: jax.Array) -> jax.Array:
            return 0.5 * width * keep * force

        def term(there: jax.Array, here: jax.Array, force: jax.Array) -> jax.Array:
            """What the gradient at `here` adds to the log of the density of proposing `there`."""
            return core.ordered_sum((there - keep * here - 0.5 * drift(force)) * force / (1 + keep))

        vector, unravel = hamiltonian.to_vector(state.position)
        centre = hamiltonian.spread_like(name, "mean", mean, state.position)
        gradient, _ = hamiltonian.to_vector(state.log_density_gradient)
        x, force = rotation.force(vector - centre), rotation.force(gradient)
        move = spread * core.random.normal(core.fold(key, 0), x.shape, x.dtype) + drift(force) - loss * x
        vector = vector + rotation.velocity(move)
        value, gradient = flat.evaluate(vector)
        y, back = x + move, rotation.force(gradient)
        proposed = State(unravel(vector), value, unravel(gradient))
        return metropolis.accept(core.fold(key, 1), state, proposed, term(x, y, back) - term(y, x, force))

    return core.Algorithm(init, step)


def _check_prior(name: str, mean: Any, covariance: Metric, position: Any) -> None:
    """Raises a `ValueError` unless the mean and the covariance are for positions of that size."""
    check_size(covariance, hamiltonian.spread_like(name, "mean", mean, position).size, name, "covariance")


def _prior_draw(key: core.Key, factor: Metric, like: jax.Array) -> jax.Array:
    """A draw of N(0, covariance), (size,)."""
    return factor.astype(like.dtype).velocity(core.random.normal(key, like.shape, like.dtype))


def _as_factor(covariance: Any, name: str) -> Metric:
    """A factor of a covariance: Cholesky's, or one made of eigenvectors where a known matrix is singular."""
    if isinstance(covariance, Metric):
        return covariance
    if isinstance(covariance, jax.core.Tracer):
        return Metric(factorise(_checked(covariance, name)))
    with jax.ensure_compile_time_eval():  # a known matrix is factorised once, in somebody's jit as well
        factor = factorise(_checked(covariance, name))
        if not bool(jnp.all(jnp.isfinite(factor))):
            variances, rotation = _as_spectrum(covariance, name)
            factor = rotation.factor * jnp.sqrt(jnp.expand_dims(jnp.maximum(variances, 0), 0))
        return Metric(factor)


def _as_spectrum(covariance: Any, name: str) -> _Spectrum:
    """The eigenvalues and eigenvectors of a covariance; the former may be below zero by rounding."""
    if isinstance(getattr(covariance, "factor", covariance), jax.core.Tracer):
        return _decompose(covariance, name)
    with jax.ensure_compile_time_eval():
        variances, rotation = _decompose(covariance, name)
        rounding = jnp.finfo(variances.dtype).eps * variances.size * jnp.max(jnp.abs(variances))
        least = -rounding if rotation.factor.ndim == 2 else 0
        if not bool(jnp.all(jnp.isfinite(variances) & (variances >= least))):
            want = "the covariance of the prior, with no variance below zero"
            raise core.bad_value(name, "covariance", "not positive semi-definite", want)
        return _Spectrum(variances, rotation)


def _decompose(covariance: Any, name: str) -> _Spectrum:
    if isinstance(covariance, Metric):
        if type(covariance) is not Metric:  # a structured one, whose factor alone is not all of it
            columns = jax.vmap(covariance.velocity)(jnp.eye(covariance.factor.size, dtype=covariance.factor.dtype))
            covariance = Metric(columns.T)
        if covariance.factor.ndim == 2:  # not squared, which would lose half of the digits
            rotation, roots, _ = jnp.linalg.svd(covariance.factor)
            return _Spectrum(roots * roots, Metric(rotation))
        covariance = covariance.factor * covariance.factor
    covariance = _checked(covariance, name)
    if covariance.ndim < 2:
        return _Spectrum(covariance, Metric(jnp.ones((), covariance.dtype)))
    variances, vectors = jnp.linalg.eigh(covariance)
    return _Spectrum(variances, Metric(vectors))


def _checked(covariance: Any, name: str) -> jax.Array:
    covariance = core.as_float(covariance)
    if covariance.ndim > 2 or (covariance.ndim == 2 and covariance.shape[0] != covariance.shape[1]):
        raise core.bad_value(name, "covariance", covariance, "a scalar, a vector or a square matrix")
    return covariance
