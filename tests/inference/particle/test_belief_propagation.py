"""Belief propagation by particles against dense normal laws, quadrature, and enumeration of what particles stand for.

Repeats are mapped. Estimates are ratios, with a bias of the order of one over the effective number of particles: the
mean of repeats may be off by 4.5 standard errors (below 1e-3 false alarms in a run of this file) and an allowance that
is stated.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxprob import core
from jaxprob.inference import particle, smc


def fresh(seed=0):
    return jax.random.key(seed)


# A chain of five, its edges written in either direction, no two alike.
CHAIN = ((0, 1), (2, 1), (2, 3), (4, 3))
YS = np.array([1.0, -0.5, 2.0, 0.3, -1.2])
SPREAD, SLOPES, NOISES, ERRORS = 1.5, [0.9, 0.7, 1.1, 0.8], [0.5, 0.6, 0.5, 0.7], [0.7, 0.8, 0.6, 1.0, 0.7]


def log_normal(x, mean, deviation):
    return -0.5 * ((x - mean) / deviation) ** 2 - jnp.log(deviation) - 0.5 * np.log(2 * np.pi)


def normal_field(sampled, edges=CHAIN, spread=SPREAD, slopes=SLOPES, noises=NOISES, errors=ERRORS, moving=None):
    slopes, noises, errors, spread = (jnp.asarray(x, jnp.result_type(float)) for x in (slopes, noises, errors, spread))
    keep, jitter = (None, None) if moving is None else moving

    def other_end(given, edge, forward):
        slope, noise = slopes[edge], noises[edge]
        return jnp.where(forward, slope * given, given / slope), jnp.where(forward, noise, noise / jnp.abs(slope))

    def sample_conditional(key, given, edge, forward):
        mean, deviation = other_end(given, edge, forward)
        return mean + deviation * jax.random.normal(key)

    densities = {
        "sample_conditional": sample_conditional,
        "log_conditional": lambda given, drawn, edge, forward: log_normal(drawn, *other_end(given, edge, forward)),
        "log_initial": lambda x, node: log_normal(x, 0.0, spread),
        "log_transition": lambda old, new, node: log_normal(new, keep * old, jitter),
    }
    return particle.MarkovField(
        nodes=len(errors),
        edges=edges,
        initial=lambda key, node: spread * jax.random.normal(key),
        log_unary=lambda x, node, y: -0.5 * ((y[node] - x) / errors[node]) ** 2,
        log_pairwise=lambda a, b, edge: -0.5 * ((b - slopes[edge] * a) / noises[edge]) ** 2,
        transition=None if moving is None else lambda key, x, node: keep * x + jitter * jax.random.normal(key),
        **(densities if sampled else {}),
    )


def normal_marginals(mean, variance, ys, edges, slopes, noises, errors):
    """Of independent normal laws of nodes times the potentials."""
    precision = np.diag(1 / np.asarray(variance) + 1 / np.asarray(errors) ** 2)
    shift = np.asarray(mean) / np.asarray(variance) + np.asarray(ys) / np.asarray(errors) ** 2
    for (a, b), slope, noise in zip(edges, slopes, noises, strict=True):
        row = np.zeros(len(errors))
        row[b], row[a] = 1, -slope
        precision += np.outer(row, row) / noise**2
    covariance = np.linalg.inv(precision)
    return covariance @ shift, np.diag(covariance)


def check(name, samples, exact, allowance):
    samples = np.asarray(samples, np.float64)
    error = samples.std(0, ddof=1) / np.sqrt(len(samples))
    gap = np.abs(samples.mean(0) - exact)
    print(f"{name}: largest gap {gap.max():.4f}, standard error {error.max():.4f}, spread {samples.std(0).max():.3f}")
    assert (gap < 4.5 * error + allowance).all()


@pytest.mark.parametrize("redraws", [0, 2])
def test_a_chain_of_five_normal_nodes(redraws):
    """Means within 0.1 standard deviations and variances within 15 %, typically in a single run of 300 particles."""
    mean, variance = normal_marginals(np.zeros(5), np.full(5, SPREAD**2), YS, CHAIN, SLOPES, NOISES, ERRORS)
    field, ys = normal_field(redraws > 0), jnp.asarray(YS, jnp.float32)
    run = jax.vmap(lambda key: particle.belief_propagation(key, field, ys))
    found = run(jax.random.split(fresh(), 20))
    assert found.log_weights.shape == (20, 5, 300)
    means, variances = jax.vmap(lambda beliefs: (beliefs.mean, beliefs.variance))(found)
    off = (np.asarray(means) - mean) / np.sqrt(variance)
    relative = np.asarray(variances) / variance - 1
    check("means", off, 0, 0.01)
    check("variances", relative, 0, 0.015)
    assert np.sqrt((off**2).mean()) < 0.1
    assert np.sqrt((relative**2).mean()) < 0.15
    if redraws:  # by what neighbours believe, not by the places of their particles alone: 114 of 300
        assert np.asarray(jax.vmap(lambda beliefs: beliefs.effective_sample_size)(found)).mean() > 140
    assert np.asarray(found.residual).max() < 1e-5
    assert not np.asarray(found.failed).any()


STAR = ((0, 1), (2, 0), (0, 3))  # about a hub, and a node on its own
GRID = np.linspace(-5.0, 5.0, 51)


def star_field(xp):
    """Two places for every node; neighbours a distance apart, to either side, or anywhere."""
    places, shifts = np.array([-0.5, 1.0, -1.5, 0.0, 2.0], np.float32), np.array([0.0, 0.2, 0.4], np.float32)

    def log_unary(x, node, y):
        place = xp.asarray(places)[node]
        return xp.logaddexp(-0.5 * ((x - place) / 0.7) ** 2, -1 - 0.5 * ((x + place + y) / 0.6) ** 2)

    def log_pairwise(a, b, edge):
        gap = b - a + xp.asarray(shifts)[edge]
        near = xp.logaddexp(-0.5 * ((gap - 1.5) / 0.5) ** 2, -0.3 - 0.5 * ((gap + 1) / 0.6) ** 2)
        return xp.logaddexp(near, xp.asarray(-4.0, dtype=gap.dtype))

    return log_unary, log_pairwise


def star_marginals(y):
    """By quadrature over all four nodes that hang together, and over the last."""
    log_unary, log_pairwise = star_field(np)
    unary = [np.exp(log_unary(GRID, node, y) - GRID**2 / 8) for node in range(5)]
    pairs = [np.exp(log_pairwise(GRID[:, None], GRID[None], edge)) for edge in range(3)]
    joint = np.einsum("a,b,c,d,ab,ca,ad->abcd", *unary[:4], *pairs, optimize=True)
    laws = [joint.sum(tuple(set(range(4)) - {node})) for node in range(4)]
    return np.array([law / law.sum() for law in [*laws, unary[4]]])


@pytest.mark.slow
@pytest.mark.parametrize("redraws", [0, 2])
def test_a_tree_of_mixtures_by_quadrature(redraws):
    """The sampler is not that of the potential: it knows the place of one of two, and is too wide."""
    log_unary, log_pairwise = star_field(jnp)
    laws = star_marginals(0.4)

    def centre(given, edge, forward):
        return given + jnp.where(forward, 1.0, -1.0)

    field = particle.MarkovField(
        nodes=5,
        edges=STAR,
        initial=lambda key, node: 2 * jax.random.normal(key),
        log_unary=log_unary,
        log_pairwise=log_pairwise,
        sample_conditional=lambda key, given, edge, forward: centre(given, edge, forward) + jax.random.normal(key),
        log_conditional=lambda given, drawn, edge, forward: log_normal(drawn, centre(given, edge, forward), 1.0),
        log_initial=lambda x, node: log_normal(x, 0.0, 2.0),
    )
    run = jax.vmap(lambda key: particle.belief_propagation(key, field, jnp.float32(0.4), redraws=redraws))
    found = run(jax.random.split(fresh(), 64))
    xs, weights = (np.asarray(x, np.float64) for x in (found.particles, jnp.exp(found.log_weights)))
    for name, of in {"x": lambda x: x, "x^2": lambda x: x**2, "cos": np.cos, "sin 2x": lambda x: np.sin(2 * x)}.items():
        check(name, (weights * of(xs)).sum(2), laws @ of(GRID), 0.01)


def test_on_a_cycle_beliefs_are_those_of_belief_propagation():
    edges, y = ((0, 1), (1, 2), (2, 0)), 0.4
    log_unary, log_pairwise = star_field(np)
    unary = np.array([np.exp(log_unary(GRID, node, y) - GRID**2 / 8) for node in range(3)])
    messages = {(a, b): np.ones_like(GRID) for pair in edges for a, b in (pair, pair[::-1])}
    for _ in range(100):
        new = {}
        for e, pair in enumerate(edges):
            potential = np.exp(log_pairwise(GRID[:, None], GRID[None], e))
            for (a, b), matrix in ((pair, potential), (pair[::-1], potential.T)):
                third = messages[3 - a - b, a]
                new[a, b] = (unary[a] * third) @ matrix
                new[a, b] /= new[a, b].sum()
        messages = new
    laws = np.array([unary[a] * np.prod([m for (_, b), m in messages.items() if b == a], axis=0) for a in range(3)])
    laws /= laws.sum(1, keepdims=True)

    log_unary, log_pairwise = star_field(jnp)
    initial = lambda key, node: 2 * jax.random.normal(key)  # noqa: E731
    field = particle.MarkovField(3, edges, initial, log_unary, log_pairwise)
    run = lambda key, n: particle.belief_propagation(key, field, jnp.float32(y), particles=200, iterations=n)  # noqa: E731
    found = jax.vmap(lambda key: run(key, 20))(jax.random.split(fresh(), 32))
    xs, weights = (np.asarray(x, np.float64) for x in (found.particles, jnp.exp(found.log_weights)))
    for name, of in {"x": lambda x: x, "x^2": lambda x: x**2, "sin 2x": lambda x: np.sin(2 * x)}.items():
        check(name, (weights * of(xs)).sum(2), laws @ of(GRID), 0.01)
    assert np.asarray(found.residual).max() < 1e-4
    assert np.asarray(run(fresh(), 2).residual).min() > 1e-3


def enumerated(particles, unary, pairwise, edges):
    """Marginal weights (node, particle) of the joint law on all combinations of particles."""
    nodes, number = particles.shape
    total = np.zeros((nodes, number))
    for index in itertools.product(range(number), repeat=nodes):
        log_p = sum(unary(particles[node, i], node) for node, i in enumerate(index))
        log_p += sum(pairwise(particles[a, index[a]], particles[b, index[b]], e) for e, (a, b) in enumerate(edges))
        for node, i in enumerate(index):
            total[node, i] += np.exp(log_p)
    return total / total.sum(1, keepdims=True)


def test_a_few_particles_are_weighted_as_enumeration_says():
    """Without redraws there is nothing random about weights: rounding alone."""
    log_unary, log_pairwise = star_field(jnp)
    field = particle.MarkovField(5, STAR, lambda key, node: jax.random.normal(key), log_unary, log_pairwise)
    found = particle.belief_propagation(fresh(), field, jnp.float32(0.4), particles=4)
    unary, pairwise = star_field(np)
    exact = enumerated(np.asarray(found.particles), lambda x, node: unary(x, node, 0.4), pairwise, STAR)
    np.testing.assert_allclose(found.weights, exact, atol=2e-6)
    # Messages go one edge an iteration; one iteration more shows that the last changed nothing.
    assert np.asarray(found.residual).max() < 1e-6
    few = particle.belief_propagation(fresh(), field, jnp.float32(0.4), particles=4, iterations=1)
    assert np.abs(np.asarray(few.weights) - exact)[:4].max() > 1e-3
    assert np.asarray(few.residual)[:4].min() > 1e-3
    np.testing.assert_allclose(few.weights[4], exact[4], atol=2e-6)
    xs, w = np.asarray(found.particles), exact
    np.testing.assert_allclose(found.mean, (w * xs).sum(1), atol=2e-6)
    np.testing.assert_allclose(found.variance, (w * xs**2).sum(1) - (w * xs).sum(1) ** 2, atol=1e-5)
    np.testing.assert_allclose(found.effective_sample_size, 1 / (w**2).sum(1), rtol=1e-4)


PAIR = {"edges": ((1, 0),), "slopes": [0.9], "noises": [0.6], "errors": [0.7, 1.0]}
SERIES = np.array([[1.0, -0.5], [0.2, 1.5], [1.3, 0.4], [-0.6, 0.8]])
MOVING = (0.8, 0.7)


def track(key, field, ys, **options):
    """Means and variances of all times (time, node)."""
    beliefs = particle.belief_propagation(core.fold(key, 0), field, ys[0], **options)
    options.pop("particles", None)
    rows = [(beliefs.mean, beliefs.variance)]
    for time in range(1, len(ys)):
        beliefs = particle.belief_step(core.fold(key, time), field, beliefs, ys[time], **options)
        rows.append((beliefs.mean, beliefs.variance))
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


@pytest.mark.parametrize("case", ["alone", "pair", "redrawn"])
def test_normal_nodes_are_tracked(case):
    """Nodes alone as Kalman's filter does; a pair as normal laws that are moved node by node."""
    pair = PAIR if case != "alone" else PAIR | {"edges": (), "slopes": [], "noises": []}
    mean, variance, exact = np.zeros(2), np.full(2, SPREAD**2), []
    for time, y in enumerate(SERIES):
        if time:
            mean, variance = MOVING[0] * mean, MOVING[0] ** 2 * variance + MOVING[1] ** 2
        mean, variance = normal_marginals(mean, variance, y, **pair)
        exact.append((mean, variance))
    field = normal_field(case == "redrawn", moving=MOVING, **pair)
    run = jax.jit(jax.vmap(lambda key: track(key, field, jnp.asarray(SERIES, jnp.float32), particles=200)))
    means, variances = run(jax.random.split(fresh(), 50))
    check("means", means, np.array([m for m, _ in exact]), 0.01)
    check("variances", variances, np.array([v for _, v in exact]), 0.01)


