#!/usr/bin/env bash
# Several hosts on one machine: each has its own network, address, hostname, /etc/hosts, sshd, process table and /dev/shm, and all
# share the file system, like a small cluster with a common file server. `deepspeed --hostfile` can't tell the difference.
#
#   hosts.sh up FOLDER N        make host1 ... hostN; FOLDER holds keys, configuration and a DeepSpeed hostfile with 2 slots each
#   hosts.sh on FOLDER K CMD    run CMD on hostK, in this directory and with this environment
#   hosts.sh down FOLDER        stop everything that runs there and remove the hosts
#
# Needs root, iproute2, util-linux, openssh-server and openssh-client. The hosts reach each other and nothing else. One set can
# exist at a time, since names and addresses are fixed.
set -euo pipefail
BRIDGE=ngpt-bridge
NETWORK=10.78.0

address() { echo "$NETWORK.$((10 + $1))"; }
space() { echo "ngpt-host$1"; }

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
  local name=$2
  ip netns add "$name"
  ip link add "ngpt-cable$1" type veth peer name eth0 netns "$name"
  ip link set "ngpt-cable$1" master $BRIDGE up
  ip -n "$name" address add "$(address "$1")/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up
}

# The host's first process is its sshd: when that ends, the kernel ends all others of the host.
boot() {
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

wait_for_doors() {
  local folder=$1 k
  for k in $(seq "$2"); do
    for _ in $(seq 100); do
      ("$0" on "$folder" 1 ssh -o ConnectTimeout=2 "host$k" true) 2> /dev/null && continue 2
      sleep 0.1
    done
    echo "host$k does not answer:" >&2
    cat "$folder/host$k.log" >&2
    return 1
  done
}

up() {
  local folder count=$2 k
  down "$1"
  mkdir -p "$1" /run/sshd
  folder=$(realpath "$1")
  rm -f "$folder/hostfile" "$folder"/key*
  ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
  ip link add $BRIDGE type bridge
  ip link set $BRIDGE up
  for k in $(seq "$count"); do
    write_configuration "$folder" "$k" "$count"
    plug_in "$k" "$(space "$k")"
    boot "$folder" "$k"
    echo "host$k slots=2" >> "$folder/hostfile"
  done
  wait_for_doors "$folder" "$count"
}

down() {
  local pid_file name
  for pid_file in "$1"/host*.pid; do
    [ -e "$pid_file" ] || continue
    kill -KILL "$(cat "$pid_file")" 2> /dev/null || true
    rm "$pid_file"
  done
  for name in $(ip netns list | awk '/^ngpt-host/ {print $1}'); do
    ip netns delete "$name"
    rm -rf "/etc/netns/$name"
  done
  ip link delete $BRIDGE 2> /dev/null || true
}

case "${1:-}" in
  up | on | down) "$@" ;;
  *) sed -n '2,11p' "$0"; exit 2 ;;
esac
