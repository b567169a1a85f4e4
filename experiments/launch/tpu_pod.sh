#!/usr/bin/env bash
# Trains on a Cloud TPU slice, one process on each of its hosts.
# docs/tpu.md explains the steps. Not yet run on a real slice.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: tpu_pod.sh COMMAND [ARGUMENT...]

  create             ask for the slice, and wait until it is there
  setup              copy this checkout to every host and install it
  start TRAIN...     start `dreamer4 train TRAIN... --distributed` on every host
  watch TRAIN...     start, and start again after exit code 75 or a preemption
  log                follow the log of the first host
  status             exit code of every host, or 'running'
  stop               SIGTERM: save and exit with 75
  delete             give the slice back

environment:
  PROJECT, ZONE      of Google Cloud
  TPU_NAME           a name for the slice
  ACCELERATOR_TYPE   for example v5p-512 (counts cores: 256 chips)
  RUNTIME_VERSION    v2-alpha-tpuv5 for v5p, v2-alpha-tpuv5-lite for v5e,
                     v2-alpha-tpuv6e for v6e
  CAPACITY           spot (default), reserved, or on-demand
  SHARED             directory that all hosts see, for datasets and runs
                     (default: /mnt/dreamer4)
  MOUNT              command that mounts SHARED on a host; run by setup, must
                     do no harm if it is mounted already
  RESTARTS           how often watch starts again (default: 100)

example:
  export PROJECT=my-project ZONE=us-east5-a TPU_NAME=dreamer
  export ACCELERATOR_TYPE=v5p-512 RUNTIME_VERSION=v2-alpha-tpuv5
  export MOUNT='mountpoint -q /mnt/dreamer4 || sudo mount -t nfs 10.0.0.2:/share /mnt/dreamer4'
  tpu_pod.sh create && tpu_pod.sh setup
  tpu_pod.sh watch experiments/my_run.py --run-dir /mnt/dreamer4/runs/my_run \
    --mesh data=1,fsdp=-1,tensor=1
EOF
}

die() {
  echo "tpu_pod.sh: $*" >&2
  exit 2
}

need() {
  local name
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || die "$name is not set; --help lists what is needed"
  done
}

tpus() {
  gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE"
}

everywhere() {
  tpus tpu-vm ssh "$TPU_NAME" --worker=all --command="$1"
}

state() {
  tpus queued-resources describe "$TPU_NAME" --format='value(state.state)'
}

create() {
  need ACCELERATOR_TYPE RUNTIME_VERSION
  local how=()
  case "${CAPACITY:-spot}" in
    spot) how=(--spot) ;;
    reserved) how=(--reserved) ;;
    on-demand) ;;
    *) die "CAPACITY = $CAPACITY: must be spot, reserved or on-demand" ;;
  esac
  tpus queued-resources create "$TPU_NAME" --node-id="$TPU_NAME" \
    --accelerator-type="$ACCELERATOR_TYPE" \
    --runtime-version="$RUNTIME_VERSION" "${how[@]}"
  local now
  until now=$(state) && [[ "$now" == ACTIVE ]]; do
    [[ "$now" != FAILED ]] || die "the request failed; see: gcloud compute tpus queued-resources describe $TPU_NAME --project=$PROJECT --zone=$ZONE"
    echo "waiting for $ACCELERATOR_TYPE: $now" >&2
    sleep 60
  done
}

delete() {
  tpus queued-resources delete "$TPU_NAME" --force --quiet
}

