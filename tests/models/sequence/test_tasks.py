"""The tasks against their rules, example by example in Python, and against SciPy's integrator."""

import builtins
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from jaxprob.models.sequence import tasks


def examples(task, count=200, seed=0, **options):
    keys = jax.random.split(jax.random.key(seed), count)
    batch = jax.tree.map(np.asarray, jax.jit(jax.vmap(functools.partial(task, **options)))(keys))
    return [tasks.Example(*(part[i] for part in batch)) for i in range(count)]


@pytest.mark.parametrize(("symbols", "memory", "delay"), [(8, 10, 20), (1, 1, 1), (3, 2, 1)])
def test_copy(symbols, memory, delay):
    seen = set()
    for inputs, targets, mask in examples(tasks.copy, symbols=symbols, memory=memory, delay=delay):
        said = inputs[:memory]
        assert ((said >= 1) & (said <= symbols)).all()
        assert inputs[memory:].tolist() == [0] * (delay - 1) + [symbols + 1] + [0] * memory
        assert mask.tolist() == [False] * (memory + delay) + [True] * memory
        assert targets[mask].tolist() == said.tolist()
        seen |= set(said.tolist())
    assert seen == set(range(1, symbols + 1))


@pytest.mark.parametrize(("symbols", "memory", "length"), [(8, 5, 12), (2, 3, 3), (4, 1, 6)])
def test_selective_copy(symbols, memory, length):
    places = np.zeros(length)
    for inputs, targets, mask in examples(tasks.selective_copy, symbols=symbols, memory=memory, length=length):
        spread, marked = inputs[:length], inputs[length:]
        assert marked.tolist() == [symbols + 1] * memory
        assert mask.tolist() == [False] * length + [True] * memory
        assert targets[mask].tolist() == [token for token in spread.tolist() if token != 0]
        assert spread.max() <= symbols
        places += spread != 0
    assert (places > 0).all()


@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize(("keys", "values", "pairs", "queries"), [(8, 5, 6, 3), (4, 4, 4, None), (1, 1, 1, 1)])
def test_associative_recall(keys, values, pairs, queries, distinct):
    options = {"keys": keys, "values": values, "pairs": pairs, "queries": queries, "distinct": distinct}
    asked_places, replaced = set(), 0
    for inputs, targets, mask in examples(tasks.associative_recall, **options):
        memory, shown = {}, inputs[: 2 * pairs].reshape(pairs, 2).tolist()
        for key, value in shown:
            assert 0 <= key < keys <= value < keys + values
            replaced += key in memory and memory[key] != value
            memory[key] = value
        assert len(memory) == pairs or not distinct
        asked = inputs[2 * pairs :].tolist()
        assert len(asked) == (queries or pairs)
        assert len(set(asked)) == len(asked) or not distinct
        assert mask.tolist() == [False] * (2 * pairs) + [True] * len(asked)
        assert targets[mask].tolist() == [memory[key] for key in asked]
        asked_places.add(asked[0])
    assert asked_places == set(range(keys))
    assert (replaced > 0) == (not distinct and pairs > 1)


