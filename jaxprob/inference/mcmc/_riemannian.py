"""Riemannian manifold Hamiltonian Monte Carlo, and the no-U-turn sampler on a Riemannian manifold.

The metric follows the position, so that one step size fits where the curvature of a density changes by orders of
magnitude, as in funnels. The tree is that of `nuts`.

Source: Girolami & Calderhead (2011), "Riemann manifold Langevin and Hamiltonian Monte Carlo methods"; Betancourt
(2013), "A general metric for Riemannian manifold Hamiltonian Monte Carlo" and "Generalizing the no-U-turn sampler to
Riemannian manifolds".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.inference.mcmc import _hamiltonian as hamiltonian
from jaxprob.inference.mcmc import _implicit as implicit
from jaxprob.inference.mcmc._hamiltonian import Flat, Point, State
from jaxprob.inference.mcmc._implicit import Manifold, Place
from jaxprob.inference.mcmc._log_density import LogDensity, as_log_density
from jaxprob.inference.mcmc._metric import Metric
from jaxprob.inference.mcmc._numbers import known_count
from jaxprob.inference.mcmc._nuts import Geometry, Leaf, check_depth, transitions
from jaxprob.inference.mcmc._softabs import softabs

MetricFunction = Callable[[Any], Any]


class RiemannianHMCInfo(NamedTuple):
    """What happened in one transition of `riemannian_hmc`; every field is a scalar.

    Attributes:
      acceptance_rate: min(1, exp(initial energy - energy)) of the proposal; 0 where a step was none.
      num_steps: steps of the integrator.
      diverging: whether the energy error passed 1,000 or was not a number, or a step was none.
      converged: whether every step was one: its fixed-point iterations converged and led back. Where not, the chain
        stays.
      energy: of the new state, with the momentum that took it there.
      log_density: of the new state.
      step_size: of the integrator.
    """

    acceptance_rate: jax.Array
    num_steps: jax.Array
    diverging: jax.Array
    converged: jax.Array
    energy: jax.Array
    log_density: jax.Array
    step_size: jax.Array


def riemannian_hmc(
    log_density: core.LogDensity,
    step_size: Any = 0.1,
    metric: MetricFunction | None = None,
    *,
    num_integration_steps: int = 16,
    alpha: Any = 1.0,
    max_fixed_point_iterations: int = 50,
    tolerance: Any = None,
) -> core.Algorithm:
    """Riemannian manifold Hamiltonian Monte Carlo with a fixed number of steps.

    H(q, p) = -log density(q) + log det G(q) / 2 + p' G(q)^-1 p / 2, integrated by the generalised leapfrog. A step
    whose fixed-point iterations do not converge, or do not lead back, is a divergence: the transition stays. The draws
    are exact all the same, but few: take a step size at which 0.95 or so of the proposals are accepted. At larger ones
    more and more iterations do not converge, long before the energy errors would reject.

    A step takes, with SoftAbs, about 2 + 2k Hessians (of `size` gradients) and their eigendecompositions for k
    iterations, mostly 4 to 8, of each implicit half, and 2k + 2 derivatives of a Hessian, which cost the same order:
    O(size) gradients and O(size^3) operations in all. Half of that is for the check that the step leads back.

    Args:
      log_density: `position -> scalar` on unconstrained positions, any pytree of floating arrays; three times
        differentiable with the metric left out.
      step_size: (), of the integrator; an array or a tracer.
      metric: `position -> (size, size)`, symmetric, positive definite and differentiable, where size is the number of
        scalars in a position, in flattening order: an estimate of the local precision, the inverse of what `hmc` takes
        as `inverse_mass_matrix`. None for SoftAbs of the Hessian.
      num_integration_steps: steps in a transition.
      alpha: (), of SoftAbs: its metric is nowhere below 1 / alpha, so that a standard deviation counts for sqrt(alpha)
        at most. Large values approach the absolute value of the Hessian, whose kinks the integrator cannot follow.
      max_fixed_point_iterations: for each implicit equation.
      tolerance: (), where the iterations end, in units of standard deviations; eps^(2/3) by default.

    Returns:
      Algorithm whose state is a `State` and whose info is a `RiemannianHMCInfo`; its `converged` says whether all
      steps converged and led back, `diverging` that one did not, or that the energy is off.

    Raises:
      TypeError: if `log_density` or `metric` is no function.
      ValueError: for a step size, an alpha or a tolerance that is no positive number, a number of steps or iterations
        below 1, or, while tracing, a metric of another shape.

    >>> kernel = riemannian_hmc(lambda q: -0.5 * (q**2).sum(), 0.5, num_integration_steps=4)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(info.converged), bool(info.diverging)
    (True, False)

    Source: Girolami & Calderhead (2011), equations 16 to 18.
    """
    name = "riemannian_hmc"
    target = as_log_density(log_density, name)
    step_size = hamiltonian.as_step_size(step_size, name)
    manifold_of = manifolds(name, target, metric, alpha, max_fixed_point_iterations, tolerance)
    num_integration_steps = known_count(name, "num_integration_steps", num_integration_steps)

    def step(key: core.Key, state: State) -> tuple[State, RiemannianHMCInfo]:
        manifold = manifold_of(state)
        flat, size = manifold.flat, step_size.astype(manifold.flat.dtype)
        momentum_key, uniform_key = core.random.split(core.as_key(key, name))
        normal = core.random.normal(momentum_key, (flat.size,), flat.dtype)
        first = _start(manifold, state, normal)

        def unfinished(carry: tuple[jax.Array, Leaf, jax.Array]) -> jax.Array:
            # A chain may begin where there is no density, but a trajectory never goes on from there.
            taken, leaf, _ = carry
            return (taken < num_integration_steps) & ((taken == 0) | jnp.isfinite(leaf.energy))

        def integrate(carry: tuple[jax.Array, Leaf, jax.Array]) -> tuple[jax.Array, Leaf, jax.Array]:
            # After a step that is none the energy is infinite, and there is no further one.
            return carry[0] + 1, *_integrate(manifold, carry[1].point, size)

        taken, last, converged = core.while_loop(unfinished, integrate, (jnp.int32(0), first, jnp.bool_(True)))
        weight, rate, diverging = hamiltonian.compare(first.energy, last.energy)
        accepted = core.random.uniform(uniform_key, (), flat.dtype) < jnp.exp(weight)
        chosen = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), last, first)
        point = chosen.point
        info = RiemannianHMCInfo(
            acceptance_rate=rate,
            num_steps=taken,
            diverging=diverging,
            converged=converged,
            energy=chosen.energy,
            log_density=point.log_density,
            step_size=size,
        )
        return State(flat.unravel(point.position), point.log_density, flat.unravel(point.gradient)), info

    return core.Algorithm(lambda position, key: _init(target, position, name), step)


def riemannian_nuts(
    log_density: core.LogDensity,
    step_size: Any = 0.1,
    metric: MetricFunction | None = None,
    *,
    max_tree_depth: int = 8,
    alpha: Any = 1.0,
    max_fixed_point_iterations: int = 50,
    tolerance: Any = None,
) -> core.Interruptible:
    """The no-U-turn sampler on a Riemannian manifold.

    A tree of steps of the generalised leapfrog, drawn from as in `nuts`. It ends where the sum rho of the momenta p
    has rho' G(q)^-1 p <= 0 at either end, of the whole or of any subtree, or of one half with the nearest leaf of the
    other, and where a step does not converge, or does not lead back. A step size with an acceptance rate near 0.95 is
    best, as in `riemannian_hmc`.

    Args:
      log_density: as in `riemannian_hmc`, which states the cost of a step too.
      step_size: (), of the integrator; an array or a tracer.
      metric: `position -> (size, size)`, or None for SoftAbs of the Hessian: as in `riemannian_hmc`.
      max_tree_depth: how often a trajectory may be doubled.
      alpha: (), of SoftAbs: as in `riemannian_hmc`.
      max_fixed_point_iterations: for each implicit equation.
      tolerance: (), where the iterations end, in units of standard deviations; eps^(2/3) by default.

    Returns:
      Algorithm whose state is a `State` and whose info is a `NUTSInfo`, where `num_steps` counts steps of the
      integrator and `diverging` says that a step did not converge or lead back, too. Its transitions are made of moves
      of one step each: see `interleave`.

    Raises:
      TypeError: if `log_density` or `metric` is no function.
      ValueError: for a step size, an alpha or a tolerance that is no positive number, a `max_tree_depth` outside 1 to
        20, fewer than one iteration, or, while tracing, a metric of another shape.

    >>> kernel = riemannian_nuts(lambda q: -0.5 * (q**2).sum(), 0.5)
    >>> state, info = kernel.step(jax.random.key(0), kernel.init(jnp.ones(3), jax.random.key(1)))
    >>> bool(info.diverging)
    False

    Source: Betancourt (2013), "Generalizing the no-U-turn sampler to Riemannian manifolds".
    """
    name = "riemannian_nuts"
    target = as_log_density(log_density, name)
    step_size = hamiltonian.as_step_size(step_size, name)
    manifold_of = manifolds(name, target, metric, alpha, max_fixed_point_iterations, tolerance)
    check_depth(max_tree_depth, name)

    def geometry(state: State) -> Geometry:
        manifold = manifold_of(state)
        flat, size = manifold.flat, step_size.astype(manifold.flat.dtype)
        return Geometry(
            flat,
            size,
            lambda normal: _start(manifold, state, normal),
            lambda point, forward: _integrate(manifold, point, lax.select(forward, size, -size))[0],
            lambda sums, motions: core.ordered_dot(sums[: flat.size], motions[flat.size :]),
        )

    return transitions(name, lambda position, key: _init(target, position, name), geometry, max_tree_depth)


def _init(target: LogDensity, position: Any, name: str) -> State:
    return hamiltonian.init(target, Metric(jnp.ones(())), position, name)


def _start(manifold: Manifold, state: State, normal: jax.Array) -> Leaf:
    """The chain's state with the momentum that standard normal numbers (size,) make."""
    place = implicit.place_at(manifold, hamiltonian.to_vector(state.position)[0])
    return _leaf(place, core.matvec(place.factor, normal), jnp.bool_(True))


