"""Counts what passed and what failed, and says why at once."""

import sys
import time


class Verdict:
    """One line per check; a failed one carries its evidence."""

    def __init__(self) -> None:
        self.passed = 0
        self.failed = 0
        self._began = time.monotonic()

    def check(self, name: str, holds: bool, evidence: object = "") -> bool:
        if holds:
            self.passed += 1
            print(f"ok      {name}", flush=True)
        else:
            self.failed += 1
            print(f"FAILED  {name}", flush=True)
            for line in str(evidence).splitlines()[:40]:
                print(f"        {line}", flush=True)
        return holds

    def equal(self, name: str, got: object, wanted: object) -> bool:
        return self.check(name, got == wanted, f"got    {_short(got)}\nwanted {_short(wanted)}")

    def say(self, text: str) -> None:
        print(f"        {text}", flush=True)

    def end(self) -> int:
        seconds = time.monotonic() - self._began
        print(f"{seconds:.0f} s")
        print(f"{self.passed} passed, {self.failed} failed")
        sys.stdout.flush()
        return 1 if self.failed or not self.passed else 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-200:]} ({len(text)} characters)"
