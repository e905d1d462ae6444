"""A transformer over patches of an image, or over sites of a sequence.

Source: Peebles & Xie (2023), "Scalable diffusion models with transformers".
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core
from jaxprob.models.diffusion.networks._layers import Head, TransformerBlock, over_depth
from jaxprob.models.diffusion.networks._network import Network, check_options
from jaxprob.models.sequence._layers import Linear
from jaxprob.models.sequence._memory import check_heads

# The slowest wave of a position has 2 pi times this many patches, as in Vaswani et al. (2017).
_SLOWEST = 10_000.0


def positions(places: tuple[int, ...], width: int) -> np.ndarray:
    """Waves of positions (place, width) in order of rows, an equal share of the width for each axis."""
    share = width // len(places)
    frequencies = _SLOWEST ** (-np.arange(share // 2) / (share // 2))
    grids = np.meshgrid(*[np.arange(number) for number in places], indexing="ij")
    angles = [grid.reshape(-1, 1) * frequencies for grid in grids]
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], -1)


class _DiffusionTransformer(Network):
    """Patches, positions, blocks, and patches again."""

    depth: int = 4
    heads: int = 4
    patch: tuple[int, ...] = (1,)

    factory = "diffusion_transformer"

    @property
    def axes(self) -> int:
        return len(self.patch)

    def run(self, x: jax.Array, context: jax.Array, numbers: int, condition: Any) -> jax.Array:
        shape = x.shape[:-1]
        if any(size % one for size, one in zip(shape, self.patch, strict=True)):
            sizes = " x ".join(map(str, self.patch))
            raise core.bad_value(self.name_of, "x", f"of {shape} places", f"whole patches of {sizes}")
        places = tuple(size // one for size, one in zip(shape, self.patch, strict=True))
        x = _cut(x, self.patch)
        self.check_inputs(x)
        x = Linear(self.width, name="encoder")(x)
        x = x + jnp.asarray(positions(places, self.width), x.dtype)
        x = over_depth(TransformerBlock(self.heads, name="blocks"), self.depth, x, context, None)
        x = Head(math.prod(self.patch) * numbers, name="head")(x, context)
        return _joined(x, self.patch, places)


def _cut(x: jax.Array, patch: tuple[int, ...]) -> jax.Array:
    """(*places, channel) as (patch, numbers of a patch)."""
    if all(one == 1 for one in patch):
        return x.reshape(-1, x.shape[-1])
    split = [part for size, one in zip(x.shape[:-1], patch, strict=True) for part in (size // one, one)]
    order = (*range(0, len(split), 2), *range(1, len(split), 2), len(split))
    return x.reshape(*split, x.shape[-1]).transpose(order).reshape(-1, math.prod(patch) * x.shape[-1])


def _joined(x: jax.Array, patch: tuple[int, ...], places: tuple[int, ...]) -> jax.Array:
    """(patch, numbers of a patch) as (*places, channel): the inverse of `_cut`."""
    axes = len(patch)
    order = [axis for pair in zip(range(axes), range(axes, 2 * axes), strict=True) for axis in pair]
    x = x.reshape(*places, *patch, -1).transpose(*order, 2 * axes)
    return x.reshape(*[size * one for size, one in zip(places, patch, strict=True)], x.shape[-1])


def diffusion_transformer(
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    *,
    patch: int | tuple[int, int] = 1,
    output: int | None = None,
    vocabulary: int | None = None,
    classes: int | None = None,
    features: int | None = None,
) -> Network:
    """A transformer over patches that attend to each other in all directions, modulated by time and condition (DiT).

    Args:
      width: numbers of a patch.
      depth: number of blocks.
      heads: of attention; divide the width.
      patch: one number for sequences x (site,) or (site, channel), cut into patches of so many sites; a pair for images
        (height, width) or (height, width, channel).
      output: numbers for each number of x, on a last axis of their own; None for one number and no such axis.
      vocabulary: number of tokens where x are integers; the integer after the last is what is masked, and the output
        has as many logits as tokens on a last axis.
      classes: number of labels, where conditions are integers; the integer after the last, or None, stands for none.
      features: length of a condition, where conditions are vectors; None, or a vector of NaN, stands for none.

    Returns:
      a module: `net.init(key, x, t, condition)`, `net.apply(params, x, t, condition)`. Parameters serve sequences and
      images of any size.

    Raises:
      ValueError: if a number is not whole, heads do not divide the width, the width is not a multiple of 2 for
        sequences or 4 for images, or two options are given that exclude each other.

    >>> net = diffusion_transformer(width=16, depth=2, heads=2, vocabulary=5)
    >>> x = jnp.array([0, 3, 5, 5])
    >>> params = net.init(jax.random.key(0), x, 0.5)
    >>> net.apply(params, x, 0.5).shape
    (4, 5)

    Source: Peebles & Xie (2023), section 3.2, the adaLN-zero block.
    """
    name = "networks.diffusion_transformer"
    check_options(name, width, output, vocabulary, classes, features)
    core.check_whole(name, depth=depth, heads=heads)
    patches = patch if isinstance(patch, tuple) else (patch,)
    if len(patches) not in (1, 2):
        raise core.bad_value(name, "patch", patch, "one number for sequences or a pair for images")
    for one in patches:
        core.check_whole(name, patch=one)
    check_heads(name, width, heads)
    if width % (2 * len(patches)):
        raise core.bad_value(name, "width", width, f"a multiple of {2 * len(patches)}", "Positions have waves in pairs")
    return _DiffusionTransformer(width, output, vocabulary, classes, features, depth, heads, patches)
