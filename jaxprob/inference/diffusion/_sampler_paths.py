"""What the samplers of continuous densities share: coordinates, the network of the control, and losses of paths.

Paths are in coordinates z = (x - center) / scale, where the reference law is a standard normal one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprob import core, scan
from jaxprob.distributions.flows import Perceptron
from jaxprob.inference.diffusion._neural_sampler import (
    NeuralSampler,
    check_scalar,
    drawing,
    log_variance,
    metrics_of,
)
from jaxprob.inference.vi._layout import Layout
from jaxprob.inference.vi._objective import read_target
from jaxprob.models.latent._networks import check_network

LOSSES = ("reverse_kl", "log_variance")
LARGEST_GRADIENT = 100.0  # norm, of what a network or a drift is given


@dataclasses.dataclass(frozen=True)
class ControlNetwork:
    """A perceptron of position and time, plus the gradient of the target times a function of time.

    Attributes:
      hidden: sizes of the hidden layers.
      frequencies: of the sines and cosines of time.
      activation: between layers.
    """

    hidden: tuple[int, ...] = (64, 64)
    frequencies: int = 8
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu

    def init(self, key: core.Key, z: jax.Array, time: jax.Array, gradient: jax.Array) -> dict[str, Perceptron]:
        """Parameters with which the control is zero."""
        size, times = z.shape[0], 1 + 2 * self.frequencies
        options: dict[str, Any] = {"activation": self.activation, "dtype": z.dtype}
        return {
            "position": Perceptron.init(core.fold(key, 0), (2 * size + times, *self.hidden, size), **options),
            "gradient": Perceptron.init(core.fold(key, 1), (times, self.hidden[-1], size), **options),
        }

    def apply(self, variables: dict[str, Perceptron], z: jax.Array, time: jax.Array, gradient: jax.Array) -> jax.Array:
        """The control (size,) at a position z (size,), a time () and a gradient (size,)."""
        angles = math.pi * time * jnp.arange(1, self.frequencies + 1, dtype=z.dtype)
        times = jnp.concatenate([jnp.expand_dims(time, 0), jnp.sin(angles), jnp.cos(angles)])
        # Gradients may be large, and are seen on the scale of positions.
        seen = jnp.concatenate([z, jnp.arcsinh(gradient), times])
        return variables["position"](seen) + variables["gradient"](times) * gradient


def control(function: str, network: Any, variables: Any, z: jax.Array, time: Any, gradient: jax.Array) -> jax.Array:
    """The output of a network; raises a `ValueError`, when it is traced, for another shape than that of a position."""
    found = jnp.asarray(network.apply(variables, z, jnp.asarray(time, z.dtype), gradient))
    if found.shape != z.shape:
        got, expected = f"of shape {found.shape}", f"shape {z.shape}, one number for each of a position"
        raise core.bad_value(function, "the output of network", got, expected)
    return found.astype(z.dtype)


def clipped(gradient: jax.Array) -> jax.Array:
    """A gradient of a norm of at most `LARGEST_GRADIENT`, zero where it is not finite.

    Weights are exact for any drift, so that nothing else need know of it.
    """
    known = jnp.all(jnp.isfinite(gradient))
    gradient = jnp.where(known, gradient, 0)
    norm = core.norm(gradient)
    return gradient * (LARGEST_GRADIENT / jnp.maximum(norm, LARGEST_GRADIENT))


def log_normal(z: jax.Array) -> jax.Array:
    """Log density () of the standard normal law of a vector."""
    return -0.5 * jnp.sum(z**2) - 0.5 * z.shape[0] * math.log(2 * math.pi)


def controlled_reference(
    rates: tuple[tuple[float, float, float], ...],
    first: bool,
    function: str,
    network: Any,
    fixed: bool,
    density: Callable[[jax.Array], jax.Array],
    params: Any,
    key: core.Key,
) -> tuple[jax.Array, jax.Array]:
    r"""The end of a path of a linear diffusion with a control, and its log weight.

    The reference z' = a z + s e ends in a standard normal law; with the control u it is z' = a z + s (c u + e). With
    all c u zero the weight is the ratio of the target to that normal law.

    $$\log w = \log \gamma(z_N) - \log N(z_N; 0, I) - \sum_k (c_k u_k \cdot e_k + |c_k u_k|^2 / 2)$$

    Args:
      rates: (a, s, c) of each step.
      first: whether paths begin at a draw of the standard normal law, else at 0.
      function: name of the factory, for messages.
      network: of the control.
      fixed: whether the path is held fixed when the weight is differentiated.
      density: log density of z.
      params: variables of the network.
      key: random key.
    """
    gradient = jax.grad(lambda z: density(z) - log_normal(z))
    center = params["center"]
    decays, noises, gains = (jnp.asarray(column, center.dtype) for column in zip(*rates, strict=True))
    number = len(rates)
    start = jnp.zeros_like(center)
    if first:
        start = core.random.normal(core.fold(key, 0), center.shape, center.dtype)

    def step(carry: tuple[jax.Array, jax.Array], x: Any) -> tuple[tuple[jax.Array, jax.Array], None]:
        z, log_weight = carry
        index, decay, noise, gain = x
        time = index.astype(z.dtype) / number
        push = gain * control(function, network, params["network"], z, time, clipped(gradient(z)))
        fresh = core.random.normal(core.fold(key, 1, index), z.shape, z.dtype)
        after = decay * z + noise * (push + fresh)
        if fixed:
            # The noise that leads to the same place when the control changes.
            after, fresh = jax.lax.stop_gradient(after), fresh + jax.lax.stop_gradient(push) - push
        return (after, log_weight - jnp.sum(push * fresh) - 0.5 * jnp.sum(push**2)), None

    xs = (jnp.arange(number), decays, noises, gains)
    (z, log_weight), _ = scan.scan(step, (start, jnp.zeros((), center.dtype)), xs)
    return z, density(z) - log_normal(z) + log_weight


def of_paths(
    function: str,
    target: Any,
    initial: Any,
    scale: Any,
    network: Any,
    loss: str,
    paths: int,
    path: Callable[..., Any],
    learnt: bool,
    extra: dict[str, Any],
) -> NeuralSampler:
    """The sampler of a kind of path, once its arguments are checked.

    Args:
      function: name of the factory.
      target, initial: as `vi.elbo` has them.
      scale: a positive number.
      network: of the control, or None.
      loss: one of `LOSSES`.
      paths: of a loss.
      path: hashable `(network, fixed, density, params, key) -> (z, log weight)`.
      learnt: whether center and scale are learnt.
      extra: further parameters, by name.
    """
    if loss not in LOSSES:
        raise core.bad_value(function, "loss", core.describe(loss), f"one of {LOSSES}")
    core.check_whole(function, least=2, paths=paths)
    core.check_positive(function, scale=scale)
    network = ControlNetwork() if network is None else network
    check_network(function, "network", network)
    read = read_target(function, target, initial)
    position = jax.eval_shape(read.initial, jax.random.key(0))
    layout = Layout.of(position)
    check_scalar(function, lambda x: read.log_density(x, None), position)
    once = core.Bound(_path, layout, path, network, learnt)
    return NeuralSampler(
        init=Partial(core.Bound(_init, function, layout, network, float(scale)), read.initial, extra),
        loss=Partial(core.Bound(_loss, function, once, loss, int(paths)), read.log_density),
        draw=drawing(function, core.Bound(once, False, None), read.log_density),
    )


def _init(
    function: str, layout: Layout, network: Any, scale: float, initial: Any, extra: dict[str, Any], key: core.Key
) -> dict[str, Any]:
    key = core.as_key(key, function)
    center = layout.ravel(initial(core.fold(key, 0))).astype(layout.dtype)
    zero, time = jnp.zeros_like(center), jnp.zeros((), center.dtype)
    variables = network.init(core.fold(key, 1), zero, time, zero)
    jax.eval_shape(lambda v: control(function, network, v, zero, time, zero), variables)  # tells of another output
    extra = {name: jnp.asarray(value, center.dtype) for name, value in extra.items()}
    return {"center": center, "log_scale": jnp.full_like(center, math.log(scale)), "network": variables, **extra}


def _path(
    layout: Layout,
    path: Callable[..., Any],
    network: Any,
    learnt: bool,
    fixed: bool,
    batch: Any,
    log_density: Any,
    params: Any,
    key: core.Key,
) -> tuple[Any, jax.Array]:
    """A position and its log weight."""
    center, log_scale = params["center"], params["log_scale"]
    if not learnt:
        center, log_scale = jax.lax.stop_gradient((center, log_scale))

    def density(z: jax.Array) -> jax.Array:
        value = log_density(layout.unravel(center + jnp.exp(log_scale) * z), batch)
        return core.as_float(value).astype(z.dtype) + jnp.sum(log_scale)

    z, log_weight = path(network, fixed, density, params, key)
    return layout.unravel(center + jnp.exp(log_scale) * z), log_weight


def _loss(
    function: str, once: core.Bound, kind: str, paths: int, log_density: Any, params: Any, batch: Any, key: core.Key
) -> tuple[jax.Array, dict[str, jax.Array]]:
    keys = core.chain_keys(core.as_key(key, f"{function}.loss"), jnp.arange(paths))
    fixed = kind == "log_variance"
    log_weights = jax.vmap(lambda key: once(fixed, batch, log_density, params, key)[1])(keys)
    value = log_variance(log_weights) if fixed else -jnp.mean(log_weights)
    return value, metrics_of(log_weights)
