# SPDX-License-Identifier: Apache-2.0
"""Installs one wheel file into clean environments and runs tools/wheel_smoke.py there, no compiler in PATH.

wheel_check.py WHEEL                    every Python >= 3.10 found: the oldest with the oldest torch,
                                        this one with its own torch, the others with the newest
wheel_check.py WHEEL --short            this one with its own torch, the newest other with the newest
wheel_check.py WHEEL 3.13 3.10=2.10.*   these Pythons, each with the torch named (else the newest)
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

OLDEST_TORCH = "2.10.*"
KNOWN = [f"3.{minor}" for minor in range(10, 16)]
SMOKE = Path(__file__).with_name("wheel_smoke.py")


def find_python(version: str) -> str | None:
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates += sorted(map(str, pyenv.glob(f"{version}.*/bin/python")), reverse=True)
    for candidate in filter(None, candidates):
        said = subprocess.run([candidate, "--version"], capture_output=True, text=True).stdout
        if re.search(rf"\b{re.escape(version)}\b", said):
            return candidate
    return None


def check(wheel: Path, python: str, torch: str) -> str:
    """Returns what the smoke test said; raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="sparsecore-wheel-") as folder:
        binaries = Path(folder, "env", "bin")
        clean = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "LD_", "SPARSECORE"))}
        clean["PATH"] = str(binaries)

        def run(*command: str | Path, env: Mapping[str, str] = clean) -> str:
            done = subprocess.run([*map(str, command)], cwd=folder, env=env, capture_output=True, text=True)
            if done.returncode != 0:
                print(done.stdout[-4000:], done.stderr[-4000:], sep="\n", flush=True)
                done.check_returncode()
            return done.stdout

        run(python, "-m", "venv", Path(folder, "env"), env=os.environ)
        pip = (binaries / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        run(*pip, "--only-binary=:all:", "--no-compile", f"torch{torch}", "numpy", "safetensors")
        run(*pip, "--no-index", wheel)
        run(binaries / "python", "-m", "pip", "check")
        run(binaries / "sparsecore", "doctor")
        return run(binaries / "python", SMOKE).strip().splitlines()[-1]


def plan(named: list[str], short: bool) -> list[tuple[str, str]]:
    """(Python version, torch requirement) pairs."""
    if named:
        return [(v, f"=={torch}" if torch else "") for v, _, torch in (name.partition("=") for name in named)]
    own = ".".join(platform.python_version_tuple()[:2])
    own_torch = f"=={metadata.version('torch').partition('+')[0]}"
    others = [v for v in KNOWN if v != own and find_python(v)]
    if short:
        return [(own, own_torch), (others[-1] if others else "of another version", "")]
    torches = dict.fromkeys(KNOWN, "") | {own: own_torch}
    torches[min([own, *others], key=KNOWN.index)] = f"=={OLDEST_TORCH}"
    return list(torches.items())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("wheel", type=Path)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON[=TORCH]")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    passed = failed = skipped = 0
    for version, torch in plan(options.pythons, options.short):
        what = f"Python {version}, torch{torch or ' (newest)'}"
        python = find_python(version)
        if python is None:
            print(f"skipped: {what}: no Python {version} here, so not proven", flush=True)
            skipped += 1
            continue
        print(f"checking {what}: installing into a clean environment ...", flush=True)
        start = time.monotonic()
        try:
            said = check(options.wheel.resolve(), python, torch)
        except subprocess.CalledProcessError as error:
            print(f"FAILED: {what}: {error}", flush=True)
            failed += 1
        else:
            print(f"{said} ({time.monotonic() - start:.0f} s)", flush=True)
            passed += 1
    print(f"{options.wheel.name}: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
