"""Guides: distributions over positions, whose leaves are what variational inference moves.

A guide is a pytree with `sample`, `log_prob` and `sample_and_log_prob`. A family is a way to make one for positions of
any structure.

Source: Kucukelbir et al. (2017), "Automatic differentiation variational inference", for Gaussian guides; Rezende &
Mohamed (2015), "Variational inference with normalizing flows".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import (
    Chain,
    Distribution,
    MultivariateNormalLowRank,
    RealVector,
    Support,
    Transformed,
    flows,
)
from jaxprob.inference.vi._layout import Layout
from jaxprob.inference.vi._markov_affine import MarkovAffine
from jaxprob.inference.vi._place import Place


@core.pytree
class Guide:
    """A distribution over positions.

    Attributes:
      distribution: over vectors (size,) of real numbers; its leaves are the parameters.
      layout: how a position lies in a vector.
      place: None, or what takes the vectors to positions, fixed: no gradient reaches it.
    """

    distribution: Distribution
    layout: Layout = core.static()
    place: Place | None = None

    def sample(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> Any:
        """Positions with leading axes `shape`."""
        return self.layout.unravel(self._out(self.distribution.sample(key, shape)))

    def sample_and_log_prob(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> tuple[Any, jax.Array]:
        """Positions with leading axes `shape`, and the log density of each."""
        vectors, log_prob = self.distribution.sample_and_log_prob(key, shape)
        return self.layout.unravel(self._out(vectors)), log_prob - self._log_volume

    def log_prob(self, position: Any) -> jax.Array:
        """Log density at a position, or at several with leading axes."""
        vector = self.layout.ravel(position)
        if self.place is not None:
            vector = jax.lax.stop_gradient(self.place).back(vector)
        return self.distribution.log_prob(vector) - self._log_volume

    def _out(self, vectors: jax.Array) -> jax.Array:
        return vectors if self.place is None else jax.lax.stop_gradient(self.place).out(vectors)

    @property
    def _log_volume(self) -> jax.Array | float:
        return 0.0 if self.place is None else jax.lax.stop_gradient(self.place).log_volume

    def sample_and_entropy(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> tuple[Any, jax.Array]:
        """Positions with leading axes `shape`, and the entropy in nats: of a flow its mean by these draws.

        That is the exact entropy of what the flow starts from and the mean log-determinant of the flow, which asks for
        no inverse.
        """
        distribution = self.distribution
        if not isinstance(distribution, Transformed) or isinstance(distribution.bijector, _AFFINE):
            return self.sample(key, shape), self.entropy()
        vectors, log_dets = distribution.bijector.forward_and_log_det(distribution.base.sample(key, shape))
        entropy = distribution.base.entropy() + jnp.mean(log_dets) + self._log_volume
        return self.layout.unravel(self._out(vectors)), entropy

    def entropy(self) -> jax.Array:
        """In nats, where it has a closed form: of Gaussian guides."""
        distribution = self.distribution
        if isinstance(distribution, Transformed) and isinstance(distribution.bijector, _AFFINE):
            zero = jnp.zeros(distribution.base.shape, self.layout.dtype)
            return distribution.base.entropy() + distribution.bijector.forward_and_log_det(zero)[1] + self._log_volume
        return distribution.entropy() + self._log_volume


@core.pytree
class BlockGuide:
    """Independent guides, one for each block of a position that is a dict.

    Attributes:
      guides: a guide for each block.
      blocks: the names of the blocks' entries.
    """

    guides: tuple[Any, ...]
    blocks: tuple[tuple[str, ...], ...] = core.static()

    def sample(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> Any:
        """Positions with leading axes `shape`."""
        return self.sample_and_log_prob(key, shape)[0]

    def sample_and_log_prob(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> tuple[Any, jax.Array]:
        """Positions with leading axes `shape`, and the log density of each."""
        key = core.as_key(key, "sample")
        drawn = [guide.sample_and_log_prob(core.fold(key, i), shape) for i, guide in enumerate(self.guides)]
        position = {name: part[name] for part, _ in drawn for name in part}
        return {name: position[name] for name in sorted(position)}, sum(log_prob for _, log_prob in drawn)

    def log_prob(self, position: Any) -> jax.Array:
        """Log density at a position, or at several with leading axes."""
        pairs = zip(self.guides, self.blocks, strict=True)
        return sum(guide.log_prob({name: position[name] for name in names}) for guide, names in pairs)

    def sample_and_entropy(self, key: core.Key, shape: int | tuple[int, ...] = ()) -> tuple[Any, jax.Array]:
        """Positions with leading axes `shape`, and the entropy in nats: of flows its mean by these draws."""
        key = core.as_key(key, "sample")
        drawn = [guide.sample_and_entropy(core.fold(key, i), shape) for i, guide in enumerate(self.guides)]
        position = {name: part[name] for part, _ in drawn for name in part}
        return {name: position[name] for name in sorted(position)}, sum(entropy for _, entropy in drawn)

    def entropy(self) -> jax.Array:
        """In nats, where each has a closed form."""
        return sum(guide.entropy() for guide in self.guides)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of guides; hashable, without arrays.

    Attributes:
      name: of the factory.
      build: `(key, position) -> guide`, near a position or in a `Place`.
      rate: of learning, that `vi.fit` begins with: networks want a smaller one than a location.
    """

    name: str
    build: Callable[[core.Key, Any], Any]
    rate: float = 0.05

    def init(self, key: core.Key, position: Any) -> Any:
        """A guide with parameters to start from.

        Args:
          key: random key.
          position: pytree of real arrays, around which the guide starts; or the result of `vi.laplace` or
            `vi.pathfinder`, in whose coordinates it is fitted and whose Gaussian it starts from: all of it where the
            family can take any, its standard deviations alone for independent numbers or blocks.
        """
        if hasattr(position, "inverse_mass_matrix") and hasattr(position, "mean"):
            position = Place(position.mean, position.inverse_mass_matrix)
        return self.build(core.as_key(key, self.name), jax.tree.map(jnp.asarray, position))


