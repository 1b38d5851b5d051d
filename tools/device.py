# SPDX-License-Identifier: Apache-2.0
"""`make device`: proves the CUDA kernels on this machine's GPU, offline, in less than eight minutes.

Builds the package into build/device/site for the torch that this Python has, and the runner of bare kernels;
runs every case of every CUDA op on the GPU, through the runner and through torch; compares products of tensor
cores with the emulated ones; runs compute-sanitizer (memcheck, racecheck, synccheck) on small cases; runs the
CUDA bench. Writes

    bench/results/<date>-<device>-cuda.json   each step's outcome and time, versions, the bench's rows
    bench/results/ledger.json, README.md      the kernels whose every case passed, if all but the bench did

    python tools/device.py [--only STEP,...]  steps by name: the ledger is left alone
"""

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "device"
SITE = WORK / "site"
BUDGET = 8 * 60.0  # of all steps together, in seconds
TOOLS = ("memcheck", "racecheck", "synccheck")
BARE = (
    "tests/test_cuda_kernels.py",
    "tests/test_cuda_kv.py",
    "tests/test_cuda_kv_append.py",
    "tests/test_cuda_nm.py",
    "tests/test_cuda_spgemm.py",
    "tests/test_emulator.py",
)
TORCH = (
    "tests/test_device.py",
    "tests/test_device_kv.py",
    "tests/test_device_kv_append.py",
    "tests/test_device_spgemm.py",
)
# The ledger's own skips until this run is written down; the module's runs nothing on the GPU.
NOT_OF_THE_GPU = ("test_hardware_has_proven", "test_the_module_gives")
sys.path.insert(0, str(ROOT / "python" / "sparsecore"))

import ledger  # noqa: E402  (the file alone: the package is not built yet)


def find(name: str) -> str | None:
    homes = [os.environ.get(n) for n in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    folders = [str(Path(home, sub)) for home in homes if home for sub in ("bin", "compute-sanitizer")]
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *folders]))


class Step:
    """What one step did. `said` is the end of its output; `passed` is None when it could not run here."""

    def __init__(self, name: str):
        self.name, self.passed, self.seconds, self.said = name, None, 0.0, ""
        self.tests: dict[str, str] = {}  # of a pytest step: id to passed, failed or why skipped

    def as_row(self) -> dict:
        row = {"step": self.name, "passed": self.passed, "seconds": round(self.seconds, 1)}
        if self.tests:
            outcomes = list(self.tests.values())
            row |= {"tests": len(outcomes), "skipped": [o for o in outcomes if o not in ("passed", "failed")]}
        return row if self.passed else row | {"said": self.said[-2000:]}


class Run:
    def __init__(self, device: str, capability: str):
        self.device, self.begun = device, time.monotonic()
        self.steps: list[Step] = []
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(SITE),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUDACXX": find("nvcc") or "nvcc",
            "CUDAARCHS": f"{capability}-real",
            "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
        }

    def left(self) -> float:
        return BUDGET - (time.monotonic() - self.begun)

    def step(self, name: str, *command: object, limit: float, **environment: str) -> Step:
        step = Step(name)
        self.steps.append(step)
        print(f"== {name}", flush=True)
        begun, limit = time.monotonic(), min(limit, self.left())
        try:
            done = subprocess.run(
                [*map(str, command)],
                cwd=ROOT,
                env=self.environment | environment,
                capture_output=True,
                timeout=max(limit, 1),
            )
            step.passed = done.returncode == 0
            step.said = (done.stdout + done.stderr).decode(errors="replace")
        except subprocess.TimeoutExpired as late:
            raw = (late.stdout or b"") + (late.stderr or b"")
            step.passed, step.said = False, f"{raw.decode(errors='replace')}\nstopped after {limit:.0f} s"
        step.seconds = time.monotonic() - begun
        print(f"{'ok' if step.passed else 'FAILED'} ({step.seconds:.0f} s)", flush=True)
        if not step.passed:
            print(step.said[-6000:], flush=True)
        return step

    def pytest(self, name: str, *arguments: str, limit: float, **environment: str) -> Step:
        report = WORK / f"{name.replace(' ', '-')}.xml"
        report.unlink(missing_ok=True)
        command = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={report}")
        step = self.step(name, *command, *arguments, limit=limit, **environment)
        step.tests = outcomes(report)
        if not any(o == "passed" for o in step.tests.values()):
            step.passed, step.said = False, step.said + "\nno test passed"
        return step


