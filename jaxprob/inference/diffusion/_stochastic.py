"""Samplers that add noise on the way: the reverse stochastic differential equation and Langevin dynamics.

Sources: Song, Sohl-Dickstein, Kingma, Kumar, Ermon & Poole (2021), "Score-based generative modeling through stochastic
differential equations"; Song & Ermon (2019), "Generative modeling by estimating gradients of the data distribution";
Lu, Zhou, Bao, Chen, Li & Zhu (2022), "DPM-Solver++".
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from jaxprob import core, scan
from jaxprob.inference.diffusion._dpm_solver import Memory, extrapolate, remember
from jaxprob.inference.diffusion._solver import Solver, Step
from jaxprob.models.diffusion import Gaussian


def euler_maruyama(steps: int = 200, grid: str = "log_ratio") -> Solver:
    """The reverse stochastic differential equation by the method of Euler and Maruyama, of weak order one.

    Its variable is the log signal-to-noise ratio, whatever the schedule: `dx = (alpha' E[x_0] + (sigma' - sigma / 2)
    E[noise]) dl + sigma dw`. A step of 4 or more in l is unstable, which grids even in time have next to the ends.

    Args:
      steps: how many; one evaluation of the denoiser each.
      grid: of times; see `Solver`.

    Raises:
      ValueError: if `steps` is no whole number, or for an unknown grid.

    >>> euler_maruyama(100).steps
    100

    Source: Song et al. (2021), equation 6.
    """
    return Solver("diffusion.euler_maruyama", steps, core.Bound(_euler_maruyama), grid=grid, kind=Gaussian)


def _euler_maruyama(process: Any, step: Step) -> tuple[Any, Any]:
    x, t = step.x, step.t
    output = step.denoise(x, t)
    slope = process.schedule.slope(t)
    length = process.log_ratio(step.s) - process.log_ratio(t)
    sigma = process.scales(t)[1]
    drift = process.velocity(output, x, t) * (length / slope).astype(x.dtype)
    drift = drift - (0.5 * sigma * length).astype(x.dtype) * process.noise_of(output, x, t)
    noise = process.noise.draw(step.key, x.shape, x.dtype)
    return x + drift + (sigma * jnp.sqrt(length)).astype(x.dtype) * noise, step.memory


def sde_dpm_solver(steps: int = 50, order: int = 2, grid: str = "log_ratio") -> Solver:
    """SDE-DPM-Solver++: the reverse stochastic differential equation by an exponential integrator.

    It is exact where the expectation of x_0 does not change (order 1, which is `ancestral`) or changes evenly in the
    log signal-to-noise ratio (order 2).

    Args:
      steps: how many; one evaluation of the denoiser each.
      order: 1 or 2.
      grid: of times; see `Solver`.

    Raises:
      ValueError: if `steps` is no whole number, or for an unknown order or grid.

    >>> sde_dpm_solver(20).evaluations
    1

    Source: Lu et al. (2022), equation 18 and appendix B: SDE-DPM-Solver++(2M).
    """
    name = "diffusion.sde_dpm_solver"
    if order not in (1, 2):
        raise core.bad_value(name, "order", core.describe(order), "1 or 2")
    return Solver(name, steps, core.Bound(_sde_dpm, order), core.Bound(remember), grid=grid, kind=Gaussian)


def _sde_dpm(order: int, process: Any, step: Step) -> tuple[Any, Memory]:
    clean, first, _, h, memory = extrapolate(order, process, step)
    _, before = process._scales_as(step.x, step.t)
    alpha, sigma = process._scales_as(step.x, step.s)
    gained = -jnp.expm1(-2 * h)
    mean = sigma / before * jnp.exp(-h) * step.x + alpha * gained * (clean + 0.5 * first)
    noise = process.noise.draw(step.key, step.x.shape, step.x.dtype)
    return mean + sigma * jnp.sqrt(gained) * noise, memory


def predictor_corrector(
    steps: int = 100, corrections: int = 1, signal_to_noise: float = 0.16, grid: str = "time"
) -> Solver:
    """Reverse transitions, each followed by steps of Langevin dynamics that mend the law at its time.

    A correction goes along the score by `2 (signal_to_noise sigma)^2`. Song et al. divide by the norm of the score of a
    batch instead of `1 / sigma`, which is its size for noise: of one example, that norm may be zero, and a step that
    depends on the draw has another law.

    Args:
      steps: how many predictions; `1 + corrections` evaluations of the denoiser each.
      corrections: steps of Langevin dynamics after each.
      signal_to_noise: r of the paper: how long these are.
      grid: of times; see `Solver`.

    Raises:
      ValueError: if a number is not whole or not positive, or for an unknown grid.

    >>> predictor_corrector(100, corrections=2).evaluations
    3

    Source: Song et al. (2021), algorithms 4 and 5.
    """
    name = "diffusion.predictor_corrector"
    core.check_whole(name, corrections=corrections)
    core.check_positive(name, signal_to_noise=signal_to_noise)
    advance = core.Bound(_predict_and_correct, int(corrections), 2 * float(signal_to_noise) ** 2)
    return Solver(name, steps, advance, evaluations=1 + corrections, grid=grid, kind=Gaussian)


def _predict_and_correct(corrections: int, step_size: float, process: Any, step: Step) -> tuple[Any, Any]:
    output = step.denoise(step.x, step.t)
    x = process.reverse_step(core.fold(step.key, 0), step.x, output, step.t, step.s)
    return _langevin(corrections, step_size, process, step._replace(key=core.fold(step.key, 1), x=x)), step.memory


def _langevin(corrections: int, step_size: float, process: Any, step: Step) -> Any:
    """x after steps of Langevin dynamics at time s, of a length in units of the variance of its noise."""
    sigma = process._scales_as(step.x, step.s)[1]

    def correct(x: Any, index: Any) -> Any:
        noise = process.noise.draw(core.fold(step.key, index), x.shape, x.dtype)
        # The score, with the covariance of the noise as metric, is minus the expected noise over sigma.
        expected = process.noise_of(step.denoise(x, step.s), x, step.s)
        return x + sigma * (jnp.sqrt(2 * step_size) * noise - step_size * expected)

    return scan.repeat(correct, step.x, corrections)


def annealed_langevin(levels: int = 100, corrections: int = 10, step_size: float = 0.1) -> Solver:
    """Langevin dynamics at one level of noise after the other, with nothing but a change of scale between them.

    Levels are geometric. It needs far more evaluations than the other solvers, and at each level starts with the
    noise of the level before.

    Args:
      levels: how many.
      corrections: steps at each, T of the paper; one evaluation of the denoiser each.
      step_size: of a step, in units of the variance of the level's noise: half of epsilon / sigma_L^2 of the paper.

    Raises:
      ValueError: if a number is not whole or not positive.

    >>> annealed_langevin(10, corrections=100).evaluations
    100

    Source: Song & Ermon (2019), algorithm 1.
    """
    name = "diffusion.annealed_langevin"
    core.check_whole(name, levels=levels, corrections=corrections)
    core.check_positive(name, step_size=step_size)
    advance = core.Bound(_anneal, int(corrections), float(step_size))
    return Solver(name, levels, advance, evaluations=corrections, grid="log_ratio", kind=Gaussian)


def _anneal(corrections: int, step_size: float, process: Any, step: Step) -> tuple[Any, Any]:
    (before, _), (after, _) = (process.log_scales(process.log_ratio(t)) for t in (step.t, step.s))
    x = step.x * jnp.exp(after - before).astype(step.x.dtype)
    return _langevin(corrections, step_size, process, step._replace(x=x)), step.memory
