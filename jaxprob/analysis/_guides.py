"""What an approximation of a posterior is worth: importance weights of its draws, and calibration over data sets.

Source: Yao, Vehtari, Simpson & Gelman (2018), "Yes, but did it work? Evaluating variational inference".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.analysis._psis import psis, psis_threshold


class GuideQuality(NamedTuple):
    """What the draws of a guide say about it.

    Attributes:
      pareto_k: (), of the importance ratios p / q. Below `threshold` the guide is close enough for averages over its
        draws, weighted, to be reliable; above it even these are not. -inf where all ratios are equal within 1 %.
      threshold: (a float) the largest k that is reliable with so many draws (`psis_threshold`).
      reliable: (), bool, whether k is below.
      log_evidence: (), the log of the mean of the ratios, whose expectation is the normalising constant of the target.
      effective_sample_size: (), of the weighted draws.
      elbo: (), the mean of the log ratios.
      elbo_error: (), its standard error.
      draws: pytree (draw, ...), positions.
      log_weights: (draw,), smoothed and normalised: their exponentials sum to 1.
    """

    pareto_k: jax.Array
    threshold: float
    reliable: jax.Array
    log_evidence: jax.Array
    effective_sample_size: jax.Array
    elbo: jax.Array
    elbo_error: jax.Array
    draws: Any
    log_weights: jax.Array


def guide_quality(target: Any, guide: Any, key: core.Key, *, draws: int = 4000) -> GuideQuality:
    """Judges an approximation of a posterior by the importance ratios of its draws.

    Args:
      target: a posterior, or a `position -> scalar` log density.
      guide: with `sample(key)` and `log_prob(position)`: that of `vi.fit`, a Laplace approximation, Pathfinder's.
      key: random key.
      draws: of the guide; each costs one density.

    Returns:
      a `GuideQuality`. Where a ratio is NaN so are its numbers, and it is not reliable.

    Raises:
      TypeError: if `guide` is none, or `target` no log density.
      ValueError: for fewer than 25 draws, of which no tail can be fitted.

    >>> from jaxprob.inference import vi
    >>> target = lambda x: -0.5 * jnp.sum(x**2)
    >>> quality = guide_quality(target, vi.laplace(target, jnp.ones(2)), jax.random.key(0))
    >>> bool(quality.reliable), round(float(quality.log_evidence), 3)
    (True, 1.838)
    """
    name = "guide_quality"
    key = core.as_key(key, name)
    core.check_whole(name, least=25, draws=draws)
    if not (hasattr(guide, "sample") and hasattr(guide, "log_prob")):
        raise core.bad_type(name, "guide", guide, "one with sample and log_prob", "Such as vi.fit(...).guide")
    density = target.log_density if hasattr(target, "log_density") else target
    if not callable(density):
        raise core.bad_type(name, "target", target, "a posterior or a log density")
    # As a pytree the owner of a bound method travels as an argument, and equal calls compile once.
    owner = getattr(density, "__self__", None)
    bound = owner is not None and not jax.tree_util.treedef_is_leaf(jax.tree.structure(owner))
    function = density.__func__ if bound else core.Bound(_without_owner, density)
    positions, log_ratios = _ratios(draws, function, owner if bound else None, guide, key)
    found = psis(log_ratios)
    # Rounding has tails too: where no weight is 1 % larger than another, there is nothing to smooth.
    equal = jnp.max(log_ratios) - jnp.min(log_ratios) < 0.01
    k, threshold = jnp.where(equal, -jnp.inf, found.pareto_k), psis_threshold(draws)
    return GuideQuality(
        pareto_k=k,
        threshold=threshold,
        reliable=k < threshold,
        log_evidence=core.logsumexp(log_ratios) - math.log(draws),
        effective_sample_size=jnp.exp(-core.logsumexp(2 * found.log_weights)),
        elbo=jnp.mean(log_ratios),
        elbo_error=jnp.std(log_ratios) / math.sqrt(draws),
        draws=positions,
        log_weights=found.log_weights,
    )


def _without_owner(density: Callable[[Any], Any], owner: Any, position: Any) -> Any:
    return density(position)


@partial(jax.jit, static_argnums=(0, 1))
def _ratios(draws: int, density: Callable[..., Any], owner: Any, guide: Any, key: core.Key) -> tuple[Any, jax.Array]:
    positions = jax.vmap(guide.sample)(core.chain_keys(key, jnp.arange(draws)))
    log_q = jax.vmap(guide.log_prob)(positions)
    log_p = jax.vmap(lambda x: density(owner, x))(positions)
    return positions, log_p.astype(log_q.dtype) - log_q


class VariationalCalibration(NamedTuple):
    """How often a fitted guide lies to one side of the truth.

    Attributes:
      ranks: pytree like a position with a leading axis (repeat, ...): the share of a guide's draws below the true
        value. Under exact inference each is uniform on (0, 1).
      mean: pytree like a position, of the ranks over repeats: above 1/2 the truth tends to lie above the guide.
      z: pytree like a position: `mean` less 1/2, divided by its standard error. Standard normal where the guide's
        location is right, whatever its width.
      width: pytree like a position: the mean of (2 rank - 1)^2 times 3, which is 1 for uniform ranks, above 1 where the
        guide is too narrow (the truth in its tails) and below 1 where it is too wide.
    """

    ranks: Any
    mean: Any
    z: Any
    width: Any


def variational_calibration(
    posterior: Any, fit: Callable[[Any, core.Key], Any], key: core.Key, *, repeats: int = 100, draws: int = 500
) -> VariationalCalibration:
    """Variational simulation-based calibration: fits to data sets that the model itself simulates.

    Each repeat draws parameters and data from the model, fits a guide to these data, and sees where in the guide the
    parameters lie. A guide that is symmetric around the truth in the mean has no bias, though it may be too narrow.

    Args:
      posterior: of any data; which sites are observed is all that counts of it.
      fit: `(posterior, key) -> guide` with a `sample`, such as `lambda p, key: vi.fit(p, key, vi.mean_field()).guide`;
        compiled once for all repeats.
      key: random key.
      repeats: data sets.
      draws: of each guide.

    Returns:
      `VariationalCalibration(ranks, mean, z, width)`, on unconstrained positions.

    Raises:
      TypeError: if `posterior` is none.
      ValueError: for fewer than two repeats.

    Source: Yao et al. (2018), section 4 and algorithm 2.
    """
    name = "variational_calibration"
    key = core.as_key(key, name)
    core.check_whole(name, least=2, repeats=repeats, draws=draws)
    if not all(hasattr(posterior, method) for method in ("program", "data", "unconstrain")):
        raise core.bad_type(name, "posterior", posterior, "a posterior of a joint model")
    observed = tuple(posterior.data)

    @jax.jit
    def once(program: Any, key: core.Key) -> Any:
        values = program.sample(core.fold(key, 0))
        simulated = program.condition(**{name: values[name] for name in observed})
        truth = simulated.unconstrain({name: values[name] for name in simulated.names})
        guide = fit(simulated, core.fold(key, 1))
        found = jax.vmap(guide.sample)(core.chain_keys(core.fold(key, 2), jnp.arange(draws)))
        return jax.tree.map(lambda x, t: jnp.mean((x < t[None]).astype(t.dtype), axis=0), found, truth)

    every = [once(posterior.program, core.fold(key, i)) for i in range(repeats)]
    ranks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
    mean = jax.tree.map(lambda r: jnp.mean(r, axis=0), ranks)
    z = jax.tree.map(lambda r, m: (m - 0.5) / (jnp.std(r, axis=0, ddof=1) / math.sqrt(repeats)), ranks, mean)
    width = jax.tree.map(lambda r: 3 * jnp.mean((2 * r - 1) ** 2, axis=0), ranks)
    return VariationalCalibration(ranks, mean, z, width)
