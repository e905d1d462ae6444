"""Variational inference on reference posteriors, beside NumPyro's autoguides: accuracy, Pareto k, seconds, steps.

Ours is `vi.fit(log_density, key, guide, initial=...)` with its defaults, from the Laplace approximation, or from
Pathfinder's where that does not converge; it stops by itself. NumPyro's is `SVI` with the autoguide of the same kind,
Adam of rate 0.01 and 20,000 steps of one draw, from its own start, on the same log density. The error is the largest
|mean - reference| in reference standard deviations of 4,000 draws of the guide, as they are and with their smoothed
importance weights, which k judges: where it is below 0.7 weighted means can be trusted. Those of draws as they are keep
the bias of the family: mean field puts tau of the eight schools (not centred) 0.21 off, with 8 or 64 draws a step,
and 0.04 by weights, at k = 0.52 of 100,000 draws. Pathfinder's own draws, resampled from all paths, are judged beside
its guide, the Gaussian of the best path. The time of a step is measured apart, with the same number of draws for both.
Everything runs twice: the second time is the run, the difference to the first is compiling.

    python benchmarks/vi.py [--models a,b] [--guides laplace,mean_field,...] [--peers] [--table]
"""

import argparse
import json
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
POSTERIORS = HERE.parents[1] / "shared" / "posteriordb"
RESULTS = HERE / "results" / "vi-cpu.json"
FAMILIES = ("mean_field", "full_rank", "flow")
GUIDES = ("laplace", "pathfinder", *FAMILIES)
BESIDE_PEERS = (
    "eight_schools-eight_schools_noncentered",
    "sblrc-blr",
    "arK-arK",
    "gp_pois_regr-gp_regr",
    "hmm_example-hmm_example",
    "kidiq-kidscore_interaction",
)
DRAWS, PEER_STEPS, TIMED = 4000, 20_000, 2000


def families():
    from jaxprob.distributions import flows
    from jaxprob.inference import vi

    flow = vi.flow(flows.inverse_autoregressive(layers=4, hidden=(32, 32)))
    return {"mean_field": vi.mean_field(), "full_rank": vi.full_rank(), "flow": flow}


def timed(call):
    """The result, the seconds of the second call, and what the first took longer."""
    import jax

    from benchmarks._in_turn import nothing_compiled

    began = time.perf_counter()
    jax.block_until_ready(call())
    halfway = time.perf_counter()
    with nothing_compiled():
        result = jax.block_until_ready(call())
        run = time.perf_counter() - halfway
    return result, run, max(halfway - began - run, 0.0)


def error_of(target, reference, draws, weights=None):
    """The largest error of a (weighted) mean, in reference standard deviations, and the name of that number."""
    import jax
    import numpy as np

    from benchmarks import targets

    found = targets.scalars(jax.tree.map(lambda x: x[None], jax.vmap(target.constrain)(draws)))
    errors = {
        name: abs(np.average(found[name][0].astype(np.float64), weights=weights) - row["mean"]) / row["sd"]
        for name, row in reference.items()
        if name in found
    }
    worst = max(errors, key=errors.get)
    return float(errors[worst]), worst


def ours(target, reference, guide, start, key):
    import jax
    import numpy as np

    from jaxprob import analysis
    from jaxprob.inference import vi

    log_density = target.log_density
    if guide == "laplace":
        find = jax.jit(lambda: vi.laplace(log_density, start))
        found, seconds, compiling = timed(find)
        row = {"converged": bool(found.converged)}
    elif guide == "pathfinder":
        find = jax.jit(lambda: vi.pathfinder(log_density, start, key))
        found, seconds, compiling = timed(find)
        # What its guide, the Gaussian of the best path, is corrected by: draws from all paths, resampled by weights.
        draws = vi.pathfinder(log_density, start, key, num_draws=DRAWS).draws
        row = {"converged": bool(found.converged), "resampled_error": error_of(target, reference, draws)[0]}
    else:
        initial = vi.laplace(log_density, start)
        if not bool(initial.converged):
            initial = vi.pathfinder(log_density, start, key)
        family, gradient = families()[guide], "path" if guide == "flow" else "stick_the_landing"
        fit, seconds, compiling = timed(lambda: vi.fit(log_density, key, family, initial=initial, gradient=gradient))
        found = fit.guide
        row = {"converged": bool(fit.converged), "steps": int(fit.num_steps), "elbo_error": float(fit.elbo_error)}
    quality = analysis.guide_quality(log_density, found, jax.random.fold_in(key, 1), draws=DRAWS)
    error, worst = error_of(target, reference, quality.draws)
    weighted, _ = error_of(target, reference, quality.draws, np.exp(np.asarray(quality.log_weights, np.float64)))
    return row | {
        "seconds": seconds,
        "compile": compiling,
        "pareto_k": float(quality.pareto_k),
        "elbo": float(quality.elbo),
        "error": error,
        "weighted_error": weighted,
        "worst": worst,
    }


