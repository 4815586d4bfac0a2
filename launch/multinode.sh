#!/usr/bin/env bash
# Train on the hosts of a hostfile, through DeepSpeed's launcher, and go on by itself after whatever ends a run that is not done.
#
#   launch/multinode.sh [options] HOSTFILE RECIPE.yaml [--section.key=value ...]
#
#   --launcher NAME        what starts processes on the other hosts: pdsh (ssh), or DeepSpeed's openmpi, impi (MPICH too), slurm     [pdsh]
#   --launcher_args WORDS  more arguments for it
#   --no_ssh --node_rank K --master_addr A    in containers without ssh: the same command on every host, with its place in the hostfile
#   --master_addr A, --master_port P          where the ranks meet      [the first host's first address, 29500]
#   --no_preflight         don't look at the hosts first (ngpt preflight; needs ssh, so --no_ssh leaves it out too)
#   --pause SECONDS        before the same command is started again     [20]
#   --restarts N           give up after so many restarts without a new checkpoint in between     [5]
#
# The ranks get OMP_*, GLOO_*, NCCL_*, TORCH_*, DS_ACCELERATOR and LC_ALL of this shell, the lines of .deepspeed_env (of the home
# directory, then of this one; DS_ENV_FILE names another), and NGPT_RESTART, how often this command has started them again.
#
# Exit status: 0 trained to the end; 2 a mistake that a second start would meet again; 75 stopped with a checkpoint by SIGTERM, SIGUSR1, SIGINT
# or SIGHUP to this script, which ends when the ranks have saved (a second signal does not wait), or without ssh by the end of one host's
# launcher. After any other end it starts the same command again, and the run continues from its newest checkpoint; who gives up ends with the
# run's status.
set -uo pipefail

usage() { sed -n '2,23s/^# \{0,1\}//p' "$0"; }

launcher=pdsh launcher_args="" pause=20 restarts=5 preflight=yes ssh=yes node_rank="" meeting=() master="" port=29500
while [[ ${1:-} == -* ]]; do
  case $1 in
    --launcher) launcher=$2; shift 2 ;;
    --launcher_args) launcher_args=$2; shift 2 ;;
    --no_ssh) ssh=no; shift ;;
    --node_rank) node_rank=$2; shift 2 ;;
    --master_addr) master=$2 meeting+=("$1" "$2"); shift 2 ;;
    --master_port) port=$2 meeting+=("$1" "$2"); shift 2 ;;
    --no_preflight) preflight=no; shift ;;
    --restarts) restarts=$2; shift 2 ;;
    --pause) pause=$2; shift 2 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "$1: no option of this script; options of the run come behind RECIPE.yaml (--help)" >&2; exit 2 ;;
  esac
