"""Linear factors: what is seen is a linear function of a normal latent vector, with independent normal noise.

    z ~ N(0, 1),   x = W z + mean + noise,   noise_i ~ N(0, psi_i)

One variance for all entries makes it probabilistic principal component analysis. Entries may be missing.

Source: Tipping & Bishop (1999), "Probabilistic principal component analysis"; Rubin & Thayer (1982), "EM algorithms for
ML factor analysis".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import (
    Distribution,
    Independent,
    MultivariateNormal,
    MultivariateNormalLowRank,
    Normal,
    flows,
)
from jaxprob.distributions._multivariate import LOG_2PI
from jaxprob.models.latent._model import LatentVariableModel
from jaxprob.models.latent._networks import in_dtype_of


@core.pytree
class FactorAnalysis:
    """A linear model of n numbers with k factors.

    Attributes:
      loadings: W, (n, k).
      mean: (n,).
      noise: psi, variances, (n,); or () for one of all entries, which is probabilistic PCA.

    Raises:
      ValueError: if shapes do not fit.

    >>> model = FactorAnalysis(jnp.ones((2, 1)), jnp.zeros(2), jnp.ones(()))
    >>> model.posterior(jnp.array([1.0, jnp.nan])).mean().round(3).tolist()
    [0.5]
    """

    loadings: Any
    mean: Any
    noise: Any

    def __post_init__(self) -> None:
        name = "FactorAnalysis"
        for field in ("loadings", "mean", "noise"):
            object.__setattr__(self, field, core.as_float(getattr(self, field)))
        if self.loadings.ndim != 2 or 0 in self.loadings.shape:
            raise core.bad_value(name, "loadings", f"of shape {self.loadings.shape}", "a matrix (n, k)")
        if self.mean.shape != self.loadings.shape[:1]:
            raise core.bad_value(name, "mean", f"of shape {self.mean.shape}", f"shape {self.loadings.shape[:1]}")
        if self.noise.shape not in ((), self.mean.shape):
            raise core.bad_value(name, "noise", f"of shape {self.noise.shape}", f"shape () or {self.mean.shape}")

    def marginal(self) -> MultivariateNormalLowRank:
        """The law of x, with covariance W W^T + diag(psi)."""
        return MultivariateNormalLowRank(self.mean, jnp.broadcast_to(self.noise, self.mean.shape), self.loadings)

    def log_likelihood(self, x: Any) -> jax.Array:
        """The log density () of what is seen of one example (n,); NaN is missing."""
        seen, away, noise, loadings = self._seen("FactorAnalysis.log_likelihood", x)
        number = jnp.sum(seen).astype(away.dtype)
        log_det = core.woodbury_log_determinant(noise, loadings)
        return -0.5 * (core.woodbury_quadratic_form(noise, loadings, away) + log_det + number * LOG_2PI)

    def posterior(self, x: Any) -> MultivariateNormal:
        """The law of z given what is seen of one example (n,); NaN is missing."""
        _, away, noise, loadings = self._seen("FactorAnalysis.posterior", x)
        scaled, factor, lower = _posterior_factors(noise, loadings)
        mean = core.cholesky_solve(factor, core.matvec(scaled.T, away / jnp.sqrt(noise)), vector=True)
        return MultivariateNormal(mean, cholesky=lower)

    def params(self) -> dict[str, jax.Array]:
        """Parameters of `latent.linear`: the same model with its posterior as recognition."""
        noise = jnp.broadcast_to(self.noise, self.mean.shape)
        scaled, factor, lower = _posterior_factors(noise, self.loadings)
        gain = core.cholesky_solve(factor, scaled.T / jnp.expand_dims(jnp.sqrt(noise), 0))
        log_diagonal = jnp.diag(jnp.log(jnp.diagonal(lower)))
        return {
            "loadings": self.loadings,
            "mean": self.mean,
            "log_noise": jnp.log(self.noise),
            "gain": gain,
            "root": jnp.tril(lower, -1) + log_diagonal,
        }

    def _seen(self, name: str, x: Any) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """What is seen, its distance from the mean, noise and loadings; those of missing entries say nothing."""
        x = jnp.asarray(x)
        if x.shape != self.mean.shape:
            raise core.bad_value(name, "x", f"of shape {x.shape}", f"shape {self.mean.shape}", "vmap makes many")
        dtype = core.result_dtype(self)
        x, seen = x.astype(dtype), ~jnp.isnan(x.astype(dtype))
        away = jnp.where(seen, jnp.where(seen, x, 0) - self.mean.astype(dtype), 0)
        noise = jnp.where(seen, self.noise.astype(dtype), 1)
        return seen, away, noise, jnp.where(jnp.expand_dims(seen, 1), self.loadings.astype(dtype), 0)


def _posterior_factors(noise: jax.Array, loadings: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Psi^-1/2 W, the factor of the posterior's precision 1 + W^T Psi^-1 W, and that of its covariance."""
    scaled = loadings / jnp.expand_dims(jnp.sqrt(noise), 1)
    eye = jnp.eye(loadings.shape[1], dtype=loadings.dtype)
    # By QR, which keeps the 1 where W is large.
    factor = core.tria(jnp.concatenate([eye, scaled.T], 1))
    return scaled, factor, core.tria(core.solve_triangular(factor, eye, transpose=True))


