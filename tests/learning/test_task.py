"""What a training job may be made of, and what is said about what it may not."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from jaxprob import learning


def init(key):
    return {"w": jnp.zeros(2)}


def loss(params, batch, key):
    return jnp.mean((batch - params["w"]) ** 2)


def test_a_task_is_hashable_and_static():
    task = learning.Task(init, loss, optax.sgd(0.1), compute_dtype="bfloat16")
    assert hash(task) == hash(learning.Task(init, loss, task.optimizer, compute_dtype=jnp.bfloat16))
    assert task.compute_dtype == jnp.bfloat16

    @functools.partial(jax.jit, static_argnums=0)
    def start(task, key):
        return learning.training(task).init(task.init(key))

    assert int(start(task, jax.random.key(0)).step) == 0


def test_keyword_arguments_and_defaults_of_a_loss_are_allowed():
    def odd(params, batch, key=None, *, weight=1.0):
        return jnp.float32(0)

    learning.Task(init, odd, optax.sgd(0.1))
    learning.Task(init, lambda *arguments: jnp.float32(0), optax.sgd(0.1))
    learning.Task(functools.partial(lambda size, key: jnp.zeros(size), 3), loss, optax.sgd(0.1))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"loss": lambda params, batch: 0.0},
            TypeError,
            r"loss is a function of \(params, batch\); expected",
        ),
        ({"loss": lambda p, b, k, more: 0.0}, TypeError, r"expected a function of \(params, batch, key\)"),
        ({"loss": lambda p, b, *, key: 0.0}, TypeError, r"function of \(p, b, \*, key\)"),
        ({"loss": 3.0}, TypeError, r"Task: loss is 3\.0; expected a function of \(params, batch, key\)"),
        ({"init": lambda: 0.0}, TypeError, r"Task: init is a function of \(\); expected a function of \(key\)"),
        ({"optimizer": 1e-3}, TypeError, r"optimizer is 0\.001; expected an optax optimiser\. Such as optax\.adam"),
        ({"optimizer": optax.adam}, TypeError, "expected an optax optimiser"),
        ({"micro_batches": 0}, ValueError, "micro_batches is 0; expected a number of pieces, 1 or more"),
        ({"micro_batches": True}, ValueError, "micro_batches is True"),
        ({"micro_batches": 2.0}, ValueError, r"micro_batches is 2\.0"),
        ({"ema": 1.0}, ValueError, r"ema is 1\.0; expected a decay between 0 and 1, or None"),
        ({"ema": float("nan")}, ValueError, "ema is nan"),
        ({"compute_dtype": jnp.int32}, ValueError, "compute_dtype is int32; expected a floating dtype"),
        ({"compute_dtype": "half-ish"}, ValueError, "expected a floating dtype, or None. Such as"),
        ({"max_gradient_norm": 0}, ValueError, "max_gradient_norm is 0; expected a positive number, or None"),
        ({"max_gradient_norm": float("inf")}, ValueError, "max_gradient_norm is inf"),
    ],
)
def test_bad_input_is_one_line(change, error, message):
    arguments = {"init": init, "loss": loss, "optimizer": optax.sgd(0.1)} | change
    with pytest.raises(error, match=message) as raised:
        learning.Task(**arguments)
    assert "\n" not in str(raised.value)
