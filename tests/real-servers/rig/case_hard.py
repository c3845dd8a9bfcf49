"""Machines that give less than they should: a clear sentence or plain service, and nothing lost."""

from __future__ import annotations

import ctypes
import os
import pathlib
import pwd
import resource
import struct
import subprocess
import time
from collections.abc import Callable

from case_lmtp import Session
from node import Node
from verdict import Verdict

# Small enough for a small disk.
SMALL = ["accounts.accept=any", "cores=1", "log_bytes_per_core=16 MiB", "memory_per_core=64 MiB"]


def run(verdict: Verdict, scratch: pathlib.Path, programs: pathlib.Path) -> None:
    _limits(verdict, scratch, programs)
    _no_ring(verdict, scratch, programs)
    _disks(verdict, scratch, programs)


def _letter(number: int) -> bytes:
    received = b"Received: from rig.test by rig.test with ESMTP id %d\n" % number
    return received + b"Subject: letter %d\n\n" % number + b"x" * 3_000 + b"\n"


def _folder(scratch: pathlib.Path, name: str) -> pathlib.Path:
    folder = scratch / name
    folder.mkdir()
    return folder


def _as_nobody(kind: int, most: int) -> Callable[[], None]:
    """Root has more than its limits say."""
    nobody = pwd.getpwnam("nobody")

    def prepare() -> None:
        resource.setrlimit(kind, (most, most))
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)

    return prepare


def _limits(verdict: Verdict, scratch: pathlib.Path, programs: pathlib.Path) -> None:
    for name, kind, most in [
        ("nofile", resource.RLIMIT_NOFILE, 1_024),
        ("memlock", resource.RLIMIT_MEMLOCK, 64 << 10),
    ]:
        folder = _folder(scratch, name)
        nobody = pwd.getpwnam("nobody")
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        node = Node(folder, programs, SMALL, prepare=_as_nobody(kind, most))
        try:
            codes = [node.deliver(_letter(n), ["-d", f"u{n}@rig.test"]).returncode for n in range(100)]
            verdict.check(f"{name} {most}: 100 messages for 100 users are taken", codes == [0] * 100, str(codes))
            same = [node.contents(f"u{n}@rig.test") == [_letter(n)] for n in range(100)]
            verdict.check(f"{name} {most}: they come back", all(same), str(same.count(False)))
            verdict.check(f"{name} {most}: drained", node.stop() == 0, node.log_tail())
            verdict.check(f"{name} {most}: nobody has to look", not node.errors(), node.log_tail())
        finally:
            node.end()