def test_gradients_are_finite_differences(x64):
    """With keys that stay the same, of potentials, of what is observed and of the diffusion in time."""
    truth = jnp.array([0.3, 0.6])

    def loss(theta):
        options = PAIR | {"slopes": theta[:1], "noises": jnp.exp(theta[1:2]), "errors": jnp.exp(theta[2:4])}
        field = normal_field(False, moving=(0.8, jnp.exp(theta[4])), **options)
        first = particle.belief_propagation(fresh(), field, theta[5:7], particles=30)
        second = particle.belief_step(fresh(1), field, first, theta[7:])
        scores = [particle.belief_log_density(beliefs, truth, 0.4) for beliefs in (first, second)]
        return -jnp.sum(jnp.stack(scores))

    theta = jnp.array([0.9, -0.5, -0.3, 0.1, -0.4, 1.0, -0.5, 0.2, 1.5])
    found = np.asarray(jax.grad(loss)(theta))
    values = jax.jit(jax.vmap(loss))
    step = 1e-5 * np.eye(len(theta))
    differences = (np.asarray(values(theta[None] + step)) - np.asarray(values(theta[None] - step))) / 2e-5
    np.testing.assert_allclose(found, differences, rtol=1e-5, atol=1e-7)
    assert (np.abs(found) > 1e-3).all()


