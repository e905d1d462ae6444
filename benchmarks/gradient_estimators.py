"""Noise and bias of every gradient estimator of variational inference, with what they should be.

Guides: independent normals for a dense Gaussian target of five or twenty numbers, at a start that is off and at the
optimum. The exact gradient of the ELBO is known in closed form. That of importance-weighted bounds of more than one
draw is not: there the reference is the mean of the doubly reparameterised estimator over draws of its own, and of the
path estimator for that one. Noise is the variance of one estimate, summed over parameters.

Categories: E[(x - 0.45)^2] for one binary x, and its sum over ten, by enumeration. Control variates are trained by the
gradients that the estimator gives for them. The sum multiplies the score's noise by a hundred and the signal by none.

Bars: reparameterised noise at most a tenth of the score's; straight-through and Gumbel-softmax at most a tenth of
REINFORCE's, with a bias that falls with the temperature; no z-score of an unbiased estimator beyond 4.5.

    python benchmarks/gradient_estimators.py [--repeats 40000] [--out benchmarks/results/gradient_estimators-cpu.json]
"""

import argparse
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from jaxprob import core, scan
from jaxprob.inference import vi

HERE = Path(__file__).resolve().parent
SIZES, CHUNK = (5, 20), 10_000
LIMIT = 4.5  # of z-scores: one false alarm in 150,000


