"""One table row for each distribution of one real number, and what the battery computes for a row.

A row names the class, parameter settings (arrays with one entry a setting: ordinary ones first, then extremes) and the
SciPy distribution with the same parameters. To put a new distribution through the whole battery, add a row to `CASES`.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import integrate, stats

from jaxprob import distributions as d

PROBABILITIES = np.array([1e-3, 0.1, 0.4, 0.5, 0.8, 0.99, 0.9999])


class Case(NamedTuple):
    """One distribution under test.

    Attributes:
      make: the class.
      parameters: keyword to one value a setting.
      reference: `(**parameters) -> frozen SciPy distribution`.
      outside: values outside the support, of every setting.
      ends: the support's ends, where they are fixed numbers.
      held: bounds that points are moved into, so that float32 can hold them.
      sampled: settings whose draws float32 can hold (of the others nearly all underflow, as they should).
      instead: quantity to `(**parameters) -> expected` where SciPy has none, or another one.
      missing: quantities without a closed form.
      rtol: error of a float32 log density, relative to one more than its size.
    """

    make: Callable[..., Any]
    parameters: dict[str, list[float]]
    reference: Callable[..., Any]
    outside: tuple[float, ...] = ()
    ends: tuple[float, float] = (-np.inf, np.inf)
    held: tuple[float, float] = (-np.inf, np.inf)
    sampled: tuple[int, ...] | None = None
    instead: dict[str, Callable[..., Any]] = {}
    missing: tuple[str, ...] = ()
    rtol: float = 2e-6

    def values(self, dtype: Any) -> dict[str, np.ndarray]:
        """The parameters as `dtype` holds them, in float64."""
        return {name: np.asarray(value, dtype).astype(float) for name, value in self.parameters.items()}

    def build(self, dtype: Any) -> Any:
        return self.make(**{name: jnp.asarray(np.asarray(value, dtype)) for name, value in self.parameters.items()})

    def points(self, dtype: Any) -> np.ndarray:
        """(points, settings) quantiles, as `dtype` holds them."""
        quantiles = self.reference(**self.values(dtype)).ppf(PROBABILITIES[:, None])
        return np.clip(quantiles, *self.held).astype(dtype)

    def expected(self, what: str, dtype: Any) -> np.ndarray:
        values = self.values(dtype)
        if what in self.instead:
            return np.asarray(self.instead[what](**values))
        frozen = self.reference(**values)
        return np.asarray(getattr(frozen, {"variance": "var"}.get(what, what))())


def _truncated(loc: Any, scale: Any, low: Any = -np.inf, high: Any = np.inf) -> Any:
    return stats.truncnorm((low - loc) / scale, (high - loc) / scale, loc, scale)


def _truncated_integral(integrand: Callable[[Any, Any], Any], **values: Any) -> np.ndarray:
    """Integrals of `integrand(frozen, x) * pdf`, one a setting: SciPy's own variance has 7 digits in the tails."""

    def one(*row: Any) -> float:
        frozen = _truncated(**dict(zip(values, row, strict=True)))
        edges = frozen.ppf([0, 1e-12, 0.1, 0.5, 0.9, 1 - 1e-12, 1])
        edges[[0, -1]] = np.where(np.isfinite(edges[[0, -1]]), edges[[0, -1]], edges[[1, -2]])
        pieces = itertools.pairwise(edges)
        function = lambda x: integrand(frozen, x) * frozen.pdf(x)  # noqa: E731
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", integrate.IntegrationWarning)  # The outermost pieces are nearly empty.
            return sum(integrate.quad(function, a, b, epsabs=0, epsrel=1e-10)[0] for a, b in pieces)

    return np.array([one(*row) for row in zip(*values.values(), strict=True)])


TRUNCATED = {
    "entropy": partial(_truncated_integral, lambda frozen, x: -frozen.logpdf(x)),
    "variance": partial(_truncated_integral, lambda frozen, x: (x - frozen.mean()) ** 2),
}


def _angle_variance(loc: Any, concentration: Any) -> np.ndarray:
    def one(k: float) -> float:
        reach = min(np.pi, 12 / np.sqrt(k))
        density = lambda t: np.exp(k * (np.cos(t) - 1))  # noqa: E731
        return integrate.quad(lambda t: t**2 * density(t), 0, reach)[0] / integrate.quad(density, 0, reach)[0]

    return np.array([one(k) for k in concentration])


