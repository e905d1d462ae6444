"""Conditional particle filters leave the smoothing law of a finite chain as it is, whatever the number of particles.

Trajectories are drawn from the law by enumeration, moved by one step each, and counted: a chi-squared test on the eight
(or four) trajectories with a false-alarm rate of 1e-4 a case. With 2^18 of them a shift of 1 % of a probability shows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxprob.inference import particle, smc
from tests.inference.particle import _finite as finite

COUNT = 2**18
CASES = {
    "ancestors, N=2": (dict(method="ancestor_sampling", particles=2), 3, False),
    "ancestors, N=3": (dict(method="ancestor_sampling", particles=3), 3, False),
    "ancestors, auxiliary": (dict(method="ancestor_sampling", particles=2), 3, True),
    "backward, systematic": (dict(method="backward", particles=3), 3, False),
    "backward, killing": (dict(method="backward", particles=3, scheme=smc.killing), 3, False),
    "backward, adaptive": (dict(method="backward", particles=3, threshold=0.75), 3, False),
    "genealogy, multinomial": (dict(method="genealogy", particles=2, scheme=smc.multinomial), 2, False),
    "genealogy, systematic": (dict(method="genealogy", particles=3), 3, False),
    "genealogy, stratified": (dict(method="genealogy", particles=3, scheme=smc.stratified), 3, False),
    "backward, stratified": (dict(method="backward", particles=3, scheme=smc.stratified), 3, False),
    "genealogy, residual": (dict(method="genealogy", particles=3, scheme=smc.residual), 3, False),
    "genealogy, killing": (dict(method="genealogy", particles=3, scheme=smc.killing), 3, False),
    "genealogy, adaptive": (dict(method="genealogy", particles=3, threshold=0.75), 3, False),
    "genealogy, adaptive, auxiliary": (dict(method="genealogy", particles=3, threshold=0.75), 3, True),
}


def moved(options, steps, look_ahead, seed=0):
    every, law, _ = finite.paths(steps)
    rng = np.random.default_rng(seed)
    before = rng.choice(len(law), COUNT, p=law)
    kernel = particle.gibbs(finite.model(look_ahead), jnp.arange(steps), **options)

    @jax.jit
    @jax.vmap
    def step(key, position):
        state, info = kernel.step(key, particle.GibbsState(position))
        return state.position, info.renewed

    keys = jax.random.split(jax.random.key(seed), COUNT)
    after, renewed = step(keys, jnp.asarray(every[before], jnp.int32))
    codes = np.asarray(after) @ (2 ** np.arange(steps)[::-1])
    return law, np.bincount(codes, minlength=len(law)), np.asarray(renewed), before, codes


DEFAULT = (
    "ancestors, N=3",
    "backward, killing",
    "genealogy, stratified",
    "genealogy, adaptive",
)


@pytest.mark.parametrize(
    "case", [case if case in DEFAULT else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_leaves_the_smoothing_law_invariant(case):
    options, steps, look_ahead = CASES[case]
    law, counts, renewed, before, codes = moved(options, steps, look_ahead)
    statistic, p = scipy.stats.chisquare(counts, law * COUNT)
    print(f"{case}: chi2 {statistic:.1f} p {p:.3g} renewed {renewed.mean():.3f}")
    assert p > 1e-4, (case, statistic, p)
    assert (before != codes).mean() > 0.1
