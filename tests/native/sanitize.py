# SPDX-License-Identifier: Apache-2.0
"""Random and hostile calls of every kernel under AddressSanitizer and UBSan, ARM's under emulation.

python tests/native/sanitize.py [calls [seed]]      (fuzz.cpp says what is asserted)
"""

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import native

CALLS = 1000


def main(calls: str = str(CALLS), seed: str = "") -> int:
    seed = seed or str(random.getrandbits(32))
    print(f"seed {seed}", flush=True)
    # An op has random calls where it has an adapter of its own name.
    ops = sorted(
        op.name for op in (native.ROOT / "csrc/ops").iterdir() if (native.HERE / f"{op.name}.cpp").exists()
    )

    def fuzz(*command: str | Path, **settings: str) -> int:
        run = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True)
        print(run.stdout + run.stderr, end="", flush=True)
        return run.returncode

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        here = native.build("sanitize", "native_fuzz", *native.SANITIZED)
        runs = [pool.submit(fuzz, here, calls, seed, op) for op in ops]
        if missing := native.emulation_missing():
            print(f"skipped: {missing}, so ARM kernels are not proven under sanitizers")
        else:
            arm = native.build_arm("native_fuzz")
            few = str(max(int(calls) // 8, 1))
            runs += [
                pool.submit(fuzz, "qemu-aarch64-static", arm, few, seed, op, **native.UNDER_QEMU)
                for op in ops
            ]
        return max(abs(run.result()) for run in runs)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
