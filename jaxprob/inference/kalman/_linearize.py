"""Rules that put a linear map with normal noise in the place of what is not linear: x' = A x + b + N(0, Omega).

Sigma points regress what a function gives on the states it is given; what the regression leaves over is noise. Its
covariance is a sum of squares of residuals, whatever the weights, so that no variance is negative.

Source: Särkkä & Svensson (2023), "Bayesian filtering and smoothing", 2nd edition, chapters 7 to 9; García-Fernández,
Svensson, Morelande & Särkkä (2015), "Posterior linearization filter: principles and implementation using sigma points".
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.inference.kalman._conditional import Given
from jaxprob.inference.kalman._square_root import product, right_solve

MOST_POINTS = 20_000  # of a rule: more are a slip of the order


class Linear(NamedTuple):
    """x' = A x + b + N(0, Omega).

    Attributes:
      matrix: A, (k, n).
      offset: b, (k,).
      covariance: Omega, (k, k), or (k,) variances.
    """

    matrix: jax.Array
    offset: jax.Array
    covariance: jax.Array


@dataclasses.dataclass(frozen=True)
class Extended:
    """First-order Taylor expansion at the mean; of `extended`."""

    def linearize(self, given: Given, mean: jax.Array, factor: jax.Array, anywhere: bool = False) -> Linear:
        """The linear map at a normal law."""

        def value(x: jax.Array) -> Any:
            found = given(x)
            return found[0], found

        matrix, (image, covariance) = jax.jacfwd(value, has_aux=True)(mean)
        return Linear(matrix, image - product(matrix, jnp.expand_dims(mean, 1))[:, 0], covariance)


class Points(NamedTuple):
    """Sigma points of a standard normal law.

    Attributes:
      points: (p, n). All sums are of differences from what the first one gives.
      weights: (p,), of means.
      spread: (p,), of squared residuals and of the noise, none negative.
      shift: how much of the mean residual is taken from each residual.
    """

    points: np.ndarray
    weights: np.ndarray
    spread: np.ndarray
    shift: float


@dataclasses.dataclass(frozen=True)
class SigmaPoints:
    """Statistical linear regression on sigma points.

    Attributes:
      name: "unscented", "cubature" or "gauss_hermite".
      parameters: of the rule.
    """

    name: str
    parameters: tuple[Any, ...] = ()

    def points(self, size: int) -> Points:
        """For a state of so many numbers.

        Raises:
          ValueError: if the rule is none for it.
        """
        make: Any = {"unscented": _unscented, "cubature": _cubature, "gauss_hermite": _gauss_hermite}[self.name]
        return make(size, *self.parameters)

    def linearize(self, given: Given, mean: jax.Array, factor: jax.Array, anywhere: bool = False) -> Linear:
        """The linear map at a normal law, for use under it; or `anywhere`: then it is right in all directions.

        The law may have directions without variance, about which points say nothing: there, and where they are too
        close to be told apart, the map is the derivative at the mean if it is to be used anywhere.
        """
        dtype, rule = mean.dtype, self.points(mean.shape[0])
        units = jnp.asarray(rule.points, dtype)
        states = jnp.expand_dims(mean, 0) + core.matmul(units, factor.T)
        images, noises = jax.vmap(given)(states)
        apart = images - images[:1]
        weights = jnp.expand_dims(jnp.asarray(rule.weights, dtype), 1)
        middle = jnp.sum(weights * apart, 0, keepdims=True)
        slope = core.matmul(apart.T, weights * units)
        residuals = apart - core.matmul(units, slope.T)
        # The residuals of a linear function are rounding, which is no noise.
        size = jnp.max(jnp.abs(images), 0, initial=0) + jnp.sum(jnp.abs(slope), 1)
        rounding = 8 * mean.shape[0] * jnp.finfo(dtype).eps * jnp.expand_dims(jax.lax.stop_gradient(size), 0)
        residuals = residuals - rule.shift * jnp.sum(weights * residuals, 0, keepdims=True)
        residuals = jnp.where(jnp.abs(residuals) <= rounding, 0, residuals)
        shares = jnp.asarray(rule.spread, dtype)
        left_over = core.matmul(residuals.T, jnp.expand_dims(shares, 1) * residuals)
        # Noise is averaged with weights of which none is negative.
        mixed = rule.weights if np.min(rule.weights) >= 0 else rule.spread / np.sum(rule.spread)
        noise = jnp.tensordot(jnp.asarray(mixed, dtype), noises, 1, precision="highest")
        # Points that rounding does not tell from the middle say nothing of a slope.
        eps, eye = float(jnp.finfo(dtype).eps), jnp.eye(mean.shape[0], dtype=dtype)
        pivots, least = jnp.abs(jnp.diagonal(factor)), 2 * eps * jax.lax.stop_gradient(size)
        if anywhere:
            derivative = jax.jacfwd(lambda x: given(x)[0])(mean)
            steepest = jnp.max(jnp.abs(derivative) / jnp.expand_dims(jnp.where(size > 0, size, 1), 1), 0, initial=0)
            limit = math.sqrt(eps)
            close = (pivots <= limit * jnp.abs(mean)) | (pivots * steepest <= limit)
        else:
            close = pivots <= 4 * eps * jnp.abs(mean)
        told = jnp.where((eye > 0) & jnp.expand_dims(close, 0), 0, factor)
        matrix = right_solve(told, slope, least)
        if anywhere:
            matrix = matrix + product(derivative, eye - right_solve(told, factor))
        offset = images[0] + middle[0] - product(matrix, jnp.expand_dims(mean, 1))[:, 0]
        return Linear(matrix, offset, left_over + (jnp.diag(noise) if noise.ndim == 1 else noise))


def _symmetric(size: int, radius: float) -> np.ndarray:
    return radius * np.concatenate([np.eye(size), -np.eye(size)])


def _unscented(size: int, alpha: float, beta: float, kappa: float | None) -> Points:
    kappa = max(3.0 - size, 0.0) if kappa is None else kappa
    reach = alpha**2 * (size + kappa)
    if reach <= 0 or beta * size + alpha**2 * kappa < 0:
        got = f"{kappa}, with which variances of {size} numbers may be negative"
        expected = "one above -n, with beta * n + alpha^2 * kappa >= 0"
        raise core.bad_value("kalman.unscented", "kappa", got, expected, "Leave it out")
    outer = np.full(2 * size, 0.5 / reach)
    total = size / reach
    # Of the squares of differences from the centre, `excess` times that of their mean is taken away.
    excess = alpha**2 - beta
    shift = (1 - math.sqrt(max(1 - excess * total, 0.0))) / total
    points = np.concatenate([np.zeros((1, size)), _symmetric(size, math.sqrt(reach))])
    weights = np.concatenate([[1 - total], outer])
    return Points(points, weights, np.concatenate([[0.0], outer]), shift)


def _cubature(size: int) -> Points:
    weights = np.full(2 * size, 0.5 / max(size, 1))
    return Points(_symmetric(size, math.sqrt(size)), weights, weights, 1.0)


def _gauss_hermite(size: int, order: int) -> Points:
    if order**size > MOST_POINTS:
        got, todo = f"{order}, or {order}^{size} points for {size} numbers", "Use kalman.cubature(), with 2 n points"
        raise core.bad_value("kalman.gauss_hermite", "order", got, f"one with at most {MOST_POINTS} points", todo)
    nodes, shares = np.polynomial.hermite_e.hermegauss(order)
    points = np.array(list(itertools.product(nodes, repeat=size))).reshape(-1, size)
    weights = np.prod(np.array(list(itertools.product(shares / shares.sum(), repeat=size))).reshape(-1, size), 1)
    return Points(points, weights, weights, 1.0)


def extended() -> Extended:
    """The rule of the extended Kalman filter: functions are linearised at the mean, by their derivatives.

    Source: Särkkä & Svensson (2023), "Bayesian filtering and smoothing", section 7.2.
    """
    return Extended()


def unscented(alpha: float = 1.0, beta: float = 0.0, kappa: float | None = None) -> SigmaPoints:
    """The rule of the unscented Kalman filter: 2 n + 1 points, one of them the mean.

    Args:
      alpha: how far the others are from it: `alpha sqrt(n + kappa)` standard deviations. Small ones lose digits, as
        many as `alpha^2` has.
      beta: what is added to the weight of the mean in covariances.
      kappa: 3 - n by default where n is at most 3, which is right up to fourth moments; 0 for more numbers.

    Raises:
      ValueError: if they are not finite, or alpha is not above zero; for a state for which variances might be negative,
        when it is met.

    >>> unscented().points(1).weights.round(3).tolist()
    [0.667, 0.167, 0.167]

    Source: Julier & Uhlmann (2004), "Unscented filtering and nonlinear estimation"; Wan & van der Merwe (2000) for
    alpha and beta.
    """
    for name, value in (("alpha", alpha), ("beta", beta), ("kappa", kappa)):
        known = value is None if name == "kappa" else False
        if not known and (not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value)):
            raise core.bad_value("kalman.unscented", name, value, "a number")
    if alpha <= 0:
        raise core.bad_value("kalman.unscented", "alpha", alpha, "a number above zero")
    return SigmaPoints("unscented", (float(alpha), float(beta), None if kappa is None else float(kappa)))


def cubature() -> SigmaPoints:
    """The rule of the cubature Kalman filter: 2 n points of the same weight, right for polynomials of degree 3.

    Source: Arasaratnam & Haykin (2009), "Cubature Kalman filters".
    """
    return SigmaPoints("cubature")


def gauss_hermite(order: int = 3) -> SigmaPoints:
    """The rule of the Gauss-Hermite Kalman filter: `order^n` points, right for degrees up to `2 order - 1`.

    Args:
      order: points along each axis.

    Raises:
      ValueError: if it is no number of points; or makes too many, when a state is met.

    Source: Ito & Xiong (2000), "Gaussian filters for nonlinear filtering problems".
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 2:
        raise core.bad_value("kalman.gauss_hermite", "order", order, "a number of points, at least 2")
    return SigmaPoints("gauss_hermite", (order,))


