"""Expectation propagation for a Gaussian prior and factors of one linear combination each.

Each factor t_i(a_i . x) is replaced by a Gaussian one, chosen so that putting the true factor back in its place leaves
mean and variance of a_i . x as they are. All factors are updated together, with damping.

Source: Minka (2001), "Expectation propagation for approximate Bayesian inference"; Rasmussen & Williams (2006),
"Gaussian processes for machine learning", sections 3.6 and 3.9.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, scan


class ExpectationPropagation(NamedTuple):
    """A Gaussian approximation by expectation propagation.

    Attributes:
      mean: (size,).
      covariance: (size, size).
      log_evidence: (), of the factors' product under the prior, approximated.
      factor_mean: (factor,), of a_i . x.
      factor_variance: (factor,).
      precision: (factor,), of the Gaussian factors.
      shift: (factor,), precision times mean of the Gaussian factors.
      num_sweeps: (), int32.
      change: (), the largest change of a marginal mean (in standard deviations) or log variance in the last sweep.
      converged: (), bool, whether it is below the tolerance and all is finite.
    """

    mean: jax.Array
    covariance: jax.Array
    log_evidence: jax.Array
    factor_mean: jax.Array
    factor_variance: jax.Array
    precision: jax.Array
    shift: jax.Array
    num_sweeps: jax.Array
    change: jax.Array
    converged: jax.Array


class _Sweep(NamedTuple):
    precision: jax.Array  # (factor,)
    shift: jax.Array  # (factor,)
    mean: jax.Array  # (factor,), of the marginals
    variance: jax.Array  # (factor,)
    change: jax.Array  # ()
    number: jax.Array  # ()


def expectation_propagation(
    log_factor: Callable[..., Any],
    data: Any,
    prior_mean: Any,
    prior_covariance: Any,
    *,
    projections: Any = None,
    damping: float = 0.8,
    nodes: int = 64,
    max_sweeps: int = 200,
    tolerance: float = 1e-4,
) -> ExpectationPropagation:
    r"""The posterior of $N(x; m, K) \prod_i t_i(a_i \cdot x)$, approximated by a Gaussian.

    Args:
      log_factor: `(f, datum) -> scalar`, the log of a factor t_i at f = a_i . x, such as a log likelihood. Its integral
        against a Gaussian is found by Gauss-Hermite quadrature.
      data: pytree (factor, ...), the datum of each factor.
      prior_mean: (size,); a number is spread over it.
      prior_covariance: (size, size), symmetric positive definite.
      projections: (factor, size), the rows a_i; None where there is one factor for each number of x, as for a Gaussian
        process at its data.
      damping: how far Gaussian factors go towards their new values in each sweep, in (0, 1].
      nodes: of the quadrature.
      max_sweeps: at most.
      tolerance: of the change of a marginal mean, in standard deviations, or log variance in one sweep.

    Returns:
      an `ExpectationPropagation`. One that did not converge says so. A factor whose update is not finite, or whose
      cavity has no positive variance, is left as it is in that sweep.

    Raises:
      ValueError: for sizes that do not fit or numbers out of range.

    >>> probit = lambda f, y: jax.scipy.stats.norm.logcdf(y * f)
    >>> found = expectation_propagation(probit, jnp.ones(1), 0.0, jnp.eye(1))
    >>> round(float(found.mean[0]), 4), round(float(jnp.exp(found.log_evidence)), 4)  # 1 / sqrt(pi), 1 / 2
    (0.5642, 0.5)
    """
    name = "expectation_propagation"
    covariance = core.as_float(prior_covariance)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise core.bad_value(name, "prior_covariance", f"of shape {covariance.shape}", "a square matrix")
    size, dtype = covariance.shape[0], core.accumulator_dtype(covariance.dtype)
    covariance = covariance.astype(dtype)
    mean = core.as_float(prior_mean).astype(dtype)
    if mean.shape not in ((), (size,)):
        raise core.bad_value(name, "prior_mean", f"of shape {mean.shape}", f"a number or shape ({size},)")
    rows = jnp.eye(size, dtype=dtype) if projections is None else core.as_float(projections).astype(dtype)
    if rows.ndim != 2 or rows.shape[1] != size:
        raise core.bad_value(name, "projections", f"of shape {rows.shape}", f"(factor, {size})")
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if lengths != {rows.shape[:1]}:
        raise core.bad_value(name, "data", core.describe(data), f"arrays (factor, ...) of {rows.shape[0]} factors")
    if not (core.is_number(damping) and 0 < damping <= 1):
        raise core.bad_value(name, "damping", damping, "a number in (0, 1]")
    core.check_whole(name, nodes=nodes, max_sweeps=max_sweeps)
    core.check_positive(name, tolerance=tolerance)
    mean = jnp.broadcast_to(mean, (size,))
    return _propagate(
        core.Bound(_call, log_factor), nodes, max_sweeps, data, mean, covariance, rows, float(damping), float(tolerance)
    )


def _call(log_factor: Callable[..., Any], f: jax.Array, datum: Any) -> jax.Array:
    return jnp.asarray(log_factor(f, datum), f.dtype)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _propagate(
    log_factor: Callable[..., Any],
    nodes: int,
    max_sweeps: int,
    data: Any,
    mean: jax.Array,
    covariance: jax.Array,
    rows: jax.Array,
    damping: jax.Array,
    tolerance: jax.Array,
) -> ExpectationPropagation:
    dtype = mean.dtype
    root = core.cholesky(covariance)
    seen = core.matmul(rows, root)  # G: a_i . x = c_i + G_i z, with x = m + L z and z standard normal
    centre = core.matvec(rows, mean)
    points, weights = (jnp.asarray(part, dtype) for part in _quadrature(nodes))

    def posterior(precision: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The Cholesky factor of I + G^T T G, and G^T (shift - T c)."""
        weighted = seen * jnp.expand_dims(precision, 1)
        inner = jnp.eye(root.shape[0], dtype=dtype) + core.matmul(seen.T, weighted)
        return core.cholesky(core.symmetrize(inner)), core.matvec(seen.T, shift - precision * centre)

    def marginals(precision: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        factor, pull = posterior(precision, shift)
        white = core.solve_triangular(factor, seen.T)
        return centre + core.matvec(seen, core.cholesky_solve(factor, pull, vector=True)), jnp.sum(white**2, axis=0)

    def cavity(sweep: _Sweep) -> tuple[jax.Array, jax.Array]:
        left = 1 / sweep.variance - sweep.precision
        usable = left > 0
        variance = jnp.where(usable, 1 / jnp.where(usable, left, 1), jnp.nan)
        return variance * (sweep.mean / sweep.variance - sweep.shift), variance

    def tilted(centre: jax.Array, variance: jax.Array, datum: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The log mass, mean and variance of a cavity times its factor."""
        scale = jnp.sqrt(variance)
        logs = jax.vmap(lambda u: log_factor(centre + scale * u, datum))(points) + weights
        total = core.logsumexp(logs)
        share = jnp.exp(logs - total)
        first = jnp.sum(share * points)
        second = jnp.sum(share * (points - first) ** 2)
        return total, centre + scale * first, variance * second

    def sweep_once(sweep: _Sweep, index: jax.Array) -> tuple[_Sweep, None]:
        cavity_mean, cavity_variance = cavity(sweep)
        _, new_mean, new_variance = jax.vmap(tilted)(cavity_mean, cavity_variance, data)
        precision = 1 / new_variance - 1 / cavity_variance
        shift = new_mean / new_variance - cavity_mean / cavity_variance
        usable = jnp.isfinite(precision) & jnp.isfinite(shift)
        damped = jnp.asarray(damping, dtype)
        precision = jnp.where(usable, sweep.precision + damped * (precision - sweep.precision), sweep.precision)
        shift = jnp.where(usable, sweep.shift + damped * (shift - sweep.shift), sweep.shift)
        mean, variance = marginals(precision, shift)
        moved = jnp.abs(mean - sweep.mean) / jnp.sqrt(variance)
        change = jnp.max(jnp.maximum(moved, jnp.abs(jnp.log(variance / sweep.variance))))
        return _Sweep(precision, shift, mean, variance, change, sweep.number + 1), None

    zero = jnp.zeros_like(centre)
    start = _Sweep(zero, zero, centre, jnp.sum(seen**2, axis=1), jnp.asarray(jnp.inf, dtype), jnp.int32(0))
    # A change that is NaN ends the sweeps too.
    last, _ = scan.bounded(
        sweep_once, start, max_sweeps, max_sweeps, until=lambda s: ~(s.change > jnp.asarray(tolerance, dtype))
    )
    factor, pull = posterior(last.precision, last.shift)
    white = core.cholesky_solve(factor, pull, vector=True)
    cavity_mean, cavity_variance = cavity(last)
    log_mass, _, _ = jax.vmap(tilted)(cavity_mean, cavity_variance, data)
    log_evidence = (
        jnp.sum(log_mass - _gaussian_mass(cavity_mean, cavity_variance, last.precision, last.shift))
        - 0.5 * core.log_determinant(factor)
        + 0.5 * jnp.sum(pull * white)
        + jnp.sum(last.shift * centre - 0.5 * last.precision * centre**2)
    )
    spread = core.solve_triangular(factor, root.T)
    return ExpectationPropagation(
        mean=mean + core.matvec(root, white),
        covariance=core.matmul(spread.T, spread),
        log_evidence=log_evidence,
        factor_mean=last.mean,
        factor_variance=last.variance,
        precision=last.precision,
        shift=last.shift,
        num_sweeps=last.number,
        change=last.change,
        converged=(last.change <= jnp.asarray(tolerance, dtype)) & jnp.isfinite(log_evidence),
    )


def _gaussian_mass(mean: jax.Array, variance: jax.Array, precision: jax.Array, shift: jax.Array) -> jax.Array:
    """The log of the integral of N(f; mean, variance) exp(shift f - precision f^2 / 2)."""
    gain = 1 + precision * variance
    pull = shift - precision * mean
    return -0.5 * jnp.log(gain) + 0.5 * variance * pull**2 / gain + shift * mean - 0.5 * precision * mean**2


def _quadrature(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and log weights for expectations under a standard normal law."""
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return points, np.log(weights) - 0.5 * np.log(2 * np.pi)
