# SPDX-License-Identifier: Apache-2.0
"""Makes .venv ready for the extras named on the command line (extras of pyproject.toml).

    python3 tools/setup.py test              fails when something cannot be installed
    python3 tools/setup.py --try test-all    says so and goes on

A torch >= 2.10 that python3 already has is used, with everything beside it; nothing is downloaded that
is there. Only the standard library is needed, and pip.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
TORCH = "torch==2.13.0"
TORCH_OLDEST = (2, 10)
CMAKE_OLDEST = (3, 25)


def numbers(text: str) -> tuple[int, ...]:
    found = re.search(r"(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else (0, 0)


def torch_is_here() -> bool:
    try:
        return numbers(metadata.version("torch")) >= TORCH_OLDEST
    except metadata.PackageNotFoundError:
        return False


def tool_is_here(name: str, oldest: tuple[int, ...]) -> bool:
    path = os.pathsep.join([str(VENV / "bin"), os.environ.get("PATH", "")])
    program = shutil.which(name, path=path)
    if not program:
        return False
    answer = subprocess.run([program, "--version"], capture_output=True, text=True)
    return answer.returncode == 0 and numbers(answer.stdout) >= oldest


def make_venv() -> None:
    """Runs under the caller's Python."""
    print(f"setting up .venv ({sys.executable}, Python {sys.version.split()[0]})", flush=True)
    command = [sys.executable, "-m", "venv", str(VENV)]
    made = subprocess.run(command, capture_output=True, text=True)
    if made.returncode != 0:  # Debian without python3-venv; a pip of the system can fill a bare one
        shutil.rmtree(VENV, ignore_errors=True)
        if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
            made = subprocess.run([*command, "--without-pip", "--system-site-packages"])
        if made.returncode != 0:
            sys.exit(
                "python3 cannot make a virtual environment. On Debian and Ubuntu:\n"
                "    sudo apt-get install python3-venv"
            )
    if torch_is_here():
        folders = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
        print(f"using torch {metadata.version('torch')} and what lies beside it: {' '.join(folders)}")
        purelib = sysconfig.get_path(
            "purelib",
            vars={"base": str(VENV), "platbase": str(VENV)},
            scheme="venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix",
        )
        lines = [f"import site; site.addsitedir({folder!r})\n" for folder in folders]
        Path(purelib, "base_python.pth").write_text("".join(lines))


def is_here(requirement: str) -> bool:
    from pip._vendor.packaging.requirements import Requirement

    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(metadata.version(wanted.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False


def missing(extras: list[str]) -> list[str]:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        from pip._vendor import tomli as tomllib  # type: ignore[no-redef]
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = config["project"]
    wanted = [*config["build-system"]["requires"], *project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    absent = [w for w in wanted if not w.startswith("torch>") and not is_here(w)]
    if not torch_is_here():
        absent.insert(0, TORCH)
    if not tool_is_here("cmake", CMAKE_OLDEST):
        absent.append(f"cmake>={'.'.join(map(str, CMAKE_OLDEST))}")
    if not tool_is_here("ninja", (1, 5)):
        absent.append("ninja")
    return absent


def install(extras: list[str]) -> bool:
    """Runs under .venv's Python. Without anything missing, no network is asked."""
    absent = missing(extras)
    if not absent:
        return True
    print(f"installing for {' '.join(extras)}: {' '.join(absent)}", flush=True)
    quiet = [] if sys.stdout.isatty() else ["-qq"]
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--retries", "2", *quiet]
    return subprocess.run([*pip, *absent]).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("extras", nargs="+")
    parser.add_argument("--try", action="store_true", dest="optional")
    options = parser.parse_args()
    if sys.version_info < (3, 10):  # noqa: UP036
        sys.exit(
            f"sparsecore needs Python >= 3.10; {sys.executable} is {sys.version.split()[0]}. "
            "Name another: make PYTHON=python3.12 ..."
        )
    if Path(sys.prefix) == VENV:
        return 0 if install(options.extras) else 1

    stamp = VENV / f"ready-{'-'.join(options.extras)}"
    content = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == content:
        return 0
    if not PYTHON.exists():
        make_venv()
    if subprocess.run([str(PYTHON), __file__, *options.extras]).returncode == 0:
        stamp.write_text(content)
        return 0
    print(f"could not install all of: {' '.join(options.extras)}", flush=True)
    return 0 if options.optional else 1


if __name__ == "__main__":
    sys.exit(main())
