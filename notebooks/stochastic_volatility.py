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
# # Stochastic volatility
#
# Daily returns of Google's share, from its first days in August 2004 to October 2008. How much the price moves changes
# slowly, and is not seen: a state-space model whose likelihood no Kalman filter gives. Particle filters find the
# volatility of each day and estimate the likelihood; inside Metropolis-Hastings they give the posterior of the
# parameters, which NUTS on parameters and states together must agree with. Two models, one with normal and one with
# Student's t errors, are compared by their evidence.

# %%
from functools import partial
from time import perf_counter

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.scipy.special import logsumexp, ndtri
from matplotlib.cbook import get_sample_data

import jaxprob
from jaxprob import analysis, core, models, scan
from jaxprob.distributions import Beta, Gamma, HalfNormal, MultivariateStudentT, Normal, StudentT
from jaxprob.inference import mcmc, particle
from jaxprob.models import StateSpaceModel

table = get_sample_data("goog.npz")["price_data"]
days = table["date"][1:]
returns = 100 * np.diff(np.log(table["adj_close"]))
ys = jnp.asarray(returns - returns.mean(), jnp.float32)
print(f"{len(ys)} returns, {days[0]} to {days[-1]}; standard deviation {ys.std():.2f} %")
largest = np.argsort(-np.abs(ys))[:10]
print("ten largest:", *(f"{days[t]} {ys[t]:+.0f} %," for t in np.sort(largest)))

figure, axis = plt.subplots(figsize=(7.5, 2.5))
axis.vlines(days, 0, ys, lw=0.6)
axis.axhline(0, color="0.6", lw=0.6)
axis.set(ylabel="return (%)")
axis.margins(x=0.01)
figure.tight_layout()

# %% [markdown]
# Restless months and quiet ones, and single days far out of line. Many of these are the days after quarterly results:
# April 18, 2008 is one.
#
# ## Two models
#
# The log variance h of a day goes back to its mean, and forgets where it was at a rate that the persistence says:
#
# $$h_{t+1} = \mu + \phi (h_t - \mu) + \sigma \epsilon_t, \qquad y_t = e^{h_t / 2} z_t,$$
#
# with z normal, or Student's t with some degrees of freedom, for days that are out of line by themselves. (For the t,
# exp(h / 2) is a scale: that of ordinary days.) The functions of a `StateSpaceModel` return distributions; a `Partial`
# makes parameters part of the model, so that one compiled program serves all of them.


# %%
def transition(p, h, t):
    return Normal(p["mean"] + p["persistence"] * (h - p["mean"]), p["spread"])


def observation(p, h, t):
    return StudentT(p["freedom"], 0.0, jnp.exp(h / 2)) if "freedom" in p else Normal(0.0, jnp.exp(h / 2))


def build(p):
    stationary = Normal(p["mean"], p["spread"] / jnp.sqrt(1 - p["persistence"] ** 2))
    return StateSpaceModel(stationary, jax.tree_util.Partial(transition, p), jax.tree_util.Partial(observation, p))


guess = {"mean": jnp.float32(1.2), "persistence": jnp.float32(0.97), "spread": jnp.float32(0.2)}
guess_t = guess | {"freedom": jnp.float32(6.0)}
at_guess = {"normal": build(guess), "t": build(guess_t)}

# %% [markdown]
# ## Particle filters
#
# For now the parameters are a guess. The bootstrap filter moves 1,000 particles by the model and weights them by what
# is seen.

# %%
found = {name: particle.filter(jax.random.key(0), model, ys, particles=1000) for name, model in at_guess.items()}
colors = {"normal": "C1", "t": "C0"}


def show_returns(axis):
    ticks = [0.5, 1, 2, 5, 10, 20]
    axis.plot(days, np.abs(ys), ".", ms=2, color="0.7")
    axis.set(yscale="log", ylim=(0.5, 22), ylabel="exp(h / 2), |return| (%)")
    axis.set_yticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.margins(x=0.01)


figure, axis = plt.subplots(figsize=(7.5, 3.5))
show_returns(axis)
for name, one in found.items():
    mean, spread = np.asarray(one.mean), 1.645 * np.sqrt(np.asarray(one.variance))
    axis.plot(days, np.exp(mean / 2), lw=0.9, color=colors[name], label=f"{name} errors")
    axis.fill_between(
        days, np.exp((mean - spread) / 2), np.exp((mean + spread) / 2), color=colors[name], alpha=0.2, lw=0
    )
