"""Which environment the scripts use, and install into."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.launch.conftest import ROOT

PIP = '#!/bin/sh\ncase "$*" in *"pip install"*) echo "installs into $VIRTUAL_ENV" ;; esac\n'  # in place of an environment's python


def clone(folder: Path) -> Path:
    """What the script needs of a clone."""
    (folder / "launch").mkdir(parents=True)
    for name in ("setup.py", "constraints.txt", "launch/setup_env.sh"):
        (folder / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    return folder


def environment(folder: Path) -> Path:
    """What looks like a virtual environment that was made there."""
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").write_text(f'export VIRTUAL_ENV="{folder}"\nexport PATH="$VIRTUAL_ENV/bin:$PATH"\n')
    (folder / "bin" / "python").write_text(PIP)
    (folder / "bin" / "python").chmod(0o755)
    return folder


@pytest.fixture
def set_up(tmp_path):
    """Sets up the environment of a clone, `python3 -m venv` being a matter of a moment; returns the lines that were printed."""
    (tmp_path / "tools").mkdir()
    python3 = tmp_path / "tools" / "python3"
    activate = 'printf \'export VIRTUAL_ENV="%s"\\nexport PATH="$VIRTUAL_ENV/bin:$PATH"\\n\' "$3" > "$3/bin/activate"'
    python3.write_text(f"#!/bin/sh\necho \"makes $3\"; mkdir -p \"$3/bin\"; {activate}\n"
                       f"cat > \"$3/bin/python\" << 'END'\n{PIP}END\nchmod +x \"$3/bin/python\"\n")
    python3.chmod(0o755)

    def run(where: Path, active: Path | None = None) -> list[str]:
        variables = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        variables["PATH"] = f"{active}/bin:{tmp_path}/tools:/usr/bin:/bin" if active else f"{tmp_path}/tools:/usr/bin:/bin"
        script = 'set -euo pipefail; source launch/setup_env.sh; set_up_environment ""'
        done = subprocess.run(["bash", "-c", script], cwd=where, capture_output=True, text=True, timeout=60,
                              env=variables | ({"VIRTUAL_ENV": str(active)} if active else {}))
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if not line.startswith("Installing")]

    return run


def test_a_clone_makes_its_own_environment_once(set_up, tmp_path):
    here = clone(tmp_path / "here")
    assert set_up(here) == [f"makes {here}/.venv", f"installs into {here}/.venv"]
    assert set_up(here) == []


def test_a_moved_clone_does_not_install_into_the_old_one(set_up, tmp_path):
    """Its environment still says where it was; whether something is there again or not."""
    old = clone(tmp_path / "old")
    set_up(old)
    old.rename(tmp_path / "new")
    new = tmp_path / "new"
    made = [f"{new}/.venv was made in another place: making it anew", f"makes {new}/.venv", f"installs into {new}/.venv"]
    assert set_up(new) == made
    assert set_up(new) == []
    environment(clone(tmp_path / "old") / ".venv")
    (new / ".venv" / "bin" / "activate").write_text(f'export VIRTUAL_ENV="{tmp_path}/old/.venv"\nexport PATH="$VIRTUAL_ENV/bin:$PATH"\n')
    assert set_up(new) == made


def test_the_active_environment_is_used_unless_it_is_another_clones_or_gone(set_up, tmp_path):
    here, there = clone(tmp_path / "here"), clone(tmp_path / "there")
    mine = environment(tmp_path / "mine")
    assert set_up(here, mine) == [f"installs into {mine}"]
    assert set_up(here, mine) == []
    assert set_up(there, mine) == [f"makes {there}/.venv", f"installs into {there}/.venv"]
    assert set_up(here, mine) == []
    assert set_up(there, tmp_path / "gone") == []
    here.rename(tmp_path / "moved")
    assert set_up(tmp_path / "moved", mine) == [f"installs into {mine}"]
