"""A learnt sampler of discrete positions that unmasks site after site in a random order.

A network tells the law of every masked site given those that are not; with the exact conditional laws of the target
all weights are equal. It is trained to match the target's law of paths.

Source: Zhu, Guo, Choi, Liu, Chen & Tao (2025), "MDNS: masked diffusion neural sampler via stochastic optimal control".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprob import core, scan
from jaxprob.distributions.flows import Perceptron
from jaxprob.inference.diffusion._neural_sampler import (
    NeuralSampler,
    WeightedDraws,
    check_scalar,
    drawing,
    flattened,
    log_variance,
    metrics_of,
)
from jaxprob.inference.vi._bounds import with_gradient_of
from jaxprob.inference.vi._control_variates import less_the_others
from jaxprob.models.latent._networks import check_network

LOSSES = ("denoising", "relative_entropy", "log_variance", "cross_entropy")


@dataclasses.dataclass(frozen=True)
class TokenNetwork:
    """A multilayer perceptron of all sites, each as an indicator of its value or of being masked.

    Attributes:
      sites: how many.
      vocabulary: values of a site.
      hidden: sizes of the hidden layers.
      activation: between layers.
    """

    sites: int
    vocabulary: int
    hidden: tuple[int, ...] = (256, 256, 256)
    activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu

    def init(self, key: core.Key, tokens: jax.Array) -> Perceptron:
        """Parameters with which every value of a site is as likely as another."""
        sizes = (self.sites * (self.vocabulary + 1), *self.hidden, self.sites * self.vocabulary)
        return Perceptron.init(key, sizes, activation=self.activation)

    def apply(self, variables: Perceptron, tokens: jax.Array) -> jax.Array:
        """Logits (sites, vocabulary) for tokens (sites,), of which `vocabulary` is the mask."""
        seen = jax.nn.one_hot(tokens, self.vocabulary + 1, dtype=core.result_dtype(variables))
        return variables(seen.ravel()).reshape(self.sites, self.vocabulary)


@dataclasses.dataclass(frozen=True)
class _Masked:
    """What is fixed of a sampler; hashable.

    Attributes:
      network: with `init` and `apply`.
      sites: how many.
      vocabulary: values of a site, and the token of the mask.
    """

    network: Any
    sites: int
    vocabulary: int

    def log_probs(self, params: Any, tokens: jax.Array) -> jax.Array:
        """Log probabilities (sites, vocabulary) given tokens (sites,)."""
        logits = core.as_float(self.network.apply(params, tokens))
        if logits.shape != (self.sites, self.vocabulary):
            expected = f"logits ({self.sites}, {self.vocabulary}) of every site"
            raise core.bad_value("masked_sampler", "the output of network", f"of shape {logits.shape}", expected)
        logits = logits.astype(core.accumulator_dtype(logits.dtype))
        return jax.nn.log_softmax(logits, axis=-1)

    def path(self, params: Any, key: core.Key) -> tuple[jax.Array, jax.Array]:
        """Tokens (sites,) and the log probability (), given the order, with which they were drawn."""
        order = core.random.permutation(core.fold(key, 0), self.sites)
        start = jnp.full((self.sites,), self.vocabulary, jnp.int32)

        def unmask(tokens: jax.Array, x: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            index, site = x
            log_probs = self.log_probs(params, tokens)[site]
            # Gumbel noise of low precision never draws what is rarer than 2^-23.
            value = core.random.categorical(core.fold(key, 1, index), jax.lax.stop_gradient(log_probs), mode="high")
            return tokens.at[site].set(value.astype(tokens.dtype)), log_probs[value]

        tokens, terms = scan.scan(unmask, start, (jnp.arange(self.sites), order))
        return tokens, jnp.sum(terms)

    def weighted_path(self, log_density: Any, params: Any, key: core.Key) -> tuple[jax.Array, jax.Array]:
        """Tokens (sites,) and their log weight ()."""
        tokens, log_q = self.path(params, key)
        return tokens, _minus(_value(log_density, tokens), log_q)

    def denoising(self, masks: int, params: Any, tokens: jax.Array, key: core.Key) -> jax.Array:
        """Cross entropy () of tokens that are masked at random `masks` times.

        The number of masked sites is uniform from 1 to all, and their mean loss is multiplied by all sites: the mean is
        minus the log probability of the tokens, over all orders. It is the mean over levels lambda of the 1 / lambda
        weighted loss, without the noise of how many sites a level masks.
        """
        # One number of masked sites from each of `masks` equal parts.
        noise = core.random.uniform(core.fold(key, 0), (masks,))
        level = (jnp.arange(masks).astype(noise.dtype) + noise) / masks
        number = 1 + jnp.minimum((level * self.sites).astype(jnp.int32), self.sites - 1)

        def once(index: jax.Array, number: jax.Array) -> jax.Array:
            masked = core.random.permutation(core.fold(key, 1, index), self.sites) < number
            log_probs = self.log_probs(params, jnp.where(masked, self.vocabulary, tokens))
            chosen = jnp.take_along_axis(log_probs, jnp.expand_dims(tokens, -1), axis=-1)[:, 0]
            return -jnp.sum(jnp.where(masked, chosen, 0)) * (self.sites / number.astype(chosen.dtype))

        return jnp.mean(jax.vmap(once)(jnp.arange(masks), number))


def _value(log_density: Any, tokens: jax.Array) -> jax.Array:
    value = core.as_float(log_density(tokens))
    return value.astype(core.accumulator_dtype(value.dtype))


def _minus(log_density: jax.Array, log_q: jax.Array) -> jax.Array:
    dtype = core.result_dtype(log_density, log_q)
    return log_density.astype(dtype) - log_q.astype(dtype)


def masked_sampler(
    log_density: Any,
    vocabulary: int,
    sites: int,
    *,
    network: Any = None,
    loss: str = "denoising",
    buffer: int = 256,
    every: int = 4,
    masks: int = 8,
    effective_sample_size: float = 0.9,
) -> NeuralSampler:
    r"""A sampler of vectors of integers that unmasks one site a step, in a uniformly random order.

    A draw x, with the order s in which its sites were unmasked, has the weight

    $$\log w = \log \gamma(x) - \sum_k \log q(x_{s_k} | x_{s_1}, ..., x_{s_{k-1}})$$

    whose exponential has the mean Z, the sum of gamma over all positions, whatever the network is (so long as it rules
    nothing out that is possible).

    The losses: "denoising" (WDCE) fits the network to draws that are weighted and masked at random, which need not be
    new: `sampler_training` keeps `buffer` of them for `every` steps. "cross_entropy" weighs the paths themselves.
    Weights that are far from equal are flattened first, so that training goes from one law to the next on the way to
    the target and no few draws lead it astray; once the weights are nearly equal they are taken as they are.
    "relative_entropy" is the reverse one, by the score with the mean of the other draws as baseline (REINFORCE), and
    "log_variance" the variance of log weights; these two tend to leave out modes that were not found.

    Args:
      log_density: `tokens (sites,) int32 -> scalar`, un-normalised, values from 0 to `vocabulary - 1`; or an object
        that has one. For an energy pass its negative. -inf for what is impossible.
      vocabulary: values of a site.
      sites: length of a position.
      network: with `init(key, tokens)` and `apply(params, tokens) -> logits (sites, vocabulary)`, such as a Flax Linen
        module; the token `vocabulary` is the mask. A perceptron of three hidden layers of 256 by default. Logits of
        -inf rule values out.
      loss: one of those above.
      buffer: draws for a loss.
      every: steps for which a draw is used, with "denoising".
      masks: times that a draw is masked in each step, with "denoising".
      effective_sample_size: share of the draws that flattened weights keep, in (0, 1). With a small one training goes
        faster, and modes may be lost on the way.

    Returns:
      a `NeuralSampler`; positions are int32.

    Raises:
      TypeError: if `log_density` is no function or `network` has no `init` and `apply`.
      ValueError: for another `loss`, numbers out of their range, a density that is no scalar, or a network of another
        output.

    >>> sampler = masked_sampler(lambda x: jnp.where(x[0] == x[1], 1.0, 0.0), 3, 2)
    >>> draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 1000)
    >>> draws.positions.shape, abs(float(draws.log_evidence - jnp.log(6 + 3 * jnp.e))) < 0.1
    ((1000, 2), True)

    Source: Zhu et al. (2025), losses RERF, LV, CE and WDCE; Shi, Han, Wang, Doucet & Titsias (2024) and Ou et
    al. (2025) for masked diffusion as models of any order.
    """
    name = "masked_sampler"
    core.check_whole(name, sites=sites, every=every, masks=masks)
    core.check_whole(name, least=2, vocabulary=vocabulary)
    if loss not in LOSSES:
        raise core.bad_value(name, "loss", core.describe(loss), f"one of {LOSSES}")
    core.check_whole(name, least=2, buffer=buffer)
    if not (core.is_number(effective_sample_size) and 0 < effective_sample_size < 1):
        raise core.bad_value(name, "effective_sample_size", effective_sample_size, "a share between 0 and 1")
    sites, vocabulary, buffer, every, masks = (int(number) for number in (sites, vocabulary, buffer, every, masks))
    target = _read(name, log_density, sites)
    network = TokenNetwork(sites, vocabulary) if network is None else network
    check_network(name, "network", network)
    fixed = _Masked(network, sites, vocabulary)
    reuse = loss == "denoising"
    return NeuralSampler(
        init=Partial(core.Bound(_init, fixed)),
        loss=Partial(core.Bound(_loss, fixed, loss, buffer, masks, float(effective_sample_size)), target),
        draw=drawing(name, core.Bound(_Masked.weighted_path, fixed), target),
        buffer=buffer if reuse else 0,
        every=every if reuse else 1,
    )


def _read(function: str, log_density: Any, sites: int) -> Any:
    """A log density over tokens (sites,) as a pytree.

    Raises:
      TypeError: if it is none.
      ValueError: if its value is no scalar.
    """
    found = getattr(log_density, "log_density", log_density)
    if not callable(found):
        raise core.bad_type(function, "log_density", log_density, "a function of tokens that returns a scalar")
    check_scalar(function, found, jax.ShapeDtypeStruct((sites,), jnp.int32))
    owner = getattr(found, "__self__", None)
    if owner is not None and not jax.tree_util.treedef_is_leaf(jax.tree.structure(owner)):
        return Partial(found.__func__, owner)  # the data of a posterior are arguments of compiled programs
    return core.as_partial(found)


def _init(fixed: _Masked, key: core.Key) -> Any:
    tokens = jnp.full((fixed.sites,), fixed.vocabulary, jnp.int32)
    params = fixed.network.init(core.as_key(key, "masked_sampler"), tokens)
    jax.eval_shape(fixed.log_probs, params, tokens)  # tells a network of another output
    return params


def _loss(
    fixed: _Masked,
    kind: str,
    number: int,
    masks: int,
    least: float,
    log_density: Any,
    params: Any,
    batch: Any,
    key: core.Key,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    if batch is not None and not (kind == "denoising" and isinstance(batch, WeightedDraws)):
        expected = "WeightedDraws or None" if kind == "denoising" else "None, as this loss draws its own"
        raise core.bad_value("masked_sampler.loss", "batch", core.describe(batch), expected)
    key = core.as_key(key, "masked_sampler.loss")
    keys = core.chain_keys(core.fold(key, 0), jnp.arange(number))
    if kind == "denoising":
        if batch is None:
            batch = WeightedDraws(*jax.vmap(lambda k: fixed.weighted_path(log_density, params, k))(keys))
        batch = jax.lax.stop_gradient(batch)
        again = core.chain_keys(core.fold(key, 1), jnp.arange(batch.log_weights.shape[0]))
        losses = jax.vmap(lambda tokens, k: fixed.denoising(masks, params, tokens, k))(batch.positions, again)
        value = _weighted(flattened(batch.log_weights, least), losses)
        return value, metrics_of(batch.log_weights)
    tokens, log_q = jax.vmap(lambda k: fixed.path(params, k))(keys)
    log_weights = _minus(jax.vmap(lambda x: _value(log_density, x))(tokens), log_q)
    if kind == "log_variance":
        value = log_variance(log_weights)
    elif kind == "cross_entropy":
        value = _weighted(flattened(log_weights, least), -log_q)
    else:
        surplus = less_the_others(jax.lax.stop_gradient(-log_weights))
        value = with_gradient_of(-jnp.mean(log_weights), jnp.mean(surplus * log_q.astype(surplus.dtype)))
    return value, metrics_of(log_weights)


def _weighted(weights: jax.Array, losses: jax.Array) -> jax.Array:
    """The weighted sum, of which a weight of zero takes no part even where the loss is infinite."""
    return jnp.sum(weights * jnp.where(weights > 0, losses.astype(weights.dtype), 0))
