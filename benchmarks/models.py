"""Models of the MCMC benchmark besides the reference posteriors, as plain log densities of unconstrained positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.targets import Position, Target, normal


def gaussian_100() -> Target:
    """A rotated Gaussian in 100 dimensions, variances from 0.01 to 100."""
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 100)))[0]
    precision = jnp.asarray(rotation @ np.diag(1 / np.geomspace(0.01, 100, 100)) @ rotation.T, jnp.float32)

    def log_density(q: Position) -> jax.Array:
        return -0.5 * q["x"] @ (precision @ q["x"])

    return Target(log_density, {"x": (100,)}, lambda q: q)


def funnel() -> Target:
    """Neal's funnel: a neck of standard deviation 3 and nine arms."""

    def log_density(q: Position) -> jax.Array:
        return -0.5 * (q["v"] / 3) ** 2 - 4.5 * q["v"] - 0.5 * jnp.sum(q["x"] ** 2) * jnp.exp(-q["v"])

    return Target(log_density, {"v": (), "x": (9,)}, lambda q: {"v": q["v"]})


def logistic_31() -> Target:
    """Logistic regression on scikit-learn's breast cancer data, standardised, with an intercept."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    columns = (data.data - data.data.mean(0)) / data.data.std(0)
    design = jnp.asarray(np.c_[np.ones(len(columns)), columns], jnp.float32)
    outcome = jnp.asarray(data.target, jnp.float32)

    def log_density(q: Position) -> jax.Array:
        logits = design @ q["beta"]
        return jnp.sum(outcome * logits - jax.nn.softplus(logits)) + normal(q["beta"])

    return Target(log_density, {"beta": (31,)}, lambda q: q)


def _counties() -> tuple[jax.Array, jax.Array]:
    import statsmodels.api as sm

    counties = sm.datasets.cancer.load_pandas().data
    cases = jnp.asarray(counties.cancer.to_numpy(), jnp.float32)
    return cases, jnp.asarray(np.log(counties.population.to_numpy()), jnp.float32)


def _cancer_prior(q: Position) -> jax.Array:
    return normal(q["mu"], -6.0, 2.0) - 0.5 * (jnp.exp(q["log_tau"]) / 0.5) ** 2 + q["log_tau"]


def cancer_noncentred() -> Target:
    """Poisson counts of cancer in 301 counties (statsmodels), county effects standardised."""
    cases, log_population = _counties()

    def log_density(q: Position) -> jax.Array:
        log_mean = log_population + q["mu"] + jnp.exp(q["log_tau"]) * q["offset"]
        return _cancer_prior(q) + normal(q["offset"]) + jnp.sum(cases * log_mean - jnp.exp(log_mean))

    def constrain(q: Position) -> dict[str, jax.Array]:
        tau = jnp.exp(q["log_tau"])
        return {"mu": q["mu"], "tau": tau, "effect": q["mu"] + tau * q["offset"]}

    return Target(log_density, {"mu": (), "log_tau": (), "offset": (cases.size,)}, constrain)


def cancer_centred() -> Target:
    """The same model, county effects as they are."""
    cases, log_population = _counties()

    def log_density(q: Position) -> jax.Array:
        log_mean = log_population + q["effect"]
        effects = normal(q["effect"], q["mu"], jnp.exp(q["log_tau"]))
        return _cancer_prior(q) + effects + jnp.sum(cases * log_mean - jnp.exp(log_mean))

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {"mu": q["mu"], "tau": jnp.exp(q["log_tau"]), "effect": q["effect"]}

    return Target(log_density, {"mu": (), "log_tau": (), "effect": (cases.size,)}, constrain)


def _inflation() -> jax.Array:
    """Quarterly inflation in the United States (statsmodels' macrodata), about its mean."""
    import statsmodels.api as sm

    inflation = sm.datasets.macrodata.load_pandas().data.infl.to_numpy()[1:]
    return jnp.asarray(inflation - inflation.mean(), jnp.float32)


def _volatility(q: Position) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Level, persistence and scale of an AR(1) of log volatilities, and the log prior of the three."""
    mu, phi, sigma = q["mu"], jnp.tanh(q["arctanh_phi"]), jnp.exp(q["log_sigma"])
    # phi has the prior of 2 Beta(20, 1.5) - 1.
    prior = normal(mu, 0.0, 5.0) + 20 * jnp.log1p(phi) + 1.5 * jnp.log1p(-phi)
    return mu, phi, sigma, prior - 0.5 * sigma**2 + q["log_sigma"]


def stochastic_volatility() -> Target:
    """Log volatility of quarterly inflation, an AR(1), as it is."""
    y = _inflation()

    def log_density(q: Position) -> jax.Array:
        h = q["h"]
        mu, phi, sigma, prior = _volatility(q)
        path = normal(h[0], mu, sigma / jnp.sqrt(1 - phi * phi)) + normal(h[1:], mu + phi * (h[:-1] - mu), sigma)
        return prior + path - 0.5 * jnp.sum(h + y * y * jnp.exp(-h))

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {"mu": q["mu"], "phi": jnp.tanh(q["arctanh_phi"]), "sigma": jnp.exp(q["log_sigma"]), "h": q["h"]}

    shapes: dict[str, tuple[int, ...]] = {"mu": (), "arctanh_phi": (), "log_sigma": (), "h": (y.size,)}
    return Target(log_density, shapes, constrain)


def stochastic_volatility_noncentred() -> Target:
    """The same posterior in the standardised innovations of the AR(1), which long chains explore much faster."""
    y = _inflation()

    def path(q: Position) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
        mu, phi, sigma, prior = _volatility(q)
        scale = jnp.full_like(q["innovation"], sigma).at[0].divide(jnp.sqrt(1 - phi * phi))

        def join(early: tuple[jax.Array, jax.Array], late: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            return early[0] * late[0], late[0] * early[1] + late[1]

        decays = jnp.full_like(scale, phi)
        away = jax.lax.associative_scan(join, (decays, scale * q["innovation"]))[1]
        return mu, phi, sigma, prior, mu + away

    def log_density(q: Position) -> jax.Array:
        _, _, _, prior, h = path(q)
        return prior + normal(q["innovation"]) - 0.5 * jnp.sum(h + y * y * jnp.exp(-h))

    def constrain(q: Position) -> dict[str, jax.Array]:
        mu, phi, sigma, _, h = path(q)
        return {"mu": mu, "phi": phi, "sigma": sigma, "h": h}

    shapes: dict[str, tuple[int, ...]] = {"mu": (), "arctanh_phi": (), "log_sigma": (), "innovation": (y.size,)}
    return Target(log_density, shapes, constrain)


def item_response() -> Target:
    """Two-parameter logistic item response: 100 persons and 20 items, simulated."""
    rng = np.random.default_rng(1)
    ability, discrimination, difficulty = rng.normal(size=100), np.exp(0.4 * rng.normal(size=20)), rng.normal(size=20)
    chance = 1 / (1 + np.exp(-discrimination * (ability[:, None] - difficulty)))
    answers = jnp.asarray(rng.uniform(size=chance.shape) < chance, jnp.float32)

    def log_density(q: Position) -> jax.Array:
        apart = jnp.expand_dims(q["ability"], 1) - jnp.expand_dims(q["difficulty"], 0)
        logits = jnp.expand_dims(jnp.exp(q["log_discrimination"]), 0) * apart
        prior = normal(q["ability"]) + normal(q["log_discrimination"], 0.0, 0.5)
        spread = jnp.exp(q["log_spread"])
        prior += normal(q["difficulty"], 0.0, spread) - 0.5 * (spread / 2) ** 2 + q["log_spread"]
        return prior + jnp.sum(answers * logits - jax.nn.softplus(logits))

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {
            "ability": q["ability"],
            "discrimination": jnp.exp(q["log_discrimination"]),
            "difficulty": q["difficulty"],
            "spread": jnp.exp(q["log_spread"]),
        }

    shapes: dict[str, tuple[int, ...]] = {
        "ability": (100,),
        "log_discrimination": (20,),
        "difficulty": (20,),
        "log_spread": (),
    }
    return Target(log_density, shapes, constrain)


def gaussian_process() -> Target:
    """Gaussian process regression on 60 yearly numbers of sunspots (statsmodels): length, amplitude and noise."""
    import statsmodels.api as sm

    spots = sm.datasets.sunspots.load_pandas().data.SUNACTIVITY.to_numpy()[-60:]
    y = jnp.asarray((spots - spots.mean()) / spots.std(), jnp.float32)
    squares = jnp.asarray((np.arange(60.0)[:, None] - np.arange(60.0)) ** 2, jnp.float32)

    def log_density(q: Position) -> jax.Array:
        rho, alpha, sigma = jnp.exp(q["log_rho"]), jnp.exp(q["log_alpha"]), jnp.exp(q["log_sigma"])
        kernel = alpha**2 * jnp.exp(-0.5 * squares / rho**2) + (sigma**2 + 1e-4) * jnp.eye(60, dtype=y.dtype)
        factor = jnp.linalg.cholesky(kernel)
        white = jax.scipy.linalg.solve_triangular(factor, y, lower=True)
        prior = normal(q["log_rho"], 1.0, 0.5) + normal(q["log_alpha"], 0.0, 0.5) + normal(q["log_sigma"], -1.0, 1.0)
        return prior - 0.5 * jnp.sum(white * white) - jnp.sum(jnp.log(jnp.diagonal(factor)))

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {name: jnp.exp(q[f"log_{name}"]) for name in ("rho", "alpha", "sigma")}

    return Target(log_density, {"log_rho": (), "log_alpha": (), "log_sigma": ()}, constrain)


MODELS: dict[str, Callable[[], Target]] = {
    "gaussian_100": gaussian_100,
    "funnel": funnel,
    "logistic_31": logistic_31,
    "cancer_noncentred": cancer_noncentred,
    "cancer_centred": cancer_centred,
    "stochastic_volatility": stochastic_volatility,
    "item_response": item_response,
    "gaussian_process": gaussian_process,
}

# Coordinates in which a long reference run of the same posterior mixes, where those of the benchmark do not.
REFERENCE_COORDINATES: dict[str, Callable[[], Target]] = {"stochastic_volatility": stochastic_volatility_noncentred}


def closed_form(model: str) -> dict[str, dict[str, float]] | None:
    """Means and standard deviations where they are known."""
    known: dict[str, Any] = {"funnel": {"v": {"mean": 0.0, "sd": 3.0}}}
    if model == "gaussian_100":
        rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(100, 100)))[0]
        sd = np.sqrt(np.sum(rotation**2 * np.geomspace(0.01, 100, 100), axis=1))
        return {f"x[{k + 1}]": {"mean": 0.0, "sd": float(sd[k])} for k in range(100)}
    return known.get(model)
