"""What Gaussian noise looks like: independent numbers, or a function's values with correlations of their own."""

from __future__ import annotations

from typing import Any

import jax

from jaxprob import core


class Noise:
    """A Gaussian law of noise with covariance L L^T, as a pytree; each method is of one example."""

    def shaped(self, z: jax.Array) -> jax.Array:
        """L z: noise from independent standard normal numbers of the same shape."""
        raise NotImplementedError

    def whitened(self, x: jax.Array) -> jax.Array:
        """L^-1 x."""
        raise NotImplementedError

    def log_scale(self, shape: tuple[int, ...]) -> Any:
        """log |det L| for an example of a shape, ()."""
        raise NotImplementedError

    def draw(self, key: core.Key, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """A draw of the noise."""
        return self.shaped(core.random.normal(key, shape, dtype))


@core.pytree
class White(Noise):
    """Independent standard normal numbers."""

    def shaped(self, z: jax.Array) -> jax.Array:
        return z

    def whitened(self, x: jax.Array) -> jax.Array:
        return x

    def log_scale(self, shape: tuple[int, ...]) -> Any:
        return 0.0
