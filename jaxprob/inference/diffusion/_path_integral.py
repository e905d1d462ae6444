"""Path-integral sampler: a Brownian motion from one point, with a learnt drift that brings it to the target.

Source: Zhang & Chen (2022), "Path integral sampler: a stochastic control approach for sampling".
"""

from __future__ import annotations

import math
from typing import Any

from jaxprob import core
from jaxprob.inference.diffusion._neural_sampler import NeuralSampler
from jaxprob.inference.diffusion._sampler_paths import controlled_reference, of_paths


def path_integral_sampler(
    target: Any,
    *,
    initial: Any = None,
    scale: float = 1.0,
    steps: int = 32,
    network: Any = None,
    loss: str = "reverse_kl",
    paths: int = 64,
) -> NeuralSampler:
    r"""A sampler by a controlled Brownian motion that starts at `initial`.

    Without control the motion ends in N(initial, scale^2 I); the control u(z, t) makes it end in the target. In
    coordinates z = (x - initial) / scale, with h = 1 / steps,

    $$z_{k+1} = z_k + h u_k + \sqrt{h} e_k, \quad
    \log w = \log \gamma(z_N) - \log N(z_N; 0, I) - \sum_k (\sqrt{h} u_k \cdot e_k + h |u_k|^2 / 2)$$

    The weights are exact for these steps, however few: the mean of w is the normalising constant.

    Args:
      target: a posterior, or a `position -> scalar` log density on unconstrained positions.
      initial: a position where paths start, or a function `key -> position` that `init` calls once; by default the
        posterior's own.
      scale: standard deviation of the end without control, at least that of the target around `initial`.
      steps: of a path.
      network: of the control, with `init(key, z, time, gradient)` and `apply(params, z, time, gradient) -> (size,)` for
        vectors (size,) and a time in [0, 1), such as a Flax Linen module; `gradient` is that of the log ratio of the
        target to N(0, I), with a norm of at most 100. By default a perceptron, plus the gradient times a function of
        time; zero at first.
      loss: "reverse_kl", minus the mean log weight, differentiated through the paths; or "log_variance", the variance
        of log weights of paths that are held fixed, which is zero where the control is exact, whatever the paths.
      paths: of a loss, 2 or more.

    Returns:
      a `NeuralSampler`, whose parameters are "center", "log_scale" (neither is trained) and "network". Positions are
      pytrees like `initial`.

    Raises:
      TypeError: if `target` has no log density or `network` no `init` and `apply`.
      ValueError: for another `loss`, numbers out of their range, a density that is no scalar, a network of another
        output, or no `initial` where one is needed.

    >>> sampler = path_integral_sampler(lambda x: -0.5 * (x - 1) ** 2, initial=jnp.zeros(()), steps=8)
    >>> draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 1000)
    >>> abs(float(draws.log_evidence) - 0.919) < 0.2
    True

    Source: Zhang & Chen (2022), training and importance weights; Richter & Berner (2024) for "log_variance".
    """
    name = "path_integral_sampler"
    core.check_whole(name, steps=steps)
    width = math.sqrt(1 / steps)
    rates = ((1.0, width, width),) * int(steps)
    path = core.Bound(controlled_reference, rates, False, name)
    return of_paths(name, target, initial, scale, network, loss, paths, path, False, {})
