"""Targets whose law is known: exact draws in NumPy, laws from SciPy, tables by enumeration. No code of ours.

A kernel that leaves the law of a target as it is must turn exact draws into exact draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

Position = Any


class Target(NamedTuple):
    """A target.

    Attributes:
      log_density: `position -> scalar`.
      draw: `(rng, n) -> positions` (n, ...), exact.
      laws: `positions (n, ...) -> {name: (values (n,), cdf)}`: quantities whose law is continuous and known.
      table: `positions (n, ...) -> (codes (n,), probabilities (codes,))`, of the discrete part, or None.
      prior: (mean, covariance) of a Gaussian prior on a flat position, or None.
      log_likelihood: `position -> scalar`, what makes log_density of that prior, or None.
      far: a position to start from that is no typical draw.
    """

    log_density: Callable[[Position], Any]
    draw: Callable[[np.random.Generator, int], Position]
    laws: Callable[[Position], dict[str, tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]]]
    table: Callable[[Position], tuple[np.ndarray, np.ndarray]] | None = None
    prior: tuple[Any, Any] | None = None
    log_likelihood: Callable[[Position], Any] | None = None
    far: Position = None


# A correlated Gaussian in four dimensions, in two leaves.
_ROOT = np.array([[0.5, 0, 0, 0], [0.8, 0.9, 0, 0], [-0.3, 0.4, 1.6, 0], [0.2, 0.1, -0.5, 0.7]])
COVARIANCE = _ROOT @ _ROOT.T
_MEAN = np.array([1.0, -0.5, 0.0, 2.0])
_PRECISION = np.linalg.inv(COVARIANCE)


def _gaussian() -> Target:
    def log_density(q):
        x = jnp.concatenate([q["a"], q["b"].reshape(1)])
        z = x - jnp.asarray(_MEAN, x.dtype)
        return -0.5 * jnp.sum(jnp.asarray(_PRECISION, x.dtype) * jnp.expand_dims(z, 0) * jnp.expand_dims(z, 1))

    def draw(rng, n):
        x = _MEAN + rng.normal(size=(n, 4)) @ _ROOT.T
        return {"a": x[:, :3], "b": x[:, 3]}

    def laws(q):
        x = np.concatenate([q["a"], q["b"][:, None]], axis=1)
        scales = np.sqrt(np.diag(COVARIANCE))
        named = {f"x{k}": (x[:, k], scipy.stats.norm(_MEAN[k], scales[k]).cdf) for k in range(4)}
        # A combination that the correlations decide on.
        smallest = np.linalg.eigh(COVARIANCE)[1][:, 0]
        law = scipy.stats.norm(_MEAN @ smallest, np.sqrt(smallest @ COVARIANCE @ smallest))
        return named | {"narrow": (x @ smallest, law.cdf)}

    far = {"a": np.array([4.0, 4.0, -4.0]), "b": np.array(-3.0)}
    return Target(log_density, draw, laws, far=far)


# log Gamma(2, 1), two correlated normals, a Student t with 4 degrees of freedom.
CORRELATION = 0.8


def _skewed() -> Target:
    def log_density(q):
        a, (x, y), t = q["a"], q["b"], q["t"]
        gaussian = -0.5 * (x**2 - 2 * CORRELATION * x * y + y**2) / (1 - CORRELATION**2)
        return 2 * a - jnp.exp(a) + gaussian - 2.5 * jnp.log1p(t**2 / 4)

    def draw(rng, n):
        b = rng.normal(size=(n, 2))
        b[:, 1] = CORRELATION * b[:, 0] + np.sqrt(1 - CORRELATION**2) * b[:, 1]
        return {"a": np.log(rng.gamma(2.0, size=n)), "b": b, "t": rng.standard_t(4, size=n)}

    def laws(q):
        return {
            "a": (np.exp(q["a"]), scipy.stats.gamma(2).cdf),
            "x": (q["b"][:, 0], scipy.stats.norm.cdf),
            "y": (q["b"][:, 1], scipy.stats.norm.cdf),
            "apart": (q["b"][:, 0] - q["b"][:, 1], scipy.stats.norm(0, np.sqrt(2 - 2 * CORRELATION)).cdf),
            "t": (q["t"], scipy.stats.t(4).cdf),
        }

    return Target(log_density, draw, laws, far={"a": np.array(1.5), "b": np.array([-3.0, 2.0]), "t": np.array(4.0)})


# Neal's funnel with a neck of standard deviation 1.5 and three arms.
NECK = 1.5


def _funnel() -> Target:
    def log_density(q):
        v, x = q["v"], q["x"]
        return -0.5 * (v / NECK) ** 2 - 1.5 * v - 0.5 * jnp.sum(x * x) * jnp.exp(-v)

    def draw(rng, n):
        v = NECK * rng.normal(size=n)
        return {"v": v, "x": np.exp(v / 2)[:, None] * rng.normal(size=(n, 3))}

    def laws(q):
        z = q["x"] * np.exp(-q["v"] / 2)[:, None]
        named = {"v": (q["v"], scipy.stats.norm(0, NECK).cdf)}
        return named | {f"z{k}": (z[:, k], scipy.stats.norm.cdf) for k in range(3)}

    return Target(log_density, draw, laws, far={"v": np.array(2.0), "x": np.array([3.0, -3.0, 3.0])})


def _mixture() -> Target:
    """0.3 N(-1.5, 0.6^2) + 0.7 N(1, 1) in one dimension."""

    def log_density(x):
        left = np.log(0.3 / 0.6) - 0.5 * ((x + 1.5) / 0.6) ** 2
        return jnp.logaddexp(left, np.log(0.7) - 0.5 * (x - 1) ** 2)

    def draw(rng, n):
        left = rng.uniform(size=n) < 0.3
        return np.where(left, -1.5 + 0.6 * rng.normal(size=n), 1 + rng.normal(size=n))

    def cdf(x):
        return 0.3 * scipy.stats.norm.cdf(x, -1.5, 0.6) + 0.7 * scipy.stats.norm.cdf(x, 1, 1)

    return Target(log_density, draw, lambda x: {"x": (x, cdf)}, far=np.array(4.0))


def _beta_binomial() -> Target:
    """The logit of a probability: prior Beta(2, 3), 7 successes of 20; posterior Beta(9, 16)."""

    def log_density(q):
        return 9 * jax.nn.log_sigmoid(q) + 16 * jax.nn.log_sigmoid(-q)

    def draw(rng, n):
        p = rng.beta(9, 16, size=n)
        return np.log(p / (1 - p))

    def laws(q):
        return {"p": (1 / (1 + np.exp(-q)), scipy.stats.beta(9, 16).cdf)}

    return Target(log_density, draw, laws, far=np.array(3.0))


# A Gaussian random walk, observed with noise at six of eight times: the path is a flat vector with a Gaussian prior.
TIMES = 8
_OBSERVED = np.array([0, 1, 3, 4, 6, 7], np.int32)
_SERIES = np.array([0.4, 1.3, 0.2, -0.9, -1.8, -2.0])
_NOISE = 0.6


def _path() -> Target:
    steps = np.minimum.outer(np.arange(1, TIMES + 1), np.arange(1, TIMES + 1)) * 0.5
    mean = np.full(TIMES, 0.3)
    design = np.eye(TIMES)[_OBSERVED]
    precision = np.linalg.inv(steps) + design.T @ design / _NOISE**2
    covariance = np.linalg.inv(precision)
    centre = covariance @ (np.linalg.solve(steps, mean) + design.T @ _SERIES / _NOISE**2)
    prior_precision = np.linalg.inv(steps)

    def log_likelihood(x):
        return -0.5 * jnp.sum(((jnp.asarray(_SERIES, x.dtype) - x[_OBSERVED]) / _NOISE) ** 2)

    def log_density(x):
        z = x - jnp.asarray(mean, x.dtype)
        matrix = jnp.asarray(prior_precision, x.dtype)
        return log_likelihood(x) - 0.5 * jnp.sum(matrix * jnp.expand_dims(z, 0) * jnp.expand_dims(z, 1))

    def draw(rng, n):
        return centre + rng.normal(size=(n, TIMES)) @ np.linalg.cholesky(covariance).T

    def laws(x):
        scales = np.sqrt(np.diag(covariance))
        named = {f"x{t}": (x[:, t], scipy.stats.norm(centre[t], scales[t]).cdf) for t in range(TIMES)}
        spread = np.ones(TIMES)
        law = scipy.stats.norm(spread @ centre, np.sqrt(spread @ covariance @ spread))
        return named | {"sum": (x.sum(axis=1), law.cdf)}

    return Target(log_density, draw, laws, None, (mean, steps), log_likelihood, far=np.linspace(4, -4, TIMES))


# Nine spins on a square, each 0 or 1, with neighbours that like to agree and fields of their own.
_COUPLING = 0.45
_FIELDS = np.array([[0.3, -0.2, 0.1], [0.0, 0.4, -0.3], [-0.1, 0.2, 0.0]])


def _ising() -> Target:
    def energy(xp, spins, fields):
        pairs = xp.sum(spins[..., 1:, :] * spins[..., :-1, :], (-1, -2)) + xp.sum(
            spins[..., :, 1:] * spins[..., :, :-1], (-1, -2)
        )
        return _COUPLING * pairs + xp.sum(spins * fields, (-1, -2))

    states = np.array(list(itertools.product((0, 1), repeat=9))).reshape(-1, 3, 3)
    weights = np.exp(energy(np, 2.0 * states - 1, _FIELDS))
    probabilities = weights / weights.sum()

    def log_density(x):
        spins = 2.0 * x.astype(jnp.result_type(float)) - 1
        return energy(jnp, spins, jnp.asarray(_FIELDS, spins.dtype))

    def draw(rng, n):
        return states[rng.choice(512, size=n, p=probabilities)].astype(np.int32)

    def table(x):
        return x.reshape(len(x), 9) @ 2 ** np.arange(8, -1, -1), probabilities

    return Target(log_density, draw, lambda x: {}, table, far=np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], np.int32))


# A label of three values and a number whose law depends on it.
_WEIGHTS, _CENTRES, _SPREADS = np.array([0.2, 0.5, 0.3]), np.array([-1.0, 0.5, 1.5]), np.array([0.7, 1.0, 0.5])


def _labelled() -> Target:
    def log_density(q):
        x, label = q["x"], q["label"]
        centre, spread = (jnp.asarray(a, x.dtype)[label] for a in (_CENTRES, _SPREADS))
        return jnp.log(jnp.asarray(_WEIGHTS, x.dtype)[label] / spread) - 0.5 * ((x - centre) / spread) ** 2

    def draw(rng, n):
        label = rng.choice(3, size=n, p=_WEIGHTS)
        return {"label": label.astype(np.int32), "x": _CENTRES[label] + _SPREADS[label] * rng.normal(size=n)}

    def laws(q):
        # The number given its label is standard normal once standardised; on its own it is a mixture.
        def cdf(x):
            return sum(w * scipy.stats.norm.cdf(x, m, s) for w, m, s in zip(_WEIGHTS, _CENTRES, _SPREADS, strict=True))

        z = (q["x"] - _CENTRES[q["label"]]) / _SPREADS[q["label"]]
        return {"x": (q["x"], cdf), "z": (z, scipy.stats.norm.cdf)}

    far = {"label": np.array(0, np.int32), "x": np.array(4.0)}
    return Target(log_density, draw, laws, lambda q: (q["label"], _WEIGHTS), far=far)


TARGETS = {
    "gaussian": _gaussian(),
    "skewed": _skewed(),
    "funnel": _funnel(),
    "mixture": _mixture(),
    "beta-binomial": _beta_binomial(),
    "path": _path(),
    "ising": _ising(),
    "labelled": _labelled(),
}
