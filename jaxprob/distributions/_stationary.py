"""Bijectors onto the coefficients of stationary autoregressions, by their partial autocorrelations.

The partial autocorrelation at lag k is the correlation of two values k apart given those between. Any sequence of
numbers in (-1, 1) is that of one stationary autoregression, and the other way round. Here each is tanh of a real
number.

Source: Barndorff-Nielsen & Schou (1973), "On the parametrization of autoregressive models by partial autocorrelations";
Monahan (1984), "A note on enforcing stationarity in autoregressive-moving average models"; Ansley & Kohn (1986), "A
note on reparameterizing a vector autoregressive moving average model to enforce stationarity".
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._bijectors import Affine, Bijector, Chain, Tanh, floating
from jaxprob.distributions._parameters import REAL, set_parameters
from jaxprob.distributions._supports import Support, all_last


@core.pytree
class PartialAutocorrelation(Bijector):
    """From p real numbers to the coefficients of a stationary autoregression of order p; u = 0 is white noise.

    Coefficients grow with the order by the recursion of Durbin and Levinson, r_k = tanh(u_k):

        phi_kk = r_k,   phi_ki = phi_{k-1,i} - r_k phi_{k-1,k-i}

    Changed signs are the coefficients of an invertible moving average: `Chain((PartialAutocorrelation(), Affine(0.0,
    -1.0)))`, the map of the support `Invertible`.

    >>> print(*(f"{x:.4f}" for x in PartialAutocorrelation().forward(jnp.array([1.0, 0.5]))))
    0.4096 0.4621

    Source: Monahan (1984); the log-determinant is that of Barndorff-Nielsen & Schou (1973), theorem 2.
    """

    @property
    def event_ndims_in(self) -> int:
        return 1

    @property
    def event_ndims_out(self) -> int:
        return 1

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        r, log_slope = Tanh().forward_and_log_det(u)
        x = r[..., :0]
        for k in range(u.shape[-1]):
            last = r[..., k : k + 1]
            x = jnp.concatenate([x - last * jnp.flip(x, -1), last], -1)
        # |d phi_k / d phi_{k-1}| = (1 - r)^ceil((k-1)/2) (1 + r)^floor((k-1)/2) at order k.
        before = np.arange(u.shape[-1])
        log_det = log_slope
        for sign, power in ((2, (before + 1) // 2), (-2, before // 2)):
            factor = np.log(2).astype(u.dtype) - jax.nn.softplus(sign * u)
            log_det = log_det + jnp.broadcast_to(power.astype(u.dtype), u.shape) * factor
        return x, jnp.sum(log_det, -1)

    def inverse(self, x: Any) -> jax.Array:
        return jnp.arctanh(partial_autocorrelations(floating(x)))


def partial_autocorrelations(x: jax.Array) -> jax.Array:
    """r (..., p) of coefficients (..., p); all within (-1, 1) for those of a stationary autoregression."""
    result = []
    for _ in range(x.shape[-1]):
        last, x = _shortened(x)
        result.append(last)
    return jnp.concatenate(result[::-1], -1) if result else x


def _shortened(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last partial autocorrelation (..., 1), and the coefficients of an order less."""
    last, rest = x[..., -1:], x[..., :-1]
    # Out of bounds there is no order less: any number that is not NaN.
    square = jnp.where(jnp.abs(last) < 1, (1 - last) * (1 + last), 1)
    return last, (rest + last * jnp.flip(rest, -1)) / square


@core.pytree
class Stationary(Support):
    """Coefficients (p,) of stationary autoregressions, the edge of the set included to rounding.

    `Flat(Stationary(), (p,))` is the uniform law on them.

    >>> Stationary().contains(jnp.array([[1.5, -0.8], [0.5, 0.6]])).tolist()
    [True, False]
    """

    @property
    def event_ndims(self) -> int:
        return 1

    def contains(self, x: Any) -> jax.Array:
        x = floating(x)
        p = x.shape[-1]
        rounding = 8 * jnp.finfo(x.dtype).eps
        # Coefficients are sums of products of roots within the unit circle.
        most = np.array([math.comb(p, i) for i in range(1, p + 1)])
        inside = all_last(jnp.abs(x) <= jnp.broadcast_to((most * (1 + rounding)).astype(x.dtype), x.shape), 1)
        error = rounding * jnp.maximum(jnp.max(jnp.abs(x), -1, initial=0), 1)
        known = jnp.ones_like(inside)
        for _ in range(p):
            largest = jnp.max(jnp.abs(x[..., :-1]), -1, initial=0)
            last, x = _shortened(x)
            size = jnp.abs(last[..., 0])
            inside = inside & (~known | (size <= 1 + error))
            # On the edge, to what rounding has left of the digits, nothing can be said of the orders below.
            known = known & (size < 1 - error)
            square = jnp.where(known, (1 - size) * (1 + size), 1)
            after = jnp.max(jnp.abs(x), -1, initial=0)
            error = error * (1 + size + largest + 2 * size * after) / square + rounding * jnp.maximum(after, 1)
        return inside

    @property
    def bijector(self) -> Bijector:
        return PartialAutocorrelation()


