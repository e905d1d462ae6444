"""Steps along the line that a denoiser's estimate of data and of noise spans."""

from __future__ import annotations

from typing import Any

from jaxprob import core
from jaxprob.inference.diffusion._solver import Solver, Step
from jaxprob.models.diffusion import Gaussian


def ddim(steps: int = 50, randomness: float = 0.0, grid: str = "time") -> Solver:
    """`x_s = alpha_s E[x_0] + sigma_s E[noise]`, with a share of the noise drawn anew, for Gaussian processes.

    Args:
      steps: how many; one evaluation of the denoiser each.
      randomness: eta of the paper: 0 for a deterministic map from noise to data, 1 for `ancestral`.
      grid: of times; see `Solver`.

    Raises:
      ValueError: if `steps` is no whole number, `randomness` is not from 0 to 1, or for an unknown grid.

    >>> ddim(10).evaluations
    1

    Source: Song, Meng & Ermon (2021), "Denoising diffusion implicit models", equations 12 and 16.
    """
    name = "diffusion.ddim"
    if not core.is_number(randomness) or not 0 <= randomness <= 1:
        raise core.bad_value(name, "randomness", core.describe(randomness), "a number from 0 to 1")
    return Solver(name, steps, core.Bound(_advance, float(randomness)), grid=grid, kind=Gaussian)


def _advance(randomness: float, process: Any, step: Step) -> tuple[Any, Any]:
    output = step.denoise(step.x, step.t)
    if randomness:
        return process.reverse_step(step.key, step.x, output, step.t, step.s, randomness), step.memory
    clean, noise = process.clean(output, step.x, step.t), process.noise_of(output, step.x, step.t)
    return process.interpolate(clean, noise, step.s), step.memory
