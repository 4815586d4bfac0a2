#!/usr/bin/env bash
# Several hosts on one machine: each has its own network, address, hostname, /etc/hosts, sshd, process table and /dev/shm, and all
# share the file system, like a small cluster with a common file server. `deepspeed --hostfile` can't tell the difference.
#
#   hosts.sh up FOLDER SLOTS...    make host1, host2, ...; FOLDER holds keys and a DeepSpeed hostfile with so many slots of each
#   hosts.sh on FOLDER K CMD       run CMD on hostK, in this directory and with this environment
#   hosts.sh cut FOLDER K          unplug hostK: nothing arrives and nobody is told
#   hosts.sh slow FOLDER K RATE    limit hostK's cable in both directions, to 20mbit for example
#   hosts.sh mend FOLDER K         plug hostK in again, with its whole rate
#   hosts.sh kill FOLDER K         hostK's power fails: its processes end, and its peers hear nothing of it
#   hosts.sh boot FOLDER K         hostK is there again, with no process of before
#   hosts.sh down FOLDER           stop everything that runs there and remove the hosts
#
# A host has its own mounts: `hosts.sh on FOLDER 2 mount --bind A B` gives host2 other files. Needs root, iproute2, util-linux,
# openssh-server and openssh-client. The hosts reach each other and nothing else. One set can exist at a time, since names and
# addresses are fixed.
set -euo pipefail
BRIDGE=ngpt-bridge
NETWORK=10.78.0

address() { echo "$NETWORK.$((10 + $1))"; }
space() { echo "ngpt-host$1"; }
cable() { echo "ngpt-cable$1"; }

# What `ip netns exec` lays over /etc: the hosts' names, and keys that open every door.
write_configuration() {
  local folder=$1 k=$2 count=$3 etc
  etc=/etc/netns/$(space "$k")
  mkdir -p "$etc/ssh"
  echo "127.0.0.1 localhost" > "$etc/hosts"
  for j in $(seq "$count"); do echo "$(address "$j") host$j" >> "$etc/hosts"; done
  ssh-keygen -q -t ed25519 -N '' -f "$etc/ssh/host_key"
  cat > "$etc/ssh/sshd_config" <<CONFIGURATION
ListenAddress $(address "$k")
HostKey /etc/ssh/host_key
AuthorizedKeysFile $folder/key.pub
PasswordAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
CONFIGURATION
  cat > "$etc/ssh/ssh_config" <<CONFIGURATION
Host *
  IdentityFile $folder/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
CONFIGURATION
}

plug_in() {
  local name
  name=$(space "$1")
  ip netns add "$name"
  ip link add "$(cable "$1")" type veth peer name eth0 address "02:00:00:00:00:$(printf %02x "$1")" netns "$name"
  ip link set "$(cable "$1")" master $BRIDGE up
  ip -n "$name" address add "$(address "$1")/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
}

# The host's first process is its sshd: when that ends, the kernel ends all others of the host.
start() {
  local folder=$1 k=$2
  setsid ip netns exec "$(space "$k")" unshare --uts --ipc --pid --fork --mount-proc --kill-child sh -c \
    "hostname host$k && mount -t tmpfs tmpfs /dev/shm && exec /usr/sbin/sshd -D" > "$folder/host$k.log" 2>&1 < /dev/null &
  echo $! > "$folder/host$k.pid"
}

first_process() { cat "/proc/$(cat "$1/host$2.pid")/task/"*/children; }

on() {
  local folder=$1 k=$2
  shift 2
  # shellcheck disable=SC2046  # one number, with a space behind it
  exec nsenter --target $(first_process "$folder" "$k") --mount --uts --ipc --net --pid --wd="$PWD" "$@"
}

cut() { ip link set "$(cable "$2")" down; }

slow() {
  local limit=(root tbf rate "$3" burst 64kb latency 50ms)
  tc qdisc replace dev "$(cable "$2")" "${limit[@]}"
  tc -n "$(space "$2")" qdisc replace dev eth0 "${limit[@]}"
}

mend() {
  tc qdisc delete dev "$(cable "$2")" root 2> /dev/null || true
  tc -n "$(space "$2")" qdisc delete dev eth0 root 2> /dev/null || true
  ip link set "$(cable "$2")" up
}

# Without its cable first, or the kernel would say good-bye for the processes that end.
kill_host() {
  ip link delete "$(cable "$2")" 2> /dev/null || true
  [ -e "$1/host$2.pid" ] || return 0
  kill -KILL "$(cat "$1/host$2.pid")" 2> /dev/null || true
  while grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$(cat "$1/host$2.pid")/status" 2> /dev/null; do sleep 0.02; done # a container may bury no orphan
  rm "$1/host$2.pid"
  ip netns delete "$(space "$2")"
}

boot() {
  plug_in "$2"
  start "$1" "$2"
  wait_for_door "$1" "$2"
}

wait_for_door() {
  local folder=$1 k=$2
  for _ in $(seq 100); do
    ("$0" on "$folder" "$k" ssh -o ConnectTimeout=2 "host$k" true) 2> /dev/null && return
    sleep 0.1
  done
  echo "host$k does not answer:" >&2
  cat "$folder/host$k.log" >&2
  return 1
}

up() {
  local folder k
  down "$1"
  mkdir -p "$1" /run/sshd
  folder=$(realpath "$1")
  shift
  rm -f "$folder/hostfile" "$folder"/key*
  ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
  ip link add $BRIDGE type bridge
  ip link set $BRIDGE up
  for k in $(seq $#); do
    write_configuration "$folder" "$k" $#
    plug_in "$k"
    start "$folder" "$k"
    echo "host$k slots=${!k}" >> "$folder/hostfile"
  done
  for k in $(seq $#); do wait_for_door "$folder" "$k"; done
}

# Also what a test left that was killed itself.
down() {
  local name
  rm -f "$1"/host*.pid
  for name in $(ip netns list | awk '/^ngpt-host/ {print $1}'); do
    ip netns pids "$name" | xargs --no-run-if-empty kill -KILL 2> /dev/null || true
    ip link delete "$(cable "${name#ngpt-host}")" 2> /dev/null || true # the kernel itself takes its time
    ip netns delete "$name"
  done
  rm -rf /etc/netns/ngpt-host*
  ip link delete $BRIDGE 2> /dev/null || true
}

case "${1:-}" in
  up | on | cut | slow | mend | boot | down) "$@" ;;
  kill) kill_host "${@:2}" ;;
  *) sed -n '2,17p' "$0"; exit 2 ;;
esac