def test_gradients_through_redraws_are_those_of_the_belief():
    """Of the log density of a normal belief by slope, noise and error, from a proposal that depends on them too."""
    theta, ys, truth, width = np.array([0.9, 0.6, 0.7]), np.array([1.0, -0.5]), np.array([0.6, 0.9]), 0.3

    def options(theta):
        return PAIR | {"slopes": theta[:1], "noises": theta[1:2], "errors": [theta[2], 1.0]}

    def exact(theta):
        mean, variance = normal_marginals(np.zeros(2), np.full(2, SPREAD**2), ys, **options(theta))
        return stats.norm.logpdf(truth, mean, np.sqrt(variance + width**2)).sum()

    gradient = [(exact(theta + step) - exact(theta - step)) / 2e-5 for step in 1e-5 * np.eye(3)]

    def score(theta, key):
        field = normal_field(True, **options(theta))
        beliefs = particle.belief_propagation(key, field, jnp.asarray(ys, jnp.float32), particles=150, redraws=1)
        return jnp.sum(particle.belief_log_density(beliefs, jnp.asarray(truth, jnp.float32), width))

    run = jax.jit(jax.vmap(jax.grad(score), (None, 0)))
    found = run(jnp.asarray(theta, jnp.float32), jax.random.split(fresh(), 200))
    print(gradient)
    check("gradients", found, gradient, 0.02)