axis.legend(frameon=False, loc="upper center", ncols=2)
figure.tight_layout()

# %% [markdown]
# (Returns below 0.5 % are left out.) With normal errors each jump is volatility, of that day and of weeks after it, and
# few particles are where it wants them: the effective sample size shows it. An auxiliary filter resamples by how well
# the *next* return fits (`look_ahead`); a guided one moves particles with an eye to it (`proposal`, here normal laws
# around the mode).

# %%
filters = {
    "bootstrap": {},
    "auxiliary": {"look_ahead": "mean"},
    "guided": {"proposal": particle.kalman_guided("laplace")},
    "guided, auxiliary": {"proposal": particle.kalman_guided("laplace"), "look_ahead": "mean"},
}
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3), sharey=True)
for axis, (name, model) in zip(axes, at_guess.items(), strict=True):
    for label, options in filters.items():
        ess = particle.filter(jax.random.key(1), model, ys, particles=1000, **options).effective_sample_size
        axis.plot(np.arange(1, len(ys) + 1), np.sort(ess), lw=1.2, label=label)
    axis.set(xscale="log", yscale="log", xlabel="days, from the worst", title=f"{name} errors")
axes[0].set_ylabel("effective sample size")
axes[1].legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# Looking ahead helps more than guiding: one step of the log variance is too short to get to where a jump wants it, and
# it is the volatile particles of the day before that must go on. Both together hardly fall below the 500 at which a
# filter resamples.
#
# ## How noisy is the likelihood?
#
# The exponential of `log_likelihood` is unbiased for any number of particles; its spread is what costs. Here are 64
# estimates by each filter. `particle.controlled` steers particles by functions of the state that it learns from runs
# before, and which stand for all returns still to come.


# %%
def estimates(model, number, method):
    """Log likelihoods (64,), and milliseconds for one."""
    keys = jax.random.split(jax.random.key(2), 64)

    @jax.jit
    @jax.vmap
    def every(key):
        if method == "controlled":
            return particle.controlled(key, model, ys, particles=number).log_likelihood
        return particle.log_likelihood(key, model, ys, particles=number, **filters[method])

    jax.block_until_ready(every(keys))
    began = perf_counter()
    values = np.asarray(every(keys))
    return values, 1000 * (perf_counter() - began) / len(keys)


rows = [("bootstrap", 100), ("bootstrap", 400), ("auxiliary", 100), ("guided", 100), ("controlled", 100)]
print(f"{'log likelihood':27}{'normal: mean':>13}{'sd':>6}{'ms':>6}{'t: mean':>13}{'sd':>6}{'ms':>6}")
for method, number in rows:
    cells = [estimates(model, number, method) for model in at_guess.values()]
    text = "".join(f"{x.mean():13.2f}{x.std():6.2f}{ms:6.1f}" for x, ms in cells)
    print(f"{method + ',':14}{number:4d} particles{text}")

# %% [markdown]
# Metropolis-Hastings does best where the standard deviation is between 1 and 1.7: for the t, 100 particles of the
# cheapest filter are enough. (That the mean *log* is lower where the standard deviation is larger is no bias of the
# likelihood: it falls short by about half the variance.) Guiding costs some seven times as much and for the t gains
# nothing, as one return says little of its day's volatility. Steering by all that follows costs about as much as
# guiding, and the standard deviation is more than twenty times smaller.
#
# ## Parameters: particles inside Metropolis-Hastings
#
# The priors are a program without data. Its log density is the log prior, on unconstrained numbers, and `constrain`
# leads back from them. Warm-up learns the step size and the covariance of the random walk. Chains begin around the
# guess: a random walk that once gets to a spread of next to nothing, where h is constant and the likelihood hardly
# depends on the parameters of its path, does not soon come back.


# %%
def priors(student):
    p = {}
    p["mean"] = yield "mean", Normal(1.0, 1.0)
    p["persistence"] = yield "persistence", Beta(20.0, 2.0)
    p["spread"] = yield "spread", HalfNormal(0.5)
    if student:
        p["freedom"] = yield "freedom", Gamma(2.0, 0.1)
    return p


@models.joint
def parameters(student):
    yield from priors(student)


prior = {name: parameters(name == "t").condition() for name in at_guess}


def model_of(position):
    return build(prior["t" if "freedom" in position else "normal"].constrain(position))


