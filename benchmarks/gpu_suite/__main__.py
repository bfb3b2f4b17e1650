"""The command line of the GPU suite.

    python -m benchmarks.gpu_suite             on a machine with an NVIDIA GPU, < 9 minutes
    python -m benchmarks.gpu_suite --dry-run   the same path on a CPU, tiny sizes, < 1 minute

Exit code: 0 all is well; 1 a test failed or was skipped, a result is wrong, the memory checker
found something; 2 wrong usage or no GPU.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.gpu_suite.processes import end_all
from benchmarks.gpu_suite.suite import PARTS, ROOT, Options, Suite


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder of the JSON file and the table (benchmarks/results; a dry run: build)",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts (%(default)s)")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        help="only this part, beside the build; may be given several times",
    )
    parser.add_argument(
        "--add",
        type=Path,
        metavar="FILE",
        help="go on from this result of an earlier run; what is measured again replaces the old",
    )
    args = parser.parse_args(arguments)
    if not 0.5 <= args.minutes <= 600:
        parser.error(f"--minutes is {args.minutes:g}, must be in 0.5..600")
    usual = ROOT / "build" / "gpu_suite" if args.dry_run else ROOT / "benchmarks" / "results"
    options = Options(
        dry_run=args.dry_run,
        output=(args.output or usual).resolve(),
        minutes=args.minutes,
        parts=tuple(p for p in PARTS if not args.only or p in ("build", *args.only)),
        add=args.add,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return Suite(options, lambda line: print(f"gpu_suite: {line}", flush=True)).run()
    except KeyboardInterrupt:
        print("gpu_suite: interrupted; what was measured is in the result file", file=sys.stderr)
        return 130
    finally:
        end_all()


if __name__ == "__main__":
    sys.exit(main())
