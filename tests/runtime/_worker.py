"""A run in a process of its own, to be killed: says a line at each chunk. Used by the tests of resume and processes."""

import argparse
import os

parser = argparse.ArgumentParser()
parser.add_argument("out")
parser.add_argument("--devices", type=int, default=2)
parser.add_argument("--target", default="elementwise")
parser.add_argument("--chains", type=int, default=8)
parser.add_argument("--warmup", type=int, default=200)
parser.add_argument("--draws", type=int, default=400)
parser.add_argument("--size", type=int, default=4)
parser.add_argument("--coordinator")
parser.add_argument("--process", type=int)
parser.add_argument("--every", type=float, default=0.0)
parser.add_argument("--step", action="store_true", help="one cheap step a draw in place of NUTS with its warm-up")
parser.add_argument("--chunk", type=float, default=0.05, help="seconds a chunk")
args = parser.parse_args()

os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={args.devices}"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402

if args.coordinator:
    from jaxprob import runtime

    runtime.connect(args.coordinator, 2, args.process)

import jaxprob  # noqa: E402
from jaxprob.runtime import _loop  # noqa: E402
from tests.runtime import _targets  # noqa: E402

_loop.SECONDS_PER_CHUNK = args.chunk


class Lines:
    """Tells the test where the run is."""

    def start(self, plan):
        print("start", flush=True)

    def phase(self, name):
        pass

    def update(self, status):
        print("update", status["step"], status["total"], flush=True)

    def finish(self, message):
        print("finish", message, flush=True)

    def close(self):
        pass


target, initial = getattr(_targets, args.target)(args.size)
options = {"algorithm": _targets.random_walk(target), "warmup": args.warmup} if args.step else {"warmup": args.warmup}
result = jaxprob.sample(
    target,
    jax.random.key(7),
    initial=initial,
    chains=args.chains,
    draws=args.draws,
    out=args.out,
    resume=True,
    progress=Lines(),
    checkpoint_every=args.every,
    **options,
)
print("status", result.status, flush=True)
