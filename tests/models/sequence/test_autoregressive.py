"""Autoregressive models against a loop over steps, by enumeration of all short sequences, and by quadrature."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax

from jaxprob.distributions import Categorical, Mixture, Normal, Poisson
from jaxprob.models import sequence

TOKENS = 3


@functools.cache
def of_tokens(start=None):
    """With a token of its own for the start."""
    net = sequence.stack(sequence.gru(5), depth=2, output=TOKENS, vocabulary=TOKENS + 1)
    model = sequence.autoregressive(net, lambda outputs: Categorical(logits=outputs), start)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(2, int))
    # So that no sequence is too rare to be drawn.
    params["params"]["head"]["kernel"] *= 0.5
    return model, params


@functools.cache
def of_mixtures():
    """Two numbers at a time, each a mixture of two normals."""

    def mixture(outputs):
        logits, means, scales = outputs.reshape(3, 2, 2)
        return Mixture(logits=logits, components=Normal(means, 0.1 + jax.nn.softplus(scales)))

    net = sequence.stack(sequence.min_gru(6), depth=1, output=12)
    model = sequence.autoregressive(net, mixture)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((2, 2)))


@pytest.mark.parametrize("start", [None, TOKENS])
def test_terms_are_those_of_a_loop_over_steps(rng, start):
    model, params = of_tokens(start)
    xs = jnp.asarray(rng.integers(0, TOKENS, 9))
    before, state, wanted = (0 if start is None else start), None, []
    step = jax.jit(lambda x, state: model.net.apply(params, x, state, method="step"))
    for x in np.asarray(xs):
        state = model.net.initial_state() if state is None else state
        outputs, state = step(jnp.asarray(before), state)
        wanted.append(log_softmax(np.asarray(outputs, np.float64))[x])
        before = x
    found = jax.jit(model.log_prob)(params, xs)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert np.std(wanted) > 0.1


def test_probabilities_of_all_sequences_sum_to_one_and_draws_follow_them():
    model, params = of_tokens(TOKENS)
    everything = np.array(list(itertools.product(range(TOKENS), repeat=3)))
    log_prob = jax.jit(jax.vmap(lambda xs: jnp.sum(model.log_prob(params, xs))))(jnp.asarray(everything))
    probability = np.exp(np.asarray(log_prob, np.float64))
    assert abs(probability.sum() - 1) < 1e-5
    draws = 20_000
    keys = jax.random.split(jax.random.key(1), draws)
    xs = np.asarray(jax.jit(jax.vmap(lambda key: model.sample(params, key, 3)))(keys))
    counts = np.bincount(xs @ [9, 3, 1], minlength=27)
    # Chi-squared with 26 degrees of freedom: a false alarm in 10,000.
    assert draws * probability.min() > 5
    assert stats.chisquare(counts, draws * probability / probability.sum()).pvalue > 1e-4
    # The test sees a law that is off: that of the model without its first term.
    flat = np.repeat(probability.reshape(3, 9).mean(0, keepdims=True), 3, 0).ravel()
    assert stats.chisquare(counts, draws * flat / flat.sum()).pvalue < 1e-4


@pytest.mark.parametrize("make", [of_tokens, of_mixtures])
def test_going_on_from_a_prefix_is_the_whole(rng, make):
    model, params = make()
    xs = jnp.asarray(rng.integers(0, TOKENS, 9)) if make is of_tokens else jnp.asarray(rng.normal(size=(9, 2)), "f4")
    observe = jax.jit(model.observe)
    whole, final = observe(params, xs)
    head, state = observe(params, xs[:4])
    tail, again = observe(params, xs[4:], state)
    np.testing.assert_allclose(np.concatenate([head, tail]), whole, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, final)
    # Drawing after a prefix is drawing after its state, and one step after another.
    sample = jax.jit(lambda key, prefix, state: model.sample(params, key, 3, prefix, state))
    drawn = sample(jax.random.key(3), xs[4:], state)
    np.testing.assert_allclose(drawn, sample(jax.random.key(3), None, final), rtol=1e-4, atol=1e-5)
    by_step, state, step = [], final, jax.jit(model.step)
    for time in range(3):
        x, state = step(params, jax.random.fold_in(jax.random.key(3), time), state.last, state)
        by_step.append(x)
    np.testing.assert_allclose(drawn, np.stack(by_step), rtol=1e-4, atol=1e-5)
    assert drawn.dtype == xs.dtype


def test_a_reset_begins_with_the_start_element(rng):
    model, params = of_tokens(TOKENS)
    xs = jnp.asarray(rng.integers(0, TOKENS, 8))
    log_prob, state = jax.jit(model.log_prob), jax.jit(model.observe)(params, xs[:3])[1]
    found = log_prob(params, xs, state, jnp.zeros(8, bool).at[5].set(True))
    wanted = np.concatenate([log_prob(params, xs[:5], state), log_prob(params, xs[5:])])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_vectors_are_scored_by_the_mixture_of_their_past(rng):
    model, params = of_mixtures()
    xs = rng.normal(size=(6, 2)).astype(np.float32)
    before = jnp.concatenate([jnp.zeros((1, 2)), xs[:-1]])
    outputs = np.asarray(jax.jit(model.net.apply)(params, before)[0], np.float64).reshape(6, 3, 2, 2)
    logits, means, scales = outputs[:, 0], outputs[:, 1], 0.1 + np.log1p(np.exp(outputs[:, 2]))
    parts = log_softmax(logits, -1) + stats.norm.logpdf(xs[..., None], means, scales)
    wanted = np.log(np.exp(parts).sum(-1)).sum(-1)
    np.testing.assert_allclose(jax.jit(model.log_prob)(params, jnp.asarray(xs)), wanted, rtol=1e-4, atol=1e-5)


def test_the_law_of_a_number_given_the_past_integrates_to_one():
    net = sequence.stack(sequence.lstm(5), depth=1, output=2)
    model = sequence.autoregressive(net, lambda outputs: Normal(outputs[0], jnp.exp(outputs[1])))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(2))
    grid = np.linspace(-30, 30, 20_001)
    series = jnp.stack([jnp.full(20_001, 0.7), jnp.asarray(grid, jnp.float32)], 1)
    log_prob = jax.jit(jax.vmap(lambda xs: model.log_prob(params, xs)[1]))(series)
    assert abs(np.trapezoid(np.exp(np.asarray(log_prob, float)), grid) - 1) < 1e-4
    assert model.sample(params, jax.random.key(1), 4).shape == (4,)


def test_counts_are_inputs_as_numbers(rng):
    model = sequence.autoregressive(sequence.gru(1), lambda outputs: Poisson(jnp.exp(outputs[0])))
    xs = jnp.asarray(rng.integers(0, 5, 6))
    params = jax.jit(model.init)(jax.random.key(0), xs)
    rate = np.exp(
        np.asarray(jax.jit(model.net.apply)(params, jnp.append(0, xs[:-1]).astype(float)[:, None])[0], float)[:, 0]
    )
    np.testing.assert_allclose(
        jax.jit(model.log_prob)(params, xs), stats.poisson.logpmf(xs, rate), rtol=1e-4, atol=1e-5
    )
    assert model.sample(params, jax.random.key(0), 3, prefix=xs).dtype == xs.dtype
    assert model.sample(params, jax.random.key(0), 3).shape == (3,)


def test_gradients_batches_low_precision_and_dropout(rng):
    net = sequence.stack(sequence.min_gru(6), depth=2, output=4, dropout=0.5)
    model = sequence.autoregressive(net, lambda outputs: Normal(outputs[:2], jnp.exp(outputs[2:])))
    xs = jnp.asarray(rng.normal(size=(2, 7, 2)), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), xs[0])
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(jax.vmap(lambda xs: model.log_prob(params, xs))(xs))))(params)
    assert all(np.isfinite(leaf).all() and np.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    log_prob = jax.jit(model.log_prob)
    exact, low = (log_prob(params, x) for x in (xs[0], xs[0].astype(jnp.bfloat16)))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, exact, rtol=0.1, atol=0.1)
    dropped = log_prob(params, xs[0], key=jax.random.key(1))
    assert not np.allclose(dropped, exact, rtol=1e-3)


def test_a_token_that_does_not_exist_has_no_probability():
    model, params = of_tokens(TOKENS)
    found = jax.jit(model.log_prob)(params, jnp.array([0, 1, TOKENS]))
    assert np.isfinite(found[:2]).all()
    assert found[2] == -np.inf


def categorical(outputs):
    return Categorical(logits=outputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: sequence.autoregressive(4, categorical), "net is 4; expected a sequence network"),
        (
            lambda net: sequence.autoregressive(
                sequence.stack(sequence.bidirectional(sequence.gru(3)), 2), categorical
            ),
            r"sequence\.autoregressive: net is bidirectional; expected a network whose outputs depend on earlier",
        ),
        (
            lambda net: sequence.autoregressive(sequence.stack(sequence.gru(3), 1, pool="last"), categorical),
            "net is one that pools time; expected a network with an output at each time",
        ),
        (lambda net: sequence.autoregressive(net, jnp.exp), r"distribution\(outputs\) is a traced float32 array"),
        (lambda net: sequence.autoregressive(net, categorical, 4), "start is 4; expected a token of the vocabulary"),
        (lambda net: sequence.autoregressive(net, categorical, 0.5), "start is float64 of shape"),
    ],
)
def test_bad_options_are_one_line(make, message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        make(of_tokens()[0].net)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, p: m.log_prob(p, jnp.zeros((3, 1), int)), r"xs is of shape \(3, 1\); expected \(time,\), at least"),
        (lambda m, p: m.log_prob(p, jnp.zeros(0, int)), r"xs is of shape \(0,\)"),
        (lambda m, p: m.log_prob(p, jnp.zeros(3)), "xs is of float32; expected integers"),
        (lambda m, p: m.log_prob(p, jnp.zeros(3, int), jnp.zeros(3)), r"sequence\.autoregressive: state is value"),
        (lambda m, p: m.log_prob(p, jnp.zeros(3, int), None, jnp.zeros(2, bool)), r"reset is bool of shape \(2,\)"),
        (lambda m, p: m.sample(p, jax.random.key(0), 0), "length is 0; expected a whole number, 1 or more"),
        (lambda m, p: m.step(p, jax.random.key(0), jnp.zeros(2, int)), r"x is of shape \(2,\); expected one element"),
    ],
)
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message):
        call(*of_tokens())