def numpyro_guide(kind, model):
    from numpyro.infer import autoguide

    if kind == "mean_field":
        return autoguide.AutoNormal(model)
    if kind == "full_rank":
        return autoguide.AutoMultivariateNormal(model)
    return autoguide.AutoIAFNormal(model, num_flows=4, hidden_dims=[32, 32])


def numpyros(target, reference, kind, key):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    from numpyro import distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    from jaxprob import analysis

    def model():
        position = {
            name: numpyro.sample(name, dist.ImproperUniform(dist.constraints.real, (), event_shape=shape))
            for name, shape in target.shapes.items()
        }
        numpyro.factor("log_density", target.log_density(position))

    guide = numpyro_guide(kind, model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    # Jitted: `SVI.run` by itself may compile its loop again in every call.
    run = jax.jit(lambda key: svi.run(key, PEER_STEPS, progress_bar=False).params)
    result, seconds, compiling = timed(lambda: run(key))
    if kind == "mean_field":  # AutoNormal has a law for each site

        def draw(key):
            return guide.sample_posterior(key, result)

        def log_prob(position):
            laws = {name: dist.Normal(result[f"{name}_auto_loc"], result[f"{name}_auto_scale"]) for name in position}
            return sum(laws[name].log_prob(x).sum() for name, x in position.items())

        def unpack(position):
            return position

    else:
        posterior = guide.get_posterior(result)
        draw, log_prob, unpack = posterior.sample, posterior.log_prob, guide._unpack_latent

    keys = jax.random.split(jax.random.fold_in(key, 1), DRAWS)
    drawn = jax.vmap(draw)(keys)
    ratios = jax.vmap(lambda x: target.log_density(unpack(x)) - log_prob(x))(drawn)
    draws = jax.vmap(unpack)(drawn)
    smoothed = analysis.psis(ratios)
    error, worst = error_of(target, reference, draws)
    weighted, _ = error_of(target, reference, draws, np.exp(np.asarray(smoothed.log_weights, np.float64)))
    return {
        "steps": PEER_STEPS,
        "seconds": seconds,
        "compile": compiling,
        "pareto_k": float(smoothed.pareto_k),
        "elbo": float(jnp.mean(ratios)),
        "error": error,
        "weighted_error": weighted,
        "worst": worst,
    }


def step_times(target, kind, start, key, rounds=5):
    """Seconds of a step with eight draws: ours and NumPyro's, in turn; medians."""
    import jax
    import numpyro
    import optax
    from numpyro import distributions as dist
    from numpyro.infer import SVI, Trace_ELBO

    from jaxprob.inference import vi

    objective = vi.elbo(target.log_density, families()[kind], draws=8, gradient="path", initial=start)
    algorithm = vi.ascent(objective, optax.adam(0.01))

    def model():
        position = {
            name: numpyro.sample(name, dist.ImproperUniform(dist.constraints.real, (), event_shape=shape))
            for name, shape in target.shapes.items()
        }
        numpyro.factor("log_density", target.log_density(position))

    svi = SVI(model, numpyro_guide(kind, model), numpyro.optim.Adam(0.01), Trace_ELBO(num_particles=8))

    @jax.jit
    def run_ours(state, key):
        return jax.lax.scan(lambda s, k: algorithm.step(k, s), state, jax.random.split(key, TIMED))[1].elbo

    @jax.jit
    def run_theirs(state):
        return jax.lax.scan(lambda s, _: svi.update(s), state, None, length=TIMED)[1]

    state = algorithm.init(objective.init(key), key)
    peer_state = svi.init(key)
    pairs = []
    jax.block_until_ready((run_ours(state, key), run_theirs(peer_state)))
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(run_ours(state, key))
        halfway = time.perf_counter()
        jax.block_until_ready(run_theirs(peer_state))
        pairs.append((halfway - began, time.perf_counter() - halfway))
    mine, theirs = (statistics.median(pair[i] for pair in pairs) / TIMED for i in (0, 1))
    return {"ours": mine, "numpyro": theirs, "ratio": statistics.median(b / a for a, b in pairs)}


def measure(models, guides, peers):
    import jax

    from benchmarks import targets

    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}}
    versions = {name: version(name) for name in ("jax", "numpyro")}
    results |= {"versions": versions, "device": jax.devices()[0].device_kind, "machine": platform.machine()}
    for model in models:
        target, reference = targets.load(POSTERIORS, model)
        start = jax.tree.map(lambda x: x[0], target.initial(0, 1))
        key = jax.random.key(0)
        rows = results["models"].setdefault(model, {})
        for guide in guides:
            rows[guide] = ours(target, reference, guide, start, key)
        if peers and model in BESIDE_PEERS:
            for guide in (guide for guide in guides if guide in FAMILIES):
                rows[f"numpyro {guide}"] = numpyros(target, reference, guide, key)
                rows[f"step {guide}"] = step_times(target, guide, start, key)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(
            model, {name: (round(r["pareto_k"], 2), round(r["error"], 3)) for name, r in rows.items() if "error" in r}
        )
    return results


