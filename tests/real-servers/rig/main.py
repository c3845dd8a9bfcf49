"""Runs the cases in order; see ../run for the command line."""

from __future__ import annotations

import argparse
import importlib
import pathlib
import shutil
import sys
import tempfile
import traceback

from verdict import Verdict

# Each is a module case_NAME with `run(verdict, scratch)`, or `run(verdict, scratch, programs)`.
CASES = {
    "self": "Postfix, recorders and comparison against a sink",
    "postfix": "2,000 real messages through four doors, byte for byte, read by Python and mutt",
    "lmtp": "LMTP sessions: replies per recipient, limits, odd commands (swaks and raw)",
    "bytes": "contents that are easily damaged, through every door",
    "hard": "few descriptors, little locked memory, no io_uring, a full disk, a read-only one",
    "ring-trace": "one durable write per batch, no io-wq worker on the hot path, no fsync per recipient",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Real servers against a real node")
    parser.add_argument("--only", action="append", choices=CASES, help="this case only; may be repeated")
    parser.add_argument("--bin", type=pathlib.Path, help="folder of ringpostd, ringpost, ringpost-deliver")
    parser.add_argument("--keep", action="store_true", help="leave the scratch folder behind")
    parser.add_argument("--list", action="store_true", help="print the cases")
    options = parser.parse_args()
    if options.list:
        for name, about in CASES.items():
            print(f"{name:10} {about}")
        return 0

    verdict = Verdict()
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="ringpost-real-"))
    scratch.chmod(0o755)
    try:
        programs = copy_programs(options.bin, scratch) if options.bin else None
        for name in options.only or CASES:
            print(f"--- {name}: {CASES[name]}", flush=True)
            folder = scratch / name
            folder.mkdir()
            case = importlib.import_module("case_" + name.replace("-", "_"))
            try:
                if name == "self":
                    case.run(verdict, folder)
                elif programs is None:
                    verdict.check(f"{name} has programs to test", False, "--bin FOLDER is missing")
                else:
                    case.run(verdict, folder, programs)
            except Exception:
                verdict.check(f"{name} ran to its end", False, traceback.format_exc())
    finally:
        if options.keep:
            print(f"kept {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    return verdict.end()


def copy_programs(source: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path:
    """MTAs run the shim as other users, who may not enter the build folder."""
    target = scratch / "bin"
    target.mkdir()
    for name in ("ringpostd", "ringpost", "ringpost-deliver"):
        shutil.copy(source / name, target / name)
        (target / name).chmod(0o755)
    return target


if __name__ == "__main__":
    sys.exit(main())
