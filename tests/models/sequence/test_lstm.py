"""The LSTM against PyTorch's equations, in float64 NumPy and in PyTorch where it is installed; peepholes by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from jaxprob.models import sequence


def weights(rng, units):
    """As PyTorch has them: rows of gates input, forget, cell, output."""
    shapes = {"weight_ih": (4 * units, units), "weight_hh": (4 * units, units), "bias_ih": (4 * units,)}
    shapes["bias_hh"] = (4 * units,)
    return {name: rng.uniform(-0.7, 0.7, shape) for name, shape in shapes.items()}


def ours(w, peepholes=None):
    inward = {"kernel": w["weight_ih"].T, "bias": w["bias_ih"] + w["bias_hh"]}
    params = {"inward": inward, "recurrent": w["weight_hh"].T}
    if peepholes is not None:
        params["peepholes"] = peepholes
    return {"params": jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)}


def by_hand(w, xs, c, h, peepholes):
    """torch.nn.LSTM, from its documentation; gates see the cell as in Gers et al. (2002)."""
    out = []
    for x in xs:
        i, f, g, o = np.split(w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"], 4)
        i, f = expit(i + peepholes[0] * c), expit(f + peepholes[1] * c)
        c = f * c + i * np.tanh(g)
        h = expit(o + peepholes[2] * c) * np.tanh(c)
        out.append(h)
    return np.stack(out), c


@pytest.mark.parametrize(("peephole", "time"), [(False, 1), (False, 7), (False, 1024), (True, 7)])
def test_it_is_that_of_pytorch_on_copied_weights(rng, peephole, time):
    w, xs, c, h = weights(rng, 5), rng.normal(size=(time, 5)), rng.normal(size=5), rng.normal(size=5)
    peepholes = rng.normal(size=(3, 5)) * peephole
    net, start = (
        sequence.lstm(5, peephole=peephole),
        {"c": jnp.asarray(c, jnp.float32), "h": jnp.asarray(h, jnp.float32)},
    )
    params = ours(w, peepholes if peephole else None)
    ys, last = jax.jit(net.apply)(params, jnp.asarray(xs, jnp.float32), start)
    wanted, cell = by_hand(w, xs, c, h, peepholes)
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(last["c"], cell, rtol=1e-5, atol=5e-6)
    np.testing.assert_allclose(last["h"], wanted[-1], rtol=1e-5, atol=2e-6)


def test_pytorch_itself(rng):
    torch = pytest.importorskip("torch")
    w, xs = weights(rng, 5), rng.normal(size=(20, 5))
    module = torch.nn.LSTM(5, 5).double()
    module.load_state_dict({f"{name}_l0": torch.tensor(value) for name, value in w.items()})
    wanted, _ = module(torch.tensor(xs))
    wanted = wanted.detach().numpy()
    np.testing.assert_allclose(by_hand(w, xs, np.zeros(5), np.zeros(5), np.zeros((3, 1)))[0], wanted, rtol=1e-10)
    ys, _ = sequence.lstm(5).apply(ours(w), jnp.asarray(xs, jnp.float32))
    np.testing.assert_allclose(ys, wanted, rtol=1e-5, atol=2e-6)


def test_gradients_reach_through_a_hundred_steps_and_an_elman_network_loses_them(rng):
    """S105: through 100 steps less than 1e-6 for Elman's, more than 1e-3 for an LSTM that starts by remembering."""

    def reach(net):
        xs = jnp.asarray(rng.normal(size=(100, 32)), jnp.float32)
        params = jax.jit(net.init)(jax.random.key(0), xs)
        start = net.initial_state()
        found = jax.jit(jax.grad(lambda start: jnp.sum(net.apply(params, xs, start)[0][-1])))(start)
        return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(found))))

    assert reach(sequence.elman(32)) < 1e-6
    assert reach(sequence.lstm(32)) < 1e-6
    assert reach(sequence.lstm(32, horizon=100)) > 1e-3
