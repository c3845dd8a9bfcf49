"""What the kernel saw while mail came in: one durable write per batch, nothing else that is slow.

perf's tracepoints of the daemon's threads: each submitted ring operation, each one that was handed to
an io-wq worker, and the system calls that make files durable. A checkpoint may do all of these, so none
is due while we look.

One exception is known and counted. A direct write that spans two extents of a log file is not taken by
ext4 without blocking (the trace of ext4's own events shows the lookup end inside the write), so the
kernel gives it to a worker: at most once for each place where the file is not contiguous on the disk.
"""

from __future__ import annotations

import collections
import pathlib
import re
import subprocess
import time

from case_lmtp import Session
from node import Node
from verdict import Verdict

CONNECTIONS = 32
ROUNDS = 60
RECIPIENTS = 4
EVENTS = [
    "io_uring:io_uring_submit_req",
    "io_uring:io_uring_queue_async_work",
    *(f"syscalls:sys_enter_{call}" for call in ("fsync", "fdatasync", "syncfs", "sync_file_range", "msync")),
]
# Operations of the engine's ring that touch files; sockets are tokio-uring's.
SLOW = {"FSYNC", "SYNC_FILE_RANGE", "FALLOCATE", "STATX", "RENAMEAT", "UNLINKAT", "MKDIRAT", "LINKAT"}


def run(verdict: Verdict, scratch: pathlib.Path, programs: pathlib.Path) -> None:
    node = Node(scratch, programs, ["accounts.accept=any", "checkpoint_interval=1 h"])
    trace = scratch / "perf.data"
    try:
        sessions = [Session(node.lmtp_unix) for _ in range(CONNECTIONS)]
        for session in sessions:
            session.talk(b"LHLO rig.test\r\n")
        _burst(sessions, 0, 3)  # warm: log files armed, users known, pages touched
        before, workers_before = node.status(), _workers(node)
        tracer = _start_tracer(node, trace)
        _burst(sessions, 3, ROUNDS)
        after, workers_after = node.status(), _workers(node)
        tracer.terminate()
        tracer.wait(60)
        submitted, queued, calls = _read(trace)
        boundaries = _boundaries(node)
    finally:
        node.end()

    def grown(name: str) -> int:
        return int(after[name]) - int(before[name])

    messages, recipients = CONNECTIONS * ROUNDS, CONNECTIONS * ROUNDS * RECIPIENTS
    frames = grown("log.frames")
    verdict.say(f"{messages} messages to {recipients} recipients: {frames} log frames")
    verdict.say(f"ring operations: {dict(submitted.most_common())}")
    verdict.say(f"handed to io-wq: {dict(queued)}; durability calls: {dict(calls)}")
    verdict.say(f"io-wq threads before {workers_before}, after {workers_after} (idle ones stay a while)")
    verdict.equal("recipients stored", grown("messages.stored"), recipients)
    verdict.check("the trace saw the log's writes", submitted["WRITE_FIXED"] > 0, submitted)
    # An idle NOOP frame may fall between the two looks at the counter and the trace.
    verdict.check("one log write per frame", abs(submitted["WRITE_FIXED"] - frames) <= 8, (submitted, frames))
    verdict.check("a frame holds more than one message", frames < messages, frames)
    verdict.check("fewer than 0.25 durable writes per recipient", frames * 4 < recipients, frames)
    verdict.equal("ring operations that are slow", sorted(SLOW & set(submitted)), [])
    verdict.equal("fsync, fdatasync, syncfs, sync_file_range, msync", sum(calls.values()), 0)
    slow = {name: count for name, count in queued.items() if name != "WRITE_FIXED"}
    verdict.equal("operations handed to an io-wq worker, log writes apart", slow, {})
    verdict.check(
        f"log writes handed to a worker: only across the {boundaries} extent ends of the log files",
        queued["WRITE_FIXED"] <= boundaries,
        queued,
    )


def _burst(sessions: list[Session], first: int, rounds: int) -> None:
    """In each round every connection has one message under way."""
    for number in range(first, first + rounds):
        for index, session in enumerate(sessions):
            body = b"Received: id %d.%d\r\nSubject: trace\r\n\r\n" % (number, index) + b"x" * 2000 + b"\r\n"
            envelope = b"MAIL FROM:<a@rig.test>\r\n"
            for recipient in range(RECIPIENTS):
                envelope += b"RCPT TO:<u%d@ring.test>\r\n" % (index * RECIPIENTS + recipient)
            session.send(envelope + b"BDAT %d LAST\r\n" % len(body) + body)
        for session in sessions:
            replies = session.replies(1 + 2 * RECIPIENTS)
            wrong = [reply for reply in replies if not reply.startswith("250")]
            if wrong:
                raise RuntimeError(f"not stored: {wrong}")


def _start_tracer(node: Node, trace: pathlib.Path) -> subprocess.Popen[bytes]:
    command = ["perf", "record", "-q", "-p", str(node.process.pid), "-o", str(trace)]
    for event in EVENTS:
        command += ["-e", event]
    tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    # It says nothing when it is ready: its buffers are mapped then.
    deadline = time.monotonic() + 30
    while "perf_event" not in _maps(tracer.pid):
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"perf does not trace: {tracer.stderr.read().decode(errors='replace')}")
        time.sleep(0.05)
    time.sleep(0.5)
    return tracer


def _maps(pid: int) -> str:
    try:
        return pathlib.Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def _workers(node: Node) -> int:
    """io-wq threads are tasks of the process that owns the ring, named iou-wrk-*."""
    names = []
    for comm in pathlib.Path(f"/proc/{node.process.pid}/task").glob("*/comm"):
        try:
            names.append(comm.read_text())
        except OSError:
            continue
    return sum(name.startswith("iou-wrk") for name in names)


def _boundaries(node: Node) -> int:
    """Places in all log files where one extent ends and another begins."""
    logs = sorted(node.data.glob("log/*/*.log"))
    done = subprocess.run(["filefrag", *logs], capture_output=True, text=True, timeout=60, check=True)
    return sum(int(count) - 1 for count in re.findall(r": (\d+) extents? found", done.stdout))


def _read(trace: pathlib.Path) -> tuple[collections.Counter, collections.Counter, collections.Counter]:
    """Operations submitted, operations handed to io-wq, and system calls, each by name."""
    command = ["perf", "script", "-i", str(trace), "-F", "event,trace"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=True)
    submitted, queued, calls = collections.Counter(), collections.Counter(), collections.Counter()
    for line in done.stdout.splitlines():
        opcode = re.search(r"opcode (\w+)", line)
        if "io_uring_submit_req" in line and opcode:
            submitted[opcode.group(1)] += 1
        elif "io_uring_queue_async_work" in line and opcode:
            queued[opcode.group(1)] += 1
        elif call := re.search(r"sys_enter_(\w+)", line):
            calls[call.group(1)] += 1
    return submitted, queued, calls
