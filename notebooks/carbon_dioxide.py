# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Carbon dioxide on Mauna Loa
#
# Monthly means of carbon dioxide in the air, from 1958 to 2001, with months that are missing. A trend and a season that
# change slowly: how fast do they change, and what comes next? The last four years are held out.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import statsmodels.api as sm

import jaxprob
from jaxprob import models
from jaxprob.distributions import HalfNormal
from jaxprob.inference import kalman
from jaxprob.models import state_space as ss

monthly = sm.datasets.co2.load_pandas().data["co2"].resample("MS").mean()
years = monthly.index.year + (monthly.index.month - 0.5) / 12
ys = jnp.asarray(monthly.to_numpy(), jnp.float32)
held_out = 48
known, future = ys[:-held_out], ys[-held_out:]
print(f"{len(known)} months to learn from, {int(jnp.isnan(known).sum())} of them missing; {held_out} to forecast")

# %% [markdown]
# ## The model
#
# Components add up. Nothing is known of where the trend and the season begin: both start exactly diffuse, without a
# large number that stands for ignorance. Missing months are NaN.


# %%
def components(level, slope, season, noise):
    return {
        "trend": ss.local_linear_trend(level, slope),
        "season": ss.trigonometric_seasonal(12, season, harmonics=3),
        "noise": ss.observed_with(noise),
    }


def total(parts):
    return parts["trend"] + parts["season"] + parts["noise"]


@models.joint
def carbon_dioxide(length):
    level = yield "level", HalfNormal(0.5)
    slope = yield "slope", HalfNormal(0.05)
    season = yield "season", HalfNormal(0.1)
    noise = yield "noise", HalfNormal(0.5)
    yield "ys", kalman.marginal(total(components(level, slope, season, noise)), length)


# %% [markdown]
# `kalman.marginal` is the distribution of the whole series with the eight states of every month integrated out. What is
# left for NUTS are four standard deviations.

# %%
posterior = carbon_dioxide(len(known)).condition(ys=known)
result = jaxprob.sample(posterior, jax.random.key(0), chains=2, draws=500)
print(result.summary())
print(result.diagnose())

# %% [markdown]
# ## Trend and season
#
# At the posterior means, the smoother gives the states of every month, those that are missing included.

# %%
names = ("level", "slope", "season", "noise")
means = {name: float(np.mean(result.draws[name])) for name in names}
parts = components(**means)
model = total(parts)
smoothed = kalman.smooth(model, known)
found = ss.decompose(parts, smoothed)

figure, axes = plt.subplots(3, 1, figsize=(7, 6), sharex=True)
when = years[:-held_out]
for axis, name in zip(axes, ("trend", "season"), strict=False):
    mean, spread = np.asarray(found[name].mean), 1.645 * np.sqrt(np.asarray(found[name].variance))
    axis.plot(when, mean, lw=0.8)
    axis.fill_between(when, mean - spread, mean + spread, alpha=0.3)
    axis.set_ylabel(f"{name} (ppm)")
axes[0].plot(when, known, ".", ms=1.5, color="0.4")
innovations = np.asarray(kalman.filter(model, known).innovation[:, 0])
axes[2].plot(when, innovations, ".", ms=2)
axes[2].axhline(0, color="0.8", zorder=0)
axes[2].set(ylabel="innovations", xlabel="year")
figure.tight_layout()

# %% [markdown]
# Innovations are what each month adds to what the months before it said, in standard deviations: white noise, if the
# model is right.

# %%
tests = kalman.innovation_tests(kalman.filter(model, known))
print(f"mean square {tests.squared:.2f} (p {tests.squared_p_value:.2f}); whiteness p {tests.whiteness_p_value[0]:.2f}")

# %% [markdown]
# ## Four years ahead
#
# For each of 200 draws of the posterior: filter, forecast, and draw what would be seen. The intervals hold what is not
# known of the standard deviations as well.

# %%
draws = {name: jnp.asarray(result.draws[name]).reshape(-1)[:: 1000 // 200] for name in names}


@jax.jit
@jax.vmap
def ahead(draw):
    one = total(components(**draw))
    forecast = kalman.forecast(one, kalman.filter(one, known), steps=held_out)
    return forecast


forecasts = ahead(draws)
noise = jax.random.normal(jax.random.key(2), (200, held_out))
simulated = forecasts.mean[..., 0] + noise * jnp.sqrt(forecasts.covariance[..., 0, 0])
low, middle, high = np.quantile(simulated, [0.05, 0.5, 0.95], axis=0)
inside = np.mean((future >= low) & (future <= high))
print(f"{100 * inside:.0f} % of the {held_out} months lie in their 90 % interval")
print(f"mean absolute error {np.mean(np.abs(future - middle)):.2f} ppm")

# %%
figure, axis = plt.subplots(figsize=(7, 3))
shown = slice(-held_out - 60, None)
axis.plot(years[shown], ys[shown], "o", ms=2.5, color="0.3", label="observed")
axis.plot(years[-held_out:], middle, color="C0", label="forecast")
axis.fill_between(years[-held_out:], low, high, color="C0", alpha=0.25, label="90 %")
axis.axvline(years[-held_out] - 1 / 24, color="0.7", lw=0.8)
axis.set(xlabel="year", ylabel="carbon dioxide (ppm)")
axis.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# The trend of 1998 rose faster than those before it, and its months share that one surprise: coverage over a single
# stretch of four years says less than 48 months seem to.
