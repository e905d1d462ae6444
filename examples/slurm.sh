#!/bin/bash
# A sampling job on several nodes of a Slurm cluster. Submit it with `sbatch examples/slurm.sh`; when the job is pre-empted
# or runs into its time limit, Slurm sends SIGTERM, every process finishes its chunk, a checkpoint is written, jaxprob
# exits with 75, and this script asks for the same job again, which goes on where it stopped.
#SBATCH --job-name=jaxprob
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

MODEL=${MODEL:-examples/doctor_visits.py:posterior}
OUT=${OUT:-runs/$SLURM_JOB_NAME-$SLURM_JOB_ID}

srun --kill-on-bad-exit=0 jaxprob sample "$MODEL" --distributed --chains 64 --warmup 1000 --draws 2000 \
  --out "$OUT" --resume
status=$?
if [ "$status" -eq 75 ]; then
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
