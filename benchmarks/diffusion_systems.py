"""Diffusion models: the checks of published systems at small scale, with what was measured.

- thermodynamics_gaussian: S166, the Gaussian half: forty steps of a perceptron on two moons, noise levels learnt with
  the bound; and the bound of a normal law in parts with its exact denoiser.
- dimension: S197, the score of two normal laws in 2 to 16 dimensions from 4000 points, beside a kernel density.
- reparameterized: S229, routed decoding of a grammar; thermodynamics_binomial: S166, a heartbeat of bits; both in
  `_discrete_systems.py`.
- processes_DATA: S254, series at irregular times with noise that is a function, in `_function_systems.py`.
- events: S232, an event of 2.7 %, a curved and a divided one, in `_event_systems.py`.
- bayesian_flow_tokens, bayesian_flow_numbers: S175, sources of bits and a mixture in the plane, in
  `_bayesian_flow_systems.py`.

A check says what should be, and whether it was so.

    python benchmarks/diffusion_systems.py [--parts dimension ...] [--out benchmarks/results/diffusion_systems-cpu.json]
"""

import argparse
import importlib
import json
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table
from scipy import special, stats

from jaxprob import learning, scan
from jaxprob.inference import diffusion as sampling
from jaxprob.models import diffusion
from jaxprob.models.diffusion import networks

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))


def check(rows, name, got, wanted="", held=True):
    rows.append({"check": name, "got": float(got), "wanted": wanted, "held": bool(held)})


def train(init, loss, xs, steps, rate, batch, seed=0):
    """Averaged parameters after so many steps on random batches."""
    task = learning.Task(init, loss, optax.adam(optax.cosine_decay_schedule(rate, steps)), ema=0.995)
    training = learning.training(task)

    @jax.jit
    def run(key, xs):
        def step(state, i):
            own = jax.random.fold_in(key, i)
            rows = jax.random.randint(jax.random.fold_in(own, 1), (batch,), 0, len(xs))
            return training.step(jax.random.fold_in(own, 0), state, xs[rows])[0], None

        return scan.scan(step, training.init(task.init(key)), jnp.arange(steps))[0].evaluation_params

    return run(jax.random.key(seed), xs)


# S166


def moons(rng, count, noise=0.05):
    angle, upper = rng.uniform(0, np.pi, count), rng.random(count) < 0.5
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle))
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle))
    return np.stack([x, y], 1) + noise * rng.normal(size=(count, 2))


def thermodynamics_gaussian(rows):
    rng, steps = np.random.default_rng(0), 40
    xs, held_out = moons(rng, 20_000), moons(rng, 2000)
    centre, scale = xs.mean(0), xs.std(0)
    # Nats in units of the data as they come.
    log_scale = np.log(scale).sum()
    xs, held_out = (jnp.asarray((x - centre) / scale, jnp.float32) for x in (xs, held_out))
    normal = -stats.multivariate_normal(np.zeros(2), np.cov(np.asarray(xs).T)).logpdf(held_out).mean() + log_scale
    net = networks.perceptron(width=64, depth=3)

    def init(key):
        params = net.init(key, jnp.zeros(2), 0.5, None)
        return {"net": params, "schedule": diffusion.learned(7.5, -5.0)}

    def process_of(params):
        return diffusion.variance_preserving(params["schedule"], "v")

    def denoiser_of(params):
        return partial(net.apply, params["net"])

    def loss(params, batch, key):
        return jnp.mean(
            sampling.negative_elbo(key, process_of(params), denoiser_of(params), batch, steps=steps, draws=2).nats
        )

    params = train(init, loss, xs, 8000, 2e-3, 256)
    bound = sampling.negative_elbo(
        jax.random.key(1), process_of(params), denoiser_of(params), held_out, steps=steps, draws=20 * steps
    )
    nats = np.asarray(bound.nats).mean() + log_scale
    check(rows, "nats of a point, full-covariance normal law", normal)
    check(rows, "nats of a point, bound of 40 steps", nats)
    check(rows, "standard error of the bound over points", np.asarray(bound.nats).std() / np.sqrt(len(held_out)))
    check(rows, "nats gained", normal - nats, ">= 0.5", normal - nats >= 0.5)
    ends = [float(params["schedule"](t)) for t in (0.0, 1.0)]
    check(rows, "log ratio that was learnt for time 0", ends[0])
    check(rows, "log ratio that was learnt for time 1", ends[1])
    drawn = sampling.sample(
        jax.random.key(2), process_of(params), denoiser_of(params), (2000, 2), solver=sampling.ancestral(steps)
    )
    check(rows, "energy distance of 2000 samples", energy_distance(np.asarray(drawn), np.asarray(held_out)))
    again = np.asarray((moons(rng, 2000) - centre) / scale)
    check(rows, "energy distance of 2000 data", energy_distance(again, np.asarray(held_out)))

    # A normal law in 16 parts of [-1, 1], with the expectation of the part given x_t as denoiser.
    edges = np.linspace(-1, 1, 17)
    law = np.diff(stats.norm(0.1, 0.4).cdf(edges))
    law /= law.sum()
    middles, log_law = (jnp.asarray(v, jnp.float32) for v in ((edges[1:] + edges[:-1]) / 2, np.log(law)))
    process = diffusion.variance_preserving(diffusion.log_linear(8.5, -5.0), "clean")

    def exact(x, t, condition):
        alpha, sigma = process.scales(t)
        away = (x[:, None] - alpha * middles) / sigma
        return jax.nn.softmax(log_law - 0.5 * away**2, -1) @ middles

    parts = np.random.default_rng(3).choice(16, p=law, size=(8000, 1))
    for name, options in (("continuous", {"draws": 1024}), ("1000 steps", {"steps": 1000, "draws": 1000})):
        bound = sampling.negative_elbo(jax.random.key(3), process, exact, jnp.asarray(parts), levels=16, **options)
        # Of the same points, so that only the error of the bound is left.
        gap = np.asarray(bound.nats) + np.log(law[parts[:, 0]])
        check(rows, f"discretised normal law, {name}: nats above the exact ones", gap.mean(), "within 0.02",
              abs(gap.mean()) <= 0.02)  # fmt: skip
        check(rows, f"discretised normal law, {name}: standard error", gap.std() / np.sqrt(len(gap)))


