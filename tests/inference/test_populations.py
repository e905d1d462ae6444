"""Populations of weighted particles: resampling is unbiased, weights survive the awkward cases, pytrees are honest.

Oracles: NumPy in float64. Statistical checks have fixed seeds and state their false-alarm rate.
"""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprob import core, scan
from jaxprob.inference import smc

SCHEMES = {"systematic": smc.systematic, "multinomial": smc.multinomial}
NEVER = -np.inf


def normalised(log_weights):
    """NumPy float64 weights that sum to one."""
    log_weights = np.asarray(log_weights, np.float64)
    weights = np.exp(log_weights - log_weights.max())
    return weights / weights.sum()


def counts_over_keys(scheme, repeats, draws, size):
    """A jitted `(seed, log_weights) -> (repeats, size)`: how often each particle was drawn, key by key."""

    @jax.jit
    def run(seed, log_weights):
        keys = jax.random.split(jax.random.key(seed), repeats)
        ancestors = jax.vmap(lambda key: scheme(key, log_weights, draws))(keys)
        return jnp.sum(ancestors[:, :, None] == jnp.arange(size)[None, None, :], axis=1)

    return run


REPEATS, SIZE, DRAWS = 2000, 6, 9
COUNTERS = {name: counts_over_keys(scheme, REPEATS, DRAWS, SIZE) for name, scheme in SCHEMES.items()}

finite = st.floats(-8.0, 3.0, width=32)
log_weight_vectors = (
    st.tuples(
        st.lists(st.one_of(finite, st.just(NEVER)), min_size=SIZE, max_size=SIZE),
        st.sampled_from([0.0, -3000.0, 50.0]),  # log domain: a common factor of exp(-3000) changes nothing
    )
    .filter(lambda pair: max(pair[0]) > NEVER)
    .map(lambda pair: np.asarray(pair[0], np.float32) + np.float32(pair[1]))
)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Compiles for the shortest compile time: these programs run once, on little data."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


# --- resampling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(log_weights=log_weight_vectors)
def test_resampling_is_unbiased(name, log_weights):
    """E[count_i] = n w_i. False alarms: 40 x 6 components at |z| < 5, 1.4e-4 a scheme.

    A weight of 1/2 drawn 8 % too often would be 11 standard errors off in the multinomial scheme, more in the other.
    """
    weights = normalised(log_weights)
    counts = np.asarray(COUNTERS[name](7, log_weights), np.float64)
    assert np.all(counts.sum(axis=1) == DRAWS)
    assert np.all(counts[:, weights == 0] == 0)
    expected = DRAWS * weights
    fraction = expected - np.floor(expected)
    variance = expected * (1 - weights) if name == "multinomial" else fraction * (1 - fraction)
    error = np.abs(counts.mean(axis=0) - expected)
    # Below one event in all repeats the normal approximation says nothing; rounding is 1e-6 of the expected count.
    assert np.all(error <= 5 * np.sqrt(variance / REPEATS) + 5 / REPEATS + 2e-6 * expected)
    if name == "systematic":  # by definition within one of n w
        assert np.all(counts >= np.floor(expected - 1e-5))
        assert np.all(counts <= np.ceil(expected + 1e-5))


def test_multinomial_draws_are_independent():
    """Counts have the covariance of independent draws. False alarms: 21 entries at |z| < 5, 1.2e-5."""
    weights = np.array([0.3, 0.25, 0.2, 0.15, 0.1, 0.0])
    counts = np.asarray(COUNTERS["multinomial"](11, np.log(weights, where=weights > 0, out=np.full(SIZE, NEVER))))
    centred = counts - DRAWS * weights
    products = centred[:, :, None] * centred[:, None, :]
    expected = DRAWS * (np.diag(weights) - np.outer(weights, weights))
    error = products.std(axis=0) / np.sqrt(REPEATS)
    assert np.all(np.abs(products.mean(axis=0) - expected) <= 5 * error)


@pytest.mark.parametrize("name", SCHEMES)
def test_one_particle_that_has_everything_is_drawn_every_time(name):
    for rest, best in ((NEVER, -1e4), (-200.0, 0.0), (-3e38, 3e38), (NEVER, 0.0)):
        for index in (0, 2, SIZE - 1):
            log_weights = np.full(SIZE, rest, np.float32)
            log_weights[index] = best
            assert np.all(np.asarray(COUNTERS[name](0, log_weights)) == DRAWS * (np.arange(SIZE) == index))


