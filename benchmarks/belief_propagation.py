"""Tracking a double pendulum by learnt factors: belief propagation, particles that are on their own, and a GRU.

Two joints hang from a pivot that is known. At each of 20 times every joint is seen once: with probability 0.7 near
where it is, else anywhere in the box (clutter). Trackers are trained on the same 256 series; of their training steps
that with the best loss on 64 others is kept, and the error is measured on 256 more: the mean distance between a joint
and the mean of its belief.

 - belief propagation: networks for the unary potential of each joint and the pairwise potential of each link, a sampler
   that draws a direction at random and a distance of learnt mean and width, a learnt step of diffusion in time;
 - unary only: the same without links, trained by itself;
 - GRU: with ten times the parameters, trained by the distance itself, at three learning rates.

    python benchmarks/belief_propagation.py [--methods NAME ...] [--seeds 3] [--steps N] [--out FILE]

Methods measured earlier stay in the file. Source: Opipari et al. (2023), "DNBP: Differentiable nonparametric belief
propagation", for the task and the loss.
"""

import argparse
import json
import math
import os
import platform
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from jaxprob import fit, learning, scan
from jaxprob.inference import particle
from jaxprob.models import sequence

HERE = Path(__file__).resolve().parent
BOX, NOISE, CLUTTER, STEP, TIMES = 2.2, 0.1, 0.3, 0.1, 20
TRAIN, VALIDATION, TEST = 256, 64, 256
HIDDEN, BANDWIDTH, RESTART, PIVOT = 16, 0.1, 0.1, 0.02
LINKS = ((0, 1), (1, 2))  # node 0 is the pivot
WINDOW, FEW, MANY = 6, 40, 200  # times of an example in training; particles in training and in the test
METHODS = {"belief propagation": 1200, "unary only": 1200, "gru": 2000}
RATES = (1e-3, 3e-3, 1e-2)  # of the GRU, of which that with the best loss in validation is kept


# The pendulum: two unit masses on rods of length one.
def derivative(state):
    a, b, u, v = state
    gap, pull = a - b, 9.81
    under = 3 - jnp.cos(2 * gap)
    swing = 2 * jnp.sin(gap)
    first = -3 * pull * jnp.sin(a) - pull * jnp.sin(a - 2 * b) - swing * (v**2 + u**2 * jnp.cos(gap))
    second = swing * (2 * u**2 + 2 * pull * jnp.cos(a) + v**2 * jnp.cos(gap))
    return jnp.stack([u, v, first / under, second / under])


def runge_kutta(state, step):
    one = derivative(state)
    two = derivative(state + step / 2 * one)
    three = derivative(state + step / 2 * two)
    four = derivative(state + step * three)
    return state + step / 6 * (one + 2 * two + 2 * three + four)


def draw_series(key):
    """Places of the joints (time, joint, 2), and where they are seen."""
    keys = jax.random.split(key, 5)
    angles = jax.random.uniform(keys[0], (2,), minval=-math.pi, maxval=math.pi)
    start = jnp.concatenate([angles, 2 * jax.random.normal(keys[1], (2,))])

    def advance(state, _):
        return scan.repeat(lambda state, _: runge_kutta(state, STEP / 5), state, 5), state

    _, states = scan.scan(advance, start, length=TIMES)
    rods = jnp.stack([jnp.sin(states[:, :2]), -jnp.cos(states[:, :2])], axis=-1)
    places = jnp.cumsum(rods, axis=1)
    near = places + NOISE * jax.random.normal(keys[2], places.shape)
    anywhere = jax.random.uniform(keys[3], places.shape, minval=-BOX, maxval=BOX)
    clutter = jax.random.uniform(keys[4], (*places.shape[:2], 1)) < CLUTTER
    return places, jnp.where(clutter, anywhere, near)


def draw_many(key, number):
    return jax.vmap(draw_series)(jax.random.split(key, number))


