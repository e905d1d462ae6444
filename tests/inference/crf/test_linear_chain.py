"""Linear-chain conditional random fields against the enumeration of all sequences of tags: K = 4, T = 6."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from jaxprob.inference import crf
from jaxprob.models.state_space import LinearChain

METHODS = ("sequential", "parallel")
MASKS = {
    "whole": None,
    "padded": [True, True, True, True, False, False],
    "padded before": [False, False, True, True, True, True],
    "holes": [True, False, True, True, False, True],
    "one": [False, False, True, False, False, False],
}


def make(seed=0, times=6, mask=None, varying=False, dtype=np.float64):
    """A field, and its entries in float64: steep scores, and steps that are impossible."""
    rng = np.random.default_rng(seed)
    entries = {
        "emissions": rng.normal(size=(times, 4)) * 3,
        "transitions": rng.normal(size=(max(times - 1, 0), 4, 4) if varying else (4, 4)) * 2,
        "initial": rng.normal(size=4),
        "final": rng.normal(size=4),
    }
    entries["transitions"][..., 0, 1] = entries["transitions"][..., 3, 3] = -np.inf
    entries["initial"][2] = -np.inf
    arrays = {name: jnp.asarray(array, dtype) for name, array in entries.items()}
    mask = None if mask is None else jnp.asarray(mask)
    field = LinearChain(**arrays, mask=mask, time_varying=("transitions",) if varying else ())
    return field, entries


def enumerate_all(entries, mask):
    """All sequences of tags of the positions that are there, and their scores."""
    emissions = entries["emissions"]
    there = np.flatnonzero(np.ones(len(emissions), bool) if mask is None else mask)
    every = np.array(list(itertools.product(range(4), repeat=len(there))))
    scores = entries["initial"][every[:, 0]] + entries["final"][every[:, -1]]
    for place, t in enumerate(there):
        scores = scores + emissions[t, every[:, place]]
        if place:
            matrix = entries["transitions"] if entries["transitions"].ndim == 2 else entries["transitions"][t - 1]
            scores = scores + matrix[every[:, place - 1], every[:, place]]
    return there, every, scores


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MASKS)
def test_everything(name, method, x64):
    mask = MASKS[name]
    field, entries = make(mask=mask, varying=name in ("whole", "padded"))
    there, every, scores = enumerate_all(entries, mask)
    total = scipy.special.logsumexp(scores)
    np.testing.assert_allclose(crf.log_normalizer(field, method=method), total, rtol=1e-12)
    weight = np.exp(scores - total)
    expected, tags = np.zeros((6, 4)), np.full(6, -1)
    for place, t in enumerate(there):
        expected[t] = [weight[every[:, place] == k].sum() for k in range(4)]
    np.testing.assert_allclose(crf.marginals(field, method=method), expected, atol=1e-12)
    best = crf.viterbi(field, method=method)
    tags[there] = every[scores.argmax()]
    assert best.states.tolist() == tags.tolist()
    np.testing.assert_allclose(best.log_probability, scores.max() - total, rtol=1e-10)
    for row in (1, len(every) // 3):
        tags[there] = every[row]
        np.testing.assert_allclose(crf.log_prob(field, tags, method=method), scores[row] - total, rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["whole", "holes"])
def test_gradients_are_expected_counts(name, method, x64):
    """Derivatives of the enumerated normaliser by differences; what is masked or impossible has none."""
    field, entries = make(mask=MASKS[name])
    gradient = jax.grad(lambda field: crf.log_normalizer(field, method=method), allow_int=True)(field)
    eps = 1e-6
    for entry, values in entries.items():
        expected = np.zeros_like(values)
        for index in np.ndindex(values.shape):
            if np.isfinite(values[index]):
                ends = []
                for sign in (1, -1):
                    moved = values.copy()
                    moved[index] += sign * eps
                    ends.append(scipy.special.logsumexp(enumerate_all({**entries, entry: moved}, MASKS[name])[2]))
                expected[index] = (ends[0] - ends[1]) / (2 * eps)
        np.testing.assert_allclose(getattr(gradient, entry), expected, atol=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_draws_have_the_law_of_the_field(method):
    """Chi-squared over sequences expected at least five times: false alarms 1 in 10,000."""
    mask = MASKS["holes"]
    field, entries = make(mask=mask, dtype=np.float32)
    there, every, scores = enumerate_all(entries, mask)
    draws = np.asarray(crf.sample(jax.random.key(1), field, shape=(20_000,), method=method))
    assert (draws[:, ~np.array(mask)] == -1).all()
    counts = np.bincount(draws[:, there] @ 4 ** np.arange(len(there) - 1, -1, -1), minlength=len(every))
    expected = 20_000 * np.exp(scores - scipy.special.logsumexp(scores))
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    counts, expected = (np.append(x[often], x[~often].sum()) for x in (counts, expected))
    assert len(counts) > 20
    assert ((counts - expected) ** 2 / expected).sum() < scipy.stats.chi2.ppf(1 - 1e-4, len(counts) - 1)


def test_a_ragged_batch_is_a_vmap():
    lengths = np.array([6, 3, 1, 0])
    field, entries = make(dtype=np.float32)
    emissions = jnp.stack([field.emissions + n for n in range(4)])
    masks = jnp.asarray(np.arange(6) < lengths[:, None])

    def one(emissions, mask):
        field = LinearChain(
            emissions, *(jnp.asarray(entries[n], jnp.float32) for n in ("transitions", "initial", "final")), mask
        )
        tags = crf.viterbi(field).states
        return crf.log_normalizer(field), crf.log_prob(field, tags), crf.viterbi(field).log_probability

    totals, values, best = jax.vmap(one)(emissions, masks)
    np.testing.assert_allclose(values, best, atol=1e-5)
    for row in range(3):
        shifted = {**entries, "emissions": entries["emissions"] + row}
        expected = scipy.special.logsumexp(enumerate_all(shifted, masks[row])[2])
        np.testing.assert_allclose(totals[row], expected, rtol=1e-5)
    assert totals[3] == values[3] == 0
    slopes = jax.vmap(jax.grad(lambda emissions, mask: one(emissions, mask)[0]))(emissions, masks)
    np.testing.assert_allclose(slopes.sum(2), masks, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_one_position_and_none(method):
    for times in (0, 1):
        field, entries = make(times=times, dtype=np.float32)
        scores = entries["initial"] + entries["final"] + entries["emissions"][0] if times else None
        expected = scipy.special.logsumexp(scores) if times else 0
        np.testing.assert_allclose(crf.log_normalizer(field, method=method), expected, rtol=1e-6)
        assert crf.marginals(field, method=method).shape == (times, 4)
        assert crf.viterbi(field, method=method).states.tolist() == [int(np.argmax(scores))] * times if times else True
        assert crf.sample(jax.random.key(0), field, shape=3, method=method).shape == (3, times)
        assert np.isfinite(crf.log_prob(field, np.zeros(times, int), method=method))


@pytest.mark.parametrize("method", METHODS)
def test_a_long_sequence_in_float32(method):
    """20,000 positions with steep scores against a float64 recursion."""
    field, entries = make(times=20_000, dtype=np.float32)
    with np.errstate(divide="ignore"):
        message, total = np.exp(entries["initial"]), 0.0
        for t, row in enumerate(entries["emissions"]):
            message = (message @ np.exp(entries["transitions"]) if t else message) * np.exp(row)
            total += np.log(message.sum())
            message /= message.sum()
        total += np.log((message * np.exp(entries["final"])).sum())
    assert abs(float(crf.log_normalizer(field, method=method)) - total) < 1e-6 * abs(total)


def test_errors():
    scores, square = np.zeros((5, 3), np.float32), np.zeros((3, 3), np.float32)
    field = LinearChain(scores, square)
    cases = [
        (lambda: LinearChain(scores[0], square), r"shape \(time, K\)"),
        (lambda: LinearChain(scores, square[:2]), r"expected shape \(3, 3\)"),
        (lambda: LinearChain(scores, np.zeros((4, 3, 3), np.float32)), "Declare time_varying"),
        (lambda: LinearChain(scores + np.nan, square), "NaN"),
        (lambda: LinearChain(scores, square, mask=scores), "booleans"),
        (lambda: crf.log_prob(field, np.zeros(4, int)), r"integers of shape \(5,\)"),
        (lambda: crf.log_prob(field, np.full(5, 3)), "0 to 2"),
        (lambda: crf.log_normalizer(scores), "expected a LinearChain"),
        (lambda: crf.viterbi(field, method="best"), "one of"),
    ]
    for call, text in cases:
        with pytest.raises((ValueError, TypeError), match=text) as found:
            call()
        assert "\n" not in str(found.value)
