"""Autoencoders whose latent variables are categories.

Source: Jang, Gu & Poole (2017), "Categorical reparameterization with Gumbel-softmax", section 3.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import Distribution, OneHotCategorical
from jaxprob.models.latent._autoencoder import Law, law_of
from jaxprob.models.latent._model import LatentVariableModel
from jaxprob.models.latent._networks import Dense, apply_network, hidden_sizes, in_dtype_of


def categorical_autoencoder(
    size: int | tuple[int, ...],
    variables: int,
    categories: int,
    hidden: int | tuple[int, ...] = 128,
    likelihood: str | Law = "bernoulli",
    *,
    outputs: int | None = None,
) -> LatentVariableModel:
    """An autoencoder whose latent variables are categories, as indicators (variables, categories), alike beforehand.

    `vi.amortized_elbo` takes `gradient="gumbel_softmax"`, `"straight_through"`, `"score"`, `"rebar"` or, for few
    variables, `"exact"`; and `bound="importance_weighted", gradient="score"` for VIMCO.

    Args:
      size: shape of one example.
      variables: number of them.
      categories: of each.
      hidden: sizes of the hidden layers of the perceptrons.
      likelihood: as of `latent.autoencoder`; it is asked for at relaxed indicators too.
      outputs: numbers of the decoder; needed for a likelihood that takes another number than those of x.

    Returns:
      `LatentVariableModel`, with params "encoder" and "decoder".

    Raises:
      ValueError: if a size is no whole number, or for an unknown likelihood.

    >>> model = categorical_autoencoder(64, 10, 4, 32)
    >>> model.recognition(model.init(jax.random.key(0)), jnp.zeros(64)).shape
    (10, 4)
    """
    name = "latent.categorical_autoencoder"
    shape, sizes = core.as_shape(name, size), hidden_sizes(name, hidden)
    core.check_whole(name, variables=variables)
    core.check_whole(name, least=2, categories=categories)
    law, outputs = law_of(name, likelihood, shape, outputs)
    latent = (variables, categories)
    encoder, decoder = Dense(sizes, variables * categories), Dense(sizes[::-1], outputs)
    return LatentVariableModel(
        core.Bound(_init, shape, latent, encoder, decoder),
        core.Bound(_prior, latent),
        core.Bound(_likelihood, decoder, law),
        core.Bound(_recognition, latent, encoder),
    )


def _init(shape: tuple[int, ...], latent: tuple[int, int], encoder: Dense, decoder: Dense, key: core.Key) -> Any:
    key = core.as_key(key, "latent.categorical_autoencoder")
    return {
        "encoder": encoder.init(core.fold(key, 0), jnp.zeros(shape)),
        "decoder": decoder.init(core.fold(key, 1), jnp.zeros(latent)),
    }


def _prior(latent: tuple[int, int], params: Any) -> Distribution:
    return OneHotCategorical(logits=jnp.zeros(latent, core.result_dtype(params)))


def _likelihood(decoder: Dense, law: Law, params: Any, z: Any) -> Distribution:
    return law(apply_network(decoder, params["decoder"], in_dtype_of(params, z)))


def _recognition(latent: tuple[int, int], encoder: Dense, params: Any, x: Any) -> Distribution:
    return OneHotCategorical(logits=apply_network(encoder, params["encoder"], x).reshape(latent))
