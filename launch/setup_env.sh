# Sourced by the scripts that a person runs: a Python environment with this project in it.
#
#   set_up_environment EXTRAS     EXTRAS of setup.py, comma-separated, or ''
#
# Uses the active virtual environment, else .venv in the repository, which it makes. Versions come from constraints.txt. A stamp
# in the environment remembers what was installed, so that the next start loses no time.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

set_up_environment() {
  local extras=$1 stamp wanted
  if [ -z "${VIRTUAL_ENV:-}" ]; then
    [ -e "$REPOSITORY/.venv/bin/activate" ] || python3 -m venv "$REPOSITORY/.venv"
    source "$REPOSITORY/.venv/bin/activate"
  fi
  stamp=$VIRTUAL_ENV/.megatron_ngpt-${extras:-plain}
  wanted=$REPOSITORY$'\n'$(cat "$REPOSITORY/setup.py" "$REPOSITORY/constraints.txt")
  [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || return 0
  echo "Installing into $VIRTUAL_ENV ..."
  python -m pip install -qq --disable-pip-version-check -c "$REPOSITORY/constraints.txt" -e "$REPOSITORY${extras:+[$extras]}" || return
  echo "$wanted" > "$stamp"
}
