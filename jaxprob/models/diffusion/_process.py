"""Noising processes: how data turn into noise, and what of it a network is to learn.

A process is a frozen pytree of pure functions of one example. Time goes from 0, the data, to 1, noise without any data,
for every process. A *denoiser* is any function `(x, t, condition) -> output` of one noised example, and what its output
means is the business of the process: samplers and losses go through the methods here, and take any process with any
denoiser.

Sources: Sohl-Dickstein, Weiss, Maheswaranathan & Ganguli (2015), "Deep unsupervised learning using nonequilibrium
thermodynamics"; Kingma, Salimans, Poole & Ho (2021), "Variational diffusion models", for the bound in continuous time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprob import core

Denoiser = Callable[[Any, jax.Array, Any], jax.Array]


class NoisingProcess:
    """What every process can do. All methods are of one example; `jax.vmap` makes many.

    Shapes: `x0` is an example, `xt` the same at time `t` (of the same shape unless the process says otherwise),
    `output` what a denoiser makes of it. Times are scalars, and `s < t`.
    """

    def corrupt(self, key: core.Key, x0: Any, t: Any) -> Any:
        """A draw of x_t given x_0."""
        raise self._lacking("corrupt")

    def target(self, x0: Any, xt: Any, t: Any) -> Any:
        """What the best denoiser's output is the expectation of (or whose law it is), given x_t."""
        raise self._lacking("target")

    def weight(self, t: Any) -> jax.Array:
        """What the loss at a time is multiplied by, ()."""
        raise self._lacking("weight")

    def loss(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        """The training loss of one example at one time, (): `weight(t)` times a distance from the target."""
        raise self._lacking("loss")

    def reverse_step(self, key: core.Key, xt: Any, output: Any, t: Any, s: Any) -> Any:
        """A draw of x_s given x_t from the model: the process's own reverse transition for what the denoiser says."""
        raise self._lacking("reverse_step")

    def sample_prior(self, key: core.Key, shape: tuple[int, ...], dtype: Any = None) -> Any:
        """A draw of x_1 for an example of a shape, from a law that knows no data."""
        raise self._lacking("sample_prior")

    def finish(self, key: core.Key, x: Any, denoiser: Denoiser, condition: Any) -> Any:
        """An example from a draw of x at time 0."""
        return x

    def step_divergence(self, output: Any, x0: Any, xt: Any, t: Any, s: Any, key: core.Key | None = None) -> jax.Array:
        """KL[q(x_s | x_t, x_0), p(x_s | x_t)] in nats, (): a term of the bound in discrete time.

        Where there is no formula, an unbiased estimate of it, which needs a key.
        """
        raise self._lacking("step_divergence")

    def bound_rate(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        """The limit of `step_divergence / (t - s)`, (): its integral over times is the bound in continuous time."""
        raise self._lacking("bound_rate")

    def bound_ends(
        self, x0: Any, key: core.Key | None = None, denoise: Callable[[Any, Any], jax.Array] | None = None
    ) -> jax.Array:
        """What the bound has beside its steps, in nats, (): KL[q(x_1 | x_0), p(x_1)], and -E log p(x_0 | x at 0).

        Processes whose last step asks the denoiser need `denoise`, `(x, t) -> output`, and a key.
        """
        raise self._lacking("bound_ends")

    def _lacking(self, method: str) -> TypeError:
        """What a method raises that a process does not have."""
        todo = "variance_preserving() has all of them"
        return core.bad_type(type(self).__name__, method, "not there", "a process that has it", todo)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a denoiser's output for an example of a shape."""
        return shape

    def check_data(self, function: str, x0: Any) -> None:
        """Raises a one-line `ValueError` or `TypeError` for data that the process cannot have made, if they are known.

        `x0` may have leading axes.
        """

    def output(self, denoiser: Denoiser, x: Any, t: Any, condition: Any, shape: tuple[int, ...]) -> jax.Array:
        """The denoiser's output for x at a time, of an example of a shape.

        Raises:
          ValueError: if it has another shape than the process needs.
        """
        output = denoiser(x, t, condition)
        if (got := jnp.shape(output)) != (expected := self.output_shape(shape)):
            name = type(self).__name__
            todo = "A denoiser is a function of one example (x, t, condition); samplers and losses map it over many"
            raise core.bad_value(
                name, "denoiser", f"one with output {got}", f"{expected} for one of shape {shape}", todo
            )
        return jnp.asarray(output)


def check_process(function: str, process: Any) -> None:
    """Raises a `TypeError` unless it is a noising process."""
    if not isinstance(process, NoisingProcess):
        todo = "Make one with models.diffusion, such as variance_preserving()"
        raise core.bad_type(function, "process", core.describe(process), "a noising process", todo)


def check_time(function: str, t: Any, argument: str = "t") -> None:
    """Raises a `ValueError` if times are known and any is outside of the schedule, which is [0, 1]."""
    if isinstance(t, jax.core.Tracer):
        return
    values = np.asarray(t, dtype=float)
    if not np.all((values >= 0) & (values <= 1)):  # false for NaN too
        wrong = values[~((values >= 0) & (values <= 1))].ravel()[0]
        raise core.bad_value(function, argument, f"{wrong}", "a time from 0 (data) to 1 (noise)")
