"""Natural gradients of Gaussian guides: Newton-like steps that know the geometry of the guide.

Source: Khan & Rue (2023), "The Bayesian learning rule", section 3; Lin, Schmidt & Khan (2020), "Handling the
positive-definite constraint in the Bayesian learning rule", for the second-order term; Bonnet (1964) and Price (1958)
for gradients under a Gaussian.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.distributions import Transformed, flows
from jaxprob.inference.mcmc._numbers import known_number
from jaxprob.inference.vi._guide import Guide
from jaxprob.inference.vi._layout import Layout
from jaxprob.inference.vi._objective import read_target


class NaturalState(NamedTuple):
    """A Gaussian by its mean and precision.

    Attributes:
      position: pytree, the mean.
      precision: (size, size), or (size,) where it is diagonal; positive definite.
    """

    position: Any
    precision: jax.Array

    @property
    def guide(self) -> Guide:
        """The Gaussian as a guide, with `sample`, `log_prob` and `entropy`."""
        layout = Layout.of(self.position)
        loc = layout.ravel(self.position)
        base = flows.StandardNormal(layout.size, layout.dtype)
        if self.precision.ndim == 1:
            return Guide(Transformed(base, flows.DiagonalAffine(loc, -0.5 * jnp.log(self.precision))), layout)
        factor = _covariance_factor(self.precision)
        bijector = flows.TriangularAffine(loc, jnp.log(jnp.diagonal(factor)), factor)
        return Guide(Transformed(base, bijector), layout)


class NaturalInfo(NamedTuple):
    """What a step tells.

    Attributes:
      elbo: (), the bound of the Gaussian before the step, by its draws.
      distance: (), of the step of the mean, in standard deviations.
      finite: (), bool, whether all is; where it is not the Gaussian stays.
    """

    elbo: jax.Array
    distance: jax.Array
    finite: jax.Array


def natural_gradient(
    target: Any,
    *,
    step_size: Any = 0.1,
    draws: int = 8,
    covariance: str = "full",
    curvature: str = "hessian",
    scale: Any = 1.0,
    initial: Any = None,
) -> core.Algorithm:
    r"""Variational inference of a Gaussian by natural gradients, as an `Algorithm`.

    With precision S, mean m and step rho, under draws of the Gaussian,

    $$G = -E[\nabla^2 \log p] - S, \quad S' = S + \rho G + \rho^2 / 2\, G S^{-1} G, \quad
    m' = m + \rho S'^{-1} E[\nabla \log p]$$

    where the last term keeps S' positive definite. For a Gaussian target one step of size 1 in the mean is exact, and S
    comes closer by (1 - rho) in each step.

    Args:
      target: a posterior, or a `position -> scalar` log density on unconstrained positions.
      step_size: (), rho, in (0, 1].
      draws: of the Gaussian for each step, in pairs on both sides of the mean.
      covariance: "full" or "diagonal".
      curvature: "hessian", by as many Hessian-vector products as a position has numbers; or "stein", from gradients
        alone: E[S (x - m) grad log p(x)^T], which is noisier.
      scale: (), standard deviation to start from.
      initial: a position to start from, or a function `key -> position`; by default the posterior's.

    Returns:
      `Algorithm(init, step)`: `init(position, key)` with a position or None for one drawn; `NaturalState`, whose
      `guide` is the Gaussian, and `NaturalInfo`.

    Raises:
      ValueError: for numbers out of range or another `covariance` or `curvature`.

    >>> algorithm = natural_gradient(lambda x: -0.5 * ((x - 3) / 2) ** 2, step_size=0.5, initial=jnp.zeros(()))
    >>> state = algorithm.init(None, jax.random.key(0))
    >>> for i in range(40):
    ...     state, info = jax.jit(algorithm.step)(jax.random.key(i), state)
    >>> round(float(state.position), 3), round(float(state.precision[0, 0]), 3)
    (3.0, 0.25)
    """
    rho = known_number("natural_gradient", "step_size", step_size, lambda x: 0 < x <= 1, "a number in (0, 1]")
    scale = known_number("natural_gradient", "scale", scale, lambda x: x > 0, "a positive number")
    core.check_whole("natural_gradient", least=2, draws=draws)
    if draws % 2:
        raise core.bad_value("natural_gradient", "draws", draws, "an even number, since draws come in pairs")
    if covariance not in ("full", "diagonal"):
        raise core.bad_value("natural_gradient", "covariance", core.describe(covariance), "'full' or 'diagonal'")
    if curvature not in ("hessian", "stein"):
        raise core.bad_value("natural_gradient", "curvature", core.describe(curvature), "'hessian' or 'stein'")
    read = read_target("natural_gradient", target, initial)
    full = covariance == "full"
    return core.Algorithm(
        Partial(core.Bound(_init, full), read.initial, scale),
        Partial(core.Bound(_step, draws, full, curvature), read.log_density, rho),
    )


def _init(full: bool, initial: Any, scale: jax.Array, position: Any, key: core.Key) -> NaturalState:
    position = initial(core.as_key(key, "natural_gradient")) if position is None else position
    position = jax.tree.map(jnp.asarray, position)
    layout = Layout.of(position)
    precision = jnp.ones((layout.size,), layout.dtype) / scale.astype(layout.dtype) ** 2
    return NaturalState(position, jnp.diag(precision) if full else precision)


def _covariance_factor(precision: jax.Array) -> jax.Array:
    """The lower Cholesky factor of the inverse."""
    eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
    return core.solve_triangular(core.cholesky(precision[::-1, ::-1]), eye).T[::-1, ::-1]


def _step(
    draws: int, full: bool, curvature: str, log_density: Any, rho: jax.Array, key: core.Key, state: NaturalState
) -> tuple[NaturalState, NaturalInfo]:
    layout = Layout.of(state.position)
    mean = layout.ravel(state.position)
    rho = rho.astype(layout.dtype)
    half = core.random.normal(core.as_key(key, "natural_gradient"), (draws // 2, layout.size), layout.dtype)
    noise = jnp.concatenate([half, -half])
    factor = _covariance_factor(state.precision) if full else 1 / jnp.sqrt(state.precision)
    away = core.matmul(noise, factor.T) if full else noise * jnp.expand_dims(factor, 0)
    x = jnp.expand_dims(mean, 0) + away

    def value(v: jax.Array) -> jax.Array:
        return log_density(layout.unravel(v), None).astype(layout.dtype)

    log_p, gradients = jax.vmap(jax.value_and_grad(value))(x)
    gradient = jnp.mean(gradients, axis=0)
    if curvature == "hessian":
        hessian = jnp.mean(jax.vmap(lambda v: _hessian(value, v, full))(x), axis=0)
    elif full:
        product = core.matmul(core.matmul(away, state.precision).T, gradients) / draws
        hessian = core.symmetrize(product)
    else:
        hessian = jnp.mean(away * jnp.expand_dims(state.precision, 0) * gradients, axis=0)
    change = -hessian - state.precision
    if full:
        white = core.matmul(factor.T, change)  # L^T G, with S^-1 = L L^T
        precision = core.symmetrize(state.precision + rho * change + 0.5 * rho**2 * core.matmul(white.T, white))
        new_factor = _covariance_factor(precision)
        moved = rho * core.matvec(new_factor, core.matvec(new_factor.T, gradient))
        distance = core.norm(core.matvec(jnp.swapaxes(core.cholesky(state.precision), 0, 1), moved))
        log_volume = jnp.sum(jnp.log(jnp.diagonal(factor)))
    else:
        precision = state.precision + rho * change + 0.5 * rho**2 * change**2 / state.precision
        moved = rho * gradient / precision
        distance = core.norm(moved / factor)
        log_volume = jnp.sum(jnp.log(factor))
    entropy = log_volume + 0.5 * layout.size * (1 + jnp.log(2 * jnp.pi).astype(layout.dtype))
    elbo = jnp.mean(log_p) + entropy
    finite = jnp.isfinite(distance) & jnp.all(jnp.isfinite(precision)) & jnp.isfinite(elbo)
    new = NaturalState(layout.unravel(mean + moved), precision)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    return new, NaturalInfo(elbo, distance, finite)


def _hessian(value: Any, v: jax.Array, full: bool) -> jax.Array:
    """The Hessian at a position, or its diagonal, by products with unit vectors."""
    eye = jnp.eye(v.size, dtype=v.dtype)

    def column(direction: jax.Array) -> jax.Array:
        product = jax.jvp(jax.grad(value), (v,), (direction,))[1]
        return product if full else jnp.sum(product * direction)

    return jax.vmap(column)(eye)