def marginal(log_prior, *, step_size=1.0, inverse_mass_matrix=1.0):
    tuned = {"step_size": step_size, "inverse_mass_matrix": inverse_mass_matrix}
    return particle.marginal_metropolis(log_prior, model_of, ys, particles=100, **tuned)


def near_guess(key):
    position = prior["t"].unconstrain(guess_t)
    near = {name: x + 0.5 * jax.random.normal(core.fold(key, i)) for i, (name, x) in enumerate(position.items())}
    return prior["t"].constrain(near)


random_walk = partial(mcmc.warmup, marginal, metric="dense", target_acceptance=0.2)
by_particles = jaxprob.sample(
    prior["t"], jax.random.key(3), initial=near_guess, algorithm=random_walk, warmup=1000, draws=6000
)
print(by_particles.summary())

# %% [markdown]
# ## Parameters and states: NUTS
#
# The same model as a joint program of over a thousand numbers. States are written by standard normal noise that goes
# through a recurrence, so that the prior of what is sampled does not depend on the parameters (the non-centred form).
# With a persistence close to one the usual steps are too long and trajectories diverge, hence the target acceptance.


# %%
@models.joint
def volatility(length, student):
    p = yield from priors(student)
    noise = yield "noise", Normal(jnp.zeros(length), 1.0)
    steps = (p["spread"] * noise).at[0].divide(jnp.sqrt(1 - p["persistence"] ** 2))
    away = scan.affine(jnp.expand_dims(p["persistence"], 0), steps).states
    h = yield "h", models.deterministic(p["mean"] + away)
    yield "ys", observation(p, h, None)


careful = partial(mcmc.warmup, mcmc.nuts, target_acceptance=0.98)
by_nuts = {}
for name in at_guess:
    posterior = volatility(len(ys), name == "t").condition(ys=ys)
    by_nuts[name] = jaxprob.sample(
        posterior, jax.random.key(4), algorithm=careful, draws=1500, keep=[*prior[name].names, "h"]
    )
    print(f"{name} errors: {by_nuts[name].stats['diverging'].sum()} divergences")

# %%
names = prior["t"].names
both = {"NUTS": by_nuts["t"], "particles": by_particles}
head = f"{'sd':>8}{'ESS':>6}{'R-hat':>7}"
print(f"{'':12}{'NUTS: mean':>12}{head}{'particles: mean':>18}{head}{'z':>6}")
for name in names:
    chains = [np.asarray(result.draws[name]) for result in both.values()]
    cells = [(x.mean(), x.std(), analysis.effective_sample_size(x), analysis.r_hat(x)) for x in chains]
    z = (chains[1].mean() - chains[0].mean()) / np.hypot(*(float(analysis.mcse_mean(x)) for x in chains))
    text = [f"{m:{w}.3f}{s:8.3f}{int(e):6d}{r:7.3f}" for w, (m, s, e, r) in zip((12, 18), cells, strict=True)]
    print(f"{name:12}{text[0]}{text[1]}{z:6.1f}")
for label, result in both.items():
    ess = min(float(analysis.effective_sample_size(result.draws[name])) for name in names)
    times = result.meta["times"]
    seconds = times["warm-up"] + times["sampling"]
    print(
        f"{label}: {times['compile']:.0f} s to compile, {seconds:.0f} s to run, {ess / seconds:.1f} effective draws/s"
    )

# %%
symbols = {"mean": r"mean $\mu$", "persistence": r"persistence $\phi$", "spread": r"spread $\sigma$"}
symbols |= {"freedom": "degrees of freedom"}
figure, axes = plt.subplots(1, 4, figsize=(7.5, 2.3))
for axis, (name, symbol) in zip(axes, symbols.items(), strict=True):
    draws = {label: np.asarray(result.draws[name]).ravel() for label, result in both.items()}
    bins = np.linspace(*np.quantile(draws["NUTS"], [0.002, 0.998]), 30)
    axis.hist(draws["NUTS"], bins, density=True, color="C0", alpha=0.35, label="NUTS")
    axis.hist(draws["particles"], bins, density=True, histtype="step", color="C3", label="particles")
    axis.set(xlabel=symbol, yticks=[])
    axis.spines[["left", "top", "right"]].set_visible(False)
axes[-1].legend(frameon=False, fontsize="small", handlelength=1)
figure.tight_layout()

