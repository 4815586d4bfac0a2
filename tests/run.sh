#!/usr/bin/env bash
# Sets up what the tests need and runs them. Arguments go to pytest; without any, the heavy ones are left out.
#
#   tests/run.sh                       the default tests
#   tests/run.sh -m heavy              the heavy ones
#   tests/run.sh -m long               those for which CI has no time
#   tests/run.sh -m soak               an hour of faults on test hosts (NGPT_SOAK_MINUTES)
#   tests/run.sh tests/data -k index   some of them
set -euo pipefail
source "$(dirname "$0")/../launch/setup_env.sh"
cd "$REPOSITORY"

# The tests of several hosts use network namespaces, sshd, pdsh and a clock that lies, heavy ones mpirun and a browser. Where these can't be had,
# the tests say so.
install_system_packages() {
  local missing=()
  command -v ip > /dev/null || missing+=(iproute2)
  [ -x /usr/sbin/sshd ] || missing+=(openssh-server)
  command -v ssh > /dev/null || missing+=(openssh-client)
  command -v pdsh > /dev/null || missing+=(pdsh)
  command -v faketime > /dev/null || missing+=(faketime)
  if [[ " $* " =~ \ heavy\ |browser ]]; then # large packages
    command -v mpirun > /dev/null || missing+=(openmpi-bin)
    command -v chromium > /dev/null || missing+=(chromium)
    command -v chromedriver > /dev/null || missing+=(chromium-driver)
  fi
  [ ${#missing[@]} -gt 0 ] && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || return 0
  echo "Installing ${missing[*]} ..."
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } > /dev/null ||
    echo "Could not install ${missing[*]}." >&2
}

install_system_packages "$@"
set_up_environment test,study,hf
export DS_ACCELERATOR=cpu OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest -m "not heavy" "$@"
