from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model.engines import hardware, onednn_trial
from model.engines.onednn import KEPT, VARIABLE, Trial, choose_onednn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not loaded TensorFlow, on a machine that sets nothing."""
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delenv(VARIABLE)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)


def tries(on: float, off: float, harm: float = 0.0):  # type: ignore[no-untyped-def]
    asked = []

    def attempt(is_on: bool, bundle: Path | None) -> Trial | None:
        asked.append((is_on, bundle))
        return Trial(on, (0.5, 0.3 + harm)) if is_on else Trial(off, (0.5, 0.3))

    attempt.asked = asked  # type: ignore[attr-defined]
    return attempt


def test_the_faster_side_is_taken_said_and_kept(tmp_path: Path) -> None:
    attempt = tries(on=1.0, off=3.0)
    assert choose_onednn(tmp_path, attempt=attempt) == (
        "oneDNN is on: 1.00 s with it, 3.00 s without, answers differ by at most 0.0000"
    )
    assert os.environ.pop(VARIABLE) == "1" and attempt.asked == [(False, None), (True, None)]
    assert "is on" in choose_onednn(tmp_path, attempt=attempt) and len(attempt.asked) == 2
    assert os.environ.pop(VARIABLE) == "1"
    # An answer of a bundle is another question, and there a difference counts.
    assert "differs by up to 0.020" in choose_onednn(tmp_path, tmp_path / "b", attempt=tries(1.0, 3.0, harm=0.02))
    assert os.environ.pop(VARIABLE) == "0"
    (tmp_path / KEPT).write_text("{torn")
    assert "is off: 3.00 s with it, 1.00 s without" in choose_onednn(tmp_path, attempt=tries(3.0, 1.0))


def test_what_was_set_or_loaded_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = tries(1.0, 3.0)
    monkeypatch.setitem(sys.modules, "tensorflow", object())
    assert "when it was loaded" in choose_onednn(tmp_path, attempt=attempt) and VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, "0")
    assert choose_onednn(tmp_path, attempt=attempt) == f"oneDNN as set ({VARIABLE}=0)" and not attempt.asked


def test_a_failed_trial_leaves_the_choice_to_tensorflow() -> None:
    assert "its trial failed" in choose_onednn(None, attempt=lambda on, bundle: None)
    assert VARIABLE not in os.environ


def test_the_trial_itself_runs_and_gives_seconds_and_answers() -> None:
    environment = {**os.environ, VARIABLE: "1", "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", "model.engines.onednn_trial"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["seconds"] > 0 and len(said["answers"]) == onednn_trial._BATCH
    assert all(0 < answer < 1 for answer in said["answers"])


def test_the_cpu_says_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU\nflags\t: fpu\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    assert hardware.cpu_model() == "A CPU"
