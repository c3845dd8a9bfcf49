"""LMTP as clients speak it: swaks, Python's smtplib, and bytes by hand (RFC 2033, mail.md 4)."""

from __future__ import annotations

import pathlib
import re
import smtplib
import subprocess

from node import Node
from recorder import Closed, Lines, dial
from verdict import Verdict

LISTED = ["bob@example.test", "eve@example.test", "ann@example.test"]
LIMIT = 128 << 10


class Session:
    """A connection by hand; `talk` sends bytes and reads as many replies as asked for."""

    def __init__(self, at) -> None:
        self._sock = dial(at, 20)
        self._sock.settimeout(20)
        self._lines = Lines(self._sock)
        self.greeting = self._lines.reply()

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_) -> None:
        self._sock.close()

    def talk(self, data: bytes, replies: int = 1) -> list[str]:
        self.send(data)
        return self.replies(replies)

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def replies(self, count: int) -> list[str]:
        return [self._lines.reply().decode("latin-1").rstrip() for _ in range(count)]

    def ended(self) -> bool:
        try:
            self._lines.line()
            return False
        except Closed:
            return True


def run(verdict: Verdict, scratch: pathlib.Path, programs: pathlib.Path) -> None:
    users = scratch / "users"
    users.write_text("# who has an account\n" + "\n".join(LISTED) + "\n")
    node = Node(
        scratch,
        programs,
        [f"accounts.file={users}", "accounts.accept=listed", f"message_bytes_max={LIMIT // 1024} KiB"],
    )
    try:
        _swaks(verdict, node)
        _smtplib(verdict, node)
        _by_hand(verdict, node)
        verdict.equal("the node's ERROR lines", node.errors(), [])
        verdict.equal("exit code after SIGTERM", node.stop(), 0)
    finally:
        node.end()


def _codes(replies: list[str]) -> list[str]:
    """The three digits and the enhanced code of each reply."""
    return [" ".join(reply.split("\n")[-1].replace("-", " ", 1).split()[:2]) for reply in replies]


def _swaks(verdict: Verdict, node: Node) -> None:
    def swaks(*arguments: str) -> tuple[int, str]:
        command = ["swaks", "--protocol", "LMTP", "--from", "rig@rig.test", "--timeout", "20", *arguments]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    tcp = ("--server", "127.0.0.1", "--port", str(node.lmtp_port))
    unix = ("--socket", node.lmtp_unix)
    for name, door in (("TCP", tcp), ("Unix socket", unix)):
        code, said = swaks(*door, "--to", "bob@example.test,eve@example.test", "--body", f"over {name}")
        stored = re.findall(r"<-\s+250 2\.0\.0 [0-9a-f]{32} stored", said)
        verdict.check(f"swaks over {name}: one 250 per recipient", code == 0 and len(stored) == 2, said)
    code, said = swaks(*tcp, "--to", "nobody@example.test")
    verdict.check("swaks: unknown user is 550 5.1.1 at RCPT", code == 24 and "550 5.1.1" in said, said)
    code, said = swaks(*tcp, "--to", "bob@example.test,nobody@example.test", "--pipeline")
    known = "550 5.1.1" in said and len(re.findall(r"250 2\.0\.0 \S+ stored", said)) == 1
    verdict.check("swaks pipelining: known stored, unknown refused", known, said)
    code, said = swaks(*tcp, "--quit-after", "FIRST-HELO")
    wanted = ["PIPELINING", "ENHANCEDSTATUSCODES", "8BITMIME", f"SIZE {LIMIT}", "CHUNKING"]
    missing = [word for word in wanted if not re.search(rf"250[- ]{word}\b", said)]
    verdict.check("swaks: LHLO offers what it should", not missing, f"{missing}\n{said}")
    verdict.equal("both swaks mails are in the mailbox", len(node.uids("bob@example.test")), 3)


def _smtplib(verdict: Verdict, node: Node) -> None:
    with smtplib.LMTP("127.0.0.1", node.lmtp_port, timeout=20) as client:
        text = "From: a@rig.test\nSubject: from smtplib\n\n.\n..\nFrom x\n\n"
        refused = client.sendmail("a@rig.test", ["ann@example.test", "nobody@example.test"], text)
        verdict.equal("smtplib: only the unknown is refused", list(refused), ["nobody@example.test"])
        verdict.equal("smtplib: with 550", refused.get("nobody@example.test", (0,))[0], 550)
    stored = node.contents("ann@example.test")
    verdict.equal("smtplib: dots come back single", stored, [text.replace("\n", "\r\n").encode()])


