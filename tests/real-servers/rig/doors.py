"""Postfix in front, a store behind, and a recorder at each of the four doors between them.

`deliver` sends mail through Postfix and returns when every recipient's fate is known; `handed_over` is
what the MTA gave to each recipient and was told it was stored: the truth that a store is held against.
"""

from __future__ import annotations

import collections
import pathlib
import re
import time
from collections.abc import Callable

from postfix import Postfix, Sender, free_port, make_notes, noted, shim_wrapper
from recorder import Recorder

# local(8) runs mailbox_command as the recipient, so these are accounts that every Debian has.
LOCAL_USERS = ["games", "man", "lp", "mail", "news", "uucp", "proxy", "backup", "list", "irc"]
DOORS = ["lu.test", "lt.test", "pipe.test", "local.test"]
USERS = {door: [f"u{number}@{door}" for number in range(10)] for door in DOORS[:3]}
USERS["local.test"] = LOCAL_USERS

# `From x@y Mon ...` is an envelope; `From : x@y` is a header field (RFC 822's obsolete form).
ENVELOPE = re.compile(rb"From (?![ \t]*:)[^\n]*\n")


def without_envelope(content: bytes) -> bytes:
    """Takes off the From_ line that local(8) and many scripts put first."""
    found = ENVELOPE.match(content)
    return content[found.end() :] if found else content


class FourDoors:
    """One Postfix and its recorders in front of one store."""

    def __init__(
        self,
        scratch: pathlib.Path,
        lmtp_unix: str | tuple[str, int],
        lmtp_tcp: str | tuple[str, int],
        shim: str,
    ) -> None:
        port = free_port()
        self._unix = Recorder(str(scratch / "front"), lmtp_unix)
        self._tcp = Recorder(("127.0.0.1", port), lmtp_tcp)
        self._notes = make_notes(scratch / "notes")
        wrapper = scratch / "shim"
        shim_wrapper(wrapper, self._notes, shim)
        self.postfix = Postfix(scratch, wrapper, str(scratch / "front"), port)
        self.refused: list[str] = []

    def close(self) -> None:
        self.postfix.stop()
        self._unix.close()
        self._tcp.close()

    def deliver(self, jobs: list[tuple[str, list[str], bytes]], seconds: float) -> bool:
        """Whether the queue ran empty in time."""
        self.refused += Sender(self.postfix.smtp_port).send(jobs)
        wanted = sum(len(recipients) for _, recipients, _ in jobs)
        deadline = time.monotonic() + seconds
        self._unix.wait_recipients(self._count(jobs, "lu.test"), seconds)
        self._tcp.wait_recipients(self._count(jobs, "lt.test"), max(1.0, deadline - time.monotonic()))
        while self.postfix.statuses().get("sent", 0) < wanted or self.postfix.queued() > 0:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True

    @staticmethod
    def _count(jobs: list[tuple[str, list[str], bytes]], door: str) -> int:
        return sum(recipient.endswith(door) for _, recipients, _ in jobs for recipient in recipients)

    def faults(self) -> str:
        """What went wrong in the rig or at the doors, for a failed check."""
        lines = self.refused[:5] + self._unix.errors[:5] + self._tcp.errors[:5]
        lines += [f"shim exit {code} for {user}" for user, _, code in noted(self._notes) if code][:5]
        return "\n".join([*lines, self.postfix.complaints()])

    def handed_over(self) -> dict[str, list[bytes]]:
        """Recipient -> every content that was answered with success, as the store got it."""
        truth: dict[str, list[bytes]] = collections.defaultdict(list)
        for recorder in (self._unix, self._tcp):
            for one in recorder.handed:
                for recipient, reply in zip(one.recipients, one.replies, strict=True):
                    if reply.startswith(b"2"):
                        truth[recipient].append(one.content)
        for recipient, content, code in noted(self._notes):
            if code == 0:
                truth[recipient].append(without_envelope(content))
        return truth

    def by_door(self) -> dict[str, int]:
        counts = dict.fromkeys(DOORS, 0)
        for user, contents in self.handed_over().items():
            door = user.split("@")[1] if "@" in user else "local.test"
            counts[door] += len(contents)
        return counts


def compare(truth: dict[str, list[bytes]], contents: Callable[[str], list[bytes]]) -> list[str]:
    """Where the store differs from the truth: one line per user with lost, changed or doubled mail."""
    differences = []
    for user, wanted in sorted(truth.items()):
        missing = collections.Counter(wanted)
        stored = collections.Counter(contents(user))
        extra = stored - missing
        missing -= stored
        if missing or extra:
            sample = next(iter(missing or extra))[:300]
            differences.append(
                f"{user}: {missing.total()} of {len(wanted)} missing, {extra.total()} extra, e.g. {sample!r}"
            )
    return differences