@dataclasses.dataclass(frozen=True)
class Laplace:
    """Normal law at the mode, with the curvature there; of `laplace`."""


def laplace() -> Laplace:
    """The rule of the Laplace-Gaussian filter: observations by the mode of their density times the predicted law.

    The law of the state is normal around the mode, with the curvature there. Observations may have any smooth density;
    transitions are linearised as by `extended`. `log_likelihoods` are Laplace approximations, and `innovation` is zero,
    for a density has none.

    Source: Koyama, Castellanos Pérez-Bolde, Shalizi & Kass (2010), "Approximate methods for state-space models".
    """
    return Laplace()


Rule = Extended | SigmaPoints | Laplace
RULES: dict[str, Any] = {
    "extended": extended,
    "unscented": unscented,
    "cubature": cubature,
    "gauss_hermite": gauss_hermite,
    "laplace": laplace,
}


def as_rule(function: str, linearize: Any, default: str = "extended") -> Rule:
    """The rule of a name, or of None.

    Raises:
      ValueError: if it is none.
    """
    if isinstance(linearize, Rule):
        return linearize
    if linearize is None:
        linearize = default
    if not isinstance(linearize, str) or linearize not in RULES:
        expected = f"one of {tuple(RULES)}, or a rule such as kalman.unscented()"
        raise core.bad_value(function, "linearize", core.describe(linearize), expected)
    return RULES[linearize]()
