"""Sequential Monte Carlo, particle Gibbs and search over generated sequences, against laws by enumeration in float64.

The generator is a Markov chain of three tokens, the potential remembers how often one of them came. z-scores are over
independent repeats with fixed seeds: a bound of 4.5 on some hundred of them gives a false alarm in a thousand; p-values
of chi-squared tests above 1e-4.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.tree_util import Partial

from jaxprob.distributions import Categorical, Normal
from jaxprob.inference import particle, smc
from jaxprob.models import sequence

TOKENS, LENGTH, END = 3, 5, 2
# Of the token after 0, 1 and 2, and of the first; not normalised.
LOGITS = np.array([[0.3, 1.2, -0.4], [1.0, 0.1, 0.6], [0.2, 0.9, 0.5], [0.8, 0.3, -0.2]]) + 0.7
REWARDS = np.array([[0.1, -0.6, 0.9], [-0.3, 0.5, 0.2], [0.7, -0.9, 0.4], [0.0, 0.6, -0.5], [-0.4, 0.8, 0.3]])
FINAL = np.array([0.5, -0.7, 0.2, 0.4, -0.3, 0.6])


def log_potentials(tokens):
    """Of each token: a table, and something for a 1 that follows so many 0s."""
    zeros = np.cumsum(np.asarray(tokens) == 0)
    return [REWARDS[t, x] + 0.4 * zeros[t] * (x == 1) for t, x in enumerate(tokens)]


def law(length=LENGTH, end=None, final=False, power=1.0, potentials=log_potentials):
    """All sequences, their log probabilities, log potentials, and un-normalised weights."""
    table = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    every = []
    for tokens in itertools.product(range(TOKENS), repeat=length):
        size = tokens.index(end) + 1 if end in tokens else length
        if any(token != end for token in tokens[size:]):
            continue
        before = (TOKENS, *tokens)
        log_p = sum(table[before[t], tokens[t]] for t in range(size))
        log_g = sum(potentials(tokens[:size])) + (FINAL[tokens[:size].count(0)] if final else 0)
        every.append((tokens, log_p, log_g))
    tokens, log_p, log_g = (np.array(column) for column in zip(*every, strict=True))
    return tokens, log_p, log_g, np.exp(log_p + power * log_g)


def codes_of(elements):
    elements = np.asarray(elements)
    return elements @ TOKENS ** np.arange(elements.shape[-1])[::-1]


def chain_step(table, state, token):
    return table[token], state


def draw_step(table, key, token):
    token = jax.random.categorical(key, table[token]).astype(jnp.int32)
    return token, token


def potential_step(rewards, memory, token):
    zeros, time = memory
    zeros = zeros + (token == 0).astype(jnp.int32)
    value = rewards[time, token] + jnp.where(token == 1, 0.4, 0.0) * zeros.astype(rewards.dtype)
    return value, (zeros, time + 1)


def final_value(table, memory):
    return table[memory[0]]


def made(dtype=jnp.float32):
    """The generator as a language model and as a sampler, and the potential, without and with a last factor."""
    table, rewards, last = (jnp.asarray(x, dtype) for x in (LOGITS, REWARDS, FINAL))
    model = particle.LanguageModel(None, Partial(chain_step, table), TOKENS)
    sampler = particle.Sampler(jnp.int32(TOKENS), Partial(draw_step, table))
    potential = particle.Potential((jnp.int32(0), jnp.int32(0)), Partial(potential_step, rewards))
    return model, sampler, potential, potential._replace(final=Partial(final_value, last))


def tilted(state, log_probabilities):
    return 0.5 * log_probabilities + jnp.array([0.0, 0.4, -0.3])


MODEL, SAMPLER, POTENTIAL, WITH_FINAL = made()
CASES = {
    "adaptive": (MODEL, POTENTIAL, {}),
    "multinomial": (MODEL, POTENTIAL, dict(resampler=smc.always(smc.multinomial))),
    "sampler, end, final": (SAMPLER, WITH_FINAL, dict(end=END)),
    "proposal, end": (MODEL, POTENTIAL, dict(proposal=tilted, end=END)),
    "optimal, final, end": (MODEL, WITH_FINAL, dict(proposal="optimal", end=END)),
}


SLOW = ("multinomial", "every time, multinomial")


def cases(names):
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.mark.parametrize("case", cases(CASES))
def test_evidence_and_weights_are_unbiased(case):
    generator, potential, options = CASES[case]
    tokens, log_p, log_g, weights = law(end=options.get("end"), final=potential.final is not None)
    keys = jax.random.split(jax.random.key(0), 6000)
    found = jax.jit(jax.vmap(lambda key: particle.generate(key, generator, LENGTH, potential, particles=4, **options)))
    found = found(keys)
    population = found.population
    ratios = np.exp(np.float64(found.population.log_scale)[:, None] + np.float64(population.log_weights))
    totals = ratios.sum(1) / weights.sum()
    assert np.allclose(totals, np.exp(np.float64(jax.vmap(lambda f: f.log_evidence)(found))) / weights.sum(), rtol=1e-4)
    z = (totals.mean() - 1) / (totals.std(ddof=1) / np.sqrt(len(totals)))
    print(f"{case}: evidence {totals.mean():.4f} sd {totals.std():.3f} z {z:.2f}")
    assert abs(z) < 3

    # The mass that each sequence has on average is its weight.
    codes, place = codes_of(population.particles.elements), {code: i for i, code in enumerate(codes_of(tokens))}
    index = np.vectorize(place.__getitem__)(codes)
    masses = np.zeros((len(keys), len(weights)))
    np.add.at(masses, (np.arange(len(keys))[:, None], index), ratios)
    often = weights > 0.004 * weights.sum()
    z = (masses.mean(0) - weights)[often] / (masses.std(0, ddof=1)[often] / np.sqrt(len(keys)))
    assert often.sum() > 15
    assert np.abs(z).max() < 4.5

    # What is said of a sequence is true of it.
    assert np.allclose(population.particles.log_potential, log_g[index], atol=1e-4)
    if generator is MODEL:
        assert np.allclose(population.particles.log_probability, log_p[index], atol=1e-4)
    sizes = np.array([list(row).index(END) + 1 if END in row else LENGTH for row in tokens])
    assert (np.asarray(population.particles.length) == (sizes[index] if "end" in options else LENGTH)).all()
    assert (np.asarray(found.failed_at) == -1).all()
    assert found.effective_sample_size.shape == (6000, LENGTH)


def test_a_better_proposal_has_less_variance():
    keys = jax.random.split(jax.random.key(1), 500)

    def spread(proposal):
        run = lambda key: particle.generate(key, MODEL, 1, POTENTIAL, particles=2, proposal=proposal)  # noqa: E731
        return np.std(jax.vmap(lambda key: run(key).log_evidence)(keys))

    assert spread("optimal") < 1e-5 < 0.05 < spread(None)


GIBBS = {
    "language model, final": (MODEL, WITH_FINAL, dict(particles=3, threshold=0.8), 1.0),
    "every time, multinomial": (MODEL, POTENTIAL, dict(particles=2, threshold=1.0, scheme=smc.multinomial), 1.0),
    "optimal, end, tempered": (MODEL, WITH_FINAL, dict(particles=3, proposal="optimal", end=END), 0.5),
    "sampler, end": (SAMPLER, POTENTIAL, dict(particles=3, threshold=0.8, end=END), 1.0),
}
COUNT = 2**15


def exact_start(generator, potential, end, power, seed=0):
    """Sequences from the tilted law, as positions of a chain."""
    rng = np.random.default_rng(seed)
    tokens, _, log_g, weights = law(end=end, final=potential.final is not None, power=power)
    if generator is MODEL:
        drawn = jnp.asarray(tokens[rng.choice(len(weights), COUNT, p=weights / weights.sum())], jnp.int32)
        return jax.jit(jax.vmap(lambda x: particle.sequence_of(generator, x, potential, end=end)))(drawn)
    # By rejection, since what a sampler draws by is not known from what it drew.
    never = smc.adaptive(threshold=0.0)
    found = particle.generate(
        jax.random.key(seed), generator, LENGTH, potential, particles=8 * COUNT, resampler=never, end=end
    ).population.particles
    keep = np.log(rng.uniform(size=8 * COUNT)) < power * (np.asarray(found.log_potential) - log_g.max())
    return jax.tree.map(lambda leaf: leaf[np.flatnonzero(keep)], found)


def check_law(elements, tokens, weights):
    place = {code: i for i, code in enumerate(codes_of(tokens))}
    counts = np.bincount(np.vectorize(place.__getitem__)(codes_of(elements)), minlength=len(weights))
    expected = weights / weights.sum() * counts.sum()
    few = expected < 10
    counts, expected = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    statistic, p = scipy.stats.chisquare(counts[expected > 0], expected[expected > 0])
    assert p > 1e-4, (statistic, p)


@pytest.mark.parametrize("case", cases(GIBBS))
def test_particle_gibbs_leaves_the_tilted_law_invariant(case):
    generator, potential, options, power = GIBBS[case]
    end = options.get("end")
    before = exact_start(generator, potential, end, power)
    tokens, _, log_g, weights = law(end=end, final=potential.final is not None, power=power)
    check_law(before.elements, tokens, weights)
    kernel = particle.sequence_gibbs(generator, LENGTH, potential, inverse_temperature=power, **options)
    keys = jax.random.split(jax.random.key(2), len(before.length))
    state, info = jax.jit(jax.vmap(lambda key, x: kernel.step(key, particle.GibbsState(x))))(keys, before)
    after = state.position
    check_law(after.elements, tokens, weights)
    moved = codes_of(after.elements) != codes_of(before.elements)
    print(f"{case}: {len(moved)} chains, moved {moved.mean():.2f}, {np.mean(info.renewed):.2f}")
    assert moved.mean() > 0.2
    place = {code: i for i, code in enumerate(codes_of(tokens))}
    index = np.vectorize(place.__getitem__)(codes_of(after.elements))
    assert np.allclose(after.log_potential, log_g[index], atol=1e-4)
    assert (np.asarray(info.effective_sample_size) >= 1 - 1e-5).all()


@pytest.mark.slow
def test_a_chain_started_by_itself_finds_the_law():
    kernel = particle.sequence_gibbs(SAMPLER, LENGTH, POTENTIAL, particles=8)

    def chain(key):
        state = kernel.init(None, jax.random.fold_in(key, 0))
        for index in range(1, 4):
            state, _ = kernel.step(jax.random.fold_in(key, index), state)
        return state.position.elements

    elements = jax.jit(jax.vmap(chain))(jax.random.split(jax.random.key(3), 4000))
    tokens, _, _, weights = law()
    check_law(elements, tokens, weights)


def test_tempering_leaves_every_tempered_law_invariant():
    betas = np.array([1.0, 0.4, 0.0])
    kernel = particle.sequence_tempering(MODEL, 3, POTENTIAL, inverse_temperatures=betas, particles=2)
    laws = [law(3, power=beta) for beta in betas]
    rng = np.random.default_rng(0)
    drawn = [x[0][rng.choice(len(x[3]), COUNT, p=x[3] / x[3].sum())] for x in laws]
    starts = jnp.asarray(np.stack(drawn, 1), jnp.int32)

    @jax.jit
    @jax.vmap
    def step(key, starts):
        positions = jax.vmap(lambda x: particle.sequence_of(MODEL, x, POTENTIAL))(starts)
        coldest = jax.tree.map(lambda leaf: leaf[0], positions)
        state = kernel.init(coldest, jax.random.fold_in(key, 0))
        state = state._replace(replicas=particle.GibbsState(positions))
        state, info = kernel.step(jax.random.fold_in(key, 1), state)
        return state.position.elements, state.replicas.position.elements, info.swap_rate

    coldest, replicas, rate = step(jax.random.split(jax.random.key(4), COUNT), starts)
    assert (np.asarray(coldest) == np.asarray(replicas[:, 0])).all()
    assert 0.3 < rate.mean() < 0.99
    for level, (tokens, _, _, weights) in enumerate(laws):
        check_law(replicas[:, level], tokens, weights)


def no_repeats(last, token):
    token = token.astype(jnp.int32)
    return jnp.where(token == last, -jnp.inf, 0.0), token


CONSTRAINT = particle.Potential(jnp.int32(-1), no_repeats)


def test_a_constraint_is_never_broken():
    # What the proposal can see is never drawn; for the law of the generator see the networks below.
    keeps = [all(a != b for a, b in itertools.pairwise(x)) for x in law()[0]]
    exact = np.exp(law()[1])[keeps].sum()
    run = lambda key: particle.generate(key, MODEL, LENGTH, CONSTRAINT, particles=20, proposal="optimal")  # noqa: E731
    population = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(5), 1000)).population
    assert (np.diff(np.asarray(population.particles.elements), axis=-1) != 0).all()
    values = np.exp(np.float64(population.log_scale)) * np.exp(np.float64(population.log_weights)).sum(1)
    assert abs(values.mean() - exact) < 3 * values.std() / np.sqrt(len(values))
    beams = particle.beam_search(MODEL, LENGTH, CONSTRAINT, width=4)
    assert (np.diff(np.asarray(beams.sequences.elements), axis=-1) != 0).all()
    # A chain that begins at what must not be leaves it.
    kernel = particle.sequence_gibbs(MODEL, LENGTH, CONSTRAINT, particles=30)
    broken = particle.sequence_of(MODEL, jnp.zeros(LENGTH, jnp.int32), CONSTRAINT)
    assert broken.log_potential == -jnp.inf
    state, _ = kernel.step(jax.random.key(0), kernel.init(broken, None))
    assert (np.diff(np.asarray(state.position.elements)) != 0).all()


def third_step(value, time, token):
    return jnp.where(time == 2, value, 0.0), time + 1


def at_third(value):
    return particle.Potential(jnp.int32(0), Partial(third_step, jnp.float32(value)))


def with_logits(value):
    return particle.LanguageModel(None, Partial(chain_step, jnp.full(LOGITS.shape, value, jnp.float32)), TOKENS)


def all_nowhere(state, log_probabilities):
    return jnp.full(TOKENS, -jnp.inf)


@pytest.mark.parametrize("proposal", [None, "optimal"])
def test_failures_are_values(proposal):
    def run(model, value, proposal=proposal):
        return particle.generate(jax.random.key(0), model, LENGTH, at_third(value), particles=8, proposal=proposal)

    impossible = run(MODEL, -jnp.inf)
    assert impossible.log_evidence == -jnp.inf
    assert int(impossible.failed_at) == 2
    assert impossible.effective_sample_size[2] == 0
    assert not any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(impossible))
    assert (impossible.population.weights == 0).all()
    assert (impossible.population.particles.log_potential == -jnp.inf).all()
    unknown = run(MODEL, jnp.nan)
    assert int(unknown.failed_at) == 2
    assert jnp.isnan(unknown.log_evidence)
    assert jnp.isnan(unknown.population.log_weights).all()
    broken = run(with_logits(jnp.nan), 0.0)
    assert int(broken.failed_at) == 0
    assert jnp.isnan(broken.log_evidence)
    nothing = run(with_logits(-jnp.inf), 0.0)
    assert int(nothing.failed_at) == 0
    assert nothing.log_evidence == -jnp.inf
    if proposal is None:
        assert run(MODEL, 0.0, all_nowhere).log_evidence == -jnp.inf
        for method in ("best", "draw"):
            assert particle.choose(impossible.population, method, key=jax.random.key(0)).weight == 0
        assert jnp.isnan(particle.choose(unknown.population).weight)


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


def test_functions_may_close_over_what_is_traced():
    def log_evidence(scale):
        reward = lambda state, token: scale * token.astype(jnp.float32)  # noqa: E731
        return particle.generate(jax.random.key(0), MODEL, 1, reward, particles=50).log_evidence

    value, slope = jax.value_and_grad(log_evidence)(jnp.float32(0.5))
    mapped = jax.vmap(log_evidence)(jnp.array([0.5, 0.51]))
    assert np.isclose(mapped[0], value, rtol=1e-5)
    assert np.isclose((mapped[1] - mapped[0]) / 0.01, slope, rtol=0.02)


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


def network(cell, output, vocabulary=None):
    return sequence.stack(cell, depth=1, output=output, **({"vocabulary": vocabulary} if vocabulary else {}))


@pytest.mark.parametrize("cell", [sequence.gru, pytest.param(sequence.lru, marks=pytest.mark.slow)])
def test_a_network_of_tokens(cell):
    length, prompt = 3, jnp.array([1, 0, 2, 2])
    model = sequence.autoregressive(network(cell(6), 3, 3), lambda outputs: Categorical(logits=3 * outputs))
    params = model.init(jax.random.key(0), prompt)
    state = model.observe(params, prompt)[1]
    generator = particle.generator(model, params, state)
    assert isinstance(generator, particle.LanguageModel)

    every = jnp.asarray(list(itertools.product(range(3), repeat=length)), jnp.int32)
    log_p = np.float64(jax.jit(jax.vmap(lambda x: model.log_prob(params, x, state).sum()))(every))
    assert np.isclose(np.exp(log_p).sum(), 1, atol=1e-5)
    keeps = (np.diff(every, axis=1) != 0).all(1)
    exact = np.exp(log_p)[keeps].sum()

    run = lambda key: particle.generate(key, generator, length, CONSTRAINT, particles=5)  # noqa: E731
    found = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), 4000)).population
    values = np.exp(np.float64(found.log_scale) + scipy.special.logsumexp(np.float64(found.log_weights), axis=1))
    assert abs(values.mean() - exact) < 3 * values.std() / np.sqrt(len(values))
    index = codes_of(found.particles.elements)
    assert np.allclose(found.particles.log_probability, log_p[index], atol=1e-4)
    assert keeps[index[np.asarray(found.log_weights) > -np.inf]].all()
    # The most probable of those that keep it.
    best = particle.beam_search(generator, length, CONSTRAINT, width=27)
    assert int(codes_of(best.sequences.elements[0])) == np.flatnonzero(keeps)[np.argmax(log_p[keeps])]


def test_a_network_of_real_numbers():
    model = sequence.autoregressive(
        network(sequence.gru(6), 2), lambda outputs: Normal(outputs[0], jnp.exp(0.3 * outputs[1]))
    )
    params = model.init(jax.random.key(0), jnp.zeros(4))
    generator = particle.generator(model, params)
    assert isinstance(generator, particle.Sampler)
    reward = lambda state, x: -jnp.abs(x - 1.0)  # noqa: E731
    found = particle.generate(jax.random.key(1), generator, 6, reward, particles=300)
    sequences = found.population.particles
    assert np.allclose(sequences.log_potential, -np.abs(np.asarray(sequences.elements) - 1).sum(1), atol=1e-4)
    free = particle.generate(jax.random.key(1), generator, 6, particles=300)
    assert np.isclose(free.log_evidence, 0, atol=1e-5)
    off = lambda population: float(population.expectation(lambda x: jnp.mean(jnp.abs(x.elements - 1))))  # noqa: E731
    assert off(found.population) < off(free.population) - 0.1
    # A reference is written again from what it was drawn by.
    kernel = particle.sequence_gibbs(generator, 6, reward, particles=2, threshold=0.0)
    start = jax.tree.map(lambda leaf: leaf[0], sequences)
    step = jax.jit(lambda key: kernel.step(key, particle.GibbsState(start)))
    for seed in range(20):
        state, info = step(jax.random.key(seed))
        if info.renewed == 0:
            break
    assert info.renewed == 0
    assert np.allclose(state.position.elements, start.elements, atol=1e-5)
    assert (np.asarray(state.position.key_data) == np.asarray(start.key_data)).all()


def test_a_function_sees_the_state_of_the_generator():
    counting = particle.LanguageModel(jnp.int32(0), lambda read, token: (jnp.zeros(2), read + 1), 0)
    found = particle.generate(jax.random.key(0), counting, 4, lambda read, token: read.astype(jnp.float32), particles=3)
    assert np.allclose(found.population.particles.log_potential, 1 + 2 + 3 + 4)
    assert np.isclose(found.log_evidence, 10)


def test_elements_of_any_kind_and_an_end_that_is_a_function():
    def step(key, total):
        x = jax.random.uniform(key, (2,))
        total = total + x.sum()
        return {"x": x, "total": total}, total

    sampler = particle.Sampler(jnp.zeros(()), step)
    reward = lambda state, element: element["x"][0]  # noqa: E731
    over = lambda element: element["total"] > 2.5  # noqa: E731
    population = particle.generate(jax.random.key(0), sampler, 8, reward, particles=50, end=over).population
    elements, length = population.particles.elements, np.asarray(population.particles.length)
    assert elements["x"].shape == (50, 8, 2)
    totals = np.asarray(elements["total"])
    first = (totals > 2.5).argmax(1)
    assert (length == first + 1).all()
    for row, size in zip(totals, length, strict=True):
        assert (row[size:] == row[size - 1]).all()
    inside = np.arange(8) < length[:, None]
    rewards = (np.asarray(elements["x"])[..., 0] * inside).sum(1)
    assert np.allclose(population.particles.log_potential, rewards, atol=1e-5)
    assert np.allclose(np.cumsum(np.asarray(elements["x"]).sum(-1), 1)[inside], totals[inside], atol=1e-4)


def test_a_potential_of_the_prefix_is_the_one_with_a_memory():
    rewards, last = jnp.asarray(REWARDS, jnp.float32), jnp.asarray(FINAL, jnp.float32)

    def at_each(tokens, number):
        zeros = jnp.sum((tokens == 0) & (jnp.arange(LENGTH) < number))
        token = tokens[number - 1]
        return rewards[number - 1, token] + jnp.where(token == 1, 0.4, 0.0) * zeros.astype(jnp.float32)

    def at_the_end(tokens, number):
        return last[jnp.sum((tokens == 0) & (jnp.arange(LENGTH) < number))]

    both = particle.prefix_potential(at_each, LENGTH, final=at_the_end)
    for one, other in ((both, WITH_FINAL), (both._replace(final=None), POTENTIAL)):
        found, wanted = (particle.generate(jax.random.key(3), MODEL, LENGTH, x, end=END) for x in (one, other))
        assert np.allclose(found.population.log_weights, wanted.population.log_weights, atol=1e-5)
        assert (found.population.particles.elements == wanted.population.particles.elements).all()
    only = particle.prefix_potential(length=LENGTH, final=at_the_end)
    found = particle.generate(jax.random.key(3), MODEL, LENGTH, only, end=END).population.particles
    zeros = (np.asarray(found.elements) == 0).sum(1)
    assert np.allclose(found.log_potential, FINAL[zeros], atol=1e-5)


def test_compiled_once_and_mapped_as_one_by_one():
    traces = []

    def step(scale, memory, token):
        traces.append(1)
        return scale * token.astype(jnp.float32), memory

    def run(key, scale):
        potential = particle.Potential(None, Partial(step, scale))
        return particle.generate(key, MODEL, 3, potential, particles=6)

    keys = jax.random.split(jax.random.key(8), 3)
    scales = jnp.array([0.0, 1.0, -2.0])
    alone = [run(key, scale) for key, scale in zip(keys, scales, strict=True)]
    before = len(traces)
    run(jax.random.key(9), jnp.float32(0.3))
    assert len(traces) == before
    together = jax.vmap(run)(keys, scales)
    for index, one in enumerate(alone):
        row = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        assert (row.population.particles.elements == one.population.particles.elements).all()
        assert np.allclose(row.log_evidence, one.log_evidence, atol=1e-5)


def test_one_particle_is_one_draw():
    found = particle.generate(jax.random.key(0), MODEL, LENGTH, POTENTIAL, particles=1)
    assert np.isclose(found.log_evidence, found.population.particles.log_potential[0], atol=1e-5)


def test_dtypes(x64):
    model, sampler, _, with_final = made(jnp.float32)
    single = particle.generate(jax.random.key(0), model, 3, CONSTRAINT, particles=4, proposal="optimal").population
    drawn = particle.generate(jax.random.key(0), sampler, 3, with_final, particles=4, end=END).population
    for population in (single, drawn):
        assert population.log_weights.dtype == population.particles.log_potential.dtype == jnp.float32
    model, _, potential, _ = made(jnp.float64)
    beams = particle.beam_search(model, LENGTH, potential, width=1000)
    assert np.isclose(beams.scores[0], np.log(law()[3].max()), rtol=1e-12)


KEY = jax.random.key(0)
BAD = {
    "particle.generate: generator is": lambda: particle.generate(KEY, chain_step, 3),
    "particle.generate: length is 0": lambda: particle.generate(KEY, MODEL, 0),
    "particle.generate: particles is 0": lambda: particle.generate(KEY, MODEL, 3, particles=0),
    "particle.generate: key is": lambda: particle.generate(3, MODEL, 3),
    "particle.generate: potential is": lambda: particle.generate(KEY, MODEL, 3, 1.0),
    "particle.generate: generator.step is": lambda: particle.generate(KEY, particle.Sampler(0, 1), 3),
    "particle.generate: end is": lambda: particle.generate(KEY, MODEL, 3, end=0.5),
    "particle.generate: proposal is best": lambda: particle.generate(KEY, MODEL, 3, proposal="best"),
    "particle.generate: proposal is": lambda: particle.generate(KEY, SAMPLER, 3, proposal="optimal"),
    "expected one number": lambda: particle.generate(KEY, MODEL, 3, lambda state, token: jnp.zeros(2)),
    "(vocabulary,)": lambda: particle.generate(
        KEY, particle.LanguageModel(None, lambda s, t: (jnp.zeros((1, 2)), s), 0), 3
    ),
    "one with ancestors": lambda: particle.generate(
        KEY, MODEL, 3, resampler=lambda key, population: smc.Resampled(population, None)
    ),
    "end is": lambda: particle.generate(KEY, particle.Sampler(0.0, lambda key, state: (jnp.zeros(2), state)), 3, end=1),
    "particle.generator: model is": lambda: particle.generator(MODEL, {}),
    "particle.prefix_potential: log_potential is None": lambda: particle.prefix_potential(None, 3),
    "particle.prefix_potential: final is 3": lambda: particle.prefix_potential(jnp.sum, 3, final=3),
    "particle.sequence_of: generator is": lambda: particle.sequence_of(SAMPLER, jnp.arange(3)),
    "particle.sequence_of: tokens is": lambda: particle.sequence_of(MODEL, jnp.zeros(3)),
    "particle.sequence_gibbs: particles is 1": lambda: particle.sequence_gibbs(MODEL, 3, particles=1),
    "particle.sequence_gibbs: inverse_temperature is -1": lambda: particle.sequence_gibbs(
        MODEL, 3, inverse_temperature=-1
    ),
    "particle.sequence_gibbs: position is": lambda: particle.sequence_gibbs(MODEL, 3).init(jnp.zeros(3), KEY),
    "particle.sequence_gibbs: position is of elements": lambda: particle.sequence_gibbs(MODEL, 3).init(
        particle.sequence_of(MODEL, jnp.array([0, 1])), KEY
    ),
    "without key_data": lambda: particle.sequence_gibbs(SAMPLER, 2).init(
        particle.sequence_of(MODEL, jnp.array([0, 1])), KEY
    ),
    "particle.sequence_tempering: inverse_temperatures is": lambda: particle.sequence_tempering(
        MODEL, 3, POTENTIAL, inverse_temperatures=[0.5, 1.0]
    ),
    "particle.beam_search: width is 0": lambda: particle.beam_search(MODEL, 3, width=0),
    "particle.beam_search: branching is None": lambda: particle.beam_search(SAMPLER, 3, key=KEY),
    "particle.beam_search: key is None": lambda: particle.beam_search(SAMPLER, 3, branching=2),
    "particle.beam_search: probability_weight is -1": lambda: particle.beam_search(MODEL, 3, probability_weight=-1),
    "particle.best_of_n: number is 0": lambda: particle.best_of_n(KEY, MODEL, 3, POTENTIAL, number=0),
    "particle.choose: method is": lambda: particle.choose(smc.Population(jnp.zeros(1), jnp.zeros(1)), "most"),
    "particle.choose: score is None": lambda: particle.choose(smc.Population(jnp.zeros(1), jnp.zeros(1))),
    "particle.choose: answer is None": lambda: particle.choose(smc.Population(jnp.zeros(1), jnp.zeros(1)), "vote"),
    "particle.choose: key is None": lambda: particle.choose(smc.Population(jnp.zeros(1), jnp.zeros(1)), "draw"),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_input(text):
    with pytest.raises((TypeError, ValueError)) as caught:
        BAD[text]()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