def energy_distance(x, y):
    def mean(a, b):
        return np.mean(np.linalg.norm(a[:, None] - b[None], axis=-1))

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


# S197


def kernel_density_nats(train, test, width):
    """Mean negative log density of the test points under normal kernels about the training points."""
    squares = (test**2).sum(1)[:, None] + (train**2).sum(1) - 2 * test @ train.T
    size = train.shape[1]
    log_scale = size * np.log(width) + 0.5 * size * np.log(2 * np.pi) + np.log(len(train))
    return -np.mean(special.logsumexp(-0.5 * squares / width**2, 1) - log_scale)


def ridge_potential(process, width=128, features=32):
    """A network with a norm as in the paper's theory, and that norm: `init(key, x)`, `apply`, `norm(params)`.

    Where p_0 is exp(f) times the standard normal density, so is p_t with an f_t whose slope is alpha times the mean of
    that of f. The network is the slope of a sum of ridge functions of alpha x, whose directions are the same at all
    times; the norm is that of the coefficients times the squared lengths of the directions, which does not know the
    axes. Output is v: minus sigma / alpha times the slope of f_t.
    """

    def init(key, x):
        directions, first, last, offsets = (jax.random.fold_in(key, i) for i in range(4))
        shift = jax.random.uniform(offsets, (width,), minval=-2.0, maxval=2.0)
        return {
            "directions": jax.random.normal(directions, (width, len(x))) / jnp.sqrt(len(x)),
            "first": {"kernel": jax.random.normal(first, (4, features)) / 2, "bias": jnp.zeros(features)},
            "last": {
                "kernel": 0.1 * jax.random.normal(last, (features, 3 * width)),
                "bias": jnp.concatenate([jnp.zeros(width), shift, jnp.ones(width)]),
            },
        }

    def ridges(params, t):
        """Coefficients, offsets and steepness of all ridges at a time."""
        alpha, sigma = process.scales(t)
        hidden = jnp.stack([t, alpha, sigma, t**2]) @ params["first"]["kernel"] + params["first"]["bias"]
        return jnp.split(jnp.tanh(hidden) @ params["last"]["kernel"] + params["last"]["bias"], 3)

    def apply(params, x, t, condition):
        alpha, sigma = process.scales(t)
        coefficients, offsets, steepness = ridges(params, t)
        heights = jax.nn.silu(steepness * (params["directions"] @ (alpha * x)) + offsets)
        return -sigma * (coefficients * heights) @ params["directions"]

    def norm(params):
        coefficients, _, steepness = jax.vmap(partial(ridges, params))(jnp.linspace(0.05, 0.95, 8))
        return jnp.mean(jnp.abs(coefficients * steepness) @ jnp.sum(params["directions"] ** 2, 1))

    return init, apply, norm


