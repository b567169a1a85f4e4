#!/usr/bin/env bash
#SBATCH --job-name=dreamer4
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@300
# Trains on a Slurm cluster. Slurm sends SIGTERM 300 seconds before the time
# limit, and when it preempts: the training saves, exits with 75, and goes back
# into the queue. Not yet run on a real cluster.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: sbatch [SBATCH OPTIONS] slurm.sh TRAIN...

Runs `dreamer4 train TRAIN... --distributed` in every task of the job. JAX gives
each task one GPU: ask for as many tasks as GPUs per node, and for the GPUs by
node, not by task. On nodes without GPUs one task is enough.

environment:
  VENV               virtual environment with dreamer4, which all nodes see
                     (default: .venv)
  RESTARTS           how often the job may be queued again (default: 100)

Run it in the root of the checkout. The run directory and the dataset must lie
where all nodes see them.

example:
  sbatch --nodes=4 --gpus-per-node=8 --ntasks-per-node=8 --cpus-per-task=12 \
    --time=24:00:00 experiments/launch/slurm.sh experiments/my_run.py \
    --run-dir runs/my_run --mesh data=1,fsdp=-1,tensor=1
EOF
}

die() {
  echo "slurm.sh: $*" >&2
  exit 2
}

case "${1:---help}" in
  -h | --help) usage && exit 0 ;;
esac
[[ -n "${SLURM_JOB_ID:-}" ]] || die 'must be started by sbatch; --help says how'
dreamer4="${VENV:-.venv}/bin/dreamer4"
[[ -x "$dreamer4" ]] || die "$dreamer4: no such program; set VENV"

# The tasks get the signal from Slurm; this shell must live to read their code.
asked=0
trap 'asked=1' TERM
# A task that ends first must not take the others down while they save.
srun --kill-on-bad-exit=0 "$dreamer4" train "$@" --distributed </dev/null &
tasks=$!
while true; do
  code=0
  wait "$tasks" || code=$?
  # A signal cuts the wait short; the tasks go on.
  if ((asked)) && ((code > 128)); then
    asked=0
    continue
  fi
  break
done

if ((code == 75)); then
  if ((${SLURM_RESTART_COUNT:-0} >= ${RESTARTS:-100})); then
    die 'RESTARTS is used up'
  fi
  echo "slurm.sh: saved; job $SLURM_JOB_ID goes back into the queue" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
