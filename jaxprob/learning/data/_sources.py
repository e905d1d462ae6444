"""What training takes batches from, and how what a user passes becomes such a source.

There are two kinds: an `Indexed` source makes the batch of any step inside `jit`, and so has no position; a `Stream`
gives one batch after the other on the host, and has a position that is saved.
"""

from __future__ import annotations

from typing import Any

import jax

from jaxprob import core
from jaxprob.learning.data._stream import Stream, stream


class Indexed:
    """A source whose batch is a pure function of the step.

    Subclasses are pytrees (`core.pytree`), so that what they hold is an argument of a jitted function and not a
    constant in it.

    """

    @property
    def num_batches(self) -> int | None:
        """Number of batches in an epoch, or None for a source without epochs."""
        raise NotImplementedError

    def batch(self, step: Any) -> Any:
        """The batch of a step, an integer scalar that may be traced: steps count on from one epoch to the next."""
        raise NotImplementedError


def as_source(data: Any, function: str = "as_source") -> Indexed | Stream:
    """The source that `data` is, or that stands for it: iterators and iterables become streams.

    Args:
      data: an `Indexed` source, a `Stream`, or an iterator of batches.
      function: name of the caller, for the error message.

    Raises:
      TypeError: for arrays and pytrees of them, and for what gives no batches.

    >>> as_source(iter([1.0, 2.0])).can_resume
    False
    """
    if isinstance(data, (Indexed, Stream)):
        return data
    if hasattr(data, "__next__"):
        return stream(data)
    expected = "a data source or an iterator of batches"
    if _is_arrays(data):
        todo = "Wrap arrays: learning.data.arrays(data, batch_size)"
        raise core.bad_type(function, "data", _described(data), expected, todo)
    if hasattr(data, "__iter__"):
        return stream(data)
    todo = "Use learning.data.generated for a function of a key" if callable(data) else ""
    raise core.bad_type(function, "data", data, expected, todo)


def _is_arrays(data: Any) -> bool:
    """Whether it is an array, a text, or a pytree that is a container of such."""
    if hasattr(data, "shape") or isinstance(data, (str, bytes)):
        return True
    return data is not None and not jax.tree_util.all_leaves([data])


def _described(data: Any) -> str:
    leaves = core.named_leaves(data)
    if len(leaves) == 1 and leaves[0][0] == "value":
        return core.describe(data)
    shown = ", ".join(f"{name} {getattr(leaf, 'shape', type(leaf).__name__)}" for name, leaf in leaves[:4])
    return f"a {type(data).__name__} of arrays ({shown})"
