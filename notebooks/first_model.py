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
# # A first model
#
# Eight schools tried the same coaching for a test. Each reports how much its pupils gained and the standard error of
# that number. How much does coaching help, and how much do schools differ? (Rubin, 1981.)

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxprob
from jaxprob import analysis, models
from jaxprob.distributions import HalfCauchy, Normal
from jaxprob.inference import mcmc

gain = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
standard_error = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])

# %% [markdown]
# ## The model
#
# A model is a generator. Each `yield` names a quantity and gives its distribution; what comes back is its value. The
# effect of a school is written as `mean + spread * offset`: the offsets hardly depend on the spread, which makes the
# posterior easy to sample.


# %%
@models.joint
def schools(standard_error):
    mean = yield "mean", Normal(0.0, 5.0)
    spread = yield "spread", HalfCauchy(5.0)
    offset = yield "offset", Normal(jnp.zeros_like(standard_error), 1.0)
    effect = yield "effect", models.deterministic(mean + spread * offset)
    yield "gain", Normal(effect, standard_error)


program = schools(standard_error)

# %% [markdown]
# Before looking at the data: what does the model think is possible? A thousand data sets drawn from the prior.

# %%
prior = program.sample(jax.random.key(0), (1000,))
print({name: value.shape for name, value in prior.items()})
print("gains between", *np.percentile(prior["gain"], [5, 95]).round(), "(90 % of the prior)")

# %% [markdown]
# ## The posterior
#
# Giving data turns the program into a posterior: a log density over unconstrained numbers, with a way back.
# `jaxprob.sample` warms up and runs NUTS on all devices there are. The tails of a half-Cauchy need smaller steps than
# usual, hence the target acceptance: without it a few trajectories in 10,000 diverge, and the diagnosis would say so.

# %%
posterior = program.condition(gain=gain)
careful = partial(mcmc.warmup, mcmc.nuts, target_acceptance=0.95)
result = jaxprob.sample(posterior, jax.random.key(1), algorithm=careful, chains=4, draws=2000)
print(result.summary())

# %%
print(result.diagnose())

# %% [markdown]
# ## What was learnt
#
# The estimates move towards each other: a school that seems to do very well was also lucky.

# %%
effect = np.asarray(result.draws["effect"]).reshape(-1, 8)
figure, axes = plt.subplots(figsize=(7, 3))
place = np.arange(8)
axes.errorbar(place - 0.1, gain, standard_error, fmt="o", color="0.6", label="as reported, one standard error")
axes.errorbar(place + 0.1, effect.mean(0), effect.std(0), fmt="o", color="C0", label="posterior mean and sd")
axes.axhline(0, color="0.8", zorder=0)
axes.set(xlabel="school", ylabel="gain (points)", xticks=place, xticklabels=list("ABCDEFGH"))
axes.legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# ## Does the model fit?
#
# Data simulated from the posterior should look like the data that were seen. The largest gain is 28; how often is the
# largest of eight simulated gains as large?

# %%
predicted = posterior.predict(jax.random.key(2), result.draws)["gain"]
print(f"shape {predicted.shape}; P(largest gain >= 28) = {np.mean(predicted.max(-1) >= 28):.2f}")

# %% [markdown]
# ## Two models compared
#
# Do schools differ at all? A model in which they do not, and the expected log density of a school that was left out.


# %%
@models.joint
def one_effect(standard_error):
    mean = yield "mean", Normal(0.0, 5.0)
    yield "gain", Normal(jnp.full_like(standard_error, mean), standard_error)


same = one_effect(standard_error).condition(gain=gain)
result_same = jaxprob.sample(same, jax.random.key(3), chains=4, draws=2000)
compared = analysis.compare(
    {
        "schools differ": analysis.loo(posterior.log_likelihood(result.draws)["gain"]),
        "one effect": analysis.loo(same.log_likelihood(result_same.draws)["gain"]),
    }
)
print(compared)

# %% [markdown]
# A few tenths of a nat over all eight schools: numbers with such standard errors cannot tell the two apart, and the
# standard error of a difference is itself a rough one where there are eight of them. `unreliable` counts the schools
# whose density, left out, a run of this length does not give for certain (a Pareto k that is too large).
#
# ## On to other tools
#
# The draws are NumPy arrays `(chain, draw, ...)`; `to_datatree()` gives them in ArviZ's schema.

# %%
result.to_datatree()