@pytest.mark.parametrize("offset", [0.0, -1e5, 3e4])
@pytest.mark.parametrize("size", [1, 4096])
def test_systematic_of_equal_weights_keeps_every_particle(size, offset):
    ancestors = smc.systematic(jax.random.key(1), jnp.full(size, offset), size)
    np.testing.assert_array_equal(ancestors, np.arange(size))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_million_particles_in_float32(name):
    """Half a million dead particles are never drawn, and shares are right at the ends, where float32 sums are coarse.

    The last 1,000 living particles have 3 times the weight of the others. False alarms: |z| < 5, 6e-7.
    """
    size = 2**20
    log_weights = np.full(size, -2.0, np.float32)
    log_weights[-2000:] += np.float32(np.log(3.0))
    log_weights[::2] = NEVER
    ancestors = np.asarray(jax.jit(SCHEMES[name], static_argnums=2)(jax.random.key(5), log_weights, size))
    assert np.all(ancestors % 2 == 1)
    share = 3 * 1000 / (size // 2 - 1000 + 3 * 1000)
    drawn = np.sum(ancestors >= size - 2000)
    if name == "systematic":
        assert np.all(np.diff(ancestors) >= 0)
        counts = np.bincount(ancestors, minlength=size)
        assert set(np.unique(counts[1:-2000:2])) <= {1, 2}
        assert set(np.unique(counts[-1999::2])) <= {5, 6}
        assert abs(drawn - size * share) < 2
    else:
        assert abs(drawn - size * share) < 5 * np.sqrt(size * share * (1 - share))


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("rest_and_first", [(NEVER, NEVER), (0.0, np.nan), (0.0, np.inf)])
def test_without_a_usable_total_every_particle_is_as_likely(name, rest_and_first):
    log_weights = np.full(SIZE, rest_and_first[0], np.float32)
    log_weights[0] = rest_and_first[1]
    counts = np.asarray(COUNTERS[name](2, log_weights))
    assert np.all(counts.sum(axis=1) == DRAWS)
    total, share = REPEATS * DRAWS, 1 / SIZE
    assert np.all(np.abs(counts.sum(axis=0) - total * share) < 5 * np.sqrt(total * share * (1 - share)))  # 3e-6
    if name == "systematic":
        assert set(np.unique(counts)) == {1, 2}


# --- weights, evidence, moments ---------------------------------------------------------------------------------


def test_summaries_agree_with_numpy():
    rng = np.random.default_rng(1)
    x, log_weights = rng.normal(size=(50, 3)).astype(np.float32), rng.normal(size=50).astype(np.float32) * 3
    log_weights[[4, 17]] = NEVER
    population = smc.Population({"x": x}, log_weights, -2.5)
    weights = normalised(log_weights)
    np.testing.assert_allclose(population.weights, weights, rtol=1e-5)
    np.testing.assert_allclose(population.log_evidence, -2.5 + np.log(np.exp(log_weights).sum()), rtol=1e-6)
    np.testing.assert_allclose(population.effective_sample_size, 1 / np.sum(weights**2), rtol=1e-5)
    np.testing.assert_allclose(population.expectation()["x"], weights @ x, atol=1e-6)
    np.testing.assert_allclose(population.expectation(lambda p: p["x"][0] > 0), weights @ (x[:, 0] > 0), atol=1e-6)
    assert population.num_particles == 50


def test_no_mass_is_said_and_not_silently_nan():
    dead = smc.Population(jnp.arange(3.0), jnp.full(3, NEVER), 1.5)
    assert dead.log_evidence == NEVER
    assert dead.effective_sample_size == 0
    np.testing.assert_array_equal(dead.weights, np.zeros(3))
    assert jnp.isnan(dead.expectation())
    after = smc.reweight(smc.resample(jax.random.key(0), dead), lambda x: -x)
    assert after.log_evidence == NEVER
    np.testing.assert_array_equal(after.particles, np.arange(3.0))
    np.testing.assert_allclose(smc.resample(jax.random.key(0), dead).weights, np.full(3, 1 / 3), rtol=1e-6)


def test_a_nan_weight_is_seen_in_the_evidence_ever_after():
    population = smc.reweight(smc.Population(jnp.arange(3.0), jnp.zeros(3)), lambda x: jnp.log(x - 1.0))
    assert jnp.isnan(population.log_evidence)
    population = smc.reweight(smc.resample(jax.random.key(0), population), lambda x: 0.0 * x)
    assert jnp.isnan(population.log_evidence)


def test_dead_particles_stay_dead_and_do_no_harm():
    population = smc.Population(jnp.array([0.0, 1.0, 2.0]), jnp.array([NEVER, 0.0, 0.0]))
    population = smc.reweight(population, lambda x: jnp.where(x == 0, jnp.nan, -x))
    np.testing.assert_allclose(population.log_evidence, np.log(np.exp(-1) + np.exp(-2)), rtol=1e-6)
    mean = population.expectation(lambda x: jnp.where(x == 0, jnp.inf, x))
    np.testing.assert_allclose(mean, (np.exp(-1) + 2 * np.exp(-2)) / (np.exp(-1) + np.exp(-2)), rtol=1e-6)


def test_weights_keep_their_digits_when_the_evidence_is_tiny():
    """exp(-1e5) in float32: numbers near 1e5 have a resolution of 0.008, which must not reach the weights."""
    x = jnp.linspace(-1.0, 1.0, 8)
    population = smc.resample(jax.random.key(0), smc.reweight(smc.Population(x, jnp.zeros(8)), lambda x: -1e5))
    np.testing.assert_allclose(population.log_evidence, -1e5 + np.log(8), rtol=1e-7)
    population = smc.reweight(population, lambda x: 1e-3 * x)
    np.testing.assert_allclose(np.ptp(np.log(population.weights)), 2e-3, rtol=1e-3)


def test_resample_to_another_number_keeps_the_mass():
    population = smc.Population(jnp.arange(4.0), jnp.log(jnp.array([1.0, 0.0, 2.0, 5.0])))
    many = smc.resample(jax.random.key(0), population, num_particles=64)
    assert many.num_particles == 64
    np.testing.assert_allclose(many.log_evidence, np.log(8.0), rtol=1e-6)
    np.testing.assert_array_equal(np.bincount(np.asarray(many.particles, int)), [8, 0, 16, 40])


def test_particles_use_keys_by_their_index():
    """The first particles of a larger population are those of a smaller one, whatever the devices."""
    few, many = (smc.spawn(jax.random.key(4), jax.random.normal, n) for n in (5, 9))
    np.testing.assert_array_equal(few.particles, many.particles[:5])
    assert len(np.unique(many.particles)) == 9


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dtype_in_is_dtype_out(dtype, x64):
    weight_dtype = "float32" if dtype == "bfloat16" else dtype

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 3)
        population = smc.spawn(keys[0], lambda key: jax.random.normal(key, (2,), dtype), 8)
        population = smc.advance(keys[1], population, lambda key, x: x + 1.0)
        population = smc.reweight(population, lambda x: -0.5 * jnp.sum(x * x))
        return smc.resample(keys[2], population)

    population = run(jax.random.key(0))
    assert population.particles.dtype == dtype
    assert population.log_weights.dtype == population.log_scale.dtype == weight_dtype
    assert population.log_evidence.dtype == population.effective_sample_size.dtype == weight_dtype
    assert population.expectation().dtype == weight_dtype


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: smc.Population(jnp.zeros(3), jnp.zeros(4)),
            "leaf 'value', is of shape \\(3,\\); expected a leading axis",
        ),
        (lambda: smc.Population({"a": jnp.zeros(())}, jnp.zeros(4)), "leaf 'a'"),
        (lambda: smc.Population(jnp.zeros((4, 2)), jnp.zeros((4, 2))), "log_weights"),
        (lambda: smc.Population(jnp.zeros(0), jnp.zeros(0)), "one or more particles"),
        (lambda: smc.Population(jnp.zeros(3), jnp.zeros(3), jnp.zeros(3)), "log_scale"),
        (lambda: smc.spawn(jax.random.key(0), jax.random.normal, 0), "spawn: num_particles is 0; expected a positive"),
        (lambda: smc.spawn(jax.random.key(0), jax.random.normal, 2.5), "spawn: num_particles is 2.5"),
        (
            lambda: smc.resample(jax.random.key(0), smc.Population(jnp.zeros(3), jnp.zeros(3)), num_particles=0),
            "resample: num_particles",
        ),
        (
            lambda: smc.reweight(smc.Population(jnp.zeros((3, 2)), jnp.zeros(3)), lambda x: -x),
            "reweight: the value of log_factor is of shape \\(2,\\); expected one number. Sum",
        ),
    ],
)
def test_bad_input_gives_one_line(call, words):
    with pytest.raises(ValueError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_seed_is_not_a_key():
    with pytest.raises(TypeError, match=r"spawn: key is 0; expected one random key"):
        smc.spawn(0, jax.random.normal, 3)


# --- honest pytrees ---------------------------------------------------------------------------------------------


def one_round(key, population):
    k1, k2 = jax.random.split(key)
    population = smc.advance(k1, population, lambda key, x: 0.9 * x + jax.random.normal(key, x.shape))
    population = smc.reweight(population, lambda x: -0.5 * jnp.sum((x - 1.0) ** 2))
    return smc.resample(k2, population)


single_round = jax.jit(one_round)


@pytest.fixture
def population():
    return smc.spawn(jax.random.key(8), lambda key: jax.random.normal(key, (2,)), 16)


def assert_same(a, b, rtol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), a, b)


