"""One process of a run fails: the others end soon, and one line says which and why."""

from __future__ import annotations

import time

import pytest
import torch
from engine_fixtures import real_scenes

for library in ("accelerate", "jsonargparse", "transformers", "kornia"):
    pytest.importorskip(library, reason=f"{library} is not installed")
if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
    pytest.skip("this torch was built without gloo", allow_module_level=True)

from avfast.benches.soak.process_faults import Run  # noqa: E402
from avfast.engine import processes  # noqa: E402
from avfast.errors import ConfigError  # noqa: E402

LIMIT = 600


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Three runs of two processes, side by side."""
    folder, data = tmp_path_factory.mktemp("lost"), real_scenes()
    runs = {
        "killed": Run("killed", "torchrun", folder / "killed", data),
        "data": Run("data", "accelerate", folder / "data", data),
        "everywhere": Run("none", "torchrun", folder / "everywhere", data, "optim.lr=-1"),
    }
    return {name: run.wait(LIMIT) for name, run in runs.items()}


def test_a_killed_process_ends_the_others_who_name_it(ended):
    found = ended["killed"]
    assert found.code != 0 and found.seconds < 60
    (line,) = found.errors
    assert line.startswith("error: process 1 does not answer, of 2: killed, out of memory or hanging in step 4")
    assert "--resume auto" in line and "Traceback (most recent call last)" not in found.output.split("error: ")[0]
    assert "SIGKILL" in found.output, "torchrun says which signal it was"


def test_an_error_of_one_process_is_said_once_and_ends_all(ended):
    found = ended["data"]
    assert found.code != 0 and found.seconds < 60
    (line,) = found.errors
    assert "process 1 of 2" in line and "/data/clips: the folder is gone" in line


def test_a_mistake_of_the_user_is_not_said_by_every_process(ended):
    found = ended["everywhere"]
    assert found.code != 0
    assert found.errors == ["error: optim.lr: expected at least 0, got -1.0"]


# ------------------------------------------------------------------------------------------- in one process


class Store:
    """A launcher's key-value store."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    def set(self, key, value):
        self.kept[key] = value

    def get(self, key):
        return self.kept[key].encode()

    def check(self, keys):
        return all(key in self.kept for key in keys)

    def add(self, key, amount):
        self.kept[key] = self.kept.get(key, 0) + amount
        return self.kept[key]


@pytest.fixture
def store(monkeypatch):
    kept = Store()
    monkeypatch.setattr(processes, "_store", lambda: kept)
    monkeypatch.setattr(processes, "ROLL_CALL", 0.2)
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "0")
    return kept


def lose(text: str) -> processes.LostProcess:
    with pytest.raises(processes.LostProcess) as caught, processes.together(lambda: "in step 7"):
        raise RuntimeError(f"[/x/gloo/transport/tcp/pair.cc:5] {text}")
    return caught.value


def test_who_does_not_answer_the_roll_call_is_named(store):
    store.set("alive/2", "1")
    assert str(lose("Connection closed by peer [::1]:1. Check the logs.")) == (
        "process 1 does not answer, of 3: killed, out of memory or hanging in step 7 "
        "(Connection closed by peer [::1]:1)"
    )


@pytest.mark.parametrize(("beating", "named"), [((2,), "process 1 does"), ((1, 2), "processes 1, 2 do")])
def test_who_has_not_noticed_is_not_to_blame_where_somebody_is_gone(store, monkeypatch, beating, named):
    """Of four processes in a ring one waits for another that has noticed. One that hangs is alive too."""
    count = store.add
    monkeypatch.setattr(store, "add", lambda key, n: count(key, n or key in {f"beat/{rank}" for rank in beating}))
    assert str(lose("Connection closed by peer")).startswith(f"{named} not answer, of 3: killed")


def test_signs_of_life_come_while_a_run_is_under_way(store, monkeypatch):
    monkeypatch.setattr(processes, "_client", lambda: store)
    monkeypatch.setattr(processes, "BEAT", 0.01)
    with processes._heart():
        until = time.monotonic() + 10
        while store.kept.get("beat/0", 0) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    assert store.kept["beat/0"] >= 3
    kept = dict(store.kept)
    time.sleep(0.05)
    assert store.kept == kept


def test_who_left_a_word_is_quoted(store, monkeypatch):
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ZeroDivisionError), processes.together():
        raise ZeroDivisionError("by zero")
    monkeypatch.setenv("RANK", "0")
    lost = lose("Connection closed by peer")
    assert str(lost) == "process 2 of 3 stopped: ZeroDivisionError: by zero" and lost.code == 3
    with pytest.raises(processes.LostProcess, match="process 2 of 3 stopped"):
        processes.wait_for_all()


def test_each_text_is_printed_by_one_process(store, monkeypatch):
    error = ConfigError("optim.lr: expected a number")
    assert processes.words_to_print(error) == str(error)
    monkeypatch.setenv("RANK", "1")
    assert processes.words_to_print(error) is None
    assert processes.words_to_print(processes.LostProcess("process 0 of 3 stopped: x", said=str(error))) is None
    monkeypatch.setattr(processes.time, "monotonic", iter(range(0, 1000, 3)).__next__)
    assert processes.words_to_print(ConfigError("no such folder")) == "process 1 of 3: no such folder"


def test_waiting_for_all_ends_when_all_have_come(store):
    number = next(processes._barriers) + 1
    store.kept[f"barrier/{number}"] = 2  # the others are there
    processes.wait_for_all()
    assert store.kept[f"barrier/{number}"] == 3
