"""Guidance: denoisers made of denoisers, so that any solver samples what they say.

Sources: Dhariwal & Nichol (2021), "Diffusion models beat GANs on image synthesis", for the gradient of a classifier; Ho
& Salimans (2022), "Classifier-free diffusion guidance"; Liu, Li, Du, Torralba & Tenenbaum (2022), "Compositional
visual generation with composable diffusion models", for sums of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxprob import core
from jaxprob.models.diffusion import Denoiser, Gaussian, NoisingProcess
from jaxprob.models.diffusion._process import check_process

LogProbability = Callable[[jax.Array, jax.Array, Any], jax.Array]


def guided(process: Gaussian, denoiser: Denoiser, log_probability: LogProbability, scale: Any = 1.0) -> Any:
    """A denoiser whose score has the gradient of a log probability added.

    With `log p(y | x_t)` it samples the posterior given y: a classifier of noised examples, or what `above` and
    `observed` make of the denoiser itself.

    Args:
      process: a Gaussian process.
      denoiser: `(x, t, condition) -> output`.
      log_probability: `(x, t, condition) -> scalar`, differentiable in x.
      scale: (), what the gradient is multiplied by.

    Returns:
      A denoiser, a pytree.

    Raises:
      TypeError: if the process is not Gaussian, or a function is none.

    >>> from jaxprob.models.diffusion import variance_preserving
    >>> process = variance_preserving(prediction="v")
    >>> standard = lambda x, t, condition: jnp.zeros_like(x)  # of standard normal data
    >>> tilted = guided(process, standard, lambda x, t, condition: jnp.sum(x))
    >>> tilted(jnp.zeros(2), 1.0, None).shape
    (2,)
    """
    name = "diffusion.guided"
    check_gaussian(name, process)
    for argument, function in (("denoiser", denoiser), ("log_probability", log_probability)):
        _check_callable(name, argument, function)
    return Partial(_guided, process, core.as_partial(denoiser), core.as_partial(log_probability), scale)


def _guided(process: Gaussian, denoiser: Any, log_probability: Any, scale: Any, x: Any, t: Any, condition: Any) -> Any:
    output = process.output(denoiser, x, t, condition, x.shape)
    gradient = jax.grad(lambda x: log_probability(x, t, condition))(x)
    return shifted(process, output, x, t, jnp.asarray(scale, x.dtype) * gradient)


def shifted(process: Gaussian, output: jax.Array, x: jax.Array, t: Any, gradient: jax.Array) -> jax.Array:
    """The output that says the score of another with a gradient with respect to x added."""
    sigma = process.scales(t)[1].astype(x.dtype)
    return process.from_noise(process.noise_of(output, x, t) - sigma * correlated(process, gradient), x, t)


def correlated(process: Gaussian, gradient: jax.Array) -> jax.Array:
    """The covariance of the noise times a vector, L L^T v."""
    transposed = jax.vjp(process.noise.shaped, gradient)[1](gradient)[0]
    return process.noise.shaped(transposed)


def classifier_free(denoiser: Denoiser, scale: Any, no_condition: Any = None) -> Any:
    """A denoiser that goes beyond its condition: `without + scale (with - without)`.

    For every process: outputs of Gaussian ones are scores in other units, and logits are log probabilities.

    Args:
      denoiser: `(x, t, condition) -> output`, trained with `drop_condition`.
      scale: (), 1 for the conditional denoiser as it is, 0 for the unconditional one.
      no_condition: the condition of one example that stands for none, as in training.

    Returns:
      A denoiser, a pytree.

    Raises:
      TypeError: if the denoiser is no function.

    >>> either = lambda x, t, condition: x * (0.0 if condition is None else condition)
    >>> float(classifier_free(either, 3.0)(jnp.float32(1.0), 0.5, jnp.float32(2.0)))
    6.0
    """
    _check_callable("diffusion.classifier_free", "denoiser", denoiser)
    return Partial(_classifier_free, core.as_partial(denoiser), scale, no_condition)


def _classifier_free(denoiser: Any, scale: Any, no_condition: Any, x: Any, t: Any, condition: Any) -> jax.Array:
    without, given = denoiser(x, t, no_condition), denoiser(x, t, condition)
    return without + jnp.asarray(scale, without.dtype) * (given - without)


def composed(
    process: NoisingProcess, denoisers: Sequence[Denoiser], weights: Any = None, base: Denoiser | None = None
) -> Any:
    """A denoiser of a product of densities: `p_0 prod_i (p_i / p_0)^w_i`, by the sum of scores.

    At time 0 this is exact; before, the noised product is not the product of the noised, and samples are biased where
    the densities disagree.

    Args:
      process: a noising process; of one that is not Gaussian outputs are logits, which are added.
      denoisers: one or more, `(x, t, condition) -> output`.
      weights: (denoiser,), 1 each by default.
      base: denoiser of p_0; None for `prod_i p_i^w_i`.

    Returns:
      A denoiser, a pytree.

    Raises:
      TypeError: if the process or a denoiser is none.
      ValueError: if there are none, or another number of weights.
    """
    name = "diffusion.composed"
    check_process(name, process)
    if not isinstance(denoisers, (tuple, list)) or not denoisers:
        raise core.bad_value(name, "denoisers", core.describe(denoisers), "a list of one denoiser or more")
    parts = (*denoisers, base) if base is not None else tuple(denoisers)
    for part in parts:
        _check_callable(name, "denoisers", part)
    weights = jnp.ones(len(denoisers)) if weights is None else core.as_float(weights)
    if weights.shape != (len(denoisers),):
        raise core.bad_value(name, "weights", weights, f"({len(denoisers)},), one for each denoiser")
    return Partial(_composed, process, tuple(map(core.as_partial, parts)), weights)


def _composed(process: Any, denoisers: Any, weights: jax.Array, x: Any, t: Any, condition: Any) -> jax.Array:
    outputs = [denoiser(x, t, condition) for denoiser in denoisers]
    is_gaussian = isinstance(process, Gaussian)
    if is_gaussian:
        outputs = [process.noise_of(output, x, t) for output in outputs]
    weights = weights.astype(outputs[0].dtype)
    base = outputs[-1] if len(outputs) > len(weights) else jnp.zeros_like(outputs[0])
    total = base + sum(weights[i] * (outputs[i] - base) for i in range(len(weights)))
    return process.from_noise(total, x, t) if is_gaussian else total


def check_gaussian(function: str, process: Any) -> None:
    """Raises a `TypeError` unless the process is Gaussian."""
    if not isinstance(process, Gaussian):
        raise core.bad_type(function, "process", core.describe(process), "a Gaussian process")


def _check_callable(function: str, argument: str, value: Any) -> None:
    if not callable(value):
        raise core.bad_type(function, argument, core.describe(value), "a function (x, t, condition)")
