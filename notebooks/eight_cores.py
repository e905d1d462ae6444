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
# # One task, eight cores
#
# Selective copying: four symbols come at random places among blanks, and are to be said in their order at the end. What
# is to be kept depends on what is read. Eight sequence cores, from S4D to attention, in the same network, trained by
# the same lines.

# %%
import json
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import jaxprob
from jaxprob import learning, scan
from jaxprob.models import sequence
from jaxprob.models.sequence import tasks

symbols, memory, length = 4, 4, 28
example = tasks.selective_copy(jax.random.key(0), symbols=symbols, memory=memory, length=length)
print("read:", *example.inputs)
print("to be said:", *example.targets[example.mask])

# %% [markdown]
# ## The cores
#
# S4D, S5 and LRU are linear and move by the same law at all times. minGRU and Mamba-2 forget at a rate that the input
# chooses; the gated DeltaNet corrects a memory besides. All five of them run in parallel in time. Attention keeps what
# it has read. A GRU is not linear, and goes step after step.

# %%
width = 32


def cores(context):
    """`context` is for attention alone: how far it looks back."""
    return {
        "S4D": sequence.s4d(width, state=32),
        "S5": sequence.s5(width, state=64),
        "LRU": sequence.lru(width, state=64, radius_min=0.5),
        "minGRU": sequence.min_gru(width, state=64),
        "Mamba-2": sequence.mamba2(width, state=16, heads=4, chunk=32),
        "gated DeltaNet": sequence.gated_delta_net(width, heads=4, chunk=32),
        "attention": sequence.attention(width, heads=4, context=context),
        "GRU": sequence.gru(width, state=64),
    }


# %% [markdown]
# ## Training
#
# A network embeds the tokens, has two residual blocks around the core, and ends in logits. Batches are made on the
# device, each from a key of its own, so that no example comes twice; `jaxprob.fit` runs all steps under one jit. The
# rate is the same for all, and chosen for none of them.

# %%
steps, batch_size = 600, 32


def draw(key, size=batch_size):
    keys = jax.random.split(key, size)
    return jax.vmap(lambda key: tasks.selective_copy(key, symbols=symbols, memory=memory, length=length))(keys)


