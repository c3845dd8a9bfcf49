"""Contents that are easily damaged (mail.md 6.4), through every door, byte for byte.

Never through an MTA: those change bytes themselves.
"""

from __future__ import annotations

import pathlib

from case_lmtp import Session
from node import Node
from readers import python_reads, unquoted
from verdict import Verdict

HEAD = b"Subject: x\r\n\r\n"
FROM = b"From rig@rig.test Mon Nov  5 10:00:00 2001"


def contents() -> dict[str, bytes]:
    """Each by a name. Whatever has no Received field is never taken for a duplicate."""
    cases = {
        "empty": b"",
        "header only": b"Subject: x\n",
        "body only": b"\nbody\n",
        "no final newline": b"Subject: x\n\nbody",
        "ends with CR": b"Subject: x\r\n\r\nbody\r",
        "ends with LF among CRLF": HEAD + b"a\r\nb\n",
        "CRLF throughout": HEAD + b"a\r\nb\r\n",
        "mixed line ends": b"Subject: x\n\na\r\nb\nc\r\n",
        "bare CR": HEAD + b"a\rb\r\rc\r\n",
        "CR CR LF": HEAD + b"a\r\r\nb\r\n",
        "NUL": HEAD + b"a\x00b\x00\r\n",
        "0xff": HEAD + b"\xff\xfe\xff\r\n",
        "UTF-8 header": b"Subject: \xc3\xa4\xc3\xb6\n\nx\n",
        "From_ in header": b"Subject: x\n" + FROM + b"\n\nx\n",
        "From_ first in body": b"Subject: x\n\n" + FROM + b"\n\nx\n",
        "From_ last": b"Subject: x\n\nx\n" + FROM,
        "quoted From": b"Subject: x\n\n>From x\n>>From x\n>>>>From x\nFrom:\nFrom : x\nFrom\n",
        "deep quoting": b"Subject: x\n\n" + b">" * 10_000 + b"From x\n",
        "2 MiB line": HEAD + b"0123456789abcdef" * (2 << 16) + b"\r\n",
        "dots": HEAD + b".\r\n..\r\n.x\r\n...\r\n",
        "LF dot LF": HEAD + b"a\n.\nb\n.\r\nc\r\n",
        "forged store lines": b"X-Ringpost: 1 m=1\nContent-Length: 9\nStatus: RO\nX-UID: 7\n\nx\n",
        "forged Return-Path": b"Return-Path: <evil@rig.test>\nSubject: x\n\nx\n",
        "trailing blanks": HEAD + b"x  \r\n\t\r\n",
        "three empty lines at the end": b"Subject: x\n\nx\n\n\n\n",
        "mixed end in the last line of a large one": HEAD + b"a line of text\r\n" * 20_000 + b"end\n",
    }
    for size in (131_071, 131_072, 131_073):
        cases[f"{size} bytes"] = HEAD + b"z" * (size - len(HEAD) - 2) + b"\r\n"
    for size in range(1, 6):
        cases[f"the first {size} bytes of CRLF.CRLF"] = HEAD + b"x" + b"\r\n.\r\n"[:size]
    return cases


def run(verdict: Verdict, scratch: pathlib.Path, programs: pathlib.Path) -> None:
    node = Node(scratch, programs, ["accounts.accept=any"])
    cases = contents()
    try:
        _shim(verdict, node, cases)
        _bdat(verdict, node, cases)
        _data(verdict, node, cases)
        users = ["shim@bytes.test", "bdat@bytes.test", "data@bytes.test"]
        before = {user: node.contents(user) for user in users}
        # Once from the log, once from segments and index, once from an export.
        verdict.equal("exit code after SIGTERM", node.stop(), 0)
        verdict.equal("ringpost check", node.check().returncode, 0)
        node.start()
        after = {user: node.contents(user) for user in users}
        verdict.check("the same after a restart", before == after, "show differs")
        for user in users:
            path = scratch / "export"
            node.export(user, path)
            wanted = [_in_mbox(content) for content in before[user]]
            found = unquoted(path, store_lines=False)
            differ = [(got[:60], want[:60]) for got, want in zip(found, wanted) if got != want]
            verdict.check(f"{user}: export unquoted", found == wanted, f"{len(found)} {differ[:5]}")
            verdict.equal(f"{user}: Python counts", len(python_reads(path)), len(wanted))
    finally:
        node.end()


def _in_mbox(content: bytes) -> bytes:
    """An mbox has LF where all line ends were CRLF; a final one is always there."""
    if content.count(b"\n") == content.count(b"\r\n"):
        content = content.replace(b"\r\n", b"\n")
    return content if not content or content.endswith(b"\n") else content + b"\n"


def _compare(verdict: Verdict, door: str, node: Node, user: str, cases: dict[str, bytes]) -> None:
    stored = node.contents(user)
    wrong = [name for (name, content), got in zip(cases.items(), stored) if got != content]
    verdict.check(
        f"{door}: {len(cases)} contents byte for byte",
        len(stored) == len(cases) and not wrong,
        f"{len(stored)} stored, wrong: {wrong}",
    )


def _shim(verdict: Verdict, node: Node, cases: dict[str, bytes]) -> None:
    # A From_ line at the very start is an envelope to the shim; none of the contents has one.
    for name, content in cases.items():
        done = node.deliver(content, ["-f", "a@rig.test", "-d", "shim@bytes.test"])
        if done.returncode != 0:
            verdict.check(f"shim takes {name}", False, done.stderr.decode(errors="replace"))
    _compare(verdict, "shim", node, "shim@bytes.test", cases)


def _bdat(verdict: Verdict, node: Node, cases: dict[str, bytes]) -> None:
    with Session(node.lmtp_unix) as session:
        session.talk(b"LHLO rig.test\r\n")
        for name, content in cases.items():
            session.talk(b"MAIL FROM:<a@rig.test>\r\nRCPT TO:<bdat@bytes.test>\r\n", 2)
            cut = len(content) // 3
            chunks = b"BDAT %d\r\n%sBDAT %d LAST\r\n%s" % (cut, content[:cut], len(content) - cut, content[cut:])
            got = session.talk(chunks, 2)
            if not got[-1].startswith("250"):
                verdict.check(f"BDAT takes {name}", False, got)
    _compare(verdict, "BDAT", node, "bdat@bytes.test", cases)


def _data(verdict: Verdict, node: Node, cases: dict[str, bytes]) -> None:
    """DATA can only carry contents that end with CRLF, or nothing."""
    fit = {name: content for name, content in cases.items() if not content or content.endswith(b"\r\n")}
    with Session(("127.0.0.1", node.lmtp_port)) as session:
        session.talk(b"LHLO rig.test\r\n")
        for name, content in fit.items():
            session.talk(b"MAIL FROM:<a@rig.test>\r\nRCPT TO:<data@bytes.test>\r\nDATA\r\n", 3)
            dotted = content.replace(b"\r\n.", b"\r\n..")
            got = session.talk((b"." + dotted if dotted.startswith(b".") else dotted) + b".\r\n")
            if not got[0].startswith("250"):
                verdict.check(f"DATA takes {name}", False, got)
    _compare(verdict, "DATA", node, "data@bytes.test", fit)
