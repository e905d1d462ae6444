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
# # Quiet years and restless ones
#
# How many large earthquakes (magnitude 7 and more) were there in each year from 1900 to 2006? A hidden Markov model
# takes the counts as Poisson, with a rate that depends on a state that is not seen and lasts for some years (Zucchini,
# MacDonald & Langrock 2016, "Hidden Markov models for time series").

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxprob
from jaxprob import inference
from jaxprob.distributions import Beta, Poisson, Uniform
from jaxprob.inference import hmm
from jaxprob.models.state_space import HiddenMarkov

counts = jnp.array(
    [13, 14, 8, 10, 16, 26, 32, 27, 18, 32, 36, 24, 22, 23, 22, 18, 25, 21, 21, 14, 8, 11, 14, 23, 18, 17, 19]
    + [20, 22, 19, 13, 26, 13, 14, 22, 24, 21, 22, 26, 21, 23, 24, 27, 41, 31, 27, 35, 26, 28, 36, 39, 21, 17, 22]
    + [17, 19, 15, 34, 10, 15, 22, 18, 15, 20, 15, 22, 19, 16, 30, 27, 29, 23, 20, 16, 21, 21, 25, 16, 18, 15, 18]
    + [14, 10, 15, 8, 15, 6, 11, 8, 7, 18, 16, 13, 12, 13, 20, 15, 16, 12, 18, 15, 16, 13, 15, 16, 11, 11]
)
years = np.arange(1900, 2007)

# %% [markdown]
# ## How many states?
#
# Expectation-maximization from rates that are spread over the counts. Each state adds its rate and its row of the
# transition matrix to what is learnt; AIC and BIC count that against the likelihood.


# %%
def begin(size):
    rates = jnp.quantile(counts.astype(jnp.float32), (jnp.arange(size) + 0.5) / size)
    stay = 0.8 * jnp.eye(size) + 0.2 / size
    return HiddenMarkov(jnp.full(size, 1 / size), stay, Poisson(rates))


fits = {size: hmm.fit(begin(size), counts, steps=500, tolerance=1e-3) for size in (1, 2, 3, 4)}
for size, found in fits.items():
    loss, learnt = -2 * float(found.log_likelihoods[-1]), size**2 + size - 1
    rates = np.asarray(found.model.emission.rate).round(1)
    print(f"{size} states: AIC {loss + 2 * learnt:.1f}, BIC {loss + np.log(len(counts)) * learnt:.1f}, rates {rates}")

# %% [markdown]
# ## What was the state of each year?
#
# `hmm.smooth` gives probabilities given all years, `hmm.viterbi` the most likely sequence as a whole.

# %%
model = fits[3].model
smoothed = hmm.smooth(model, counts)
path = hmm.viterbi(model, counts)
rates = np.asarray(model.emission.rate)

figure, axes = plt.subplots(2, 1, figsize=(7, 4.5), sharex=True)
axes[0].plot(years, counts, "o", ms=2.5, color="0.4")
axes[0].step(years, rates[np.asarray(path.states)], where="mid", color="C3", lw=1)
axes[0].set_ylabel("earthquakes in a year")
axes[1].stackplot(years, np.asarray(smoothed.probabilities).T, colors=["0.85", "0.6", "C3"])
axes[1].set(ylabel="probability of each state", xlabel="year", ylim=(0, 1))
figure.tight_layout()

# %% [markdown]
# ## The next years
#
# A forecast mixes the states; soon it is the stationary law.

# %%
ahead = hmm.forecast(model, hmm.filter(model, counts), steps=10)
print("expected in 2007 to 2016:", np.asarray(ahead.mean).round(1))

# %% [markdown]
# ## What is not known of the parameters
#
# The likelihood with the states summed out is a density for NUTS. Two states, their rates in order, so that they keep
# their names.


# %%
def build(p):
    low, high = p["quiet"], p["quiet"] + p["more"]
    stay, rest = p["stay_quiet"], p["stay_restless"]
    transition = jnp.stack([jnp.stack([stay, 1 - stay]), jnp.stack([1 - rest, rest])])
    return HiddenMarkov(jnp.array([0.5, 0.5]), transition, Poisson(jnp.stack([low, high])))


priors = {
    "quiet": Uniform(1.0, 40.0),
    "more": Uniform(0.0, 40.0),
    "stay_quiet": Beta(4.0, 1.0),
    "stay_restless": Beta(4.0, 1.0),
}
posterior = inference.parameter_posterior(build, priors, counts)
result = jaxprob.sample(posterior, jax.random.key(0), chains=2, draws=500)
print(result.summary())
print(result.diagnose())
