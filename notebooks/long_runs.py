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
# # Long runs, and kernels in your own jit
#
# A run that has a folder is never lost: draws reach the disk chunk by chunk, checkpoints hold all that is needed to go
# on, and a run that goes on has the same bits as one that was never interrupted.

# %%
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxprob
from jaxprob import core, runtime
from jaxprob.inference import mcmc

folder = Path(tempfile.mkdtemp())


def log_density(x):
    """A banana in two dimensions: anything that maps a position to a number can be sampled."""
    return -0.5 * x[0] ** 2 - 0.5 * (x[1] - x[0] ** 2 / 2) ** 2


start = jnp.zeros(2)

# %% [markdown]
# ## A run with a folder
#
# Here a rule ends the run early, when the smallest effective sample size is 1,000; a signal or a crash would do no
# other harm. Calling again with `resume=True` goes on from there.

# %%
options = dict(initial=start, chains=4, draws=20_000, out=folder / "banana")
first = jaxprob.sample(log_density, jax.random.key(0), until=runtime.effective_sample_size(1000), **options)
print("ended by", first.meta["ended"], "after", first.stats["diverging"].shape[1], "draws of each chain")

# %%
whole = jaxprob.sample(log_density, jax.random.key(0), resume=True, **options)
print(whole.status, "with", whole.draws.shape)

# %% [markdown]
# The same run in one piece, in memory: every bit is the same.

# %%
uninterrupted = jaxprob.sample(log_density, jax.random.key(0), initial=start, chains=4, draws=20_000)
print("equal:", np.array_equal(whole.draws, uninterrupted.draws))
print(whole.summary())

# %% [markdown]
# The folder can be read at any time, by `runtime.load`, xarray or zarr, also while the run goes on. (The diagnosis
# finds divergences: far out in the tails this density is too curved for the step size that this key's warm-up chose.)

# %%
print(sorted(path.name for path in (folder / "banana").iterdir()))
print(runtime.load(folder / "banana").diagnose())

# %% [markdown]
# ## The pieces
#
# Under it are pure functions. A kernel is a pair `init` and `step`; many chains are a `vmap`, many steps are a scan,
# and the warm-up is a kernel too, whose state says what chains share.

# %%
chains, steps = 64, 500
tuning = mcmc.warmup(mcmc.nuts, log_density, num_steps=steps, axis_name="chain")
pooled = core.Shared(0, None)
keys = core.chain_keys(jax.random.key(1), jnp.arange(chains))
positions = 0.1 * jax.random.normal(jax.random.key(2), (chains, 2))


@jax.jit
def warm(keys, positions):
    state = jax.vmap(tuning.init, out_axes=pooled, axis_name="chain")(positions, keys)
    step = jax.vmap(tuning.step, in_axes=(0, pooled), out_axes=(pooled, 0), axis_name="chain")

    def body(state, index):
        return step(jax.vmap(lambda key: core.fold(key, index))(keys), state)

    return jax.lax.scan(body, state, jnp.arange(steps))[0]


state = warm(keys, positions)
factor = state.shared.metric.factor  # Cholesky factor of the inverse mass matrix
print("step size", state.shared.step_size, "inverse mass matrix", *(factor @ factor.T))


# %%
@jax.jit
def sample(keys, state):
    kernel = tuning.finish(state)

    def chain(key, state):
        return jax.lax.scan(lambda state, i: kernel.step(core.fold(key, i), state), state, jnp.arange(500))[1]

    return jax.vmap(chain)(keys, state.chain.kernel)


info = sample(core.chain_keys(jax.random.key(3), jnp.arange(chains)), state)
print({name: (value.shape, float(value.mean())) for name, value in info._asdict().items()})