def test_jit_equals_eager(population):
    compiled, eager = single_round(jax.random.key(11), population), one_round(jax.random.key(11), population)
    assert type(compiled) is smc.Population
    assert_same(compiled, eager)


def test_vmap_equals_a_loop_and_batches_have_summaries(population):
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, leaf - 1]), population)
    ends = jax.jit(jax.vmap(one_round))(jax.random.split(jax.random.key(13), 3), starts)
    singles = [
        single_round(key, jax.tree.map(lambda leaf, i=i: leaf[i], starts))
        for i, key in enumerate(jax.random.split(jax.random.key(13), 3))
    ]
    assert_same(ends, jax.tree.map(lambda *leaves: np.stack(leaves), *singles))
    assert ends.num_particles == 16
    np.testing.assert_allclose(ends.log_evidence, [single.log_evidence for single in singles], rtol=1e-6)
    np.testing.assert_allclose(ends.effective_sample_size, np.full(3, 16.0), rtol=1e-5)


def test_carried_through_a_scan(population):
    key, by_hand = jax.random.key(14), population
    carried = scan.repeat(lambda population, i: one_round(core.fold(key, i), population), population, 3)
    for i in range(3):
        by_hand = single_round(core.fold(key, i), by_hand)
    assert_same(carried, by_hand, rtol=1e-5)


