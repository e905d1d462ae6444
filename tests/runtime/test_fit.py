"""Training: what it computes, how it ends, what it writes, and what it refuses."""

import doctest
import importlib
import json
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprob
from jaxprob import core, learning, runtime
from jaxprob.runtime import _checkpoint
from tests.runtime import _tasks

NUMBERS = np.array([1.0, 3.0, -2.0, 5.0, 0.5, 4.0], np.float32)


def by_hand(numbers, steps, batch_size, rate=0.1):
    """Gradient descent on half the squared distance to the mean of each batch, in order, float64."""
    w, losses, points = 0.0, [], []
    for step in range(steps):
        batch = np.take(numbers, np.arange(step * batch_size, (step + 1) * batch_size), mode="wrap").astype(float)
        losses.append(np.mean((batch - w) ** 2) / 2)
        w -= rate * (w - batch.mean())
        points.append(w)
    return np.array(points), np.array(losses)


def numbers(batch_size=2, **options):
    return learning.data.arrays(NUMBERS, batch_size, **{"shuffle": False, **options})


def fit(task=None, data=None, **options):
    options = {"devices": 1, "progress": None, "steps": 20, **options}
    return jaxprob.fit(task or _tasks.mean(), numbers() if data is None else data, **options)


def test_steps_are_those_done_by_hand():
    result = fit(log_every=1)
    points, losses = by_hand(NUMBERS, 20, 2)
    np.testing.assert_allclose(result.params, points[-1], rtol=1e-5)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)
    np.testing.assert_array_equal(result.history["step"], np.arange(1, 21))
    assert (result.step, int(result.state.step), result.ended) == (20, 20, "finished")
    assert result.average is None
    assert result.best is None
    assert result.path is None
    # The gradient is w minus the mean of the batch.
    means = NUMBERS.reshape(3, 2).mean(1)[np.arange(20) % 3]
    np.testing.assert_allclose(result.history["gradient_norm"], abs(np.append(0, points[:-1]) - means), rtol=1e-4)


def test_epochs_and_lines_every_few_steps():
    result = fit(steps=None, epochs=4)
    assert result.step == 12
    np.testing.assert_array_equal(result.history["step"], [10])
    assert list(result.history) == ["step", "loss", "gradient_norm"]


def test_each_step_has_a_key_of_its_own_however_the_run_is_cut(monkeypatch):
    def loss(w, batch, key):
        return w * jax.random.normal(key), {"drawn": jax.random.normal(jax.random.fold_in(key, 1))}

    task = learning.Task(lambda key: jax.random.normal(key), loss, optax.sgd(1.0))
    key = jax.random.key(5)
    result = fit(task, key=key, log_every=1)
    drawn = [jax.random.normal(core.fold(key, step)) for step in range(20)]
    start = jax.random.normal(core.fold(key, np.uint32(2**31)))
    np.testing.assert_allclose(result.params, start - np.sum(drawn), rtol=1e-5)
    monkeypatch.setattr("jaxprob.runtime._loop.SECONDS_PER_CHUNK", 0.0)  # a step a chunk
    monkeypatch.setattr("jaxprob.runtime._loop.FIRST_CHUNK", 3)
    again = fit(task, key=key, log_every=1)
    np.testing.assert_array_equal(again.history["drawn"], result.history["drawn"])
    np.testing.assert_array_equal(again.params, result.params)


def test_a_stream_and_a_generated_source():
    batches = NUMBERS.reshape(3, 2)
    stream = fit(data=iter(np.tile(batches, (7, 1))), log_every=1)
    np.testing.assert_array_equal(stream.history["loss"], fit(log_every=1).history["loss"])
    ended = fit(data=iter(batches), steps=None)
    assert (ended.step, ended.ended) == (3, "finished")
    np.testing.assert_allclose(ended.params, by_hand(NUMBERS, 3, 2)[0][-1], rtol=1e-6)
    generated = learning.data.generated(lambda key: jax.random.normal(key, (2,)), seed=4)
    made = [jax.random.normal(jax.random.fold_in(jax.random.key(4), step), (2,)) for step in range(6)]
    points, _ = by_hand(np.concatenate(made), 6, 2)
    np.testing.assert_allclose(fit(data=generated, steps=6).params, points[-1], rtol=1e-5, atol=1e-6)


def test_more_batches_than_a_block_holds(monkeypatch):
    monkeypatch.setattr("jaxprob.runtime._feed.MOST", 4)
    result = fit(data=iter(np.tile(NUMBERS.reshape(3, 2), (10, 1))), steps=None, log_every=1)
    assert result.step == 30
    np.testing.assert_allclose(result.history["loss"], by_hand(NUMBERS, 30, 2)[1], rtol=1e-5)


