"""The masked sampler: its law and weights by enumeration of all paths, gradients of its losses, awkward targets."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.special import log_softmax, logsumexp

from jaxprob import learning
from jaxprob.inference.diffusion import WeightedDraws, fit_sampler, masked_sampler, sampler_training

SITES, VALUES = 3, 2
STATES = np.array(list(itertools.product(range(VALUES), repeat=SITES)))
ORDERS = list(itertools.permutations(range(SITES)))
TABLE = np.random.default_rng(0).normal(size=(VALUES,) * SITES)
LOG_Z = logsumexp(TABLE)


class Table:
    """A network without any structure: logits for each of the partly masked positions."""

    def __init__(self, sites=SITES, values=VALUES):
        self.shape = ((values + 1) ** sites, sites, values)
        self.strides = (values + 1) ** np.arange(sites)

    def init(self, key, tokens):
        return jax.random.normal(key, self.shape)

    def apply(self, params, tokens):
        return params[jnp.sum(tokens * jnp.asarray(self.strides, tokens.dtype))]


def log_density(tokens):
    return jnp.asarray(TABLE, jnp.result_type(float))[tuple(tokens)]


def log_q(table, tokens, order):
    """Log probability of tokens in an order, in NumPy."""
    seen, total = np.full(SITES, VALUES), 0.0
    for site in order:
        total += log_softmax(table[np.sum(seen * (VALUES + 1) ** np.arange(SITES)), site])[tokens[site]]
        seen[site] = tokens[site]
    return total


def all_paths(table):
    """log q of all states and orders, (state, order)."""
    return np.array([[log_q(table, x, order) for order in ORDERS] for x in STATES])


@pytest.fixture(scope="module")
def tabled():
    """A sampler, random parameters, and 40,000 draws."""
    sampler = masked_sampler(log_density, VALUES, SITES, network=Table())
    params = sampler.init(jax.random.key(3))
    return sampler, params, sampler.draw(jax.random.key(4), params, 40_000)


def test_law_and_weights_are_those_of_all_paths(tabled):
    _, params, draws = tabled
    log_probs = all_paths(np.asarray(params, float))
    log_weights = TABLE.ravel()[:, None] - log_probs
    states = np.asarray(draws.positions) @ (VALUES ** np.arange(SITES)[::-1])
    away = np.abs(log_weights[states] - np.asarray(draws.log_weights, float)[:, None])
    assert away.min(axis=1).max() < 1e-5  # the weight is that of one of the orders
    paths = states * len(ORDERS) + away.argmin(axis=1)
    counts = np.bincount(paths, minlength=log_probs.size)
    expected = np.exp(log_probs).ravel() / len(ORDERS) * len(states)
    # A law that is the right one fails once in 10,000.
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_the_mean_weight_of_untrained_draws_is_the_normalizing_constant(tabled):
    _, _, draws = tabled
    assert abs(draws.log_evidence - LOG_Z) < 4 * draws.log_evidence_error
    assert draws.effective_sample_size < 0.9  # so that the weights matter
    first = draws.population.expectation(lambda x: (x[0] == 1).astype(jnp.float32))
    exact = np.exp(TABLE - LOG_Z)[1].sum()
    assert abs(first - exact) < 4 * 0.5 / math.sqrt(40_000 * draws.effective_sample_size)


def exact_network(table, dtype):
    """Conditional laws of every site by summing over what is masked."""
    sites, values = table.ndim, table.shape[0]
    states = jnp.asarray(list(itertools.product(range(values), repeat=sites)), jnp.int32)
    log_gamma = jnp.asarray(table.ravel(), dtype)

    class Exact:
        def init(self, key, tokens):
            return jnp.zeros((), dtype)

        def apply(self, params, tokens):
            masked, tokens = jnp.expand_dims(tokens == values, 0), jnp.expand_dims(tokens, 0)
            fits = jnp.all(masked | (states == tokens), axis=1)
            at = jnp.stack([states == value for value in range(values)], axis=-1)
            chosen = jnp.where(fits[:, None, None] & at, log_gamma[:, None, None], -jnp.inf)
            return jax.nn.logsumexp(chosen, axis=0) + params

    return Exact()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_with_exact_conditional_laws_all_orders_have_one_weight(dtype, x64):
    table = np.random.default_rng(1).normal(size=(3, 3, 3, 3)) * 2
    sampler = masked_sampler(lambda x: jnp.asarray(table, dtype)[tuple(x)], 3, 4, network=exact_network(table, dtype))
    draws = sampler.draw(jax.random.key(0), sampler.init(jax.random.key(1)), 100)
    assert draws.log_weights.dtype == dtype
    np.testing.assert_allclose(draws.log_weights, logsumexp(table), rtol=3e-6 if dtype == jnp.float32 else 1e-12)
    np.testing.assert_allclose(draws.effective_sample_size, 1, rtol=1e-6)
    assert draws.log_evidence_error < 1e-3
    assert len(np.unique(np.asarray(draws.positions), axis=0)) > 10


def enumerated(table):
    """log q (state, order) as a function of the parameters, for gradients."""
    seen = np.zeros((len(STATES), len(ORDERS), SITES), int)
    for (i, x), (j, order), k in itertools.product(enumerate(STATES), enumerate(ORDERS), range(SITES)):
        tokens = np.full(SITES, VALUES)
        tokens[list(order[:k])] = x[list(order[:k])]
        seen[i, j, k] = np.sum(tokens * (VALUES + 1) ** np.arange(SITES))
    orders = np.broadcast_to(np.array(ORDERS), seen.shape)
    values = np.take_along_axis(STATES[:, None].repeat(len(ORDERS), 1), orders, axis=2)
    return jnp.sum(jax.nn.log_softmax(table)[seen, orders, values], axis=-1)


def reverse_kl(table):
    log_probs = enumerated(table)
    log_gamma = jnp.asarray(TABLE.ravel(), log_probs.dtype)[:, None]
    return jnp.sum(jnp.exp(log_probs) / len(ORDERS) * (log_probs - log_gamma))


def forward_cross_entropy(table, power=1.0):
    log_gamma = power * TABLE.ravel()
    probs = jnp.asarray(np.exp(log_gamma - logsumexp(log_gamma)), table.dtype)
    return -jnp.sum(probs * jnp.mean(enumerated(table), axis=1))


REPEATS = 400


def repeated(sampler, params, batch=None):
    """Values (repeat,) and gradients (repeat, parameter) of a loss."""
    keys = jax.random.split(jax.random.key(7), REPEATS)
    run = jax.jit(jax.vmap(jax.value_and_grad(lambda p, k: sampler.loss(p, batch, k)[0]), in_axes=(None, 0)))
    values, gradients = run(params, keys)
    return np.asarray(values, float), np.asarray(gradients, float).reshape(REPEATS, -1)


def check_mean(found, exact):
    """54 numbers: 5 standard errors fail once in 32,000."""
    error = found.std(axis=0, ddof=1) / math.sqrt(REPEATS)
    assert (np.abs(found.mean(axis=0) - exact) <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("loss", ["relative_entropy", "log_variance"])
def test_gradients_by_the_score_are_those_of_the_reverse_divergence(loss, tabled):
    _, params, _ = tabled
    sampler = masked_sampler(log_density, VALUES, SITES, network=Table(), loss=loss, buffer=32)
    values, gradients = repeated(sampler, params)
    exact, slope = jax.value_and_grad(reverse_kl)(params)
    factor = 1 if loss == "relative_entropy" else 2
    if loss == "relative_entropy":
        check_mean(values, float(exact))
    else:
        log_probs = all_paths(np.asarray(params, float))
        probs, log_weights = np.exp(log_probs) / len(ORDERS), TABLE.ravel()[:, None] - log_probs
        check_mean(values, np.sum(probs * log_weights**2) - np.sum(probs * log_weights) ** 2)
    check_mean(gradients, factor * np.asarray(slope, float).ravel())
    assert np.abs(slope).max() > 0.05


def test_denoising_of_weighted_states_is_the_forward_cross_entropy(tabled):
    _, params, _ = tabled
    # Some states twice, at half their weight.
    states = np.concatenate([STATES, STATES[:3]])
    log_gamma = TABLE.ravel().copy()
    log_gamma[:3] -= math.log(2)
    batch = WeightedDraws(jnp.asarray(states, jnp.int32), jnp.asarray(np.append(log_gamma, log_gamma[:3]) + 5))
    sampler = masked_sampler(log_density, VALUES, SITES, network=Table(), masks=4, effective_sample_size=0.1)
    values, gradients = repeated(sampler, params, batch)
    exact, slope = jax.value_and_grad(forward_cross_entropy)(params)
    check_mean(values, float(exact))
    check_mean(gradients, np.asarray(slope, float).ravel())


@pytest.mark.parametrize("loss", ["denoising", "cross_entropy"])
def test_losses_that_draw_and_weigh_are_the_forward_cross_entropy(loss, tabled):
    _, params, _ = tabled
    sampler = masked_sampler(
        log_density, VALUES, SITES, network=Table(), loss=loss, buffer=1024, masks=2, effective_sample_size=0.05
    )
    values, gradients = repeated(sampler, params)
    exact, slope = jax.value_and_grad(forward_cross_entropy)(params)
    # Self-normalised weights of n draws have a bias of the order of 1 / n.
    allowed = 3 * float(np.abs(slope).max()) / 1024
    error = gradients.std(axis=0, ddof=1) / math.sqrt(REPEATS)
    assert (np.abs(gradients.mean(axis=0) - np.asarray(slope, float).ravel()) < 5 * error + allowed).all()
    assert abs(values.mean() - float(exact)) < 5 * values.std() / math.sqrt(REPEATS) + 0.005


def test_weights_that_differ_much_are_flattened_to_a_power_of_themselves(tabled):
    _, params, _ = tabled
    batch = WeightedDraws(jnp.asarray(STATES, jnp.int32), jnp.asarray(4 * TABLE.ravel(), jnp.float32))
    sampler = masked_sampler(log_density, VALUES, SITES, network=Table(), masks=4, effective_sample_size=0.6)

    def share(power):
        weights = np.exp(power * 4 * TABLE.ravel())
        return weights.sum() ** 2 / (weights**2).sum() / len(weights)

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share(middle) >= 0.6 else (low, middle)
    assert 0.01 < low < 0.5
    values, _ = repeated(sampler, params, batch)
    check_mean(values, float(forward_cross_entropy(params, 4 * low)))


def hard_core(x):
    """Independent sets of a path of four sites, each occupied one three times as likely."""
    return jnp.where(jnp.any((x[1:] == 1) & (x[:-1] == 1)), -jnp.inf, math.log(3.0) * jnp.sum(x).astype(jnp.float32))


def test_impossible_positions_have_no_weight_and_training_avoids_them():
    sampler = masked_sampler(hard_core, 2, 4, buffer=128)
    found = fit_sampler(sampler, jax.random.key(0), steps=150, optimizer=optax.adam(3e-3))
    assert found.not_finite == 0
    exact = math.log(
        sum(3.0 ** sum(x) for x in itertools.product((0, 1), repeat=4) if 1 not in np.multiply(x[1:], x[:-1]))
    )
    before = sampler.draw(jax.random.key(1), sampler.init(jax.random.key(2)), 4000)
    after = sampler.draw(jax.random.key(1), found.params, 4000)
    for draws in (before, after):
        assert abs(draws.log_evidence - exact) < 4 * draws.log_evidence_error
        bad = np.any((np.asarray(draws.positions)[:, 1:] == 1) & (np.asarray(draws.positions)[:, :-1] == 1), axis=1)
        assert (np.isneginf(draws.log_weights) == bad).all()
    assert before.effective_sample_size < 0.5
    assert after.effective_sample_size > 0.9


def test_the_buffer_is_part_of_the_state_and_drawn_anew_every_few_steps():
    sampler = masked_sampler(log_density, VALUES, SITES, network=Table(), buffer=16, every=3, masks=2)
    init, step = sampler_training(sampler, optax.adam(1e-2))
    state = init(sampler.init(jax.random.key(0)), jax.random.key(1))
    assert state.buffer.positions.shape == (16, SITES)
    step, changed = jax.jit(step), []
    for i in range(7):
        old, before = state, np.asarray(state.buffer.log_weights)
        state, info = step(jax.random.fold_in(jax.random.key(2), i), state)
        changed.append(not np.array_equal(before, state.buffer.log_weights))
        assert not np.array_equal(old.position, state.position)
        share = WeightedDraws(None, state.buffer.log_weights).effective_sample_size
        np.testing.assert_allclose(info.effective_sample_size, share, rtol=1e-6)
    assert changed == [False, False, False, True, False, False, True]


def test_a_draw_depends_on_its_index_alone_and_jit_and_vmap_change_nothing(tabled):
    sampler, params, draws = tabled
    few = sampler.draw(jax.random.key(4), params, 10)
    np.testing.assert_array_equal(few.positions, draws.positions[:10])
    inside = jax.jit(lambda s, p, k: s.draw(k, p, 10))(sampler, params, jax.random.key(4))
    np.testing.assert_array_equal(inside.positions, few.positions)
    both = jax.vmap(lambda p: sampler.draw(jax.random.key(4), p, 10))(jnp.stack([params, 2 * params]))
    np.testing.assert_array_equal(both.positions[0], few.positions)
    np.testing.assert_allclose(both.log_weights[0], few.log_weights, rtol=1e-5, atol=1e-5)
    assert both.log_evidence.shape == both.effective_sample_size.shape == (2,)


def test_a_task_of_learning_trains_it():
    sampler = masked_sampler(log_density, VALUES, SITES, network=Table(), buffer=32, masks=2)
    init, step = learning.training(learning.Task(sampler.init, sampler.loss, optax.adam(1e-2)))
    state = init(sampler.init(jax.random.key(0)))
    state, info = jax.jit(step)(jax.random.key(1), state, None)
    assert info["finite"]
    assert 0 < info["effective_sample_size"] <= 1
    assert info["not_finite"] == 0


class Wrong:
    def init(self, key, tokens):
        return jnp.zeros(())

    def apply(self, params, tokens):
        return jnp.zeros((SITES, VALUES + 1)) + params


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((log_density, 1, SITES), {}, "vocabulary is 1; expected a whole number, 2 or more"),
        ((log_density, 2, 0), {}, "sites is 0"),
        ((log_density, 2, SITES), {"every": 0}, "every is 0"),
        ((log_density, 2, SITES), {"masks": 0}, "masks is 0"),
        ((log_density, 2, SITES), {"buffer": 1}, "buffer is 1"),
        ((log_density, 2, SITES), {"loss": "kl"}, "loss is 'kl'; expected one of"),
        ((log_density, 2, SITES), {"effective_sample_size": 1.0}, "effective_sample_size is 1.0"),
        (
            (lambda x: x.astype(float), 2, SITES),
            {},
            r"the value of log_density is of shape \(3,\); expected one number",
        ),
        ((3.0, 2, SITES), {}, "log_density is 3.0"),
        ((log_density, 2, SITES), {"network": 3}, "network is 3"),
    ],
)
def test_bad_arguments_are_told_in_one_line(arguments, options, message):
    with pytest.raises((ValueError, TypeError), match=rf"^masked_sampler: {message}") as error:
        masked_sampler(*arguments, **options)
    assert "\n" not in str(error.value)


def test_a_network_of_another_output_and_a_wrong_batch_are_told_in_one_line():
    with pytest.raises(
        ValueError, match=r"^masked_sampler: the output of network is of shape \(3, 3\); expected logits"
    ):
        masked_sampler(log_density, VALUES, SITES, network=Wrong()).init(jax.random.key(0))
    sampler = masked_sampler(log_density, VALUES, SITES, network=Table(), loss="log_variance")
    params = sampler.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"^masked_sampler.loss: batch is .*; expected None"):
        sampler.loss(params, jnp.zeros((2, SITES)), jax.random.key(1))
    with pytest.raises(ValueError, match=r"^masked_sampler.draw: num is 0"):
        sampler.draw(jax.random.key(0), params, 0)


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (lambda x: jnp.where(x[0] >= 0, jnp.nan, 0.0), "log_density is NaN at .* of 256 draws of the start"),
        (lambda x: jnp.where(x[0] >= 0, -jnp.inf, 0.0), "log_density is not finite at any of 256 draws of the start"),
    ],
)
def test_a_density_that_is_of_no_use_at_the_start_is_told(density, message):
    sampler = masked_sampler(density, VALUES, SITES, network=Table())
    with pytest.raises(ValueError, match=f"^fit_sampler: {message}"):
        fit_sampler(sampler, jax.random.key(0), steps=5)


def test_a_density_that_is_nan_somewhere_is_told_and_moves_no_parameter_to_nan():
    sampler = masked_sampler(
        lambda x: jnp.where(x[0] == 1, jnp.nan, 0.0), VALUES, SITES, network=Table(), buffer=16, masks=2
    )
    params = sampler.init(jax.random.key(0))
    draws = sampler.draw(jax.random.key(1), params, 100)
    assert jnp.isnan(draws.log_evidence)
    init, step = sampler_training(sampler)
    state, info = jax.jit(step)(jax.random.key(3), init(params, jax.random.key(2)))
    assert 0 < info.not_finite < 1
    assert bool(jnp.all(jnp.isfinite(state.position)))


@pytest.mark.slow
def test_ising_is_learnt_with_both_modes():
    beta = 0.6

    def ising(x):
        spins = (2 * x.reshape(3, 3) - 1).astype(jnp.float32)
        return beta * jnp.sum(spins * (jnp.roll(spins, 1, 0) + jnp.roll(spins, 1, 1)))

    spins = 2 * np.array(list(itertools.product((0, 1), repeat=9))).reshape(-1, 3, 3) - 1
    energy = np.sum(spins * (np.roll(spins, 1, 1) + np.roll(spins, 1, 2)), axis=(1, 2))
    sampler = masked_sampler(ising, 2, 9)
    found = fit_sampler(sampler, jax.random.key(0), steps=500)
    draws = sampler.draw(jax.random.key(1), found.params, 10_000)
    assert abs(draws.log_evidence - logsumexp(beta * energy)) < 4 * draws.log_evidence_error < 0.02
    assert draws.effective_sample_size > 0.8
    assert abs(np.mean(np.asarray(draws.positions).mean(axis=1) > 0.5) - 0.5) < 0.05