def test_kernel_densities_are_those_of_scipy():
    rng = np.random.default_rng(0)
    xs = {"place": rng.normal(size=(3, 7, 2)), "angle": rng.normal(size=(3, 7))}
    log_weights = np.log(rng.dirichlet(np.ones(7), size=3))
    log_weights[1, 2] = -np.inf
    xs["angle"][1, 2] = np.inf
    at = {"place": rng.normal(size=(3, 2)), "angle": rng.normal(size=3)}
    terms = stats.norm.logpdf(at["place"][:, None], xs["place"], 0.5).sum(2)
    terms += stats.norm.logpdf(at["angle"][:, None], np.where(np.isinf(xs["angle"]), 0, xs["angle"]), 0.5)
    exact = special.logsumexp(terms + log_weights, axis=1)
    xs, at, log_weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (xs, at, log_weights))
    beliefs = particle.Beliefs(xs, log_weights, jnp.zeros(3), jnp.zeros(3, bool))
    found = particle.belief_log_density(beliefs, at, 0.5)
    np.testing.assert_allclose(found, exact, rtol=1e-5)

    def total(weights, at, width):
        return jnp.sum(particle.belief_log_density(beliefs._replace(log_weights=weights), at, width))

    gradients = jax.grad(total, (0, 1, 2))(log_weights, at, 0.5)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))


