"""Attention as a prefix scan against soft-max attention in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.models import sequence
from jaxprob.scan.monoids import RunningSoftmax


def softmax_attention(scores, values):
    """Of one head, over each prefix."""
    out = []
    for t in range(len(scores)):
        weights = np.exp(scores[: t + 1] - scores[: t + 1].max())
        out.append(weights @ values[: t + 1] / weights.sum())
    return np.array(out)


@pytest.mark.parametrize("method", ["sequential", "chunked", "associative"])
def test_prefixes_are_softmax_attention(rng, method):
    """Scores up to +-80, whose exponentials differ by a factor of 1e69; to 1e-5 of values of size one."""
    scores, values = rng.uniform(-80, 80, (33, 2)), rng.normal(size=(33, 2, 3))
    scores, values = scores.astype(np.float32), values.astype(np.float32)
    ys, _ = sequence.attention_prefix(jnp.asarray(scores), jnp.asarray(values), method=method)
    for h in range(2):
        wanted = softmax_attention(scores[:, h].astype(np.float64), values[:, h])
        np.testing.assert_allclose(ys[:, h], wanted, rtol=0, atol=1e-5)


def test_at_length_512_as_published(rng):
    """Scores of standard deviation 8, as in the check of the paper's system."""
    scores, values = (8 * rng.normal(size=(512, 1))).astype(np.float32), rng.normal(size=(512, 1, 4)).astype(np.float32)
    ys, _ = sequence.attention_prefix(jnp.asarray(scores), jnp.asarray(values))
    wanted = softmax_attention(scores[:, 0].astype(np.float64), values[:, 0])
    np.testing.assert_allclose(ys[:, 0], wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["sequential", "chunked"])
def test_it_goes_on_from_a_state_and_resets_to_nothing(rng, method):
    scores, values = 5 * rng.normal(size=(30, 2)), rng.normal(size=(30, 2, 3))
    whole = [jnp.asarray(x, jnp.float32) for x in (scores, values)]
    wanted = np.stack([softmax_attention(scores[:, h], values[:, h]) for h in range(2)], 1)
    _, state = sequence.attention_prefix(*(x[:11] for x in whole), method=method)
    rest = [x[11:] for x in whole]
    ys, _ = sequence.attention_prefix(*rest, state, method=method)
    np.testing.assert_allclose(ys, wanted[11:], rtol=0, atol=1e-5)
    for place in (0, 7, 18):
        ys, final = sequence.attention_prefix(*rest, state, jnp.arange(19) == place, method=method)
        np.testing.assert_allclose(ys[:place], wanted[11 : 11 + place], rtol=0, atol=1e-5)
        after = slice(11 + place, None)
        fresh = np.stack([softmax_attention(scores[after, h], values[after, h]) for h in range(2)], 1)
        np.testing.assert_allclose(ys[place:], fresh, rtol=0, atol=1e-5)
        np.testing.assert_allclose(final.numerator / final.sum[:, None], fresh[-1], rtol=0, atol=1e-5)


def test_masked_scores():
    """-inf hides a value, NaN included, as soon as there is another."""
    scores, values = jnp.array([[0.0], [-jnp.inf], [0.0]]), jnp.array([1.0, jnp.nan, 3.0]).reshape(3, 1, 1)
    assert sequence.attention_prefix(scores, values)[0].ravel().tolist() == [1, 1, 2]


def test_the_state_does_not_grow(rng):
    net = sequence.aaren(8, heads=2)
    xs = jnp.asarray(rng.normal(size=(50, 8)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), xs)
    shapes = [jax.tree.map(jnp.shape, net.apply(params, xs[:n])[1]) for n in (1, 50)]
    assert shapes[0] == shapes[1] == RunningSoftmax((2,), (2,), (2, 4))


@pytest.mark.slow
def test_a_long_sequence_in_every_form(rng):
    scores, values = rng.uniform(-80, 80, (16_384, 1)).astype(np.float32), rng.normal(size=(16_384, 1, 2))
    values = values.astype(np.float32)
    weights = np.exp(scores.astype(np.float64) - 80)
    wanted = np.cumsum(weights[..., None] * values, 0) / np.cumsum(weights, 0)[..., None]
    for method in ("sequential", "chunked", "associative"):
        ys, _ = jax.jit(lambda s, v, method=method: sequence.attention_prefix(s, v, method=method))(scores, values)
        np.testing.assert_allclose(ys, wanted, rtol=0, atol=1e-5)


def test_bad_input():
    with pytest.raises(ValueError, match="attention_prefix: values is of shape"):
        sequence.attention_prefix(jnp.ones((3, 1)), jnp.ones((3, 1)))
    with pytest.raises(ValueError, match=r"attention_prefix: scores is of shape \(2, 1\); expected \(time, heads\)"):
        sequence.attention_prefix(jnp.ones((2, 1)), jnp.ones((3, 1, 1)))
    with pytest.raises(ValueError, match="attention_prefix: values is of shape"):
        sequence.attention_prefix(jnp.ones((0, 1)), jnp.ones((0, 1, 1)))
    state = RunningSoftmax(jnp.ones(2), jnp.ones(2), jnp.ones((2, 1)))
    with pytest.raises((ValueError, TypeError), match="attention_prefix: state"):
        sequence.attention_prefix(jnp.ones((3, 1)), jnp.ones((3, 1, 1)), state)
