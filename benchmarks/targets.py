"""The models of the reference posteriors (posteriordb), as plain log densities of unconstrained positions.

Each maker takes the data of one posterior and returns a `Target`. Shared by the tests and the benchmarks.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Position = dict[str, jax.Array]


class Target(NamedTuple):
    """A log density with what is needed to compare its draws with a reference.

    Attributes:
      log_density: `position -> scalar`.
      shapes: name -> shape of a position.
      constrain: `position -> dict` of the parameters as the reference names them, each a scalar or a vector.
    """

    log_density: Callable[[Position], jax.Array]
    shapes: dict[str, tuple[int, ...]]
    constrain: Callable[[Position], dict[str, jax.Array]]

    def initial(self, seed: int, chains: int) -> Position:
        """Starting positions as Stan makes them: uniform from -2 to 2 in unconstrained space, where that is finite."""
        rng = np.random.default_rng(seed)
        gradient = jax.jit(jax.vmap(jax.value_and_grad(self.log_density)))
        finite = np.zeros(chains, bool)
        position: Position = {}
        for _ in range(100):
            new = {name: rng.uniform(-2, 2, (chains, *shape)) for name, shape in self.shapes.items()}
            kept = {name: np.where(_rows(finite, x), position.get(name, x), x) for name, x in new.items()}
            position = {name: jnp.asarray(x, jnp.result_type(float)) for name, x in kept.items()}
            value, slopes = gradient(position)
            finite = np.isfinite(value)
            for slope in slopes.values():
                finite &= np.isfinite(slope).reshape(chains, -1).all(axis=1)
            if finite.all():
                return position
        raise RuntimeError("no starting position with a finite log density in 100 tries")


def _rows(which: np.ndarray, x: np.ndarray) -> np.ndarray:
    return which.reshape(-1, *[1] * (x.ndim - 1))


def normal(x: Any, mean: Any = 0.0, scale: Any = 1.0) -> jax.Array:
    """Sum of normal log densities, without constants."""
    z = (x - mean) / scale
    return jnp.sum(-0.5 * z * z - jnp.log(scale))


def half_cauchy(log_x: jax.Array, scale: float) -> jax.Array:
    """Log density of log x where x is half Cauchy."""
    return log_x - jnp.log1p(jnp.exp(2 * (log_x - jnp.log(scale))))


def regression(y: Any, columns: list[Any], prior: Callable[[jax.Array], jax.Array]) -> Target:
    """Linear regression with an intercept and flat coefficients; `prior` is the log density of log sigma."""
    y = np.asarray(y, float)
    x = np.stack([np.ones(len(y)), *(np.asarray(column, float) for column in columns)])

    def log_density(q: Position) -> jax.Array:
        mean = sum(q["beta"][k] * jnp.asarray(x[k], q["beta"].dtype) for k in range(len(x)))
        residual = jnp.asarray(y, q["beta"].dtype) - mean
        sum_of_squares = jnp.sum(residual * residual)
        return -len(y) * q["log_sigma"] - 0.5 * sum_of_squares * jnp.exp(-2 * q["log_sigma"]) + prior(q["log_sigma"])

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {"beta": q["beta"], "sigma": jnp.exp(q["log_sigma"])}

    return Target(log_density, {"beta": (len(x),), "log_sigma": ()}, constrain)


def flat(log_sigma: jax.Array) -> jax.Array:
    """A flat prior on sigma, as a density of its log."""
    return log_sigma


def cauchy(log_sigma: jax.Array) -> jax.Array:
    """A half Cauchy prior of scale 2.5 on sigma, as a density of its log."""
    return half_cauchy(log_sigma, 2.5)


def earn_height(data: dict[str, Any]) -> Target:
    return regression(data["earn"], [data["height"]], flat)


def logearn_height_male(data: dict[str, Any]) -> Target:
    return regression(np.log(data["earn"]), [data["height"], data["male"]], flat)


def logearn_interaction_z(data: dict[str, Any]) -> Target:
    height, male = np.asarray(data["height"], float), np.asarray(data["male"], float)
    z = (height - height.mean()) / height.std(ddof=1)
    return regression(np.log(data["earn"]), [z, male, z * male], flat)


def kidscore_momhs(data: dict[str, Any]) -> Target:
    return regression(data["kid_score"], [data["mom_hs"]], cauchy)


def kidscore_momiq(data: dict[str, Any]) -> Target:
    return regression(data["kid_score"], [data["mom_iq"]], cauchy)


def kidscore_interaction(data: dict[str, Any]) -> Target:
    school, iq = np.asarray(data["mom_hs"], float), np.asarray(data["mom_iq"], float)
    return regression(data["kid_score"], [school, iq, school * iq], cauchy)


def kidscore_interaction_z(data: dict[str, Any]) -> Target:
    school, iq = ((x - np.mean(x)) / (2 * np.std(x, ddof=1)) for x in (data["mom_hs"], data["mom_iq"]))
    return regression(data["kid_score"], [school, iq, school * iq], flat)


MESQUITE = ["diam1", "diam2", "canopy_height", "total_height", "density"]


def mesquite(data: dict[str, Any]) -> Target:
    return regression(data["weight"], [*(data[name] for name in MESQUITE), data["group"]], flat)


def logmesquite(data: dict[str, Any]) -> Target:
    return regression(np.log(data["weight"]), [*(np.log(data[name]) for name in MESQUITE), data["group"]], flat)


def nes(data: dict[str, Any]) -> Target:
    age = np.asarray(data["age_discrete"])
    ages = [age == group for group in (2, 3, 4)]
    columns = [data["real_ideo"], data["race_adj"], *ages, data["educ1"], data["gender"], data["income"]]
    return regression(data["partyid7"], columns, flat)


def blr(data: dict[str, Any]) -> Target:
    y, x = np.asarray(data["y"], float), np.asarray(data["X"], float)

    def log_density(q: Position) -> jax.Array:
        beta, sigma = q["beta"], jnp.exp(q["log_sigma"])
        mean = jnp.sum(jnp.asarray(x, beta.dtype) * jnp.expand_dims(beta, 0), axis=1)
        prior = normal(beta, 0, 10.0) - 0.5 * (sigma / 10) ** 2 + q["log_sigma"]
        return prior + normal(jnp.asarray(y, beta.dtype), mean, sigma)

    shapes = {"beta": (x.shape[1],), "log_sigma": ()}
    return Target(log_density, shapes, lambda q: {"beta": q["beta"], "sigma": jnp.exp(q["log_sigma"])})


def kilpisjarvi(data: dict[str, Any]) -> Target:
    y, x = np.asarray(data["y"], float), np.asarray(data["x"], float)

    def log_density(q: Position) -> jax.Array:
        dtype = q["alpha"].dtype
        mean = q["alpha"] + q["beta"] * jnp.asarray(x, dtype)
        prior = normal(q["alpha"], data["pmualpha"], float(data["psalpha"]))
        prior += normal(q["beta"], data["pmubeta"], data["psbeta"]) + q["log_sigma"]
        return prior + normal(jnp.asarray(y, dtype), mean, jnp.exp(q["log_sigma"]))

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {"alpha": q["alpha"], "beta": q["beta"], "sigma": jnp.exp(q["log_sigma"])}

    return Target(log_density, {"alpha": (), "beta": (), "log_sigma": ()}, constrain)


def eight_schools_centered(data: dict[str, Any]) -> Target:
    y, sigma = np.asarray(data["y"], float), np.asarray(data["sigma"], float)

    def log_density(q: Position) -> jax.Array:
        dtype = q["theta"].dtype
        likelihood = normal(jnp.asarray(y, dtype), q["theta"], jnp.asarray(sigma, dtype))
        group = normal(q["theta"], q["mu"], jnp.exp(q["log_tau"]))
        return likelihood + group + half_cauchy(q["log_tau"], 5.0) + normal(q["mu"], 0.0, 5.0)

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {"theta": q["theta"], "mu": q["mu"], "tau": jnp.exp(q["log_tau"])}

    return Target(log_density, {"theta": (len(y),), "mu": (), "log_tau": ()}, constrain)


def eight_schools_noncentered(data: dict[str, Any]) -> Target:
    y, sigma = np.asarray(data["y"], float), np.asarray(data["sigma"], float)

    def constrain(q: Position) -> dict[str, jax.Array]:
        tau = jnp.exp(q["log_tau"])
        return {"theta": q["mu"] + tau * q["theta_trans"], "mu": q["mu"], "tau": tau}

    def log_density(q: Position) -> jax.Array:
        dtype = q["mu"].dtype
        likelihood = normal(jnp.asarray(y, dtype), constrain(q)["theta"], jnp.asarray(sigma, dtype))
        return likelihood + normal(q["theta_trans"]) + half_cauchy(q["log_tau"], 5.0) + normal(q["mu"], 0.0, 5.0)

    return Target(log_density, {"theta_trans": (len(y),), "mu": (), "log_tau": ()}, constrain)


def ark(data: dict[str, Any]) -> Target:
    y, order = np.asarray(data["y"], float), data["K"]
    lags = np.stack([y[order - k : len(y) - k] for k in range(1, order + 1)])

    def log_density(q: Position) -> jax.Array:
        dtype = q["beta"].dtype
        mean = q["alpha"] + jnp.sum(jnp.expand_dims(q["beta"], 1) * jnp.asarray(lags, dtype), axis=0)
        prior = normal(q["alpha"], 0.0, 10.0) + normal(q["beta"], 0.0, 10.0) + half_cauchy(q["log_sigma"], 2.5)
        return prior + normal(jnp.asarray(y[order:], dtype), mean, jnp.exp(q["log_sigma"]))

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {"alpha": q["alpha"], "beta": q["beta"], "sigma": jnp.exp(q["log_sigma"])}

    return Target(log_density, {"alpha": (), "beta": (order,), "log_sigma": ()}, constrain)


def arma11(data: dict[str, Any]) -> Target:
    y = np.asarray(data["y"], float)

    def log_density(q: Position) -> jax.Array:
        dtype = q["mu"].dtype
        mu, phi, theta = q["mu"], q["phi"], q["theta"]

        def step(error: jax.Array, pair: jax.Array) -> tuple[jax.Array, jax.Array]:
            error = pair[1] - (mu + phi * pair[0] + theta * error)
            return error, error

        first = jnp.asarray(y[0], dtype) - (mu + phi * mu)
        _, rest = jax.lax.scan(step, first, jnp.asarray(np.stack([y[:-1], y[1:]], axis=1), dtype))
        sigma = jnp.exp(q["log_sigma"])
        prior = normal(mu, 0.0, 10.0) + normal(phi, 0.0, 2.0) + normal(theta, 0.0, 2.0)
        return prior + half_cauchy(q["log_sigma"], 2.5) + normal(first, 0.0, sigma) + normal(rest, 0.0, sigma)

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {"mu": q["mu"], "phi": q["phi"], "theta": q["theta"], "sigma": jnp.exp(q["log_sigma"])}

    return Target(log_density, {"mu": (), "phi": (), "theta": (), "log_sigma": ()}, constrain)


def gp_regr(data: dict[str, Any]) -> Target:
    x, y = np.asarray(data["x"], float), np.asarray(data["y"], float)
    squares = (x[:, None] - x[None, :]) ** 2

    def log_density(q: Position) -> jax.Array:
        dtype = q["log_rho"].dtype
        rho, alpha, sigma = jnp.exp(q["log_rho"]), jnp.exp(q["log_alpha"]), jnp.exp(q["log_sigma"])
        kernel = alpha**2 * jnp.exp(-0.5 * jnp.asarray(squares, dtype) / rho**2) + sigma * jnp.eye(len(x), dtype=dtype)
        factor = jnp.linalg.cholesky(kernel)
        white = jax.scipy.linalg.solve_triangular(factor, jnp.asarray(y, dtype), lower=True)
        likelihood = -0.5 * jnp.sum(white * white) - jnp.sum(jnp.log(jnp.diagonal(factor)))
        prior = 25 * q["log_rho"] - 4 * rho - 0.5 * (alpha / 2) ** 2 + q["log_alpha"]
        return likelihood + prior - 0.5 * sigma**2 + q["log_sigma"]

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {name: jnp.exp(q[f"log_{name}"]) for name in ("rho", "alpha", "sigma")}

    return Target(log_density, {"log_rho": (), "log_alpha": (), "log_sigma": ()}, constrain)


def ordered(q: jax.Array) -> jax.Array:
    """A positive ordered pair: exp(q0), exp(q0) + exp(q1); the log Jacobian is q0 + q1."""
    low = jnp.exp(q[0])
    return jnp.stack([low, low + jnp.exp(q[1])])


def forward(log_emissions: jax.Array, stay: jax.Array) -> jax.Array:
    """Log likelihood of a chain of two states with an improper flat weight on the first.

    Args:
      log_emissions: (time, 2).
      stay: (2,), logits of moving to state 1 from each state.
    """
    to_first, to_second = jax.nn.log_sigmoid(stay), jax.nn.log_sigmoid(-stay)

    def step(alpha: jax.Array, emission: jax.Array) -> tuple[jax.Array, None]:
        first = jnp.logaddexp(alpha[0] + to_first[0], alpha[1] + to_first[1])
        second = jnp.logaddexp(alpha[0] + to_second[0], alpha[1] + to_second[1])
        return jnp.stack([first, second]) + emission, None

    alpha, _ = jax.lax.scan(step, log_emissions[0], log_emissions[1:])
    return jnp.logaddexp(alpha[0], alpha[1])


def simplexes(stay: jax.Array) -> dict[str, jax.Array]:
    return {
        "theta1": jnp.stack([jax.nn.sigmoid(stay[..., 0]), jax.nn.sigmoid(-stay[..., 0])], -1),
        "theta2": jnp.stack([jax.nn.sigmoid(stay[..., 1]), jax.nn.sigmoid(-stay[..., 1])], -1),
    }


def hmm_drive_0(data: dict[str, Any]) -> Target:
    u, v = np.asarray(data["u"], float), np.asarray(data["v"], float)
    alpha = np.asarray(data["alpha"], float)

    def log_density(q: Position) -> jax.Array:
        dtype = q["stay"].dtype
        phi, rate = ordered(q["phi"]), ordered(q["lambda"])
        emissions = jnp.stack(
            [
                jnp.log(phi[k]) - phi[k] * jnp.asarray(u, dtype) + jnp.log(rate[k]) - rate[k] * jnp.asarray(v, dtype)
                for k in range(2)
            ],
            axis=1,
        )
        to_first, to_second = jax.nn.log_sigmoid(q["stay"]), jax.nn.log_sigmoid(-q["stay"])
        prior = jnp.sum(jnp.asarray(alpha[:, 0], dtype) * to_first + jnp.asarray(alpha[:, 1], dtype) * to_second)
        prior += normal(phi[0]) + normal(phi[1], 3.0) + normal(rate[0]) + normal(rate[1], 3.0)
        return forward(emissions, q["stay"]) + prior + jnp.sum(q["phi"]) + jnp.sum(q["lambda"])

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {**simplexes(q["stay"]), "phi": ordered(q["phi"]), "lambda": ordered(q["lambda"])}

    return Target(log_density, {"stay": (2,), "phi": (2,), "lambda": (2,)}, constrain)


def hmm_example(data: dict[str, Any]) -> Target:
    y = np.asarray(data["y"], float)

    def log_density(q: Position) -> jax.Array:
        dtype = q["stay"].dtype
        mu = ordered(q["mu"])
        emissions = -0.5 * (jnp.expand_dims(jnp.asarray(y, dtype), 1) - jnp.expand_dims(mu, 0)) ** 2
        jacobian = jnp.sum(jax.nn.log_sigmoid(q["stay"]) + jax.nn.log_sigmoid(-q["stay"])) + jnp.sum(q["mu"])
        return forward(emissions, q["stay"]) + normal(mu[0], 3.0) + normal(mu[1], 10.0) + jacobian

    def constrain(q: Position) -> dict[str, jax.Array]:
        return {**simplexes(q["stay"]), "mu": ordered(q["mu"])}

    return Target(log_density, {"stay": (2,), "mu": (2,)}, constrain)


MAKERS: dict[str, Callable[[dict[str, Any]], Target]] = {
    "arK": ark,
    "arma11": arma11,
    "blr": blr,
    "earn_height": earn_height,
    "eight_schools_centered": eight_schools_centered,
    "eight_schools_noncentered": eight_schools_noncentered,
    "gp_regr": gp_regr,
    "hmm_drive_0": hmm_drive_0,
    "hmm_example": hmm_example,
    "kidscore_interaction": kidscore_interaction,
    "kidscore_interaction_z": kidscore_interaction_z,
    "kidscore_momhs": kidscore_momhs,
    "kidscore_momiq": kidscore_momiq,
    "kilpisjarvi": kilpisjarvi,
    "logearn_height_male": logearn_height_male,
    "logearn_interaction_z": logearn_interaction_z,
    "logmesquite": logmesquite,
    "mesquite": mesquite,
    "nes": nes,
}


def load(folder: Path, posterior: str) -> tuple[Target, dict[str, dict[str, float]]]:
    """One reference posterior: its target, and the reference summaries by scalar name (`theta[1]`, `mu`)."""
    record = json.loads((folder / f"{posterior}.json").read_text())
    return MAKERS[record["model"]](record["data"]), record["reference"]


def scalars(constrained: dict[str, Any]) -> dict[str, np.ndarray]:
    """Draws by the reference's scalar names, each (chain, draw), from arrays (chain, draw, ...)."""
    named = {}
    for name, value in constrained.items():
        value = np.asarray(value)
        if value.ndim == 2:
            named[name] = value
        else:
            named |= {f"{name}[{k + 1}]": value[..., k] for k in range(value.shape[2])}
    return named