def awkward(unary, pairwise=lambda a, b, edge: -0.5 * (a - b) ** 2, **options):
    field = particle.MarkovField(3, ((0, 1), (1, 2)), lambda key, node: jax.random.normal(key), unary, pairwise)
    return particle.belief_propagation(fresh(), field, particles=20, **options)


def test_a_node_without_a_possible_particle_is_flagged_and_tells_nothing():
    silent = awkward(lambda x, node, y: jnp.where(node == 0, 0.0, -0.5 * (x - 1) ** 2))
    for value in (-jnp.inf, jnp.nan, jnp.inf):
        found = awkward(lambda x, node, y: jnp.where(node == 0, value, -0.5 * (x - 1) ** 2))  # noqa: B023
        assert found.failed.tolist() == [True, False, False]
        np.testing.assert_allclose(found.weights[0], 1 / 20, rtol=1e-6)
        np.testing.assert_allclose(found.weights[1:], silent.weights[1:], rtol=1e-6)
    # One weight that is NaN is enough, and says nothing of the neighbours.
    found = awkward(lambda x, node, y: jnp.where((node == 0) & (x == jnp.min(silent.particles[0])), jnp.nan, 0.0))
    assert found.failed.tolist() == [True, False, False]
    # A pair that excludes each other: neither end knows where to be.
    found = awkward(lambda x, node, y: 0.0 * x, lambda a, b, edge: jnp.where(edge == 0, -jnp.inf, -0.5 * (a - b) ** 2))
    assert found.failed.tolist() == [True, True, False]
    assert bool(jnp.isfinite(found.log_weights).all())


