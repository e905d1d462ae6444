"""Controlled Monte Carlo diffusion: annealed Langevin dynamics with a learnt drift, and its reverse.

Source: Vargas, Padhy, Blessing & Nüsken (2024), "Transport meets variational inference: controlled Monte Carlo
diffusions".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.diffusion._neural_sampler import NeuralSampler
from jaxprob.inference.diffusion._sampler_paths import clipped, control, log_normal, of_paths

_NAME = "controlled_monte_carlo"


def controlled_monte_carlo(
    target: Any,
    *,
    initial: Any = None,
    scale: float = 1.0,
    steps: int = 32,
    step_size: float = 0.01,
    network: Any = None,
    loss: str = "reverse_kl",
    paths: int = 64,
) -> NeuralSampler:
    r"""A sampler by annealed Langevin dynamics, whose lag behind the annealed laws a learnt drift makes up for.

    Laws pi_k, in proportion to N(center, scale^2 I)^(1 - b_k) gamma^(b_k), lead from noise to the target. In
    coordinates z = (x - center) / scale, the kernels forward and backward are

    $$F_k = N(z_{k+1}; z_k + h (\nabla \log \pi_k + u_k)(z_k), 2 h), \quad
    B_k = N(z_k; z_{k+1} + h (\nabla \log \pi_{k+1} - u_{k+1})(z_{k+1}), 2 h)$$

    $$z_0 \sim N(0, I), \quad \log w = \log \gamma(z_N) - \log N(z_0; 0, I) + \sum_k (\log B_k - \log F_k)$$

    The weights are exact for these steps, however few: the mean of w is the normalising constant. Without a drift u it
    is annealed importance sampling by unadjusted Langevin dynamics. With "reverse_kl" the temperatures b_k, the step
    size h, center and scale are learnt too.

    Args:
      target: a posterior, or a `position -> scalar` log density on unconstrained positions.
      initial: a position at the centre of the noise, or a function `key -> position` that `init` calls once; by
        default the posterior's own.
      scale: standard deviation of the noise at first.
      steps: of a path.
      step_size: h at first, in units of scale^2; below the smallest variance of the target in any direction.
      network: of the drift u, as for `path_integral_sampler`, with times in [0, 1] and the gradient of log pi_k.
      loss: "reverse_kl" or "log_variance", as for `path_integral_sampler`.
      paths: of a loss, 2 or more.

    Returns:
      a `NeuralSampler`, whose parameters are "center", "log_scale", "log_step_size", "annealing" (the logits of the
      increments of b) and "network". Positions are pytrees like `initial`.

    Raises:
      TypeError: if `target` has no log density or `network` no `init` and `apply`.
      ValueError: for another `loss`, numbers out of their range, a density that is no scalar, a network of another
        output, or no `initial` where one is needed.

    >>> sampler = controlled_monte_carlo(lambda x: -0.5 * (x - 1) ** 2, initial=jnp.zeros(()), steps=8)
    >>> draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 1000)
    >>> abs(float(draws.log_evidence) - 0.919) < 0.2
    True

    Source: Vargas et al. (2024), where controlled Monte Carlo diffusions are discretised; Thin et al. (2021), "Monte
    Carlo variational auto-encoders", for the dynamics without a drift.
    """
    core.check_whole(_NAME, steps=steps)
    core.check_positive(_NAME, step_size=step_size)
    extra = {"log_step_size": math.log(step_size), "annealing": (0.0,) * int(steps)}
    path = core.Bound(_path, int(steps))
    return of_paths(_NAME, target, initial, scale, network, loss, paths, path, loss == "reverse_kl", extra)


def _path(
    steps: int,
    network: Any,
    fixed: bool,
    density: Callable[[jax.Array], jax.Array],
    params: Any,
    key: core.Key,
) -> tuple[jax.Array, jax.Array]:
    """The end of a path, and its log weight; arguments as of `controlled_reference`."""
    center = params["center"]
    log_size, annealing = params["log_step_size"], params["annealing"]
    if fixed:
        log_size, annealing = jax.lax.stop_gradient((log_size, annealing))
    size = jnp.exp(log_size)
    spread = jnp.sqrt(2 * size)
    # The last is 1 but for rounding, which no weight depends on.
    betas = jnp.cumsum(jax.nn.softmax(annealing))

    def drifts(z: jax.Array, index: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The log density at z, the gradient of the annealed one, and the learnt drift."""
        value, gradient = jax.value_and_grad(density)(z)
        gradient = beta * clipped(gradient) - (1 - beta) * z
        time = index.astype(z.dtype) / steps
        return value, gradient, control(_NAME, network, params["network"], z, time, gradient)

    def step(carry: Any, x: Any) -> tuple[Any, None]:
        z, _, gradient, drift, log_weight = carry
        index, beta = x
        mean = z + size * (gradient + drift)
        noise = core.random.normal(core.fold(key, 1, index), z.shape, z.dtype)
        after = mean + spread * noise
        if fixed:
            # The noise that leads to the same place when the kernel changes.
            after = jax.lax.stop_gradient(after)
            noise = noise + (jax.lax.stop_gradient(mean) - mean) / spread
        value, gradient, drift = drifts(after, index + 1, beta)
        back = (z - after - size * (gradient - drift)) / spread
        log_weight = log_weight + 0.5 * jnp.sum(noise**2) - 0.5 * jnp.sum(back**2)
        return (after, value, gradient, drift, log_weight), None

    start = core.random.normal(core.fold(key, 0), center.shape, center.dtype)
    first = start, *drifts(start, jnp.int32(0), jnp.zeros((), center.dtype)), -log_normal(start)
    (z, value, _, _, log_weight), _ = scan.scan(step, first, (jnp.arange(steps), betas))
    return z, value + log_weight