def table(results):
    from rich.console import Console
    from rich.table import Table

    console = Console(width=140)
    grid = Table("model", "guide", "k", "error (sd)", "of", "weighted", "ELBO", "steps", "seconds", "compile")
    for model, rows in results["models"].items():
        for name, row in rows.items():
            if "error" not in row:
                continue
            cells = (
                f"{row['pareto_k']:.2f}",
                f"{row['error']:.3f}",
                row["worst"],
                f"{row['weighted_error']:.3f}",
                f"{row['elbo']:.2f}",
            )
            grid.add_row(
                model, name, *cells, str(row.get("steps", "")), f"{row['seconds']:.3f}", f"{row['compile']:.1f}"
            )
    console.print(grid)
    steps = Table("model", "guide", "ours, us a step", "NumPyro, us", "times faster", title="a step of eight draws")
    for model, rows in results["models"].items():
        for name, row in rows.items():
            if name.startswith("step "):
                cells = f"{1e6 * row['ours']:.0f}", f"{1e6 * row['numpyro']:.0f}", f"{row['ratio']:.2f}"
                steps.add_row(model, name[5:], *cells)
    console.print(steps)
    mine = [
        (model, name, row)
        for model, rows in results["models"].items()
        for name, row in rows.items()
        if "error" in row and not name.startswith("numpyro")
    ]
    good = [row for row in mine if row[2]["pareto_k"] < 0.7]
    for kind in ("weighted_error", "error", "resampled_error"):
        asked = [(m, n, round(r[kind], 2)) for m, n, r in good if kind in r]
        bad = [row for row in asked if row[2] > 0.2]
        console.print(f"k < 0.7 in {len(asked)} of {len(mine)}; {kind} above 0.2 sd in {len(bad)} of these: {bad}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(sorted(path.stem for path in POSTERIORS.glob("*.json"))))
    parser.add_argument("--guides", default=",".join(GUIDES))
    parser.add_argument("--peers", action="store_true", help="NumPyro too, on six of the models")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    options = parser.parse_args()
    if options.table:
        table(json.loads(RESULTS.read_text()))
        return
    table(measure(options.models.split(","), options.guides.split(","), options.peers))


if __name__ == "__main__":
    main()
