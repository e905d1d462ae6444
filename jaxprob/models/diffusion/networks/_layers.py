"""What networks are built of: attention in both directions, norms without parameters, blocks over depth.

Sources: Peebles & Xie (2023), "Scalable diffusion models with transformers", for blocks that a context modulates and
that start as the identity; Wu & He (2018), "Group normalization"; Su et al. (2021), "RoFormer", for queries and keys
that are turned by their positions; Miyato, Jaeger, Welling & Geiger (2024), "GTA: a geometry-aware attention mechanism
for multi-view transformers", for values too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.models.sequence._layers import Linear, again

_EPSILON = 1e-6
# Hidden numbers of a transformer's MLP over its width.
_EXPANSION = 4


@again
def normalized(x: jax.Array) -> jax.Array:
    """The last axis with mean zero and variance one."""
    y = x.astype(core.accumulator_dtype(x.dtype))
    y = y - jnp.mean(y, -1, keepdims=True)
    return (y * lax.rsqrt(jnp.mean(jnp.square(y), -1, keepdims=True) + _EPSILON)).astype(x.dtype)


def modulated(x: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """x (..., width) times one plus a vector, plus another."""
    return x * jnp.broadcast_to(1 + scale, x.shape) + jnp.broadcast_to(shift, x.shape)


class Modulation(nn.Module):
    """Vectors that a context gives: linear in silu(context), and zero at first.

    Attributes:
      number: how many.
      width: of each.
    """

    number: int
    width: int

    @nn.compact
    def __call__(self, context: jax.Array) -> list[jax.Array]:
        """Maps (any,) to `number` vectors (width,)."""
        all_of_them = Linear(self.number * self.width, init=nn.initializers.zeros, name="dense")(nn.silu(context))
        return jnp.split(all_of_them, self.number)


class Turns(NamedTuple):
    """Rotations of a plane for each place.

    Attributes:
      cosine, sine: (place, head, plane), of their angles.
    """

    cosine: jax.Array
    sine: jax.Array

    @classmethod
    def by(cls, angles: jax.Array) -> Turns:
        """Rotations by angles (place, head, plane)."""
        return cls(jnp.cos(angles), jnp.sin(angles))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Turns (place, head, 2 plane): number i and number i + plane are the coordinates in plane i."""
        one, other = jnp.split(x, 2, -1)
        cosine, sine = self.cosine.astype(x.dtype), self.sine.astype(x.dtype)
        return jnp.concatenate([one * cosine - other * sine, one * sine + other * cosine], -1)

    def back(self) -> Turns:
        """The inverse."""
        return Turns(self.cosine, -self.sine)


class Attention(nn.Module):
    """Soft-max attention of places to all places.

    Attributes:
      heads: divides the width.
      last_init: of the map of what was attended to.
    """

    heads: int
    last_init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, seen: jax.Array | None = None, turns: Turns | None = None) -> jax.Array:
        """Maps (place, width) to the same shape.

        Args:
          x: (place, width).
          seen: booleans (place,), which are attended to.
          turns: for each place, of queries, keys and values, and back of what was attended to, which then depends on
            turns from place to place alone.
        """
        places, width = x.shape
        whole = Linear(3 * width, name="project_in")(x).reshape(places, 3, self.heads, width // self.heads)
        query, key, value = whole[:, 0], whole[:, 1], whole[:, 2]
        if turns is not None:
            query, key, value = turns(query), turns(key), turns(value)
        sums = core.accumulator_dtype(x.dtype)
        scores = jnp.einsum("qhd,khd->hqk", query, key, preferred_element_type=sums) / math.sqrt(query.shape[-1])
        if seen is not None:
            # Not -inf, of which a row with no place at all to attend to would make NaN.
            scores = jnp.where(jnp.expand_dims(seen, (0, 1)), scores, jnp.finfo(sums).min)
        y = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(scores, axis=-1).astype(x.dtype), value)
        if turns is not None:
            y = turns.back()(y)
        return Linear(width, init=self.last_init, name="project_out")(y.reshape(x.shape))


class TransformerBlock(nn.Module):
    """x + gate(attention(norm(x))), then the same with an MLP, norms and gates modulated by a context.

    Attributes:
      heads: of attention.
    """

    heads: int

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array, seen: jax.Array | None, turns: Turns | None = None
    ) -> jax.Array:
        """Maps (place, width) and (any,) to (place, width); see `Attention`."""
        width = x.shape[-1]
        *first, gate, shift, scale, last_gate = Modulation(6, width, name="modulation")(context)
        y = Attention(self.heads, name="attention")(modulated(normalized(x), *first), seen, turns)
        x = x + y * jnp.broadcast_to(gate, x.shape)
        y = Linear(_EXPANSION * width, name="up")(modulated(normalized(x), shift, scale))
        y = Linear(width, name="down")(again(nn.gelu)(y))
        return x + y * jnp.broadcast_to(last_gate, x.shape)


class Head(nn.Module):
    """The last layer of a transformer: linear in the norm that a context modulates, zero at first.

    Attributes:
      numbers: of an output.
    """

    numbers: int

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        """Maps (place, width) and (any,) to (place, numbers)."""
        x = modulated(normalized(x), *Modulation(2, x.shape[-1], name="modulation")(context))
        return Linear(self.numbers, init=nn.initializers.zeros, name="dense")(x)


def over_depth(block: Callable[..., jax.Array], depth: int, x: jax.Array, *rest: Any, unroll: bool = False) -> Any:
    """Runs `block(x, *rest)` `depth` times, each with parameters of its own, which have a leading axis of depth.

    With `unroll` XLA gets a program without a loop, which grows with depth.
    """

    def body(block: Any, x: jax.Array, *rest: Any) -> tuple[jax.Array, None]:
        return block(x, *rest), None

    repeated = nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(nn.broadcast,) * len(rest),
        length=depth,
        unroll=depth if unroll else 1,
    )
    return repeated(block, x, *rest)[0]


class GroupNorm(nn.Module):
    """Groups of channels with mean zero and variance one over all places, then scaled and shifted.

    Attributes:
      groups: divides the channels.
    """

    groups: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (height, width, channel) to the same shape."""
        scale, bias = (
            self.param(name, init, (x.shape[-1],), jnp.float32)
            for name, init in (("scale", nn.initializers.ones), ("bias", nn.initializers.zeros))
        )

        def normed(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            y = x.astype(core.accumulator_dtype(x.dtype)).reshape(*x.shape[:-1], self.groups, -1)
            y = y - jnp.mean(y, (0, 1, 3), keepdims=True)
            y = y * lax.rsqrt(jnp.mean(jnp.square(y), (0, 1, 3), keepdims=True) + _EPSILON)
            y = y.reshape(x.shape)
            y = y * jnp.broadcast_to(scale.astype(y.dtype), y.shape)
            return (y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)).astype(x.dtype)

        return again(normed)(x, scale, bias)
