"""NUTS and WALNUTS against a plain recursion in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprob.inference import mcmc
from tests.inference._quartic import numpy_density, numpy_gradient, quartic

LEVELS = 6


class Recursion:
    """Hoffman & Gelman's recursion with Betancourt's weights and criterion and Stan's checks, in plain momenta."""

    def __init__(self, step, inverse_mass, leaf_uniforms):
        self.step, self.inverse_mass, self.leaf_uniforms = step, inverse_mass, leaf_uniforms
        self.visited, self.diverged, self.rates, self.turned_inside = 0, False, [], False

    def energy(self, q, p):
        return -numpy_density(q) + 0.5 * p @ self.inverse_mass @ p

    def leapfrog(self, q, p, sign):
        p = p + 0.5 * sign * self.step * numpy_gradient(q)
        q = q + sign * self.step * self.inverse_mass @ p
        return q, p + 0.5 * sign * self.step * numpy_gradient(q)

    def lost(self, q, p):
        with np.errstate(over="ignore", invalid="ignore"):
            lost = self.initial - self.energy(q, p)
        return lost if np.isfinite(lost) else -np.inf

    def leaf(self, q, p, sign):
        """The next leaf: where, the energy it lost, and whether it is one."""
        q, p = self.leapfrog(q, p, sign)
        self.visited += 1
        lost = self.lost(q, p)
        self.rates.append(min(1.0, np.exp(min(lost, 0.0))))
        self.diverged = not lost > -1000
        return q, p, lost, not self.diverged

    def straight(self, rho, *momenta):
        return all(p @ self.inverse_mass @ rho > 0 for p in momenta)

    def goes_on(self, left, right):
        """Whether two neighbouring trees, in order of time, make a tree that has not turned."""
        return (
            self.straight(left["rho"] + right["rho"], left["first"][1], right["last"][1])
            and self.straight(left["rho"] + right["first"][1], left["first"][1], right["first"][1])
            and self.straight(right["rho"] + left["last"][1], left["last"][1], right["last"][1])
        )

    def join(self, left, right, leaves):
        return {
            "first": left["first"],
            "last": right["last"],
            "rho": left["rho"] + right["rho"],
            "leaves": leaves,
        }

    def build(self, q, p, sign, depth):
        """A tree of 2^depth leaves beyond (q, p), or None if it diverged or turned."""
        if depth == 0:
            q, p, lost, sound = self.leaf(q, p, sign)
            if not sound:
                return None
            leaf = (q, p, lost, self.leaf_uniforms[self.visited])
            return {"first": (q, p), "last": (q, p), "rho": p, "leaves": [leaf]}
        near = self.build(q, p, sign, depth - 1)
        if near is None:
            return None
        far = self.build(*(near["last"] if sign > 0 else near["first"]), sign, depth - 1)
        if far is None:
            return None
        left, right = (near, far) if sign > 0 else (far, near)
        if not self.goes_on(left, right):
            self.turned_inside = True
            return None
        return self.join(left, right, near["leaves"] + far["leaves"])

    def transition(self, q, p, directions, acceptances):
        self.initial = self.energy(q, p)
        tree = {"first": (q, p), "last": (q, p), "rho": p, "leaves": []}
        chosen, log_weight, depth = (q, p), 0.0, 0
        while depth < LEVELS:
            sign = 1 if directions[depth] else -1
            new = self.build(*(tree["last"] if sign > 0 else tree["first"]), sign, depth)
            if new is None:
                break
            total, candidate = -np.inf, None
            for q, p, weight, uniform in new["leaves"]:
                total = np.logaddexp(total, weight)
                if uniform < np.exp(weight - total):
                    candidate = (q, p)
            if acceptances[depth] < np.exp(min(0.0, total - log_weight)):
                chosen = candidate
            log_weight = np.logaddexp(log_weight, total)
            left, right = (tree, new) if sign > 0 else (new, tree)
            depth += 1
            if not self.goes_on(left, right):
                break
            tree = self.join(left, right, [])
        return chosen, depth


