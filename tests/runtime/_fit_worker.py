"""Training in a process of its own, to be killed: says a line at each chunk, and saves the result when it is done."""

import argparse
import os

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--devices", type=int, default=2)
parser.add_argument("--steps", type=int, default=400)
parser.add_argument("--data", choices=("arrays", "stream"), default="arrays")
parser.add_argument("--sharding")
parser.add_argument("--coordinator")
parser.add_argument("--process", type=int)
parser.add_argument("--every", type=float, default=0.0)
parser.add_argument("--chunk", type=float, default=0.01, help="seconds a chunk")
args = parser.parse_args()

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import numpy as np  # noqa: E402

if args.coordinator:
    from jaxprob import runtime

    runtime.connect(args.coordinator, 2, args.process)

import jaxprob  # noqa: E402
from jaxprob import core, learning  # noqa: E402
from jaxprob.runtime import _loop  # noqa: E402
from jaxprob.runtime._mesh import fetch  # noqa: E402
from tests.runtime import _tasks  # noqa: E402

_loop.SECONDS_PER_CHUNK = args.chunk
_loop.FIRST_CHUNK = 2


class Lines:
    """Tells the test where the run is."""

    def update(self, status):
        print("update", status["step"], flush=True)

    start = phase = finish = lambda self, *_: None

    def close(self):
        pass


result = jaxprob.fit(
    _tasks.network(),
    _tasks.arrays() if args.data == "arrays" else learning.data.stream(_tasks.Counter()),
    key=jax.random.key(7),
    steps=args.steps,
    validation=_tasks.validation(),
    evaluate_every=30,
    sharding=args.sharding,
    log_every=1,
    out=args.out,
    resume=True,
    progress=Lines(),
    checkpoint_every=args.every,
)
print("ended", result.ended, flush=True)
found = fetch({"state": result.state, "best": result.best})
if jax.process_index() == 0:
    np.savez(f"{args.out}.npz", **dict(core.named_leaves(found)))
