"""Attention over points of a function, in no order: for series at irregular times and fields at scattered places.

Sources: Lee et al. (2019), "Set transformer"; Dutordoir, Saul, Ghahramani & Simpson (2023), "Neural diffusion
processes"; Biloš, Rasul, Schneider, Nevmyvaka & Günnemann (2023), "Modeling temporal data as continuous functions with
stochastic process diffusion"; Su et al. (2021), "RoFormer: enhanced transformer with rotary position embedding", and
Miyato, Jaeger, Welling & Geiger (2024), "GTA: a geometry-aware attention mechanism for multi-view transformers", for
what depends on distances alone.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.diffusion.networks._layers import Head, TransformerBlock, Turns, over_depth
from jaxprob.models.diffusion.networks._network import Network, check_options, waves
from jaxprob.models.sequence._layers import Linear
from jaxprob.models.sequence._memory import check_heads

# Pairs of a sine and a cosine for each coordinate.
_WAVES = 16


class Points(NamedTuple):
    """The condition of a set network.

    Attributes:
      locations: (point,) or (point, coordinate), floating: times, or places.
      there: booleans (point,), which of them exist: the others are not looked at, and have output 0. None for all.
    """

    locations: Any
    there: Any = None


class _SetAttention(Network):
    """Points with waves of their locations, or turned by them, blocks."""

    depth: int = 4
    heads: int = 4
    wavelengths: tuple[float, float] = (0.1, 10.0)
    relative: bool = False

    factory = "set_attention"

    @property
    def axes(self) -> int:
        return 1

    def split(self, condition: Any) -> tuple[Any, Any]:
        return None, condition

    def run(self, x: jax.Array, context: jax.Array, numbers: int, condition: Any) -> jax.Array:
        locations, there = self._points(condition, x.shape[0], x.dtype)
        if there is not None:  # what is not there may be NaN
            column = jnp.expand_dims(there, 1)
            x, locations = jnp.where(column, x, 0), jnp.where(column, locations, 0)
        shortest, longest = self.wavelengths
        slowest, fastest = 2 * math.pi / longest, 2 * math.pi / shortest
        turns = self._turns(locations, slowest, fastest) if self.relative else None
        if turns is None:
            told = waves(locations, slowest, fastest, _WAVES)
            x = jnp.concatenate([x, told.reshape(x.shape[0], -1).astype(x.dtype)], -1)
        self.check_inputs(x)
        x = Linear(self.width, name="encoder")(x)
        x = over_depth(TransformerBlock(self.heads, name="blocks"), self.depth, x, context, there, turns)
        x = Head(numbers, name="head")(x, context)
        return x if there is None else jnp.where(jnp.expand_dims(there, 1), x, 0)

    def _turns(self, locations: jax.Array, slowest: float, fastest: float) -> Turns:
        """Rotations of the planes of all heads: each of them by one coordinate, with a frequency of its own."""
        planes, coordinates = self.width // self.heads // 2, locations.shape[1]
        if planes < coordinates:
            got = f"locations of {coordinates} coordinates"
            expected = f"at most {planes}, half of the width of a head"
            raise core.bad_value(self.name_of, "condition", got, expected, "Give the network fewer heads")
        frequencies = np.empty((planes, self.heads))
        for i in range(coordinates):
            own = frequencies[i::coordinates]
            own[:] = np.geomspace(slowest, fastest, own.size).reshape(own.shape)
        turning = jnp.expand_dims(locations[:, np.arange(planes) % coordinates], 1)
        return Turns.by(turning * jnp.asarray(frequencies.T[None], locations.dtype))

    def _points(self, condition: Any, number: int, dtype: Any) -> tuple[jax.Array, jax.Array | None]:
        """Locations (point, coordinate) in which products are kept, and which are there."""
        points = condition if isinstance(condition, Points) else Points(condition)
        expected = f"locations ({number},) or ({number}, coordinate), one for each point of x, or Points of them"
        if points.locations is None:
            raise core.bad_value(self.name_of, "condition", points.locations, expected)
        locations = core.as_float(points.locations).astype(core.accumulator_dtype(dtype))
        if locations.ndim not in (1, 2) or locations.shape[0] != number:
            raise core.bad_value(self.name_of, "condition", f"of shape {locations.shape}", expected)
        locations = locations.reshape(number, -1)
        if points.there is None:
            return locations, None
        there = jnp.asarray(points.there)
        if there.shape != (number,) or there.dtype != jnp.bool_:
            got = f"{there.dtype} of shape {there.shape}"
            raise core.bad_value(self.name_of, "condition.there", got, f"booleans ({number},)")
        return locations, there


def set_attention(
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    *,
    wavelengths: tuple[float, float] = (0.1, 10.0),
    relative: bool = False,
    output: int | None = None,
    vocabulary: int | None = None,
) -> Network:
    """A transformer over points of a function, whose outputs move with the points when their order changes.

    The condition says where the points are: locations (point,) or (point, coordinate), or `Points` of them. x is
    (point,) or (point, channel); any number of points, with the same parameters.

    Args:
      width: numbers of a point.
      depth: number of blocks.
      heads: of attention; divide the width.
      wavelengths: the shortest and the longest wave by which locations are told apart, in their unit: about the
        distance of neighbours and twice the extent of all.
      relative: whether only where points are from each other counts, so that moving all of them by as much changes no
        output. Queries, keys and values are turned by locations in place of waves that are inputs: for stationary
        functions of time, of which it learns more from as many. Heads have waves of their own; the width of a head is
        even then, and half of it no less than the number of coordinates.
      output: numbers for each number of x, on a last axis of their own; None for one number and no such axis.
      vocabulary: number of tokens where x are integers; the integer after the last is what is masked, and the output
        has as many logits as tokens on a last axis.

    Returns:
      a module: `net.init(key, x, t, locations)`, `net.apply(params, x, t, locations)`.

    Raises:
      TypeError: if `relative` is no boolean.
      ValueError: if a number is not whole, heads do not divide the width, the width of a head is odd where locations
        are relative, wavelengths are not two positive numbers in order, or two options are given that exclude each
        other.

    >>> net = set_attention(width=16, depth=2, heads=2)
    >>> x, times = jnp.ones(5), jnp.array([0.0, 0.3, 0.4, 1.1, 2.0])
    >>> params = net.init(jax.random.key(0), x, 0.5, times)
    >>> net.apply(params, x, 0.5, times).shape
    (5,)

    Source: Lee et al. (2019), property 1; Biloš et al. (2023), section 3.4; Miyato et al. (2024), section 3.
    """
    name = "networks.set_attention"
    check_options(name, width, output, vocabulary)
    core.check_whole(name, depth=depth, heads=heads)
    check_heads(name, width, heads)
    if not isinstance(wavelengths, tuple) or len(wavelengths) != 2:
        raise core.bad_value(name, "wavelengths", wavelengths, "a pair, the shortest and the longest")
    shortest, longest = wavelengths
    core.check_positive(name, wavelengths=shortest)
    core.check_positive(name, wavelengths=longest)
    if shortest >= longest:
        raise core.bad_value(name, "wavelengths", wavelengths, "a pair, the shortest and the longest")
    if not isinstance(relative, bool):
        raise core.bad_type(name, "relative", core.describe(relative), "True or False")
    if relative and width // heads % 2:
        got = f"{width}, {width // heads} for each head"
        raise core.bad_value(name, "width", got, "an even number for each head where locations are relative")
    span = (float(shortest), float(longest))
    return _SetAttention(width, output, vocabulary, None, None, depth, heads, span, relative)
