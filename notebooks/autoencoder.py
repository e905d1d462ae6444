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
# # A variational autoencoder of handwritten digits
#
# A few hidden numbers for each image, a network that draws the image from them, and one that guesses them back. All
# three are one model, trained by one bound on the log likelihood of the pixels (Kingma and Welling, 2014). The images
# are scikit-learn's: 8 x 8 pixels that count from 0 to 16, so a binomial law of 16 trials is a likelihood of counts.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy import stats
from sklearn.datasets import load_digits

import jaxprob
from jaxprob import learning
from jaxprob.distributions import Binomial, Independent
from jaxprob.inference import vi
from jaxprob.models import latent

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images, labels = digits.data[order].astype(np.float32), digits.target[order]
train, test = images[300:], images[:300]


def pixels(logits):
    return Independent(Binomial(16, logits=logits), 1)


def whiten(key, x):
    return x / 8 - 0.6  # the encoder likes numbers around zero; the likelihood wants the counts


# %% [markdown]
# ## Training
#
# `vi.amortized_elbo` makes an objective of the model: its `init` and `loss` are those of a training task, and
# `jaxprob.fit` runs it as it runs any other (add `out=` and it survives a kill).


# %%
def fit(size, epochs=60):
    model = latent.autoencoder(64, size, (256, 128), likelihood=pixels, outputs=64)
    objective = vi.amortized_elbo(model, corrupt=whiten)
    task = learning.Task(objective.init, objective.loss, optax.adam(optax.cosine_decay_schedule(2e-3, epochs * 23)))
    result = jaxprob.fit(task, learning.data.arrays(train, 64), epochs=epochs, key=jax.random.key(0), progress=None)
    return model, result.params


model, params = fit(8)

# %% [markdown]
# ## How good is it?
#
# The bound on images it has not seen, in nats; the same with 50 draws for each image, which is closer to the log
# likelihood; and what independent pixels would give.

# %%
few = vi.amortized_elbo(model, 1, corrupt=whiten)
many = vi.amortized_elbo(model, 50, bound="importance_weighted", corrupt=whiten)
bounds = [float(jax.jit(o.loss)(params, test, jax.random.key(1))[1]["elbo"]) for o in (few, many)]
rates = np.clip(train.mean(0) / 16, 1e-3, 1 - 1e-3)
independent = float(jnp.mean(jax.vmap(lambda x: Binomial(16, probs=rates).log_prob(x).sum())(test)))
print(f"bound {bounds[0]:.1f}, with 50 draws {bounds[1]:.1f}, independent pixels {independent:.1f} nats an image")

# %% [markdown]
# ## Reconstructions and samples

# %%
seen = jnp.asarray(test[:10])
codes = jax.vmap(lambda x: model.recognition(params, whiten(None, x)).mean())(seen)
again = jax.vmap(lambda z: model.likelihood(params, z).mean())(codes)
noise = jax.vmap(model.prior(params).sample)(jax.random.split(jax.random.key(2), 10))
new = jax.vmap(lambda z: model.likelihood(params, z).mean())(noise)

figure, axes = plt.subplots(3, 10, figsize=(10, 3.2), layout="constrained")
for row, (name, pictures) in zip(axes, {"seen": seen, "again": again, "new": new}.items(), strict=True):
    for axis, picture in zip(row, pictures, strict=True):
        axis.imshow(np.reshape(picture, (8, 8)), cmap="gray_r", vmin=0, vmax=16)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
plt.show()

# %% [markdown]
# ## The latent plane
#
# With two hidden numbers the whole space can be drawn: where the encoder puts the digits, and what the decoder makes of
# a grid of points (quantiles of the prior, so that each picture stands for as many images).

# %%
plane, plane_params = fit(2)
means = jax.vmap(lambda x: plane.recognition(plane_params, whiten(None, x)).mean())(jnp.asarray(images))
axis = stats.norm.ppf(np.linspace(0.02, 0.98, 14)).astype(np.float32)
grid = jnp.stack(jnp.meshgrid(axis, axis[::-1]), axis=-1).reshape(-1, 2)
drawn = np.asarray(jax.vmap(lambda z: plane.likelihood(plane_params, z).mean())(grid)).reshape(14, 14, 8, 8)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
points = left.scatter(*np.asarray(means).T, c=labels, cmap="tab10", s=6)
figure.colorbar(points, ax=left, ticks=range(10), label="digit")
left.set(title="where digits lie", xlabel="first hidden number", ylabel="second")
right.imshow(drawn.transpose(0, 2, 1, 3).reshape(14 * 8, 14 * 8), cmap="gray_r")
right.set(title="what the plane draws", xticks=[], yticks=[])
plt.show()