def test_gradients_of_the_summaries():
    """Against closed forms in NumPy, a dead particle included; zero and not NaN when all are dead."""
    x = np.array([-1.0, 0.5, 2.0, 9.0], np.float32)

    def summaries(theta):
        start = smc.Population(x, jnp.array([0.0, 0.0, 0.0, NEVER]))
        alive = smc.reweight(start, lambda x: -0.5 * theta * x**2)
        dead = smc.reweight(smc.Population(x, jnp.full(4, NEVER)), lambda x: theta * x)
        return {
            "evidence": alive.log_evidence,
            "resampled": smc.resample(jax.random.key(0), alive).log_evidence,
            "mean": alive.expectation(),
            "size": alive.effective_sample_size,
            "dead": dead.log_evidence + dead.effective_sample_size + jnp.sum(dead.weights),
        }

    gradient = jax.jit(jax.jacrev(summaries))(0.7)
    weights, score = normalised(np.where(x == 9, NEVER, -0.5 * 0.7 * x**2)), -0.5 * x**2
    np.testing.assert_allclose(gradient["evidence"], weights @ score, rtol=1e-5)
    np.testing.assert_allclose(gradient["resampled"], weights @ score, rtol=1e-5)
    np.testing.assert_allclose(gradient["mean"], weights @ (x * score) - (weights @ x) * (weights @ score), rtol=1e-5)
    squares = weights**2
    np.testing.assert_allclose(
        gradient["size"], -2 * squares @ (score - weights @ score) / squares.sum() ** 2, rtol=1e-4
    )
    assert gradient["dead"] == 0


def test_gradient_with_respect_to_a_population():
    population = smc.Population(jnp.array([1.0, 3.0]), jnp.log(jnp.array([1.0, 3.0])), 0.5)
    gradient = jax.jit(jax.grad(lambda population: population.log_evidence + population.expectation()))(population)
    assert type(gradient) is smc.Population
    np.testing.assert_allclose(gradient.particles, [0.25, 0.75], rtol=1e-6)
    np.testing.assert_allclose(gradient.log_weights, [0.25 + 0.25 * (1 - 2.5), 0.75 + 0.75 * (3 - 2.5)], rtol=1e-6)
    np.testing.assert_allclose(gradient.log_scale, 1.0)


def test_checkpoint_round_trip(population, tmp_path):
    from orbax.checkpoint import v1 as ocp

    ocp.save(tmp_path / "population", population)
    back = ocp.load(tmp_path / "population", jax.tree.map(ocp_abstract, population))
    assert type(back) is smc.Population
    jax.tree.map(np.testing.assert_array_equal, back, population)


def ocp_abstract(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def test_importing_makes_no_array():
    code = (
        "import jax; import jaxprob.inference.smc; from jax._src import xla_bridge; assert not xla_bridge._backends; "
        "import sys; assert 'distrax' not in sys.modules and 'orbax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
