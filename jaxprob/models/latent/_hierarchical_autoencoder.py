"""Autoencoders of two levels: the prior of the lower latent vector depends on the upper one.

    z_2 ~ N(0, 1),   z_1 ~ p(. | z_2),   x ~ p(. | z_1),   recognised as q(z_1 | x) q(z_2 | z_1)

Source: Rezende, Mohamed & Wierstra (2014); Burda, Grosse & Salakhutdinov (2016), "Importance weighted autoencoders",
section 2, whose models of two stochastic layers these are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.distributions import Distribution, RealVector, Support, flows
from jaxprob.models.latent._autoencoder import Law, law_of, normal_of
from jaxprob.models.latent._model import LatentVariableModel
from jaxprob.models.latent._networks import Dense, apply_network, hidden_sizes, in_dtype_of


@core.pytree
class _Chain(Distribution):
    """A vector in two parts, of which one depends on the other."""

    first: Any
    second: Partial  # z (n,) -> Distribution of vectors
    sizes: tuple[int, int] = core.static()  # of the first and of the second
    swapped: bool = core.static()  # whether the second comes first in the vector

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return ()

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (sum(self.sizes),)

    @property
    def support(self) -> Support:
        return RealVector()

    def _sample(self, key: core.Key, shape: tuple[int, ...]) -> jax.Array:
        first = self.first.sample(core.fold(key, 0), shape)
        flat = first.reshape(-1, self.sizes[0])
        keys = core.chain_keys(core.fold(key, 1), jnp.arange(flat.shape[0]))
        second = jax.vmap(lambda key, z: self.second(z).sample(key))(keys, flat)
        parts = first, second.reshape(*shape, self.sizes[1])
        return jnp.concatenate(parts[::-1] if self.swapped else parts, -1)

    def _log_prob(self, value: jax.Array) -> jax.Array:
        cut = self.sizes[1] if self.swapped else self.sizes[0]
        parts = value[..., :cut], value[..., cut:]
        first, second = parts[::-1] if self.swapped else parts
        flat = first.reshape(-1, self.sizes[0]), second.reshape(-1, self.sizes[1])
        given = jax.vmap(lambda z, y: self.second(z).log_prob(y))(*flat)
        return self.first.log_prob(first) + given.reshape(value.shape[:-1])


def hierarchical_autoencoder(
    size: int | tuple[int, ...],
    latents: tuple[int, int],
    hidden: int | tuple[int, ...] = 128,
    likelihood: str | Law = "bernoulli",
    *,
    outputs: int | None = None,
) -> LatentVariableModel:
    """An autoencoder of two levels. Its divergence has no closed form: `vi.amortized_elbo(model, kl="sampled")`.

    Args:
      size: shape of one example.
      latents: numbers of the lower latent vector, next to the data, and of the upper. Both are in z, in this order.
      hidden: sizes of the hidden layers of the four perceptrons.
      likelihood: as of `latent.autoencoder`.
      outputs: numbers of the decoder; needed for a likelihood that takes another number than those of x.

    Returns:
      `LatentVariableModel`, with params "encoder", "decoder", "up" (from z_1 to z_2) and "down".

    Raises:
      ValueError: if a size is no whole number, or for an unknown likelihood.

    >>> model = hierarchical_autoencoder(64, (8, 4), 32)
    >>> model.prior(model.init(jax.random.key(0))).sample(jax.random.key(1)).shape
    (12,)
    """
    name = "latent.hierarchical_autoencoder"
    shape, sizes = core.as_shape(name, size), hidden_sizes(name, hidden)
    if not isinstance(latents, (tuple, list)) or len(latents) != 2:
        raise core.bad_value(name, "latents", core.describe(latents), "two sizes, of the lower and of the upper level")
    for number in latents:
        core.check_whole(name, latents=number)
    lower, upper = latents
    law, outputs = law_of(name, likelihood, shape, outputs)
    networks = (
        ("encoder", Dense(sizes, 2 * lower), shape),
        ("decoder", Dense(sizes[::-1], outputs), (lower,)),
        ("up", Dense(sizes, 2 * upper), (lower,)),
        ("down", Dense(sizes[::-1], 2 * lower), (upper,)),
    )
    encoder, decoder, up, down = (network for _, network, _ in networks)
    return LatentVariableModel(
        core.Bound(_init, networks),
        core.Bound(_prior, lower, upper, down),
        core.Bound(_likelihood, lower, decoder, law),
        core.Bound(_recognition, lower, upper, encoder, up),
    )


def _init(networks: Any, key: core.Key) -> dict[str, Any]:
    key = core.as_key(key, "latent.hierarchical_autoencoder")
    return {
        name: network.init(core.fold(key, i), jnp.zeros(shape)) for i, (name, network, shape) in enumerate(networks)
    }


def _normal(network: Dense, params: Any, z: jax.Array) -> Distribution:
    return normal_of(apply_network(network, params, z))


def _prior(lower: int, upper: int, down: Dense, params: Any) -> Distribution:
    standard = flows.StandardNormal(upper, core.result_dtype(params))
    return _Chain(standard, Partial(core.Bound(_normal, down), params["down"]), (upper, lower), True)


def _likelihood(lower: int, decoder: Dense, law: Law, params: Any, z: Any) -> Distribution:
    return law(apply_network(decoder, params["decoder"], in_dtype_of(params, z)[:lower]))


def _recognition(lower: int, upper: int, encoder: Dense, up: Dense, params: Any, x: Any) -> Distribution:
    first = normal_of(apply_network(encoder, params["encoder"], x))
    return _Chain(first, Partial(core.Bound(_normal, up), params["up"]), (lower, upper), False)
