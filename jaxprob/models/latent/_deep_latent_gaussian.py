"""Deep latent Gaussian models: layers of latent vectors, each a function of the one above plus normal noise.

    h_L = G_L xi_L,   h_l = T_l(h_{l+1}) + G_l xi_l,   x ~ p(. | T_0(h_1)),   xi_l ~ N(0, 1)

The latent vector z of the model is the noise of all layers, that next to the data first: it has one prior whatever the
parameters, and the layers follow from it.

Source: Rezende, Mohamed & Wierstra (2014), "Stochastic backpropagation and approximate inference in deep generative
models", equations 1 to 4 and section 4.3.
"""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.distributions import (
    Concatenated,
    Distribution,
    MultivariateNormal,
    MultivariateNormalDiagonal,
    MultivariateNormalRankOnePrecision,
    flows,
)
from jaxprob.models.latent._autoencoder import Law, law_of
from jaxprob.models.latent._model import LatentVariableModel
from jaxprob.models.latent._networks import Dense, apply_network, hidden_sizes, in_dtype_of

RECOGNITIONS = ("rank_one", "diagonal", "full")


def deep_latent_gaussian(
    size: int | tuple[int, ...],
    latents: tuple[int, ...],
    hidden: int | tuple[int, ...] = 128,
    likelihood: str | Law = "bernoulli",
    *,
    recognition: str = "rank_one",
    outputs: int | None = None,
) -> LatentVariableModel:
    """A deep latent Gaussian model with a normal recognition of each layer's noise.

    Args:
      size: shape of one example.
      latents: numbers of each layer, that next to the data first.
      hidden: sizes of the hidden layers of the perceptrons; () makes all maps affine.
      likelihood: as of `latent.autoencoder`.
      recognition: "rank_one" for precisions that are a diagonal plus an outer product, "diagonal", or "full" for any
        covariance within a layer.
      outputs: numbers of the last map; needed for a likelihood that takes another number than those of x.

    Returns:
      `LatentVariableModel`, with params "recognition", "maps" and "scales" (G_l), the last two by layer.

    Raises:
      ValueError: if a size is no whole number, or for an unknown likelihood or recognition.

    >>> model = deep_latent_gaussian(64, (8, 4), 32)
    >>> model.recognition(model.init(jax.random.key(0)), jnp.zeros(64)).event_shape
    (12,)
    """
    name = "latent.deep_latent_gaussian"
    shape = core.as_shape(name, size)
    if not isinstance(latents, (tuple, list)) or not latents:
        raise core.bad_value(name, "latents", core.describe(latents), "a tuple of sizes, one layer at least")
    for number in latents:
        core.check_whole(name, latents=number)
    if recognition not in RECOGNITIONS:
        raise core.bad_value(name, "recognition", core.describe(recognition), f"one of {RECOGNITIONS}")
    latents, sizes = tuple(latents), () if hidden == () else hidden_sizes(name, hidden)
    law, outputs = law_of(name, likelihood, shape, outputs)
    maps = tuple(Dense(sizes[::-1], number) for number in (outputs, *latents[:-1]))
    guide = Dense(sizes, sum(_numbers(recognition, k) for k in latents))
    return LatentVariableModel(
        core.Bound(_init, shape, latents, maps, guide),
        core.Bound(_prior, sum(latents)),
        core.Bound(_likelihood, latents, maps, law),
        core.Bound(_recognition, latents, recognition, guide),
    )


def _numbers(recognition: str, latent: int) -> int:
    """Numbers that describe a normal law of this kind."""
    return {"rank_one": 3 * latent, "diagonal": 2 * latent, "full": latent + latent * (latent + 1) // 2}[recognition]


def _init(shape: tuple[int, ...], latents: tuple[int, ...], maps: Any, guide: Dense, key: core.Key) -> dict[str, Any]:
    key = core.as_key(key, "latent.deep_latent_gaussian")
    inputs = [jnp.zeros(k) for k in latents]
    return {
        "recognition": guide.init(core.fold(key, 0), jnp.zeros(shape)),
        "maps": tuple(m.init(core.fold(key, 1, i), x) for i, (m, x) in enumerate(zip(maps, inputs, strict=True))),
        "scales": tuple(jnp.eye(k) for k in latents),
    }


def _prior(latent: int, params: Any) -> Distribution:
    return flows.StandardNormal(latent, core.result_dtype(params))


def _likelihood(latents: tuple[int, ...], maps: Any, law: Law, params: Any, z: Any) -> Distribution:
    noises = _parts(in_dtype_of(params, z), latents)
    h = jnp.zeros_like(noises[-1])
    for layer in reversed(range(len(latents))):
        h = h + core.matvec(params["scales"][layer], noises[layer])
        h = apply_network(maps[layer], params["maps"][layer], h)
    return law(h)


def _recognition(latents: tuple[int, ...], kind: str, guide: Dense, params: Any, x: Any) -> Distribution:
    features = apply_network(guide, params["recognition"], x)
    parts = _parts(features, [_numbers(kind, k) for k in latents])
    laws = tuple(_law(kind, k, part) for k, part in zip(latents, parts, strict=True))
    return laws[0] if len(laws) == 1 else Concatenated(laws)


def _law(kind: str, latent: int, features: jax.Array) -> Distribution:
    loc, rest = features[:latent], features[latent:]
    if kind == "diagonal":
        return MultivariateNormalDiagonal(loc, jnp.exp(rest))
    if kind == "rank_one":
        # The law is that of the opposite direction too: with neither sign preferred, training makes the direction an
        # odd function of the data, and ends little better than with a diagonal.
        direction = jnp.concatenate([core.softplus(rest[latent : latent + 1]), rest[latent + 1 :]])
        return MultivariateNormalRankOnePrecision(loc, jnp.exp(-2 * rest[:latent]), direction)
    lower = jnp.zeros((latent, latent), rest.dtype).at[jnp.tril_indices(latent)].set(rest)
    return MultivariateNormal(loc, cholesky=jnp.tril(lower, -1) + jnp.diag(jnp.exp(jnp.diagonal(lower))))


def _parts(vector: jax.Array, sizes: Any) -> list[jax.Array]:
    return jnp.split(vector, list(itertools.accumulate(sizes))[:-1])