def linear(size: int, latent: int, noise: str = "shared") -> LatentVariableModel:
    """Factor analysis as an autoencoder: a linear map each way, and a guide with any covariance.

    Its best bound is the log likelihood of `FactorAnalysis`, since the posterior is such a guide. Parameters are
    "loadings", "mean", "log_noise" and, of the recognition, "gain" (of x - mean) and "root" (its strict lower triangle
    and the logarithms of its diagonal are the covariance's Cholesky factor).

    Args:
      size: numbers of one example.
      latent: numbers of z.
      noise: "shared" for one variance (probabilistic PCA), "each" for one of each entry (factor analysis).

    Raises:
      ValueError: if a size is no whole number, or for another `noise`.

    >>> model = linear(3, 2)
    >>> model.recognition(model.init(jax.random.key(0)), jnp.ones(3)).covariance().tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    core.check_whole("latent.linear", size=size, latent=latent)
    if noise not in ("shared", "each"):
        raise core.bad_value("latent.linear", "noise", core.describe(noise), "'shared' or 'each'")
    return LatentVariableModel(
        core.Bound(_init, size, latent, noise == "shared"),
        core.Bound(_prior, latent),
        _likelihood,
        _recognition,
    )


def _init(size: int, latent: int, shared: bool, key: core.Key) -> dict[str, jax.Array]:
    key = core.as_key(key, "latent.linear")
    loadings = core.random.normal(key, (size, latent), float) / jnp.sqrt(float(size))
    return {
        "loadings": loadings,
        "mean": jnp.zeros(size),
        "log_noise": jnp.zeros(() if shared else (size,)),
        "gain": jnp.zeros((latent, size)),
        "root": jnp.zeros((latent, latent)),
    }


def _prior(latent: int, params: Any) -> Distribution:
    return flows.StandardNormal(latent, core.result_dtype(params))


def _likelihood(params: Any, z: Any) -> Distribution:
    loc = core.matvec(params["loadings"], in_dtype_of(params, z)) + params["mean"]
    scale = jnp.exp(0.5 * params["log_noise"])
    return Independent(Normal(loc, jnp.broadcast_to(scale, loc.shape)))


def _recognition(params: Any, x: Any) -> Distribution:
    root = params["root"]
    lower = jnp.tril(root, -1) + jnp.diag(jnp.exp(jnp.diagonal(root)))
    away = in_dtype_of(params, x) - params["mean"]
    return MultivariateNormal(core.matvec(params["gain"], away), cholesky=lower)
