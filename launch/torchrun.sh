#!/usr/bin/env bash
# Train on several hosts without ssh, in containers for example: the same command on every host. torch's elastic agents find each other, start
# the ranks, and start them again when one dies; when a host is gone, with those that are left.
#
#   launch/torchrun.sh NODES[:MOST] RANKS FIRST_HOST[:PORT] RECIPE.yaml [--section.key=value ...]
#
#   NODES:MOST        number of hosts, or the fewest and the most with which the run may go on: 2 or 2:4
#   RANKS             on each host, one a GPU
#   FIRST_HOST:PORT   a host of the run that is always there; the agents meet at its port [29400]
#
# NGPT_MAX_RESTARTS (10) is how often ranks are started again before the agents give up.
# A checkpoint has no layout: with fewer or more hosts a run goes on wherever training.global_batch divides.
# Exit status: 0 trained to the end; 1 anything else, as torchrun's own: the last lines tell, and the run directory's events.jsonl.
set -euo pipefail
usage() { sed -n '2,14s/^# \{0,1\}//p' "$0"; }
[[ ${1:-} != -h && ${1:-} != --help ]] || { usage; exit 0; }
[ $# -ge 4 ] || { usage >&2; exit 2; }
nodes=$1 ranks=$2 first=$3
shift 3
[[ $first == *:* ]] || first=$first:29400
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Ranks meet at a new port after every restart. At the agents' common one they would take an attempt for another: each agent counts those alone
# in which its own ranks failed.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec torchrun --nnodes "$nodes" --nproc_per_node "$ranks" --max_restarts "${NGPT_MAX_RESTARTS:-10}" --rdzv_id "${NGPT_RUN_ID:-ngpt}" \
  --rdzv_backend c10d --rdzv_endpoint "$first" "$here/pretrain.py" "$@"
