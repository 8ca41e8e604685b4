"""`make` on machines that lack something: one line that says what to install, and no failure where none is needed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="make is not installed")


def make(bin_folder: Path, *args: str, **commands: str) -> subprocess.CompletedProcess[str]:
    """Run make where the only commands are these shell scripts."""
    for name, script in commands.items():
        command = bin_folder / name.replace("_", "-")
        command.write_text(f"#!/bin/sh\n{script}\n")
        command.chmod(0o755)
    return subprocess.run(
        [str(MAKE), *args], cwd=ROOT, env={"PATH": str(bin_folder)}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("target", "package"), [("browser", "chromium"), ("sandbox", "bubblewrap")])
@pytest.mark.parametrize("user", ["0", "1000"])
def test_what_apt_does_not_have_is_named_in_one_line_and_the_build_goes_on(
    tmp_path: Path, target: str, package: str, user: str
) -> None:
    done = make(tmp_path, target, id=f"echo {user}", apt_get="echo E: no such package >&2; exit 100")
    assert done.returncode == 0, done.stderr
    assert f"sudo apt-get install {package}" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not done.stderr


def test_root_gets_the_browser_installed_and_hears_nothing(tmp_path: Path) -> None:
    made = tmp_path / "chromium"
    apt = f'case "$*" in *chromium) echo "#!/bin/sh" > {made}; /bin/chmod +x {made};; esac'
    done = make(tmp_path, "browser", id="echo 0", apt_get=apt)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_python_without_venv_is_told_which_package_is_missing(tmp_path: Path) -> None:
    done = make(tmp_path, "env", f"VENV={tmp_path / 'new'}", "PYTHON=py", py='[ "$1" != -m ]')
    assert done.returncode != 0
    assert "sudo apt-get install python3-venv" in done.stderr


@pytest.mark.parametrize("mine", [True, False])
def test_records_of_a_gpu_go_where_they_are_asked_to_and_the_first_failure_ends_it(tmp_path: Path, mine: bool) -> None:
    kept = tmp_path / "mine"
    run = {"mkdir": 'exec /bin/mkdir "$@"', "py": f'echo "$@" >> {tmp_path / "calls"}; [ "$4" != offline ]'}
    done = make(tmp_path, "bench-gpu", "PYTHON=py", *([f"RESULTS={kept}"] if mine else []), **run)
    assert done.returncode != 0
    assert kept.is_dir() == mine
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"-m reference_impl.cli bench {suite}" + (f" --json {kept / suite}.json" if mine else "")
        for suite in ("kernels", "offline")
    ]
