# Sourced by the scripts that a person runs: a Python environment with this project in it.
#
#   set_up_environment EXTRAS     EXTRAS of setup.py, comma-separated, or ''
#
# Uses the active virtual environment, else .venv in the repository, which it makes. Versions come from constraints.txt. A stamp
# in the environment remembers what was installed, so that the next start loses no time. An environment has its own path written into
# its scripts: one that was moved or copied with its clone would install into the old place, and is made anew. That of another clone that
# is still there is left alone.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

set_up_environment() {
  local extras=$1 stamp wanted own
  if [ -z "${VIRTUAL_ENV:-}" ] || [ ! -x "$VIRTUAL_ENV/bin/python" ] || belongs_to_another_clone "$VIRTUAL_ENV"; then
    own=$REPOSITORY/.venv
    [ ! -e "$own/bin/activate" ] || (unset VIRTUAL_ENV; source "$own/bin/activate"; [ "$VIRTUAL_ENV" -ef "$own" ]) ||
      { echo "$own was made in another place: making it anew"; rm -rf "$own"; }
    [ -e "$own/bin/activate" ] || python3 -m venv "$own"
    source "$own/bin/activate"
  fi
  stamp=$VIRTUAL_ENV/.megatron_ngpt-${extras:-plain}
  wanted=$REPOSITORY$'\n'$(cat "$REPOSITORY/setup.py" "$REPOSITORY/constraints.txt")
  [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
  echo "Installing into $VIRTUAL_ENV ..."
  python -m pip install -qq --disable-pip-version-check -c "$REPOSITORY/constraints.txt" -e "$REPOSITORY${extras:+[$extras]}" || return
  echo "$wanted" > "$stamp"
}

# Whether an environment was installed by the scripts of another clone, and that clone is still there: their stamps begin with its path.
belongs_to_another_clone() {
  local stamp home
  for stamp in "$1"/.megatron_ngpt-*; do
    [ -e "$stamp" ] || continue
    read -r home < "$stamp"
    [ "$home" -ef "$REPOSITORY" ] || [ ! -e "$home/launch/setup_env.sh" ] || return 0
  done
  return 1
}
