"""Sequence cores and what is built of them: Flax Linen modules `(xs, state, reset) -> (ys, state)`, time leading."""

from jaxprob.models.sequence._core import Core as Core
