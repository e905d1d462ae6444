"""Reparameterised discrete diffusion: each token carries a flag that says whether it is noise.

A reverse transition first routes every noisy token, to data or to noise, and then draws it. With the flags kept, mask
and multinomial noise have the same routes, the same bound and the same decoders; without them (summed out) the
transitions are those of the plain processes.

Source: Zheng, Yuan, Yu & Kong (2023), "A reparameterized discrete diffusion model for text generation", section 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion._discrete_schedules import Survival
from jaxprob.models.diffusion._masked import RoutedProcess
from jaxprob.models.diffusion._process import Denoiser
from jaxprob.models.diffusion._tokens import check_survival, check_vocabulary, check_weighting

NOISES = ("mask", "uniform")
WEIGHTINGS = ("linear", "reciprocal")


class RoutedTokens(NamedTuple):
    """Tokens on their way between data and noise.

    Attributes:
      tokens: int32, any shape.
      noisy: bool, the same shape; whether each is noise.
    """

    tokens: jax.Array
    noisy: jax.Array


@core.pytree
class Reparameterized(RoutedProcess):
    """Reparameterised diffusion; `reparameterized` makes it. x_t are `RoutedTokens`."""

    schedule: Survival
    vocabulary: int = core.static()
    noise: str = core.static(default="mask")
    weighting: str = core.static(default="linear")

    @property
    def states(self) -> int:
        return self.vocabulary + (self.noise == "mask")

    def noisy(self, xt: RoutedTokens) -> jax.Array:
        return xt.noisy

    def tokens(self, xt: RoutedTokens) -> jax.Array:
        return xt.tokens

    def assemble(self, tokens: jax.Array, noisy: jax.Array) -> RoutedTokens:
        return RoutedTokens(tokens, noisy)

    def renoised(self, key: core.Key, tokens: jax.Array, places: jax.Array) -> jax.Array:
        if self.noise == "mask":
            return jnp.where(places, jnp.asarray(self.vocabulary, tokens.dtype), tokens)
        return jnp.where(places, core.random.randint(key, tokens.shape, 0, self.vocabulary, tokens.dtype), tokens)

    def _stirred(self, key: core.Key, tokens: jax.Array, noisy: jax.Array, t: Any, s: Any) -> jax.Array:
        # Noise of time s is that of time t unless it was drawn once more between them.
        kept = self.schedule(t) / self.schedule(s)
        again = core.random.uniform(core.fold(key, 0), tokens.shape, kept.dtype) >= kept
        return self.renoised(core.fold(key, 1), tokens, noisy & again)

    def finish(self, key: core.Key, x: RoutedTokens, denoiser: Denoiser, condition: Any) -> jax.Array:
        return x.tokens


def reparameterized(
    vocabulary: int, noise: str = "mask", schedule: Survival | None = None, weighting: str = "linear"
) -> Reparameterized:
    """Discrete diffusion whose tokens carry flags of being noise, for masks and for uniform noise.

    A denoiser sees `RoutedTokens(tokens, noisy)`; give a network the tokens alone, as in the paper, or both. It returns
    logits (..., vocabulary) of the data behind each noisy token. The solvers `top_k` and `remasking` decide for all
    tokens together which are routed to data.

    Args:
      vocabulary: number of tokens, at least 2.
      noise: "mask" (the token `vocabulary`) or "uniform" (any token).
      schedule: the probability that a token is no noise; `linear_survival()` by default.
      weighting: of the cross-entropy of the noisy tokens in the loss, the mean over all tokens: "linear" (alpha(t); of
        the linear schedule 1 - t, which the paper finds the better) or "reciprocal" (the rate, of the linear schedule
        1 / t, with which it is the bound over the number of tokens).

    Raises:
      TypeError: if the schedule is none.
      ValueError: if the vocabulary is no whole number of at least 2, or for an unknown noise or weighting.

    >>> process = reparameterized(4, "uniform")
    >>> xt = process.corrupt(jax.random.key(0), jnp.array([0, 1, 2, 3]), 1.0)
    >>> bool(xt.noisy.all()), bool((xt.tokens < 4).all())
    (True, True)

    Source: Zheng et al. (2023), section 4.
    """
    name = "diffusion.reparameterized"
    check_vocabulary(name, vocabulary)
    if noise not in NOISES:
        raise core.bad_value(name, "noise", core.describe(noise), f"one of {NOISES}")
    check_weighting(name, weighting, WEIGHTINGS)
    return Reparameterized(check_survival(name, schedule), int(vocabulary), noise, weighting)
