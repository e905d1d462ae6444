"""Batches of examples that are in memory, gathered on the device inside `jit`.

The batch of a step is a pure function of the step: every epoch is a permutation of its own, so that a resumed run sees
the batches that it would have seen.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.learning.data._checks import as_count, as_seed
from jaxprob.learning.data._permutation import permuted
from jaxprob.learning.data._sources import Indexed


@core.pytree
class Arrays(Indexed):
    """Batches of a pytree of arrays.

    Attributes:
      tree: pytree of arrays (example, ...).
      batch_size: examples in a batch, of all shards together.
      shuffle: whether each epoch is a permutation of its own.
      seed: an integer.
      remainder: "drop" or "pad".
      shard: (index, count), the part of each batch.
    """

    tree: Any
    batch_size: int = core.static()
    shuffle: bool = core.static()
    seed: int = core.static()
    remainder: str = core.static()
    shard: tuple[int, int] = core.static()

    @property
    def size(self) -> int:
        """Number of examples."""
        return jax.tree.leaves(self.tree)[0].shape[0]

    @property
    def num_batches(self) -> int:
        """Number of batches in an epoch."""
        return self.size // self.batch_size if self.remainder == "drop" else -(-self.size // self.batch_size)

    def batch(self, step: Any) -> Any:
        """The batch of a step; with `remainder="pad"` the pair of it and a mask of the examples that count."""
        step = jnp.asarray(step, jnp.int32)
        epoch, place = step // self.num_batches, step % self.num_batches
        index, count = self.shard
        local = self.batch_size // count
        places = place * self.batch_size + index * local + jnp.arange(local, dtype=jnp.int32)
        # Places behind the last example show an example again, masked.
        rows = places % self.size
        if self.shuffle:
            rows = permuted(core.random.fold_in(jax.random.key(self.seed), epoch), rows, self.size)
        batch = jax.tree.map(lambda x: jnp.take(x, rows, axis=0, mode="clip"), self.tree)
        return batch if self.remainder == "drop" else (batch, places < self.size)


def arrays(
    tree: Any,
    batch_size: int,
    *,
    shuffle: bool = True,
    seed: int = 0,
    remainder: str = "drop",
    shard: tuple[int, int] | None = None,
) -> Arrays:
    """Batches of the examples in a pytree of arrays, epoch after epoch, each example at most once an epoch.

    Args:
      tree: pytree (a dict, a tuple, an array) of arrays (example, ...), as many examples in each.
      batch_size: examples in a batch.
      shuffle: permute the examples anew in each epoch; otherwise they come in their order.
      seed: of the permutations.
      remainder: what becomes of the last examples of an epoch if they fill no batch. "drop": they are left out (others
        in each epoch, with `shuffle`). "pad": every example comes exactly once, and batches are pairs (batch, mask);
        booleans mask (batch_size,) are false for the examples that fill the last batch up.
      shard: (index, count) where each of `count` processes takes its own part of every batch: `batch_size / count`
        examples. The parts together are the batch of one process. Each process holds all examples.

    Returns:
      an `Indexed` source: `batch(step)`, `num_batches`.

    Raises:
      ValueError: if there are no examples, leaves differ in their number, `batch_size` is larger than it, or `shard` or
        `remainder` is not one.
      TypeError: if a leaf is no array of examples.

    >>> source = arrays({"x": jnp.arange(6.0)}, 2, shuffle=False)
    >>> source.num_batches, source.batch(4)["x"].tolist()
    (3, [2.0, 3.0])
    """
    name = "data.arrays"
    leaves = core.named_leaves(tree)
    if not leaves:
        raise core.bad_value(name, "tree", "without arrays", "a pytree of arrays (example, ...)")
    for path, leaf in leaves:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype") or leaf.ndim == 0 or leaf.dtype.kind in "OSUM":
            todo = "Turn lists into arrays first"
            raise core.bad_type(name, f"tree, leaf {path!r},", leaf, "an array (example, ...)", todo)
    (first, leaf), *rest = leaves
    for path, other in rest:
        if other.shape[0] != leaf.shape[0]:
            got = f"of {other.shape[0]} examples"
            raise core.bad_value(name, f"tree, leaf {path!r},", got, f"{leaf.shape[0]}, as leaf {first!r}")
    if leaf.shape[0] == 0:
        raise core.bad_value(name, "tree", "of no examples", "one example at least")
    batch_size = as_count(name, "batch_size", batch_size)
    if batch_size > leaf.shape[0]:
        raise core.bad_value(name, "batch_size", batch_size, f"at most the number of examples, {leaf.shape[0]}")
    if remainder not in ("drop", "pad"):
        raise core.bad_value(name, "remainder", repr(remainder), "'drop' or 'pad'")
    tree = jax.tree.map(jnp.asarray, tree)
    return Arrays(tree, batch_size, bool(shuffle), as_seed(name, seed), remainder, _shard(name, shard, batch_size))


def _shard(name: str, shard: Any, batch_size: int) -> tuple[int, int]:
    if shard is None:
        return 0, 1
    try:
        index, count = (operator.index(number) for number in shard)
    except (TypeError, ValueError):
        raise core.bad_type(name, "shard", shard, "a pair (index, count) of integers") from None
    if not 0 <= index < count:
        raise core.bad_value(name, "shard", shard, "(index, count) with index from 0 to count - 1")
    if batch_size % count:
        raise core.bad_value(name, "shard", shard, f"a count that divides batch_size={batch_size}")
    return index, count
