"""Learned proposals: networks that propose a block of variables given what surrounds it, for `block_metropolis`.

A network is trained once, on blocks and surroundings drawn from random instances of a motif; it then serves every model
in which the motif occurs. However badly it is trained, the corrected kernel is exact.

Source: Wang, Wu, Moore & Russell (2018), "Meta-learning MCMC proposals".
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core, distributions, scan
from jaxprob.inference.mcmc._metropolis import check_callable, number
from jaxprob.models import Net


class ProposalNetwork(NamedTuple):
    """A network whose output is a distribution, in the form of a Flax module.

    Attributes:
      init: `(key, inputs) -> {"params": params}`.
      apply: `({"params": params}, inputs) -> distribution` with `sample(key)` and `log_prob(value)`.
    """

    init: Callable[[core.Key, Any], dict[str, Any]]
    apply: Callable[[dict[str, Any], Any], Any]


class TrainedProposal(NamedTuple):
    """What `train_proposal` gives back.

    Attributes:
      proposal: `inputs -> distribution`, a pytree of the trained parameters.
      losses: (steps,), mean of -log q over the batch of each step.
    """

    proposal: Net
    losses: jax.Array


@core.pytree
class JointCategorical:
    """A distribution over the joint states of a few discrete sites, each state with a probability of its own.

    Attributes:
      logits: (joint states,), log probabilities up to a constant, in C order of the sites' values.
      num_categories: per site, how many values it has.
      shape: of a value.
    """

    logits: jax.Array
    num_categories: tuple[int, ...] = core.static()
    shape: tuple[int, ...] = core.static()

    def sample(self, key: core.Key) -> jax.Array:
        """Values of the sites, int32."""
        # The first half of the sites, then the second given it: noise for 48 values and not for 512, of nine bits.
        half = len(self.num_categories) // 2
        table = self.logits.reshape(math.prod(self.num_categories[:half]), -1)
        first = core.random.categorical(core.fold(key, 0), core.logsumexp(table, axis=1), mode="high")
        second = core.random.categorical(core.fold(key, 1), table[first], mode="high")
        values = (
            *jnp.unravel_index(first, self.num_categories[:half]),
            *jnp.unravel_index(second, self.num_categories[half:]),
        )
        return jnp.stack(values).astype(jnp.int32).reshape(self.shape)

    def log_prob(self, value: Any) -> jax.Array:
        """Log probability of values of the sites."""
        values = jnp.asarray(value).astype(jnp.int32).ravel()
        strides = np.cumprod((1, *self.num_categories[:0:-1]))[::-1]
        state = jnp.sum(values * jnp.asarray(strides, jnp.int32))
        return self.logits[state] - core.logsumexp(self.logits)


def mixture_density_network(
    shape: int | tuple[int, ...] = (),
    *,
    num_components: int = 8,
    hidden: Sequence[int] = (128, 128),
    min_scale: float = 1e-3,
) -> ProposalNetwork:
    """A network whose output is a mixture of diagonal Gaussians, for a continuous block.

    Args:
      shape: of the block's values.
      num_components: of the mixture.
      hidden: widths of the hidden layers.
      min_scale: smallest standard deviation; blocks and inputs should be scaled to be of order one.

    Returns:
      network of a vector of inputs (features,), of floating-point numbers.

    >>> network = mixture_density_network(2, num_components=3, hidden=(16,))
    >>> q = network.apply(network.init(jax.random.key(0), jnp.ones(5)), jnp.ones(5))
    >>> q.sample(jax.random.key(1)).shape
    (2,)

    Source: Bishop (1994), "Mixture density networks".
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = math.prod(shape)
    _check_widths("mixture_density_network", num_components=num_components, hidden=hidden)

    def of(outputs: jax.Array) -> distributions.Distribution:
        logits, locations, scales = jnp.split(outputs, [num_components, num_components * (1 + size)])
        locations = locations.reshape(num_components, *shape)
        # The inverse softplus of 1, so that scales begin near one.
        scales = core.softplus(scales.reshape(num_components, *shape) + math.log(math.e - 1)) + min_scale
        components: distributions.Distribution = distributions.Normal(locations, scales)
        if shape:
            components = distributions.Independent(components, len(shape))
        return distributions.Mixture(logits=logits, components=components)

    return _perceptron(hidden, num_components * (1 + 2 * size), of)


def joint_categorical_network(num_categories: Any, *, hidden: Sequence[int] = (128, 128)) -> ProposalNetwork:
    """A network whose output is a probability for every joint state of a discrete block.

    Args:
      num_categories: integers of the shape of the block: how many values each site has. Their product is the number of
        outputs.
      hidden: widths of the hidden layers.

    Returns:
      network of a vector of inputs (features,), of floating-point numbers; its output is a `JointCategorical`.

    Raises:
      ValueError: for numbers of categories below 1, or more than a million joint states.

    >>> import numpy as np
    >>> network = joint_categorical_network(np.full((2, 2), 2), hidden=(16,))
    >>> q = network.apply(network.init(jax.random.key(0), jnp.ones(5)), jnp.ones(5))
    >>> q.sample(jax.random.key(1)).shape
    (2, 2)
    """
    function = "joint_categorical_network"
    counts = np.asarray(num_categories)
    if not np.issubdtype(counts.dtype, np.integer) or np.any(counts < 1):
        raise core.bad_value(function, "num_categories", num_categories, "integers of at least 1")
    flat = tuple(int(count) for count in counts.ravel())
    if math.prod(flat) > 2**20:
        todo = "Take a smaller block"
        raise core.bad_value(function, "num_categories", f"{math.prod(flat)} joint states", "at most 2^20", todo)
    _check_widths(function, hidden=hidden)
    return _perceptron(hidden, math.prod(flat), lambda outputs: JointCategorical(outputs, flat, counts.shape))