def test_a_batch_of_another_shape_is_named():
    batches = [NUMBERS[:2], NUMBERS[2:4], NUMBERS[4:5]]
    with pytest.raises(
        ValueError, match=r"^fit: batch 2 of the stream, .* is float32 of shape \(1,\); expected float32"
    ):
        fit(data=iter(batches), steps=None)


def test_validation_is_a_mean_over_batches_and_the_best_is_kept(tmp_path):
    # Towards 10 from 0; what is held out lies at 2: first nearer, then farther.
    data = learning.data.arrays(np.full(4, 10.0, np.float32), 2)
    held_out = np.array([1.0, 3.0, 2.5, 1.5], np.float32)
    validation = learning.data.arrays(held_out, 2)
    result = fit(data=data, validation=validation, evaluate_every=1, steps=8, log_every=3, out=tmp_path / "run")
    points, _ = by_hand(np.full(2, 10.0), 8, 2)
    losses = [np.mean((held_out - w) ** 2) / 2 for w in points]
    np.testing.assert_allclose(result.history["validation/loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(result.best, points[np.argmin(losses)], rtol=1e-6)
    assert result.best_step == np.argmin(losses) + 1
    assert np.argmin(losses) not in (0, 7)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(
        range(1, 9)
    )  # of an evaluation, though only each third is asked for
    assert all(isinstance(line["validation/loss"], float) for line in lines)
    stopped = fit(data=data, validation=validation, evaluate_every=1, steps=8, patience=2)
    assert stopped.step == np.argmin(losses) + 3
    assert stopped.ended == f"patience: no better validation loss since step {np.argmin(losses) + 1}"


def test_evaluation_uses_the_average_and_comes_once_an_epoch_by_default():
    validation = learning.data.arrays(np.zeros(2, np.float32), 2)
    task = learning.Task(
        lambda key: jnp.ones(()), lambda w, batch, key: jnp.mean((w - batch) ** 2), optax.sgd(0.1), ema=0.5
    )
    result = fit(task, validation=validation, steps=7, log_every=1)
    at = np.flatnonzero(~np.isnan(result.history["validation/loss"]))
    np.testing.assert_array_equal(result.history["step"][at], [3, 6])
    six = fit(task, steps=6)
    np.testing.assert_allclose(result.history["validation/loss"][5], six.average**2, rtol=1e-6)
    assert abs(six.average - six.params) > 1e-3


def explodes(at, in_gradient=False):
    """A task and data whose loss, or only its gradient, is NaN from a batch on."""

    def loss(w, batch, key):
        fine, there = jnp.mean((batch - w) ** 2) / 2, batch[0] >= at
        if in_gradient:
            return fine + jnp.sqrt(jnp.where(there, w - w, 1.0))
        return jnp.where(there, jnp.nan, fine)

    task = learning.Task(lambda key: jnp.zeros(()), loss, optax.sgd(0.1))
    return task, learning.data.arrays(np.arange(100, dtype=np.float32), 1, shuffle=False)


@pytest.mark.parametrize("in_gradient", [False, True], ids=["loss", "gradient"])
def test_nan_stops_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, in_gradient):
    monkeypatch.setattr("jaxprob.runtime._loop.FIRST_CHUNK", 7)
    task, data = explodes(10, in_gradient)
    name = "gradient_norm" if in_gradient else "loss"
    said = rf"^fit: {name} is nan at step 11; expected a finite number. The last good checkpoint, of step 7, is .*/7\.$"
    with pytest.raises(runtime.NotFiniteError, match=said) as caught:
        fit(task, data, out=tmp_path / "run", checkpoint_every=0, log_every=1)
    assert caught.value.step == 11
    good = fit(task, data, steps=10, log_every=1)
    np.testing.assert_array_equal(caught.value.result.params, good.params)
    np.testing.assert_array_equal(caught.value.result.history["step"], np.arange(1, 11))
    assert _checkpoint.steps(tmp_path / "run" / "checkpoints") == [7]
    assert json.loads((tmp_path / "run" / "meta.json").read_text())["status"] == "failed"
    # From there a run goes on, as far as it can.
    resumed = fit(task, data, steps=10, out=tmp_path / "run", resume=True, log_every=1)
    np.testing.assert_array_equal(resumed.params, good.params)


def test_nan_in_the_first_chunk_leaves_the_state_before_it(tmp_path):
    task, data = explodes(10)
    with pytest.raises(runtime.NotFiniteError, match=r"The last good checkpoint, of step 10, is .*/10\.$"):
        fit(task, data, out=tmp_path / "run", log_every=1)
    resumed, good = (
        fit(task, data, steps=10, log_every=1, **x) for x in ({"out": tmp_path / "run", "resume": True}, {})
    )
    np.testing.assert_array_equal(resumed.params, good.params)
    np.testing.assert_array_equal(resumed.history["loss"], good.history["loss"])


def test_nan_without_a_checkpoint_is_told_too():
    task, data = explodes(0)
    with pytest.raises(
        runtime.NotFiniteError, match=r"^fit: loss is nan at step 1; expected .* There is no checkpoint yet"
    ):
        fit(task, data)


def test_wall_clock():
    began = time.monotonic()
    result = fit(steps=None, until=runtime.wall_clock(0.2))
    assert result.ended == "until: wall clock 0.2 s"
    assert 0.2 <= time.monotonic() - began < 100
    assert result.step > 0


def test_progress_may_be_false():
    np.testing.assert_array_equal(fit(progress=False).params, fit(progress=None).params)


def test_progress_is_told_of_steps_and_losses():
    told = []
    watcher = types.SimpleNamespace(
        start=told.append,
        phase=told.append,
        update=told.append,
        finish=told.append,
        close=lambda: told.append("closed"),
    )
    fit(progress=watcher, validation=numbers(), evaluate_every=5)
    plan = told[0]
    assert (plan["algorithm"], plan["devices"], plan["steps"]) == ("training of 1 parameters", "1 cpu device", 20)
    assert told[1] == "compiling"
    assert "training" in told
    last = [status for status in told if isinstance(status, dict)][-1]
    assert (last["step"], last["total"], last["phase"]) == (20, 20, "training")
    assert last["steps_per_second"] > 0
    assert {"loss", "validation/loss"} < set(last)
    assert told[-2:] == ["finished: 20 steps", "closed"]


def test_tensorboard_gets_the_metrics(tmp_path):
    pytest.importorskip("tensorboardX")
    fit(out=tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run" / "tensorboard").glob("events.*"))


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(
        ImportError, match=r"^fit: tensorboard is True without tensorboardX; .*'jaxprob\[tensorboard\]'"
    ):
        fit(out=tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 2}, "epochs is 2 beside steps=20; expected one of the two"),
        ({"steps": None}, "steps is None; expected a number of steps"),
        ({"steps": 0}, "steps is 0; expected an integer of at least 1"),
        (
            {"steps": None, "epochs": 2, "data": learning.data.generated(lambda key: jnp.zeros(2))},
            "epochs is 2 for data",
        ),
        ({"task": "adam"}, "task is 'adam'; expected a learning.Task"),
        ({"data": NUMBERS}, "data is a float32 array of shape"),
        ({"key": 3}, "key is 3; expected one random key"),
        ({"patience": 3}, "patience is 3 without validation"),
        ({"evaluate_every": 3}, "evaluate_every is 3 without validation"),
        ({"validation": iter([NUMBERS])}, "validation is .*; expected a source with epochs"),
        ({"log_every": 0}, "log_every is 0; expected"),
        ({"tensorboard": True}, "tensorboard is True without out"),
        ({"until": runtime.r_hat()}, "until is r hat 1.01; expected runtime.wall_clock"),
        ({"devices": "cpu"}, "devices is 'cpu'; expected None, a number of devices"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, change, said):
    out = {} if "tensorboard" in change else {"out": tmp_path / "run"}
    with pytest.raises((ValueError, TypeError), match=f"^fit: {said}") as caught:
        fit(**{**out, **change})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_stream_without_a_batch():
    with pytest.raises(ValueError, match="^fit: data is a stream without a batch; expected one batch at least"):
        fit(data=iter(()))


def test_what_does_not_compile_writes_nothing(tmp_path):
    bad = learning.Task(lambda key: jnp.zeros(()), lambda w, batch, key: batch - w, optax.sgd(0.1))
    with pytest.raises(ValueError, match="training: the loss is float32 of shape"):
        fit(bad, out=tmp_path / "run")
    with pytest.raises((ValueError, TypeError)):  # of other shapes than the loss can take
        fit(_tasks.network(), _tasks.arrays(), validation=numbers(), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["_fit", "_fit_cost"])
def test_examples_of_the_docstrings(name):
    with jax.numpy_dtype_promotion("standard"):  # as it is for whoever reads them
        assert doctest.testmod(importlib.import_module(f"jaxprob.runtime.{name}")).failed == 0
