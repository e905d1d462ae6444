"""Early stopping against a loop in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import learning, scan


def loop(values, patience, min_improvement):
    best, waited, stops = float("inf"), 0, []
    for value in values:
        if value < best - min_improvement:
            best, waited = value, 0
        else:
            waited += 1
        stops.append((best, waited, waited == 0, waited >= patience))
    return stops


@pytest.mark.parametrize("patience", [1, 3])
@pytest.mark.parametrize("min_improvement", [0.0, 0.5])
def test_it_stops_after_so_many_values_without_improvement(rng, patience, min_improvement):
    values = np.concatenate([[np.inf, np.nan], np.round(rng.normal(size=40), 1), [-np.inf, -np.inf]])
    init, update = learning.early_stopping(patience, min_improvement)

    def step(state, value):
        state = update(state, value)
        return state, state

    _, found = jax.jit(lambda v: scan.scan(step, init(), v))(jnp.asarray(values, jnp.float32))
    wanted = loop(np.float32(values), patience, min_improvement)
    for name, column in zip(("best", "waited", "improved", "stop"), zip(*wanted, strict=True), strict=True):
        np.testing.assert_allclose(getattr(found, name), np.array(column), rtol=1e-6)


@pytest.mark.parametrize("value", [1, 1.0, np.float64(1), jnp.bfloat16(1)])
def test_values_of_any_kind(value):
    init, update = learning.early_stopping(2)
    assert float(update(init(), value).best) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patience": 0}, "early_stopping: patience is 0; expected a number of evaluations, 1 or more"),
        ({"patience": 1.5}, "patience is 1.5"),
        ({"patience": 1, "min_improvement": -1.0}, r"min_improvement is -1\.0; expected a number, 0 or more"),
        ({"patience": 1, "min_improvement": float("nan")}, "min_improvement is nan"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        learning.early_stopping(**arguments)