def _by_hand(verdict: Verdict, node: Node) -> None:
    at = ("127.0.0.1", node.lmtp_port)
    hello = b"LHLO rig.test\r\n"
    mail = b"MAIL FROM:<a@rig.test>\r\n"
    bob = b"RCPT TO:<bob@example.test>\r\n"
    received = b"Received: by rig.test id %d\r\nSubject: x\r\n\r\n"

    with Session(at) as session:
        verdict.check("greeting", session.greeting.startswith(b"220 "), session.greeting)
        for verb in (b"HELO rig.test", b"EHLO rig.test"):
            verdict.equal(f"{verb[:4].decode()} is refused", _codes(session.talk(verb + b"\r\n")), ["500 5.5.1"])
        session.talk(hello)
        verdict.equal("DATA before MAIL", _codes(session.talk(b"DATA\r\n")), ["503 5.5.1"])
        verdict.equal("unknown word", _codes(session.talk(b"FROB\r\n"))[0][:3], "500")
        got = session.talk(mail[:-2] + b" SIZE=%d\r\n" % (LIMIT + 1))
        verdict.equal("SIZE too large is refused at MAIL", _codes(got), ["552 5.3.4"])
        got = session.talk(mail[:-2] + b" FROB=1\r\n")
        verdict.equal("unknown parameter", _codes(got), ["555 5.5.4"])

        # Everything in one write; a repeated address gets its own reply.
        batch = hello + mail + bob + b"RCPT TO:<nobody@example.test>\r\n" + bob + b"DATA\r\n"
        verdict.equal(
            "pipelined envelope",
            [code[:3] for code in _codes(session.talk(batch, 6))],
            ["250", "250", "250", "550", "250", "354"],
        )
        got = session.talk(received % 1 + b"caf\xc3\xa9 \xff\xfe\r\n.\r\n", 2)
        verdict.check("one reply per accepted RCPT", [one[:3] for one in got] == ["250", "250"], got)
        session.talk(mail + bob, 2)
        session.talk(b"DATA\r\n")
        got = session.talk(received % 1 + b"caf\xc3\xa9 \xff\xfe\r\n.\r\n")
        verdict.check("the same again is a duplicate", "duplicate" in got[0], got)

        session.talk(mail + bob, 2)
        first, last = b"Receiv", b"ed: by rig.test id 2\r\n\r\nchunked"
        got = session.talk(b"BDAT %d\r\n%sBDAT %d LAST\r\n%s" % (len(first), first, len(last), last), 2)
        verdict.equal("BDAT: one reply per chunk and recipient", [one[:3] for one in got], ["250", "250"])

        session.talk(mail + bob, 2)
        session.talk(b"DATA\r\n")
        smuggle = received % 3 + b"x\n.\nMAIL FROM:<evil@rig.test>\n.\r\nRSET\r\n.\n\r.\r\n\r\n.\r\n"
        got = session.talk(smuggle)
        verdict.equal("only CRLF.CRLF ends data", got[0][:3], "250")
        verdict.equal("the session goes on behind it", _codes(session.talk(b"NOOP\r\n"))[0][:3], "250")

        session.talk(mail + bob, 2)
        session.talk(b"DATA\r\n")
        got = session.talk(received % 4 + b"y" * LIMIT + b"\r\n.\r\n")
        verdict.equal("too large without SIZE", _codes(got), ["552 5.3.4"])

        for name, address in (
            ("empty", b""),
            ("8-bit", b"b\xc3\xb6b@example.test"),
            ("quoted", b'"bob smith"@example.test'),
            ("300 characters", b"b" * 300 + b"@example.test"),
            ("path", b"../../etc/passwd@example.test"),
            ("NUL", b"bob\x00@example.test"),
            ("source route", b"@a.test,@b.test:bob@example.test"),
        ):
            session.talk(mail)
            got = session.talk(b"RCPT TO:<%s>\r\n" % address)
            verdict.check(f"recipient: {name} is refused for good", got[0].startswith("5"), got)
            session.talk(b"RSET\r\n")
        verdict.equal("QUIT", _codes(session.talk(b"QUIT\r\n"))[0][:3], "221")
        verdict.check("and the connection ends", session.ended())

    before = len(node.uids("bob@example.test"))
    with Session(at) as session:
        session.talk(hello + mail + bob + b"DATA\r\n", 4)
        session.talk(received % 5 + b"cut in the mid", 0)
    verdict.equal("a message cut in the middle is not stored", len(node.uids("bob@example.test")), before)
    with Session(at) as session:
        last = ""
        for _ in range(25):
            try:
                last = session.talk(b"FROB\r\n")[0]
            except (Closed, OSError):
                break
        verdict.check("20 bad commands end the session with 421", last.startswith("421 4.7.0"), last)
