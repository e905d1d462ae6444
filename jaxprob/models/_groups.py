"""Sums over the values of discrete latent sites.

Sites that something depends on jointly form a group. All sites of a group have one shape; element i of what depends on
them may depend on their i-th elements only, so that the sum over K values is made for each element alone and costs K
times the density, not K to the power of the number of elements. The program runs under `vmap` over the values, with
every element of a site set to the same one: if the dependence is elementwise, this gives every term of every sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core


class Group(NamedTuple):
    """Discrete sites that are summed out together.

    Attributes:
      names: the sites.
      values: the numbers each can take.
      shape: their shape.
      dependents: other random sites whose density depends on them, latent ones first.
      hidden: deterministic quantities that depend on them.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    shape: tuple[int, ...]
    dependents: tuple[str, ...]
    hidden: tuple[str, ...]

    @property
    def size(self) -> int:
        """Number of joint values of one element."""
        return math.prod(len(values) for values in self.values)

    def value(self, name: str, index: jax.Array, dtype: Any = int) -> jax.Array:
        """The value of a site at joint index `index`, () or of the group's shape: an array of the group's shape."""
        place = self.names.index(name)
        stride = math.prod(len(values) for values in self.values[place + 1 :])
        numbers = np.asarray(self.values[place])
        picked = jnp.asarray(numbers, dtype)[(index // stride) % len(numbers)]
        return jnp.broadcast_to(picked, self.shape)


def enumerate_groups(run: Callable[[list[jax.Array]], Any], groups: tuple[Group, ...]) -> Any:
    """Runs `run(indices)` for every joint value of each group.

    Args:
      run: from one index for each group to (one pytree for each group, which depends on that group alone; a pytree
        that depends on none).
      groups: the groups.

    Returns:
      what `run` returns, the pytree of each group with a leading axis of length `size`.
    """
    mapped = run
    for place in range(len(groups)):
        axes = [0 if place == other else None for other in range(len(groups))]
        mapped = jax.vmap(mapped, in_axes=(axes,), out_axes=(axes, None))
    return mapped([jnp.arange(group.size) for group in groups])


def log_joint(group: Group, log_probs: dict[str, jax.Array], names: tuple[str, ...]) -> jax.Array:
    """Log density of the named sites for every joint value of the group: (size, *shape).

    Args:
      group: the group.
      log_probs: name to array (size, *shape, ...).
      names: the sites to count.
    """
    ndims = 1 + len(group.shape)
    summed = [jnp.sum(log_probs[name], axis=tuple(range(ndims, log_probs[name].ndim))) for name in names]
    dtype = core.result_dtype(summed)
    return sum((term.astype(dtype) for term in summed[1:]), start=summed[0].astype(dtype))


def log_sum(group: Group, log_probs: dict[str, jax.Array]) -> jax.Array:
    """Log density of the group's dependents that are given, with the group summed out: scalar."""
    names = group.names + tuple(name for name in group.dependents if name in log_probs)
    return jnp.sum(core.logsumexp(log_joint(group, log_probs, names), axis=0))


def log_likelihood(group: Group, log_probs: dict[str, jax.Array], observed: Any) -> dict[str, jax.Array]:
    """Log density of each observed dependent given all latent ones and the observed before it: (*shape) each.

    One observation for each element of the group; where several sites depend on the group they are told apart by the
    chain rule, so that their sum is the joint log likelihood.
    """
    names = group.names + tuple(name for name in group.dependents if name not in observed)
    before, result = core.logsumexp(log_joint(group, log_probs, names), axis=0), {}
    for name in (name for name in group.dependents if name in observed):
        names = (*names, name)
        after = core.logsumexp(log_joint(group, log_probs, names), axis=0)
        result[name], before = after - before, after
    return result
