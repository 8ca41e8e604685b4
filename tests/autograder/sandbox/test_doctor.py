"""Every deny of every tier fires here, and every control works: the sandbox is tried, not believed."""

from __future__ import annotations

import os
import py_compile
from pathlib import Path

import pytest

from autograder.sandbox import tiers
from autograder.sandbox.doctor import BOXED_ONLY, PROBES, examine

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("tier", ["bubblewrap", "unshare"])
def test_every_deny_is_refused_and_every_control_works(tier: str) -> None:
    if not tiers.works(tier):
        pytest.skip(f"the tier {tier} does not work on this machine")
    findings = list(examine(tier, ROOT, os.getpid()))
    assert len(findings) == PROBES.count("\ndef ")
    assert [f"{f.probe}: {f.detail}" for f in findings if not f.ok] == []


def test_without_a_sandbox_the_doctor_says_what_is_not_denied() -> None:
    findings = {finding.probe: finding.ok for finding in examine("none", ROOT, os.getpid())}
    assert {probe for probe, ok in findings.items() if not ok} == set(BOXED_ONLY)


def test_auto_never_chooses_to_run_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "works", lambda tier: False)
    with pytest.raises(tiers.NoSandbox, match="hidden grading is refused"):
        tiers.choose("auto")


def test_a_tier_asked_for_by_name_must_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "works", lambda tier: False)
    with pytest.raises(tiers.NoSandbox, match="bubblewrap"):
        tiers.choose("bubblewrap")
    assert tiers.choose("none") == "none"


def test_an_unknown_tier_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'docker'"):
        tiers.choose("docker")


def test_a_box_that_does_not_open_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "interpreter", lambda: "/nowhere/python")
    findings = list(examine("none", ROOT, os.getpid()))
    assert findings
    assert not any(finding.ok for finding in findings)


def test_the_mount_point_never_hides_what_is_to_be_mounted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers.os.path, "isdir", lambda folder: folder in tiers.MOUNT_POINTS)
    assert tiers._mount_point(["/home/x/labkit"]) == "/mnt"
    assert tiers._mount_point(["/mnt/c/labkit", "/tmp/clone/worker"]) == "/media"
    with pytest.raises(tiers.NoSandbox, match="/mnt, /media, /srv, /tmp"):
        tiers._mount_point([f"{folder}/x" for folder in tiers.MOUNT_POINTS])


def test_a_deny_that_fails_for_another_reason_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from autograder.sandbox import doctor

    broken = "import ctypes, os, socket, threading\n\ndef deny_fork():\n    os.frok()\n"
    monkeypatch.setattr(doctor, "PROBES", broken)
    (finding,) = doctor.examine("none", ROOT, os.getpid())
    assert not finding.ok
    assert "AttributeError" in finding.detail


def test_every_deny_says_how_it_must_be_refused() -> None:
    from autograder.sandbox.doctor import REFUSALS

    denies = {line[4:].partition("(")[0] for line in PROBES.splitlines() if line.startswith("def deny_")}
    assert set(REFUSALS) == denies


def test_a_package_that_nobody_compiled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("swift", "slow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("x = 1\n")
        (tmp_path / f"{name}-1.dist-info").mkdir()
        (tmp_path / f"{name}-1.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 1\n")
        (tmp_path / f"{name}-1.dist-info" / "RECORD").write_text(f"{name}/__init__.py,,\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    py_compile.compile(str(tmp_path / "swift" / "__init__.py"))
    assert tiers.without_bytecode(["swift", "slow"]) == [tmp_path / "slow"]
