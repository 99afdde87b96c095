"""The program that runs kernels under ThreadSanitizer: no kernel is left out, and a race is reported."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from avfast.benches.soak import threads

ROOT = Path(__file__).resolve().parents[1]
FOLDER, SCRIPT = ROOT / "tests" / "threads", ROOT / ".ci" / "threads"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="the tests do not stand beside the sources here")


def named(pattern: str, *files: Path) -> set[str]:
    return {name for file in files for name in re.findall(pattern, file.read_text())}


def test_every_kernel_of_the_table_has_a_case():
    kernels = named(r"\(\*(\w+)\)\(const \w+Args&, const Parallel&\)", ROOT / "kernels" / "isa" / "table.h")
    called = named(r"AVFAST_CALL\(cases, (\w+),", *FOLDER.glob("*.cpp"))
    assert len(kernels) >= 25 and called == kernels


def test_every_family_of_cases_is_run():
    families = named(r"\nvoid (\w+)\(Cases& cases\);", FOLDER / "cases.h")
    assert len(families) >= 7 and named(r'\{"(\w+)", \1\}', FOLDER / "main.cpp") == families


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Path:
    if not shutil.which("make") or not shutil.which("g++"):
        pytest.skip("needs make and g++")
    if subprocess.run(["g++", "-print-file-name=libtsan.so"], capture_output=True, text=True).stdout == "libtsan.so\n":
        pytest.skip("g++ has no libtsan")
    out = tmp_path_factory.mktemp("threads")
    made = subprocess.run(
        ["make", "-s", "-C", str(FOLDER), "planted", f"OUT={out}"], capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    return out / "planted"


@pytest.mark.parametrize(("plant", "status"), [("sum", 66), ("row", 66), ("none", 0)])
def test_a_planted_race_is_reported(planted, plant, status):
    found = subprocess.run([planted, plant], capture_output=True, text=True, timeout=120)
    assert found.returncode == status and ("data race" in found.stderr) == bool(status), found.stderr[-2000:]


def test_a_compiler_without_the_sanitizer_fails_aloud(tmp_path):
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\necho "${1#-print-file-name=}"\n')
    compiler.chmod(0o755)
    environment = os.environ | {"CXX": str(compiler)}
    found = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and "has no libtsan; install it" in found.stderr


OUTPUT = """threads: base: fusion: 3.1 s
threads: base: 25 kernels, 404 calls, 1156 loops, 41936 tasks on 4 threads
threads: avx2: correlate_fwd: failed 3 times: other bytes on four threads than on one
threads: avx2: 25 kernels, 404 calls, 1150 loops, 41000 tasks on 4 threads
"""


@pytest.mark.parametrize(("status", "failures"), [(0, 0), (1, 1), (66, 1)])
def test_the_long_check_reads_what_the_program_says(monkeypatch, status, failures):
    code = f"import sys; print({OUTPUT!r}, end=''); sys.exit({status})"
    monkeypatch.setattr(threads, "command_of", lambda size, seed: [sys.executable, "-c", code])
    (row,) = threads.check(1, 0, lambda line: None)
    assert row.times == 808 and len(row.failures) == failures
    assert row.numbers == {"kernels": 25, "instruction_sets": 2, "loops": 2306, "tasks": 82936, "threads": 4}
    assert not failures or "correlate_fwd: failed 3 times" in row.failures[0]


def test_a_program_that_says_nothing_has_not_passed(monkeypatch):
    monkeypatch.setattr(threads, "command_of", lambda size, seed: [sys.executable, "-c", ""])
    (row,) = threads.check(1, 0, lambda line: None)
    assert row.result == "failed"
