"""A short causal convolution of each channel with itself; the last inputs are its state.

Source: Fu et al. (2023), "Hungry hungry hippos", for the shift in front of a recurrence; Gu and Dao (2023), "Mamba",
for its form.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxprob.core import random
from jaxprob.models.sequence._time_axis import before_piece, cuts, devices_along_time, in_pieces, of_last


def causal_convolution(
    xs: jax.Array, kernel: jax.Array, state: jax.Array, reset: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """y_t = sum_j kernel_j x_{t-j}, with zeros before a reset.

    Args:
      xs: (time, channels)
      kernel: (taps, channels)
      state: (taps - 1, channels), the inputs before the first; the last of them is the latest.
      reset: booleans (time,) or None.

    Returns:
      (time, channels), and the last taps - 1 inputs.
    """
    begun = (jnp.zeros(state.shape[0], bool), jnp.zeros(xs.shape[0], bool) if reset is None else reset)
    if not cuts(xs.shape[0]) or xs.shape[0] < devices_along_time() * state.shape[0]:
        return _convolved(xs, kernel, state, *begun)

    def piece(whole: Any, xs: Any) -> tuple[jax.Array, jax.Array]:
        kernel, *first = whole
        before = before_piece([x[x.shape[0] - first[0].shape[0] :] for x in xs], first)
        ys, after = _convolved(xs[0], kernel, before[0], before[1], xs[1])
        return ys, of_last(after)

    return in_pieces(piece, (kernel, state, begun[0]), (xs, begun[1]))


def _convolved(
    xs: jax.Array, kernel: jax.Array, before: jax.Array, begun_before: jax.Array, begun: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The convolution of what follows the inputs `before`; `begun` is true where a sequence begins."""
    taps, time = kernel.shape[0], xs.shape[0]
    inputs = jnp.concatenate([before, xs])
    segment = jnp.cumsum(jnp.concatenate([begun_before, begun]), dtype=jnp.int32)
    ys = jnp.zeros_like(xs)
    for j in range(taps):
        earlier = slice(taps - 1 - j, taps - 1 - j + time)
        same = jnp.expand_dims(segment[earlier] == segment[taps - 1 :], 1)
        ys = ys + jnp.where(same, inputs[earlier], 0) * kernel[j : j + 1]
    kept = jnp.expand_dims(segment[time:] == segment[-1], 1)
    return ys, jnp.where(kept, inputs[time:], 0)


class ShortConvolution(nn.Module):
    """silu(causal convolution); with one tap nothing at all, and no state.

    Attributes:
      taps: inputs of an output, itself among them.
      channels: numbers of an input and an output.
    """

    taps: int
    channels: int

    @nn.compact
    def __call__(
        self, xs: jax.Array, state: jax.Array | None, reset: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """Maps (time, channels) to the same shape, in float32; the state after it as in `convolution_state`."""
        if self.taps == 1 or state is None:
            return xs, None
        bound = self.taps**-0.5

        def uniform(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return random.uniform(key, shape, dtype, -bound, bound)

        kernel = self.param("kernel", uniform, (self.taps, self.channels), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        kernel, bias = kernel.astype(xs.dtype), bias.astype(xs.dtype)
        ys, state = causal_convolution(xs, kernel, state, reset)
        return nn.silu(ys + jnp.expand_dims(bias, 0)), state


def convolution_state(taps: int, channels: int) -> jax.Array | None:
    """The inputs before the first, (taps - 1, channels); None for one tap."""
    return None if taps == 1 else jnp.zeros((taps - 1, channels), jnp.float32)