def outcomes(report: Path) -> dict[str, str]:
    """Test id to passed, failed or the reason of its skip, of a JUnit file."""
    if not report.is_file():
        return {}
    found = {}
    for case in xml.parse(report).iter("testcase"):
        kinds = {child.tag: child for child in case}
        bad = "failure" in kinds or "error" in kinds
        skip = kinds.get("skipped")
        found[f"{case.get('classname')}.{case.get('name')}"] = (
            "failed" if bad else "passed" if skip is None else skip.get("message", "skipped")
        )
    return found


def sanitizer_faults(log: str) -> str:
    """What compute-sanitizer's logs complain of: '' when there is a summary and each counts none."""
    counts = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", log)
    if not counts:
        return "the log has no summary"
    return "" if not any(map(int, counts)) else log


def sanitize(run: Run, tool: str) -> None:
    """Small cases under one tool: the runner's process is watched, and the summary is in its log."""
    program = find("compute-sanitizer")
    if program is None:
        step = Step(tool)
        step.said = "no compute-sanitizer beside nvcc or in PATH"
        run.steps.append(step)
        print(f"== {tool}\nskipped: {step.said}, so not proven", flush=True)
        return
    for log in WORK.glob(f"{tool}-*.log"):
        log.unlink()
    few = {
        "SPARSECORE_CUDA_ON": "hardware",
        "SPARSECORE_CUDA_UNDER": f"{program} --tool {tool} --log-file {WORK / tool}-%p.log",
        "SPARSECORE_FEW_CASES": "1",
    }
    step = run.pytest(tool, *BARE, "-k", "every_case or broken or right_kernel or pattern", limit=80, **few)
    faults = sanitizer_faults("".join(log.read_text() for log in WORK.glob(f"{tool}-*.log")))
    if faults:
        step.passed, step.said = False, f"{step.said}\n{faults[-6000:]}"
        print(f"FAILED: {faults[-6000:]}", flush=True)


def proven(steps: list[Step], ops: list[str]) -> list[str]:
    """Ops that have tests in every pytest step, all of them passed and none skipped.

    None when a step failed: what is no op's own, say the products of tensor cores, holds back every op.
    Only the bench may fail, and only a sanitizer that is not there may not have run.
    """
    passed = {s.name for s in steps if s.passed}
    if not {"build", "cases", "cases through torch"} <= passed:
        return []
    if any(s.passed is False for s in steps if s.name != "bench"):
        return []

    def good(step: Step, op: str) -> bool:
        mine = [test for test in step.tests if re.search(rf"\[{op}\b", test)]
        there = {step.tests[test] for test in mine if not any(name in test for name in NOT_OF_THE_GPU)}
        return there == {"passed"}

    return [op for op in ops if all(good(s, op) for s in steps if s.tests)]