# %% [markdown]
# One posterior by two ways that share nothing but the model. They differ most, by two standard errors, in the
# persistence: its tail towards one is where both are slow. Here NUTS is faster, by far: the density of the states has
# gradients, and one evaluation costs less than a filter of a hundred particles. Particles need neither gradients nor a
# good form of the model, only draws of the next state and the density of what is seen.
#
# ## Volatility given all returns
#
# For 200 draws of the parameters, `particle.smooth` draws five paths each. NUTS has paths among its draws.

# %%
some = {name: jnp.asarray(by_particles.draws[name]).reshape(-1)[::120] for name in names}


@jax.jit
@jax.vmap
def smoothed(key, p):
    return particle.smooth(key, build(p), ys, particles=200, draws=5).trajectories


paths = np.asarray(smoothed(jax.random.split(jax.random.key(5), 200), some)).reshape(-1, len(ys))
of_nuts = {name: np.asarray(result.draws["h"]).reshape(-1, len(ys)) for name, result in by_nuts.items()}
apart = (paths.mean(0) - of_nuts["t"].mean(0)) / of_nuts["t"].std(0)
print(
    f"means of h by both, in posterior standard deviations: {np.sqrt(np.mean(apart**2)):.2f} apart (root mean square)"
)
print(f"posterior standard deviations, ratio: {np.mean(paths.std(0) / of_nuts['t'].std(0)):.2f}")

figure, axes = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True)
for axis, name in zip(axes, ("t", "normal"), strict=True):
    low, middle, high = np.exp(np.quantile(of_nuts[name], [0.05, 0.5, 0.95], axis=0) / 2)
    show_returns(axis)
    axis.plot(days, middle, color=colors[name], lw=1, label=f"{name} errors, NUTS")
    axis.fill_between(days, low, high, color=colors[name], alpha=0.25, lw=0)
low, middle, high = np.exp(np.quantile(paths, [0.05, 0.5, 0.95], axis=0) / 2)
axes[0].plot(days, middle, color="k", lw=0.7, ls="--", label="particles")
axes[0].plot(days, np.stack([low, high], 1), color="k", lw=0.5, ls=":")
for axis in axes:
    axis.legend(frameon=False, loc="upper center", ncols=2)
figure.tight_layout()

# %% [markdown]
# Normal errors make volatility of every jump, and pay with a path that has to come and go within days.
#
# ## Evidence
#
# SMC$^2$ takes 256 draws from the prior, each with a particle filter of its own, through the returns one by one; where
# few parameters have all the weight they are resampled and moved by particle Metropolis-Hastings. What each return adds
# to the log evidence is its log density given those before it, with the parameters not known. Three runs of each model
# tell how good that is.


# %%
def increments(key, name):
    """What each return adds to the log evidence (time,)."""
    algorithm = particle.smc2(prior[name].log_density, model_of, ys, particles=200)
    start = jax.vmap(prior[name].sample_prior)(jax.random.split(core.fold(key, 0), 256))
    state = algorithm.init(start, core.fold(key, 1))
    keys = core.chain_keys(core.fold(key, 2), jnp.arange(1, len(ys)))
    _, info = jax.lax.scan(lambda state, key: algorithm.step(key, state), state, keys)
    return jnp.concatenate([state.log_evidence[None], info.log_increment])


began = perf_counter()
added = {}
for name in at_guess:
    run = jax.jit(partial(increments, name=name))
    added[name] = np.stack([run(key) for key in jax.random.split(jax.random.key(6), 3)])
print(f"{perf_counter() - began:.0f} s for all six")

evidence = {}
for name, one in added.items():
    runs = one.sum(1)
    evidence[name] = logsumexp(runs) - np.log(len(runs)), runs.std(ddof=1) / np.sqrt(len(runs))
    print(f"{name:7} log evidence", *(f"{x:.2f}," for x in runs), "together {:.2f} +- {:.2f}".format(*evidence[name]))
factor, error = evidence["t"][0] - evidence["normal"][0], np.hypot(evidence["t"][1], evidence["normal"][1])
print(f"log Bayes factor of the t: {factor:.1f} +- {error:.1f}")

# %% [markdown]
# Another way, for a check: draw parameters from a Student's t around the posterior that NUTS found, and weight them by
# prior times likelihood, which a controlled filter estimates almost exactly. Unbiased estimates make the mean weight an
# unbiased estimate of the evidence (Tran, Scharth, Pitt & Kohn, 2013, "Importance sampling squared").