done
[ $# -ge 2 ] || { usage >&2; exit 2; }
hostfile=$1
shift
[ "$launcher" != mpich ] || { echo "--launcher mpich: its runner ends with 0 whatever the ranks say; take impi, for MPICH too" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[ -f "$hostfile" ] || { echo "$hostfile: no such hostfile; write a line a host: NAME slots=RANKS" >&2; exit 2; }
[ "$ssh" = yes ] || [ -n "$node_rank" ] || { echo "--no_ssh: needs --node_rank K, this host's place in $hostfile, from 0" >&2; exit 2; }

master=${master:-$(awk '!/^[[:space:]]*(#|$)/ { print $1; exit }' "$hostfile")}
given=${DS_ENV_FILE:-.deepspeed_env}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# DeepSpeed takes NAME=value lines alone: comments and empty lines would end it.
write_environment() {
  { env | grep -E '^(OMP_|GLOO_|NCCL_|TORCH_|DS_ACCELERATOR=|LC_ALL=)'
    for place in ~ .; do
      file=$place/$given
      [[ $given != /* ]] || file=$given
      [ ! -f "$file" ] || grep -vE '^[[:space:]]*(#|$)' "$file"
    done
    [ "$launcher" != openmpi ] || printf '%s\n' "MASTER_ADDR=$master" "MASTER_PORT=$port"   # which mpirun tells nobody
    echo "NGPT_RESTART=$1"; } > "$folder/environment"
  export DS_ENV_FILE=$folder/environment NGPT_RESTART=$1
}

stopped=""
stop() { stopped=yes; [ -z "${child:-}" ] || kill -TERM "$child" 2> /dev/null; }
trap stop TERM INT USR1 HUP

# In the background, so that a signal reaches this script at once; `wait` returns early when one does.
run() {
  "$@" &
  child=$! last=$!
  wait "$child"
  status=$?
  while kill -0 "$child" 2> /dev/null; do wait "$child"; status=$?; done
  child=""
}

start=(deepspeed --hostfile "$hostfile" --force_multi --launcher "$launcher" "${meeting[@]}")
[ -z "$launcher_args" ] || start+=("--launcher_args=$launcher_args")   # words that begin with a dash too
[ "$ssh" = yes ] || start=(deepspeed --hostfile "$hostfile" --no_ssh --node_rank "$node_rank" "${meeting[@]}")

# ssh that only listens waits for ever for a host without power. So it asks: a host that has booted says no, and of one that is not there
# the kernel despairs (a quarter of an hour by Linux's defaults), not ssh: a cut that the watchdogs allow is survived. The user's words come first.
export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} -o ServerAliveInterval=15 -o ServerAliveCountMax=140"

write_environment 0
if [ "$preflight" = yes ] && [ "$ssh" = yes ]; then
  run python -m megatron_ngpt preflight --hostfile "$hostfile" "${meeting[@]}" "$@"
  [ -z "$stopped" ] || exit 75
  [ "$status" = 0 ] || exit "$status"
fi
# Ranks outlive their launcher, and save. One that was killed leaves pdsh and its ssh behind: told to end, they end the ranks' sessions, and the
# ranks stop with a checkpoint.
end_leftovers() {
  for process in $(pgrep -g "$1"); do pkill -TERM -P "$process"; done   # each ssh has a group of its own
  pkill -TERM -g "$1"
}

# Whether nobody had the run directory any more; waits until it is so.
free() {
  run python "$here/run_directory.py" free "$@"
  [ "$status" = 0 ]
}

# The ranks count restarts themselves, and refuse one too many with status 2; this count ends a launcher that starts no ranks.
in_vain=0 newest=$(python "$here/run_directory.py" newest "$@") || exit
for ((restart = 0; ; restart++)); do
  write_environment "$restart"
  run setsid "${start[@]}" "$here/pretrain.py" "$@"   # a process group of its own
  ended=$status
  [ -z "$stopped" ] || { free "$@"; exit 75; }
  case $ended in
    0) { [ "$ssh" = no ] || free "$@"; } && exit 0; ended=137 ;;   # of a pdsh that was killed, deepspeed says that all went well
    2 | 75) exit "$ended" ;;
    12[89] | 1[3-8]?)   # killed by a signal
      [ "$ssh" = no ] || end_leftovers "$last"
      free "$@"
      [ "$ssh" = yes ] || exit 75 ;;   # as the other hosts' ranks have told their loops
  esac
  [ -z "$stopped" ] || exit 75
  before=$newest newest=$(python "$here/run_directory.py" newest "$@")
  [ "$newest" = "$before" ] && in_vain=$((in_vain + 1)) || in_vain=0
  if [ "$in_vain" -gt "$restarts" ]; then
    echo "$restarts restarts without a new checkpoint: the run ended with status $ended, its logs tell why; not started again" >&2
    exit "$ended"
  fi
  echo "the run ended with status $ended at checkpoint $newest; it is started again in $pause seconds (restart $((restart + 1)))" >&2
  run sleep "$pause"
  [ -z "$stopped" ] || exit 75
done