@pytest.mark.parametrize("length", [2, 3, 50])
def test_adding(length):
    sums, marked = [], np.zeros(length)
    for inputs, targets, mask in examples(tasks.adding, 2_000, length=length):
        numbers, marks = inputs.T
        assert set(marks.tolist()) <= {0, 1}
        assert marks[: length // 2].sum() == marks[length // 2 :].sum() == 1
        assert mask.tolist() == [False] * (length - 1) + [True]
        np.testing.assert_allclose(targets[-1, 0], numbers[marks == 1].sum(), rtol=1e-6)
        sums.append(targets[-1, 0])
        marked += marks
    assert (marked > 0).all()
    # The mean squared error of saying 1 is 1/6, with a standard error of 0.0044 for 2,000 examples.
    np.testing.assert_allclose(np.mean((np.array(sums) - 1) ** 2), 1 / 6, atol=5 * 0.0044)


def test_parity():
    for inputs, targets, mask in examples(tasks.parity, length=17):
        odd, wanted = False, []
        for bit in inputs.tolist():
            odd ^= bit == 1
            wanted.append(int(odd))
        assert targets.tolist() == wanted
        assert mask.all()


@pytest.mark.parametrize("task", [tasks.copy, tasks.selective_copy, tasks.associative_recall, tasks.parity])
def test_tokens_are_int32_and_keys_make_other_examples(task):
    one, same, other = (task(jax.random.key(seed)) for seed in (0, 0, 1))
    assert one.inputs.dtype == one.targets.dtype == jnp.int32
    assert one.mask.dtype == jnp.bool_
    np.testing.assert_array_equal(one.inputs, same.inputs)
    assert (np.asarray(one.inputs) != np.asarray(other.inputs)).any()


def test_digits():
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    train, test = tasks.digits()
    assert train.inputs.shape == (1438, 64, 1)
    assert test.inputs.shape == (359, 64, 1)
    known = {image.tobytes(): label for image, label in zip(images.astype(np.float32), labels, strict=True)}
    seen = []
    for inputs, targets, mask in zip(*(np.concatenate(x) for x in zip(train, test, strict=True)), strict=True):
        image = (inputs[:, 0] * 16).astype(np.float32).tobytes()
        assert (targets == known[image]).all()
        assert np.flatnonzero(mask).tolist() == [63]
        seen.append(image)
    assert sorted(seen) == sorted(image.tobytes() for image in images.astype(np.float32))


def test_permuted_digits_are_the_same_with_pixels_in_another_order():
    pytest.importorskip("sklearn")
    rows, permuted = tasks.digits()[0].inputs[..., 0], tasks.digits(permuted=True)[0].inputs[..., 0]
    assert (np.asarray(rows) != np.asarray(permuted)).any()
    np.testing.assert_array_equal(np.sort(rows, 1), np.sort(permuted, 1))
    # One order for all: each column is one of the others'.
    columns = {column.tobytes() for column in np.asarray(rows).T.copy()}
    assert {column.tobytes() for column in np.asarray(permuted).T.copy()} == columns


def test_digits_without_scikit_learn(monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(
        ImportError, match=r"tasks\.digits: scikit-learn is missing; .*pip install 'jaxprob\[examples\]'"
    ):
        tasks.digits()


def test_lorenz_follows_its_equation():
    def slope(t, s):
        return [10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]]

    for inputs, targets, mask in examples(tasks.lorenz, 3, length=120):
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        assert mask.all()
        assert 1 < inputs[:, 2].min() < inputs[:, 2].max() < 50  # on the attractor
        exact = solve_ivp(slope, (0, 2.4), inputs[0], t_eval=0.02 * np.arange(1, 121), rtol=1e-10, atol=1e-10).y.T
        # Errors grow by a factor of 9 in this time (exponent 0.9), more on the way: 1e-6 of a size of 20 at first.
        np.testing.assert_allclose(targets, exact, atol=5e-3)


def test_a_washout_leaves_the_start_out():
    early = tasks.lorenz(jax.random.key(3), length=30, washout=0)
    late = tasks.lorenz(jax.random.key(3), length=20, washout=10)
    np.testing.assert_allclose(early.inputs[10:], late.inputs, rtol=1e-4, atol=1e-4)


def mackey_glass_exact(start, delay, end, times):
    """By the method of steps: each piece of one delay is an ordinary equation with the piece before it known."""
    pieces, x = [lambda t: start], start
    for number in range(int(np.ceil(end / delay))):
        before = pieces[-1]

        def slope(t, x, before=before):
            late = before(t - delay)
            return 0.2 * late / (1 + late**10) - 0.1 * x

        span = number * delay, (number + 1) * delay
        solved = solve_ivp(slope, span, [x], rtol=1e-9, atol=1e-11, dense_output=True, max_step=0.5)
        pieces.append(lambda t, solved=solved: solved.sol(t)[0])
        x = solved.y[0, -1]
    return np.array([pieces[1 + min(int(t // delay), len(pieces) - 2)](t) for t in times])


def test_mackey_glass_follows_its_equation():
    for inputs, targets, mask in examples(tasks.mackey_glass, 3, length=100, washout=0):
        np.testing.assert_array_equal(inputs[1:], targets[:-1])
        assert inputs.shape == (100, 1)
        assert mask.all()
        assert 0.5 <= inputs[0, 0] <= 1.3
        exact = mackey_glass_exact(float(inputs[0, 0]), 17.0, 101.0, np.arange(1, 101.0))
        np.testing.assert_allclose(targets[:, 0], exact, atol=2e-4)


def test_mackey_glass_is_chaotic_with_a_long_delay_and_settles_with_a_short_one():
    (inputs, _, _), *_ = examples(tasks.mackey_glass, 1, length=300)
    assert 0.2 < inputs.min() < 0.6
    assert 1.1 < inputs.max() < 1.5
    (inputs, _, _), *_ = examples(tasks.mackey_glass, 1, length=20, delay=2.0, washout=500)
    np.testing.assert_allclose(inputs, 1.0, atol=1e-3)  # where 0.2 x / (1 + x^10) = 0.1 x


def test_series_take_the_default_float(x64):
    assert tasks.lorenz(jax.random.key(0), length=3, washout=1).inputs.dtype == jnp.float64
    assert tasks.mackey_glass(jax.random.key(0), length=3, washout=1).inputs.dtype == jnp.float64
    assert tasks.adding(jax.random.key(0), length=3).inputs.dtype == jnp.float64


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (tasks.copy, {"delay": 0}, r"tasks\.copy: delay is 0; expected a whole number, 1 or more"),
        (tasks.copy, {"symbols": 2.0}, r"symbols is 2\.0"),
        (tasks.selective_copy, {"memory": 5, "length": 4}, r"memory is 5; expected at most length, 4"),
        (tasks.associative_recall, {"pairs": 17}, "pairs is 17; expected at most keys, 16, where they are distinct"),
        (tasks.associative_recall, {"queries": 9}, "queries is 9; expected at most pairs, 8"),
        (tasks.associative_recall, {"queries": 0}, "queries is 0"),
        (tasks.adding, {"length": 1}, "length is 1; expected a whole number, 2 or more"),
        (tasks.parity, {"length": 0}, r"tasks\.parity: length is 0"),
        (tasks.lorenz, {"step": 0.0}, r"step is 0\.0; expected a positive number"),
        (tasks.lorenz, {"washout": -1}, "washout is -1; expected a whole number, 0 or more"),
        (tasks.mackey_glass, {"delay": 17.03}, r"delay is 17\.03; expected a multiple of a step of integration, 0\.1,"),
        (tasks.mackey_glass, {"delay": 0.1}, r"delay is 0\.1; .* 2 of them at least\. Change step or substeps"),
    ],
)
def test_bad_input_is_one_line(task, options, message):
    with pytest.raises(ValueError, match=message) as error:
        task(jax.random.key(0), **options)
    assert "\n" not in str(error.value)


def test_bad_fraction_of_digits():
    with pytest.raises(ValueError, match=r"tasks\.digits: test is 1\.0; expected a fraction between 0 and 1"):
        tasks.digits(test=1.0)
