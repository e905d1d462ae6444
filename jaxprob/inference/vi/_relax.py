"""Gradients of expectations over categories by the score, with a differentiable control variate: REBAR and RELAX.

Draws come from perturbed logits z, whose largest is the category b. A control c of z has a gradient by its path, and
the score's estimate is left with f(b) - c(z~), where z~ has the law of z given b.

Source: Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein (2017), "REBAR"; Grathwohl, Choi, Wu, Roeder & Duvenaud (2018),
"Backpropagation through the void", equations 8 and 10 and algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxprob import core


class Perturbed(NamedTuple):
    """A draw of categories, and what is needed to move it with the logits.

    Attributes:
      one_hot: (*shape, k).
      largest: (*shape), Gumbel noise of the largest perturbed logit.
      log_waits: (*shape, k), logarithms of exponential noise, of the others.
    """

    one_hot: jax.Array
    largest: jax.Array
    log_waits: jax.Array


def perturb(key: core.Key, logits: jax.Array) -> Perturbed:
    """Draws categories (*shape) and noise."""
    size, dtype = logits.shape, logits.dtype
    category = core.random.categorical(core.fold(key, 0), logits, mode="high")
    largest = core.random.gumbel(core.fold(key, 1), size[:-1], dtype, mode="high")
    log_waits = -core.random.gumbel(core.fold(key, 2), size, dtype, mode="high")
    return Perturbed(jax.nn.one_hot(category, size[-1], dtype=dtype), largest, log_waits)


def conditional_logits(drawn: Perturbed, logits: jax.Array) -> jax.Array:
    """Perturbed logits (*shape, k) given the categories: the largest, and others that are cut off at it."""
    top = jnp.expand_dims(core.logsumexp(logits, axis=-1) + drawn.largest, -1)
    others = -core.logaddexp(drawn.log_waits - logits, -top)
    return jnp.where(drawn.one_hot == 1, top, others)


def relaxed_gradient(
    drawn: Perturbed, value: jax.Array, control: Callable[[jax.Array], jax.Array], logits: jax.Array
) -> jax.Array:
    """The estimate (*shape, k) of the gradient with respect to the logits, differentiable in the control's parameters.

    z and z~ share their noise, so that they are equal, and their controls cancel but for what moves them: z moves with
    the logits one to one, z~ as the conditional law does.

    Args:
      drawn: from `perturb`.
      value: (), f at the categories.
      control: perturbed logits (*shape, k) to a scalar.
      logits: (*shape, k).
    """
    value, logits = lax.stop_gradient((value, logits))
    perturbed, pull = jax.vjp(lambda logits: conditional_logits(drawn, logits), logits)
    level, slope = jax.value_and_grad(control)(perturbed)
    score = drawn.one_hot - jax.nn.softmax(logits, axis=-1)
    return (value.astype(level.dtype) - level).astype(score.dtype) * score + slope - pull(slope)[0]