def test_particles_that_are_impossible_count_for_nothing_and_spoil_no_gradient():
    def unary(x, node, y):
        return jnp.where(x > 0, -0.5 * (x - 1) ** 2, -jnp.inf)

    def score(width):
        # Beyond a distance nothing is possible, and somewhere neither message nor unary leaves anything.
        found = awkward(
            unary, lambda a, b, edge: jnp.where(jnp.abs(a - b) < 1, -0.5 * ((a - b) / width) ** 2, -jnp.inf)
        )
        return jnp.sum(particle.belief_log_density(found, jnp.ones(3), 0.3)), found

    (value, found), gradient = jax.value_and_grad(score, has_aux=True)(0.5)
    assert bool(jnp.isfinite(value))
    assert 0 < abs(float(gradient)) < 100
    assert not found.failed.any()
    assert bool((found.weights[found.particles < 0] == 0).all())


def test_what_is_drawn_outside_of_the_initial_law_counts_for_nothing():
    inside = lambda x: (x > 0) & (x < 1)  # noqa: E731
    field = particle.MarkovField(
        2,
        ((0, 1),),
        initial=lambda key, node: jax.random.uniform(key),
        log_unary=lambda x, node, y: jnp.where(inside(x), 0.0, jnp.nan),
        log_pairwise=lambda a, b, edge: log_normal(b, a, 0.5),
        sample_conditional=lambda key, x, edge, forward: x + 0.5 * jax.random.normal(key),
        log_initial=lambda x, node: jnp.where(inside(x), 0.0, -jnp.inf),
    )
    found = particle.belief_propagation(fresh(), field, particles=50)
    assert not found.failed.any()
    outside = ~np.asarray(inside(found.particles))
    assert outside.any()
    assert (np.asarray(found.weights)[outside] == 0).all()


def test_one_node_is_weighted_by_its_unary_and_one_particle_has_all_the_weight():
    def never(*args):
        raise AssertionError("there is no edge")

    field = particle.MarkovField(
        1, (), lambda key, node: jax.random.normal(key, (2,)), lambda x, node, y: jnp.sum(x * y), never
    )
    found = particle.belief_propagation(fresh(), field, jnp.array([1.0, -2.0]), particles=6)
    np.testing.assert_allclose(found.weights, special.softmax(np.asarray(found.particles) @ [1, -2], axis=1), rtol=1e-5)
    assert found.residual.tolist() == [0.0]
    one = particle.belief_propagation(fresh(), normal_field(True), jnp.asarray(YS, jnp.float32), particles=1)
    assert one.weights.tolist() == [[1.0]] * 5


def test_draws_of_nodes_particles_redraws_and_times_are_their_own():
    field, ys = normal_field(True, moving=MOVING, **PAIR), jnp.zeros(2)
    drawn = [particle.belief_propagation(fresh(), field, ys, particles=50, redraws=n) for n in range(3)]
    drawn.append(particle.belief_step(fresh(1), field, drawn[-1], ys))
    assert all(beliefs.particles.shape == (2, 50) for beliefs in drawn)
    assert len(np.unique(np.concatenate([np.asarray(beliefs.particles) for beliefs in drawn]))) == 400


def test_jit_vmap_and_precision(x64):
    field, ys = normal_field(False, moving=MOVING, **PAIR), jnp.asarray(SERIES[:2])
    one = lambda key, ys: track(key, field, ys, particles=20)  # noqa: E731
    keys = jax.random.split(fresh(), 2)
    eager = [one(key, ys) for key in keys]
    mapped = jax.jit(jax.vmap(one, (0, None)))(keys, ys)
    for index, row in enumerate(eager):
        for a, b in zip(row, mapped, strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b[index], rtol=1e-9)
    field = normal_field(True, **PAIR)
    found = particle.belief_propagation(fresh(), field, ys[0], particles=20, scheme=smc.multinomial)
    assert {leaf.dtype for leaf in (found.particles, found.log_weights, found.residual)} == {jnp.dtype("float64")}


