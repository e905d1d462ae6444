"""Tasks and data of the tests of training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxprob import learning


def examples(number=96, seed=0):
    """A smooth function of eight inputs, without noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(number, 8)).astype(np.float32)
    return {"x": x, "y": np.sin(x.sum(1)).astype(np.float32)}


def init(key):
    first, second = jax.random.split(key)
    return {
        "hidden": {"kernel": 0.3 * jax.random.normal(first, (8, 64)), "bias": jnp.zeros(64)},
        "output": {"kernel": 0.1 * jax.random.normal(second, (64, 1))},
    }


def loss(params, batch, key):
    """Squared error with noise on the inputs, so that the keys of the steps matter."""
    x = batch["x"] + 0.01 * jax.random.normal(key, batch["x"].shape)
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"][None])
    error = (hidden @ params["output"]["kernel"])[:, 0] - batch["y"]
    return jnp.mean(error**2), {"largest": jnp.max(jnp.abs(error))}


def network(ema=0.9, rate=1e-2):
    return learning.Task(init, loss, optax.adam(rate), ema=ema)


def arrays(batch_size=16, **options):
    return learning.data.arrays(examples(), batch_size, **options)


def validation():
    return learning.data.arrays(examples(32, seed=1), 16, shuffle=False)


def mean(rate=0.1):
    """One parameter, pulled to the mean of the batch: all steps can be done by hand."""

    def loss(w, batch, key):
        return jnp.mean((batch - w) ** 2) / 2

    return learning.Task(lambda key: jnp.zeros(()), loss, optax.sgd(rate))


class Counter:
    """An iterator of batches with a position, in the protocol of grain. Batch `n` is a function of `n` alone."""

    def __init__(self, last=10**9, as_bytes=False):
        self.n, self.last, self.as_bytes = 0, last, as_bytes

    def __iter__(self):
        return self

    def __next__(self):
        if self.n >= self.last:
            raise StopIteration
        self.n += 1
        rng = np.random.default_rng(self.n)
        x = rng.normal(size=(16, 8)).astype(np.float32)
        return {"x": x, "y": np.sin(x.sum(1)).astype(np.float32)}

    def get_state(self):
        return str(self.n).encode() if self.as_bytes else {"n": self.n}

    def set_state(self, state):
        self.n = int(state.decode()) if self.as_bytes else state["n"]
