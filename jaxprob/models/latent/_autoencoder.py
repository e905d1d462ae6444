"""Variational autoencoders: a standard normal latent vector, a network to the data's law and one back.

Source: Kingma & Welling (2014), "Auto-encoding variational Bayes", section 3; Rezende, Mohamed & Wierstra (2014); Sohn,
Lee & Yan (2015), "Learning structured output representation using deep conditional generative models".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormalDiagonal,
    Normal,
    Poisson,
    flows,
)
from jaxprob.models.latent._model import LatentVariableModel
from jaxprob.models.latent._networks import (
    Dense,
    apply_network,
    check_network,
    hidden_sizes,
    init_network,
)

Law = Callable[[jax.Array], Distribution]


def autoencoder(
    size: int | tuple[int, ...],
    latent: int,
    hidden: int | tuple[int, ...] = 128,
    likelihood: str | Law = "bernoulli",
    *,
    encoder: Any = None,
    decoder: Any = None,
    outputs: int | None = None,
    condition: int | tuple[int, ...] | None = None,
) -> LatentVariableModel:
    """A variational autoencoder.

    Args:
      size: shape of one example.
      latent: numbers of z.
      hidden: sizes of the hidden layers of the default networks, in this order in both.
      likelihood: "bernoulli" (one number of the decoder for each of x: the logit), "normal" (mean, and logarithm of the
        standard deviation), "poisson" (logarithm of the rate), or a function from the decoder's output to a
        distribution of one example.
      encoder: network from x to 2 * latent numbers: means, and logarithms of standard deviations. Anything with
        `init(key, x)` and `apply(variables, x)`, such as a Flax Linen module; a perceptron by default.
      decoder: network from z to what `likelihood` takes.
      outputs: numbers of the default decoder; needed for a function that takes another number than those of x.
      condition: shape of a condition, such as `(10,)` for labels as indicators. Networks then get it as a second
        argument, the prior is a normal distribution that depends on it (a network of the `hidden` sizes), and batches
        are pairs (xs, conditions).

    Returns:
      `LatentVariableModel`, with params "encoder", "decoder" and, with a condition, "prior".

    Raises:
      TypeError: if a network has no `init` and `apply`.
      ValueError: if a size is no whole number, or for an unknown likelihood.

    >>> model = autoencoder(64, 8, 32)
    >>> params = model.init(jax.random.key(0))
    >>> model.likelihood(params, jnp.zeros(8)).event_shape
    (64,)
    """
    name = "latent.autoencoder"
    shape = core.as_shape(name, size)
    core.check_whole(name, latent=latent)
    sizes = hidden_sizes(name, hidden)
    law, outputs = law_of(name, likelihood, shape, outputs)
    encoder = Dense(sizes, 2 * latent) if encoder is None else encoder
    decoder = Dense(sizes[::-1], outputs) if decoder is None else decoder
    check_network(name, "encoder", encoder)
    check_network(name, "decoder", decoder)
    given = None if condition is None else core.as_shape(name, condition)
    networks: dict[str, Any] = {"encoder": (encoder, shape), "decoder": (decoder, (latent,))}
    if given is not None:
        networks["prior"] = (Dense(sizes, 2 * latent), None)
    return LatentVariableModel(
        core.Bound(_init, tuple(networks.items()), given),
        core.Bound(_standard, latent) if given is None else core.Bound(_conditional_prior, networks["prior"][0]),
        core.Bound(_likelihood, decoder, law),
        core.Bound(_recognition, encoder, latent),
        given is not None,
    )


def law_of(name: str, likelihood: Any, shape: tuple[int, ...], outputs: int | None) -> tuple[Law, int]:
    """The function from a decoder's output to a distribution, and how many numbers that output has.

    Raises:
      ValueError: for an unknown likelihood, or if `outputs` is no whole number.
    """
    if not callable(likelihood) and likelihood not in _LAWS:
        raise core.bad_value(name, "likelihood", core.describe(likelihood), f"one of {sorted(_LAWS)}, or a function")
    law = likelihood if callable(likelihood) else core.Bound(_LAWS[likelihood], shape)
    if outputs is None:
        outputs = math.prod(shape) * (2 if likelihood == "normal" else 1)
    core.check_whole(name, outputs=outputs)
    return law, outputs


def _init(networks: Any, condition: tuple[int, ...] | None, key: core.Key) -> dict[str, Any]:
    key, params = core.as_key(key, "latent.autoencoder"), {}
    given = () if condition is None else (jnp.zeros(condition),)
    for i, (name, (network, shape)) in enumerate(networks):
        inputs = given if shape is None else (jnp.zeros(shape), *given)
        params[name] = init_network("latent.autoencoder", name, network, core.fold(key, i), *inputs)
    return params


def _standard(latent: int, params: Any) -> Distribution:
    return flows.StandardNormal(latent, core.result_dtype(params))


def _conditional_prior(network: Any, params: Any, condition: Any) -> Distribution:
    return normal_of(apply_network(network, params["prior"], condition))


def _likelihood(network: Any, law: Law, params: Any, z: Any, *condition: Any) -> Distribution:
    return law(apply_network(network, params["decoder"], z, *condition))


def _recognition(network: Any, latent: int, params: Any, x: Any, *condition: Any) -> Distribution:
    features = apply_network(network, params["encoder"], x, *condition)
    if features.shape != (2 * latent,):
        got, expected = f"a network with outputs {features.shape}", f"({2 * latent},), means and log scales"
        raise core.bad_value("latent.autoencoder", "encoder", got, expected)
    return normal_of(features)


def normal_of(features: jax.Array) -> MultivariateNormalDiagonal:
    """The normal distribution of n independent numbers from 2 n: means, and logarithms of standard deviations."""
    loc, log_scale = jnp.split(features, 2)
    return MultivariateNormalDiagonal(loc, jnp.exp(log_scale))


def _bernoulli(shape: tuple[int, ...], features: jax.Array) -> Distribution:
    return Independent(Bernoulli(logits=features.reshape(shape)))


def _normal(shape: tuple[int, ...], features: jax.Array) -> Distribution:
    loc, log_scale = jnp.split(jnp.ravel(features), 2)
    return Independent(Normal(loc.reshape(shape), jnp.exp(log_scale).reshape(shape)))


def _poisson(shape: tuple[int, ...], features: jax.Array) -> Distribution:
    return Independent(Poisson(log_rate=features.reshape(shape)))


_LAWS = {"bernoulli": _bernoulli, "normal": _normal, "poisson": _poisson}