def task_of(net):
    def loss(params, batch, key):
        logits = jax.vmap(lambda xs: net.apply(params, xs)[0])(batch.inputs)[:, -memory:]
        targets = batch.targets[:, -memory:]
        right = (jnp.argmax(logits, -1) == targets).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), {"accuracy": right.mean()}

    rate = optax.warmup_cosine_decay_schedule(0.0, 4e-3, steps // 10, steps)
    return learning.Task(lambda key: net.init(key, example.inputs), loss, optax.adam(rate), max_gradient_norm=1.0)


# %%
test = draw(jax.random.key(1), 1000)
rows, curves = {}, {}
for name, one in cores(context=length + memory).items():
    net = sequence.stack(one, depth=2, output=symbols + 1, vocabulary=symbols + 2)
    task, folder = task_of(net), Path(tempfile.mkdtemp()) / "run"
    result = jaxprob.fit(task, learning.data.generated(draw), steps=steps, out=folder)
    accuracy = float(jax.jit(task.loss)(result.params, test, None)[1]["accuracy"])
    parameters = sum(leaf.size for leaf in jax.tree.leaves(result.params))
    seconds = json.loads((folder / "meta.json").read_text())["times"]
    rows[name] = accuracy, parameters, 1000 * seconds["training"] / steps, seconds["compile"]
    curves[name] = result.history

print(f"{'':16}{'accuracy':>9}{'parameters':>12}{'ms a step':>11}{'s to compile':>14}")
for name, (accuracy, parameters, milliseconds, compiling) in rows.items():
    print(f"{name:16}{accuracy:9.3f}{parameters:12,}{milliseconds:11.1f}{compiling:14.1f}")

# %%
lines = {
    name: dict(color=f"C{index}", marker="osD^vP*X"[index], ms=4, lw=1.2, label=name) for index, name in enumerate(rows)
}
figure, axis = plt.subplots(figsize=(7.5, 3.5))
for name, history in curves.items():
    smooth = history["accuracy"].reshape(-1, 4).mean(1)
    axis.plot(history["step"].reshape(-1, 4).mean(1), smooth, **lines[name])
axis.axhline(1 / symbols, color="0.7", lw=0.8, zorder=0)
axis.text(steps, 1 / symbols - 0.01, "chance", color="0.5", va="top", ha="right")
axis.set(xlabel="training step", ylabel="share of symbols said right", ylim=(0.15, 1.02))
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()

# %% [markdown]
# S4D, S5 and LRU move by the same law whatever they read, and cannot skip blanks of random number: only the gates of
# their blocks help. The cores that forget or correct as the input says, attention and the GRU learn the task. One seed
# and one rate show such a difference and rank nobody. At 32 steps of time a GRU loses nothing by going step after step.
#
# ## Speed by length
#
# The cores alone, in one thread of a CPU: the time for a whole sequence, forwards. Attention looks back as far as the
# longest sequence.

# %%
lengths = [64, 256, 1024, 4096, 16384]


def seconds_of(run, *arguments):
    """The best of two."""
    jax.block_until_ready(run(*arguments))
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        jax.block_until_ready(run(*arguments))
        taken.append(time.perf_counter() - began)
    return min(taken)


xs = jax.random.normal(jax.random.key(2), (lengths[-1], width))
times = {}
for name, one in cores(context=lengths[-1]).items():
    params, whole = one.init(jax.random.key(3), xs[:64]), jax.jit(lambda params, xs, one=one: one.apply(params, xs)[0])
    times[name] = [seconds_of(whole, params, xs[:count]) for count in lengths]

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.8))
for name, taken in times.items():
    axis.loglog(lengths, taken, **lines[name])
axis.set(xlabel="length of the sequence", ylabel="seconds", xticks=lengths)
axis.set_xticks(lengths, [f"{count:,}" for count in lengths])
axis.minorticks_off()
axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()

# %% [markdown]
# All but attention cost what the length costs, from about 1,000 steps on. On a CPU a loop over steps is fast, so a GRU
# keeps up with cores that run in parallel; on an accelerator it does not (see the notebook on recurrences). Attention
# costs the square of the length; with a `context` shorter than the sequence, only the product of the two.
#
# ## All at once, or step by step
#
# `net.apply(params, xs)` takes the whole sequence; `net.apply(params, x, state, method="step")` one input, for use
# where the next one is not there yet. They are the same function: here is the largest difference over 1,024 steps,
# relative to the largest output.

# %%
count = 1024
print(f"{'':16}{'difference':>11}{'whole (ms)':>12}{'by steps (ms)':>15}{'numbers of state':>18}")
for name, one in cores(context=count).items():
    params = one.init(jax.random.key(3), xs[:64])

    def by_steps(params, xs, one=one):
        def step(state, x):
            y, state = one.apply(params, x, state, method="step")
            return state, y

        return scan.scan(step, one.initial_state(), xs)[1]

    whole, by_steps = jax.jit(lambda params, xs, one=one: one.apply(params, xs)[0]), jax.jit(by_steps)
    ys, again = whole(params, xs[:count]), by_steps(params, xs[:count])
    difference = float(jnp.max(jnp.abs(ys - again)) / jnp.max(jnp.abs(again)))
    both = [1000 * seconds_of(run, params, xs[:count]) for run in (whole, by_steps)]
    size = sum(leaf.size for leaf in jax.tree.leaves(one.initial_state()))
    print(f"{name:16}{difference:11.1e}{both[0]:12.2f}{both[1]:15.2f}{size:18,}")

# %% [markdown]
# What a core keeps from one step to the next is of fixed size, except that attention has room for its context.
