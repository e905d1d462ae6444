"""Solvers for tokens: leaps by rates, decoding by confidence, and masks put back.

`ancestral` is for tokens too; here is what other samplers there are. None of them needs more than the denoiser's
logits, one evaluation a step.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.inference.diffusion._solver import Solver, Step
from jaxprob.models.diffusion._masked import Masked, RoutedProcess
from jaxprob.models.diffusion._tokens import chosen
from jaxprob.models.diffusion._uniform import Uniform

SCHEDULES = ("cosine", "linear")
RULES = ("rescale", "cap")


def tau_leaping(steps: int = 100) -> Solver:
    """Jumps at the rates of the start of a step: for masked and uniform diffusion.

    In a step each token jumps at most once, with probability `1 - exp(-rate (t - s))`; the last step is the process's
    own, so that no noise is left. The law is that of the reverse process up to terms of order 1 / steps.

    Args:
      steps: how many.

    Raises:
      ValueError: if `steps` is no whole number.

    >>> tau_leaping(10).steps
    10

    Source: Campbell, Benton, De Bortoli, Rainforth, Deligiannidis & Doucet (2022), "A continuous time framework for
    discrete denoising models", section 4.3, where a token that jumps twice is turned down.
    """
    return Solver("diffusion.tau_leaping", steps, core.Bound(_leap), kind=(Masked, Uniform))


def _leap(process: Any, step: Step) -> tuple[Any, Any]:
    output = step.denoise(step.x, step.t)
    rates = process.reverse_rates(output, step.x, step.t)
    leaves = -jnp.expm1(-(step.t - step.s).astype(rates.dtype) * jnp.sum(rates, -1))
    jumps = core.random.uniform(core.fold(step.key, 0), leaves.shape, leaves.dtype) < leaves
    drawn = core.random.categorical(core.fold(step.key, 1), core.safe_log(rates), mode="high").astype(step.x.dtype)
    last = process.reverse_step(core.fold(step.key, 2), step.x, output, step.t, step.s)
    return jnp.where(step.s > 0, jnp.where(jumps, drawn, step.x), last), step.memory


def top_k(
    steps: int = 10,
    schedule: str = "cosine",
    temperature: float = 1.0,
    confidence_noise: float = 0.0,
    revise: bool = False,
) -> Solver:
    """Decoding by confidence: in each step the tokens that the denoiser is surest of become data.

    A token is drawn for each noisy place; its log probability is its confidence; the best k of all places of an example
    are kept, and k is such that after a share r of the steps `cos(pi r / 2)` or `1 - r` of the tokens are noise still.
    It is for masked and reparameterised diffusion. The law is not that of the model: confident tokens come first, and
    likely examples are too frequent.

    The denoiser is given the time at which the process has as much noise as there is. Tokens that are data at the start
    remain so.

    Args:
      steps: how many; at least one token becomes data in each.
      schedule: "cosine" or "linear".
      temperature: the logits are divided by it before tokens are drawn; 0 takes the likeliest.
      confidence_noise: scale of Gumbel noise that is added to confidences, at time 1; it falls evenly to none. Large
        values take places at random.
      revise: whether tokens that have become data compete in later steps too, with the probability that the denoiser
        gives them then, and may turn into noise again. A denoiser must then say something of clean places, of which the
        loss asks nothing; networks that see tokens without flags mostly do.

    Raises:
      ValueError: if `steps` is no whole number, a number is negative, or for an unknown schedule.

    >>> top_k(8, schedule="linear").steps
    8

    Source: Chang, Zhang, Jiang, Liu & Freeman (2022), "MaskGIT: masked generative image transformer", section 3.2;
    Zheng, Yuan, Yu & Kong (2023), "A reparameterized discrete diffusion model for text generation", section 4.3, for
    the revision.
    """
    name = "diffusion.top_k"
    if schedule not in SCHEDULES:
        raise core.bad_value(name, "schedule", core.describe(schedule), f"one of {SCHEDULES}")
    for argument, value in (("temperature", temperature), ("confidence_noise", confidence_noise)):
        if not core.is_number(value) or not 0 <= value < math.inf:
            raise core.bad_value(name, argument, core.describe(value), "a number of at least 0")
    advance = core.Bound(_reveal, steps, schedule, float(temperature), float(confidence_noise), bool(revise))
    return Solver(name, steps, advance, remember=core.Bound(_noisy_at_first), kind=RoutedProcess)


def _noisy_at_first(process: RoutedProcess, x: Any, shape: tuple[int, ...]) -> jax.Array:
    return process.noisy(x)


def _reveal(
    steps: int,
    schedule: str,
    temperature: float,
    confidence_noise: float,
    revise: bool,
    process: RoutedProcess,
    step: Step,
) -> tuple[Any, Any]:
    noisy, tokens, at_first = process.noisy(step.x), process.tokens(step.x), step.memory
    count = jnp.sum(noisy, dtype=jnp.int32)
    t = process.schedule.inverse(count.astype(step.t.dtype) / max(noisy.size, 1))
    log_probs = process.log_prior(step.denoise(step.x, t))
    if temperature:
        drawn = core.random.categorical(core.fold(step.key, 0), log_probs / temperature, mode="high")
    else:
        drawn = jnp.argmax(log_probs, -1)
    drawn = jnp.where(noisy, drawn.astype(tokens.dtype), tokens)
    confidence = chosen(log_probs, drawn)
    done = (step.taken + 1).astype(step.t.dtype) / steps
    if confidence_noise:
        gumbel = core.random.gumbel(core.fold(step.key, 1), confidence.shape, confidence.dtype, mode="high")
        confidence = confidence + confidence_noise * (1 - done).astype(confidence.dtype) * gumbel
    share = jnp.cos(0.5 * math.pi * done) if schedule == "cosine" else 1 - done
    # What should be whole may be rounded to just below.
    left = jnp.floor(jnp.sum(at_first).astype(share.dtype) * share + 1e-3).astype(jnp.int32)
    left = jnp.where(step.taken + 1 >= steps, 0, jnp.minimum(left, count - 1))
    # By rank, so that ties and confidences that are NaN leave the right number; those that do not compete come last.
    competes = at_first if revise else noisy
    order = jnp.lexsort((-confidence.ravel(), ~competes.ravel()))
    rank = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    loses = competes & (rank >= jnp.sum(competes) - left).reshape(noisy.shape)
    tokens = jnp.where(loses, tokens, drawn)
    tokens = process.renoised(core.fold(step.key, 2), tokens, loses & ~noisy)
    return process.assemble(tokens, loses), at_first


def remasking(steps: int = 100, strength: float = 0.2, rule: str = "rescale") -> Solver:
    """Reverse transitions that put some noise back, so that early tokens can be mended.

    It is for masked and reparameterised diffusion. In a step each clean token turns into noise with a probability
    sigma, and noisy ones become data so much more often that given x_0 the law at each time is that of the process:
    where the denoiser is exact, so is the sampler in the limit of many steps, for every strength.

    Args:
      steps: how many.
      strength: from 0 (then this is `ancestral`) to 1.
      rule: sigma is `strength` times the largest possible probability, (1 - alpha(s)) / alpha(t) or 1, for "rescale";
        or the smaller of the two, for "cap".

    Raises:
      ValueError: if `steps` is no whole number, `strength` is not from 0 to 1, or for an unknown rule.

    >>> remasking(10, 0.5).steps
    10

    Source: Wang, Schiff, Sahoo & Kuleshov (2025), "Remasking discrete diffusion models with inference-time scaling",
    sections 3 and 4.1.
    """
    name = "diffusion.remasking"
    if not core.is_number(strength) or not 0 <= strength <= 1:
        raise core.bad_value(name, "strength", core.describe(strength), "a number from 0 to 1")
    if rule not in RULES:
        raise core.bad_value(name, "rule", core.describe(rule), f"one of {RULES}")
    return Solver(name, steps, core.Bound(_remask, float(strength), rule), kind=RoutedProcess)


def _remask(strength: float, rule: str, process: RoutedProcess, step: Step) -> tuple[Any, Any]:
    output = core.as_float(step.denoise(step.x, step.t))
    noisy, tokens = process.noisy(step.x), process.tokens(step.x)
    alpha, noise, target = process.schedule(step.t), process.schedule.noise(step.t), process.schedule.noise(step.s)
    most = target / jnp.maximum(alpha, target)
    sigma = strength * most if rule == "rescale" else jnp.minimum(strength, most)
    # The share of noise at s is that of noisy tokens that stay and of clean ones that turn.
    stay, turn = (core.random.uniform(core.fold(step.key, i), noisy.shape, noise.dtype) for i in (0, 1))
    stays, turns = noisy & (stay * noise < target - sigma * alpha), ~noisy & (turn < sigma)
    drawn = core.random.categorical(core.fold(step.key, 2), output, mode="high").astype(tokens.dtype)
    tokens = process.renoised(core.fold(step.key, 3), jnp.where(noisy & ~stays, drawn, tokens), turns)
    return process.assemble(tokens, stays | turns), step.memory
