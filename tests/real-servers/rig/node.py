"""A ringpostd of one's own, and the CLI to look into it."""

from __future__ import annotations

import json
import os
import pathlib
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable

from postfix import free_port


class Node:
    """Started on construction and waited for through NOTIFY_SOCKET; stopped or killed by its id."""

    def __init__(
        self,
        scratch: pathlib.Path,
        programs: pathlib.Path,
        settings: list[str],
        data: pathlib.Path | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """`prepare` runs in the new process before it becomes ringpostd: limits, user, filters."""
        self.data = data or scratch / "data"
        self._prepare = prepare
        self.socket = str(scratch / "node")
        self.lmtp_unix = str(scratch / "lmtp")
        self.lmtp_port = free_port()
        self.admin_port = free_port()
        self.log = scratch / "ringpostd.log"
        self._programs = programs
        self._command = [programs / "ringpostd", "--data", self.data]
        for setting in [
            f"listen.socket=unix:{self.socket}",
            f"listen.lmtp=unix:{self.lmtp_unix},127.0.0.1:{self.lmtp_port}",
            f"listen.admin=127.0.0.1:{self.admin_port}",
            "listen.node=none",
            "return_path=off",
            "disk_reserve=64 MiB",
            *settings,
        ]:
            self._command += ["--set", setting]
        self._notify = str(scratch / "notify")
        self.start()

    def start(self) -> None:
        if os.path.exists(self._notify):
            os.unlink(self._notify)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify, open(self.log, "ab") as log:
            notify.bind(self._notify)
            os.chmod(self._notify, 0o777)
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": self._notify},
                preexec_fn=self._prepare,
            )
            deadline = time.monotonic() + 60
            while True:
                ready, _, _ = select.select([notify], [], [], 0.2)
                if ready and b"READY=1" in notify.recv(4096).split(b"\n"):
                    return
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.process.kill()
                    self.process.wait(60)
                    raise RuntimeError(f"ringpostd does not serve:\n{self.log_tail()}")

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def end(self) -> None:
        """Whatever its state, it is gone afterwards."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(60)

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def errors(self) -> list[str]:
        """ERROR lines of its log: a person must look."""
        text = self.log.read_text(errors="replace")
        return [line for line in text.splitlines() if '"ERROR"' in line or " ERROR " in line]

    def deliver(self, content: bytes, arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
        command = [self._programs / "ringpost-deliver", "--socket", self.socket, *arguments]
        return subprocess.run(command, input=content, capture_output=True, timeout=90)

    def _ringpost(self, arguments: list[str]) -> bytes:
        command = [self._programs / "ringpost", "--to", f"unix:{self.socket}", *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
        if done.returncode != 0:
            raise RuntimeError(f"{arguments}: exit {done.returncode}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def uids(self, user: str) -> list[int]:
        lines = self._ringpost(["--json", "list", user]).splitlines()
        return [json.loads(line)["uid"] for line in lines]

    def contents(self, user: str) -> list[bytes]:
        """Every message of the user's INBOX as `show` gives it."""
        return [self._ringpost(["show", user, str(uid)]) for uid in self.uids(user)]

    def export(self, user: str, to: pathlib.Path) -> None:
        to.write_bytes(self._ringpost(["export", user]))

    def status(self) -> dict[str, str]:
        lines = self._ringpost(["status"]).decode().splitlines()
        return dict(line.split("\t", 1) for line in lines)

    def check(self) -> subprocess.CompletedProcess[str]:
        """Offline: only after `stop`."""
        command = [self._programs / "ringpost", "--data", str(self.data), "check"]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)

    def segments(self) -> list[pathlib.Path]:
        return sorted(self.data.glob("p/*/*/*.mbox"))
