"""Base of the distributions of one number: shapes, dtypes and broadcasting are settled here, once.

Below it a distribution is plain mathematics on arrays of one dtype whose ranks agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.distributions._distribution import Distribution
from jaxprob.distributions._parameters import align, broadcast_to


class Univariate(Distribution):
    """A distribution of one number whose fields are parameters that broadcast together.

    A subclass defines `support` and, of arrays that have one dtype and ranks that agree (and broadcast),
    `_log_density(x, *parameters)`, `_draw(key, shape, dtype, *parameters)` and, where they exist,
    `_mean(*parameters)`, `_variance(*parameters)`, `_entropy(*parameters)`, `_cdf(x, *parameters)` and
    `_quantile(p, *parameters)`. Parameters come in the order of the fields.
    """

    # Annotations only: a subclass writes its parameters out by name.
    _log_density: Callable[..., jax.Array]
    _draw: Callable[..., jax.Array]

    @property
    def parameters(self) -> tuple[jax.Array, ...]:
        """The parameters in the order of the fields, each with the shape it was given."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))  # type: ignore[arg-type]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Shape that the parameters broadcast to."""
        return np.broadcast_shapes(*(jnp.shape(parameter) for parameter in self.parameters))

    def mean(self) -> jax.Array:
        """Expectation, of shape `batch_shape`; inf or nan where the integral diverges or does not exist."""
        return self._evaluate("mean")

    def variance(self) -> jax.Array:
        """Variance, of shape `batch_shape`; inf or nan where the integral diverges or does not exist."""
        return self._evaluate("variance")

    def entropy(self) -> jax.Array:
        """Entropy in nats, of shape `batch_shape`."""
        return self._evaluate("entropy")

    def cdf(self, value: Any) -> jax.Array:
        """P(X <= value), of the shape of `value` broadcast with `batch_shape`."""
        return self._evaluate("cdf", value)

    def quantile(self, probability: Any) -> jax.Array:
        """The number that X does not exceed with the given probability; the shape is that of `cdf`."""
        return self._evaluate("quantile", probability)

    def _evaluate(self, what: str, *values: Any) -> jax.Array:
        function = getattr(self, f"_{what}", None)
        if function is None:
            raise self._undefined(what)
        return self._apply(function, *(self._fitting(what, value) for value in values))

    def _log_prob(self, value: jax.Array) -> jax.Array:
        return self._apply(self._log_density, value)

    def _apply(self, function: Callable[..., jax.Array], *values: jax.Array) -> jax.Array:
        shape = np.broadcast_shapes(*(value.shape for value in values), self.batch_shape)
        arrays = align(*values, *self.parameters)
        dtype = arrays[0].dtype
        result = function(*_at_least_float32(arrays))
        return broadcast_to(result if result.dtype == dtype else result.astype(dtype), shape)

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        shape = shape + self.batch_shape
        parameters = align(*self.parameters, rank=len(shape))
        dtype = parameters[0].dtype
        parameters = _at_least_float32(parameters)
        draws = broadcast_to(self._draw(key, shape, parameters[0].dtype, *parameters), shape)
        return draws.astype(dtype) if jnp.issubdtype(draws.dtype, jnp.floating) and draws.dtype != dtype else draws


def _at_least_float32(arrays: list[jax.Array]) -> list[jax.Array]:
    """Arrays for the arithmetic: half-precision numbers are inputs and results, nothing is computed in them."""
    dtype = core.accumulator_dtype(arrays[0].dtype)
    return arrays if arrays[0].dtype == dtype else [array.astype(dtype) for array in arrays]
