"""Handwritten digits, 8 x 8 pixels (scikit-learn's), by a small network: a file for `jaxprob train`.

    jaxprob train examples/digits.py:task --epochs 30 --out runs/digits
    jaxprob compile examples/digits.py:task --mesh data=8,model=2

The first line takes well under a minute on a laptop and reads about 98 % of the digits it has not seen. It can be
killed at any moment; with `--resume` it goes on. The second says what a training step takes on 16 devices.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from jaxprob import learning


class Network(nn.Module):
    @nn.compact
    def __call__(self, images, key=None):
        x = images
        for width in (256, 256):
            x = nn.gelu(nn.Dense(width)(x))
            x = nn.Dropout(0.2, deterministic=key is None)(x, rng=key)
        return nn.Dense(10)(x)


network = Network()


def loss(params, batch, key):
    logits = network.apply(params, batch["images"], key)
    right = jnp.argmax(logits, -1) == batch["labels"]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
    return jnp.mean(nats), {"accuracy": jnp.mean(right.astype(jnp.float32))}


def held_out_loss(params, batch, key):
    return loss(params, batch, None)  # without dropout


def split():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.data[order] / 16 - 0.3).astype(np.float32)  # 0 to 16, of mean 5
    examples = {"images": images, "labels": digits.target[order].astype(np.int32)}
    return ({name: x[part] for name, x in examples.items()} for part in (slice(300, None), slice(300)))


training, held_out = split()
data = learning.data.arrays(training, 64)
validation = learning.data.arrays(held_out, 60, shuffle=False)
task = learning.Task(
    lambda key: network.init(key, jnp.zeros((1, 64))),
    loss,
    optax.adamw(optax.cosine_decay_schedule(2e-3, 690), weight_decay=1e-2),
    ema=0.98,
    validation_loss=held_out_loss,
)
sharding = {"params.Dense_0.kernel": (None, "model"), "params.Dense_1.kernel": ("model", None)}