# %%
def log_weights(key, name, number=400):
    draws = {site: jnp.asarray(by_nuts[name].draws[site]).reshape(-1) for site in prior[name].names}
    positions = jax.vmap(prior[name].unconstrain)(draws)
    positions = jnp.stack([positions[site] for site in draws], 1)
    proposal = MultivariateStudentT(5.0, positions.mean(0), jnp.cov(positions.T))

    def one(x):
        key, vector = x
        position = dict(zip(draws, vector, strict=True))
        filtered = particle.controlled(key, model_of(position), ys, particles=100)
        return prior[name].log_density(position) + filtered.log_likelihood - proposal.log_prob(vector)

    vectors = proposal.sample(core.fold(key, 0), (number,))
    return jax.lax.map(one, (jax.random.split(core.fold(key, 1), number), vectors), batch_size=50)


for name in at_guess:
    terms = np.asarray(jax.jit(partial(log_weights, name=name))(jax.random.key(7)), np.float64)
    weights = np.exp(terms - terms.max())
    value, share = terms.max() + np.log(weights.mean()), weights.mean() ** 2 / np.mean(weights**2)
    error = np.sqrt((1 / share - 1) / len(terms))
    print(f"{name:7} log evidence {value:.2f} +- {error:.2f}, effective sample size {share * len(terms):.0f}")

# %% [markdown]
# The two ways agree. Which returns tell the models apart? The log Bayes factor as the returns came in.

# %%
gained = np.cumsum(added["t"] - added["normal"], axis=1)
figure, axis = plt.subplots(figsize=(7.5, 3))
axis.plot(days, gained.T, color="C0", lw=0.6, alpha=0.5)
axis.plot(days, gained.mean(0), color="C0", lw=1.5)
axis.plot(days[largest], gained.mean(0)[largest], "o", ms=4, color="C3", label="ten largest returns")
axis.axhline(0, color="0.6", lw=0.6)
axis.set(ylabel="log Bayes factor\nof t over normal")
axis.legend(frameon=False, loc="upper left")
axis.margins(x=0.01)
figure.tight_layout()

# %% [markdown]
# The largest step is that of April 18, 2008 and the days after it, in which normal errors expected what did not come.
# About as much came little by little from late 2006 to the summer of 2007, with none of the ten largest returns:
# where volatility has to make up for jumps as well, it is too restless for quiet months.
#
# ## One day ahead
#
# Where does each return fall in what was forecast the day before? At the posterior means, by the particles of the day
# before: in a model that is right, such shares are uniform, and their normal quantiles normal.


# %%
@jax.jit
def shares(key, model):
    found = particle.filter(core.fold(key, 0), model, ys[:-1], particles=2000, keep="all")
    ahead = jax.vmap(lambda h: model.next_state(h, 0))(found.particles.reshape(-1)).sample(core.fold(key, 1))
    below = model.observed(ahead.reshape(found.particles.shape), 0).cdf(ys[1:, None])
    return jnp.sum(jax.nn.softmax(found.log_weights, axis=1) * below, axis=1)


figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.2))
for name in at_guess:
    model = build({site: jnp.mean(by_nuts[name].draws[site]) for site in prior[name].names})
    values = shares(jax.random.key(8), model)
    scores = np.sort(ndtri(jnp.clip(values, 1e-6, 1 - 1e-6)))
    expected = np.asarray(ndtri((jnp.arange(len(scores)) + 0.5) / len(scores)))
    axes[0].hist(np.asarray(values), bins=20, range=(0, 1), histtype="step", color=colors[name], lw=1.2)
    axes[1].plot(expected, scores, ".", ms=3, color=colors[name], label=f"{name} errors")
    outside = [100 * float(jnp.mean(jnp.abs(values - 0.5) > 0.5 * level)) for level in (0.9, 0.99)]
    print(f"{name:7} {outside[0]:.1f} % of the days outside their 90 % interval, {outside[1]:.1f} % outside 99 %")
axes[0].axhline(len(scores) / 20, color="0.6", lw=0.8)
axes[0].set(xlabel="share below the return", ylabel="days", ylim=(0, None))
axes[1].plot([-3.5, 3.5], [-3.5, 3.5], color="0.6", lw=0.8, zorder=0)
axes[1].set(xlabel="normal quantile", ylabel="that of the share")
axes[1].legend(frameon=False)
figure.tight_layout()

# %% [markdown]
# By the histograms either would do. They part in the tails, where more comes than normal errors expect.
