"""What a task gives, and the checks that tasks share."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Example(NamedTuple):
    """One sequence, or many with a leading axis.

    Attributes:
      inputs: (time,) int32 tokens, or (time, width) floating numbers.
      targets: (time,) int32 tokens or labels, or (time, width) floating numbers; of no account where `mask` is false.
      mask: booleans (time,), where the output counts.
    """

    inputs: jax.Array
    targets: jax.Array
    mask: jax.Array
