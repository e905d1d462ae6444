"""Gaussian diffusion and flow matching: `x_t = alpha(t) x_0 + sigma(t) noise`.

All of them are one process. The schedule says which signal-to-noise ratio alpha^2 / sigma^2 a time has; the scale, what
x_t is divided by; the prediction, in which of five equivalent forms a denoiser says what it knows. Whatever the form,
`clean` and `noise_of` read it.

Sources: Kingma, Salimans, Poole & Ho (2021), "Variational diffusion models", for the bound; Salimans & Ho (2022),
"Progressive distillation", for v; Song et al. (2021), "Score-based generative modeling through stochastic differential
equations"; Karras et al. (2022), "Elucidating the design space of diffusion-based generative models".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxprob import core
from jaxprob.models.diffusion._noise import Noise, White
from jaxprob.models.diffusion._process import NoisingProcess, check_time
from jaxprob.models.diffusion._schedules import Schedule, cosine, log_linear, log_normal, straight

PREDICTIONS = ("noise", "clean", "v", "score", "velocity", "preconditioned")
WEIGHTINGS = ("simple", "bound", "min_snr")
LOG_2PI_E = math.log(2 * math.pi) + 1


def _preserving(log_ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    return 0.5 * core.log_sigmoid(log_ratio), 0.5 * core.log_sigmoid(-log_ratio)


def _exploding(log_ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros_like(log_ratio), -0.5 * log_ratio


def _sub_preserving(log_ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    # sigma = 1 - alpha^2 and alpha / sigma = r: alpha = 2 r / (1 + sqrt(1 + 4 r^2)), whose logarithm is an asinh.
    half = 0.5 * log_ratio
    root = jnp.logaddexp(jnp.zeros_like(half), 0.5 * jnp.logaddexp(jnp.zeros_like(half), math.log(4) + log_ratio))
    log_alpha = math.log(2) + half - root
    return log_alpha, log_alpha - half


def _straight(log_ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    return core.log_sigmoid(0.5 * log_ratio), core.log_sigmoid(-0.5 * log_ratio)


def _bayesian(log_ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    log_share, log_rest = core.log_sigmoid(log_ratio), core.log_sigmoid(-log_ratio)
    return log_share, 0.5 * (log_share + log_rest)


# log alpha and log sigma as functions of the log ratio.
_SCALES: dict[str, Callable[[jax.Array], tuple[jax.Array, jax.Array]]] = {
    "preserving": _preserving,
    "exploding": _exploding,
    "sub_preserving": _sub_preserving,
    "straight": _straight,
    "bayesian": _bayesian,
}


@core.pytree
class Gaussian(NoisingProcess):
    """Gaussian diffusion; `variance_preserving`, `variance_exploding`, `flow_matching` and others make it.

    Args:
      schedule: a `Schedule`, from a time to the log signal-to-noise ratio.
      scale: "preserving" (alpha^2 + sigma^2 = 1), "exploding" (alpha = 1), "sub_preserving" (sigma = 1 - alpha^2),
        "straight" (alpha + sigma = 1) or "bayesian" (alpha (1 - alpha) = sigma^2).
      prediction: what a denoiser's output is: "noise"; "clean", x_0; "v", alpha noise - sigma x_0; "score", the
        gradient of the log density of x_t (for noise with covariance L L^T, in the coordinates L^-1 x); "velocity",
        noise - x_0; or "preconditioned", what is left of x_0 after the best linear guess, over its standard deviation.
      weighting: of the squared error between an output and its target: "simple" (1), "bound" (what makes the loss the
        variational bound) or "min_snr" (the smaller of the ratio and 5, as a weight of the error of x_0).
      noise: its law.
      data_scale: standard deviation of data, for "preconditioned".
    """

    schedule: Schedule
    noise: Noise
    scale: str = core.static(default="preserving")
    prediction: str = core.static(default="noise")
    weighting: str = core.static(default="simple")
    data_scale: float = core.static(default=1.0)

    def log_ratio(self, t: Any) -> jax.Array:
        """Log signal-to-noise ratio at a time, ()."""
        return self.schedule(t)

    def scales(self, t: Any) -> tuple[jax.Array, jax.Array]:
        """alpha and sigma at a time."""
        log_alpha, log_sigma = self.log_scales(self.log_ratio(t))
        return jnp.exp(log_alpha), jnp.exp(log_sigma)

    def log_scales(self, log_ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
        """log alpha and log sigma at a log signal-to-noise ratio."""
        return _SCALES[self.scale](log_ratio)

    def slopes(self, t: Any) -> tuple[jax.Array, jax.Array]:
        """The derivatives of alpha and sigma with respect to time."""
        t = core.as_float(t)
        return jax.jvp(self.scales, (t,), (jnp.ones_like(t),))[1]

    def _scales_as(self, x: jax.Array, t: Any) -> tuple[jax.Array, jax.Array]:
        alpha, sigma = self.scales(t)
        return alpha.astype(x.dtype), sigma.astype(x.dtype)

    # The path.

    def corrupt(self, key: core.Key, x0: Any, t: Any) -> jax.Array:
        check_time("corrupt", t)
        x0 = core.as_float(x0)
        return self.interpolate(x0, self.noise.draw(key, x0.shape, x0.dtype), t)

    def interpolate(self, x0: Any, noise: Any, t: Any) -> jax.Array:
        """x_t for given noise of the shape of x_0."""
        x0 = core.as_float(x0)
        alpha, sigma = self._scales_as(x0, t)
        return alpha * x0 + sigma * noise

    def sample_prior(self, key: core.Key, shape: tuple[int, ...], dtype: Any = None) -> jax.Array:
        dtype = jnp.result_type(float) if dtype is None else dtype
        return self._scales_as(jnp.zeros((), dtype), 1.0)[1] * self.noise.draw(key, shape, dtype)

    def prior_log_prob(self, x: jax.Array) -> jax.Array:
        """Log density of the law of `sample_prior`, ()."""
        log_sigma = self.log_scales(self.log_ratio(1.0))[1].astype(x.dtype)
        white = self.noise.whitened(x) * jnp.exp(-log_sigma)
        log_scale = x.size * (log_sigma + 0.5 * math.log(2 * math.pi)) + self.noise.log_scale(x.shape)
        return -0.5 * jnp.sum(white**2) - log_scale

    # What a denoiser says.

    def encode(self, x0: jax.Array, noise: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """The output that says that x_t is made of this x_0 and this noise."""
        alpha, sigma = self._scales_as(xt, t)
        if self.prediction == "noise":
            return noise
        if self.prediction == "clean":
            return x0
        if self.prediction == "v":
            return alpha * noise - sigma * x0
        if self.prediction == "score":
            return -self.noise.whitened(noise) / sigma
        if self.prediction == "velocity":
            return noise - x0
        guess, sd = self._linear_guess(alpha, sigma)
        return (x0 - guess * xt) / sd

    def _linear_guess(self, alpha: jax.Array, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of the best linear guess of x_0 from x_t: its factor, and the standard deviation of its error."""
        variance = (alpha * self.data_scale) ** 2 + sigma**2
        return alpha * self.data_scale**2 / variance, sigma * self.data_scale / jnp.sqrt(variance)

    def clean(self, output: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """The expectation of x_0 given x_t that an output says."""
        alpha, sigma = self._scales_as(xt, t)
        if self.prediction == "noise":
            return (xt - sigma * output) / alpha
        if self.prediction == "clean":
            return output
        if self.prediction == "v":
            return (alpha * xt - sigma * output) / (alpha**2 + sigma**2)
        if self.prediction == "score":
            return (xt + sigma**2 * self.noise.shaped(output)) / alpha
        if self.prediction == "velocity":
            return (xt - sigma * output) / (alpha + sigma)
        guess, sd = self._linear_guess(alpha, sigma)
        return guess * xt + sd * output

    def noise_of(self, output: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """The expectation of the noise given x_t that an output says."""
        alpha, sigma = self._scales_as(xt, t)
        if self.prediction == "noise":
            return output
        if self.prediction == "v":
            return (sigma * xt + alpha * output) / (alpha**2 + sigma**2)
        if self.prediction == "score":
            return -sigma * self.noise.shaped(output)
        if self.prediction == "velocity":
            return (xt + alpha * output) / (alpha + sigma)
        return (xt - alpha * self.clean(output, xt, t)) / sigma

    def score(self, output: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """The gradient of the log density of L^-1 x_t that an output says; for white noise, that of x_t."""
        return -self.noise.whitened(self.noise_of(output, xt, t)) / self._scales_as(xt, t)[1]

    def from_clean(self, x0: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """The output that says this expectation of x_0 given x_t: the inverse of `clean`."""
        alpha, sigma = self._scales_as(xt, t)
        return self.encode(x0, (xt - alpha * x0) / sigma, xt, t)

    def from_noise(self, noise: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """The output that says this expectation of the noise given x_t: the inverse of `noise_of`."""
        alpha, sigma = self._scales_as(xt, t)
        return self.encode((xt - sigma * noise) / alpha, noise, xt, t)

    def velocity(self, output: jax.Array, xt: jax.Array, t: Any) -> jax.Array:
        """dx/dt of the ordinary differential equation that keeps the law of x_t."""
        up, down = (slope.astype(xt.dtype) for slope in self.slopes(t))
        return up * self.clean(output, xt, t) + down * self.noise_of(output, xt, t)

    # Learning.

    def target(self, x0: Any, xt: Any, t: Any) -> jax.Array:
        check_time("target", t)
        return self.from_clean(core.as_float(x0).astype(xt.dtype), xt, t)

    def weight(self, t: Any) -> jax.Array:
        if self.weighting == "simple":
            return jnp.ones_like(core.as_float(t))
        log_ratio = self.log_ratio(t)
        if self.weighting == "bound":
            return -0.5 * self.schedule.slope(t) * jnp.exp(log_ratio - self._log_sensitivity(log_ratio))
        return jnp.exp(jnp.minimum(log_ratio, math.log(5.0)) - self._log_sensitivity(log_ratio))

    def _log_sensitivity(self, log_ratio: jax.Array) -> jax.Array:
        """log (d output / d x_0)^2 at fixed x_t: what an error of x_0 becomes in the output."""
        log_alpha, log_sigma = self.log_scales(log_ratio)
        if self.prediction == "clean":
            return jnp.zeros_like(log_ratio)
        if self.prediction == "noise":
            return log_ratio
        if self.prediction == "score":
            return log_ratio - 2 * log_sigma
        if self.prediction == "v":
            return 2 * jnp.logaddexp(2 * log_alpha, 2 * log_sigma) - 2 * log_sigma
        if self.prediction == "velocity":
            return 2 * jnp.logaddexp(log_alpha, log_sigma) - 2 * log_sigma
        return -2 * jnp.log(self._linear_guess(jnp.exp(log_alpha), jnp.exp(log_sigma))[1])

    def loss(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        return self.loss_against(output, self.target(x0, xt, t), t)

    def loss_against(self, output: jax.Array, target: jax.Array, t: Any) -> jax.Array:
        """`loss` for a target that is known already: the mean of squared errors for "simple", else their sum."""
        error = (output - target).astype(core.accumulator_dtype(target.dtype))
        if self.prediction != "score":  # which is in whitened coordinates already
            error = self.noise.whitened(error)
        weight = self.weight(t).astype(error.dtype)
        return weight * (jnp.sum(error**2) if self.weighting == "bound" else jnp.mean(error**2))

    # The model that a denoiser makes.

    def reverse_moments(
        self, xt: jax.Array, output: jax.Array, t: Any, s: Any, randomness: Any = 1.0
    ) -> tuple[jax.Array, jax.Array]:
        """The mean of x_s given x_t, and what the noise of that step is multiplied by."""
        kept = jnp.exp(self.log_ratio(t) - self.log_ratio(s)).astype(xt.dtype)  # below 1: noise is less at s
        alpha, sigma = self._scales_as(xt, s)
        spread = jnp.asarray(randomness, xt.dtype) ** 2 * (1 - kept)
        mean = alpha * self.clean(output, xt, t) + sigma * jnp.sqrt(1 - spread) * self.noise_of(output, xt, t)
        return mean, sigma * jnp.sqrt(spread)

    def reverse_step(self, key: core.Key, xt: Any, output: Any, t: Any, s: Any, randomness: Any = 1.0) -> jax.Array:
        """A draw of x_s given x_t: the deterministic step of DDIM for `randomness` 0, the ancestral one for 1."""
        xt = core.as_float(xt)
        mean, scale = self.reverse_moments(xt, output, t, s, randomness)
        return mean + scale * self.noise.draw(key, xt.shape, xt.dtype)

    def _squared_error(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        """|noise - what the output says of it|^2, ()."""
        alpha, sigma = self._scales_as(xt, t)
        noise = (xt - alpha * core.as_float(x0).astype(xt.dtype)) / sigma
        error = self.noise.whitened(noise - self.noise_of(output, xt, t))
        return jnp.sum(error.astype(core.accumulator_dtype(error.dtype)) ** 2)

    def step_divergence(self, output: Any, x0: Any, xt: Any, t: Any, s: Any, key: core.Key | None = None) -> jax.Array:
        gained = jnp.expm1(self.log_ratio(s) - self.log_ratio(t))
        error = self._squared_error(output, x0, xt, t)
        return 0.5 * gained.astype(error.dtype) * error

    def bound_rate(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        error = self._squared_error(output, x0, xt, t)
        return -0.5 * self.schedule.slope(t).astype(error.dtype) * error

    def expected_error(self, output: Any, x0: Any, xt: Any, t: Any) -> jax.Array:
        """An estimate of E[|noise - what the output says of it|^2 given x_0], (), of a smaller variance than the error.

        From the error goes that of a linear guess, of data with mean zero and the variance of this example, and its
        expectation takes its place. Next to the data, where noise can hardly be told, nothing else is left of it.
        """
        log_ratio = self.log_ratio(t)
        data = self.noise.whitened(core.as_float(x0).astype(xt.dtype))
        wide = core.accumulator_dtype(data.dtype)
        squares = jnp.sum(data.astype(wide) ** 2)
        # Not of a number alone, which may be zero by chance.
        variance = (squares + self.data_scale**2) / (data.size + 1)
        log_odds = log_ratio.astype(wide) + jnp.log(variance)
        of_noise = core.sigmoid(log_odds)
        of_data = jnp.exp(0.5 * log_ratio.astype(wide)) * core.sigmoid(-log_odds)
        alpha, sigma = self._scales_as(xt, t)
        noise = (self.noise.whitened(xt) - alpha * data) / sigma
        linear = jnp.sum((of_noise * noise.astype(wide) - of_data * data.astype(wide)) ** 2)
        expected = of_noise**2 * data.size + of_data**2 * squares
        return self._squared_error(output, x0, xt, t) - linear + expected

    def prior_divergence(self, x0: Any) -> jax.Array:
        """KL[q(x_1 | x_0), p(x_1)] in nats, ()."""
        x0 = core.as_float(x0)
        white = self.noise.whitened(x0).astype(core.accumulator_dtype(x0.dtype))
        return 0.5 * jnp.exp(self.log_ratio(1.0).astype(white.dtype)) * jnp.sum(white**2)

    def bound_ends(self, x0: Any, key: core.Key | None = None, denoise: Any = None) -> jax.Array:
        """KL to the prior, and -E log p(x_0 | x at time 0) for a normal density about `x / alpha`."""
        divergence = self.prior_divergence(x0)
        first = self.log_ratio(0.0).astype(divergence.dtype)
        return divergence + 0.5 * jnp.size(x0) * (LOG_2PI_E - first) + self.noise.log_scale(jnp.shape(x0))

    def check_data(self, function: str, x0: Any) -> None:
        core.as_float(x0)


def _gaussian(
    function: str, schedule: Any, scale: str, prediction: str, weighting: str, noise: Any, data_scale: float = 1.0
) -> Gaussian:
    if not isinstance(schedule, Schedule):
        todo = "Make one with models.diffusion, such as cosine()"
        raise core.bad_type(function, "schedule", core.describe(schedule), "a schedule", todo)
    if prediction not in PREDICTIONS:
        raise core.bad_value(function, "prediction", core.describe(prediction), f"one of {PREDICTIONS}")
    if weighting not in WEIGHTINGS:
        raise core.bad_value(function, "weighting", core.describe(weighting), f"one of {WEIGHTINGS}")
    noise = White() if noise is None else noise
    if not isinstance(noise, Noise):
        raise core.bad_type(function, "noise", core.describe(noise), "a law of noise", "None is independent noise")
    core.check_positive(function, data_scale=data_scale)
    return Gaussian(schedule, noise, scale, prediction, weighting, float(data_scale))


def variance_preserving(
    schedule: Schedule | None = None,
    prediction: str = "noise",
    weighting: str = "simple",
    noise: Noise | None = None,
) -> Gaussian:
    """Diffusion that keeps the variance of data of unit variance: `alpha^2 + sigma^2 = 1`.

    Args:
      schedule: `cosine()` by default; or `linear_beta()`, `learned()`, ...
      prediction: what a denoiser's output is; see `Gaussian`.
      weighting: of the loss; see `Gaussian`.
      noise: its law; independent numbers by default.

    Raises:
      TypeError: if the schedule or the noise is none.
      ValueError: for an unknown prediction or weighting.

    >>> process = variance_preserving(cosine())
    >>> alpha, sigma = process.scales(0.5)
    >>> round(float(alpha**2 + sigma**2), 6)
    1.0

    Source: Ho, Jain & Abbeel (2020), "Denoising diffusion probabilistic models"; Song et al. (2021), equation 11.
    """
    schedule = cosine() if schedule is None else schedule
    return _gaussian("diffusion.variance_preserving", schedule, "preserving", prediction, weighting, noise)


def sub_variance_preserving(
    schedule: Schedule | None = None,
    prediction: str = "noise",
    weighting: str = "simple",
    noise: Noise | None = None,
) -> Gaussian:
    """Diffusion with less noise than `variance_preserving`: `sigma = 1 - alpha^2`.

    Args and errors are those of `variance_preserving`.

    >>> alpha, sigma = sub_variance_preserving().scales(0.5)
    >>> round(float(alpha**2 + sigma), 6)
    1.0

    Source: Song et al. (2021), equation 12.
    """
    schedule = cosine() if schedule is None else schedule
    return _gaussian("diffusion.sub_variance_preserving", schedule, "sub_preserving", prediction, weighting, noise)


def variance_exploding(
    schedule: Schedule | None = None,
    prediction: str = "noise",
    weighting: str = "simple",
    noise: Noise | None = None,
) -> Gaussian:
    """Diffusion that adds noise and shrinks nothing: `alpha = 1`.

    The largest noise scale (`exp(-lowest / 2)` of `log_linear`) must be large beside the data. Denoisers see x_t as it
    is; where they have trouble with its scale, use "preconditioned" with a network that divides by it, or
    `variance_preserving` with the same schedule, which is the same process in other units.

    Args and errors are those of `variance_preserving`; the schedule is `log_linear(13.0, -15.0)` by default (noise
    scales from 0.0015 to 1800). What is left of the data at time 1 is an error of everything that starts from the
    prior, of the size of their mean over the largest noise scale; and the law of samples has the noise of time 0.

    >>> alpha, sigma = variance_exploding().scales(1.0)
    >>> float(alpha), round(float(sigma))
    (1.0, 1808)

    Source: Song et al. (2021), equation 9.
    """
    schedule = log_linear(13.0, -15.0) if schedule is None else schedule
    return _gaussian("diffusion.variance_exploding", schedule, "exploding", prediction, weighting, noise)


def elucidated(data_scale: float = 0.5, schedule: Schedule | None = None, noise: Noise | None = None) -> Gaussian:
    """The design of EDM: exploding noise, log-normal noise scales, and a denoiser that corrects the best linear guess.

    `x_0 = c_skip x_t + c_out output`, and the loss weighs all noise levels alike in units of the output. EDM's networks
    see `x_t / sqrt(data_scale^2 + sigma^2)` and `log(sigma) / 4`: `scaled_inputs` makes a denoiser do so.

    Args:
      data_scale: standard deviation of the data.
      schedule: `log_normal()` by default.
      noise: its law; independent numbers by default.

    Raises:
      TypeError: if the schedule or the noise is none.
      ValueError: if `data_scale` is not positive.

    Source: Karras et al. (2022), table 1.
    """
    name = "diffusion.elucidated"
    schedule = log_normal() if schedule is None else schedule
    return _gaussian(name, schedule, "exploding", "preconditioned", "simple", noise, data_scale)


def flow_matching(
    schedule: Schedule | None = None,
    prediction: str = "velocity",
    weighting: str = "simple",
    noise: Noise | None = None,
) -> Gaussian:
    """Flow matching on straight lines, or rectified flow: `x_t = (1 - t) x_0 + t noise`.

    The velocity `noise - x_0` is what a denoiser learns. Data are at time 0 here as everywhere, while some papers
    have them at 1.

    Args and errors are those of `variance_preserving`; the schedule is `straight()` by default, for which time is the
    share of noise.

    >>> alpha, sigma = flow_matching().scales(0.25)
    >>> round(float(alpha), 3), round(float(sigma), 3)
    (0.75, 0.25)

    Source: Lipman et al. (2023), "Flow matching for generative modeling", example II; Liu, Gong & Liu (2023), "Flow
    straight and fast: learning to generate and transfer data with rectified flow".
    """
    schedule = straight() if schedule is None else schedule
    return _gaussian("diffusion.flow_matching", schedule, "straight", prediction, weighting, noise)


def scaled_inputs(process: Gaussian, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A network that sees x_t over its standard deviation: `apply(params, x / scale, t, condition)`.

    Args:
      process: a Gaussian process, whose `data_scale` counts.
      apply: `(params, x, t, condition) -> output`.
    """

    def scaled(params: Any, x: jax.Array, t: Any, condition: Any = None) -> Any:
        alpha, sigma = process._scales_as(x, t)
        return apply(params, x / jnp.sqrt((alpha * process.data_scale) ** 2 + sigma**2), t, condition)

    return scaled