def dimension(rows):
    count, sizes = 4000, (2, 4, 8, 16)
    process = diffusion.variance_preserving(diffusion.cosine(10.0, -10.0), "v", "bound")
    init, apply, norm = ridge_potential(process)
    objective = diffusion.loss(process, apply)

    def loss(params, batch, key):
        return objective(params, batch, key) + 3e-3 * norm(params)

    times = jnp.linspace(0.05, 0.95, 10)
    results = {}
    for size in sizes:
        rng = np.random.default_rng(size)
        means = np.zeros((2, size))
        means[:, 0] = -1.0, 1.0
        covariance = np.eye(size)
        covariance[0, 0] = 0.25

        def draw(number, rng=rng, means=means, covariance=covariance):
            which = rng.integers(0, 2, number)
            return means[which] + rng.normal(size=(number, len(covariance))) * np.sqrt(np.diag(covariance))

        xs, test = draw(count), draw(2000)
        exact = diffusion.gaussian_mixture_denoiser(process, [0.5, 0.5], means, covariance)
        params = train(
            lambda key, size=size: init(key, jnp.zeros(size)), loss, jnp.asarray(xs, jnp.float32), 4000, 1e-2, 512
        )
        denoiser = partial(apply, params)

        def errors(key, x0, t, denoiser=denoiser, exact=exact):
            xt = process.corrupt(key, x0, t)
            said, known = denoiser(xt, t, None), exact(xt, t, None)
            score = process.score(said, xt, t) - process.score(known, xt, t)
            noise = process.noise_of(said, xt, t) - process.noise_of(known, xt, t)
            return jnp.mean(score**2), jnp.mean(noise**2)

        keys = jax.random.split(jax.random.key(0), 2000)
        score, noise = jax.jit(jax.vmap(jax.vmap(errors, (0, 0, None)), (None, None, 0)))(
            keys, jnp.asarray(test, jnp.float32), times
        )
        drawn = sampling.sample(jax.random.key(1), process, denoiser, (20_000, size), solver=sampling.heun(20))
        known = sampling.sample(jax.random.key(1), process, exact, (20_000, size), solver=sampling.heun(20))
        # The same noise in both, so that the distance of finite samples is not what is seen.
        apart = np.sort(np.asarray(drawn)[:, 0]) - np.sort(np.asarray(known)[:, 0])
        true = -np.mean(
            np.logaddexp(*(stats.multivariate_normal(m, covariance).logpdf(test) for m in means)) - np.log(2)
        )
        widths = np.geomspace(0.1, 1.0, 15)
        kernel = min(kernel_density_nats(xs, test, width) for width in widths) - true
        results[size] = float(score.mean()), float(noise.mean()), float(np.sqrt(np.mean(apart**2))), float(kernel)
        for name, value in zip(("score error", "noise error", "W2 of the axis", "KDE gap"), results[size], strict=True):
            check(rows, f"d={size}: {name}", value)
    growth = [late / early for early, late in zip(results[2], results[16], strict=True)]
    check(rows, "growth of the score error of a number, d=2 to 16", growth[0], "<= 2", growth[0] <= 2)
    check(rows, "growth of the noise error of a number, d=2 to 16", growth[1])
    check(rows, "growth of W2 of the informative axis", growth[2], "<= 2", growth[2] <= 2)
    check(rows, "growth of the gap of a kernel density, best width", growth[3], ">= 5", growth[3] >= 5)


def elsewhere(module, name, *args):
    """A part of another file: a function whose "checks" are the rows."""

    def part(rows):
        rows += getattr(importlib.import_module(f"benchmarks.{module}"), name)(*args)["checks"]

    return part


PARTS = {
    "thermodynamics_gaussian": thermodynamics_gaussian,
    "dimension": dimension,
    "events": elsewhere("_event_systems", "events"),
    "reparameterized": elsewhere("_discrete_systems", "reparameterized"),
    "thermodynamics_binomial": elsewhere("_discrete_systems", "thermodynamics_binomial"),
    "bayesian_flow_tokens": elsewhere("_bayesian_flow_systems", "tokens"),
    "bayesian_flow_numbers": elsewhere("_bayesian_flow_systems", "numbers"),
    **{
        f"processes_{data}": elsewhere("_function_systems", "process_diffusion", data)
        for data in ("ornstein_uhlenbeck", "cox_ingersoll_ross", "sinusoids")
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "diffusion_systems-cpu.json")
    args = parser.parse_args()
    table = Table("part", "check", "got", "wanted", "held")
    for part in args.parts:
        began, rows = time.perf_counter(), []
        PARTS[part](rows)
        # Read again, since others may have written their parts.
        report = json.loads(args.out.read_text()) if args.out.exists() else {}
        report |= {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
        report[part] = {"seconds": time.perf_counter() - began, "checks": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        for row in rows:
            verdict = ("yes" if row["held"] else "no") if row["wanted"] else ""
            table.add_row(part, row["check"], f"{row['got']:.4g}", row["wanted"], verdict)
    Console().print(table)


if __name__ == "__main__":
    main()
