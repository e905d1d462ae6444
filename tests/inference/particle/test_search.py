"""Best of several, beams and choices among generated sequences, against enumeration in float64.

The p-values of chi-squared tests are above 1e-4, with fixed seeds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial

from jaxprob.inference import particle, smc
from tests.inference.particle._token_chain import (
    COUNT,
    END,
    FINAL,
    LENGTH,
    LOGITS,
    MODEL,
    POTENTIAL,
    REWARDS,
    SAMPLER,
    TOKENS,
    WITH_FINAL,
    at_third,
    chain_step,
    check_law,
    codes_of,
    law,
    log_potentials,
)


def test_searches_that_fail_say_so():
    impossible = at_third(-jnp.inf)
    assert particle.best_of_n(jax.random.key(0), MODEL, LENGTH, impossible, number=8).log_potential == -jnp.inf
    assert (particle.beam_search(MODEL, LENGTH, impossible, width=4).scores == -jnp.inf).all()
    kernel = particle.sequence_gibbs(MODEL, LENGTH, impossible, particles=4)
    state, info = kernel.step(jax.random.key(0), kernel.init(None, jax.random.key(1)))
    assert info.effective_sample_size == 0
    assert state.position.log_potential == -jnp.inf
    assert jnp.isnan(particle.sequence_of(MODEL, jnp.array([0, 4, 1, 1, 0]), at_third(0.0)).log_probability)


@pytest.mark.parametrize("end", [None, END])
def test_a_wide_beam_finds_the_maximum_and_a_narrow_one_is_greedy(end):
    tokens, log_p, log_g, weights = law(end=end, final=True)
    order = np.argsort(-np.log(weights))
    wide = particle.beam_search(MODEL, LENGTH, WITH_FINAL, width=TOKENS**LENGTH, end=end)
    number = len(weights)
    assert np.allclose(wide.scores[:number], np.log(weights)[order], atol=1e-4)
    assert (wide.scores[number:] == -jnp.inf).all()
    assert (wide.sequences.elements[0] == tokens[order[0]]).all()
    place = {code: i for i, code in enumerate(codes_of(tokens))}
    index = [place[code] for code in codes_of(wide.sequences.elements[:number])]
    assert sorted(index) == list(range(number))
    assert np.allclose(wide.sequences.log_potential[:number], log_g[index], atol=1e-4)
    assert np.allclose(wide.sequences.log_probability[:number], log_p[index], atol=1e-4)
    by_reward = particle.beam_search(MODEL, LENGTH, WITH_FINAL, width=TOKENS**LENGTH, end=end, probability_weight=0.0)
    assert np.allclose(by_reward.scores[:number], np.sort(log_g)[::-1], atol=1e-4)

    table = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    greedy = []
    while len(greedy) < LENGTH and not (greedy and greedy[-1] == end):
        before = greedy[-1] if greedy else TOKENS

        def score(token, before=before):
            whole = [*greedy, token]
            ends = len(whole) == LENGTH or token == end
            return table[before, token] + log_potentials(whole)[-1] + (FINAL[whole.count(0)] if ends else 0)

        greedy.append(max(range(TOKENS), key=score))
    narrow = particle.beam_search(MODEL, LENGTH, WITH_FINAL, width=1, end=end)
    assert np.asarray(narrow.sequences.elements[0]).tolist() == greedy + [end] * (LENGTH - len(greedy))
    assert int(narrow.sequences.length[0]) == len(greedy)


def test_a_beam_may_try_few_tokens():
    few = particle.beam_search(MODEL, LENGTH, POTENTIAL, width=TOKENS**LENGTH, branching=1)
    table = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    likely, before = [], TOKENS
    for _ in range(LENGTH):
        before = int(np.argmax(table[before]))
        likely.append(before)
    assert np.asarray(few.sequences.elements[0]).tolist() == likely
    assert np.isfinite(few.scores[0])
    assert (few.scores[1:] == -jnp.inf).all()


def normal_step(key, state):
    return jax.random.normal(key), state


def test_beams_of_a_sampler():
    # Among so many draws are all tokens, and more of the best than there are beams: the search is greedy.
    found = particle.beam_search(SAMPLER, LENGTH, POTENTIAL, width=4, branching=100, key=jax.random.key(0))
    greedy = []
    for _ in range(LENGTH):
        greedy.append(max(range(TOKENS), key=lambda token: log_potentials([*greedy, token])[-1]))
    assert (np.asarray(found.sequences.elements) == greedy).all()
    assert np.allclose(found.scores, sum(log_potentials(greedy)), atol=1e-4)
    assert found.sequences.log_probability is None
    assert len({row.tobytes() for row in np.asarray(found.sequences.key_data)[:, -1]}) == 4

    # No two draws are alike, of different beams or times.
    walk = particle.Sampler(0.0, normal_step)
    free = particle.beam_search(walk, 4, width=3, branching=1, key=jax.random.key(2)).sequences.elements
    assert len(set(np.asarray(free).ravel().tolist())) == 12

    # What ended first is best: four different draws of it, none of which is counted again.
    early = particle.beam_search(SAMPLER, LENGTH, WITH_FINAL, width=4, branching=100, end=END, key=jax.random.key(1))
    assert (np.asarray(early.sequences.length) == 1).all()
    assert np.allclose(early.scores, REWARDS[0, END] + FINAL[0], atol=1e-4)
    assert len({row.tobytes() for row in np.asarray(early.sequences.key_data)[:, 0]}) == 4


def test_the_best_of_n_has_its_law():
    tokens, log_p, log_g, _ = law(2)
    order = np.argsort(log_g)
    assert np.diff(log_g[order]).min() > 1e-3
    below = np.cumsum(np.exp(log_p)[order])
    chance = np.empty(len(order))
    chance[order] = np.diff(np.append(0, below**3))
    draw = jax.jit(jax.vmap(lambda key: particle.best_of_n(key, MODEL, 2, POTENTIAL, number=3).elements))
    check_law(draw(jax.random.split(jax.random.key(6), COUNT)), tokens, chance)


def test_a_reward_that_is_undefined_wins_nothing():
    reward = lambda state, token: jnp.where(token == 1, jnp.nan, token.astype(jnp.float32))  # noqa: E731
    best = particle.best_of_n(jax.random.key(0), MODEL, 2, reward, number=64)
    assert np.asarray(best.elements).tolist() == [2, 2]
    beams = particle.beam_search(MODEL, 2, reward, width=9)
    assert (np.asarray(beams.sequences.elements)[:4] != 1).all()
    assert (np.isfinite(beams.scores) == (np.arange(9) < 4)).all()
    never_one = particle.LanguageModel(None, Partial(chain_step, jnp.asarray(LOGITS).at[:, 1].set(-jnp.inf)), TOKENS)
    for weight in (0.0, 1.0):
        ones = lambda state, token: jnp.where(token == 1, 5.0, 0.0)  # noqa: E731
        beams = particle.beam_search(never_one, 2, ones, width=9, probability_weight=weight)
        assert (np.asarray(beams.sequences.elements)[:4] != 1).all()
        assert (np.isfinite(beams.scores) == (np.arange(9) < 4)).all()


def test_choices():
    log_weights = jnp.log(jnp.array([0.2, 0.3, 0.0, 0.1, 0.4]))
    particles = {"answer": jnp.array([7, 4, 9, 7, 5]), "score": jnp.array([1.0, jnp.nan, 9.0, 2.0, 0.0])}
    population = smc.Population(particles, log_weights, 3.0)
    best = particle.choose(population, score=lambda x: x["score"])
    assert (int(best.index), int(best.particle["answer"])) == (3, 7)
    assert np.isclose(best.weight, 0.1)
    voted = particle.choose(population, "vote", answer=lambda x: jnp.stack([x["answer"] % 2, jnp.int32(1)]))
    assert (int(voted.index), int(voted.particle["answer"])) == (0, 7)
    assert np.isclose(voted.weight, 0.7)
    voted = particle.choose(population, "vote", answer=lambda x: x["answer"])
    assert int(voted.index) == 4
    draw = jax.vmap(lambda key: particle.choose(population, "draw", key=key).index)
    counts = np.bincount(draw(jax.random.split(jax.random.key(7), 20_000)), minlength=5)
    assert counts[2] == 0
    shares = np.array([0.2, 0.3, 0.1, 0.4])
    assert scipy.stats.chisquare(counts[[0, 1, 3, 4]], shares * 20_000).pvalue > 1e-4