def record(run: Run, bench: Path, whole: bool) -> bool:
    """Writes the result file; the ledger and README if the whole run's steps allow. Whether they do."""
    kernels = {f.stem: f for f in ledger.kernel_files(ROOT / "csrc")}
    good = proven(run.steps, list(kernels)) if whole else []
    date = datetime.date.today().isoformat()
    results = ROOT / "bench" / "results"
    slug = re.sub(r"[^a-z0-9]+", "-", run.device.lower()).strip("-")
    out = results / f"{date}-{slug}-cuda.json"
    torch_version, cuda = versions()
    digests = ledger.manifest(ROOT / "csrc")
    facts = {
        "device": run.device,
        "date": date,
        "torch": torch_version,
        "cuda": cuda,
        "python": platform.python_version(),
        "seconds": round(BUDGET - run.left(), 1),
        "kernels": digests,
        "proven": good,
        "steps": [s.as_row() for s in run.steps],
        "bench": json.loads(bench.read_text()) if bench.is_file() else [],
    }
    out.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"wrote {out.relative_to(ROOT)}")
    if good:
        proofs = dict(ledger.read(ROOT / ledger.LEDGER))
        for op in good:
            name = kernels[op].relative_to(ROOT / "csrc").as_posix()
            proofs[name] = ledger.Proof(digests[name], run.device, date, case_count(op))
        ledger.write(ROOT / ledger.LEDGER, proofs)
        ledger.main(["readme", str(ROOT)])
        print(f"proven on {run.device}: {', '.join(good)} (wrote {ledger.LEDGER}, README.md)")
    return set(good) == set(kernels)


def python(code: str, **environment: str) -> str:
    command, known = [sys.executable, "-c", code], os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=known)
    if done.returncode:
        sys.exit(done.stderr.strip().splitlines()[-1])
    return done.stdout.strip()


def versions() -> tuple[str, str]:
    torch_version, cuda = python("import torch; print(torch.__version__, torch.version.cuda)").split()
    return torch_version, cuda


def case_count(op: str) -> int:
    code = f"import cases; o = cases.of({op!r}); print(len(getattr(o, 'CUDA_CASES', o.CASES)))"
    return int(python(code, PYTHONPATH=os.pathsep.join([str(SITE), str(ROOT / "tests")])))


DEVICE = """
import torch
if torch.cuda.is_available():
    print(torch.cuda.get_device_name(), *torch.cuda.get_device_capability(), sep="|")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="steps, with commas between")
    only = set(filter(None, parser.parse_args().only.split(",")))
    device = python(DEVICE).split("|")
    if len(device) < 3:
        sys.exit(f"make device: the torch of {sys.executable} finds no CUDA device")
    if not find("nvcc"):
        sys.exit("make device: no nvcc in PATH, CUDA_HOME or /usr/local/cuda")
    WORK.mkdir(parents=True, exist_ok=True)
    name, major, minor = device
    run = Run(name, major + minor + ("a" if major in ("9", "10") else ""))
    bench = WORK / "bench.json"
    bench.unlink(missing_ok=True)
    pip = (sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "--no-index")
    options = ("--target", SITE, "-C", "cmake.define.SPARSECORE_CUDA=ON", ROOT)
    steps = {
        "build": lambda: run.step("build", *pip, *options, limit=150),
        "cases": lambda: run.pytest("cases", *BARE, limit=180, SPARSECORE_CUDA_ON="hardware"),
        "cases through torch": lambda: run.pytest("cases through torch", *TORCH, limit=90),
        **{tool: lambda tool=tool: sanitize(run, tool) for tool in TOOLS},
        "bench": lambda: run.step(
            "bench", sys.executable, "-m", "sparsecore.bench.cuda", "--out", bench, limit=run.left()
        ),
    }
    if only - steps.keys():
        sys.exit(f"no step {', '.join(sorted(only - steps.keys()))}; there are: {', '.join(steps)}")
    if not only or "build" in only:
        shutil.rmtree(SITE, ignore_errors=True)
    for step, do in steps.items():
        if not only or step in only:
            do()
            if step == "build" and not run.steps[-1].passed:
                break
    whole = record(run, bench, not only)
    bad = [s.name for s in run.steps if not s.passed]
    print(f"{len(run.steps) - len(bad)} of {len(run.steps)} steps passed ({BUDGET - run.left():.0f} s)")
    if bad:
        print(f"not: {', '.join(bad)}")
    return 0 if not bad and (whole or only) else 1


if __name__ == "__main__":
    sys.exit(main())
