"""Autoencoders: the laws that their networks make, and what training reaches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprob import learning, scan
from jaxprob.distributions import Categorical, Independent, Normal
from jaxprob.inference import vi
from jaxprob.models import latent


class Net(nn.Module):
    size: int

    @nn.compact
    def __call__(self, x, condition=None):
        x = jnp.ravel(x) if condition is None else jnp.concatenate([jnp.ravel(x), condition])
        return nn.Dense(self.size)(x)


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal", "poisson"])
def test_named_likelihoods_are_laws_of_an_example(likelihood):
    model = latent.autoencoder((2, 3), 2, (5, 4), likelihood)
    params = model.init(jax.random.key(0))
    law = model.likelihood(params, jnp.array([0.3, -0.4]))
    assert law.event_shape == (2, 3)
    assert law.batch_shape == ()
    features = params["decoder"](jnp.array([0.3, -0.4]))
    means = {
        "bernoulli": 1 / (1 + np.exp(-features)),
        "normal": features[:6],
        "poisson": np.exp(features),
    }
    np.testing.assert_allclose(law.mean().ravel(), means[likelihood], rtol=1e-5)
    if likelihood == "normal":
        np.testing.assert_allclose(law.variance().ravel(), np.exp(2 * features[6:]), rtol=1e-5)
    guide = model.recognition(params, jnp.ones((2, 3)))
    outputs = params["encoder"](jnp.ones(6))
    np.testing.assert_allclose(guide.mean(), outputs[:2], rtol=1e-5)
    np.testing.assert_allclose(guide.variance(), np.exp(2 * outputs[2:]), rtol=1e-5)
    assert [w.shape for w in params["decoder"].weights][:2] == [(2, 4), (4, 5)]
    np.testing.assert_allclose(model.prior(params).variance(), 1)


def test_equal_calls_are_equal_and_make_equal_objectives():
    one, two = latent.autoencoder(4, 2, 8), latent.autoencoder(4, 2, 8)
    assert one == two
    assert hash(one) == hash(two)
    assert one != latent.autoencoder(4, 3, 8)
    traces = []

    @jax.jit
    def init(objective, key):
        traces.append(0)
        return objective.init(key)

    init(vi.amortized_elbo(one), jax.random.key(0))
    init(vi.amortized_elbo(two), jax.random.key(0))
    assert len(traces) == 1


@pytest.mark.parametrize("condition", [None, (3,)])
def test_any_module_will_do_and_a_condition_reaches_all(condition):
    def law(features):
        return Independent(Categorical(logits=features.reshape(4, 5)))

    model = latent.autoencoder(4, 2, 8, law, encoder=Net(4), decoder=Net(20), condition=condition)
    params = model.init(jax.random.key(0))
    xs = jax.random.randint(jax.random.key(1), (6, 4), 0, 5)
    batch = xs if condition is None else (xs, jnp.eye(3)[jnp.arange(6) % 3])
    objective = vi.amortized_elbo(model)
    gradient, metrics = jax.jit(jax.grad(objective.loss, has_aux=True))(params, batch, jax.random.key(2))
    # Of weights; the prior's own are in it where there is a condition.
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(gradient))
    assert np.isfinite(metrics["elbo"])
    assert set(params) == {"encoder", "decoder"} | (set() if condition is None else {"prior"})
    if condition is not None:
        one, two = (model.prior(params, c).mean() for c in jnp.eye(3)[:2])
        assert not np.allclose(one, two)


def test_the_dtype_is_that_of_the_parameters(x64):
    model = latent.autoencoder(3, 2, 4)
    params = model.init(jax.random.key(0))
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(params))
    x = jnp.array([0, 1, 1])
    for dtype in (jnp.float32, jnp.float64):
        cast = jax.tree.map(lambda p, dtype=dtype: p.astype(dtype), params)
        loss, _ = vi.amortized_elbo(model).loss(cast, x[None], jax.random.key(1))
        assert loss.dtype == dtype
        assert model.prior(cast).sample(jax.random.key(0)).dtype == dtype


def test_training_finds_what_the_data_are_made_of():
    """Two kinds of examples, equally many, with flipped bits.

    The evidence of independent bits is 10 log 1/2 = -6.93 nats; that of the truth -0.69 - 10 * 0.1985 = -2.68.
    """
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 512)
    bits = (np.where(np.arange(10) % 2, kind[:, None], 1 - kind[:, None]) ^ (rng.random((512, 10)) < 0.05)).astype(int)
    model = latent.autoencoder(10, 2, 16)
    task = learning.Task(*vi.amortized_elbo(model), optax.adam(1e-2))
    training = learning.training(task)

    @jax.jit
    def run(key, xs):
        def step(state, i):
            return training.step(jax.random.fold_in(key, i), state, xs)

        return scan.scan(step, training.init(task.init(key)), jnp.arange(400))

    _, info = run(jax.random.key(0), jnp.asarray(bits))
    assert -3.2 < float(info["elbo"][-50:].mean()) < -2.5


def test_bad_input_is_one_line():
    for message, call in {
        r"latent.autoencoder: latent is 0; expected a whole number": lambda: latent.autoencoder(4, 0),
        r"latent.autoencoder: hidden is -1; expected a whole number": lambda: latent.autoencoder(4, 2, (3, -1)),
        r"latent.autoencoder: likelihood is 'gauss'; expected one of": lambda: latent.autoencoder(4, 2, 8, "gauss"),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"latent.autoencoder: encoder is .*function; expected a network with init"):
        latent.autoencoder(4, 2, encoder=lambda x: x)
    wrong = latent.autoencoder(4, 2, encoder=Net(3))
    with pytest.raises(ValueError, match=r"encoder is a network with outputs \(3,\); expected \(4,\), means and log"):
        wrong.recognition(wrong.init(jax.random.key(0)), jnp.ones(4))

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))

    with pytest.raises(ValueError, match=r"with variables \['batch_stats'\]; expected one with parameters only"):
        latent.autoencoder(4, 2, encoder=Normed()).init(jax.random.key(0))


def test_a_law_of_several_entries_counts_them_all():
    """A likelihood with batch axes is the product over them."""
    model = latent.autoencoder(3, 2, 4, lambda f: Normal(f, 1.0), outputs=3)
    joint = latent.autoencoder(3, 2, 4, lambda f: Independent(Normal(f, 1.0)))
    params, xs = model.init(jax.random.key(0)), jnp.ones((2, 3))
    one, two = (vi.amortized_elbo(m).loss(params, xs, jax.random.key(1))[0] for m in (model, joint))
    np.testing.assert_allclose(one, two, rtol=1e-6)