@core.pytree
class Invertible(Support):
    """Coefficients (q,) of moving averages `e_t + sum_j theta_j e_{t-j}` that are invertible: `-theta` is `Stationary`.

    >>> Invertible().contains(jnp.array([[0.9], [1.1]])).tolist()
    [True, False]
    """

    @property
    def event_ndims(self) -> int:
        return 1

    def contains(self, x: Any) -> jax.Array:
        return Stationary().contains(-floating(x))

    @property
    def bijector(self) -> Bijector:
        return Chain((PartialAutocorrelation(), Affine(0.0, -1.0)))


@core.pytree
class PartialAutocorrelationMatrices(Bijector):
    """From p real matrices (k, k) to those of a stationary vector autoregression of order p with given noise.

    `P_s = B^-1 U_s` with `B B^T = I + U_s U_s^T` has singular values below 1, as the partial autocorrelation matrices
    of a stationary process have; coefficients of higher orders follow from them by Whittle's recursion. The
    log-determinant is that of the matrix of derivatives, (p k^2, p k^2).

    Args:
      covariance: (*batch, k, k), positive definite, of what is new at each time.

    >>> bijector = PartialAutocorrelationMatrices(jnp.eye(2))
    >>> bijector.forward(jnp.ones((1, 2, 2))).shape
    (1, 2, 2)

    Source: Ansley & Kohn (1986).
    """

    covariance: Any

    def __post_init__(self) -> None:
        set_parameters(self, covariance=REAL)
        shape = self.covariance.shape
        if len(shape) < 2 or shape[-1] != shape[-2]:
            name = "PartialAutocorrelationMatrices"
            raise core.bad_value(name, "covariance", self.covariance, "matrices (..., k, k)")

    @property
    def event_ndims_in(self) -> int:
        return 3

    @property
    def event_ndims_out(self) -> int:
        return 3

    def forward(self, u: Any) -> jax.Array:
        u, covariance = self._aligned(u)
        return jnp.vectorize(_from_partial, signature="(p,k,k),(k,k)->(p,k,k)")(u, covariance)

    def inverse(self, x: Any) -> jax.Array:
        x, covariance = self._aligned(x)
        return jnp.vectorize(_to_partial, signature="(p,k,k),(k,k)->(p,k,k)")(x, covariance)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, covariance = self._aligned(u)

        def log_det(u: jax.Array, covariance: jax.Array) -> jax.Array:
            slopes = jax.jacfwd(_from_partial)(u, covariance)
            return jnp.linalg.slogdet(jnp.reshape(slopes, (u.size, u.size)))[1]

        return self.forward(u), jnp.vectorize(log_det, signature="(p,k,k),(k,k)->()")(u, covariance)

    def _aligned(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        k = self.covariance.shape[-1]
        if u.ndim < 3 or u.shape[-2:] != (k, k):
            raise core.bad_value("PartialAutocorrelationMatrices", "the argument", u, f"shape (..., p, {k}, {k})")
        dtype = core.result_dtype(u, self.covariance)
        rank = max(u.ndim - 1, self.covariance.ndim)
        return tuple(  # type: ignore[return-value]
            jnp.expand_dims(array.astype(dtype), tuple(range(missing)))
            for array, missing in ((u, rank + 1 - u.ndim), (self.covariance, rank - self.covariance.ndim))
        )


def _from_partial(u: jax.Array, covariance: jax.Array) -> jax.Array:
    """Coefficients (p, k, k) from unconstrained matrices."""
    p, k = u.shape[:2]
    identity = jnp.eye(k, dtype=u.dtype)
    # Roots of the variances of what is not foretold from the s values before, and from the s after; that of none is I.
    root = back_root = scale = identity
    ahead: list[jax.Array] = []
    back: list[jax.Array] = []
    for s in range(p):
        factor = core.cholesky(identity + core.matmul(u[s], u[s].T))
        partial = core.solve_triangular(factor, u[s])
        # I - P^T P = (I + U^T U)^-1: its lower root is made from the upper one of I + U^T U.
        turned = jnp.flip(core.cholesky(jnp.flip(identity + core.matmul(u[s].T, u[s]))))
        ahead, back = _extended(ahead, back, partial, root, back_root)
        root = core.matmul(root, core.solve_triangular(factor, identity))
        back_root = core.matmul(back_root, jax.scipy.linalg.solve_triangular(turned, identity, lower=False).T)
        scale = core.matmul(factor, scale)
    # So far for a series of variance I; scaled to one whose noise has the covariance.
    scale = core.matmul(core.cholesky(covariance), scale)
    return jnp.stack([_similar(scale, a) for a in ahead]) if p else u


def _to_partial(x: jax.Array, covariance: jax.Array) -> jax.Array:
    """Unconstrained matrices from coefficients (p, k, k), by way of their autocovariances."""
    p, k = x.shape[:2]
    if not p:
        return x
    gammas = list(_autocovariances(x, covariance))
    gammas.append(jnp.sum(core.matmul(x, jnp.stack(gammas[::-1])), 0))
    root = back_root = core.cholesky(gammas[0])
    identity = jnp.eye(k, dtype=x.dtype)
    ahead: list[jax.Array] = []
    back: list[jax.Array] = []
    result = []
    for s in range(p):
        left = gammas[s + 1]
        for i, a in enumerate(ahead):
            left = left - core.matmul(a, gammas[s - i])
        partial = core.solve_triangular(back_root, core.solve_triangular(root, left).T).T
        ahead, back = _extended(ahead, back, partial, root, back_root)
        factor = core.cholesky(identity - core.matmul(partial, partial.T))
        back_factor = core.cholesky(identity - core.matmul(partial.T, partial))
        result.append(core.solve_triangular(factor, partial))
        root, back_root = core.matmul(root, factor), core.matmul(back_root, back_factor)
    return jnp.stack(result)


def _extended(
    ahead: list[jax.Array], back: list[jax.Array], partial: jax.Array, root: jax.Array, back_root: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Coefficients of the order above, those that foretell a value and those that tell one from later ones."""
    last = core.matmul(root, core.solve_triangular(back_root, partial.T, transpose=True).T)
    back_last = core.matmul(back_root, core.solve_triangular(root, partial, transpose=True).T)
    return (
        [a - core.matmul(last, b) for a, b in zip(ahead, back[::-1], strict=True)] + [last],
        [b - core.matmul(back_last, a) for a, b in zip(ahead[::-1], back, strict=True)] + [back_last],
    )


def _similar(scale: jax.Array, matrix: jax.Array) -> jax.Array:
    """S A S^-1 of a lower-triangular S."""
    return core.solve_triangular(scale, core.matmul(scale, matrix).T, transpose=True).T


@core.pytree
class StationaryMatrices(Support):
    """Coefficients (p, k, k) of stationary vector autoregressions, without those on the edge to rounding.

    Args:
      covariance: (*batch, k, k), positive definite, of what is new at each time. The set does not depend on it; the map
        onto the set does, which is that of Ansley and Kohn.

    >>> StationaryMatrices(jnp.eye(2)).contains(0.9 * jnp.ones((1, 2, 2)) / 2).item()
    True
    """

    covariance: Any

    @property
    def event_ndims(self) -> int:
        return 3

    def contains(self, x: Any) -> jax.Array:
        def settles(x: jax.Array) -> jax.Array:
            return jnp.all(jnp.isfinite(_autocovariances(x, jnp.eye(x.shape[-1], dtype=x.dtype))))

        return jnp.vectorize(settles, signature="(p,k,k)->()")(floating(x))

    @property
    def bijector(self) -> Bijector:
        return PartialAutocorrelationMatrices(self.covariance)


def _autocovariances(x: jax.Array, covariance: jax.Array) -> jax.Array:
    """Of the newest values of a vector autoregression with themselves and with those before, (p, k, k)."""
    p, k = x.shape[:2]
    newest = jnp.reshape(jnp.swapaxes(x, 0, 1), (k, p * k))
    dynamics = jnp.concatenate([newest, jnp.eye((p - 1) * k, p * k, dtype=x.dtype)])
    noise = jnp.zeros_like(dynamics).at[:k, :k].set(covariance)
    return jnp.swapaxes(jnp.reshape(core.discrete_lyapunov(dynamics, noise)[:k], (k, p, k)), 0, 1)