def moments(estimate, repeats, seed):
    """Mean and variance of each entry of `estimate(key)`, a vector, over independent keys, in float64."""
    run = jax.jit(jax.vmap(estimate))
    total, square = 0.0, 0.0
    for chunk in range(repeats // CHUNK):
        key = core.fold(jax.random.key(seed), chunk)
        found = np.asarray(run(core.chain_keys(key, jnp.arange(CHUNK))), np.float64)
        total, square = total + found.sum(axis=0), square + (found**2).sum(axis=0)
    mean = total / repeats
    return mean, square / repeats - mean**2


def row(name, place, draws, mean, variance, repeats, exact, exact_error=0.0, unbiased=True):
    z = (mean - exact) / np.sqrt(variance / repeats + exact_error**2 + 1e-14)
    return {
        "estimator": name,
        "place": place,
        "draws": draws,
        "noise": float(variance.sum()),
        "bias": float(np.linalg.norm(mean - exact)),
        "gradient": float(np.linalg.norm(exact)),
        "largest_z": float(np.max(np.abs(z))),
        "unbiased": unbiased,
    }


def gaussian(size):
    rng = np.random.default_rng(1)
    root = rng.normal(size=(size, 2 * size)) / np.sqrt(2 * size)
    return rng.normal(size=size), np.linalg.inv(root @ root.T)


def gradient_of(objective, guide):
    return lambda key: core.ravel(jax.grad(lambda g: objective.loss(g, None, key)[0])(guide))[0]


def guides(repeats, size):
    mean, precision = gaussian(size)
    centre, matrix = jnp.asarray(mean, jnp.float32), jnp.asarray(precision, jnp.float32)
    start, family = jnp.zeros(size), vi.mean_field(0.5)

    def target(x):
        return -0.5 * jnp.sum((x - centre) * jnp.matmul(matrix, x - centre, precision="highest"))

    away = family.init(jax.random.key(0), start)
    locs = {"start": np.zeros(size), "optimum": mean}
    scales = {"start": np.full(size, 0.5), "optimum": 1 / np.sqrt(np.diag(precision))}
    rows = []
    for place in locs:
        leaves = [jnp.asarray(x, jnp.float32) for x in (locs[place], np.log(scales[place]))]
        guide = jax.tree.unflatten(jax.tree.structure(away), leaves)
        exact = np.concatenate([precision @ (locs[place] - mean), scales[place] ** 2 * np.diag(precision) - 1])
        for draws in (1, 8, 64):
            for name in ("path", "stick_the_landing", "entropy", "score", "fitted_score"):
                objective = vi.elbo(target, family, draws=draws, gradient=name, initial=start)
                found = moments(gradient_of(objective, guide), repeats, 0)
                rows.append(row(f"elbo {name}", f"{place}, {size}", draws, *found, repeats, exact))
        for draws in (1, 8, 64) if size == SIZES[0] else ():
            build = {
                name: vi.importance_weighted(target, family, draws=draws, gradient=name, initial=start)
                for name in ("path", "doubly_reparameterized", "vimco")
                if draws > 1 or name != "vimco"
            }
            found = {
                name: moments(gradient_of(own, guide), repeats, 1 + i) for i, (name, own) in enumerate(build.items())
            }
            for name, (own, variance) in found.items():
                peer, peer_variance = found["path" if name == "doubly_reparameterized" else "doubly_reparameterized"]
                expected, error = (exact, 0.0) if draws == 1 else (peer, np.sqrt(peer_variance / repeats))
                rows.append(row(f"iw {name}", f"{place}, {size}", draws, own, variance, repeats, expected, error))
    return rows


def toy(z):
    return jnp.sum((z[:, 1] - 0.45) ** 2)


def tuned(loss, params, steps=2000):
    """Parameters of a control variate, by the gradient that the estimator gives for them."""
    optimizer = optax.adam(0.02)

    def one(carry, index):
        params, state = carry
        keys = core.chain_keys(core.fold(jax.random.key(7), index), jnp.arange(32))
        gradient = jax.grad(lambda p: jnp.mean(jax.vmap(lambda key: loss(p, key))(keys)))(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda params: scan.scan(one, (params, optimizer.init(params)), jnp.arange(steps))[0][0])
    return run(params)


def network(params, z):
    hidden = jnp.tanh(jnp.matmul(z, params["first"]) + jnp.expand_dims(params["bias"], 0))
    return jnp.sum(jnp.matmul(hidden, params["second"]))


def categories(repeats):
    rows, controls = [], {}
    for variables in (1, 10):
        logits = jnp.zeros((variables, 2))
        place = f"{variables} variable" + "s" * (variables > 1)
        # Of each variable, p (1 - p) (f(1) - f(0)), with the other sign for the other logit.
        exact = np.tile([-0.025, 0.025], variables)
        if variables == 1:
            enumerated = jax.grad(lambda x: vi.discrete_expectation(toy, x, estimator="exact"))(logits)
            np.testing.assert_allclose(np.ravel(enumerated), exact, atol=1e-7)

        def rebar_loss(tuning, key, logits=logits):
            return vi.discrete_expectation(
                toy, logits, key, estimator="rebar", temperature=jnp.exp(tuning[0]), scale=tuning[1]
            )

        def control(params, z):
            relaxed = toy(jax.nn.softmax(z / jnp.exp(params["temperature"]), axis=-1))
            return params["scale"] * relaxed + network(params["network"], z)

        def relax_loss(params, key, logits=logits, control=control):
            return vi.discrete_expectation(toy, logits, key, estimator="relax", control=lambda z: control(params, z))

        keys = jax.random.split(jax.random.key(3), 2)
        start = {
            "temperature": jnp.log(0.5),
            "scale": jnp.ones(()),
            "network": {
                "first": jax.random.normal(keys[0], (2, 8)) / 2,
                "bias": jnp.zeros(8),
                "second": 0.01 * jax.random.normal(keys[1], (8,)),
            },
        }
        rebar = tuned(rebar_loss, jnp.asarray([np.log(0.5), 1.0], jnp.float32))
        relax = tuned(relax_loss, start)
        controls[place] = {"rebar temperature": float(jnp.exp(rebar[0])), "rebar scale": float(rebar[1])}
        cases = [
            ("score", {"estimator": "score"}, True),
            ("score, 4 draws", {"estimator": "score", "draws": 4}, True),
            ("rebar, t = 0.5", {"estimator": "rebar"}, True),
            ("rebar, trained", {"estimator": "rebar", "temperature": jnp.exp(rebar[0]), "scale": rebar[1]}, True),
            ("relax, trained", {"estimator": "relax", "control": lambda z, r=relax, c=control: c(r, z)}, True),
            *(
                (f"{name}, t = {temperature}", {"estimator": name, "temperature": temperature}, False)
                for name in ("straight_through", "gumbel_softmax")
                for temperature in (2.0, 1.0, 0.5, 0.25)
            ),
        ]
        for name, options, unbiased in cases:

            def slope(key, options=options, logits=logits):
                return jnp.ravel(jax.grad(lambda x: vi.discrete_expectation(toy, x, key, **options))(logits))

            found = moments(slope, repeats, 0)
            rows.append(row(name, place, options.get("draws", 1), *found, repeats, exact, unbiased=unbiased))
    return rows, controls


def bars(gaussian_rows, category_rows):
    noise = {(own["estimator"], own["place"], own["draws"]): own["noise"] for own in gaussian_rows}
    toys = {(own["estimator"], own["place"]): own for own in category_rows}
    found = {}
    for place in (f"{place}, {size}" for size in SIZES for place in ("start", "optimum")):
        for draws in (1, 8, 64):
            for name in ("path", "stick_the_landing"):
                ratio = noise[f"elbo {name}", place, draws] / noise["elbo score", place, draws]
                found[f"{name} / score, {place} numbers, {draws} draws"] = ratio
    for place in ("1 variable", "10 variables"):
        for name in ("straight_through", "gumbel_softmax"):
            for temperature in (2.0, 1.0, 0.5, 0.25):
                own = toys[f"{name}, t = {temperature}", place]
                found[f"{name} / score, t = {temperature}, {place}"] = own["noise"] / toys["score", place]["noise"]
    biases = {
        f"{name}, {place}": [toys[f"{name}, t = {t}", place]["bias"] for t in (2.0, 1.0, 0.5, 0.25)]
        for name in ("straight_through", "gumbel_softmax")
        for place in ("1 variable", "10 variables")
    }
    unbiased = [own for own in gaussian_rows + category_rows if own["unbiased"]]
    return {
        "noise_ratios": found,
        "met": {name: ratio <= 0.1 for name, ratio in found.items()},
        "bias_by_falling_temperature": biases,
        "largest_z_of_unbiased": max(own["largest_z"] for own in unbiased),
    }


def show(title, rows):
    table = Table(title=title)
    columns = ("estimator", "place", "draws", "noise", "gradient", "bias", "largest_z")
    for column in columns:
        table.add_column(column, justify="left" if column in ("estimator", "place") else "right")
    for own in rows:
        table.add_row(*(f"{own[c]:.3g}" if isinstance(own[c], float) else str(own[c]) for c in columns))
    Console(width=120).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=40_000)
    parser.add_argument("--out", default=HERE / "results" / "gradient_estimators-cpu.json", type=Path)
    args = parser.parse_args()
    if args.repeats % CHUNK or args.repeats < CHUNK:
        parser.error(f"--repeats is {args.repeats}; expected a multiple of {CHUNK}")
    gaussian_rows = [own for size in SIZES for own in guides(args.repeats, size)]
    show("Guides of a dense Gaussian", gaussian_rows)
    category_rows, controls = categories(args.repeats)
    show("Categories", category_rows)
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "optax")},
        "repeats": args.repeats,
        "guides": gaussian_rows,
        "categories": category_rows,
        "trained_controls": controls,
        "bars": bars(gaussian_rows, category_rows),
    }
    for name, value in report["bars"].items():
        print(name, json.dumps(value, indent=1))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten to {args.out}")
    if report["bars"]["largest_z_of_unbiased"] > LIMIT:
        raise SystemExit("an estimator that has no bias shows one")


if __name__ == "__main__":
    main()
