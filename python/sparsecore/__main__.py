# SPDX-License-Identifier: Apache-2.0
"""The command `sparsecore`."""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="sparsecore", description="Sparse matrix kernels for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("doctor", help="versions, ISA, devices, and which kernel each op uses here and why")
    commands.add_parser("bench", help="checks an op, then times it against its rivals", add_help=False)
    if arguments[:1] == ["bench"]:
        from sparsecore.bench.__main__ import main as bench

        return bench(arguments[1:]) or 0
    parser.parse_args(arguments)
    from sparsecore import doctor

    print(doctor.report())
    return 0


if __name__ == "__main__":
    sys.exit(main())
