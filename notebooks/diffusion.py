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
# # Diffusion, flow matching, masked tokens and Bayesian flows
#
# All of them turn data into noise and learn the way back. Here they are one protocol: a *process* knows how data are
# noised, what a network is to learn, and how a step back is drawn; a *denoiser* is any function `(x, t, condition)` of
# one example; a *solver* takes both. Time goes from 0, the data, to 1, noise.
#
# The images are scikit-learn's digits: 8 x 8 pixels that count from 0 to 16. For the Gaussian process and for flow
# matching they are numbers between -1 and 1; for the other two they are 17 tokens, or bins.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import jaxprob
from jaxprob import learning
from jaxprob.inference import diffusion as sampling
from jaxprob.models import diffusion

LEVELS = 17
order = np.random.default_rng(0).permutation(1797)
tokens = load_digits().images[order].astype(np.int32)
labels = load_digits().target[order].astype(np.int32)
pixels = (2 * tokens + 1) / np.float32(LEVELS) - 1  # the middles of 17 parts of [-1, 1]
test, validation, train = slice(0, 200), slice(200, 400), slice(400, None)

# %% [markdown]
# ## Four processes, one loop
#
# `diffusion.loss` makes a training loss of any process and any network, and `jaxprob.fit` trains it, with a label as
# condition that one time in ten is left out. There are but 1,397 images to learn from, so that networks soon know them
# by heart: what is kept is what was best on 200 others. Add `out="runs/digits"` and the run survives a kill.

# %%
PROCESSES = {
    "Gaussian": (diffusion.variance_preserving(diffusion.cosine(6.0, -6.0), prediction="v"), pixels, {}),
    "flow matching": (diffusion.flow_matching(), pixels, {}),
    "masked": (diffusion.masked(LEVELS, weighting="linear"), tokens, {"vocabulary": LEVELS}),
    "Bayesian flow": (diffusion.discretized_bayesian_flow(LEVELS), tokens, {"output": 2}),
}


def fit(process, data, options, epochs=120, batch=96):
    net = diffusion.networks.perceptron(width=256, depth=3, classes=10, **options)
    objective = diffusion.loss(process, net.apply, conditional=True, drop_condition=0.1, no_condition=10)
    steps = epochs * len(data[train]) // batch
    task = learning.Task(
        lambda key: net.init(key, process.corrupt(key, jnp.asarray(data[0]), 0.5), jnp.float32(0.5), jnp.int32(0)),
        objective,
        optax.adam(optax.cosine_decay_schedule(2e-3, steps)),
        ema=0.99,
        max_gradient_norm=1.0,
    )
    source = learning.data.arrays((data[train], labels[train]), batch)
    held_out = learning.data.arrays((data[validation], labels[validation]), 200)
    options = {"validation": held_out, "evaluate_every": 60, "progress": None}
    result = jaxprob.fit(task, source, key=jax.random.key(0), steps=steps, **options)
    print(f"best after {result.best_step} of {steps} steps")
    return functools.partial(net.apply, result.best)


denoisers = {name: fit(*parts) for name, parts in PROCESSES.items()}

# %% [markdown]
# ## Samples
#
# Each process has solvers of its own kind beside the `ancestral` one, which serves all. Rows are labels 0 to 9 with
# classifier-free guidance of scale 2.

# %%
SOLVERS = {
    "Gaussian": sampling.dpm_solver(20),
    "flow matching": sampling.heun(20),
    "masked": sampling.ancestral(64),
    "Bayesian flow": sampling.ancestral(60),
}
wanted = jnp.repeat(jnp.arange(10), 6)


def draw(name, scale=2.0):
    process, denoiser = PROCESSES[name][0], denoisers[name]
    guided = sampling.classifier_free(denoiser, scale, jnp.int32(10))
    key = jax.random.key(1)
    return sampling.sample(key, process, guided, (60, 8, 8), condition=wanted, solver=SOLVERS[name])


