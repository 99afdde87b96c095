"""The build that checks itself: refused where it would replace the library in use, and never skipped in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / ".ci" / "sanitize"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the tests do not stand beside the sources here")


def run(*command: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def test_it_does_not_replace_the_library_in_use():
    before = sorted((p.name, p.stat().st_mtime_ns) for p in (ROOT / "avfast").glob("*.so"))
    found = run(sys.executable, "setup.py", "-q", "build_ext", "--inplace", AVFAST_SANITIZE="address")
    if "No module named" in found.stderr:
        pytest.skip("building needs setuptools and pybind11")
    assert found.returncode == 1 and "AVFAST_SANITIZE would replace the library in use" in found.stderr
    assert sorted((p.name, p.stat().st_mtime_ns) for p in (ROOT / "avfast").glob("*.so")) == before


def test_a_compiler_without_sanitizers_fails_aloud(tmp_path):
    """GCC repeats the bare name of a library that it does not have."""
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\necho "${1#-print-file-name=}"\n')
    compiler.chmod(0o755)
    found = run(str(SCRIPT), CXX=str(compiler), PY=sys.executable)
    assert found.returncode == 1 and "has no libasan; install it" in found.stderr


def test_a_library_without_sanitizers_is_no_evidence():
    found = run(sys.executable, "tests/sanitize_child.py", "--calls", "1", OMP_NUM_THREADS="1")
    assert found.returncode == 1 and "was built without a sanitizer" in found.stderr