class AdaptiveRecursion(Recursion):
    """The same on steps that are halved until the energy is kept: WALNUTS with the deterministic rule."""

    def __init__(self, *arguments, tolerance, halvings):
        super().__init__(*arguments)
        self.tolerance, self.halvings = tolerance, halvings
        self.gradients, self.deepest, self.irreversible, self.coarse = 0, 0, False, self.step

    def attempt(self, q, p, sign, level):
        """Where 2^level small steps lead, and whether the energies on the way are all within the tolerance."""
        energies = [self.energy(q, p)]
        self.step = self.coarse / 2**level
        for _ in range(2**level):
            with np.errstate(over="ignore", invalid="ignore"):
                q, p = self.leapfrog(q, p, sign)
                energies.append(self.energy(q, p))
                spread = np.max(energies) - np.min(energies)
            self.gradients += 1
            if not spread <= self.tolerance + 4 * np.finfo(float).eps * abs(self.initial):
                return q, p, False
        return q, p, True

    def leaf(self, q, p, sign):
        self.visited += 1
        for level in range(self.halvings + 1):
            self.deepest = max(self.deepest, level)
            new_q, new_p, kept = self.attempt(q, p, sign, level)
            if level == 0:
                self.rates.append(min(1.0, np.exp(min(self.lost(new_q, new_p), 0.0))))
            if kept:
                break
        else:
            self.diverged = True
            return q, p, -np.inf, False
        for coarser in reversed(range(level)):
            if self.attempt(new_q, new_p, -sign, coarser)[2]:
                self.irreversible = True
                return q, p, -np.inf, False
        return new_q, new_p, self.lost(new_q, new_p), True


def numbers_of(size):
    """The random numbers of one transition in `size` dimensions, from its key."""

    def numbers(key):
        words = jax.random.bits(key, (2 + size + 2 * LEVELS + 32,), jnp.uint64)
        leaf_key = jax.random.wrap_key_data(words[:2].astype(jnp.uint32))
        bits = jax.random.bits(leaf_key, (2**LEVELS,), jnp.uint32)  # the n-th word of the stream is leaf n's
        uniforms = ((words[2:] >> 12).astype(float) + 0.5) * 2.0**-52
        momentum = jnp.sqrt(2.0) * jax.scipy.special.erfinv(2 * uniforms[:size] - 1)
        directions, acceptances, early = jnp.split(uniforms[size:], (LEVELS, 2 * LEVELS))
        late = (bits[32:] >> 8).astype(float) * 2.0**-24
        return momentum, directions > 0.5, acceptances, jnp.concatenate([early, late])

    return jax.jit(jax.vmap(numbers))


