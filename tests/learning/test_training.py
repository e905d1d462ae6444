"""The training step against NumPy in float64 and loops written by hand."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxprob import learning, scan

KEY = jax.random.key(0)


def regression(params, batch, key):
    x, y = batch
    return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


def start(key=None):
    return {"w": jnp.zeros(3), "b": jnp.zeros(())}


@pytest.fixture
def batch(rng):
    x = rng.normal(size=(24, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(x @ np.array([1, -2, 0.5], np.float32) + 1)


def gradient(w, b, x, y):
    """That of the regression, in float64."""
    error = x @ w + b - y
    return 2 * x.T @ error / len(y), 2 * np.mean(error)


def task_of(**options):
    options = {"optimizer": optax.sgd(0.1), "loss": regression} | options
    return learning.Task(start, options.pop("loss"), options.pop("optimizer"), **options)


def run(task, batch, steps, jit=True):
    init, step = learning.training(task)
    state, infos = init(start()), []
    step = jax.jit(step) if jit else step
    for index in range(steps):
        state, info = step(jax.random.fold_in(KEY, index), state, batch)
        infos.append(info)
    return state, {name: np.array([info[name] for info in infos]) for name in infos[0]}


@pytest.mark.parametrize("jit", [True, False])
def test_steps_are_those_of_gradient_descent(batch, jit):
    state, info = run(task_of(), batch, 5, jit)
    x, y = (np.asarray(a, np.float64) for a in batch)
    w, b = np.zeros(3), 0.0
    for index in range(5):
        np.testing.assert_allclose(info["loss"][index], np.mean((x @ w + b - y) ** 2), rtol=1e-5)
        dw, db = gradient(w, b, x, y)
        np.testing.assert_allclose(info["gradient_norm"][index], np.sqrt(dw @ dw + db**2), rtol=1e-5)
        w, b = w - 0.1 * dw, b - 0.1 * db
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    np.testing.assert_allclose(state.params["b"], b, rtol=1e-5)
    assert info["finite"].all()
    assert state.step == 5
    assert state.step.dtype == jnp.int32
    assert state.average is None
    assert state.evaluation_params is state.params


def test_a_scan_of_steps_is_a_loop_of_them(batch):
    task = task_of(optimizer=optax.adam(0.1), ema=0.9, max_gradient_norm=1.0)
    init, step = learning.training(task)

    def one(state, index):
        return step(jax.random.fold_in(KEY, index), state, batch)

    state, info = jax.jit(lambda s: scan.scan(one, s, jnp.arange(7)))(init(start()))
    wanted, infos = run(task, batch, 7)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state, wanted)
    np.testing.assert_allclose(info["loss"], infos["loss"], rtol=1e-4)


@pytest.mark.parametrize("pieces", [2, 3, 24])
def test_micro_batches_have_the_gradient_of_the_whole(batch, pieces):
    whole, whole_info = run(task_of(), batch, 3)
    cut, cut_info = run(task_of(micro_batches=pieces), batch, 3)
    np.testing.assert_allclose(cut.params["w"], whole.params["w"], rtol=1e-6, atol=1e-6)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(cut_info[name], whole_info[name], rtol=1e-6)


def test_micro_batches_are_summed_in_float32():
    # Gradients -1 and then -2^-8 for many pieces: in bfloat16 each of the latter is lost against the sum.
    batch = jnp.concatenate([jnp.ones(1), jnp.full(255, 2.0**-8)])

    def loss(w, batch, key):
        return -w * jnp.mean(batch).astype(jnp.bfloat16)

    task = learning.Task(lambda key: jnp.zeros(()), loss, optax.sgd(1.0), micro_batches=256)
    init, step = learning.training(task)
    state, _ = step(KEY, init(jnp.bfloat16(0)), batch)
    assert state.params.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(state.params), (1 + 255 / 256) / 256, rtol=2**-8)


def test_keys_differ_from_piece_to_piece_and_step_to_step():
    def loss(w, batch, key):
        noise = jax.random.normal(key)
        return w * 0 + jnp.mean(batch), {"noise": noise, "square": noise**2}

    task = learning.Task(lambda key: jnp.zeros(()), loss, optax.sgd(1.0), micro_batches=4)
    init, step = learning.training(task)
    _, info = step(KEY, init(jnp.zeros(())), jnp.zeros(8))
    assert float(info["square"] - info["noise"] ** 2) > 1e-3  # the variance over the pieces
    _, other = step(jax.random.key(1), init(jnp.zeros(())), jnp.zeros(8))
    assert info["noise"] != other["noise"]


def test_metrics_are_averaged_over_pieces():
    def loss(w, batch, key):
        return w * 0.0, {"first": batch[0], "count": jnp.sum(batch > 1), "right": jnp.all(batch > 1)}

    task = learning.Task(lambda key: jnp.zeros(()), loss, optax.sgd(1.0), micro_batches=2)
    init, step = learning.training(task)
    _, info = step(KEY, init(jnp.zeros(())), jnp.array([0.0, 2.0, 4.0, 6.0]))  # pieces (0, 4) and (2, 6)
    assert {name: float(info[name]) for name in ("first", "count", "right")} == {"first": 1, "count": 1.5, "right": 0.5}


def test_the_gradient_is_clipped_and_its_norm_reported_from_before(batch):
    x, y = (np.asarray(a, np.float64) for a in batch)
    dw, db = gradient(np.zeros(3), 0.0, x, y)
    norm = np.sqrt(dw @ dw + db**2)
    for limit, scale in ((0.5, 0.5 / norm), (100.0, 1.0)):
        state, info = run(task_of(max_gradient_norm=limit), batch, 1)
        np.testing.assert_allclose(info["gradient_norm"], [norm], rtol=1e-5)
        np.testing.assert_allclose(state.params["w"], -0.1 * scale * dw, rtol=1e-5)


def test_the_norm_is_over_all_leaves_of_any_shape_and_dtype(rng):
    gradients = {"a": rng.normal(size=(3, 4, 5)), "b": rng.normal(size=()), "c": rng.normal(size=7)}
    dtypes = {"a": jnp.float32, "b": jnp.float32, "c": jnp.bfloat16}
    params = {name: jnp.asarray(g, dtypes[name]) for name, g in gradients.items()}

    def loss(params, batch, key):
        return sum(0.5 * jnp.sum(jnp.square(p.astype(jnp.float32))) for p in jax.tree.leaves(params))

    init, step = learning.training(learning.Task(lambda key: params, loss, optax.sgd(0.1)))
    _, info = step(KEY, init(params), None)
    wanted = np.sqrt(sum(np.sum(np.square(np.asarray(p, np.float64))) for p in params.values()))
    np.testing.assert_allclose(info["gradient_norm"], wanted, rtol=1e-5)


def test_a_gradient_of_zero_is_not_divided_by():
    task = learning.Task(start, lambda p, b, k: 0.0 * p["b"], optax.sgd(0.1), max_gradient_norm=1.0)
    init, step = learning.training(task)
    state, info = step(KEY, init(start()), None)
    assert bool(info["finite"])
    assert float(state.params["b"]) == 0


def test_the_average_weighs_by_powers_of_its_decay(batch):
    init, step = learning.training(task_of(ema=0.8))
    state, history = init(start()), []
    np.testing.assert_array_equal(state.evaluation_params["w"], np.zeros(3))
    for index in range(6):
        state, _ = step(jax.random.fold_in(KEY, index), state, batch)
        history.append(np.asarray(state.params["w"], np.float64))
        weights = 0.8 ** np.arange(index, -1, -1)
        wanted = weights @ np.stack(history) / weights.sum()
        np.testing.assert_allclose(state.evaluation_params["w"], wanted, rtol=1e-5)


def test_a_slow_average_is_exact_from_its_first_step():
    task = learning.Task(start, lambda p, b, k: p["b"], optax.sgd(1.0), ema=0.999_99)
    init, step = learning.training(task)
    state = init({"w": jnp.zeros(3), "b": jnp.float32(5)})
    for index in range(3):  # parameters 4, 3, 2
        state, _ = step(jax.random.fold_in(KEY, index), state, None)
    np.testing.assert_allclose(state.average["b"], 3 - 1e-5 * (2 / 3), rtol=1e-6)


def test_the_average_of_bfloat16_parameters_is_kept_in_float32():
    task = learning.Task(start, lambda p, b, k: p, optax.sgd(2.0**-7), ema=0.999)
    init, step = learning.training(task)
    state = init(jnp.bfloat16(1))
    for index in range(4):
        state, _ = step(jax.random.fold_in(KEY, index), state, None)
    assert state.average.dtype == jnp.float32
    assert state.evaluation_params.dtype == state.params.dtype == jnp.bfloat16
    weights = 0.999 ** np.arange(3, -1, -1)
    np.testing.assert_allclose(state.average, weights @ (1 - 2.0**-7 * np.arange(1, 5)) / weights.sum(), rtol=1e-6)


def test_the_master_copy_is_float32_when_the_loss_computes_in_bfloat16(batch):
    seen = []

    def loss(params, batch, key):
        seen.append(jax.tree.map(lambda p: p.dtype, params))
        x, y = jax.tree.map(lambda a: a.astype(jnp.bfloat16), batch)
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    task = task_of(loss=loss, compute_dtype=jnp.bfloat16, optimizer=optax.adam(1e-3))
    init, step = learning.training(task)
    state = init(jax.tree.map(lambda p: p.astype(jnp.bfloat16), start()))
    for index in range(10):
        state, info = step(jax.random.fold_in(KEY, index), state, batch)
    assert set(jax.tree.leaves(seen)) == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.optimizer_state[0].mu)} == {jnp.dtype(jnp.float32)}
    assert info["loss"].dtype == jnp.float32
    # Ten steps of Adam at 1e-3: ten times what bfloat16 resolves at 1, and far from what it holds exactly.
    np.testing.assert_allclose(state.params["w"], [0.01, -0.01, 0.01], rtol=0.05)


def test_float64_stays_float64(x64, batch):
    task = task_of(ema=0.9, micro_batches=2, max_gradient_norm=1.0, optimizer=optax.adam(1e-2))
    init, step = learning.training(task)
    state = init(jax.tree.map(lambda p: p.astype(jnp.float64), start()))
    double = jax.tree.map(lambda a: a.astype(jnp.float64), batch)
    after, info = jax.jit(step)(KEY, state, double)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
    assert info["loss"].dtype == jnp.float64


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing_and_says_so(bad, pieces):
    def loss(params, batch, key):
        if bad == "loss":
            return params["b"] * jnp.max(batch)
        return jnp.sum(jnp.sqrt(params["w"] * 0)) + params["b"] + jnp.mean(batch)  # infinite slope times zero

    task = task_of(loss=loss, optimizer=optax.adam(1e-2), ema=0.9, micro_batches=pieces)
    init, step = learning.training(task)
    state = init({"w": jnp.ones(3), "b": jnp.ones(())})
    bad_batch = jnp.array([1.0, jnp.nan]) if bad == "loss" else jnp.ones(2)
    after, info = jax.jit(step)(KEY, state, bad_batch)
    assert not bool(info["finite"])
    assert np.isnan(info["loss" if bad == "loss" else "gradient_norm"])
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_the_state_may_be_donated(batch):
    init, step = learning.training(task_of(ema=0.9, optimizer=optax.adam(0.1)))
    for state in (init(start()), jax.jit(init)(start())):
        after, _ = jax.jit(step, donate_argnums=1)(jax.random.key(0), state, batch)
        assert np.isfinite(after.average["w"]).all()


def test_an_optimizer_may_look_at_the_loss(batch):
    plateau = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(factor=0.5, patience=1))
    stuck = task_of(optimizer=plateau, loss=lambda p, b, k: p["b"] * 0.0 + 1.0)
    state, _ = run(stuck, batch, 6)
    assert float(state.optimizer_state[1].scale) < 1


def test_many_trainings_are_a_vmap(batch):
    init, step = learning.training(task_of(micro_batches=2))
    starts = {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.zeros(2)}
    states = jax.vmap(init)(starts)
    keys = jax.random.split(KEY, 2)
    after, info = jax.vmap(step, in_axes=(0, 0, None))(keys, states, batch)
    for i in range(2):
        one, _ = step(keys[i], init(jax.tree.map(operator.itemgetter(i), starts)), batch)
        np.testing.assert_allclose(after.params["w"][i], one.params["w"], rtol=1e-5)
    assert info["loss"].shape == (2,)


def test_the_loss_is_traced_once(batch):
    traces = []

    def loss(params, batch, key):
        traces.append(1)
        return regression(params, batch, key)

    for pieces in (1, 4):
        traces.clear()
        run(task_of(loss=loss, micro_batches=pieces), batch, 3)
        assert len(traces) <= 2


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda p, b, k: p["w"], r"the loss is float32 of shape \(3,\); expected a floating scalar\. Take the mean"),
        (lambda p, b, k: jnp.int32(1), r"the loss is int32 of shape \(\); expected a floating scalar"),
        (lambda p, b, k: jax.lax.complex(p["b"], p["b"]), "the loss is complex64"),
        (lambda p, b, k: None, "the loss is None; expected a scalar, or"),
        (lambda p, b, k: {"loss": p["b"]}, "the loss is an object of type dict; expected a scalar"),
        (lambda p, b, k: (p["b"], p["b"]), "the metrics of the loss is .*; expected a dict of scalars"),
        (lambda p, b, k: (p["b"], {}, 1), "the loss is .*; expected a scalar, or"),
        (lambda p, b, k: (p["b"], {"loss": p["b"]}), "metric 'loss' is named like one of the step"),
        (lambda p, b, k: (p["b"], {"finite": p["b"]}), "metric 'finite' is named like"),
        (lambda p, b, k: (p["b"], {"weights": p["w"]}), r"metric 'weights' is of shape \(3,\); expected a scalar"),
        (lambda p, b, k: (p["b"], {"deep": {"a": p["b"]}}), "metric 'deep' is an object of type dict"),
    ],
)
@pytest.mark.parametrize("pieces", [1, 2])
def test_what_is_no_loss_is_said_in_one_line_when_it_is_traced(loss, message, pieces):
    init, step = learning.training(task_of(loss=loss, micro_batches=pieces))
    with pytest.raises((TypeError, ValueError), match=message) as error:
        jax.eval_shape(step, KEY, init(start()), jnp.zeros(4))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (jnp.zeros(7), "batch, leaf 'value', is of 7 examples; expected a number .* that micro_batches=2 divides"),
        ({"x": jnp.zeros(4), "n": jnp.zeros(())}, "leaf 'n', is a scalar"),
        ({"x": jnp.zeros(4), "y": jnp.zeros(6)}, "leaf 'y', is of 6 examples; expected 4, as leaf 'x'"),
    ],
)
def test_a_batch_that_micro_batches_do_not_divide(batch, message):
    init, step = learning.training(task_of(loss=lambda p, b, k: p["b"], micro_batches=2))
    with pytest.raises(ValueError, match=message):
        step(KEY, init(start()), batch)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": jnp.zeros(2), "n": jnp.zeros((), int)}, "parameter 'n' is of int32; expected real floating numbers"),
        ({"c": jnp.zeros(2, complex)}, "parameter 'c' is of complex64; .* Store its real and imaginary parts"),
        ({}, "params is without arrays"),
    ],
)
def test_parameters_are_real_and_floating(params, message):
    with pytest.raises((TypeError, ValueError), match=message):
        learning.training(task_of()).init(params)


def test_an_evaluation_is_the_loss_in_the_dtype_of_the_task():
    def loss(params, batch, key):
        return jnp.sum(params * batch), {"is_low": params.dtype == jnp.bfloat16}

    task = learning.Task(lambda key: jnp.ones(2), loss, optax.sgd(0.1), compute_dtype=jnp.bfloat16)
    found = learning.evaluation(task)(jax.random.key(0), jnp.array([1.0, 0.5]), jnp.array([2.0, 4.0], jnp.bfloat16))
    assert found["loss"].dtype == jnp.float32
    assert (float(found["loss"]), bool(found["is_low"])) == (4.0, True)


def test_what_is_held_out_is_judged_by_the_validation_loss():
    """Here the one is zero everywhere, the other the squared distance."""
    task = learning.Task(
        lambda key: jnp.zeros(()),
        lambda w, batch, key: 0.0 * w,
        optax.sgd(0.5),
        validation_loss=lambda w, batch, key: (jnp.mean((w - batch) ** 2), {"size": jnp.float32(batch.size)}),
    )
    found = learning.evaluation(task)(jax.random.key(0), jnp.ones(()), jnp.array([1.0, 3.0]))
    assert {name: float(x) for name, x in found.items()} == {"loss": 2.0, "size": 2.0}
    with pytest.raises(TypeError, match=r"validation_loss is .*; expected a function of \(params, batch, key\)"):
        dataclasses.replace(task, validation_loss=lambda params: 0.0)
