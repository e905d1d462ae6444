"""Objectives whose draws have weights: importance-weighted bounds, Renyi's, and the inclusive divergence."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.vi._bounds import (
    doubly_reparameterized_bound,
    forward_divergence,
    importance_weighted_bound,
    renyi_bound,
    vimco_bound,
)
from jaxprob.inference.vi._guide import Family
from jaxprob.inference.vi._objective import Objective, of_draws, weigh

GRADIENTS = ("path", "doubly_reparameterized", "vimco")


def importance_weighted(
    target: Any, guide: Family, *, draws: int = 8, gradient: str = "doubly_reparameterized", initial: Any = None
) -> Objective:
    r"""The importance-weighted bound: the higher the more draws, and with one of them the ELBO.

    $$E \log \frac{1}{n} \sum_i p(x_i) / q(x_i) \le \log Z$$

    With `vi.subsampled` the logarithm of a mean makes the bound of batches another one than that of all data.

    Args:
      target: a posterior, a `position -> scalar` log density on unconstrained positions, or `vi.subsampled`.
      guide: a family of guides, such as `vi.full_rank()`.
      draws: of the guide for each step.
      gradient: how draws give a gradient, without bias in each case. "path" differentiates all: the more draws, the
        more of it is noise. "doubly_reparameterized" avoids that. "vimco" needs no path, and so no gradient of the
        target, and serves guides of discrete positions; two draws at least.
      initial: a position around which the guide starts, or a function `key -> position`; by default the posterior's.

    Returns:
      an `Objective`, whose parameters are the guide.

    Raises:
      TypeError: if `guide` is no family or `target` has no log density.
      ValueError: for another `gradient`, too few `draws`, or no `initial` where one is needed.

    >>> from jaxprob.inference.vi import mean_field
    >>> objective = importance_weighted(lambda x: -0.5 * x**2, mean_field(), draws=4, initial=jnp.zeros(()))
    >>> objective.loss(objective.init(jax.random.key(0)), None, jax.random.key(1))[0].shape
    ()

    Source: Burda, Grosse & Salakhutdinov (2016), "Importance weighted autoencoders"; Tucker et al. (2019); Mnih &
    Rezende (2016); Rainforth et al. (2018), "Tighter variational bounds are not necessarily better", for the noise.
    """
    name = "importance_weighted"
    if gradient not in GRADIENTS:
        raise core.bad_value(name, "gradient", core.describe(gradient), f"one of {GRADIENTS}")
    if gradient == "vimco":
        core.check_whole(name, least=2, draws=draws)
    return of_draws(name, target, guide, draws, initial, core.Bound(_importance_weighted, draws, gradient))


def _importance_weighted(draws: int, gradient: str, log_density: Any, guide: Any, batch: Any, key: core.Key) -> Any:
    how = {"path": "path", "doubly_reparameterized": "stick_the_landing", "vimco": "score"}[gradient]
    _, log_weights, log_q = weigh(log_density, guide, batch, key, draws, how)
    if gradient == "path":
        value = importance_weighted_bound(log_weights)
    elif gradient == "vimco":
        value = vimco_bound(log_weights, log_q)
    else:
        value = doubly_reparameterized_bound(log_weights)
    return -value, {"elbo": value}


def renyi(target: Any, guide: Family, *, order: Any = 0.5, draws: int = 8, initial: Any = None) -> Objective:
    r"""Renyi's bound of an order a, by the path gradient: order 1 is the ELBO, order 0 the importance-weighted bound.

    $$\frac{1}{1 - a} \log E_q[(p(x) / q(x))^{1 - a}]$$

    Low orders make guides cover the target's mass, high ones seek its modes. From few draws the bound is estimated with
    a bias towards the ELBO, which falls as 1 / draws; what is optimised is the mean of the estimate.

    Args:
      target: as of `vi.elbo`.
      guide: a family of guides.
      order: (), any finite number; below 0 the bound is an upper one, for draws enough. A leaf, so that a new one
        compiles nothing.
      draws: of the guide for each step.
      initial: as of `vi.elbo`.

    Returns:
      an `Objective`, whose parameters are the guide; the metric "elbo" is the bound.

    Raises:
      TypeError: if `guide` is no family, `order` no number or `target` has no log density.
      ValueError: for an `order` that is not finite, `draws` below 1, or no `initial` where one is needed.

    >>> from jaxprob.inference.vi import mean_field
    >>> objective = renyi(lambda x: -0.5 * x**2, mean_field(), order=2.0, initial=jnp.zeros(()))
    >>> objective.loss(objective.init(jax.random.key(0)), None, jax.random.key(1))[0].shape
    ()

    Source: Li & Turner (2016), "Renyi divergence variational inference".
    """
    order = known_number("renyi", "order", order, math.isfinite, "a finite number")
    return of_draws("renyi", target, guide, draws, initial, core.Bound(_renyi, draws), order)


def _renyi(draws: int, order: jax.Array, log_density: Any, guide: Any, batch: Any, key: core.Key) -> Any:
    _, log_weights, _ = weigh(log_density, guide, batch, key, draws, "path")
    value = renyi_bound(log_weights, order)
    return -value, {"elbo": value}


def forward_kl(target: Any, guide: Family, *, draws: int = 64, initial: Any = None) -> Objective:
    r"""The inclusive divergence KL(p || q), by draws of the guide with normalised weights.

    $$KL(p \| q) = E_p[\log p(x) - \log q(x)] - \log Z$$

    A guide that it is fitted by is wide enough for all of the target. It needs no gradient of the target and no path.
    The bias is O(1 / draws), and large where the guide is far off: start with a wide guide.

    Args:
      target: as of `vi.elbo`.
      guide: a family of guides.
      draws: of the guide for each step.
      initial: as of `vi.elbo`.

    Returns:
      an `Objective`, whose parameters are the guide and whose loss is the divergence: `vi.fit` shows minus that as its
      `elbo`. Metrics: "elbo" (the evidence lower bound) and "divergence".

    Raises:
      TypeError: if `guide` is no family or `target` has no log density.
      ValueError: for `draws` below 2, or no `initial` where one is needed.

    >>> from jaxprob.inference.vi import mean_field
    >>> objective = forward_kl(lambda x: -0.5 * x**2, mean_field(1.0), initial=jnp.zeros(()))
    >>> loss, metrics = objective.loss(objective.init(jax.random.key(0)), None, jax.random.key(1))
    >>> round(loss.item(), 4), sorted(metrics)
    (0.0, ['divergence', 'elbo'])

    Source: Bornschein & Bengio (2015), "Reweighted wake-sleep"; Naesseth, Lindsten & Blei (2020), "Markovian score
    climbing", section 2, for the bias.
    """
    core.check_whole("forward_kl", least=2, draws=draws)
    return of_draws("forward_kl", target, guide, draws, initial, core.Bound(_forward_kl, draws))


def _forward_kl(draws: int, log_density: Any, guide: Any, batch: Any, key: core.Key) -> Any:
    _, log_weights, log_q = weigh(log_density, guide, batch, key, draws, "score")
    value = forward_divergence(log_weights, log_q)
    return value, {"elbo": jnp.mean(log_weights), "divergence": value}
