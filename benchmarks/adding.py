"""The adding problem over 100 steps: an LSTM and a GRU solve it, a simple recurrent network does not.

Two of 100 uniform numbers are marked; the answer is their sum. Who answers 1 has a squared error of 1/6. Beside the
errors stand the gradients that reach the first state from the last output before any training.

    python benchmarks/adding.py [--steps 1500] [--out FILE]

Source of the problem: Hochreiter and Schmidhuber (1997), "Long short-term memory"; of what is claimed: Lipton,
Berkowitz and Elkan (2015), "A critical review of recurrent neural networks for sequence learning".
"""

import argparse
import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from jaxprob.models import sequence

HERE = Path(__file__).resolve().parent
TIME, BATCH, WIDTH = 100, 64, 48


def batch(key):
    """Inputs (batch, time, 2), numbers and marks, and the sums (batch,)."""
    of_numbers, of_marks = jax.random.split(key)
    numbers = jax.random.uniform(of_numbers, (BATCH, TIME))
    places = jax.vmap(lambda key: jax.random.choice(key, TIME, (2,), replace=False))(jax.random.split(of_marks, BATCH))
    marks = jax.vmap(lambda place: jnp.zeros(TIME).at[place].set(1.0))(places)
    return jnp.stack([numbers, marks], -1), jnp.sum(numbers * marks, 1)


def trained(core, steps):
    """The mean squared error every hundredth of the steps, and seconds."""
    net = sequence.stack(core, depth=1, output=1, norm=None, gate=None, pool="last")
    params = net.init(jax.random.key(0), jnp.zeros((1, 2)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))

    def loss(params, key):
        xs, sums = batch(key)
        ys = jax.vmap(lambda xs: net.apply(params, xs)[0][0])(xs)
        return jnp.mean((ys - sums) ** 2)

    @jax.jit
    def some(carry, keys):
        def step(carry, key):
            params, state = carry
            value, gradient = jax.value_and_grad(loss)(params, key)
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), value

        carry, values = jax.lax.scan(step, carry, keys)
        return carry, jnp.mean(values)

    carry, errors, start = (params, optimizer.init(params)), [], time.perf_counter()
    for keys in jnp.split(jax.random.split(jax.random.key(1), steps), 10):
        carry, error = some(carry, keys)
        errors.append(float(error))
    return errors, time.perf_counter() - start


def gradient_through(core, length):
    """The norm of the gradient of the sum of the last outputs with respect to the first state."""
    xs = jax.random.normal(jax.random.key(2), (length, core.width))
    params = core.init(jax.random.key(0), xs)
    gradient = jax.jit(jax.grad(lambda state: jnp.sum(core.apply(params, xs, state)[0][-1])))(core.initial_state())
    return float(optax.global_norm(gradient))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="of training, a multiple of 10")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "adding.json")
    arguments = parser.parse_args()
    cores = {
        "elman": sequence.elman(WIDTH),
        "gru": sequence.gru(WIDTH, horizon=TIME),
        "lstm": sequence.lstm(WIDTH, horizon=TIME),
        "lstm, forget bias 1": sequence.lstm(WIDTH),
    }
    rows = {}
    titles = ("gradient, 10", "gradient, 100", "error at first", "at last", "seconds")
    print(f"{'core':<20} " + " ".join(f"{title:>14}" for title in titles))
    for name, core in cores.items():
        gradients = {length: gradient_through(core, length) for length in (10, 100)}
        errors, seconds = trained(core, arguments.steps) if name != "lstm, forget bias 1" else ([], 0.0)
        rows[name] = {"gradients": gradients, "errors": errors, "seconds": seconds}
        shown = f"{errors[0]:>14.4f} {errors[-1]:>14.4f} {seconds:>14.1f}" if errors else ""
        print(f"{name:<20} {gradients[10]:>18.1e} {gradients[100]:>14.1e} {shown}", flush=True)
    report = {
        "steps": arguments.steps,
        "time": TIME,
        "batch": BATCH,
        "width": WIDTH,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("jax", "flax", "optax")},
        "cores": rows,
    }
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