figure, axes = plt.subplots(1, 5, figsize=(13, 4.6))
shown = {"data": np.concatenate([tokens[train][labels[train] == digit][:6] for digit in range(10)])}
shown |= {name: np.asarray(draw(name)) for name in PROCESSES}
shown = {name: images if images.dtype == np.int32 else LEVELS * (images + 1) / 2 for name, images in shown.items()}
for axis, (name, images) in zip(axes, shown.items(), strict=True):
    grid = images.reshape(10, 6, 8, 8).transpose(0, 2, 1, 3).reshape(80, 48)
    axis.imshow(grid, cmap="gray_r", vmin=0, vmax=16)
    axis.set_title(name)
    axis.axis("off")
figure.tight_layout()

# %% [markdown]
# ## Bits per dimension
#
# What each model would need to encode a pixel of images it has not seen, given their labels, by the variational bound
# of its process: for the Gaussian process with a last step that knows the 17 levels. (It begins where noise is half a
# level wide: nearer to the data the network would have to round, which that step does better.) Flow matching has an
# exact likelihood too, by the ordinary differential equation it follows, of images made continuous by uniform noise.
# Beside them, independent pixels with the frequencies of each label; a fair die of 17 sides takes 4.09.


# %%
def bits(nats):
    return float(np.mean(nats)) / 64 / np.log(2)


def bound(name, data, **options):
    process, known = PROCESSES[name][0], jnp.asarray(labels[test])
    key = jax.random.key(2)
    return bits(sampling.negative_elbo(key, process, denoisers[name], data[test], condition=known, **options).nats)


found = {name: bound(name, jnp.asarray(tokens)) for name in ("masked", "Bayesian flow")}
found["Gaussian"] = bound("Gaussian", jnp.asarray(tokens), levels=LEVELS)

keys = jax.random.split(jax.random.key(3), 200)
smooth, volumes = jax.vmap(lambda key, x: sampling.dequantize(key, x, LEVELS))(keys, jnp.asarray(tokens[test]))
likelihood = sampling.log_likelihood(
    PROCESSES["flow matching"][0],
    denoisers["flow matching"],
    smooth,
    condition=jnp.asarray(labels[test]),
    key=jax.random.key(4),
    probes=4,
    steps=40,
)
exact = sampling.bits_per_dimension(-likelihood.log_likelihood, (8, 8), levels=LEVELS)
found["flow matching, exact"] = float(np.mean(exact))
counts = np.stack([[(tokens[train][labels[train] == d] == v).sum(0) for v in range(LEVELS)] for d in range(10)])
shares = (counts + 0.1) / (counts + 0.1).sum(1, keepdims=True)
chosen = np.take_along_axis(shares[labels[test]], tokens[test][:, None], 1)
found["independent pixels"] = float(-np.mean(np.log2(chosen)))
for name, value in found.items():
    print(f"{name:22} {value:.2f} bits")

# %% [markdown]
# ## Filling in
#
# The upper half of an image is known. `observed` is the log density of what is known given a noised image, by the mean
# that the denoiser implies, and `guided` adds its gradient to the score.

# %%
process = PROCESSES["Gaussian"][0]
halves = []
for index in (3, 7, 12):
    see = sampling.observed(
        process, denoisers["Gaussian"], lambda x: x[:4], pixels[index, :4], 0.1, covariance="isotropic"
    )
    guided = sampling.guided(process, denoisers["Gaussian"], see)
    key = jax.random.key(index)
    filled = sampling.sample(
        key, process, guided, (7, 8, 8), condition=jnp.full(7, labels[index]), solver=sampling.ancestral(60)
    )
    halves.append(
        np.concatenate([pixels[index][None], np.where(np.arange(8)[:, None] < 4, pixels[index], -1)[None], filled])
    )
figure, axis = plt.subplots(figsize=(8, 3))
axis.imshow(np.concatenate([np.concatenate(list(row), 1) for row in halves]), cmap="gray_r", vmin=-1, vmax=1)
axis.set_title("truth, what is known, and seven ways to go on")
axis.axis("off")
figure.tight_layout()

