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
# # Approximations of a posterior, and how to know what they are worth
#
# Eighteen baseball players had 45 times at bat each by a day in 1970. How often does each of them hit in the long run?
# (Efron and Morris, 1975.) The model is a hierarchical one, whose posterior has a neck: where the spread between
# players is small, all of them must be alike. We fit it by NUTS and by five approximations, and let each say how far to
# trust it.

# %%
import time
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxprob
from jaxprob import analysis, models
from jaxprob.distributions import Binomial, HalfNormal, Normal, flows
from jaxprob.inference import mcmc, vi

hits = jnp.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])


@models.joint
def batting():
    mean = yield "mean", Normal(-1.0, 1.0)
    spread = yield "spread", HalfNormal(1.0)
    ability = yield "ability", Normal(jnp.full(18, mean), spread)
    yield "hits", Binomial(45, logits=ability)


posterior = batting().condition(hits=hits)

# %% [markdown]
# ## The reference
#
# NUTS, on another form of the same model: with `ability = mean + spread * offset` the offsets hardly depend on the
# spread, and the posterior has no neck.


# %%
@models.joint
def batting_by_offsets():
    mean = yield "mean", Normal(-1.0, 1.0)
    spread = yield "spread", HalfNormal(1.0)
    offset = yield "offset", Normal(jnp.zeros(18), 1.0)
    yield "hits", Binomial(45, logits=mean + spread * offset)


easier = batting_by_offsets().condition(hits=hits)
algorithm = partial(mcmc.warmup, mcmc.nuts, target_acceptance=0.95)
result = jaxprob.sample(easier, jax.random.key(0), algorithm=algorithm, draws=2000)
print(result.diagnose())
reference = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), result.draws)
reference["ability"] = reference["mean"][:, None] + reference["spread"][:, None] * reference["offset"]

# %% [markdown]
# ## Five approximations
#
# A guide is a distribution over unconstrained positions. `vi.fit` moves its parameters until the bound no longer rises
# beyond its standard error. Laplace needs a mode, and this density has none: it grows without bound into the neck.

# %%
key = jax.random.key(1)
fits, seconds = {}, {}
families = {
    "mean field": vi.mean_field(),
    "full rank": vi.full_rank(),
    "flow": vi.flow(flows.spline_coupling(layers=4, hidden=(32, 32))),
}
for name, family in families.items():
    began = time.perf_counter()
    fits[name] = vi.fit(posterior, key, family)
    seconds[name] = time.perf_counter() - began
    print(f"{name:10}  ELBO {fits[name].elbo:.2f} +- {fits[name].elbo_error:.3f} after {fits[name].num_steps} steps")
guides = {name: fit.guide for name, fit in fits.items()}
guides["Pathfinder"] = vi.pathfinder(posterior, key=key)
guides["Laplace"] = vi.laplace(posterior, key=key)
print(f"Laplace converged: {bool(guides['Laplace'].converged)}")

# %% [markdown]
# ## Their worth
#
# Draws of a guide are weighted by how much more, or less, the posterior has of them. If a few weights rule, the guide
# has missed something. Pareto k says it in a number: below 0.7 weighted averages can be trusted.

# %%
qualities = {name: analysis.guide_quality(posterior, guide, jax.random.key(2)) for name, guide in guides.items()}
constrained = {name: jax.vmap(posterior.constrain)(q.draws) for name, q in qualities.items()}
print(f"{'':12}{'k':>7}{'ELBO':>9}{'log Z':>9}{'ESS':>7}   error of E[spread], E[mean] in sd")
for name, q in qualities.items():
    errors = [
        (np.mean(constrained[name][site], dtype=float) - reference[site].mean()) / reference[site].std()
        for site in ("spread", "mean")
    ]
    line = f"{q.pareto_k:7.2f}{q.elbo:9.2f}{q.log_evidence:9.2f}{q.effective_sample_size:7.0f}"
    print(f"{name:12}{line}   {errors[0]:+.2f} {errors[1]:+.2f}{'' if q.reliable else '   not reliable'}")

# %%
figure, axes = plt.subplots(1, 6, figsize=(15, 3), sharex=True, sharey=True, layout="constrained")
panels = {"NUTS": reference, **constrained}
for axis, (name, draws) in zip(axes, panels.items(), strict=True):
    axis.scatter(draws["ability"][:2000, 0], np.log(draws["spread"][:2000]), s=2, alpha=0.3)
    axis.set(title=name, xlabel="ability of the first player", xlim=(-2, 0.5), ylim=(-5, 0.5))
axes[0].set_ylabel("log spread")
plt.show()

# %% [markdown]
# The neck, at the bottom, is where guides differ. A normal guide cannot narrow and stays out of it: its spread is too
# large. Laplace has followed the density down the neck, below the picture. The flow bends.

# %% [markdown]
# ## The form without a neck
#
# There the normal guides come close. The flow, which has many more parameters to fit, has not got as far, and says so.

# %%
for name, family in families.items():
    fit = vi.fit(easier, key, family)
    q = analysis.guide_quality(easier, fit.guide, jax.random.key(3))
    spread = jax.vmap(easier.constrain)(q.draws)["spread"]
    error = (np.mean(spread, dtype=float) - reference["spread"].mean()) / reference["spread"].std()
    print(f"{name:12} k {q.pareto_k:5.2f}   log Z {q.log_evidence:7.2f}   error of E[spread] {error:+.2f} sd")


# %% [markdown]
# ## Calibration over data sets
#
# The model simulates data of its own; each is fitted, and one looks where in the guide the true parameters lie. A mean
# of ranks other than a half is bias; a width above one is too much confidence.


# %%
def fit_full_rank(posterior, key):
    return vi.fit(posterior, key, vi.full_rank(), max_steps=3000).guide


found = analysis.variational_calibration(easier, fit_full_rank, jax.random.key(4), repeats=60)
for site in ("mean", "spread"):
    print(f"{site:8} mean of ranks {found.mean[site]:.2f} (z {found.z[site]:+.1f}), width {found.width[site]:.2f}")
