"""NUTS with its warm-up, as `jaxprob.sample` runs it, on the reference posteriors.

Nothing is tuned to a model but for the centred eight schools, a funnel, which asks for small steps and a long run.

Each mean lies within 0.1 reference sd and each sd within 10 %, at an effective sample of 1,000 or more. With that many
effective draws a mean is off by 0.1 sd with probability 0.0016 and an sd of a normal marginal by 10 % with probability
1e-5; the seeds are fixed, and the effective samples are larger.
"""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxprob
from jaxprob import analysis
from jaxprob.inference import mcmc

_PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "targets.py"
_SPEC = importlib.util.spec_from_file_location("benchmark_targets", _PATH)
targets = importlib.util.module_from_spec(_SPEC)
sys.modules["benchmark_targets"] = targets
_SPEC.loader.exec_module(targets)

QUICK = [
    "eight_schools-eight_schools_noncentered",
    "kilpisjarvi_mod-kilpisjarvi",
    "kidiq-kidscore_momhs",
    "gp_pois_regr-gp_regr",
    "sblrc-blr",
]
SLOW = [
    "arK-arK", "arma-arma11", "bball_drive_event_0-hmm_drive_0", "earnings-earn_height", "earnings-logearn_height_male",
    "earnings-logearn_interaction_z", "hmm_example-hmm_example", "kidiq-kidscore_interaction", "kidiq-kidscore_momiq",
    "kidiq_with_mom_work-kidscore_interaction_z", "mesquite-logmesquite", "mesquite-mesquite", "nes1972-nes",
    "nes2000-nes", "eight_schools-eight_schools_centered",
]  # fmt: skip
CAREFUL = {
    "eight_schools-eight_schools_centered": {
        "draws": 20_000,
        "algorithm": partial(mcmc.warmup, mcmc.nuts, target_acceptance=0.99),
    }
}


def compare(folder, name, seed=0):
    """Largest error of a mean in reference sds, of an sd as a ratio, and the smallest effective sample size."""
    target, reference = targets.load(folder, name)
    starts = target.initial(seed, 4)
    chain = iter(range(4))

    def initial(key):
        number = next(chain)
        return {name: value[number] for name, value in starts.items()}

    options = {"draws": 2000} | CAREFUL.get(name, {})
    result = jaxprob.sample(target.log_density, jax.random.key(seed), initial=initial, devices=2, **options)
    constrained = jax.jit(jax.vmap(jax.vmap(target.constrain)))(result.draws)
    found = {name: np.asarray(value, np.float64) for name, value in targets.scalars(constrained).items()}
    assert set(reference) <= set(found)
    means = [abs(found[n].mean() - r["mean"]) / r["sd"] for n, r in reference.items()]
    sds = [abs(found[n].std() / r["sd"] - 1) for n, r in reference.items()]
    ess = [float(analysis.effective_sample_size(found[n].astype(np.float32))) for n in reference]
    return max(means), max(sds), min(ess), int(result.stats["diverging"].sum()), result.stats["num_steps"].mean()


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_means_and_sds_are_those_of_the_reference(posteriordb, name):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        mean, sd, ess, _, _ = compare(posteriordb, name)
    assert ess > 1000
    assert mean < 0.1
    assert sd < 0.1
