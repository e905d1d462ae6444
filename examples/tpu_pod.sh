#!/bin/bash
# The same sampling job on every worker of a TPU pod: `examples/tpu_pod.sh NAME ZONE`. JAX finds the other workers by
# itself; OUT must be a folder that all workers see (a mounted bucket or NFS). Run it again after a pre-emption and it
# goes on where it stopped.
set -euo pipefail
NAME=${1:?usage: tpu_pod.sh NAME ZONE}
ZONE=${2:?usage: tpu_pod.sh NAME ZONE}
MODEL=${MODEL:-examples/doctor_visits.py:posterior}
OUT=${OUT:-/mnt/runs/doctor_visits}

gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="
  cd jaxprob &&
  uv run --frozen --extra tpu --extra examples \
    jaxprob sample '$MODEL' --distributed --chains 64 --warmup 1000 --draws 2000 --out '$OUT' --resume"
