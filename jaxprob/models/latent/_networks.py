"""Networks of latent-variable models: anything with `init(key, *inputs)` and `apply(variables, *inputs)`.

Flax Linen modules are such; a perceptron, which needs no Flax, is the default.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions.flows import Perceptron


@dataclasses.dataclass(frozen=True)
class Dense:
    """A multilayer perceptron of its inputs, laid flat one after the other.

    Attributes:
      hidden: sizes of the hidden layers.
      size: of the output.
      activation: between layers.
    """

    hidden: tuple[int, ...]
    size: int
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu

    def init(self, key: core.Key, *inputs: jax.Array) -> Perceptron:
        """Parameters to start from, for inputs of these shapes and dtypes."""
        sizes = (sum(math.prod(jnp.shape(x)) for x in inputs), *self.hidden, self.size)
        dtype = core.result_dtype(*inputs)
        # Outputs are small at first: guides begin near the prior, whatever the width.
        return Perceptron.init(key, sizes, activation=self.activation, last_scale=0.1, dtype=dtype)

    def apply(self, variables: Perceptron, *inputs: jax.Array) -> jax.Array:
        """The output (size,)."""
        return variables(jnp.concatenate([jnp.ravel(x) for x in inputs]))


def hidden_sizes(function: str, hidden: Any) -> tuple[int, ...]:
    """The sizes of hidden layers, from one or several whole numbers.

    Raises:
      ValueError: if they are not.
    """
    sizes = tuple(hidden) if isinstance(hidden, (tuple, list)) else (hidden,)
    for size in sizes:
        core.check_whole(function, hidden=size)
    return sizes


def check_network(function: str, argument: str, network: Any) -> None:
    """Raises a `TypeError` unless `network` has `init` and `apply`."""
    if not (callable(getattr(network, "init", None)) and callable(getattr(network, "apply", None))):
        raise core.bad_type(function, argument, network, "a network with init and apply", "Such as a Linen module")


def init_network(function: str, argument: str, network: Any, key: core.Key, *inputs: jax.Array) -> Any:
    """The variables of a network.

    Raises:
      ValueError: if a module has variables other than parameters.
    """
    variables = network.init(key, *inputs)
    if isinstance(variables, Mapping) and "params" in variables and len(variables) > 1:
        got = f"a module with variables {sorted(set(variables) - {'params'})}"
        raise core.bad_value(function, argument, got, "one with parameters only", "Such as one without batch norm")
    return variables


def apply_network(network: Any, variables: Any, *inputs: Any) -> jax.Array:
    """The output, in the dtype of the parameters, which data in another one are brought to."""
    return network.apply(variables, *(in_dtype_of(variables, x) for x in inputs))


def in_dtype_of(params: Any, x: Any) -> jax.Array:
    """Numbers in the floating dtype of parameters."""
    return jnp.asarray(x).astype(core.result_dtype(params))