_AFFINE = (flows.DiagonalAffine, flows.TriangularAffine, MarkovAffine)


def mean_field(scale: float = 0.1) -> Family:
    """Independent normal distributions, one for each number.

    Args:
      scale: standard deviation to start from.

    >>> mean_field().init(jax.random.key(0), {"x": jnp.zeros(2)}).sample(jax.random.key(1))["x"].shape
    (2,)
    """
    core.check_positive("mean_field", scale=scale)
    return Family("mean_field", core.Bound(_mean_field, scale))


def _mean_field(scale: float, key: core.Key, position: Any) -> Guide:
    start = _start(position, scale, rotate=False)
    return _of(start, flows.DiagonalAffine(start.loc, start.log_scale))


def full_rank(scale: float = 0.1) -> Family:
    """A multivariate normal distribution with any covariance.

    Args:
      scale: standard deviation to start from.
    """
    core.check_positive("full_rank", scale=scale)
    return Family("full_rank", core.Bound(_full_rank, scale))


def _full_rank(scale: float, key: core.Key, position: Any) -> Guide:
    start = _start(position, scale, rotate=True)
    lower = jnp.zeros((start.loc.size, start.loc.size), start.loc.dtype)
    return _of(start, flows.TriangularAffine(start.loc, start.log_scale, lower))


@core.pytree
class _LowRank(Distribution):
    """A normal distribution with covariance diag(exp(2 log_scale)) + factor factor^T; parameters are any numbers."""

    loc: Any  # (n,)
    log_scale: Any  # (n,)
    factor: Any  # (n, rank)

    @property
    def _normal(self) -> MultivariateNormalLowRank:
        return MultivariateNormalLowRank(self.loc, jnp.exp(2 * self.log_scale), self.factor)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return jnp.shape(self.loc)

    @property
    def support(self) -> Support:
        return RealVector()

    def mean(self) -> jax.Array:
        return self.loc

    def variance(self) -> jax.Array:
        return self._normal.variance()

    def entropy(self) -> jax.Array:
        return self._normal.entropy()

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        return self._normal.sample(key, shape)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        return self._normal.log_prob(value)


def low_rank(rank: int, scale: float = 0.1) -> Family:
    """A normal distribution whose covariance is a diagonal plus a matrix of low rank.

    Args:
      rank: of the second part.
      scale: standard deviation to start from.

    Source: Ong, Nott & Smith (2018), "Gaussian variational approximation with a factor covariance structure".
    """
    core.check_whole("low_rank", rank=rank)
    core.check_positive("low_rank", scale=scale)
    return Family("low_rank", core.Bound(_low_rank, rank, scale))


def _low_rank(rank: int, scale: float, key: core.Key, position: Any) -> Guide:
    start = _start(position, scale, rotate=False)
    # Not zero, where the gradient with respect to the factor would be.
    factor = 0.1 * jnp.exp(start.log_scale[0]) * core.random.normal(key, (start.loc.size, rank), start.loc.dtype)
    return Guide(_LowRank(start.loc, start.log_scale, factor), start.layout, start.place)


def flow(architecture: flows.Architecture, scale: float = 0.1) -> Family:
    """A normalizing flow, followed by a location and a scale for each number.

    Args:
      architecture: of the flow, such as `flows.spline_coupling()`; or `flows.inverse_autoregressive()`, whose draws are
        quick and whose densities are not: with it take `gradient="path"`, which needs those of draws alone.
      scale: standard deviation to start from.

    Raises:
      TypeError: if `architecture` is none.
    """
    if not isinstance(architecture, flows.Architecture):
        raise core.bad_type("vi.flow", "architecture", architecture, "one of flows, such as flows.spline_coupling()")
    core.check_positive("vi.flow", scale=scale)
    return Family("flow", core.Bound(_flow, architecture, scale), rate=0.005)