setup() {
  local root archive
  root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
  archive=$(mktemp -d)/dreamer4.tar.gz
  # What is in the working tree and not ignored, uncommitted changes too.
  (cd "$root" && git ls-files -z --cached --others --exclude-standard |
    tar --null --ignore-failed-read -czf "$archive" --files-from=-)
  tpus tpu-vm scp "$archive" "$TPU_NAME:dreamer4.tar.gz" --worker=all
  # The images have an older Python than the package needs; uv brings one.
  everywhere "set -e
    sudo mkdir -p '$SHARED'
    ${MOUNT:-true}
    rm -rf ~/dreamer4/code && mkdir -p ~/dreamer4/code
    tar -xzf ~/dreamer4.tar.gz -C ~/dreamer4/code
    python3 -m pip install --user --quiet --upgrade uv
    test -d ~/dreamer4/venv || ~/.local/bin/uv venv --quiet --python 3.12 ~/dreamer4/venv
    ~/.local/bin/uv pip install --quiet --python ~/dreamer4/venv/bin/python -e ~/dreamer4/code'[tpu]'"
  # Hosts that see different directories would each begin a run of their own.
  local token="$SHARED/.dreamer4-$RANDOM$RANDOM"
  tpus tpu-vm ssh "$TPU_NAME" --worker=0 --command="touch '$token'"
  everywhere "test -e '$token'" || die "not all hosts see the same $SHARED; set MOUNT to what mounts it"
  tpus tpu-vm ssh "$TPU_NAME" --worker=0 --command="rm '$token'"
}

start() {
  (($#)) || die 'start: name an experiment file and the options of dreamer4 train'
  local train
  train=$(printf '%q ' "$@")
  # Detached, so that it outlives the connection. The exit code is kept.
  everywhere "set -e
    cd ~/dreamer4/code
    rm -f ~/dreamer4/exit_code
    if test -f ~/dreamer4/log; then mv ~/dreamer4/log ~/dreamer4/log.before; fi
    nohup setsid bash -c '
      \"\$0\" \"\$@\" & echo \$! > ~/dreamer4/pid
      wait \$!; echo \$? > ~/dreamer4/exit_code
    ' ~/dreamer4/venv/bin/dreamer4 train $train --distributed \
      > ~/dreamer4/log 2>&1 < /dev/null &"
}

status() {
  # shellcheck disable=SC2016  # For the hosts to expand.
  everywhere 'echo "exit_code $(hostname)" \
    "$(cat ~/dreamer4/exit_code 2>/dev/null || echo running)"'
}

stop() {
  # shellcheck disable=SC2016
  everywhere 'kill -TERM "$(cat ~/dreamer4/pid)" 2>/dev/null || true'
}

# Prints 'running', or the exit codes that occur; fails without a connection.
codes() {
  local found
  found=$(status) || return 1
  awk '$1 == "exit_code" { print $3 }' <<<"$found" | sort -u | tr '\n' ' '
}

watch() {
  local left="${RESTARTS:-100}" found
  start "$@"
  while sleep 60; do
    if [[ "$(state)" != ACTIVE ]]; then
      echo 'the slice was taken away; asking for another' >&2
      delete || true
      create
      setup
    elif ! found=$(codes); then
      echo 'no answer from the hosts; asking again' >&2
      continue
    elif [[ "$found" == *running* ]]; then
      continue
    elif [[ "$found" == '0 ' ]]; then
      echo 'finished' >&2
      return 0
    elif [[ "$found" != '75 ' ]]; then
      die "exit codes: $found; see tpu_pod.sh log. This does not heal by itself"
    fi
    ((left-- > 0)) || die 'RESTARTS is used up'
    echo "starting again; $left more times" >&2
    start "$@"
  done
}

main() {
  local command="${1:---help}"
  (($# == 0)) || shift
  case "$command" in
    -h | --help | help) usage && return ;;
    create | setup | start | watch | log | status | stop | delete) ;;
    *) usage >&2 && die "$command: no such command" ;;
  esac
  need PROJECT ZONE TPU_NAME
  SHARED="${SHARED:-/mnt/dreamer4}"
  if [[ "$command" == log ]]; then
    tpus tpu-vm ssh "$TPU_NAME" --worker=0 --command='tail -n 200 -F ~/dreamer4/log'
  else
    "$command" "$@"
  fi
}

main "$@"