CASES = {
    "Normal": Case(
        d.Normal, {"loc": [0.3, -40.0, 0.0], "scale": [2.0, 1e-3, 1e6]}, lambda loc, scale: stats.norm(loc, scale)
    ),
    "StudentT": Case(
        d.StudentT,
        {"df": [3.0, 0.4, 1e6, 1.5], "loc": [0.3, -2.0, 0.0, 0.0], "scale": [2.0, 0.5, 1.0, 1e3]},
        lambda df, loc, scale: stats.t(df, loc, scale),
        instead={"mean": lambda df, loc, scale: np.where(df > 1, loc, np.nan)},
        missing=("quantile",),
    ),
    "Cauchy": Case(d.Cauchy, {"loc": [0.3, -40.0], "scale": [2.0, 1e-3]}, lambda loc, scale: stats.cauchy(loc, scale)),
    "Laplace": Case(
        d.Laplace, {"loc": [0.3, -40.0], "scale": [2.0, 1e-3]}, lambda loc, scale: stats.laplace(loc, scale)
    ),
    "Logistic": Case(
        d.Logistic, {"loc": [0.3, -40.0], "scale": [2.0, 1e-3]}, lambda loc, scale: stats.logistic(loc, scale)
    ),
    "HalfNormal": Case(
        d.HalfNormal,
        {"scale": [2.0, 1e-3, 1e6]},
        lambda scale: stats.halfnorm(scale=scale),
        outside=(-1.0, -1e-6, -1e10),
        ends=(0, np.inf),
    ),
    "HalfCauchy": Case(
        d.HalfCauchy,
        {"scale": [2.0, 1e-3, 1e6]},
        lambda scale: stats.halfcauchy(scale=scale),
        outside=(-1.0, -1e-6, -1e10),
        ends=(0, np.inf),
    ),
    "LogNormal": Case(
        d.LogNormal,
        {"loc": [0.3, -3.0, 2.0], "scale": [0.8, 0.01, 1.5]},
        lambda loc, scale: stats.lognorm(scale, scale=np.exp(loc)),
        outside=(-1.0, 0.0),
        ends=(0, np.inf),
        rtol=2e-5,  # log(x) near -3 over a scale of 0.01.
    ),
    "Exponential": Case(
        d.Exponential,
        {"rate": [0.7, 1e4, 1e-4]},
        lambda rate: stats.expon(scale=1 / rate),
        outside=(-1.0, -1e-6),
        ends=(0, np.inf),
    ),
    "Gamma": Case(
        d.Gamma,
        {"concentration": [2.5, 1e4, 1.0, 1e-3], "rate": [0.7, 30.0, 1e-3, 2.0]},
        lambda concentration, rate: stats.gamma(concentration, scale=1 / rate),
        outside=(-1.0, 0.0),
        ends=(0, np.inf),
        held=(1e-30, np.inf),
        sampled=(0, 1, 2),
        missing=("quantile",),
        rtol=5e-6,
    ),
    "InverseGamma": Case(
        d.InverseGamma,
        {"concentration": [3.5, 1e4, 1.5, 0.6], "scale": [0.7, 3e3, 2.0, 1e-3]},
        lambda concentration, scale: stats.invgamma(concentration, scale=scale),
        outside=(-1.0, 0.0),
        ends=(0, np.inf),
        missing=("quantile",),
        rtol=5e-6,
    ),
    "Weibull": Case(
        d.Weibull,
        {"concentration": [1.7, 0.5, 200.0], "scale": [0.7, 2.0, 3.0]},
        lambda concentration, scale: stats.weibull_min(concentration, scale=scale),
        outside=(-1.0, 0.0),
        ends=(0, np.inf),
        rtol=5e-5,  # The power multiplies the rounding of log(x) by 200.
    ),
    "Uniform": Case(
        d.Uniform,
        {"low": [-1.0, 5.0], "high": [2.0, 5.001]},
        lambda low, high: stats.uniform(low, high - low),
        outside=(-1.5, 6.0),
    ),
    "Beta": Case(
        d.Beta,
        {"concentration1": [2.5, 1e4, 1.0, 1e-3], "concentration0": [0.7, 2e4, 1.0, 2.0]},
        lambda concentration1, concentration0: stats.beta(concentration1, concentration0),
        outside=(-0.5, 1.5),
        ends=(0, 1),
        held=(1e-30, 1 - 1e-5),
        sampled=(0, 1, 2),
        missing=("quantile",),
        rtol=2e-5,
    ),
    "TruncatedNormal": Case(
        d.TruncatedNormal,
        {
            "loc": [0.5, 0.0, 0.0, 0.0, 0.0],
            "scale": [2.0, 1.0, 1.0, 1.0, 1.0],
            "low": [-1.0, 5.0, -7.0, 20.0, -1e-3],
            "high": [2.0, 6.0, 9.0, 21.0, 2e-3],
        },
        _truncated,
        outside=(-8.0, 30.0),
        instead=TRUNCATED,
    ),
    "TruncatedNormal above": Case(
        d.TruncatedNormal,
        {"loc": [0.5, 0.0, 0.0], "scale": [2.0, 1.0, 1.0], "low": [-1.0, 10.0, 0.0]},
        _truncated,
        outside=(-8.0, -1.5),
        instead=TRUNCATED,
    ),
    "TruncatedNormal below": Case(
        d.TruncatedNormal,
        {"loc": [0.5, 0.0, 0.0], "scale": [2.0, 1.0, 1.0], "high": [-1.0, -30.0, 3.0]},
        _truncated,
        outside=(8.0,),
        instead=TRUNCATED,
    ),
    "VonMises": Case(
        d.VonMises,
        {"loc": [0.3, -1.0, 0.0, 0.0], "concentration": [2.0, 1e4, 1e-3, 25.0]},
        lambda loc, concentration: stats.vonmises(concentration, loc),
        instead={"variance": _angle_variance, "mean": lambda loc, concentration: loc},
        missing=("cdf", "quantile"),
    ),
}


