"""Networks whose parameters are random: every leaf of the parameters is a site with a prior.

Source: Bell et al., "Borch: A Deep Universal Probabilistic Programming Language" (2022): any module can be turned
Bayesian, and the model is then like any other, for every way of inference.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution
from jaxprob.models import _sites

Prior = Distribution | Callable[[str, tuple[int, ...]], Distribution]


@core.pytree
class Net:
    """A network with its parameters: called with inputs, it applies.

    Attributes:
      params: pytree of parameters.
      network: a Flax Linen module, or `apply(params, *inputs)`.
    """

    params: Any
    network: Any = core.static()

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """The output of the network for these inputs."""
        if _is_module(self.network):
            return self.network.apply({"params": self.params}, *inputs, **options)
        return self.network(self.params, *inputs, **options)


def random_net(name: str, network: Any, *inputs: Any, prior: Prior, params: Any = None) -> _sites.Body:
    """A network whose parameters are sites `name.<leaf>`: `net = yield from models.random_net("net", module, xs, ...)`.

    Args:
      name: prefix of the sites, such as `net` in `net.Dense_0.kernel`.
      network: a Flax Linen module, or a function `apply(params, *inputs)`.
      *inputs: an example of the inputs, for the shapes of a module's parameters; not needed with `params`.
      prior: a distribution of one number, for every parameter alike, or `prior(leaf, shape)`, which makes one (or one
        of that shape) for each leaf by its name (`Dense_0.kernel`) and shape.
      params: pytree of arrays (or `jax.ShapeDtypeStruct`), of which only the structure and shapes count. Needed for a
        function; for a module it saves tracing its initialisation.

    Returns:
      a `Net`: `net(xs)` applies it, `net.params` are its parameters.

    Raises:
      TypeError: if `network` is neither a module nor a function with `params`.
      ValueError: if the module has variables other than parameters, or a prior has a wrong shape.

    >>> from jaxprob.distributions import Normal
    >>> from jaxprob.models import joint
    >>> @joint
    ... def line(xs):
    ...     shapes = {"slope": jnp.zeros(()), "offset": jnp.zeros(())}
    ...     function = lambda params, xs: params["slope"] * xs + params["offset"]
    ...     net = yield from random_net("net", function, prior=Normal(0.0, 1.0), params=shapes)
    ...     yield "ys", Normal(net(xs), 0.1)
    >>> line(jnp.arange(3.0)).names
    ('net.offset', 'net.slope', 'ys')
    """
    if not isinstance(name, str) or not name:
        raise core.bad_type(
            "random_net", "name", core.describe(name), "a name, to stand before those of the parameters"
        )
    if params is None:
        if not _is_module(network):
            todo = "Pass params=, arrays of the right shapes"
            raise core.bad_type("random_net", "params", None, "the shapes of the parameters of a function", todo)
        params = _shapes(network, inputs)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    values = []
    for path, leaf in leaves:
        leaf_name = core.leaf_name(path)
        values.append((yield f"{name}.{leaf_name}", _prior_of(prior, leaf_name, tuple(leaf.shape))))
    return Net(jax.tree.unflatten(treedef, values), network)


def _is_module(network: Any) -> bool:
    return hasattr(network, "init") and hasattr(network, "apply")


def _shapes(module: Any, inputs: tuple[Any, ...]) -> Any:
    if not inputs:
        todo = "Pass an example after the module: random_net(name, module, xs, prior=...)"
        raise core.bad_value("random_net", "inputs", "empty", "an example of the module's inputs", todo)
    leaves, treedef = jax.tree.flatten(inputs)
    structs = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    variables = _variables(module, treedef, structs)
    if other := [collection for collection in variables if collection != "params"]:
        got = f"a module with variables {other}"
        raise core.bad_value("random_net", "network", got, "one with parameters only", "Batch statistics have no prior")
    return variables["params"]


# A log density is traced anew for every transformation, while the shapes of a module's variables stay the same.
@functools.lru_cache(maxsize=128)
def _variables(module: Any, treedef: Any, structs: tuple[jax.ShapeDtypeStruct, ...]) -> Any:
    key = jax.eval_shape(jax.random.key, 0)
    return jax.eval_shape(module.init, key, *jax.tree.unflatten(treedef, structs))


def _prior_of(prior: Prior, leaf: str, shape: tuple[int, ...]) -> Distribution:
    distribution = prior if isinstance(prior, Distribution) else prior(leaf, shape)
    if not isinstance(distribution, Distribution):
        raise core.bad_type("random_net", f"prior for {leaf!r}", distribution, "a distribution")
    if distribution.shape == shape:
        return distribution
    if distribution.shape != ():
        got = f"of shape {distribution.shape}"
        raise core.bad_value("random_net", f"prior for {leaf!r}", got, f"shape () or {shape}")
    return jax.tree.map(lambda parameter: jnp.broadcast_to(parameter, shape + jnp.shape(parameter)), distribution)
