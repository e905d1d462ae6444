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
    made,
    tilted,
)

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


def test_functions_may_close_over_what_is_traced():
    def log_evidence(scale):
        reward = lambda state, token: scale * token.astype(jnp.float32)  # noqa: E731
        return particle.generate(jax.random.key(0), MODEL, 1, reward, particles=50).log_evidence

    value, slope = jax.value_and_grad(log_evidence)(jnp.float32(0.5))
    mapped = jax.vmap(log_evidence)(jnp.array([0.5, 0.51]))
    assert np.isclose(mapped[0], value, rtol=1e-5)
    assert np.isclose((mapped[1] - mapped[0]) / 0.01, slope, rtol=0.02)


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


def count_step(limit, state, token):
    """Tokens are counted; the end comes for certain after so many, and is likely before."""
    logits = jnp.where(state + 1 >= limit, jnp.array([-jnp.inf, -jnp.inf, 0.0]), jnp.array([0.3, 0.1, 0.8]))
    return logits, state + 1


ENDING = particle.LanguageModel(jnp.int32(0), Partial(count_step, 5), 0)
FIRST_TOKENS = particle.Potential(None, lambda memory, token: (jnp.array([0.5, -1.0, 0.2])[token], None))


@pytest.mark.parametrize(
    "resampler",
    [None, smc.always(), smc.always(smc.multinomial), smc.soft(0.7), smc.adaptive(threshold=0.999)],
    ids=["adaptive", "systematic", "multinomial", "soft", "nearly always"],
)
def test_a_run_that_ends_early_is_the_whole_run(resampler):
    options = {"particles": 40, "end": 2, "resampler": resampler}
    generator, potential, length = (ENDING, FIRST_TOKENS, 12) if resampler is None else (SAMPLER, WITH_FINAL, LENGTH)
    for seed in range(3):
        early, whole = (
            particle.generate(jax.random.key(seed), generator, length, potential, early_stop=early, **options)
            for early in (True, False)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), early, whole)
    assert (np.asarray(whole.population.particles.length) < length).any()


def test_nothing_is_computed_once_all_have_ended():
    steps = []

    def step(state, token):
        jax.debug.callback(lambda: steps.append(1), ordered=False)
        return count_step(5, state, token)

    counted = particle.LanguageModel(jnp.int32(0), step, 0)
    for length, early in ((60, True), (20, False)):
        steps.clear()
        found = particle.generate(jax.random.key(0), counted, length, particles=8, end=2, early_stop=early)
        jax.block_until_ready(found)
        jax.effects_barrier()
        # Those that have ended are looked at once more: they might be resampled.
        assert len(steps) == (int(found.population.particles.length.max()) + 1 if early else length)
        assert (np.asarray(found.population.particles.elements)[:, 5:] == 2).all()
        assert found.effective_sample_size.shape == (length,)


@pytest.mark.parametrize("options", [{"chunk": 3}, {"devices": 8}, {"devices": 4, "chunk": 5}], ids="-".join)
def test_chunks_and_devices_change_nothing(options):
    generator, potential = (MODEL, WITH_FINAL) if "chunk" in options else (SAMPLER, POTENTIAL)
    one, many = (
        particle.generate(jax.random.key(7), generator, LENGTH, potential, particles=80, end=END, **more)
        for more in ({}, options)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), many, one)
    number = options.get("devices", 1)
    assert len(many.population.particles.length.sharding.device_set) == number


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
    "particle.generate: chunk is 0": lambda: particle.generate(KEY, MODEL, 3, chunk=0),
    "particle.generate: particles is 9; expected a multiple of the 2 devices": lambda: particle.generate(
        KEY, MODEL, 3, particles=9, devices=2
    ),
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