def evaluate(case: Case, dtype: Any) -> dict[str, Any]:
    """Everything that the battery compares, from one compiled program, as float64 NumPy; gradients in float32 alone."""
    points = case.points(dtype)
    outside = np.array(case.outside, dtype).reshape(-1, 1)
    values = np.concatenate([points, np.broadcast_to(outside, (len(outside), points.shape[1]))])
    probabilities = jnp.asarray(PROBABILITIES.astype(dtype))[:, None]

    # Compiled without LLVM's optimisations, which take most of the time and change no rounding.
    @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def program(distribution: Any, values: Any) -> dict[str, Any]:
        result = {name: getattr(distribution, name)() for name in ("mean", "variance", "entropy")}
        if dtype == np.float32:
            result["log_prob"], pull = jax.vjp(lambda d, x: d.log_prob(x), distribution, values)
            inside = (np.arange(len(values)) < len(points)).astype(dtype)[:, None]
            result["gradients"], result["slope"] = pull(jnp.broadcast_to(inside, values.shape))
            result["outside_gradients"], _ = pull(jnp.broadcast_to(1 - inside, values.shape))
        else:
            result["log_prob"] = distribution.log_prob(values)
        if "cdf" not in case.missing:
            result["cdf"] = distribution.cdf(values)
        if "quantile" not in case.missing:
            result["quantile"] = distribution.quantile(probabilities)
        return result

    result = program(case.build(dtype), values)
    assert all(leaf.dtype == dtype for leaf in jax.tree.leaves(result))
    result = jax.tree.map(lambda leaf: np.asarray(leaf, float), result)
    for name in {"log_prob", "slope", "cdf"} & set(result):
        result[name], result[f"outside_{name}"] = np.split(result[name], [len(points)])
    return result


def slope(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Fourth-order central difference of a NumPy function."""
    difference = lambda k: function(at + k * step) - function(at - k * step)  # noqa: E731
    with np.errstate(invalid="ignore"):  # Infinite on both sides, at points that the tests leave out.
        return (8 * difference(1) - difference(2)) / (12 * step)


def natural_scale(case: Case, name: str, dtype: Any) -> np.ndarray:
    """The size of a change of a parameter that matters: the spread for a location, else the parameter itself."""
    values = case.values(dtype)
    frozen = case.reference(**values)
    return frozen.ppf(0.75) - frozen.ppf(0.25) if name in ("loc", "low", "high") else values[name]
