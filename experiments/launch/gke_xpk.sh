#!/usr/bin/env bash
# Submits a training to a GKE cluster with TPUs through XPK.
# docs/tpu.md explains the steps. Not yet run on a real cluster.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: gke_xpk.sh TRAIN...

Runs `dreamer4 train TRAIN... --distributed` on every host of a slice. The
cluster restarts it after exit code 75, and after a host was lost.

environment:
  PROJECT, ZONE      of Google Cloud
  CLUSTER            an XPK cluster (xpk cluster create)
  TPU_TYPE           for example v5p-512 (counts cores: 256 chips)
  IMAGE              docker image with this package and its `tpu` extra
  WORKLOAD           name of the job (default: dreamer4)
  STORAGE            name of an XPK storage that holds datasets and runs; it is
                     mounted where `xpk storage attach` said
  RESTARTS           how often the cluster restarts it (default: 100)
  GRACE              seconds between SIGTERM and SIGKILL (default: 300); a step
                     and a save must fit, where the machine allows so long
  PRIORITY           very-low, low, medium (default), high or very-high

example:
  export PROJECT=my-project ZONE=us-east5-a CLUSTER=tpus TPU_TYPE=v5p-512
  export IMAGE=my-image STORAGE=dreamer4-files
  gke_xpk.sh experiments/my_run.py --run-dir /mnt/dreamer4/runs/my_run \
    --mesh data=1,fsdp=-1,tensor=1
EOF
}

die() {
  echo "gke_xpk.sh: $*" >&2
  exit 2
}

case "${1:---help}" in
  -h | --help) usage && exit 0 ;;
esac
for name in PROJECT ZONE CLUSTER TPU_TYPE IMAGE STORAGE; do
  [[ -n "${!name:-}" ]] || die "$name is not set; --help lists what is needed"
done
command -v xpk >/dev/null || die 'xpk is not installed; it is a Python package'

# XPK restarts after 42 and 127 to 255 by itself, which are lost hosts and
# aborts of the runtime, and after what is named here. 1 and 2 are mistakes.
exec xpk workload create \
  --project="$PROJECT" \
  --zone="$ZONE" \
  --cluster="$CLUSTER" \
  --workload="${WORKLOAD:-dreamer4}" \
  --tpu-type="$TPU_TYPE" \
  --num-slices=1 \
  --docker-image="$IMAGE" \
  --storage="$STORAGE" \
  --priority="${PRIORITY:-medium}" \
  --max-restarts="${RESTARTS:-100}" \
  --restart-on-exit-codes=75 \
  --termination-grace-period-seconds="${GRACE:-300}" \
  --command="exec dreamer4 train $(printf '%q ' "$@")--distributed"
