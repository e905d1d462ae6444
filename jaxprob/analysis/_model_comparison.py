"""How well a model predicts data it has not seen: leave-one-out by importance sampling, WAIC, and comparisons.

Log likelihoods have shape (chain, draw, ...): one entry for each observation that could be left out. Expected log
predictive densities (elpd) are sums over observations, higher is better.

Source: Vehtari, Gelman and Gabry (2017), "Practical Bayesian model evaluation using leave-one-out cross-validation and
WAIC", Statistics and Computing 27(5); Vehtari et al. (2024), "Pareto smoothed importance sampling", JMLR 25(72).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.analysis import _chains as chains
from jaxprob.analysis._psis import psis, psis_threshold

_MAX_WAIC_VARIANCE = 0.4
"""Posterior variance of one log likelihood beyond which WAIC is known to fail."""


class Loo(NamedTuple):
    """What `loo` returns; `str()` gives it in words.

    Attributes:
      elpd: (), expected log predictive density of the data, each observation predicted from the others.
      se: (), its standard error from the spread over observations.
      p: (), effective number of parameters.
      pointwise: (...), the terms of `elpd`.
      pareto_k: (...), how far leaving out this observation moves the posterior; see `psis`.
      threshold: (), the largest `pareto_k` that is reliable with this number of draws.
    """

    elpd: jax.Array
    se: jax.Array
    p: jax.Array
    pointwise: jax.Array
    pareto_k: jax.Array
    threshold: jax.Array

    def __str__(self) -> str:
        lines = [_headline("Leave-one-out", self)]
        k, threshold = np.asarray(self.pareto_k), float(self.threshold)
        bad = ~(k <= threshold)
        if not bad.any():
            return "\n".join([*lines, f"Every Pareto k is at most {threshold:.2f}: the estimate can be trusted."])
        worst = np.unravel_index(np.argmax(np.where(np.isnan(k), np.inf, k)), k.shape)
        where = ", ".join(str(int(i)) for i in worst)
        lines.append(
            f"Warning: Pareto k is above {threshold:.2f} for {bad.sum():,} of {k.size:,} observations (largest "
            f"{k[worst]:.2f}, at [{where}])."
        )
        lines.append(
            "Without one of those observations the posterior is too different for these draws to stand for it: the "
            "estimate is not reliable. Fit again without them, draw more if k is below 0.7, or use a model with "
            "heavier tails."
        )
        return "\n".join(lines)


class Waic(NamedTuple):
    """What `waic` returns; `str()` gives it in words.

    Attributes:
      elpd: (), expected log predictive density.
      se: (), its standard error from the spread over observations.
      p: (), effective number of parameters: the sum of `variance`.
      pointwise: (...), the terms of `elpd`.
      variance: (...), posterior variance of each log likelihood; above 0.4 the approximation fails.
    """

    elpd: jax.Array
    se: jax.Array
    p: jax.Array
    pointwise: jax.Array
    variance: jax.Array

    def __str__(self) -> str:
        bad = ~(np.asarray(self.variance) <= _MAX_WAIC_VARIANCE)
        if not bad.any():
            return _headline("WAIC", self)
        return "\n".join(
            [
                _headline("WAIC", self),
                f"Warning: the posterior variance of the log likelihood is above {_MAX_WAIC_VARIANCE} for "
                f"{bad.sum():,} of {bad.size:,} observations: WAIC is not reliable. Use loo, which says itself "
                "whether it is.",
            ]
        )


class Comparison(NamedTuple):
    """What `compare` returns, best model first; `str()` is a table.

    Attributes:
      names: the models.
      elpd, se, p: (model,), as in `Loo`.
      difference: (model,), elpd less that of the best model.
      difference_se: (model,), standard error of the difference, from the paired differences of the observations.
      unreliable: (model,), observations whose Pareto k (or WAIC variance) is too large.
    """

    names: tuple[str, ...]
    elpd: np.ndarray
    se: np.ndarray
    p: np.ndarray
    difference: np.ndarray
    difference_se: np.ndarray
    unreliable: np.ndarray

    def __str__(self) -> str:
        header = ["", "elpd", "se", "p", "difference", "its se", "unreliable"]
        rows = [
            [name, *(f"{column[i]:.1f}" for column in self[1:6]), str(self.unreliable[i])]
            for i, name in enumerate(self.names)
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in [header, *rows]
        ]
        return "\n".join(lines)


def loo(log_likelihood: Any, *, r_eff: Any = None) -> Loo:
    """Leave-one-out cross-validation from the draws of one posterior, by Pareto-smoothed importance sampling.

        elpd_i = log p(y_i | y without i),  estimated with weights 1 / p(y_i | theta_s), smoothed by `psis`

    Args:
      log_likelihood: (chain, draw, ...), the log likelihood of each observation at each draw.
      r_eff: relative efficiency of the draws: a number, or one for each observation, (...). By default that of each
        observation's likelihood, ESS / draws.

    Returns:
      `Loo(elpd, se, p, pointwise, pareto_k, threshold)`.

    Raises:
      ValueError: if `log_likelihood` has fewer than three axes: there would be no observations to leave out.

    >>> y = jax.random.normal(jax.random.key(0), (1, 1, 20))
    >>> mu = y.mean() + jax.random.normal(jax.random.key(1), (4, 500, 1)) / 20**0.5
    >>> result = loo(jax.scipy.stats.norm.logpdf(y, mu))
    >>> bool(abs(result.p - 1) < 0.5), bool((result.pareto_k < result.threshold).all())
    (True, True)

    Source: Vehtari, Gelman and Gabry (2017); Vehtari et al. (2024).
    """
    log_likelihood = _checked("loo", log_likelihood)
    if r_eff is None:
        efficiency = _relative_efficiency(log_likelihood)
        r_eff = jnp.where(jnp.isfinite(efficiency), efficiency, 1)
    number, draws, *rest = log_likelihood.shape
    values = log_likelihood.reshape(number * draws, *rest)
    log_weights, pareto_k = psis(-values, r_eff)
    return _loo(values, log_weights, pareto_k)


def waic(log_likelihood: Any) -> Waic:
    """The widely applicable information criterion, on the scale of log densities.

        elpd_i = log mean_s p(y_i | theta_s) - var_s log p(y_i | theta_s)

    Quicker than `loo` and less reliable.

    Args:
      log_likelihood: (chain, draw, ...), the log likelihood of each observation at each draw.

    Returns:
      `Waic(elpd, se, p, pointwise, variance)`.

    Raises:
      ValueError: if `log_likelihood` has fewer than three axes.

    >>> y = jax.random.normal(jax.random.key(0), (1, 1, 20))
    >>> mu = y.mean() + jax.random.normal(jax.random.key(1), (4, 500, 1)) / 20**0.5
    >>> bool(abs(waic(jax.scipy.stats.norm.logpdf(y, mu)).p - 1) < 0.5)
    True

    Source: Watanabe (2010), JMLR 11; Vehtari, Gelman and Gabry (2017).
    """
    return _waic(_checked("waic", log_likelihood))


def compare(models: Mapping[str, Loo | Waic]) -> Comparison:
    """Ranks models of the same observations by their expected log predictive density.

    A difference of less than about 4, or of less than two of its standard errors, says little.

    Args:
      models: name to result of `loo`, or name to result of `waic`, all for the same observations.

    Returns:
      a `Comparison`, best first.

    Raises:
      ValueError: if there are fewer than two models, or their results differ in kind or in observations.

    >>> good = 0.1 * jax.random.normal(jax.random.key(0), (4, 500, 20)) - 1.0
    >>> compare({"bad": loo(good - 0.5), "good": loo(good)}).names
    ('good', 'bad')

    Source: Vehtari, Gelman and Gabry (2017).
    """
    if len(models) < 2:
        raise core.bad_value("compare", "models", f"{len(models)} of them", "at least two")
    first_name, first = next(iter(models.items()))
    for name, result in models.items():
        if type(result) is not type(first):
            raise core.bad_value(
                "compare",
                f"models[{name!r}]",
                f"a {type(result).__name__}",
                f"a {type(first).__name__}, as for {first_name!r}",
            )
        if result.pointwise.shape != first.pointwise.shape:
            raise core.bad_value(
                "compare",
                f"models[{name!r}]",
                f"about observations of shape {result.pointwise.shape}",
                f"{first.pointwise.shape} as for {first_name!r}",
                "Only models of the same observations can be compared",
            )
    order = sorted(models, key=lambda name: -float(models[name].elpd))
    best = np.asarray(models[order[0]].pointwise, np.float64)
    gaps = [np.asarray(models[name].pointwise, np.float64) - best for name in order]

    def unreliable(result: Loo | Waic) -> int:
        if isinstance(result, Loo):
            return int(np.sum(~(np.asarray(result.pareto_k) <= float(result.threshold))))
        return int(np.sum(~(np.asarray(result.variance) <= _MAX_WAIC_VARIANCE)))

    results = [models[name] for name in order]
    return Comparison(
        names=tuple(order),
        elpd=np.array([float(result.elpd) for result in results]),
        se=np.array([float(result.se) for result in results]),
        p=np.array([float(result.p) for result in results]),
        difference=np.array([gap.sum() for gap in gaps]),
        difference_se=np.array([math.sqrt(gap.size * gap.var()) for gap in gaps]),
        unreliable=np.array([unreliable(result) for result in results]),
    )


def _headline(method: str, result: Loo | Waic) -> str:
    number = result.pointwise.size
    return (
        f"{method}: elpd {float(result.elpd):.1f} (standard error {float(result.se):.1f}) over {number:,} "
        f"observations, effective number of parameters {float(result.p):.1f}."
    )


def _checked(function: str, log_likelihood: Any) -> jax.Array:
    if jnp.ndim(log_likelihood) < 3:
        raise core.bad_value(
            function,
            "log_likelihood",
            log_likelihood,
            "an array (chain, draw, ...) with an entry for each observation",
            "Keep the log likelihoods of the observations apart; do not sum them",
        )
    return chains.prepare(function, log_likelihood)


def _spread(pointwise: jax.Array) -> jax.Array:
    """Standard error of a sum over observations."""
    return jnp.sqrt(pointwise.size * jnp.var(pointwise))


@jax.jit
def _relative_efficiency(log_likelihood: jax.Array) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        likelihood = jnp.exp(x - jnp.max(x))
        return chains.where_defined(x, chains.ess(chains.split(likelihood)) / x.size)

    return chains.over_quantities(one, log_likelihood)


@jax.jit
def _loo(values: jax.Array, log_weights: jax.Array, pareto_k: jax.Array) -> Loo:
    pointwise = jax.nn.logsumexp(log_weights + values, axis=0)
    with_all = jax.nn.logsumexp(values, axis=0) - math.log(values.shape[0])
    threshold = jnp.asarray(psis_threshold(values.shape[0]), values.dtype)
    return Loo(jnp.sum(pointwise), _spread(pointwise), jnp.sum(with_all - pointwise), pointwise, pareto_k, threshold)


@jax.jit
def _waic(log_likelihood: jax.Array) -> Waic:
    size = log_likelihood.shape[0] * log_likelihood.shape[1]
    variance = jnp.var(log_likelihood, axis=(0, 1))
    pointwise = jax.nn.logsumexp(log_likelihood, axis=(0, 1)) - math.log(size) - variance
    return Waic(jnp.sum(pointwise), _spread(pointwise), jnp.sum(variance), pointwise, variance)