def _integrate(manifold: Manifold, point: Point, step: jax.Array) -> tuple[Leaf, jax.Array]:
    """The next leaf, and whether the step to it is one, ()."""
    place, momentum, valid = implicit.generalised_leapfrog(manifold, point.position, point.momentum, step)
    return _leaf(place, momentum, valid), valid


def _leaf(place: Place, momentum: jax.Array, valid: jax.Array) -> Leaf:
    """A leaf of infinite energy where the step to it is none. U-turn checks see momentum and velocity."""
    energy = implicit.energy(place, momentum)
    energy = jnp.where(valid & ~jnp.isnan(energy), energy, jnp.inf)
    motion = jnp.concatenate([momentum, implicit.velocity(place.factor, momentum)])
    return Leaf(implicit.point(place, momentum), energy, motion)


def manifolds(
    name: str, target: LogDensity, metric: MetricFunction | None, alpha: Any, most: int, tolerance: Any
) -> Callable[[State], Manifold]:
    """The manifold for positions shaped like that of a state."""
    if metric is not None and not callable(metric):
        todo = "For a constant matrix use hmc or nuts with its inverse as inverse_mass_matrix"
        raise core.bad_type(name, "metric", metric, "a function of a position, or None", todo)
    if most < 1:
        raise core.bad_value(name, "max_fixed_point_iterations", most, "an integer of at least 1")
    alpha = hamiltonian.as_step_size(alpha, name, "alpha")
    if tolerance is not None:
        tolerance = hamiltonian.as_step_size(tolerance, name, "tolerance")

    def manifold(state: State) -> Manifold:
        flat = hamiltonian.flatten(target, state.position)
        small = jnp.finfo(flat.dtype).eps ** (2 / 3) if tolerance is None else tolerance
        matrix = _hessian(flat, alpha) if metric is None else _given(name, flat, metric)
        return Manifold(flat, matrix, jnp.asarray(small, flat.dtype), most)

    return manifold


def _hessian(flat: Flat, alpha: jax.Array) -> Callable[[jax.Array], jax.Array]:
    hessian = jax.jacfwd(lambda position: flat.evaluate(position)[1])
    return lambda position: softabs(hessian(position), alpha.astype(flat.dtype))


def _given(name: str, flat: Flat, metric: MetricFunction) -> Callable[[jax.Array], jax.Array]:
    def matrix(position: jax.Array) -> jax.Array:
        value = core.as_float(metric(flat.unravel(position)))
        if value.shape != (flat.size, flat.size):
            got, want = f"of shape {value.shape}", f"shape ({flat.size}, {flat.size})"
            raise core.bad_value(name, "the value of metric", got, want, "A position has that many scalars in all")
        return core.symmetrize(value.astype(flat.dtype))

    return matrix