# %% [markdown]
# ## Functions
#
# Series seen at irregular times are values of a function, and noise that is a function as well, an Ornstein-Uhlenbeck
# process at the same times, makes a diffusion of functions. A set transformer learns it from series of another such
# process, with a longer memory; given eight values of a new one it is to say the rest, beside the exact posterior.

# %%
POINTS, KNOWN = 24, 8


def kernel(distance):
    return np.exp(-distance / 2)


rng = np.random.default_rng(5)
times = np.sort(rng.uniform(0, 6, (1500, POINTS)), 1)
factors = np.linalg.cholesky(kernel(np.abs(times[:, :, None] - times[:, None])) + 1e-6 * np.eye(POINTS))
series = (factors @ rng.normal(size=(1500, POINTS, 1)))[..., 0].astype(np.float32)


def functional(times):
    noise = diffusion.ornstein_uhlenbeck_noise(times, 1.0)
    return diffusion.variance_preserving(diffusion.cosine(9.0, -6.0), noise=noise)


net = diffusion.networks.set_attention(width=48, depth=2, heads=4, wavelengths=(0.2, 12.0))
task = learning.Task(
    lambda key: net.init(key, jnp.zeros(POINTS), jnp.float32(0.5), jnp.arange(float(POINTS))),
    diffusion.loss(lambda params, times: functional(times), net.apply, conditional=True),
    optax.adam(optax.cosine_decay_schedule(3e-3, 2500)),
    ema=0.99,
    max_gradient_norm=1.0,
)
source = learning.data.arrays((series, times.astype(np.float32)), 48)
result = jaxprob.fit(task, source, key=jax.random.key(6), steps=2500, progress=None)
denoiser = functools.partial(net.apply, result.average)

# %%
new_times = np.sort(rng.uniform(0, 6, POINTS))
covariance = kernel(np.abs(new_times[:, None] - new_times)) + 1e-6 * np.eye(POINTS)
truth = np.linalg.cholesky(covariance) @ rng.normal(size=POINTS)
known = np.sort(rng.permutation(POINTS)[:KNOWN])
gain = covariance[:, known] @ np.linalg.inv(covariance[np.ix_(known, known)] + 0.1**2 * np.eye(KNOWN))
exact_mean = gain @ truth[known]
exact_sd = np.sqrt(np.diag(covariance - gain @ covariance[known]).clip(0))

at = jnp.asarray(new_times, jnp.float32)
process = functional(at)
value = truth[known].astype(np.float32)
see = sampling.observed(process, denoiser, lambda x: x[known], value, 0.1, covariance="isotropic")
conditional = sampling.sample(
    jax.random.key(7),
    process,
    sampling.guided(process, denoiser, see),
    (200, POINTS),
    condition=jnp.broadcast_to(at, (200, POINTS)),
    solver=sampling.ancestral(100),
)
conditional = np.asarray(conditional)

figure, axis = plt.subplots(figsize=(9, 3.4))
axis.plot(new_times, conditional[:30].T, color="tab:blue", alpha=0.15)
axis.plot(new_times, conditional.mean(0), color="tab:blue", label="diffusion: mean and draws")
axis.plot(new_times, exact_mean, "k--", label="exact posterior: mean and two deviations")
axis.fill_between(new_times, exact_mean - 2 * exact_sd, exact_mean + 2 * exact_sd, color="k", alpha=0.12)
axis.plot(new_times[known], truth[known], "ro", label="known")
axis.set_xlabel("time")
axis.legend(frameon=False)
figure.tight_layout()
rest = np.setdiff1d(np.arange(POINTS), known)
off = np.abs(conditional.mean(0) - exact_mean)[rest] / exact_sd[rest]
spread = np.mean(conditional.std(0)[rest] / exact_sd[rest])
print(f"means {off.mean():.2f} exact deviations apart; deviations {spread:.2f} of the exact ones")