def test_the_program_does_not_grow_with_the_graph():
    counts = []
    for nodes in (3, 30):
        calls = []

        def pairwise(a, b, edge, calls=calls):
            calls.append(edge)
            return -0.5 * jnp.sum((a["x"] - b["x"]) ** 2)

        field = particle.MarkovField(
            nodes,
            tuple((i, i + 1) for i in range(nodes - 1)),
            lambda key, node: {"x": jax.random.normal(key, (2,))},
            lambda x, node, y: -jnp.sum(x["x"] ** 2),
            pairwise,
            sample_conditional=lambda key, x, edge, forward: {"x": x["x"] + jax.random.normal(key, (2,))},
            log_initial=lambda x, node: -0.5 * jnp.sum(x["x"] ** 2),
        )
        run = functools.partial(particle.belief_propagation, field=field, particles=3)
        found = jax.eval_shape(lambda key: run(key), fresh())  # noqa: B023
        assert found.particles["x"].shape == (nodes, 3, 2)
        counts.append(len(calls))
    assert counts[0] == counts[1] <= 4


def test_bad_arguments_are_one_line():
    good, ys = normal_field(False, **PAIR), jnp.zeros(2)
    functions = {name: getattr(good, name) for name in ("initial", "log_unary", "log_pairwise")}
    for edges in (((0, 0),), ((0, 2),), ((0, 1), (1, 0)), ((0,),), 3, ((-1, 0),), ((0.5, 1),)):
        with pytest.raises(ValueError, match=r"^particle.MarkovField: [^\n]*expected[^\n]*$"):
            particle.MarkovField(2, edges, **functions)
    with pytest.raises(ValueError, match="nodes"):
        particle.MarkovField(0, (), **functions)
    with pytest.raises(TypeError, match="log_unary"):
        particle.MarkovField(2, (), **(functions | {"log_unary": 3}))
    with pytest.raises(ValueError, match="log_initial"):
        particle.MarkovField(2, ((0, 1),), **functions, sample_conditional=lambda *args: 0.0)
    for options in ({"particles": 0}, {"iterations": 0}, {"redraws": -1}, {"redraws": 1}):
        with pytest.raises(ValueError, match=r"^particle.belief_propagation: [^\n]*$"):
            particle.belief_propagation(fresh(), good, ys, **options)
    with pytest.raises(TypeError, match="field"):
        particle.belief_propagation(fresh(), functions, ys)
    with pytest.raises(TypeError, match="key"):
        particle.belief_propagation(0, good, ys)
    two = particle.MarkovField(2, ((0, 1),), **(functions | {"log_pairwise": lambda a, b, edge: jnp.stack([a, b])}))
    with pytest.raises(ValueError, match=r"^particle[^\n]*log_pairwise is of shape \(2,\); expected one number"):
        particle.belief_propagation(fresh(), two, ys)
    beliefs = particle.belief_propagation(fresh(), good, ys, particles=3)
    with pytest.raises(ValueError, match="transition"):
        particle.belief_step(fresh(), good, beliefs, ys)
    with pytest.raises(TypeError, match="beliefs"):
        particle.belief_step(fresh(), good, beliefs.particles, ys)
    with pytest.raises(ValueError, match="beliefs is of 2 nodes; expected 5"):
        particle.belief_step(fresh(), normal_field(False, moving=MOVING), beliefs, ys)
    for x, width in ((jnp.zeros(3), 1.0), (jnp.zeros(2), 0.0), (jnp.zeros((2, 1)), 1.0)):
        with pytest.raises(ValueError, match=r"^particle.belief_log_density: [^\n]*$"):
            particle.belief_log_density(beliefs, x, width)
