"""2,000 real messages through Postfix and four doors, byte for byte, read by Python and mutt."""

from __future__ import annotations

import collections
import pathlib
import random

import corpus
import doors
from doors import FourDoors, compare
from node import Node
from readers import mutt_reads, python_reads, subject, unquoted
from verdict import Verdict

PER_DOOR = 500
SEED = 20261123
REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
BIG = 1 << 20


def jobs_for(mails: list[corpus.Mail], draw: random.Random) -> list[tuple[str, list[str], bytes]]:
    """The whole corpus through every door, again from the start until there are enough; big ones once."""
    jobs = []
    for door in doors.DOORS:
        users = doors.USERS[door]
        sent = 0
        while sent < PER_DOOR:
            for mail in mails:
                if sent >= max(len(mails), PER_DOOR):
                    break
                if sent >= len(mails) and len(mail.content) > BIG:
                    continue
                user = draw.choice(users)
                jobs.append(("sender@rig.test", [user if "@" in user else f"{user}@{door}"], mail.content))
                sent += 1
    draw.shuffle(jobs)
    return jobs


def run(verdict: Verdict, scratch: pathlib.Path, programs: pathlib.Path) -> None:
    draw = random.Random(SEED)
    mails = corpus.gather(REPOSITORY, scratch, SEED)
    counts = collections.Counter(mail.source.split(":")[0] for mail in mails)
    verdict.say(f"corpus: {len(mails)} mails, {dict(sorted(counts.items()))}")
    for source, least in {"cpython": 40, "perl": 2, "patch": 1, "attachment": 10, "breaker": 20}.items():
        verdict.check(f"corpus has mail from {source}", counts[source] >= least, counts)

    node = Node(scratch, programs, ["accounts.accept=any"])
    shim = f"{programs}/ringpost-deliver --socket {node.socket}"
    rig = FourDoors(scratch, node.lmtp_unix, ("127.0.0.1", node.lmtp_port), shim)
    try:
        jobs = jobs_for(mails, draw)
        done = rig.deliver(jobs, 600)
        verdict.check("Postfix delivered everything", done, f"{rig.postfix.statuses()}\n{rig.faults()}")
        statuses = rig.postfix.statuses()
        verdict.equal("nothing bounced or was deferred", set(statuses), {"sent"})
        by_door = rig.by_door()
        verdict.say(f"stored by door: {by_door}")
        for door, count in by_door.items():
            verdict.check(f"{door}: {PER_DOOR} messages or more", count >= PER_DOOR, count)
        truth = rig.handed_over()
        total = sum(len(contents) for contents in truth.values())
        differences = compare(truth, node.contents)
        verdict.check(f"show gives all {total} back byte for byte", not differences, "\n".join(differences))
    finally:
        rig.close()
        node_left_running = node.process.poll() is None
        if not node_left_running:
            verdict.check("the node still runs", False, node.log_tail())
    try:
        _exports(verdict, scratch, node, truth)
        verdict.equal("exit code after SIGTERM", node.stop(), 0)
        _segments(verdict, scratch, node, truth)
        verdict.equal("ERROR lines in the node's log", node.errors(), [])
        checked = node.check()
        verdict.equal("ringpost check", checked.returncode, 0)
        verdict.say(checked.stdout.strip())
    finally:
        node.end()


def _exports(verdict: Verdict, scratch: pathlib.Path, node: Node, truth: dict[str, list[bytes]]) -> None:
    """Each user's export: by the format's rule, by Python, by mutt."""
    wrong = []
    for number, (user, wanted) in enumerate(sorted(truth.items())):
        path = scratch / f"export-{number}.mbox"
        node.export(user, path)
        wrong += _judge(path, user, wanted, unquoted(path, store_lines=False), scratch / f"mutt-{number}")
    verdict.check(f"exports of {len(truth)} users read by rule, Python and mutt", not wrong, "\n".join(wrong))


def _segments(verdict: Verdict, scratch: pathlib.Path, node: Node, truth: dict[str, list[bytes]]) -> None:
    """The live files themselves, once the daemon is gone: user by user the same mail."""
    segments = node.segments()
    folders = collections.defaultdict(list)
    for path in segments:
        folders[path.parent].append(path)
    verdict.equal("users with segments", len(folders), len(truth))
    wanted_by_mail = {_key(contents): user for user, contents in truth.items()}
    wrong = []
    for number, paths in enumerate(folders.values()):
        found = [message for path in paths for message in unquoted(path, store_lines=True)]
        user = wanted_by_mail.get(_key(found))
        if user is None:
            wrong.append(f"{paths[0].parent}: {len(found)} messages of no user")
            continue
        for part, path in enumerate(paths):
            here = unquoted(path, store_lines=True)
            wrong += _judge(path, user, here, here, scratch / f"mutt-segment-{number}-{part}")
    verdict.check(
        f"{len(segments)} segments read by rule, Python and mutt", not wrong, "\n".join(wrong)
    )


def _key(contents: list[bytes]) -> tuple[bytes, ...]:
    return tuple(sorted(as_lf(content) for content in contents))


def as_lf(content: bytes) -> bytes:
    """As an mbox holds what an MTA hands over: LF, and a final one."""
    content = content.replace(b"\r\n", b"\n")
    return content if not content or content.endswith(b"\n") else content + b"\n"


def _judge(
    path: pathlib.Path, user: str, wanted: list[bytes], found: list[bytes], scratch: pathlib.Path
) -> list[str]:
    wrong = []
    if _key(found) != _key(wanted):
        wrong.append(f"{user}: {path.name} holds {len(found)} messages, {len(wanted)} wanted, or other bytes")
    subjects = collections.Counter(subject(as_lf(content)) for content in wanted)
    for reader, seen in (("Python", python_reads(path)), ("mutt", mutt_reads(path, scratch))):
        if collections.Counter(seen) != subjects:
            differ = collections.Counter(seen)
            differ.subtract(subjects)
            sample = {key: count for key, count in differ.items() if count}
            wrong.append(f"{user}: {reader} sees {len(seen)} of {len(wanted)} in {path.name}: {sample}"[:400])
    return wrong
