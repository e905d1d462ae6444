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
# # Recurrences
#
# Filters, smoothers, recurrent layers and Markov chains are recurrences. `jaxprob.scan` runs them all: step after step,
# in chunks, as a tree, over devices, or by Newton's method, always with the same values.

# %%
import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxprob import core, scan

# %% [markdown]
# ## Any recurrence
#
# `scan.scan` takes the step of `jax.lax.scan`. Where `reset` is true the state starts again from `init`, just before
# that step: several sequences fit into one.

# %%
final, totals = scan.scan(
    lambda total, x: (total + x, total + x),
    jnp.float32(0),
    jnp.array([1.0, 2.0, 3.0, 10.0, 20.0]),
    reset=jnp.array([False, False, False, True, False]),
)
totals

# %% [markdown]
# Under grad a scan keeps every state. With `remat=True` it keeps one in sqrt(time) and computes the others again.


# %%
def loss(weights, xs, remat):
    def step(state, x):
        return jnp.tanh(core.matvec(weights, state) + x), None

    return jnp.sum(scan.scan(step, jnp.zeros(64), xs, remat=remat)[0] ** 2)


weights = jax.random.normal(jax.random.key(0), (64, 64)) / 8
xs = jax.random.normal(jax.random.key(1), (10_000, 64))
for remat in (False, True):
    compiled = jax.jit(jax.grad(loss), static_argnums=2).lower(weights, xs, remat).compile()
    print(f"remat={remat}: {compiled.memory_analysis().temp_size_in_bytes / 2**20:.2f} MiB")

# %% [markdown]
# A stream of chunks that does not fit in memory, or has no end:


# %%
def batches():
    for index in range(3):
        yield jnp.full((4,), float(index))


for state, outputs in scan.stream(lambda total, x: (total + x, total), jnp.float32(0), batches()):
    print(state, outputs)

# %% [markdown]
# ## Affine recurrences: x_t = A_t x_{t-1} + b_t
#
# A may be a number, elementwise, blocks or a matrix; constant or not; real or complex, the latter as pairs of real
# arrays. Damped oscillators, driven by noise:

# %%
steps = 400
decay = scan.Exponential(log_modulus=jnp.full((1, 3), -0.01), phase=jnp.array([[0.1, 0.03, 0.3]]))
noise = 0.1 * jax.random.normal(jax.random.key(2), (steps, 3))
paths = scan.affine(decay, scan.Complex(noise, jnp.zeros_like(noise)))
figure, axes = plt.subplots(figsize=(8, 2.5))
axes.plot(paths.states.real, label=[f"period {2 * np.pi / phase:.0f}" for phase in decay.phase[0]])
axes.set(xlabel="time (steps)", ylabel="state (real part)", title="three damped oscillators driven by noise")
_ = axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()

# %% [markdown]
# Which algorithm runs is a matter of the device. All give the same values, and the same derivatives of any order: a
# gradient is one more affine recurrence, run backwards.

# %%
decay, increment = jax.random.uniform(jax.random.key(3), (1000, 8)), jax.random.normal(jax.random.key(4), (1000, 8))
print(scan.explain(scan.affine, decay, increment))
sequential = scan.affine(decay, increment, method="sequential")
for method in ("chunked", "associative"):
    other = scan.affine(decay, increment, method=method)
    print(method, float(jnp.max(jnp.abs(other.states - sequential.states))))

# %% [markdown]
# Time over devices; 1,001 steps need not be a multiple of four:

# %%
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("time",))
longer = jnp.concatenate([decay, decay[:1]]), jnp.concatenate([increment, increment[:1]])
sharded = scan.affine(*longer, mesh=mesh, axis_name="time")
print(len(jax.devices()), "devices:", float(jnp.max(jnp.abs(sharded.states[:1000] - sequential.states))))

# %% [markdown]
# ## Any monoid
#
# `scan.monoids` has those of hidden Markov models, running softmax, Kalman filters and smoothers. The most likely path
# of a hidden Markov model: products of max-plus matrices, then back-pointers composed from the end.

# %%
rng = np.random.default_rng(0)
transition = jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]]))
truth = np.zeros(60, int)
for t in range(1, 60):
    truth[t] = rng.choice(2, p=np.exp(transition[truth[t - 1]]) / np.exp(transition[truth[t - 1]]).sum())
observed = jnp.asarray(truth + 0.7 * rng.normal(size=60), jnp.float32)
score = -0.5 * ((jnp.expand_dims(observed, 1) - jnp.array([[0.0, 1.0]])) / 0.7) ** 2

best = scan.associative(scan.monoids.max_plus, transition[None] + score[1:, None, :])
forward = jnp.concatenate([score[:1], jnp.max(score[0][None, :, None] + best.states, 1)])
pointers = jnp.argmax(forward[:-1, :, None] + transition[None], 1)
end = jnp.argmax(forward[-1])
back = scan.associative(scan.monoids.composition, pointers, reverse=True)
path = jnp.append(back.states[:, end], end)
print("".join(map(str, truth)))
print("".join(map(str, np.asarray(path))))

# %% [markdown]
# ## Non-linear recurrences in parallel
#
# `scan.newton` solves for all states at once. It certifies its answer by the one-step residual, and runs step by step
# what it cannot solve. On an H200, GRUs of 100,000 steps run 125 to 3,100 times as fast as by `lax.scan` (see
# `benchmarks/results/scan-nvidia-h200.json`); on a CPU there is little to gain.


# %%
def cell(state, x):
    return jnp.tanh(core.matvec(weights, 0.5 * state) + x)


result = scan.newton(cell, jnp.zeros(64), xs[:500])
_, states = scan.scan(lambda state, x: (cell(state, x),) * 2, jnp.zeros(64), xs[:500])
print(f"converged {result.converged} in {result.iterations} iterations, residual {result.residual:.1e}")
print(f"largest difference {jnp.max(jnp.abs(result.states - states)):.1e}, exponent {result.lyapunov_exponent:.2f}")

# %% [markdown]
# A chaotic network is no such recurrence, and it says so:


# %%
def chaotic(state, x):
    return jnp.tanh(core.matvec(8 * weights, state) + 0.1 * x)


result = scan.newton(chaotic, jnp.zeros(64), xs[:500])
print(f"converged {result.converged}, unstable {result.unstable}, exponent {result.lyapunov_exponent:.2f}")