def train_proposal(
    key: core.Key,
    sample_motif: Callable[[core.Key], tuple[Any, Any]],
    network: Any,
    num_steps: int = 2000,
    *,
    batch_size: int = 256,
    optimizer: Any = None,
    params: Any = None,
) -> TrainedProposal:
    """Trains a proposal by maximum likelihood on random instances of a motif, in one compiled loop.

    Minimises the mean of -log q(block | inputs): up to a constant, the divergence of q from the block's conditional law
    on average over instances.

    Args:
      key: random key.
      sample_motif: `key -> (inputs, block)`, one exact draw: parameters of a random instance, then all its variables
        from their prior; the inputs are the parameters and the variables that surround the block.
      network: a `ProposalNetwork`, a Flax module or a function `(params, inputs) -> distribution`.
      num_steps: of the optimizer; each draws a batch of its own, so that nothing is ever seen twice.
      batch_size: instances a step.
      optimizer: an optax optimizer; Adam by default, at 1e-3, decaying to zero with the cosine of the step.
      params: to start from; needed for a function.

    Returns:
      TrainedProposal.

    Raises:
      TypeError: for a function without `params`.
      ValueError: for a number of steps or a batch size below 1.

    >>> def motif(key):
    ...     x, noise = jax.random.normal(key, (2,))
    ...     return jnp.stack([x]), x + 0.1 * noise
    >>> network = mixture_density_network(num_components=1, hidden=(16,))
    >>> trained = train_proposal(jax.random.key(0), motif, network, num_steps=300)
    >>> abs(float(trained.proposal(jnp.array([0.5])).mean()) - 0.5) < 0.2
    True

    Source: Wang et al. (2018).
    """
    import optax  # takes half a second to import

    name = "train_proposal"
    check_callable(name, sample_motif=sample_motif)
    for argument, value in (("num_steps", num_steps), ("batch_size", batch_size)):
        if value < 1:
            raise core.bad_value(name, argument, value, "an integer of at least 1")
    key = core.as_key(key, name)
    if optimizer is None:
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-3, num_steps))
    if params is None:
        if not hasattr(network, "init"):
            raise core.bad_type(name, "params", None, "parameters to start from, since network is a function")
        inputs = jax.eval_shape(sample_motif, key)[0]
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), inputs)
        params = network.init(core.fold(key, num_steps), zeros)["params"]

    def loss(params: Any, key: core.Key) -> jax.Array:
        def one(index: jax.Array) -> jax.Array:
            inputs, block = sample_motif(core.fold(key, index))
            return -number(name, "log_prob of the network's output", Net(params, network)(inputs).log_prob(block))

        return jnp.mean(jax.vmap(one)(jnp.arange(batch_size)))

    def update(carry: tuple[Any, Any], index: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, core.fold(key, index))
        with jax.numpy_dtype_promotion("standard"):  # optax multiplies counts with rates
            changes, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, changes), state), value

    @jax.jit
    def train(params: Any) -> tuple[Any, jax.Array]:
        (params, _), losses = scan.scan(update, (params, optimizer.init(params)), jnp.arange(num_steps))
        return params, losses

    params, losses = train(params)
    return TrainedProposal(Net(params, network), losses)


def _perceptron(hidden: Sequence[int], outputs: int, of: Callable[[jax.Array], Any]) -> ProposalNetwork:
    """A multilayer perceptron with rectified units, whose outputs begin near zero."""

    def init(key: core.Key, inputs: Any) -> dict[str, Any]:
        widths, params = [jnp.size(inputs), *hidden, outputs], []
        for index, (fan_in, fan_out) in enumerate(itertools.pairwise(widths)):
            gain = 2.0 if index < len(hidden) else 0.01
            weight = core.random.normal(core.fold(key, index), (fan_in, fan_out), core.result_dtype(inputs))
            params.append({"weight": weight * math.sqrt(gain / fan_in), "bias": jnp.zeros(fan_out, weight.dtype)})
        return {"params": params}

    def apply(variables: dict[str, Any], inputs: Any) -> Any:
        x = jnp.ravel(inputs)
        *layers, last = variables["params"]
        for layer in layers:
            x = jax.nn.relu(x @ layer["weight"] + layer["bias"])
        return of(x @ last["weight"] + last["bias"])

    return ProposalNetwork(init, apply)


def _check_widths(function: str, **arguments: Any) -> None:
    for argument, value in arguments.items():
        widths = value if isinstance(value, Sequence) else (value,)
        if not all(isinstance(width, int) and width > 0 for width in widths):
            raise core.bad_value(function, argument, value, "positive integers")
