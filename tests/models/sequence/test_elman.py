"""The simple recurrent network against PyTorch's equation, in float64 NumPy and in PyTorch where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import sequence

ACTIVATIONS = {"tanh": np.tanh, "relu": lambda x: np.maximum(x, 0)}


def weights(rng, units):
    names = {"weight_ih": (units, units), "weight_hh": (units, units), "bias_ih": (units,), "bias_hh": (units,)}
    return {name: rng.uniform(-0.5, 0.5, shape) for name, shape in names.items()}


def ours(w):
    inward = {"kernel": w["weight_ih"].T, "bias": w["bias_ih"] + w["bias_hh"]}
    params = {"inward": inward, "recurrent": w["weight_hh"].T}
    return {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)}


@pytest.mark.parametrize(("activation", "time"), [("tanh", 1), ("relu", 7), ("tanh", 1024)])
def test_it_is_that_of_pytorch_on_copied_weights(rng, activation, time):
    w, xs, h = weights(rng, 5), rng.normal(size=(time, 5)), rng.normal(size=5)
    net = sequence.elman(5, activation=activation)
    ys, last = jax.jit(net.apply)(ours(w), jnp.asarray(xs, jnp.float32), jnp.asarray(h, jnp.float32))
    wanted, state = [], h
    for x in xs:
        pre = w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ state + w["bias_hh"]
        state = ACTIVATIONS[activation](pre)
        wanted.append(state)
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(last, state, rtol=1e-5, atol=2e-6)


def test_pytorch_itself(rng):
    torch = pytest.importorskip("torch")
    w, xs, h = weights(rng, 5), rng.normal(size=(20, 5)), rng.normal(size=5)
    module = torch.nn.RNN(5, 5).double()
    module.load_state_dict({f"{name}_l0": torch.tensor(value) for name, value in w.items()})
    wanted, _ = module(torch.tensor(xs), torch.tensor(h)[None])
    ys, _ = sequence.elman(5).apply(ours(w), jnp.asarray(xs, jnp.float32), jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(ys, wanted.detach().numpy(), rtol=1e-5, atol=2e-6)
