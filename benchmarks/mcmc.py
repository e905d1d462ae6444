"""MCMC beside BlackJAX and NumPyro on twenty-two models: effective samples per second and per gradient, bias, memory.

Each sampler runs each model in a process of its own, in turn, `--repeats` times: 1,000 draws of each chain after the
warm-up, in float32, from the same starts (uniform from -2 to 2), with the documented defaults of each: ours is
`jaxprob.sample(log_density, key)`; BlackJAX is its window adaptation and NUTS, mapped over chains; NumPyro is its NUTS
with `chain_method="vectorized"` ("sequential" is a sampler of its own here, and was slower). Everything runs twice in a
process: the second time is the run, the difference to the first is compiling. Effective samples are the smallest bulk
and tail ESS over all parameters by one function for all; z is the largest |mean - reference| in Monte Carlo standard
errors (those of the reference included) for means and mean squares; peak memory is the process's, less what it held
before the first run.

`--samplers` takes more: `jaxprob-diagonal`, `jaxprob-walnuts`, `jaxprob-chees`, `jaxprob-mclmc`, `numpyro-sequential`,
and `nutpie`, which no dependency group has (`pip install --target DIR nutpie "arviz<1" ...` and PYTHONPATH=DIR). nutpie
takes the jitted density and gradient in float64 as a Python function, one chain after another: each gradient pays for a
call from Rust into Python and from there into XLA, so that its effective samples per gradient are fair and those per
second are not.

References are those of posteriordb, closed forms, or runs of NumPyro in float64, 8 chains of 20,000 draws or more in
coordinates in which they mix; how well they did is in the file. Of these the error of a mean square is measured, since
NUTS is antithetic for means and not for squares; for posteriordb's, whose draws are thinned to near independence, it is
taken from the error of the mean.

    python benchmarks/mcmc.py [--chains 4] [--models a,b] [--samplers jaxprob,blackjax,numpyro] [--repeats 1]
    python benchmarks/mcmc.py --table          # writes the table of the README from the results
    python benchmarks/mcmc.py --reference [20000] --models a,b
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
POSTERIORS = HERE.parents[1] / "shared" / "posteriordb"
REFERENCE = HERE / "results" / "mcmc_reference.json"
SAMPLERS = ("jaxprob", "blackjax", "numpyro")
PEER_WARMUP, DRAWS = 1000, 1000
REFERENCE_CHAINS = 8
REFERENCE_POSTERIORS = (
    "arK-arK",
    "arma-arma11",
    "sblrc-blr",
    "eight_schools-eight_schools_centered",
    "eight_schools-eight_schools_noncentered",
    "gp_pois_regr-gp_regr",
    "hmm_example-hmm_example",
    "kidiq-kidscore_interaction",
    "kidiq-kidscore_momiq",
    "earnings-logearn_interaction_z",
    "kilpisjarvi_mod-kilpisjarvi",
    "mesquite-logmesquite",
    "mesquite-mesquite",
    "nes1972-nes",
)
OWN = (
    "gaussian_100",
    "funnel",
    "logistic_31",
    "cancer_noncentred",
    "cancer_centred",
    "stochastic_volatility",
    "item_response",
    "gaussian_process",
)


def load(model):
    """The target, and {scalar: {mean, sd, error}} of its reference, or None."""
    from benchmarks import models, targets

    if model in models.MODELS:
        reference = models.closed_form(model)
        if reference is None and REFERENCE.exists():
            reference = json.loads(REFERENCE.read_text())["models"].get(model)
        return models.MODELS[model](), reference
    target, reference = targets.load(POSTERIORS, model)
    # 10,000 nearly independent draws.
    return target, {name: {"error": row["sd"] / 100, **row} for name, row in reference.items()}


class Run:
    """One run: draws {name: (chain, draw, ...)} of positions and what it cost."""

    def __init__(self, draws, warmup_s, sampling_s, gradients, divergences, said=""):
        self.draws, self.warmup_s, self.sampling_s = draws, warmup_s, sampling_s
        self.gradients, self.divergences, self.said = gradients, divergences, said


def with_jaxprob(target, starts, key, chains, **options):
    import jax

    import jaxprob

    each = iter(range(chains))

    def initial(key):
        index = next(each)
        return jax.tree.map(lambda x: x[index], starts)

    result = jaxprob.sample(target.log_density, key, initial=initial, chains=chains, draws=DRAWS, devices=1, **options)
    times = result.meta["times"]
    return Run(
        result.draws,
        times["warm-up"],
        times["sampling"],
        int(result.stats["num_steps"].sum()),
        int(result.stats["diverging"].sum()),
        f"{result.algorithm}, {result.meta['warmup']} steps",
    )


def with_diagonal_nuts(target, starts, key, chains):
    from functools import partial

    from jaxprob.inference import mcmc

    algorithm = partial(mcmc.warmup, mcmc.nuts, metric="diagonal")
    return with_jaxprob(target, starts, key, chains, algorithm=algorithm, warmup=1000)


def with_walnuts(target, starts, key, chains):
    from functools import partial

    from jaxprob.inference import mcmc

    algorithm = partial(mcmc.warmup, partial(mcmc.walnuts, max_halvings=6), target_acceptance=0.7)
    return with_jaxprob(target, starts, key, chains, algorithm=algorithm, interleave=chains >= 32)


def with_chees(target, starts, key, chains):
    from jaxprob.inference import mcmc

    return with_jaxprob(target, starts, key, chains, algorithm=mcmc.chees)


def with_adjusted_mclmc(target, starts, key, chains):
    from functools import partial

    from jaxprob.inference import mcmc

    algorithm = partial(mcmc.adjusted_mclmc, num_integration_steps=(2, 8))
    return with_jaxprob(target, starts, key, chains, algorithm=algorithm)


_PROGRAMS = {}


def with_blackjax(target, starts, key, chains):
    import blackjax
    import jax

    log_density = target.log_density

    def warm(key, position):
        adaptation = blackjax.window_adaptation(blackjax.nuts, log_density)
        (state, parameters), _ = adaptation.run(key, position, num_steps=PEER_WARMUP)
        return state, parameters

    def sampling(key, state, parameters):
        kernel = blackjax.nuts(log_density, **parameters)

        def step(state, key):
            state, info = kernel.step(key, state)
            return state, (state.position, info.num_integration_steps, info.is_divergent)

        return jax.lax.scan(step, state, jax.random.split(key, DRAWS))[1]

    # One function object a density: a second call finds the compiled program of the first.
    programs = _PROGRAMS.setdefault(log_density, (jax.jit(jax.vmap(warm)), jax.jit(jax.vmap(sampling))))
    warm_key, key = jax.random.split(key)
    began = time.perf_counter()
    state, parameters = jax.block_until_ready(programs[0](jax.random.split(warm_key, chains), starts))
    halfway = time.perf_counter()
    draws, steps, diverging = jax.block_until_ready(programs[1](jax.random.split(key, chains), state, parameters))
    return Run(draws, halfway - began, time.perf_counter() - halfway, int(steps.sum()), int(diverging.sum()))


def numpyro_by(method):
    def run(target, starts, key, chains):
        import jax
        from numpyro.infer import MCMC, NUTS

        log_density = target.log_density
        fields = ("num_steps", "diverging")

        # The kernel is set up by the warm-up, for both.
        kernel = NUTS(potential_fn=lambda x: -log_density(x))

        def warm(key, starts):
            mcmc = fresh()
            mcmc.warmup(key, init_params=starts, extra_fields=fields)
            return mcmc.post_warmup_state

        def sampling(state):
            mcmc = fresh()
            mcmc.post_warmup_state = state
            mcmc.run(state.rng_key, extra_fields=fields)
            return mcmc.get_samples(group_by_chain=True), mcmc.get_extra_fields(group_by_chain=True)

        def fresh():
            options = {"num_chains": chains, "chain_method": method, "progress_bar": False}
            return MCMC(kernel, num_warmup=PEER_WARMUP, num_samples=DRAWS, **options)

        # Jitted, as those of BlackJAX are: `MCMC.run` by itself compiles its loop again in every call.
        programs = _PROGRAMS.setdefault(log_density, (jax.jit(warm), jax.jit(sampling)))
        began = time.perf_counter()
        state = jax.block_until_ready(programs[0](key, starts))
        halfway = time.perf_counter()
        draws, extra = jax.block_until_ready(programs[1](state))
        ended = time.perf_counter()
        gradients, divergences = int(extra["num_steps"].sum()), int(extra["diverging"].sum())
        return Run(draws, halfway - began, ended - halfway, gradients, divergences)

    return run


def with_nutpie(target, starts, key, chains):
    import jax
    import numpy as np
    import nutpie
    from jax.flatten_util import ravel_pytree
    from nutpie.compiled_pyfunc import from_pyfunc

    starts = jax.tree.map(lambda x: np.asarray(x, "float64"), starts)
    unravel = ravel_pytree(jax.tree.map(lambda x: x[0], starts))[1]
    flat = np.asarray(jax.vmap(lambda x: ravel_pytree(x)[0])(starts))
    log_density = target.log_density
    gradient = _PROGRAMS.setdefault(log_density, jax.jit(jax.value_and_grad(lambda x: log_density(unravel(x)))))

    def evaluate(x):
        value, slope = gradient(x)
        return float(value), np.asarray(slope)

    each, size = iter(flat), flat.shape[1]
    model = from_pyfunc(
        size,
        lambda: evaluate,
        lambda *_: lambda x: {"x": np.asarray(x)},
        [np.dtype("float64")],
        [(size,)],
        ["x"],
        make_initial_point_fn=lambda seed: next(each),
    )
    seed = int(jax.random.bits(key, dtype="uint32"))
    began = time.perf_counter()
    found = nutpie.sample(model, draws=DRAWS, chains=chains, cores=1, seed=seed, progress_bar=False)
    seconds = time.perf_counter() - began
    steps, warm = (int(stats.n_steps.sum()) for stats in (found.sample_stats, found.warmup_sample_stats))
    draws = jax.jit(jax.vmap(jax.vmap(unravel)))(found.posterior["x"].transpose("chain", "draw", ...).to_numpy())
    # Chains come one after the other, each with its warm-up: the seconds are shared out by gradients.
    warmup_s = seconds * warm / (warm + steps)
    divergences = int(found.sample_stats.diverging.sum())
    said = f"nutpie {nutpie.__version__}, {found.warmup_sample_stats.sizes['draw']} steps"
    return Run(draws, warmup_s, seconds - warmup_s, steps, divergences, said)


RUNNERS = {
    "jaxprob": (with_jaxprob, ("jaxprob.runtime", "jaxprob.inference.mcmc")),
    "jaxprob-diagonal": (with_diagonal_nuts, ("jaxprob.runtime", "jaxprob.inference.mcmc")),
    "jaxprob-walnuts": (with_walnuts, ("jaxprob.runtime", "jaxprob.inference.mcmc")),
    "jaxprob-chees": (with_chees, ("jaxprob.runtime", "jaxprob.inference.mcmc")),
    "jaxprob-mclmc": (with_adjusted_mclmc, ("jaxprob.runtime", "jaxprob.inference.mcmc")),
    "blackjax": (with_blackjax, ("blackjax",)),
    "numpyro": (numpyro_by("vectorized"), ("numpyro.infer",)),
    "numpyro-sequential": (numpyro_by("sequential"), ("numpyro.infer",)),
    "nutpie": (with_nutpie, ("nutpie",)),
}


def child(sampler, model, chains, seed):
    """One sampler on one model in this process; prints a JSON line."""
    import jax
    import numpy as np

    from benchmarks import targets
    from benchmarks._in_turn import nothing_compiled
    from jaxprob import analysis

    target, reference = load(model)
    run, modules = RUNNERS[sampler]
    for module in modules:  # what takes long to import is not part of compiling
        importlib.import_module(module)
    starts = target.initial(seed, chains)
    # Its positions are in float64, where a start may be finite that is not in float32: it has those of the others.
    jax.config.update("jax_enable_x64", sampler == "nutpie")
    key = jax.block_until_ready(jax.random.key(seed + 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for once in (contextlib.nullcontext, nothing_compiled):  # the same draws twice: the second time without compiling
        found = None  # what the first run returned is no memory of the second
        with once():
            began = time.perf_counter()
            found = run(target, starts, key, chains)
            seconds.append(time.perf_counter() - began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    draws = {name: np.asarray(x) for name, x in found.draws.items()}
    constrained = targets.scalars(jax.jit(jax.vmap(jax.vmap(target.constrain)))(draws))
    constrained = {name: x.astype(np.float64) for name, x in constrained.items()}
    bulk = {name: float(analysis.effective_sample_size(x)) for name, x in constrained.items()}
    tail = {name: float(analysis.tail_effective_sample_size(x)) for name, x in constrained.items()}
    z_mean, z_square = errors(constrained, reference)
    row = {
        "compile_s": seconds[0] - seconds[1],
        "run_s": seconds[1],
        "warmup_s": found.warmup_s,
        "sampling_s": found.sampling_s,
        "gradients": found.gradients,
        "divergences": found.divergences,
        "ess_bulk": min(bulk.values()),
        "ess_tail": min(tail.values()),
        "z_mean": z_mean,
        "z_square": z_square,
        "peak_mib": memory,
        "before_mib": before,
        "said": found.said,
        "device": jax.devices()[0].device_kind,
    }
    print(json.dumps(row))


def errors(constrained, reference):
    """The largest |error| of a mean and of a mean square, in Monte Carlo standard errors of both sides."""
    import numpy as np

    from jaxprob import analysis

    if not reference:
        return None, None
    worst = [0.0, 0.0]
    for name, row in reference.items():
        x, error = constrained[name], row.get("error", 0.0)
        # Of independent draws of a Gaussian the variance has the error sqrt(2) sd error.
        square_error = row.get("square_error", 1.5 * row["sd"] * error)
        pairs = (x, row["mean"], error), ((x - row["mean"]) ** 2, row["sd"] ** 2, square_error)
        for which, (values, truth, theirs) in enumerate(pairs):
            ours = float(analysis.mcse_mean(values))
            worst[which] = max(worst[which], abs(float(np.mean(values)) - truth) / np.hypot(ours, theirs))
    return worst


def make_reference(names, num_draws):
    """Long runs of NumPyro in float64, in coordinates that mix, apart from our code."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from numpyro.infer import MCMC, NUTS

    from benchmarks import models, targets
    from jaxprob import analysis

    for name in names:
        target = models.REFERENCE_COORDINATES.get(name, models.MODELS[name])()
        starts = jax.tree.map(lambda x: jax.numpy.asarray(x, "float64"), target.initial(11, REFERENCE_CHAINS))
        # Where log volatilities hang on their scale, larger steps diverge now and then.
        rate = 0.99 if name in models.REFERENCE_COORDINATES else 0.9
        kernel = NUTS(potential_fn=lambda x: -target.log_density(x), target_accept_prob=rate)  # noqa: B023
        options = {"num_chains": REFERENCE_CHAINS, "chain_method": "vectorized", "progress_bar": False}
        mcmc = MCMC(kernel, num_warmup=2000, num_samples=num_draws, **options)
        began = time.perf_counter()
        mcmc.run(jax.random.key(12), init_params=starts, extra_fields=("diverging",))
        draws = jax.block_until_ready(mcmc.get_samples(group_by_chain=True))
        seconds = time.perf_counter() - began
        constrained = targets.scalars(jax.jit(jax.vmap(jax.vmap(target.constrain)))(draws))
        found = {}
        for scalar, x in constrained.items():
            error, square_error = (float(analysis.mcse_mean(values)) for values in (x, (x - x.mean()) ** 2))
            row = {"mean": float(x.mean()), "sd": float(x.std()), "error": error, "square_error": square_error}
            found[scalar] = row
        made = {
            "draws": f"{REFERENCE_CHAINS} x {num_draws:,}",
            "target_acceptance": rate,
            "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
            "ess_bulk": min(float(analysis.effective_sample_size(x)) for x in constrained.values()),
            "ess_square": min(float(analysis.effective_sample_size((x - x.mean()) ** 2)) for x in constrained.values()),
            "r_hat": max(float(analysis.r_hat(x)) for x in constrained.values()),
        }
        said = ", ".join(f"{key} {value:.5g}" for key, value in made.items() if key != "draws")
        print(f"{name}: {said}, {seconds:.0f} s", flush=True)
        # Read again: runs of other models may have ended meanwhile.
        report = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {}
        by = f"NumPyro {version('numpyro')}, NUTS in float64"
        runs, known = report.get("runs", {}) | {name: made}, report.get("models", {}) | {name: found}
        REFERENCE.write_text(json.dumps({"made by": by, "runs": runs, "models": known}, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--models", default="")
    parser.add_argument("--samplers", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--reference", type=int, nargs="?", const=20_000, metavar="DRAWS")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--child", nargs=4)
    args = parser.parse_args()
    if args.child:
        sampler, model, chains, seed = args.child
        return child(sampler, model, int(chains), int(seed))
    names = args.models.split(",") if args.models else [*REFERENCE_POSTERIORS, *OWN]
    if args.reference:
        own = [name for name in names if name in OWN and name not in ("gaussian_100", "funnel")]
        return make_reference(own, args.reference)
    out = args.out or HERE / "results" / f"mcmc_{args.chains}_chains.json"
    if args.table:
        return write_table(out)
    if not POSTERIORS.is_dir():
        print(f"no reference posteriors at {POSTERIORS}: their models are left out", file=sys.stderr)
        names = [name for name in names if name in OWN]
    samplers = args.samplers.split(",") if args.samplers else list(SAMPLERS)
    rows = json.loads(out.read_text())["rows"] if out.exists() and (args.models or args.samplers) else []
    for model in names:
        found = {sampler: [] for sampler in samplers}
        for repeat in range(args.repeats):
            for sampler in samplers:
                done = subprocess.run(
                    [sys.executable, __file__, "--child", sampler, model, str(args.chains), str(repeat)],
                    capture_output=True,
                    text=True,
                    env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
                )
                if done.returncode:
                    print(f"{sampler} on {model} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                    continue
                found[sampler].append(json.loads(done.stdout.strip().splitlines()[-1]))
        rows = [row for row in rows if not (row["model"] == model and row["sampler"] in samplers)]
        for sampler, runs in found.items():
            if runs:
                rows.append({"model": model, "sampler": sampler, "repeats": len(runs), **summarise(runs)})
                show(rows[-1])
        report = {
            "device": rows[0]["device"],
            "machine": f"{cores()} of {os.cpu_count()} cores, {platform.machine()}",
            "versions": {name: version(name) for name in ("jax", "jaxlib", *SAMPLERS)},
            "chains": args.chains,
            "draws": DRAWS,
            "rows": rows,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
    print(table(report))
    print(f"\nwritten to {out}")


def cores():
    """Those that this process may use: `taskset -c 0` leaves one, so that other work does not show in the times."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def summarise(runs):
    texts = ("device", "said")
    row = {
        name: None if runs[0][name] is None else statistics.median(run[name] for run in runs)
        for name in runs[0]
        if name not in texts
    }
    row["ess_per_s"] = row["ess_bulk"] / (row["warmup_s"] + row["sampling_s"])
    row["tail_per_s"] = row["ess_tail"] / (row["warmup_s"] + row["sampling_s"])
    row["ess_per_1000_gradients"] = 1000 * row["ess_bulk"] / row["gradients"]
    return {**row, **{name: runs[0][name] for name in texts}}


def show(row):
    z = "" if row["z_mean"] is None else f"z {row['z_mean']:5.1f} {row['z_square']:5.1f}"
    print(
        f"{row['model'][:28]:28} {row['sampler']:18} compile {row['compile_s']:5.2f} warm {row['warmup_s']:6.2f} "
        f"run {row['sampling_s']:6.2f} ESS {row['ess_bulk']:6.0f} {row['ess_tail']:6.0f} /s {row['ess_per_s']:8.1f} "
        f"/1k grad {row['ess_per_1000_gradients']:7.2f} div {row['divergences']:5.0f} {z} {row['peak_mib']:5.0f} MiB "
        f"{row['said']}",
        flush=True,
    )


def write_table(out):
    """Puts the table of a results file between the two marks in the README."""
    readme, (begin, end) = HERE.parent / "README.md", ("<!-- mcmc: begin -->", "<!-- mcmc: end -->")
    text = readme.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    readme.write_text(f"{before}{begin}\n{table(json.loads(out.read_text()))}\n{end}{after}")


def table(report):
    """A table in Markdown: ours beside the better of the peers, model by model, and the geometric mean."""
    import math

    lines = [
        "| model | ESS/s | BlackJAX | NumPyro | ESS/1,000 gradients | better peer | compile | z |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    ratios, compiles, memory = [], [], []
    for model in dict.fromkeys(row["model"] for row in report["rows"]):
        by = {row["sampler"]: row for row in report["rows"] if row["model"] == model}
        if not all(sampler in by for sampler in SAMPLERS):
            continue
        ours, blackjax, numpyro = (by[sampler] for sampler in SAMPLERS)
        ratio = [ours["ess_per_s"] / peer["ess_per_s"] for peer in (blackjax, numpyro)]
        gradient = max(peer["ess_per_1000_gradients"] for peer in (blackjax, numpyro))
        ratios.append(min(ratio))
        # A second run that other work on the machine made slower than the first one says nothing about compiling.
        seconds = [row["compile_s"] for row in (ours, blackjax, numpyro)]
        compiled = ["" if min(seconds) <= 0 else f"{seconds[0] / peer:.2f}" for peer in seconds[1:]]
        compiles += [[float(x) for x in compiled]] if min(seconds) > 0 else []
        memory.append((ours["peak_mib"] - ours["before_mib"]) / (blackjax["peak_mib"] - blackjax["before_mib"]))
        z = "" if ours["z_mean"] is None else f"{ours['z_mean']:.1f}"
        lines.append(
            f"| {model.split('-')[-1]} | {ours['ess_per_s']:,.0f} | x {ratio[0]:.1f} | x {ratio[1]:.1f} "
            f"| {ours['ess_per_1000_gradients']:.1f} | x {ours['ess_per_1000_gradients'] / gradient:.1f} "
            f"| {' '.join(compiled)} | {z} |"
        )
    if ratios:
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio in ratios))
        lines.append(
            f"\n{report['chains']} chains, {report['device']} ({report['machine']}). Geometric mean over {len(ratios)} "
            f"models of ESS/s against the better peer: {mean:.1f} (least {min(ratios):.2f}); compile seconds "
            f"{' and '.join(f'{statistics.median(x):.2f}' for x in zip(*compiles, strict=True))} of BlackJAX's and "
            f"NumPyro's, memory of the run {statistics.median(memory):.2f} of BlackJAX's (medians)."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
