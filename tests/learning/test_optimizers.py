"""Optimisers by leaf path against each optimiser alone on its leaves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprob import learning

PARAMS = {
    "params": {
        "layers": [
            {"core": {"log_decay": jnp.ones(2), "kernel": jnp.ones((2, 2))}, "bias": jnp.ones(2)},
            {"core": {"log_decay": jnp.ones(3), "kernel": jnp.ones((3, 3))}, "bias": jnp.ones(3)},
        ],
        "readout": {"kernel": jnp.ones(3)},
    }
}


def moved(optimizer, params=PARAMS):
    """What one step with a gradient of ones does to the first number of each leaf."""
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    return jax.tree.map(lambda u: round(float(jnp.ravel(u)[0]), 6), updates)["params"]


def test_the_first_rule_that_meets_a_leaf_takes_it():
    optimizer = learning.by_path(
        {
            "*.0.core.log_decay": optax.sgd(1.0),
            "*log_decay": optax.sgd(2.0),
            "params.readout.*": optax.sgd(3.0),
            "*.kernel": optax.sgd(4.0),
        },
        default=optax.sgd(5.0),
    )
    assert moved(optimizer) == {
        "layers": [
            {"core": {"log_decay": -1, "kernel": -4}, "bias": -5},
            {"core": {"log_decay": -2, "kernel": -4}, "bias": -5},
        ],
        "readout": {"kernel": -3},
    }


def test_frozen_leaves_do_not_move_and_take_no_memory():
    optimizer = learning.by_path({"*kernel": None}, default=optax.adam(0.1))
    found = moved(optimizer)
    assert found["readout"]["kernel"] == 0
    assert found["layers"][0]["core"] == {"log_decay": pytest.approx(-0.1, rel=1e-4), "kernel": 0}
    held = sum(leaf.size for leaf in jax.tree.leaves(optimizer.init(PARAMS)))
    assert held == 2 * (2 + 2 + 3 + 3) + 1  # two moments of what moves, and a count


def test_a_frozen_default():
    found = moved(learning.by_path({"*readout*": optax.sgd(1.0)}, default=None))
    assert found["readout"]["kernel"] == -1
    assert found["layers"][1] == {"core": {"log_decay": 0, "kernel": 0}, "bias": 0}


def test_without_rules_it_is_the_default():
    assert moved(learning.by_path({}, default=optax.sgd(2.0)))["readout"]["kernel"] == -2


def test_decay_goes_to_the_leaves_of_its_rule_only():
    rates = {"*log_decay": optax.adam(1e-3)}
    task = learning.Task(
        lambda key: PARAMS,
        lambda params, batch, key: jnp.float32(0) * params["params"]["readout"]["kernel"][0],
        learning.by_path(rates, default=optax.adamw(1.0, weight_decay=0.25)),
    )
    init, step = learning.training(task)
    state, _ = jax.jit(step)(jax.random.key(0), init(PARAMS), None)
    layer = state.params["params"]["layers"][0]
    np.testing.assert_allclose(layer["core"]["log_decay"], np.ones(2))
    np.testing.assert_allclose(layer["bias"], np.full(2, 0.75))


def test_the_recipe_for_state_matrices():
    """Each leaf moves as it would under its own optimiser alone, over several steps with a schedule."""
    slow = optax.adam(optax.linear_schedule(1e-3, 1e-4, 5))
    fast = optax.adamw(1e-2, weight_decay=0.1)
    params = {"core": {"log_decay": jnp.arange(3.0)}, "kernel": jnp.arange(4.0)}
    both = learning.by_path({"*log_decay": slow}, default=fast)
    state, found = both.init(params), params
    alone = {"log_decay": (slow, params["core"]["log_decay"]), "kernel": (fast, params["kernel"])}
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(4):
            updates, state = both.update(jax.tree.map(jnp.cos, found), state, found)
            found = optax.apply_updates(found, updates)
        for name, (optimizer, leaf) in alone.items():
            own = optimizer.init(leaf)
            for _ in range(4):
                updates, own = optimizer.update(jnp.cos(leaf), own, leaf)
                leaf = optax.apply_updates(leaf, updates)
            got = found["core"][name] if name == "log_decay" else found[name]
            np.testing.assert_allclose(got, leaf, rtol=1e-6)


def test_patterns_meet_whole_paths_and_heed_case():
    with pytest.raises(ValueError, match="pattern 'kernel' is without a leaf"):
        learning.by_path({"kernel": None}, default=None).init(PARAMS)
    with pytest.raises(ValueError, match="pattern '\\*Kernel' is without a leaf"):
        learning.by_path({"*Kernel": None}, default=None).init(PARAMS)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["*log_decy"], r"by_path: pattern '\*log_decy' is without a leaf; expected one that meets a leaf, such as "),
        (["*/log_decay"], "'params.layers.0.core.log_decay'.*Paths are written with dots"),
        (["*", "*bias"], r"pattern '\*bias' is never reached; .* which no rule before it takes\. Put it earlier"),
    ],
)
def test_a_pattern_that_takes_no_leaf_is_one_line(rules, message):
    optimizer = learning.by_path(dict.fromkeys(rules), default=optax.sgd(0.1))
    with pytest.raises(ValueError, match=message) as error:
        optimizer.init(PARAMS)
    assert "\n" not in str(error.value)


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match=r"by_path: rule 'a' is 0\.1; expected an optax optimiser, or None to freeze"):
        learning.by_path({"a": 0.1}, default=None)
    with pytest.raises(TypeError, match="by_path: default is an object of type function"):
        learning.by_path({}, default=optax.adam)
    with pytest.raises(TypeError, match="by_path: rules is"):
        learning.by_path(optax.adam(0.1), default=None)
