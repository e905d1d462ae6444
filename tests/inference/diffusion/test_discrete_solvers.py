"""Samplers of tokens with exact denoisers: laws by enumeration, numbers of tokens, convergence in steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob import core
from jaxprob.inference import diffusion as samplers
from jaxprob.models import diffusion
from tests.models.diffusion import _token_oracles as oracles

SIZE, MASK, NUMBER = oracles.VOCABULARY, oracles.VOCABULARY, 20_000
LAW = oracles.correlated_law()
SITES_LAW, SITES = oracles.independent_law()
PROCESSES = {
    "mask": diffusion.masked(SIZE),
    "uniform": diffusion.uniform(SIZE),
    "flags": diffusion.reparameterized(SIZE, "uniform"),
}
TABLE = oracles.table_of_masks(LAW)


def table_denoiser(x, t, condition):
    """Of masks, what is exact does not depend on the time."""
    shown = jnp.where(x.noisy, MASK, x.tokens) if isinstance(x, diffusion.RoutedTokens) else x
    return jnp.asarray(TABLE, jnp.float32)[16 * shown[0] + 4 * shown[1] + shown[2]]


DENOISERS = {"mask": table_denoiser, "flags": table_denoiser, "uniform": oracles.exact_denoiser(LAW, "uniform")}


def sites_denoiser(x, t, condition):
    return jnp.asarray(np.log(SITES), jnp.float32)


def counts(kind, solver, denoiser=None, number=NUMBER):
    denoiser = DENOISERS[kind] if denoiser is None else denoiser
    return oracles.counts(samplers.sample(jax.random.key(0), PROCESSES[kind], denoiser, (number, 3), solver=solver))


def distance(found, law):
    """Total variation; of 20,000 exact draws it is 0.012 here, of 5,000 it is 0.025."""
    return 0.5 * np.abs(found / found.sum() - law).sum()


# A z-score of Pearson's statistic above 4.5 is wrong once in 300,000 tests.


@pytest.mark.parametrize(("kind", "steps"), [("mask", 1), ("mask", 3), ("uniform", 3)])
def test_ancestral_samples_have_the_law_of_the_factorized_chain(kind, steps):
    matrices = oracles.absorbing_matrices(steps) if kind == "mask" else oracles.uniform_matrices(steps)
    prior = np.eye(MASK + 1)[MASK] if kind == "mask" else np.full(SIZE, 1 / SIZE)
    law = oracles.factorized_sampler_law(LAW, matrices, prior)
    assert abs(oracles.z_of_counts(counts(kind, samplers.ancestral(steps)), law)) < 4.5
    assert distance(law * NUMBER, LAW) > 0.05  # so that the next test is another one


@pytest.mark.parametrize("kind", PROCESSES)
def test_ancestral_samples_have_the_joint_law_in_many_steps(kind):
    assert distance(counts(kind, samplers.ancestral(100), number=5000), LAW) < 0.045
    assert abs(oracles.z_of_counts(counts(kind, samplers.ancestral(3), sites_denoiser), SITES_LAW)) < 4.5


@pytest.mark.parametrize("kind", PROCESSES)
def test_negative_elbo_of_the_exact_denoiser_is_the_entropy(kind):
    # |z| < 4.5, for a mean over 4,000 examples of the law.
    examples = jnp.asarray(np.random.default_rng(0).choice(27, 4000, p=LAW))
    xs = jnp.asarray(oracles.EXAMPLES, jnp.int32)[examples]
    bound = samplers.negative_elbo(jax.random.key(9), PROCESSES[kind], DENOISERS[kind], xs, draws=64)
    gaps = np.asarray(bound.nats) + np.log(LAW)[np.asarray(examples)]
    assert abs(gaps.mean()) < 4.5 * gaps.std() / np.sqrt(4000)
    assert gaps.std() < 2


def test_chains_of_matrices_are_sampled():
    process = diffusion.discrete(oracles.absorbing_matrices(3), SIZE)
    law = oracles.factorized_sampler_law(LAW, oracles.absorbing_matrices(3), np.eye(MASK + 1)[MASK])
    drawn = samplers.sample(jax.random.key(1), process, DENOISERS["mask"], (NUMBER, 3), solver=samplers.ancestral(3))
    assert abs(oracles.z_of_counts(oracles.counts(drawn), law)) < 4.5


@pytest.mark.parametrize("kind", ["mask", "uniform"])
def test_tau_leaping_converges_in_steps(kind):
    few, some, many = (distance(counts(kind, samplers.tau_leaping(steps), number=5000), LAW) for steps in (2, 8, 40))
    assert few > 1.5 * some > 1.5 * 1.3 * many
    assert many < 0.045


def test_a_leap_of_masks_is_a_poisson_clock():
    # From 1 to 1/2 at the rate 1 each mask remains with probability exp(-1/2); |z| < 4.5.
    algorithm = samplers.tau_leaping(2).algorithm(PROCESSES["mask"], sites_denoiser, (3,))

    def one(key):
        return algorithm.step(core.fold(key, 1), algorithm.init(None, core.fold(key, 0)))[0].position

    moved = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), NUMBER)))
    for site in range(3):
        law = np.append((1 - np.exp(-0.5)) * SITES[site], np.exp(-0.5))
        found = np.bincount(moved[:, site], minlength=4)
        assert np.all(np.abs(found - NUMBER * law) < 4.5 * np.sqrt(NUMBER * law * (1 - law)))


@pytest.mark.parametrize(("strength", "rule"), [(0.0, "rescale"), (0.6, "rescale"), (1.0, "rescale"), (0.3, "cap")])
@pytest.mark.parametrize("kind", ["mask", "flags"])
def test_remasking_keeps_the_law_of_independent_tokens(kind, strength, rule):
    found = counts(kind, samplers.remasking(4, strength, rule), sites_denoiser)
    assert abs(oracles.z_of_counts(found, SITES_LAW)) < 4.5


@pytest.mark.parametrize(("strength", "rule"), [(0.0, "rescale"), (0.6, "rescale"), (1.0, "rescale"), (0.3, "cap")])
def test_remasking_has_as_much_noise_as_the_process_and_turns_what_it_says(strength, rule):
    process = diffusion.masked(SIZE, diffusion.cosine_survival())
    algorithm = samplers.remasking(3, strength, rule).algorithm(process, sites_denoiser, (3,))

    def one(key):
        state = algorithm.init(None, core.fold(key, 0))
        first = algorithm.step(core.fold(key, 1), state)[0]
        return first.position, algorithm.step(core.fold(key, 2), first)[0].position

    first, second = (np.asarray(x) == MASK for x in jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(3), NUMBER)))
    for masks, t in ((first, 2 / 3), (second, 1 / 3)):
        noise = np.sin(np.pi / 2 * t)
        assert abs(masks.mean() - noise) < 4.5 * np.sqrt(noise * (1 - noise) / masks.size)
    alpha, target = 1 - np.sin(np.pi / 3), np.sin(np.pi / 6)
    sigma = strength * min(1, target / alpha) if rule == "rescale" else min(strength, target / alpha)
    turned, clean = np.sum(second & ~first), np.sum(~first)
    assert abs(turned - sigma * clean) <= 4.5 * np.sqrt(clean * sigma * (1 - sigma))


@pytest.mark.parametrize("kind", ["mask", "flags"])
def test_remasking_has_the_joint_law_in_many_steps(kind):
    assert distance(counts(kind, samplers.remasking(100, 0.3), number=5000), LAW) < 0.045


def test_top_k_in_random_order_has_the_joint_law():
    # One token in each step, in an order that has nothing to do with confidence: the chain rule.
    for kind in ("mask", "flags"):
        found = counts(kind, samplers.top_k(3, "linear", confidence_noise=1e6))
        assert abs(oracles.z_of_counts(found, LAW)) < 4.5


def greedy(start):
    """The surest token of all masks first, by enumeration."""
    x = list(start)
    while MASK in x:
        best = (-1.0, 0, 0)
        fits = np.all([(oracles.EXAMPLES[:, i] == v) | (v == MASK) for i, v in enumerate(x)], axis=0)
        for site in (i for i in range(3) if x[i] == MASK):
            for v in range(SIZE):
                share = LAW[fits & (oracles.EXAMPLES[:, site] == v)].sum() / LAW[fits].sum()
                best = max(best, (share, site, v))
        x[best[1]] = best[2]
    return x


def test_top_k_without_temperature_takes_the_surest_first():
    starts = oracles.states(MASK + 1)
    solver = samplers.top_k(3, "linear", temperature=0.0)
    given = {"solver": solver, "start": jnp.asarray(starts, jnp.int32)}
    found = samplers.sample(jax.random.key(4), PROCESSES["mask"], DENOISERS["mask"], (64, 3), **given)
    assert found.tolist() == [greedy(start) for start in starts]


@pytest.mark.parametrize(
    ("schedule", "steps", "left"),
    [
        ("linear", 4, [15, 10, 5, 0]),
        ("cosine", 4, [18, 14, 7, 0]),
        ("cosine", 30, None),
        ("linear", 1, [0]),
    ],
)
@pytest.mark.parametrize("noise", ["mask", "uniform"])
def test_top_k_has_as_many_tokens_as_its_schedule_says(schedule, steps, left, noise):
    process, size = diffusion.reparameterized(5, noise, diffusion.cosine_survival()), (4, 5)
    seen = []

    def denoiser(x, t, condition):  # ties everywhere, and a place without a law
        logits = jnp.zeros((*size, 5)).at[0, 0].set(jnp.nan)
        return logits + 0 * t

    algorithm = samplers.top_k(steps, schedule).algorithm(process, denoiser, size)
    step = jax.jit(algorithm.step)
    state = algorithm.init(None, jax.random.key(5))
    for i in range(steps):
        before = state.position
        state, _ = step(jax.random.key(6 + i), state)
        seen.append(int(state.position.noisy.sum()))
        kept = ~before.noisy
        assert np.array_equal(state.position.tokens[kept], before.tokens[kept])
        assert not np.any(state.position.noisy & kept)
    if left is None:
        # At least one in each step until there is none.
        assert all(b == max(a - 1, 0) or b < a for a, b in zip([20, *seen], seen, strict=False))
        assert seen[-1] == 0
    else:
        assert seen == left
    assert np.all(state.position.tokens < 5)


@pytest.mark.parametrize("noise", ["mask", "uniform"])
def test_revision_turns_the_least_sure_into_noise_again_but_not_what_was_given(noise):
    # Six places; the first is given. Places are the surer the later, until there are three tokens of data: then the
    # third and the second are, and the last is least sure.
    process = diffusion.reparameterized(4, noise)
    early, late = jnp.array([0.0, 1, 2, 3, 4, 5]), jnp.array([0.0, 4, 5, 3, 2, 1])

    def denoiser(x, t, condition):
        sure = jnp.where(jnp.sum(~x.noisy) >= 3, late, early)
        return jnp.zeros((6, 4)).at[:, 2].set(sure)

    tokens = jnp.full(6, 4 if noise == "mask" else 2, jnp.int32).at[0].set(1)
    start = diffusion.RoutedTokens(tokens, jnp.arange(6) > 0)
    clean = {}
    for revise in (True, False):
        algorithm = samplers.top_k(5, "linear", temperature=0.0, revise=revise).algorithm(process, denoiser, (6,))
        state, seen = algorithm.init(start, jax.random.key(0)), []
        for i in range(5):
            state, _ = algorithm.step(jax.random.key(i), state)
            seen.append(np.flatnonzero(~state.position.noisy).tolist())
            if noise == "mask":
                assert (state.position.tokens == 4).tolist() == state.position.noisy.tolist()
        clean[revise] = seen
        assert state.position.tokens.tolist() == [1, 2, 2, 2, 2, 2]
    assert clean[True] == [[0, 5], [0, 4, 5], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5]]
    assert clean[False] == [[0, 5], [0, 4, 5], [0, 2, 4, 5], [0, 1, 2, 4, 5], [0, 1, 2, 3, 4, 5]]


def test_top_k_tells_the_denoiser_how_much_noise_there_is():
    process = diffusion.masked(3, diffusion.polynomial_survival(2.0))

    def denoiser(x, t, condition):
        # Says token 1 where the time is that of the share of masks, and token 0 elsewhere.
        share = jnp.mean(jnp.where(x == 3, 1.0, 0.0))
        right = jnp.abs(t - jnp.sqrt(share)) < 1e-5
        return jnp.where(right, jnp.array([[0.0, 9e9, 0.0]]), jnp.array([[9e9, 0.0, 0.0]])) + jnp.zeros((8, 3))

    drawn = samplers.sample(jax.random.key(7), process, denoiser, (4, 8), solver=samplers.top_k(5))
    assert np.all(drawn == 1)


def test_few_tokens_at_the_start_are_kept():
    start = jnp.array([[0, MASK, MASK], [MASK, MASK, 2], [1, 1, 1]], jnp.int32)
    for solver in (samplers.ancestral(3), samplers.tau_leaping(3), samplers.top_k(3)):
        found = samplers.sample(
            jax.random.key(8), PROCESSES["mask"], DENOISERS["mask"], (3, 3), solver=solver, start=start
        )
        assert np.array_equal(found[start < MASK], start[start < MASK])
        assert np.all(found < SIZE)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: samplers.tau_leaping(0), ValueError, "steps is 0; expected a whole number"),
        (lambda: samplers.top_k(0), ValueError, "steps is 0"),
        (lambda: samplers.remasking(0), ValueError, "steps is 0"),
        (lambda: samplers.top_k(3, "square"), ValueError, "schedule is 'square'; expected one of"),
        (
            lambda: samplers.top_k(3, temperature=-1.0),
            ValueError,
            "temperature is -1.0; expected a number of at least 0",
        ),
        (lambda: samplers.top_k(3, confidence_noise=np.nan), ValueError, "confidence_noise is nan"),
        (lambda: samplers.remasking(3, 1.5), ValueError, "strength is 1.5; expected a number from 0 to 1"),
        (lambda: samplers.remasking(3, rule="loop"), ValueError, "rule is 'loop'"),
        (
            lambda: samplers.sample(
                jax.random.key(0), PROCESSES["uniform"], sites_denoiser, (2, 3), solver=samplers.top_k(3)
            ),
            TypeError,
            "top_k is for RoutedProcess",
        ),
        (
            lambda: samplers.sample(
                jax.random.key(0), PROCESSES["flags"], sites_denoiser, (2, 3), solver=samplers.tau_leaping(3)
            ),
            TypeError,
            "tau_leaping is for Masked and Uniform",
        ),
    ],
)
def test_bad_input_is_one_line(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_equal_solvers_are_equal():
    assert samplers.top_k(3) == samplers.top_k(3)
    assert hash(samplers.remasking(3, 0.5)) == hash(samplers.remasking(3, 0.5))
    assert samplers.remasking(3, 0.5) != samplers.remasking(3, 0.4)
