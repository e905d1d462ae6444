"""Masked diffusion: tokens turn into a mask one by one, and a denoiser says what is behind the masks.

Which tokens of x_t are noise is plain to see, and those that are none never change again on the way back. Of such a
process the bound is a weighted cross-entropy of the noisy tokens, in continuous and in discrete time.

Sources: Austin, Johnson, Ho, Tarlow & van den Berg (2021), "Structured denoising diffusion models in discrete
state-spaces"; Sahoo et al. (2024), "Simple and effective masked diffusion language models"; Shi, Han, Wang, Doucet &
Titsias (2024), "Simplified and generalized masked diffusion for discrete data".
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion._discrete_schedules import EDGE, Survival
from jaxprob.models.diffusion._process import check_time
from jaxprob.models.diffusion._tokens import (
    TokenProcess,
    certain,
    check_survival,
    check_vocabulary,
    check_weighting,
    chosen,
    normalized,
)

WEIGHTINGS = ("bound", "linear", "simple")


class RoutedProcess(TokenProcess):
    """A process of tokens that shows which tokens of x_t are noise.

    On the way back from t to s each noisy token becomes data with probability `1 - noise(s) / noise(t)`, by itself.
    """

    schedule: Survival

    # What x_t is made of.

    def noisy(self, xt: Any) -> jax.Array:
        """Which tokens of x_t are noise."""
        raise NotImplementedError

    def tokens(self, xt: Any) -> jax.Array:
        """The tokens of x_t, int32."""
        raise NotImplementedError

    def assemble(self, tokens: jax.Array, noisy: jax.Array) -> Any:
        """x_t from its tokens and which of them are noise."""
        raise NotImplementedError

    def renoised(self, key: core.Key, tokens: jax.Array, places: jax.Array) -> jax.Array:
        """Tokens with fresh noise in places."""
        raise NotImplementedError

    def log_likelihood(self, xt: Any, t: Any, dtype: Any) -> jax.Array:
        noisy = jnp.expand_dims(self.noisy(xt), -1)
        return jnp.where(noisy, jnp.zeros((), dtype), certain(self.tokens(xt), self.vocabulary, dtype))

    def log_clean(self, output: Any, xt: Any, t: Any) -> jax.Array:
        log_probs = self.log_prior(output)
        clean = certain(self.tokens(xt), self.vocabulary, log_probs.dtype)
        return jnp.where(jnp.expand_dims(self.noisy(xt), -1), log_probs, clean)

    # The path.

    def corrupt(self, key: core.Key, x0: Any, t: Any) -> Any:
        check_time("corrupt", t)
        self.check_data("corrupt", x0)
        tokens = jnp.asarray(x0).astype(jnp.int32)
        noise = self.schedule.noise(t)
        noisy = core.random.uniform(core.fold(key, 0), tokens.shape, noise.dtype) < noise
        return self.assemble(self.renoised(core.fold(key, 1), tokens, noisy), noisy)

    def sample_prior(self, key: core.Key, shape: tuple[int, ...], dtype: Any = None) -> Any:
        tokens, noisy = jnp.zeros(shape, jnp.int32 if dtype is None else dtype), jnp.ones(shape, bool)
        return self.assemble(self.renoised(key, tokens, noisy), noisy)

    def cleared(self, t: Any, s: Any) -> jax.Array:
        """The probability that what is noise at time t is data at time s, ()."""
        noise = self.schedule.noise(jnp.maximum(core.as_float(t), EDGE))
        return (noise - self.schedule.noise(s)) / noise

    def reverse_step(self, key: core.Key, xt: Any, output: Any, t: Any, s: Any) -> Any:
        noisy, tokens = self.noisy(xt), self.tokens(xt)
        cleared = self.cleared(t, s)
        stays = noisy & (core.random.uniform(core.fold(key, 0), noisy.shape, cleared.dtype) >= cleared)
        drawn = core.random.categorical(core.fold(key, 1), core.as_float(output), mode="high").astype(tokens.dtype)
        tokens = jnp.where(noisy & ~stays, drawn, tokens)
        return self.assemble(self._stirred(core.fold(key, 2), tokens, stays, t, s), stays)

    def _stirred(self, key: core.Key, tokens: jax.Array, noisy: jax.Array, t: Any, s: Any) -> jax.Array:
        """What noise that stays noise is at time s."""
        return tokens

    # Learning, and the bound.

    def weight(self, t: Any) -> jax.Array:
        if self.weighting == "simple":
            return jnp.ones_like(core.as_float(t))
        return self.schedule(t) if self.weighting == "linear" else self.schedule.rate(t)

    def cross_entropy(self, output: Any, x0: Any, xt: Any) -> jax.Array:
        """-log of the probability that an output gives to the data behind the noisy tokens, summed over these, ()."""
        noisy, output = self.noisy(xt), core.as_float(output)
        # Logits that say nothing are left out before anything is made of them, in case they are -inf or NaN.
        log_probs = normalized(jnp.where(jnp.expand_dims(noisy, -1), output, jnp.zeros_like(output)))
        return -jnp.sum(jnp.where(noisy, chosen(log_probs, x0), jnp.zeros((), log_probs.dtype)))

    def loss(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        self.check_pair("loss", x0, xt, t)
        entropy = self.cross_entropy(output, x0, xt)
        weighted = self.weight(t).astype(entropy.dtype) * entropy
        return weighted if self.weighting == "bound" else weighted / max(jnp.size(x0), 1)

    def step_divergence(self, output: Any, x0: Any, xt: Any, t: Any, s: Any, key: core.Key | None = None) -> jax.Array:
        check_time("step_divergence", s, "s")
        self.check_pair("step_divergence", x0, xt, t)
        entropy = self.cross_entropy(output, x0, xt)
        return self.cleared(t, s).astype(entropy.dtype) * entropy

    def bound_rate(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        self.check_pair("bound_rate", x0, xt, t)
        entropy = self.cross_entropy(output, x0, xt)
        return self.schedule.rate(t).astype(entropy.dtype) * entropy

    def bound_ends(self, x0: Any, key: core.Key | None = None, denoise: Any = None) -> jax.Array:
        self.check_data("bound_ends", x0)
        return jnp.zeros(())  # x_1 is noise and x_0 is data, exactly


@core.pytree
class Masked(RoutedProcess):
    """Masked diffusion; `masked` makes it. x_t are int32 tokens, of which `vocabulary` is the mask."""

    schedule: Survival
    vocabulary: int = core.static()
    weighting: str = core.static(default="bound")

    @property
    def states(self) -> int:
        return self.vocabulary + 1

    @property
    def mask(self) -> int:
        """The token that stands for a mask."""
        return self.vocabulary

    def noisy(self, xt: Any) -> jax.Array:
        return jnp.asarray(xt) == self.mask

    def tokens(self, xt: Any) -> jax.Array:
        return jnp.asarray(xt)

    def assemble(self, tokens: jax.Array, noisy: jax.Array) -> jax.Array:
        return jnp.where(noisy, jnp.asarray(self.mask, tokens.dtype), tokens)

    def renoised(self, key: core.Key, tokens: jax.Array, places: jax.Array) -> jax.Array:
        return self.assemble(tokens, places)

    def reverse_rates(self, output: Any, xt: Any, t: Any) -> jax.Array:
        """The rates at which each token jumps to each state when time goes back, (..., states)."""
        probs = jnp.exp(self.log_prior(output))
        noisy = jnp.expand_dims(self.noisy(xt), -1)
        rates = jnp.where(noisy, self.schedule.rate(t).astype(probs.dtype) * probs, jnp.zeros_like(probs))
        return jnp.concatenate([rates, jnp.zeros_like(rates[..., :1])], -1)


def masked(vocabulary: int, schedule: Survival | None = None, weighting: str = "bound") -> Masked:
    """Diffusion that masks tokens; also called absorbing.

    A denoiser sees int32 tokens from 0 to `vocabulary`, the last of which is the mask, and returns logits
    (..., vocabulary) of what is behind each mask; what it says of other tokens is not looked at.

    In continuous time the negative bound is the integral of `rate(t) E[cross-entropy of the masked tokens]`, and it is
    the same for every schedule; for the exact denoiser it is the entropy of the data.

    Args:
      vocabulary: number of tokens, at least 2.
      schedule: the probability that a token is not masked; `linear_survival()` by default.
      weighting: of the cross-entropy of the masked tokens in the loss: "bound" (by the rate, which makes a loss at a
        random time an unbiased estimate of the bound), "linear" (by alpha(t), the mean over tokens) or "simple" (1, the
        mean over tokens).

    Raises:
      TypeError: if the schedule is none.
      ValueError: if the vocabulary is no whole number of at least 2, or for an unknown weighting.

    >>> process = masked(4)
    >>> process.corrupt(jax.random.key(0), jnp.array([0, 1, 2, 3]), 1.0).tolist()
    [4, 4, 4, 4]

    Source: Sahoo et al. (2024), section 3; Shi et al. (2024), section 3; in discrete time, Austin et al. (2021),
    appendix A.2.2.
    """
    name = "diffusion.masked"
    check_vocabulary(name, vocabulary)
    check_weighting(name, weighting, WEIGHTINGS)
    return Masked(check_survival(name, schedule), int(vocabulary), weighting)
