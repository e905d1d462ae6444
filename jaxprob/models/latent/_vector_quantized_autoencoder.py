"""Autoencoders whose latent variables are the nearest of a set of vectors, which are learned.

Source: van den Oord, Vinyals & Kavukcuoglu (2017), "Neural discrete representation learning", equations 1 to 3.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core
from jaxprob.distributions import Distribution
from jaxprob.models.latent._autoencoder import Law, law_of
from jaxprob.models.latent._networks import Dense, apply_network, hidden_sizes


@dataclasses.dataclass(frozen=True)
class VectorQuantized:
    """An autoencoder with a codebook; hashable, without arrays. Made by `latent.vector_quantized_autoencoder`.

    Its `init` and `loss` are what `learning.Task` takes.

    Attributes:
      shape: of one example.
      latent: variables, and numbers of each code.
      codes: number of codes.
      encoder: network from x to (variables * numbers).
      decoder: network from the codes of all variables to what `law` takes.
      law: from the decoder's output to a distribution of x.
      commitment: factor of the squared distance that draws the encoder to its codes.
    """

    shape: tuple[int, ...]
    latent: tuple[int, int]
    codes: int
    encoder: Dense
    decoder: Dense
    law: Law
    commitment: float

    def init(self, key: core.Key) -> dict[str, Any]:
        """Parameters "encoder", "decoder" and "codebook" (codes, numbers)."""
        key = core.as_key(key, "VectorQuantized.init")
        return {
            "encoder": self.encoder.init(core.fold(key, 0), jnp.zeros(self.shape)),
            "decoder": self.decoder.init(core.fold(key, 1), jnp.zeros(self.latent)),
            # As small as what the encoder gives at first, so that no code is out of its reach.
            "codebook": 0.1 * core.random.normal(core.fold(key, 2), (self.codes, self.latent[1]), float),
        }

    def encode(self, params: Any, x: Any) -> jax.Array:
        """The codes (variables,) of one example, int32."""
        return self._nearest(params, self._encoded(params, x))

    def decode(self, params: Any, codes: Any) -> Distribution:
        """The law of an example with these codes (variables,)."""
        return self.law(apply_network(self.decoder, params["decoder"], params["codebook"][codes]))

    def loss(self, params: Any, batch: Any, key: core.Key) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The mean over a batch (example, ...) of minus the log likelihood and the two squared distances.

        Metrics: "log_likelihood"; "elbo", less the log of the number of codes for each variable, the divergence from a
        uniform prior; "distance", squared, of the encoder's output from its codes; "perplexity", the number of codes in
        equal use that would be as uncertain as those in use in this batch.
        """

        def one(x: Any) -> Any:
            encoded = self._encoded(params, x)
            codes = self._nearest(params, encoded)
            chosen = params["codebook"][codes]
            # The gradient at the codes goes to the encoder as it is.
            through = encoded + lax.stop_gradient(chosen - encoded)
            law = self.law(apply_network(self.decoder, params["decoder"], through))
            distance = jnp.sum((lax.stop_gradient(encoded) - chosen) ** 2)
            commitment = jnp.sum((encoded - lax.stop_gradient(chosen)) ** 2)
            return jnp.sum(law.log_prob(x)), distance, commitment, codes

        log_likelihood, distance, commitment, codes = jax.vmap(one)(batch)
        value = jnp.mean(distance + self.commitment * commitment) - jnp.mean(log_likelihood)
        used = jnp.mean(jax.nn.one_hot(codes, self.codes, dtype=value.dtype), (0, 1))
        total = jnp.mean(log_likelihood)
        return value, {
            "log_likelihood": total,
            "elbo": total - self.latent[0] * jnp.log(jnp.asarray(self.codes, value.dtype)),
            "distance": jnp.mean(distance),
            "perplexity": jnp.exp(-jnp.sum(core.xlogy(used, used))),
        }

    def _encoded(self, params: Any, x: Any) -> jax.Array:
        return apply_network(self.encoder, params["encoder"], x).reshape(self.latent)

    def _nearest(self, params: Any, encoded: jax.Array) -> jax.Array:
        away = jnp.expand_dims(encoded, 1) - jnp.expand_dims(params["codebook"], 0)
        return jnp.argmin(jnp.sum(away**2, -1), -1).astype(jnp.int32)


def vector_quantized_autoencoder(
    size: int | tuple[int, ...],
    variables: int,
    codes: int,
    width: int = 8,
    hidden: int | tuple[int, ...] = 128,
    likelihood: str | Law = "bernoulli",
    *,
    outputs: int | None = None,
    commitment: float = 0.25,
) -> VectorQuantized:
    """An autoencoder that passes an example on as codes, with the gradient straight through.

    Args:
      size: shape of one example.
      variables: number of codes of an example.
      codes: in the codebook.
      width: numbers of a code.
      hidden: sizes of the hidden layers of the perceptrons.
      likelihood: as of `latent.autoencoder`.
      outputs: numbers of the decoder; needed for a likelihood that takes another number than those of x.
      commitment: factor of the squared distance that draws the encoder to its codes.

    Returns:
      `VectorQuantized`, with `init`, `loss`, `encode` and `decode`.

    Raises:
      ValueError: if a number is out of range, or for an unknown likelihood.

    >>> model = vector_quantized_autoencoder(64, 4, 16, hidden=32)
    >>> model.encode(model.init(jax.random.key(0)), jnp.zeros(64)).shape
    (4,)
    """
    name = "latent.vector_quantized_autoencoder"
    shape, sizes = core.as_shape(name, size), hidden_sizes(name, hidden)
    core.check_whole(name, variables=variables, width=width)
    core.check_whole(name, least=2, codes=codes)
    core.check_positive(name, commitment=commitment)
    law, outputs = law_of(name, likelihood, shape, outputs)
    encoder, decoder = Dense(sizes, variables * width), Dense(sizes[::-1], outputs)
    return VectorQuantized(shape, (variables, width), codes, encoder, decoder, law, commitment)
