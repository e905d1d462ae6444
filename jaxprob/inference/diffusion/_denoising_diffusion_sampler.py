"""Denoising diffusion sampler: a stationary Ornstein-Uhlenbeck process with a learnt drift that ends in the target.

Source: Vargas, Grathwohl & Doucet (2023), "Denoising diffusion samplers".
"""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxprob import core
from jaxprob.inference.diffusion._neural_sampler import NeuralSampler
from jaxprob.inference.diffusion._sampler_paths import controlled_reference, of_paths


def denoising_diffusion_sampler(
    target: Any,
    *,
    initial: Any = None,
    scale: float = 1.0,
    steps: int = 32,
    horizon: float = 4.0,
    last: float = 1e-3,
    network: Any = None,
    loss: str = "reverse_kl",
    paths: int = 64,
) -> NeuralSampler:
    r"""A sampler by the reverse of a process that turns the target into noise.

    The reference is an Ornstein-Uhlenbeck process in its stationary law N(initial, scale^2 I), stepped exactly; the
    control u(z, t) is that of the exponential integrator. In coordinates z = (x - initial) / scale, with the signal
    that is left by a step, a_k = exp(-r_k), and s_k^2 = 1 - a_k^2,

    $$z_0 \sim N(0, I), \quad z_{k+1} = a_k z_k + 2 (1 - a_k) u_k + s_k e_k, \quad
    \log w = \log \gamma(z_N) - \log N(z_N; 0, I) - \sum_k (c_k u_k \cdot e_k + |c_k u_k|^2 / 2)$$

    with c_k = 2 (1 - a_k) / s_k. The weights are exact for these steps, however few: the mean of w is the normalising
    constant. The time that is left after a step falls by equal ratios, so that steps are the shorter the nearer the
    target is.

    Args:
      target: a posterior, or a `position -> scalar` log density on unconstrained positions.
      initial: a position at the centre of the noise, or a function `key -> position` that `init` calls once; by
        default the posterior's own.
      scale: standard deviation of the noise, at least that of the target around `initial`.
      steps: of a path.
      horizon: sum of the r_k; the start and the end of the reference have a correlation of exp(-horizon).
      last: r_k of the last step, whose noise has a variance of about 2 r_k scale^2: less than the smallest variance of
        the target.
      network: of the control, as for `path_integral_sampler`.
      loss: "reverse_kl" or "log_variance", as for `path_integral_sampler`.
      paths: of a loss, 2 or more.

    Returns:
      a `NeuralSampler`, whose parameters are "center", "log_scale" (neither is trained) and "network". Positions are
      pytrees like `initial`.

    Raises:
      TypeError: if `target` has no log density or `network` no `init` and `apply`.
      ValueError: for another `loss`, numbers out of their range, a density that is no scalar, a network of another
        output, or no `initial` where one is needed.

    >>> sampler = denoising_diffusion_sampler(lambda x: -0.5 * (x - 1) ** 2, initial=jnp.zeros(()), steps=8)
    >>> draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 1000)
    >>> abs(float(draws.log_evidence) - 0.919) < 0.2
    True

    Source: Vargas, Grathwohl & Doucet (2023), the exponential integrator; their steps fall along a squared cosine.
    """
    name = "denoising_diffusion_sampler"
    core.check_whole(name, steps=steps)
    core.check_positive(name, horizon=horizon, last=last)
    if steps > 1 and last >= horizon:
        raise core.bad_value(name, "last", last, f"less than horizon, {horizon}")
    left = np.append(np.geomspace(horizon, last, int(steps)), 0.0)
    times = left[:-1] - left[1:]
    noises = np.sqrt(-np.expm1(-2 * times))
    columns = np.exp(-times), noises, -2 * np.expm1(-times) / noises
    rates = tuple((float(a), float(s), float(c)) for a, s, c in zip(*columns, strict=True))
    path = core.Bound(controlled_reference, rates, True, name)
    return of_paths(name, target, initial, scale, network, loss, paths, path, False, {})
