"""Bayesian flow networks: a belief about data that noisy observations sharpen.

A sender observes each number or token of the data by itself, with an accuracy that grows; beta is the accuracy of all
observations so far. What a denoiser sees is the belief, and what it says is a law of the data. Of numbers the belief is
a Gaussian diffusion in other units, so that `bayesian_flow` makes a `Gaussian`; of tokens it is a categorical law,
whose logits are a Gaussian random walk; and of numbers that are rounded to bins it is the first, with outputs like
those of the second.

Here as everywhere data are at time 0: the time of the paper is 1 - t.

Source: Graves, Srivastava, Atkinson & Gomez (2023), "Bayesian flow networks", sections 4 (numbers), 5 (bins) and 6
(tokens).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion._gaussian import Gaussian, _gaussian
from jaxprob.models.diffusion._noise import White
from jaxprob.models.diffusion._process import Denoiser, NoisingProcess, check_time
from jaxprob.models.diffusion._schedules import Schedule
from jaxprob.models.diffusion._tokens import check_tokens

# The time at which the belief about numbers begins, which knows nothing at 0; float32 tells later ones by 6e-8.
MARGIN = 2e-8


@core.pytree
class Accuracy(Schedule):
    """The accuracy of all observations of a number by time 1 - t is `smallest^(-2 (1 - t)) - 1`."""

    smallest: float = core.static(default=0.001)

    def __call__(self, t: Any) -> jax.Array:
        # The bound, which no time is beyond, keeps a compiler from adding the two ones first: the margin would be lost.
        seen = MARGIN + (1 - MARGIN) * jnp.maximum(1 - core.as_float(t), -1)
        return jnp.log(jnp.expm1(-2 * math.log(self.smallest) * seen))

    def inverse(self, log_ratio: Any) -> jax.Array:
        seen = jax.nn.softplus(core.as_float(log_ratio)) / (-2 * math.log(self.smallest))
        return jnp.clip(1 - (seen - MARGIN) / (1 - MARGIN), 0, 1)


def bayesian_flow(smallest: float = 0.001, prediction: str = "noise", weighting: str = "bound") -> Gaussian:
    """The Bayesian flow of numbers: x_t is the mean of the belief.

    With accuracy beta, `x_t ~ Normal(g x_0, g (1 - g))` for `g = beta / (1 + beta)`; it is Gaussian diffusion with
    alpha = g, down to the joint law of all times.

    Args:
      smallest: standard deviation of the belief at time 0, which samples have as noise; data should be within -1 and 1.
      prediction: what a denoiser's output is; see `Gaussian`.
      weighting: of the loss; see `Gaussian`. "bound" is the loss of the paper.

    Raises:
      ValueError: if `smallest` is not between 0 and 1, or for an unknown prediction or weighting.

    >>> alpha, sigma = bayesian_flow().scales(0.0)
    >>> round(float(1 - alpha), 6), round(float(sigma), 4)
    (1e-06, 0.001)

    Source: Graves et al. (2023), equations 80 and 95.
    """
    name = "diffusion.bayesian_flow"
    return _gaussian(name, Accuracy(_check_smallest(name, smallest)), "bayesian", prediction, weighting, White())


def _check_smallest(function: str, smallest: Any) -> float:
    core.check_positive(function, smallest=smallest)
    if smallest >= 1:
        raise core.bad_value(function, "smallest", smallest, "a standard deviation below 1")
    return float(smallest)


@core.pytree
class DiscreteBayesianFlow(NoisingProcess):
    """See `discrete_bayesian_flow`. x_t is (*sites, vocabulary), logits of the belief up to a constant."""

    vocabulary: int = core.static()
    accuracy: float = core.static(default=3.0)
    inputs: str = core.static(default="probabilities")

    def _accuracy(self, t: Any) -> jax.Array:
        """Of all observations at a time, ()."""
        return self.accuracy * (1 - core.as_float(t)) ** 2

    def _observed(self, key: core.Key, tokens: jax.Array, accuracy: jax.Array, dtype: Any) -> jax.Array:
        """What observations of this accuracy in all add to the logits, (*sites, vocabulary)."""
        noise = core.random.normal(key, (*jnp.shape(tokens), self.vocabulary), dtype)
        centred = self.vocabulary * jax.nn.one_hot(tokens, self.vocabulary, dtype=dtype) - 1
        accuracy = accuracy.astype(dtype)
        # The gradient of a square root at zero is infinite, and at time 1 nothing is observed.
        return accuracy * centred + core.safe_sqrt(accuracy * self.vocabulary) * noise

    def corrupt(self, key: core.Key, x0: Any, t: Any) -> jax.Array:
        check_time("corrupt", t)
        t = core.as_float(t)
        return self._observed(key, x0, self._accuracy(t), jnp.result_type(t, float) if t.weak_type else t.dtype)

    def sample_prior(self, key: core.Key, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        return jnp.zeros((*shape, self.vocabulary), jnp.result_type(float) if dtype is None else dtype)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, self.vocabulary)

    def output(self, denoiser: Denoiser, x: Any, t: Any, condition: Any, shape: tuple[int, ...]) -> jax.Array:
        x = jax.nn.softmax(x) if self.inputs == "probabilities" else jax.nn.log_softmax(x)
        return super().output(denoiser, x, t, condition, shape)

    def target(self, x0: Any, xt: Any, t: Any) -> jax.Array:
        return jax.nn.one_hot(x0, self.vocabulary, dtype=xt.dtype)

    def weight(self, t: Any) -> jax.Array:
        return self.vocabulary * self.accuracy * (1 - core.as_float(t))

    def loss(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        error = self.target(x0, xt, t) - jax.nn.softmax(output)
        error = error.astype(core.accumulator_dtype(error.dtype))
        return self.weight(t).astype(error.dtype) * jnp.sum(error**2)

    def bound_rate(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        return self.loss(output, x0, xt, t)

    def _step(self, t: Any, s: Any) -> jax.Array:
        return self._accuracy(s) - self._accuracy(t)

    def reverse_step(self, key: core.Key, xt: Any, output: Any, t: Any, s: Any) -> jax.Array:
        tokens = core.random.categorical(core.fold(key, 0), output)
        return xt + self._observed(core.fold(key, 1), tokens, self._step(t, s), xt.dtype)

    def step_divergence(self, output: Any, x0: Any, xt: Any, t: Any, s: Any, key: core.Key | None = None) -> jax.Array:
        """An estimate from one observation and its mirror image, for there is no formula for a mixture.

        Of the two, what is linear in the noise cancels, which is nearly all of it where steps are small.
        """
        key = _needed("step_divergence", key)
        accuracy = self._step(t, s)
        seen = self._observed(key, x0, accuracy, xt.dtype)
        centre = accuracy.astype(xt.dtype) * (self.vocabulary * self.target(x0, xt, t) - 1)
        log_probs = jax.nn.log_softmax(output)

        def divergence(seen: jax.Array) -> jax.Array:
            # The log density of an observation of token k is its k-th number, up to what all tokens have.
            told = jnp.take_along_axis(seen, jnp.asarray(x0)[..., None], -1)[..., 0]
            return jnp.sum(told - core.logsumexp(log_probs + seen, -1))

        return 0.5 * (divergence(seen) + divergence(2 * centre - seen))

    def bound_ends(self, x0: Any, key: core.Key | None = None, denoise: Any = None) -> jax.Array:
        key = _needed("bound_ends", key, denoise)
        xt = self.corrupt(key, x0, 0.0)
        log_probs = jax.nn.log_softmax(denoise(xt, jnp.zeros((), xt.dtype)))
        return -jnp.sum(jnp.take_along_axis(log_probs, jnp.asarray(x0)[..., None], -1))

    def finish(self, key: core.Key, x: Any, denoiser: Denoiser, condition: Any) -> jax.Array:
        output = self.output(denoiser, x, jnp.zeros((), x.dtype), condition, x.shape[:-1])
        return core.random.categorical(key, output)

    def check_data(self, function: str, x0: Any) -> None:
        check_tokens(function, x0, self.vocabulary)


def discrete_bayesian_flow(
    vocabulary: int, accuracy: float = 3.0, inputs: str = "probabilities"
) -> DiscreteBayesianFlow:
    """The Bayesian flow of tokens: x_t is the logits of a categorical belief about each.

    Args:
      vocabulary: number of tokens; data are whole numbers below it.
      accuracy: of all observations together, beta(1); about 3 for two tokens, less for more.
      inputs: what a denoiser sees of the belief: "probabilities" or "logits" (normalised). Its output are logits
        (*sites, vocabulary) of the data.

    Raises:
      ValueError: if `vocabulary` is below 2, `accuracy` not positive, or `inputs` something else.

    >>> process = discrete_bayesian_flow(3)
    >>> process.corrupt(jax.random.key(0), jnp.array([0, 2]), 0.5).shape
    (2, 3)

    Source: Graves et al. (2023), equations 177, 182 and 205.
    """
    name = "diffusion.discrete_bayesian_flow"
    core.check_whole(name, least=2, vocabulary=vocabulary)
    core.check_positive(name, accuracy=accuracy)
    if inputs not in ("probabilities", "logits"):
        raise core.bad_value(name, "inputs", core.describe(inputs), "'probabilities' or 'logits'")
    return DiscreteBayesianFlow(int(vocabulary), float(accuracy), inputs)


@core.pytree
class DiscretizedBayesianFlow(NoisingProcess):
    """See `discretized_bayesian_flow`. x_t is the mean of the belief about the centre of each bin."""

    bins: int = core.static()
    smallest: float = core.static(default=0.02)

    def _share(self, t: Any) -> jax.Array:
        """beta / (1 + beta) at a time: the weight of the observations beside the prior."""
        return -jnp.expm1(2 * math.log(self.smallest) * (1 - core.as_float(t)))

    def centres(self, bins: Any, dtype: Any) -> jax.Array:
        """The middles of bins, between -1 and 1."""
        return (2 * jnp.asarray(bins).astype(dtype) + 1) / self.bins - 1

    def corrupt(self, key: core.Key, x0: Any, t: Any) -> jax.Array:
        check_time("corrupt", t)
        share = self._share(t)
        noise = core.random.normal(key, jnp.shape(x0), share.dtype)
        return share * self.centres(x0, share.dtype) + core.safe_sqrt(share * (1 - share)) * noise

    def sample_prior(self, key: core.Key, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        return jnp.zeros(shape, jnp.result_type(float) if dtype is None else dtype)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape, 2)

    def log_probs(self, output: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """Log probabilities of the bins, (*sites, bins), that an output says: of a normal law cut into bins."""
        share = self._share(t).astype(xt.dtype)
        noise, log_scale = output[..., 0], output[..., 1]
        # Next to time 1 nothing is known, and a standard normal law stands for what the noise says there.
        early = share < 1e-4
        safe = jnp.where(early, 0.5, share)
        spread = jnp.sqrt((1 - safe) / safe)
        mean = jnp.where(early, 0.0, xt / safe - spread * noise)
        scale = jnp.where(early, 1.0, spread * jnp.exp(log_scale))
        edges = jnp.linspace(-1, 1, self.bins + 1, dtype=xt.dtype)[1:-1]
        return _log_of_bins((edges.reshape(*[1] * mean.ndim, -1) - mean[..., None]) / scale[..., None])

    def expected(self, output: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """The expected centre of the bin of each site."""
        return jnp.dot(jnp.exp(self.log_probs(output, xt, t)), self.centres(jnp.arange(self.bins), xt.dtype))

    def target(self, x0: Any, xt: Any, t: Any) -> jax.Array:
        return self.centres(x0, xt.dtype)

    def weight(self, t: Any) -> jax.Array:
        return -math.log(self.smallest) / (1 - self._share(t))

    def loss(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        error = (self.target(x0, xt, t) - self.expected(output, xt, t)).astype(core.accumulator_dtype(xt.dtype))
        return self.weight(t).astype(error.dtype) * jnp.sum(error**2)

    def bound_rate(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        return self.loss(output, x0, xt, t)

    def _step(self, t: Any, s: Any) -> tuple[jax.Array, jax.Array]:
        """The accuracy of what is observed in a step, and that of the belief after it."""
        before, after = (1 / (1 - self._share(time)) for time in (t, s))
        return after - before, after

    def reverse_step(self, key: core.Key, xt: Any, output: Any, t: Any, s: Any) -> jax.Array:
        accuracy, after = (value.astype(xt.dtype) for value in self._step(t, s))
        bins = core.random.categorical(core.fold(key, 0), self.log_probs(output, xt, t))
        noise = core.random.normal(core.fold(key, 1), xt.shape, xt.dtype)
        # Times the accuracy, so that a step of none divides by nothing.
        seen = accuracy * self.centres(bins, xt.dtype) + core.safe_sqrt(accuracy) * noise
        return xt + (seen - accuracy * xt) / after

    def step_divergence(self, output: Any, x0: Any, xt: Any, t: Any, s: Any, key: core.Key | None = None) -> jax.Array:
        """An estimate from one observation and its mirror image, for there is no formula for a mixture."""
        key = _needed("step_divergence", key)
        scale = core.safe_sqrt(self._step(t, s)[0].astype(xt.dtype))
        noise = core.random.normal(key, xt.shape, xt.dtype)
        centres = self.centres(jnp.arange(self.bins), xt.dtype).reshape(*[1] * xt.ndim, -1)
        away = self.centres(x0, xt.dtype)[..., None] - centres
        log_probs = self.log_probs(output, xt, t)

        def divergence(noise: jax.Array) -> jax.Array:
            log_density = -0.5 * (noise[..., None] + scale * away) ** 2
            return jnp.sum(-0.5 * noise**2 - core.logsumexp(log_probs + log_density, -1))

        return 0.5 * (divergence(noise) + divergence(-noise))

    def bound_ends(self, x0: Any, key: core.Key | None = None, denoise: Any = None) -> jax.Array:
        key = _needed("bound_ends", key, denoise)
        xt = self.corrupt(key, x0, 0.0)
        log_probs = self.log_probs(denoise(xt, jnp.zeros((), xt.dtype)), xt, 0.0)
        return -jnp.sum(jnp.take_along_axis(log_probs, jnp.asarray(x0)[..., None], -1))

    def finish(self, key: core.Key, x: Any, denoiser: Denoiser, condition: Any) -> jax.Array:
        output = self.output(denoiser, x, jnp.zeros((), x.dtype), condition, x.shape)
        return core.random.categorical(key, self.log_probs(output, x, 0.0))

    def check_data(self, function: str, x0: Any) -> None:
        check_tokens(function, x0, self.bins)


def discretized_bayesian_flow(bins: int, smallest: float | None = None) -> DiscretizedBayesianFlow:
    """The Bayesian flow of numbers that are rounded to bins, such as pixels.

    Args:
      bins: number of equal parts of [-1, 1]; data are whole numbers below it.
      smallest: standard deviation of the belief at time 0; half the width of a bin, 1 / bins, by default. A denoiser's
        output is (*sites, 2): the noise, as of `bayesian_flow`, and the logarithm of the error's standard deviation
        over that of the noise.

    Raises:
      ValueError: if `bins` is below 2, or `smallest` not between 0 and 1.

    >>> process = discretized_bayesian_flow(16)
    >>> process.output_shape((8, 8))
    (8, 8, 2)

    Source: Graves et al. (2023), equations 105 to 113.
    """
    name = "diffusion.discretized_bayesian_flow"
    core.check_whole(name, least=2, bins=bins)
    return DiscretizedBayesianFlow(int(bins), _check_smallest(name, 1 / bins if smallest is None else smallest))


def _log_of_bins(z: jax.Array) -> jax.Array:
    """log(F(b) - F(a)) of the standard normal law for the bins between and beyond the edges z, from the nearer tail."""
    infinite = jnp.full((*z.shape[:-1], 1), jnp.inf, z.dtype)
    low, high = jnp.concatenate([-infinite, z], -1), jnp.concatenate([z, infinite], -1)
    # In the upper tail, by symmetry: F(b) - F(a) = F(-a) - F(-b), of small numbers rather than of numbers near 1.
    flip = low > 0
    a, b = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    log_b = jax.scipy.special.log_ndtr(b)
    safe_a = jnp.where(jnp.isneginf(a), -1.0, a)
    log_a = jnp.where(jnp.isneginf(a), -jnp.inf, jax.scipy.special.log_ndtr(safe_a))
    gap = jnp.where(jnp.isneginf(a), -1.0, jnp.minimum(log_a - log_b, -jnp.finfo(z.dtype).tiny))
    return jnp.where(jnp.isneginf(a), log_b, log_b + core.log1mexp(-gap))


def _needed(method: str, key: core.Key | None, *others: Any) -> core.Key:
    if key is None or any(other is None for other in others):
        raise core.bad_value(method, "key", None, "a key and a denoiser", "Bayesian flows estimate this from a draw")
    return key
