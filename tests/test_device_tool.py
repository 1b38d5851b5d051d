# SPDX-License-Identifier: Apache-2.0
"""What `make device` makes of outcomes: nothing is proven that has not passed. Its steps need a GPU."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sparsecore import ledger

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("device", ROOT / "tools" / "device.py")
    loaded = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(loaded)
    sys.path[:] = before
    return loaded


def passing(tool) -> dict:
    """Steps of a run in which all is well, by name."""
    steps = {}
    for name in ("build", "cases", "cases through torch", *tool.TOOLS, "bench"):
        step = steps[name] = tool.Step(name)
        step.passed = True
        if name not in ("build", "bench"):
            step.tests = {f"t.test_every_case[{op}]": "passed" for op in ("one", "one_more")}
            step.tests |= {f"t.{name}_it[one]": "not proven" for name in tool.NOT_OF_THE_GPU}
            step.tests["t.test_products[0]"] = "passed"
    return steps


def test_a_good_run_proves_every_op_that_has_tests(tool):
    steps = passing(tool)
    assert tool.proven(list(steps.values()), ["one", "one_more", "untested"]) == ["one", "one_more"]


def test_the_bench_may_fail_and_a_sanitizer_may_be_absent(tool):
    steps = passing(tool)
    steps["bench"].passed = False
    steps["racecheck"] = tool.Step("racecheck")
    assert tool.proven(list(steps.values()), ["one"]) == ["one"]


@pytest.mark.parametrize("broken", ["build", "cases", "cases through torch", "memcheck", "synccheck"])
def test_a_step_that_failed_proves_nothing(tool, broken):
    steps = passing(tool)
    steps[broken].passed = False
    assert tool.proven(list(steps.values()), ["one"]) == []


@pytest.mark.parametrize("missing", ["build", "cases", "cases through torch"])
def test_a_step_that_did_not_run_proves_nothing(tool, missing):
    steps = passing(tool)
    del steps[missing]
    assert tool.proven(list(steps.values()), ["one"]) == []


@pytest.mark.parametrize("outcome", ["failed", "skipped because"])
def test_an_op_with_a_test_that_did_not_pass_is_not_proven(tool, outcome):
    steps = passing(tool)
    steps["cases through torch"].tests["t.test_out[one-float]"] = outcome
    assert tool.proven(list(steps.values()), ["one", "one_more"]) == ["one_more"]


def test_outcomes_of_a_real_pytest_run(tool, tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('op', ['a', 'b'])\ndef test_x(op): assert op == 'a'\n"
        "def test_y(): pytest.skip('not here')\n"
        "@pytest.fixture\ndef broken(): raise ValueError\ndef test_z(broken): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--junitxml=out.xml", "test_it.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True)
    assert {k.split(".")[-1]: v for k, v in tool.outcomes(tmp_path / "out.xml").items()} == {
        "test_x[a]": "passed", "test_x[b]": "failed", "test_y": "not here", "test_z": "failed",
    }  # fmt: skip
    assert tool.outcomes(tmp_path / "none.xml") == {}


CLEAN = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
RACE = "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)\n"
CLEAN_RACE = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"


def test_sanitizer_logs(tool):
    assert tool.sanitizer_faults(CLEAN) == tool.sanitizer_faults(CLEAN + CLEAN_RACE) == ""
    assert tool.sanitizer_faults(CLEAN + CLEAN.replace("0 errors", "1 error"))
    assert tool.sanitizer_faults(RACE)
    assert tool.sanitizer_faults("========= COMPUTE-SANITIZER\n") == "the log has no summary"


def test_a_step_reports_failure_output_and_a_late_end(tool, monkeypatch):
    monkeypatch.setattr(tool, "WORK", ROOT / "build")
    run = tool.Run("a device", "90a")
    assert run.step("fine", sys.executable, "-c", "print('hello')", limit=60).passed
    bad = run.step("bad", sys.executable, "-c", "import sys; print('why'); sys.exit(3)", limit=60)
    assert bad.passed is False and "why" in bad.said
    late = run.step("late", sys.executable, "-c", "import time; time.sleep(60)", limit=1)
    assert late.passed is False and "stopped after 1 s" in late.said
    assert [s.name for s in run.steps] == ["fine", "bad", "late"]


def test_the_record_and_the_ledger_of_a_run(tool, tmp_path, monkeypatch):
    for part in ("csrc", "README.md"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    (tmp_path / "bench" / "results").mkdir(parents=True)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "case_count", lambda op: 7)
    run = tool.Run("NVIDIA Test", "90a")
    run.steps = list(passing(tool).values())
    ops = [f.stem for f in ledger.kernel_files(ROOT / "csrc")]
    for step in run.steps:
        if step.tests:
            step.tests = {f"t.test_every_case[{op}]": "passed" for op in ops}
    path = tmp_path / ledger.LEDGER
    assert tool.record(run, tmp_path / "bench.json", whole=False) is False and not path.exists()
    assert tool.record(run, tmp_path / "bench.json", whole=True)
    (out,) = (tmp_path / "bench" / "results").glob("*-nvidia-test-cuda.json")
    said = json.loads(out.read_text())
    assert said["proven"] == ops and said["torch"] == torch.__version__ and len(said["steps"]) == 7
    assert set(ledger.statuses(tmp_path).values()) == {f"proven on NVIDIA Test at {said['date']}"}
    assert f"proven on NVIDIA Test at {said['date']} |" in (tmp_path / "README.md").read_text()
    (tmp_path / "csrc" / "core" / "dtype.h").write_text("// changed\n")
    assert set(ledger.statuses(tmp_path).values()) == {"unproven since its last change"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="not proven: what it says without a GPU")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, ROOT / "tools" / "device.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "finds no CUDA device" in done.stderr