# Factors: networks of a displacement.
def init_network(key, copies):
    keys, sizes = jax.random.split(key, 3), (3, HIDDEN, HIDDEN, 1)
    return [
        {"kernel": jax.random.normal(key, (copies, m, n)) * (2 / m) ** 0.5, "bias": jnp.zeros((copies, n))}
        for key, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def network(params, copy, gap):
    squared = jnp.sum(gap**2)
    x = jnp.concatenate([gap, jnp.log(squared + 1e-3)[None]])
    for index, layer in enumerate(params):
        x = x @ layer["kernel"][copy] + layer["bias"][copy]
        x = jax.nn.relu(x) if index < 2 else x
    return x[0]


def init_factors(key, links):
    keys = jax.random.split(key)
    params = {"unary": init_network(keys[0], 2), "step": jnp.log(jnp.full((2,), 0.3))}
    if links:
        ring = {"mean": jnp.full((2,), 0.5), "width": jnp.log(jnp.full((2,), 0.5))}
        params |= {"pairwise": init_network(keys[1], 2), "ring": ring}
    return params


def log_normal(gap, width):
    return -0.5 * jnp.sum((gap / width) ** 2) - gap.size * (jnp.log(width) + 0.5 * math.log(2 * math.pi))


def log_ring(ring, link, gap):
    """Log density of a displacement whose direction is uniform and whose distance is normal."""
    distance = jnp.sqrt(jnp.sum(gap**2) + 1e-12)
    deviation = (distance - ring["mean"][link])[None]
    return log_normal(deviation, jnp.exp(ring["width"][link])) - jnp.log(2 * math.pi * distance)


def field_of(params, links):
    def initial(key, node):
        keys = jax.random.split(key)
        anywhere = jax.random.uniform(keys[0], (2,), minval=-BOX, maxval=BOX)
        return jnp.where(node == 0, PIVOT * jax.random.normal(keys[1], (2,)), anywhere)

    def log_initial(x, node):
        inside = jnp.where(jnp.all(jnp.abs(x) < BOX), -2 * math.log(2 * BOX), -jnp.inf)
        return jnp.where(node == 0, log_normal(x, jnp.float32(PIVOT)), inside)

    def transition(key, x, node):
        keys = jax.random.split(key, 3)
        moved = x + jnp.exp(params["step"][jnp.maximum(node - 1, 0)]) * jax.random.normal(keys[0], (2,))
        restarted = (node == 0) | (jax.random.uniform(keys[1]) < RESTART)
        return jnp.where(restarted, initial(keys[2], node), moved)

    def log_transition(old, new, node):
        moved = log_normal(new - old, jnp.exp(params["step"][jnp.maximum(node - 1, 0)]))
        either = jnp.logaddexp(math.log(RESTART) + log_initial(new, node), math.log(1 - RESTART) + moved)
        return jnp.where(node == 0, log_initial(new, node), either)

    def log_unary(x, node, y):
        joint = jnp.maximum(node - 1, 0)
        return jnp.where(node == 0, 0.0, network(params["unary"], joint, x - y[joint]))

    def log_pairwise(first, second, link):
        return network(params["pairwise"], link, second - first)

    def sample_conditional(key, given, link, forward):
        keys, ring = jax.random.split(key), params["ring"]
        angle = jax.random.uniform(keys[0], maxval=2 * math.pi)
        distance = ring["mean"][link] + jnp.exp(ring["width"][link]) * jax.random.normal(keys[1])
        return given + distance * jnp.stack([jnp.cos(angle), jnp.sin(angle)])

    return particle.MarkovField(
        nodes=3,
        edges=links,
        initial=initial,
        log_unary=log_unary,
        log_pairwise=log_pairwise,
        transition=transition,
        sample_conditional=sample_conditional if links else None,
        log_conditional=lambda given, drawn, link, forward: log_ring(params["ring"], link, drawn - given),
        log_initial=log_initial,
        log_transition=log_transition,
    )


def track(key, params, seen, links, number, look):
    """What `look(beliefs, time)` returns of the beliefs at each time."""
    field, redraws = field_of(params, links), 1 if links else 0

    def step(beliefs, now):
        time, y = now
        beliefs = particle.belief_step(jax.random.fold_in(key, time), field, beliefs, y, redraws=redraws)
        return beliefs, look(beliefs, time)

    first = particle.belief_propagation(jax.random.fold_in(key, 0), field, seen[0], particles=number, redraws=redraws)
    _, later = scan.scan(step, first, (jnp.arange(1, len(seen)), seen[1:]))
    return jnp.concatenate([look(first, 0)[None], later])


def factor_task(links, steps):
    def loss(params, batch, key):
        places, seen = batch
        keys = jax.random.split(key, len(places) + 1)
        # Every example is a window that starts anywhere in its series.
        starts = jax.random.randint(keys[0], (len(places),), 0, TIMES - WINDOW + 1)

        def one(key, start, places, seen):
            places, seen = (jax.lax.dynamic_slice_in_dim(x, start, WINDOW) for x in (places, seen))
            truth = jnp.concatenate([jnp.zeros((WINDOW, 1, 2)), places], axis=1)

            def look(beliefs, time):
                return jnp.mean(particle.belief_log_density(beliefs, truth[time], BANDWIDTH)[1:])

            score = jnp.mean(track(key, params, seen, links, FEW, look))
            if links:
                gaps = truth[:, 1:] - truth[:, :-1]
                ring = partial(log_ring, params["ring"])
                score += jnp.mean(jax.vmap(lambda gap: jax.vmap(ring)(jnp.arange(2), gap))(gaps))
            return -score

        return jnp.mean(jax.vmap(one)(keys[1:], starts, places, seen))

    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))
    return learning.Task(partial(init_factors, links=links), loss, optimizer, ema=0.99, max_gradient_norm=5.0)


