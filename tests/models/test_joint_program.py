"""Programs without data: simulation, scoring, interventions, nesting, and their life as pytrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from jaxprob import core, models
from jaxprob.distributions import Bernoulli, Exponential, HalfNormal, Normal

KEY = jax.random.key(0)


@models.joint
def chain(scale, length=3):
    a = yield "a", Normal(0.0, scale)
    b = yield "b", Normal(jnp.full(length, a), 1.0)
    total = yield "total", models.deterministic(jnp.sum(b))
    yield "c", Normal(total, 0.5)
    return {"twice": 2 * total}


def test_sample_has_every_name_in_order():
    draw = chain(2.0).sample(KEY)
    assert list(draw) == ["a", "b", "total", "c"] == list(chain(2.0).names)
    assert draw["b"].shape == (3,)
    np.testing.assert_allclose(draw["total"], np.sum(draw["b"]), rtol=1e-6)


def test_sample_of_a_shape_is_a_loop_with_folded_keys():
    program = chain(2.0)
    draws = program.sample(KEY, (2, 3))
    assert draws["b"].shape == (2, 3, 3)
    loop = [program.sample(jax.random.fold_in(KEY, i)) for i in range(6)]
    for name, value in draws.items():
        np.testing.assert_allclose(value.reshape(6, *value.shape[2:]), np.stack([d[name] for d in loop]), rtol=1e-6)


def test_another_site_changes_no_other_draw():
    @models.joint
    def longer(scale):
        yield "before", Exponential(1.0)
        draw = yield from chain(scale)
        return draw

    short, long = chain(2.0).sample(KEY), longer(2.0).sample(KEY)
    for name, value in short.items():
        np.testing.assert_array_equal(value, long[name])


def test_draws_do_not_depend_on_the_process_hash_seed():
    # The key of a site comes from SHA-256 of its name: computed here by hand.
    import hashlib

    key = jax.random.fold_in(KEY, int(hashlib.sha256(b"a").hexdigest()[:8], 16))
    expected = Normal(0.0, 2.0).sample(key)
    np.testing.assert_allclose(chain(2.0).sample(KEY)["a"], expected, rtol=1e-6)


def test_sites_are_independent_and_have_the_right_law():
    # 4000 draws; a z-score beyond 4.5 has probability 7e-6 for each of six comparisons.
    draws = {name: np.asarray(value, np.float64) for name, value in chain(2.0).sample(KEY, 4000).items()}
    residual = (draws["b"] - draws["a"][:, None]).ravel()
    for sample, sd in ((draws["a"], 2.0), (residual, 1.0), (draws["c"] - draws["total"], 0.5)):
        assert abs(sample.mean() / (sd / np.sqrt(len(sample)))) < 4.5
        assert abs((sample.var() / sd**2 - 1) / np.sqrt(2 / len(sample))) < 4.5


def test_log_probs_by_hand():
    values = {"a": 0.3, "b": jnp.array([1.0, -1.0, 0.5]), "c": 0.2}
    expected = {
        "a": st.norm.logpdf(0.3, 0, 2),
        "b": st.norm.logpdf([1.0, -1.0, 0.5], 0.3, 1).sum(),
        "c": st.norm.logpdf(0.2, 0.5, 0.5),
    }
    found = chain(2.0).log_probs(values)
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(chain(2.0).log_prob(values), sum(expected.values()), rtol=1e-5)
    np.testing.assert_allclose(chain(2.0).returned(values)["twice"], 1.0, rtol=1e-6)


def test_log_prob_takes_what_sample_gives():
    program = chain(2.0).substitute(b=jnp.ones(3))
    assert np.isfinite(program.log_prob(program.sample(KEY)))


def test_substitute_fixes_and_scores():
    values = {"a": 0.3, "c": 0.2}
    b = jnp.array([1.0, -1.0, 0.5])
    program = chain(2.0).substitute(b=b)
    np.testing.assert_allclose(program.log_prob(values), chain(2.0).log_prob({**values, "b": b}), rtol=1e-6)
    np.testing.assert_array_equal(program.sample(KEY)["b"], b)


def test_do_fixes_and_does_not_score():
    program = chain(2.0).do(b=[1.0, -1.0, 0.5])
    expected = st.norm.logpdf(0.3, 0, 2) + st.norm.logpdf(0.2, 0.5, 0.5)
    np.testing.assert_allclose(program.log_prob({"a": 0.3, "c": 0.2}), expected, rtol=1e-5)
    np.testing.assert_allclose(
        chain(2.0).do(total=9.0).log_probs({"a": 0.0, "b": jnp.zeros(3), "c": 9.0})["c"], -0.2258, atol=1e-4
    )


def test_conditioning_in_steps():
    b, c = jnp.array([1.0, -1.0, 0.5]), jnp.asarray(0.2)
    once = chain(2.0).condition(b=b, c=c)
    twice = chain(2.0).condition(b=b).condition(c=c)
    mixed = chain(2.0).substitute(b=b).condition(c=c)
    values = [posterior.log_density({"a": jnp.asarray(0.3)}) for posterior in (once, twice, mixed)]
    np.testing.assert_allclose(values, chain(2.0).log_prob({"a": 0.3, "b": b, "c": c}), rtol=1e-6)
    assert once.names == ("a",)
    assert set(twice.observed) == {"b", "c"}


def test_nested_models_return_values_and_take_prefixes():
    @models.joint
    def scale(size):
        value = yield "value", HalfNormal(size)
        return value

    @models.joint
    def outer():
        plain = yield from scale(1.0)
        named = yield from models.prefix("named", scale(2.0))
        fixed = yield from models.prefix("fixed", scale(3.0).substitute(value=0.5))
        yield "y", Normal(plain, named + fixed)

    values = {"value": 0.4, "named.value": 1.2, "y": 0.1}
    expected = st.halfnorm.logpdf(0.4) + st.halfnorm.logpdf(1.2, scale=2) + st.halfnorm.logpdf(0.5, scale=3)
    expected += st.norm.logpdf(0.1, 0.4, 1.7)
    np.testing.assert_allclose(outer().log_prob(values), expected, rtol=1e-5)
    posterior = outer().condition(y=0.1, **{"named.value": 1.2})
    assert posterior.names == ("value",)
    np.testing.assert_allclose(posterior.log_density({"value": jnp.log(0.4)}), expected + np.log(0.4), rtol=1e-5)


def test_arguments_that_are_not_data_belong_to_the_structure():
    @models.joint
    def model(x, size, link, flag=True, options=None, **more):
        assert isinstance(size, int)
        assert options is None
        loc = yield "loc", Normal(jnp.zeros(size), more["scale"])
        yield "y", Normal(link(loc) * (x["slope"] if flag else 1.0), 1.0)

    program = model({"slope": np.arange(2.0)}, 2, jnp.exp, scale=3.0)
    names = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(program)
    ]
    assert names == ["arguments.more.scale", "arguments.x.slope"]
    assert jax.tree.structure(program) == jax.tree.structure(model({"slope": np.ones(2)}, 2, jnp.exp, scale=1.0))
    assert jax.tree.structure(program) != jax.tree.structure(model({"slope": np.ones(2)}, 3, jnp.exp, scale=1.0))
    assert jax.jit(lambda program: program.sample(KEY))(program)["y"].shape == (2,)


def test_life_as_a_pytree():
    # Returned from jit, built under vmap, differentiated with respect to its arguments, carried through a scan.
    values = {"a": 0.3, "b": jnp.ones(3), "c": 0.2}
    program = jax.jit(lambda scale: chain(scale))(2.0)
    np.testing.assert_allclose(program.log_prob(values), chain(2.0).log_prob(values), rtol=1e-6)
    scales = jnp.array([0.5, 1.0, 2.0])
    programs = jax.vmap(chain)(scales)
    batched = jax.vmap(lambda program: program.log_prob(values))(programs)
    np.testing.assert_allclose(batched, [chain(scale).log_prob(values) for scale in scales], rtol=1e-5)
    posterior = chain(2.0).condition(c=0.2)

    def step(carry, _):
        return carry, carry.log_density({"a": 0.3, "b": jnp.ones(3)})

    carried, densities = jax.lax.scan(step, posterior, None, length=2)
    assert jax.tree.structure(carried) == jax.tree.structure(posterior)
    np.testing.assert_allclose(densities, posterior.log_density({"a": 0.3, "b": jnp.ones(3)}), rtol=1e-6)
    gradient = jax.grad(lambda posterior: posterior.log_density({"a": 0.3, "b": jnp.ones(3)}))(posterior)
    np.testing.assert_allclose(gradient.data["c"], (3.0 - 0.2) / 0.25, rtol=1e-5)
    np.testing.assert_allclose(gradient.program.arguments["scale"], -1 / 2 + 0.3**2 / 8, rtol=1e-5)


def test_posterior_under_transformations():
    def build(c):
        return chain(2.0).condition(c=c)

    position = build(0.0).initial(KEY)
    cs = jnp.array([0.0, 1.0, 5.0])
    loop = [build(c).log_density(position) for c in cs]
    np.testing.assert_allclose(jax.vmap(lambda c: build(c).log_density(position))(cs), loop, rtol=1e-5)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[build(c) for c in cs])
    np.testing.assert_allclose(jax.vmap(lambda posterior: posterior.log_density(position))(stacked), loop, rtol=1e-5)
    keys = jax.random.split(jax.random.key(3), 4)
    positions = jax.vmap(build(0.0).initial)(keys)
    densities = jax.jit(jax.vmap(jax.value_and_grad(build(0.0).log_density)))(positions)[0]
    np.testing.assert_allclose(densities, [build(0.0).log_density(build(0.0).initial(key)) for key in keys], rtol=1e-5)
    assert jax.tree.structure(jax.jit(build)(0.0)) == jax.tree.structure(build(1.0))


def test_data_are_not_compiled_in():
    posterior = chain(2.0).condition(c=0.2)
    closed = jax.make_jaxpr(lambda posterior, position: posterior.log_density(position))(
        posterior, posterior.initial(KEY)
    )
    assert closed.consts == []
    assert len(closed.jaxpr.invars) == 2 + 2


def test_generator_runs_once_for_a_trace_of_the_log_density():
    runs = []

    @models.joint
    def counted(x):
        runs.append(0)
        loc = yield "loc", Normal(0.0, 1.0)
        yield "x", Normal(jnp.full_like(x, loc), 1.0)

    posterior = counted(jnp.ones(3)).condition(x=np.ones(3))
    position = posterior.initial(KEY)
    density = jax.jit(jax.value_and_grad(lambda position, posterior: posterior.log_density(position)))
    runs.clear()
    for _ in range(3):
        density(position, posterior)
    density(position, counted(jnp.zeros(3)).condition(x=np.zeros(3)))
    assert runs.count(0) == 1 + 1  # the second is the check of the new data


def test_float32_data_keep_a_float32_model_under_x64(x64):
    sigma = np.ones(3, np.float32)

    @models.joint
    def model(sigma):
        mu = yield "mu", Normal(0.0, 5.0)
        yield "y", Normal(jnp.full_like(sigma, mu), sigma)

    posterior = model(sigma).condition(y=np.zeros(3, np.float32))
    position = posterior.initial(KEY)
    assert position["mu"].dtype == jnp.float32
    assert posterior.log_density(position).dtype == jnp.float32
    assert {value.dtype for value in model(sigma).sample(KEY).values()} == {jnp.dtype(jnp.float32)}
    assert model(np.ones(3)).condition(y=np.zeros(3)).initial(KEY)["mu"].dtype == jnp.float64


def test_integers_and_lists_are_fine_as_data():
    @models.joint
    def model():
        rate = yield "rate", Normal(jnp.zeros(3), 1.0)
        yield "y", Normal(rate, 1.0)
        yield "flag", Bernoulli(logits=rate)

    posterior = model().condition(y=[1, 2, 3], flag=[True, False, True])
    same = model().condition(y=np.array([1.0, 2.0, 3.0]), flag=np.array([1.0, 0.0, 1.0]))
    position = posterior.initial(KEY)
    assert posterior.observed["y"].dtype == jnp.float32
    np.testing.assert_allclose(posterior.log_density(position), same.log_density(position), rtol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_initial_is_uniform_and_a_function_of_the_key(seed):
    posterior = chain(2.0, length=2000).condition(c=0.2)
    first, again = (posterior.initial(jax.random.key(seed)) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    # Kolmogorov's distance exceeds this for one sample in 10^6.
    assert st.kstest(np.asarray(first["b"]), st.uniform(-2, 4).cdf).pvalue > 1e-6


def test_copy_is_the_same_model():
    import copy

    program = chain(2.0)
    assert jax.tree.structure(copy.deepcopy(program)) == jax.tree.structure(program)
    assert repr(program) == "Program(chain, arguments=['length', 'scale'])"
    assert repr(program.condition(c=1.0)) == "Posterior(chain, observed=['c'])"


def test_leaves_have_stable_names():
    names = [name for name, _ in core.named_leaves(chain(2.0).do(a=0.0).condition(c=1.0))]
    assert names == ["program.arguments.scale", "program.done.a", "data.c"]


def test_sharded_data_give_the_same_density():
    @models.joint
    def line(x):
        slope = yield "slope", Normal(0.0, 1.0)
        yield "y", Normal(slope * x, 1.0)

    x = np.linspace(-1, 1, 16).astype(np.float32)
    posterior = line(x).condition(y=2 * x)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    cut = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    density = jax.jit(lambda posterior, position: posterior.log_density(position))
    position = {"slope": jnp.asarray(0.7)}
    placed = jax.device_put(posterior, cut)
    assert len(placed.data["y"].sharding.device_set) == 4
    np.testing.assert_allclose(density(placed, position), density(posterior, position), rtol=1e-6)
    compiled = density.lower(placed, position).compile().as_text()
    assert "all-reduce" in compiled
    assert "all-gather" not in compiled


def test_no_data_and_no_draws():
    posterior = chain(2.0).condition()
    assert posterior.names == ("a", "b", "c")
    assert chain(2.0).sample(KEY, 0)["b"].shape == (0, 3)
    inside = jax.jit(lambda key, a: chain(2.0).condition(b=jnp.ones(3), c=0.0).predict(key, {"a": a}))(KEY, jnp.ones(2))
    assert inside["b"].shape == (2, 3)