def _flow(architecture: flows.Architecture, scale: float, key: core.Key, position: Any) -> Guide:
    start = _start(position, scale, rotate=True)
    inner = architecture.init(key, start.loc.size, dtype=start.layout.dtype)
    outer = flows.DiagonalAffine(start.loc, start.log_scale)
    return Guide(Transformed(inner.base, Chain((inner.bijector, outer))), start.layout, start.place)


def markov(scale: float = 0.1) -> Family:
    """A normal distribution of states in time, in which each depends on the one before it: a banded precision.

    For a position of one array (time, ...), such as the states of `inference.state_posterior`; with parameters beside
    them, `vi.blocks({"states": vi.markov()}, rest=vi.full_rank())`.

    Args:
      scale: standard deviation to start from.

    >>> guide = markov().init(jax.random.key(0), {"states": jnp.zeros((50, 2))})
    >>> sum(leaf.size for leaf in jax.tree.leaves(guide))  # a dense covariance has 5,050 numbers
    596

    Source: Archer, Park, Buesing, Cunningham & Paninski (2015), "Black box variational inference for state space
    models".
    """
    core.check_positive("markov", scale=scale)
    return Family("markov", core.Bound(_markov, scale))


def _markov(scale: float, key: core.Key, position: Any) -> Guide:
    start = _start(position, scale, rotate=False)
    shapes = start.layout.shapes
    if len(shapes) != 1 or not shapes[0]:
        got, todo = f"one with arrays of shapes {shapes}", "Name the states of a posterior with vi.blocks"
        raise core.bad_value("vi.markov", "position", got, "one array (time, ...)", todo)
    time = shapes[0][0]
    loc = start.loc.reshape(time, -1)
    lower = jnp.zeros((*loc.shape, loc.shape[1]), loc.dtype)
    return _of(start, MarkovAffine(loc, start.log_scale.reshape(loc.shape), lower, lower[1:]))


def blocks(families: Mapping[str | tuple[str, ...], Family], rest: Family | None = None) -> Family:
    """Independent guides for blocks of a position that is a dict, as that of a posterior is.

    Args:
      families: name of an entry, or several names, to the family of their joint guide.
      rest: family of all other entries together; by default there may be none.

    >>> family = blocks({("a", "b"): full_rank()}, rest=mean_field())
    >>> guide = family.init(jax.random.key(0), {"a": jnp.zeros(2), "b": jnp.zeros(()), "c": jnp.zeros(3)})
    >>> guide.blocks
    (('a', 'b'), ('c',))
    """
    named = tuple(((names,) if isinstance(names, str) else tuple(names), own) for names, own in families.items())
    for own in (*(own for _, own in named), *(() if rest is None else (rest,))):
        if not isinstance(own, Family):
            raise core.bad_type("vi.blocks", "families", own, "a family of guides, such as vi.full_rank()")
    return Family("blocks", core.Bound(_blocks, named, rest))


def _blocks(named: tuple[Any, ...], rest: Family | None, key: core.Key, position: Any) -> BlockGuide:
    place = position if isinstance(position, Place) else None
    position = position if place is None else place.mean
    if not isinstance(position, dict):
        raise core.bad_type("vi.blocks", "position", position, "a dict, as that of a posterior is")
    taken = [name for names, _ in named for name in names]
    if unknown := [name for name in taken if name not in position]:
        raise core.bad_value("vi.blocks", "families", f"with {unknown[0]!r}", f"names among {sorted(position)}")
    if double := [name for name in taken if taken.count(name) > 1]:
        raise core.bad_value("vi.blocks", "families", f"with {double[0]!r} twice", "each name once")
    left = tuple(sorted(name for name in position if name not in taken))
    if left and rest is None:
        todo = "Pass rest=, the family of all others"
        raise core.bad_value("vi.blocks", "families", f"without {left[0]!r}", "a family for each name", todo)
    every = (*named, (left, rest)) if left else named
    guides = [
        own.init(core.fold(key, i), place.part(names) if place else {name: position[name] for name in names})
        for i, (names, own) in enumerate(every)
    ]
    return BlockGuide(tuple(guides), tuple(names for names, _ in every))


class _Start(NamedTuple):
    """What a guide of vectors starts from."""

    layout: Layout
    place: Place | None
    loc: jax.Array  # (size,)
    log_scale: jax.Array  # (size,)


def _start(position: Any, scale: float, rotate: bool) -> _Start:
    """The start around a position, or standard normal in a place: all of it if `rotate`, or by each number's scale."""
    if isinstance(position, Place):
        layout = position.layout
        zero = jnp.zeros((layout.size,), layout.dtype)
        return _Start(layout, position if rotate else position.diagonal(), zero, zero)
    layout = Layout.of(position)
    loc = layout.ravel(position)
    return _Start(layout, None, loc, jnp.full_like(loc, math.log(scale)))


def _of(start: _Start, bijector: Any) -> Guide:
    base = flows.StandardNormal(start.layout.size, start.layout.dtype)
    return Guide(Transformed(base, bijector), start.layout, start.place)
