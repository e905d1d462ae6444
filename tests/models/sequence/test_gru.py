"""The GRU against PyTorch's equations, in float64 NumPy and in PyTorch itself where it is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxprob.models import sequence


def weights(rng, width, units):
    """As PyTorch has them: rows of gates reset, update, new."""
    shapes = {"weight_ih": (3 * units, width), "weight_hh": (3 * units, units), "bias_ih": (3 * units,)}
    shapes["bias_hh"] = (3 * units,)
    return {name: rng.uniform(-0.7, 0.7, shape) for name, shape in shapes.items()}


def ours(w, units):
    """The biases of two gates are one here; that of the candidate's recurrent product stands apart."""
    merged = w["bias_ih"] + np.append(w["bias_hh"][: 2 * units], np.zeros(units))
    params = {
        "inward": {"kernel": w["weight_ih"].T, "bias": merged},
        "recurrent": w["weight_hh"].T,
        "candidate_bias": w["bias_hh"][2 * units :],
    }
    return {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)}


def by_hand(w, xs, h):
    """torch.nn.GRU, from its documentation."""
    n, out = len(h), []
    for x in xs:
        i, r = w["weight_ih"] @ x + w["bias_ih"], w["weight_hh"] @ h + w["bias_hh"]
        reset, update = expit(i[:n] + r[:n]), expit(i[n : 2 * n] + r[n : 2 * n])
        new = np.tanh(i[2 * n :] + reset * r[2 * n :])
        h = (1 - update) * new + update * h
        out.append(h)
    return np.stack(out)


@pytest.mark.parametrize("time", [1, 7, 1024])
def test_it_is_that_of_pytorch_on_copied_weights(rng, time):
    w, xs, h = weights(rng, 5, 5), rng.normal(size=(time, 5)), rng.normal(size=5)
    ys, last = jax.jit(sequence.gru(5).apply)(ours(w, 5), jnp.asarray(xs, jnp.float32), jnp.asarray(h, jnp.float32))
    wanted = by_hand(w, xs, h)
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(last, wanted[-1], rtol=1e-5, atol=2e-6)


def test_more_units_than_outputs(rng):
    w, xs = weights(rng, 3, 7), rng.normal(size=(6, 3))
    kernel, bias = rng.normal(size=(7, 3)), rng.normal(size=3)
    params = ours(w, 7)
    params["params"]["outward"] = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
    ys, _ = jax.jit(sequence.gru(3, state=7).apply)(params, jnp.asarray(xs, jnp.float32))
    np.testing.assert_allclose(ys, by_hand(w, xs, np.zeros(7)) @ kernel + bias, rtol=1e-5, atol=1e-5)


def test_pytorch_itself(rng):
    torch = pytest.importorskip("torch")
    w, xs, h = weights(rng, 5, 5), rng.normal(size=(20, 5)), rng.normal(size=5)
    module = torch.nn.GRU(5, 5).double()
    module.load_state_dict({f"{name}_l0": torch.tensor(value) for name, value in w.items()})
    wanted, _ = module(torch.tensor(xs), torch.tensor(h)[None])
    np.testing.assert_allclose(by_hand(w, xs, h), wanted.detach().numpy(), rtol=1e-10)
    ys, _ = sequence.gru(5).apply(ours(w, 5), jnp.asarray(xs, jnp.float32), jnp.asarray(h, jnp.float32))
    np.testing.assert_allclose(ys, wanted.detach().numpy(), rtol=1e-5, atol=2e-6)