def gru_task(net, rate, steps):
    def loss(params, batch, key):
        places, seen = batch
        return jnp.mean(jax.vmap(lambda x, y: distances(x, of_gru(net, params, y)))(places, seen))

    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, rate, steps // 20, steps))
    return learning.Task(
        lambda key: net.init(key, jnp.zeros((TIMES, 4))), loss, optimizer, ema=0.99, max_gradient_norm=1.0
    )


def of_gru(net, params, seen):
    return net.apply(params, seen.reshape(TIMES, 4))[0].reshape(TIMES, 2, 2)


def distances(places, found):
    return jnp.sqrt(jnp.sum((places - found) ** 2, axis=-1) + 1e-12)


def run(method, seed, steps):
    keys = jax.random.split(jax.random.key(seed), 3)
    train, validation, test = (draw_many(k, n) for k, n in zip(keys, (TRAIN, VALIDATION, TEST), strict=True))
    links, batch = LINKS if method == "belief propagation" else (), 16
    if method == "gru":
        batch, net = 32, sequence.stack(sequence.gru(44, state=44), 1, 4)
        tasks = [gru_task(net, rate, steps) for rate in RATES]
        predict = lambda key, params, seen: of_gru(net, params, seen)  # noqa: E731
    else:
        tasks = [factor_task(links, steps)]
        look = lambda beliefs, time: beliefs.mean[1:]  # noqa: E731
        predict = lambda key, params, seen: track(key, params, seen, links, MANY, look)  # noqa: E731
    data = learning.data.arrays(train, batch, seed=seed)
    held, every = learning.data.arrays(validation, batch, shuffle=False), max(1, steps // 10)
    options = {"steps": steps, "validation": held, "evaluate_every": every, "log_every": every, "progress": None}
    began = time.perf_counter()
    results = [fit(task, data, key=jax.random.key(1000 + seed), **options) for task in tasks]
    seconds = time.perf_counter() - began
    losses = [[x for x in result.history["validation/loss"].tolist() if not math.isnan(x)] for result in results]
    loss, result = min(zip(losses, results, strict=True), key=lambda pair: min(pair[0]))
    predict = jax.jit(jax.vmap(predict, (0, None, 0)))
    found = predict(jax.random.split(jax.random.key(2000 + seed), TEST), result.best, test[1])
    errors = distances(test[0], found)
    return {
        "seed": seed,
        "error": round(float(jnp.mean(errors)), 4),
        "error_by_joint": [round(float(x), 4) for x in jnp.mean(errors, axis=(0, 1))],
        "standard_error": round(float(jnp.std(jnp.mean(errors, axis=(1, 2))) / TEST**0.5), 4),
        "parameters": sum(x.size for x in jax.tree.leaves(result.params)),
        "steps": result.step,
        "best_step": result.best_step,
        "seconds_of_training": round(seconds, 1),
        "validation_loss": [round(x, 3) for x in loss],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of training; by default as many as the method wants")
    parser.add_argument("--out", default=HERE / "results" / "belief_propagation.json", type=Path)
    args = parser.parse_args()
    for method in args.methods:
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            row = run(method, seed, args.steps or METHODS[method])
            print(method, json.dumps(row), flush=True)
            store(args.out, method, row)


def store(path, method, row):
    """Puts a row into the file at once: training takes minutes."""
    report = {
        "device": jax.devices()[0].device_kind,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "task": {"clutter": CLUTTER, "noise": NOISE, "times": TIMES, "step": STEP, "train": TRAIN, "test": TEST},
    }
    before = json.loads(path.read_text()) if path.exists() else {}
    methods = before["methods"] if before.get("task") == report["task"] else {}
    rows = [old for old in methods.get(method, []) if old["seed"] != row["seed"]]
    report["methods"] = methods | {method: sorted([*rows, row], key=lambda row: row["seed"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
