# SPDX-License-Identifier: Apache-2.0
"""Random and hostile calls of every kernel under AddressSanitizer and UBSan, ARM's under emulation.

python tests/native/sanitize.py [calls [seed]]      (fuzz.cpp says what is asserted)
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import native

FLAGS = (
    "-DSPARSECORE_NATIVE_MODULE=OFF",
    # Lines alone, smaller functions, a plain register allocator: spgemm_avx2.cpp in 17 s, not 57.
    "-DCMAKE_CXX_FLAGS=-O1 -g1 -fno-inline-functions-called-once -fira-region=one"
    " -fsanitize=address,undefined -fno-sanitize-recover=all",
)
CALLS = 1000


def main(calls: str = str(CALLS), *seed: str) -> int:
    runs = [subprocess.Popen([native.build("sanitize", "native_fuzz", *FLAGS), calls, *seed])]
    if missing := native.emulation_missing():
        print(f"skipped: {missing}, so ARM kernels are not proven under sanitizers")
    else:
        arm = native.build("sanitize-aarch64", "native_fuzz", *FLAGS, *native.AARCH64)
        # The leak check does not work under emulation; the runtime is found beside the cross compiler.
        settings = {"ASAN_OPTIONS": "detect_leaks=0", "QEMU_LD_PREFIX": "/usr/aarch64-linux-gnu"}
        few = str(max(int(calls) // 8, 1))
        runs.append(subprocess.Popen(["qemu-aarch64-static", arm, few, *seed], env=os.environ | settings))
    return max(abs(run.wait()) for run in runs)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