def _refuse_ring(errno: int) -> Callable[[], None]:
    """A seccomp filter that answers io_uring_setup(2) with `errno` (seccomp(2); 425 on all machines)."""
    code = struct.Struct("HBBI")
    filters = b"".join(
        [
            code.pack(0x20, 0, 0, 0),  # load the number of the system call
            code.pack(0x15, 0, 1, 425),  # io_uring_setup?
            code.pack(0x06, 0, 0, 0x00050000 | errno),  # SECCOMP_RET_ERRNO
            code.pack(0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        ]
    )
    array = ctypes.create_string_buffer(filters, len(filters))
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        program = struct.pack("HxxxxxxP", 4, ctypes.addressof(array))
        # PR_SET_NO_NEW_PRIVS, then PR_SET_SECCOMP with SECCOMP_MODE_FILTER.
        if libc.prctl(38, 1, 0, 0, 0) != 0 or libc.prctl(22, 2, program, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")

    return prepare


def _no_ring(verdict: Verdict, scratch: pathlib.Path, programs: pathlib.Path) -> None:
    for name, errno in [("EPERM", 1), ("ENOSYS", 38)]:
        folder = _folder(scratch, f"ring-{name}")
        command = [programs / "ringpostd", "--try", "--data", folder / "data"]
        for door in ("socket", "node", "lmtp", "admin"):
            command += ["--set", f"listen.{door}=none" if door != "socket" else f"listen.socket=unix:{folder}/s"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, preexec_fn=_refuse_ring(errno)
        )
        said = done.stderr.decode(errors="replace")
        verdict.check(f"io_uring {name}: exit 78", done.returncode == 78, f"{done.returncode}: {said}")
        sentences = [line for line in said.splitlines() if line.startswith("ringpostd:")]
        verdict.check(f"io_uring {name}: one sentence says so", len(sentences) == 1 and "io_uring" in said, said)


class Disk:
    """A small ext4 on a loop device."""

    def __init__(self, folder: pathlib.Path, mib: int) -> None:
        self.mount = folder / "disk"
        self.mount.mkdir()
        image = folder / "image"
        with image.open("wb") as file:
            file.truncate(mib << 20)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", image], check=True)
        subprocess.run(["mount", "-o", "loop", image, self.mount], check=True)

    def remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", self.mount], check=True)

    def free(self) -> int:
        about = os.statvfs(self.mount)
        return about.f_bavail * about.f_frsize

    def end(self) -> None:
        subprocess.run(["umount", self.mount], check=True)


def _until(holds: Callable[[], bool]) -> bool:
    """Whether it came true within a minute: space is looked at every second."""
    deadline = time.monotonic() + 60
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _disks(verdict: Verdict, scratch: pathlib.Path, programs: pathlib.Path) -> None:
    folder = _folder(scratch, "disks")
    disk = Disk(folder, 192)
    node = None
    try:
        node = Node(folder, programs, SMALL, data=disk.mount / "data")
        taken = list(range(50))
        for number in taken:
            verdict_code = node.deliver(_letter(number), ["-d", "bob@rig.test"]).returncode
            if verdict_code != 0:
                verdict.check("a disk with room takes mail", False, node.log_tail())
        filler = disk.mount / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, disk.free() - (1 << 20))

        def put_off() -> bool:
            number = 1_000 + len(taken)
            code = node.deliver(_letter(number), ["-d", "bob@rig.test"]).returncode
            (taken if code == 0 else refused).append(number if code == 0 else code)
            return bool(refused)

        refused: list[int] = []
        verdict.check("a full disk puts mail off with exit code 75", _until(put_off) and refused == [75], str(refused))
        with Session(node.lmtp_unix) as session:
            session.talk(b"LHLO rig.test\r\n")
            said = session.talk(b"MAIL FROM:<ann@rig.test>\r\nRCPT TO:<bob@rig.test>\r\n", 2)
            reply = said[-1]
        verdict.check("and LMTP says 452 4.3.1 at RCPT", reply.startswith("452 4.3.1"), reply)
        stored = node.contents("bob@rig.test")
        verdict.check("what was taken is served meanwhile", len(stored) == len(taken), f"{len(stored)}")

        filler.unlink()
        again = lambda: node.deliver(_letter(5_000), ["-d", "bob@rig.test"]).returncode == 0  # noqa: E731
        verdict.check("service returns by itself with the space", _until(again), node.log_tail())
        taken.append(5_000)
        verdict.check("it drains", node.stop() == 0, node.log_tail())
        done = node.check()
        verdict.check("and the store is sound", done.returncode == 0, done.stdout + done.stderr)

        disk.remount("ro")
        try:
            node.start()
            verdict.check("a read-only disk is refused", False, "it serves")
        except RuntimeError as error:
            verdict.check("a read-only disk is refused with a sentence", "read-only" in str(error).lower(), str(error))
        disk.remount("rw")
        node.start()
        stored = sorted(node.contents("bob@rig.test"))
        wanted = sorted(_letter(number) for number in taken)
        verdict.check("every acknowledged message is there, once", stored == wanted, f"{len(stored)} of {len(wanted)}")
        node.stop()
    finally:
        if node is not None:
            node.end()
        disk.end()
