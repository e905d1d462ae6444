"""Differentiable one-to-one maps with their log-determinants, and the ways to put them together.

A bijector acts on the last `event_ndims_in` axes of its argument and maps over the rest; log-determinants have those
axes summed out. Each formula is written so that value, log-determinant and gradient stay finite as far out as the
dtype can represent the result; where a result would round onto the edge of its open set it is held one rounding step
inside.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._parameters import ANY, REAL, Rule, align, set_parameters

Shape = tuple[int, ...]


class Bijector:
    """Base of all bijectors: `@core.pytree` classes whose parameters are leaves.

    A subclass defines `forward_and_log_det` and `inverse`, and the event ranks and shapes if its event is not a
    scalar.
    """

    @property
    def event_ndims_in(self) -> int:
        """Number of trailing axes of the argument of `forward` that are mapped together."""
        return 0

    @property
    def event_ndims_out(self) -> int:
        """Number of trailing axes of the result of `forward` that belong together."""
        return 0

    def forward(self, u: Any) -> jax.Array:
        """Maps `u` (..., *event_in) to `x` (..., *event_out)."""
        return self.forward_and_log_det(u)[0]

    def inverse(self, x: Any) -> jax.Array:
        """Maps `x` (..., *event_out) back to `u` (..., *event_in)."""
        raise NotImplementedError

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        """`forward(u)` and log |det dx/du|, of the shape of `u` less the event."""
        raise NotImplementedError

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        """`inverse(x)` and log |det du/dx|, of the shape of `x` less the event."""
        u = self.inverse(x)
        return u, -self.forward_and_log_det(u)[1]

    @property
    def context_size(self) -> int:
        """Numbers of a context that the map depends on and that it still has to be `given`; 0 if there is none."""
        return 0

    @property
    def keeps_reals(self) -> bool:
        """Whether it maps real arrays onto all real arrays of the shape `forward_shape`."""
        return False

    def given(self, context: Any) -> Bijector:
        """The map for a context (..., context_size); itself where it depends on none."""
        return self

    def forward_shape(self, shape: Shape) -> Shape:
        """Shape of `forward(u)` for `u` of shape `shape`."""
        return tuple(shape)

    def inverse_shape(self, shape: Shape) -> Shape:
        """Shape of `inverse(x)` for `x` of shape `shape`."""
        return tuple(shape)


def floating(value: Any) -> jax.Array:
    """`value` as one floating array."""
    return align(value)[0]


def inside_unit(x: jax.Array) -> jax.Array:
    """Holds numbers of [0, 1] inside (0, 1): at least the smallest normal number, at most 1 - eps / 2."""
    limits = jnp.finfo(x.dtype)
    return jnp.clip(x, np.asarray(limits.tiny, x.dtype), np.asarray(1 - limits.epsneg, x.dtype))


def _beside(edge: jax.Array, toward: jax.Array) -> jax.Array:
    """The number next to `edge` on the side of `toward`, with the gradient of `edge` (nextafter itself has none)."""
    fixed = jax.lax.stop_gradient(edge)
    return edge + (jnp.nextafter(fixed, jax.lax.stop_gradient(toward)) - fixed)


@core.pytree
class Identity(Bijector):
    """x = u.

    Args:
      ndims: number of axes of the event.
    """

    ndims: int = core.static(default=0)

    @property
    def event_ndims_in(self) -> int:
        return self.ndims

    @property
    def event_ndims_out(self) -> int:
        return self.ndims

    def inverse(self, x: Any) -> jax.Array:
        return floating(x)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        return u, jnp.zeros(u.shape[: u.ndim - self.ndims], u.dtype)


@core.pytree
class Affine(Bijector):
    """x = loc + scale u.

    Args:
      loc: (*batch).
      scale: (*batch), not zero.
    """

    loc: Any = 0.0
    scale: Any = 1.0

    def __post_init__(self) -> None:
        set_parameters(self, loc=ANY, scale=Rule("numbers other than 0", lambda x: (x != 0) & ~np.isnan(x)))

    def inverse(self, x: Any) -> jax.Array:
        x, loc, scale = align(x, self.loc, self.scale)
        return (x - loc) / scale

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, loc, scale = align(u, self.loc, self.scale)
        x = loc + scale * u
        return x, jnp.broadcast_to(jnp.log(jnp.abs(scale)), x.shape)


@core.pytree
class Exp(Bijector):
    """x = exp(u), from the real line to the positive numbers.

    >>> float(Exp().forward_and_log_det(2.0)[1])
    2.0
    """

    def inverse(self, x: Any) -> jax.Array:
        return jnp.log(floating(x))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        return jnp.exp(u), u


@core.pytree
class Sigmoid(Bijector):
    """x = 1 / (1 + exp(-u)), from the real line to (0, 1)."""

    def inverse(self, x: Any) -> jax.Array:
        return core.logit(floating(x))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        return inside_unit(jax.nn.sigmoid(u)), -(jax.nn.softplus(u) + jax.nn.softplus(-u))


@core.pytree
class Softplus(Bijector):
    """x = log(1 + exp(u)), from the real line to the positive numbers; nearly linear for large u."""

    def inverse(self, x: Any) -> jax.Array:
        return core.inverse_softplus(floating(x))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        return jax.nn.softplus(u), -jax.nn.softplus(-u)


@core.pytree
class Tanh(Bijector):
    """x = tanh(u), from the real line to (-1, 1)."""

    def inverse(self, x: Any) -> jax.Array:
        return jnp.arctanh(floating(x))

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u = floating(u)
        edge = np.asarray(1 - jnp.finfo(u.dtype).epsneg, u.dtype)
        return jnp.clip(jnp.tanh(u), -edge, edge), log_sech_squared(u)


def log_sech_squared(u: jax.Array) -> jax.Array:
    """log(1 - tanh(u)^2), without overflow."""
    return 2 * np.log(2).astype(u.dtype) - (jax.nn.softplus(2 * u) + jax.nn.softplus(-2 * u))


@core.pytree
class Power(Bijector):
    """x = u^exponent on the positive numbers.

    Args:
      exponent: (*batch), not zero.
    """

    exponent: Any

    def __post_init__(self) -> None:
        set_parameters(self, exponent=Rule("numbers other than 0", lambda x: (x != 0) & np.isfinite(x)))

    def inverse(self, x: Any) -> jax.Array:
        x, exponent = align(x, self.exponent)
        return x ** (1 / exponent)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, exponent = align(u, self.exponent)
        return u**exponent, jnp.log(jnp.abs(exponent)) + (exponent - 1) * jnp.log(u)


@core.pytree
class IntervalSigmoid(Bijector):
    """x = low + (high - low) / (1 + exp(-u)), from the real line to (low, high).

    Args:
      low: (*batch).
      high: (*batch), above `low`.
    """

    low: Any
    high: Any

    def __post_init__(self) -> None:
        set_parameters(self, low=REAL, high=REAL)

    def inverse(self, x: Any) -> jax.Array:
        x, low, high = align(x, self.low, self.high)
        return jnp.log(x - low) - jnp.log(high - x)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, low, high = align(u, self.low, self.high)
        # Measured from the nearer edge, so that neither edge costs digits when it is zero.
        unit = jnp.where(u < 0, jax.nn.sigmoid(u), jax.nn.sigmoid(-u))
        x = jnp.where(u < 0, low + (high - low) * unit, high - (high - low) * unit)
        log_det = jnp.log(high - low) - (jax.nn.softplus(u) + jax.nn.softplus(-u))
        return jnp.clip(x, _beside(low, high), _beside(high, low)), log_det


@core.pytree
class HalfLine(Bijector):
    """x = edge + exp(u), or edge - exp(u), from the real line to the numbers on one side of an edge.

    Args:
      edge: (*batch).
      above: whether x lies above the edge.
    """

    edge: Any = 0.0
    above: bool = core.static(default=True)

    def __post_init__(self) -> None:
        set_parameters(self, edge=REAL)

    def inverse(self, x: Any) -> jax.Array:
        x, edge = align(x, self.edge)
        return jnp.log(x - edge if self.above else edge - x)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        u, edge = align(u, self.edge)
        if self.above:
            x = jnp.maximum(edge + jnp.exp(u), _beside(edge, jnp.full_like(edge, jnp.inf)))
        else:
            x = jnp.minimum(edge - jnp.exp(u), _beside(edge, jnp.full_like(edge, -jnp.inf)))
        return x, jnp.broadcast_to(u, x.shape)


@core.pytree
class Inverse(Bijector):
    """The inverse of a bijector.

    Args:
      bijector: the bijector whose two directions are exchanged.
    """

    bijector: Bijector

    @property
    def event_ndims_in(self) -> int:
        return self.bijector.event_ndims_out

    @property
    def event_ndims_out(self) -> int:
        return self.bijector.event_ndims_in

    @property
    def context_size(self) -> int:
        return self.bijector.context_size

    @property
    def keeps_reals(self) -> bool:
        return self.bijector.keeps_reals

    def given(self, context: Any) -> Inverse:
        return Inverse(self.bijector.given(context))

    def forward(self, u: Any) -> jax.Array:
        return self.bijector.inverse(u)

    def inverse(self, x: Any) -> jax.Array:
        return self.bijector.forward(x)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        return self.bijector.inverse_and_log_det(u)

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        return self.bijector.forward_and_log_det(x)

    def forward_shape(self, shape: Shape) -> Shape:
        return self.bijector.inverse_shape(shape)

    def inverse_shape(self, shape: Shape) -> Shape:
        return self.bijector.forward_shape(shape)


@core.pytree
class IndependentBijector(Bijector):
    """One bijector applied along further axes that count as one event: their log-determinants are added.

    Args:
      bijector: what is applied.
      ndims: number of axes to the left of its event that join the event.
    """

    bijector: Bijector
    ndims: int = core.static()

    @property
    def event_ndims_in(self) -> int:
        return self.bijector.event_ndims_in + self.ndims

    @property
    def event_ndims_out(self) -> int:
        return self.bijector.event_ndims_out + self.ndims

    @property
    def context_size(self) -> int:
        return self.bijector.context_size

    @property
    def keeps_reals(self) -> bool:
        return self.bijector.keeps_reals

    def given(self, context: Any) -> IndependentBijector:
        return IndependentBijector(self.bijector.given(context), self.ndims)

    def forward(self, u: Any) -> jax.Array:
        return self.bijector.forward(u)

    def inverse(self, x: Any) -> jax.Array:
        return self.bijector.inverse(x)

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        x, log_det = self.bijector.forward_and_log_det(u)
        return x, sum_last(log_det, self.ndims)

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        u, log_det = self.bijector.inverse_and_log_det(x)
        return u, sum_last(log_det, self.ndims)

    def forward_shape(self, shape: Shape) -> Shape:
        return self.bijector.forward_shape(shape)

    def inverse_shape(self, shape: Shape) -> Shape:
        return self.bijector.inverse_shape(shape)


def sum_last(array: jax.Array, ndims: int) -> jax.Array:
    """Sum over the last `ndims` axes."""
    return jnp.sum(array, axis=tuple(range(array.ndim - ndims, array.ndim))) if ndims else array


@core.pytree
class Chain(Bijector):
    """Bijectors applied one after the other, the first in the list first: x = b_n(... b_2(b_1(u))).

    Args:
      bijectors: at least one; events of different rank are joined, the smaller counting as independent parts.

    >>> float(Chain((Affine(0.0, 2.0), Exp())).forward(0.0))
    1.0
    """

    bijectors: tuple[Bijector, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "bijectors", tuple(self.bijectors))
        if not self.bijectors:
            raise core.bad_value("Chain", "bijectors", "empty", "at least one bijector", "Use Identity() for none")

    @property
    def event_ndims_in(self) -> int:
        # The event must be large enough for each part once the parts before it have changed its rank.
        needed, change = 0, 0
        for bijector in self.bijectors:
            needed = max(needed, bijector.event_ndims_in - change)
            change += bijector.event_ndims_out - bijector.event_ndims_in
        return needed

    @property
    def event_ndims_out(self) -> int:
        return self.event_ndims_in + sum(b.event_ndims_out - b.event_ndims_in for b in self.bijectors)

    @property
    def context_size(self) -> int:
        return max(bijector.context_size for bijector in self.bijectors)

    @property
    def keeps_reals(self) -> bool:
        return all(bijector.keeps_reals for bijector in self.bijectors)

    def given(self, context: Any) -> Chain:
        return Chain(tuple(bijector.given(context) for bijector in self.bijectors))

    def forward(self, u: Any) -> jax.Array:
        for bijector in self.bijectors:
            u = bijector.forward(u)
        return u

    def inverse(self, x: Any) -> jax.Array:
        for bijector in reversed(self.bijectors):
            x = bijector.inverse(x)
        return x

    def forward_and_log_det(self, u: Any) -> tuple[jax.Array, jax.Array]:
        ndims, total = self.event_ndims_in, None
        for bijector in self.bijectors:
            u, log_det = bijector.forward_and_log_det(u)
            log_det = sum_last(log_det, ndims - bijector.event_ndims_in)
            total = log_det if total is None else total + log_det
            ndims += bijector.event_ndims_out - bijector.event_ndims_in
        return u, total  # type: ignore[return-value]

    def inverse_and_log_det(self, x: Any) -> tuple[jax.Array, jax.Array]:
        ndims, total = self.event_ndims_out, None
        for bijector in reversed(self.bijectors):
            x, log_det = bijector.inverse_and_log_det(x)
            log_det = sum_last(log_det, ndims - bijector.event_ndims_out)
            total = log_det if total is None else total + log_det
            ndims += bijector.event_ndims_in - bijector.event_ndims_out
        return x, total  # type: ignore[return-value]

    def forward_shape(self, shape: Shape) -> Shape:
        for bijector in self.bijectors:
            shape = bijector.forward_shape(shape)
        return tuple(shape)

    def inverse_shape(self, shape: Shape) -> Shape:
        for bijector in reversed(self.bijectors):
            shape = bijector.inverse_shape(shape)
        return tuple(shape)