@pytest.mark.parametrize("dense", [False, True])
def test_tree_is_that_of_the_recursion(dense, x64, rng):
    cases, size = 300, 3
    positions = rng.normal(size=(cases, size))
    steps = np.exp(rng.uniform(np.log(0.02), np.log(3.0), cases))
    if dense:
        roots = rng.normal(size=(cases, size, size)) * 0.5 + np.eye(size)
        masses = roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(size)
    else:
        masses = rng.uniform(0.2, 2.0, (cases, size))

    def keys():
        return jax.random.split(jax.random.key(7), cases)

    @jax.jit
    @jax.vmap
    def ours(key, position, step, mass):
        kernel = mcmc.nuts(quartic, step, mass, max_tree_depth=LEVELS)
        return kernel.step(key, kernel.init(position, key))

    states, infos = jax.tree.map(np.asarray, ours(keys(), positions, steps, masses))
    momenta, directions, acceptances, uniforms = jax.tree.map(np.asarray, numbers_of(size)(keys()))
    seen = {"turned inside": 0, "diverged": 0, "full": 0, "moved": 0}
    for k in range(cases):
        mass = masses[k] if dense else np.diag(masses[k])
        momentum = np.linalg.solve(np.linalg.cholesky(mass).T, momenta[k])
        tree = Recursion(steps[k], mass, uniforms[k])
        (q, p), depth = tree.transition(positions[k], momentum, directions[k], acceptances[k])
        assert infos.num_steps[k] == tree.visited
        assert infos.tree_depth[k] == depth
        assert infos.diverging[k] == tree.diverged
        np.testing.assert_allclose(infos.acceptance_rate[k], np.mean(tree.rates), rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(states.position[k], q, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(infos.energy[k], tree.energy(q, p), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(states.log_density[k], numpy_density(q), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(states.log_density_gradient[k], numpy_gradient(q), rtol=1e-6, atol=1e-8)
        seen["turned inside"] += tree.turned_inside
        seen["diverged"] += tree.diverged
        seen["full"] += depth == LEVELS
        seen["moved"] += not np.array_equal(q, positions[k])
    assert min(seen.values()) >= 10, seen


def test_tree_of_adaptive_steps_is_that_of_the_recursion(x64, rng):
    cases, size, halvings = 400, 3, 3
    positions = rng.normal(size=(cases, size))
    steps = np.exp(rng.uniform(np.log(0.1), np.log(4.0), cases))
    tolerances = np.exp(rng.uniform(np.log(0.03), np.log(3.0), cases))
    masses = rng.uniform(0.2, 2.0, (cases, size))

    def keys():
        return jax.random.split(jax.random.key(8), cases)

    @jax.jit
    @jax.vmap
    def ours(key, position, step, mass, tolerance):
        options = {"energy_tolerance": tolerance, "max_halvings": halvings, "max_tree_depth": LEVELS}
        kernel = mcmc.walnuts(quartic, step, mass, **options)
        return kernel.step(key, kernel.init(position, key))

    states, infos = jax.tree.map(np.asarray, ours(keys(), positions, steps, masses, tolerances))
    momenta, directions, acceptances, uniforms = jax.tree.map(np.asarray, numbers_of(size)(keys()))
    seen = {"irreversible": 0, "stuck": 0, "halved": 0, "never halved": 0, "moved": 0}
    for k in range(cases):
        momentum = momenta[k] / np.sqrt(masses[k])
        options = {"tolerance": tolerances[k], "halvings": halvings}
        tree = AdaptiveRecursion(steps[k], np.diag(masses[k]), uniforms[k], **options)
        (q, p), depth = tree.transition(positions[k], momentum, directions[k], acceptances[k])
        assert infos.num_steps[k] == tree.gradients
        assert infos.num_leaves[k] == tree.visited
        assert infos.num_halvings[k] == tree.deepest
        assert infos.tree_depth[k] == depth
        assert infos.diverging[k] == tree.diverged
        assert infos.irreversible[k] == tree.irreversible
        np.testing.assert_allclose(infos.acceptance_rate[k], np.mean(tree.rates), rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(states.position[k], q, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(infos.energy[k], tree.energy(q, p), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(states.log_density[k], numpy_density(q), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(states.log_density_gradient[k], numpy_gradient(q), rtol=1e-6, atol=1e-8)
        seen["irreversible"] += tree.irreversible
        seen["stuck"] += tree.diverged
        seen["halved"] += tree.deepest > 0 and depth > 1
        seen["never halved"] += tree.deepest == 0
        seen["moved"] += not np.array_equal(q, positions[k])
    assert min(seen.values()) >= 10, seen


def test_without_a_tolerance_walnuts_is_nuts():
    positions = jnp.asarray(np.random.default_rng(0).normal(size=(50, 3)), jnp.float32)

    def draws(kernel):
        state = jax.vmap(kernel.init, (0, None))(positions, jax.random.key(0))
        state, info = jax.jit(jax.vmap(kernel.step))(jax.random.split(jax.random.key(1), 50), state)
        return state.position, info.num_steps, info.acceptance_rate

    ours, theirs = draws(mcmc.walnuts(quartic, 0.4, energy_tolerance=np.inf)), draws(mcmc.nuts(quartic, 0.4))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), ours, theirs)
    assert len(np.unique(ours[1])) > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"energy_tolerance": 0.0}, "energy_tolerance"),
        ({"energy_tolerance": np.nan}, "energy_tolerance"),
        ({"max_halvings": -1}, "max_halvings"),
        ({"max_halvings": 1.5}, "max_halvings"),
        ({"max_halvings": 31}, "max_halvings"),
        ({"max_tree_depth": 0}, "max_tree_depth"),
        ({"step_size": -1.0}, "step_size"),
    ],
)
def test_arguments_of_walnuts(options, message):
    with pytest.raises(ValueError, match=f"walnuts: {message}"):
        mcmc.walnuts(quartic, **options)
