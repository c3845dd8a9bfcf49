"""A Postfix of one's own: configuration, queue and data in the scratch folder, loopback only.

There is no smtp(8) client in its master.cf and every transport but the tested ones is `error:`, so
nothing can leave this machine. One domain per door:

    lu.test     LMTP over a Unix socket        lt.test     LMTP over TCP
    pipe.test   pipe(8) through the shim       local.test  local(8) with mailbox_command
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import socket
import subprocess
import threading
import time

MAIN = """
compatibility_level = 3.6
config_directory = {conf}
queue_directory = {queue}
data_directory = {data}
mail_owner = postfix
setgid_group = postdrop
myhostname = rig.test
mydomain = rig.test
myorigin = rig.test
mydestination = local.test
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
maillog_file = {log}
maillog_file_prefixes = {log}
disable_dns_lookups = yes
smtp_host_lookup = native
default_transport = error:this rig relays nothing
relay_transport = error:this rig relays nothing
relay_domains =
alias_maps =
alias_database =
local_recipient_maps =
virtual_mailbox_domains = lu.test lt.test pipe.test
virtual_mailbox_maps = static:all
transport_maps = inline:{{ lu.test=lmtp:unix:{lmtp_unix}, lt.test=lmtp:inet:127.0.0.1:{lmtp_port},
  pipe.test=ringpost: }}
mailbox_command = {wrapper}
recipient_delimiter = +
message_size_limit = 50000000
mailbox_size_limit = 0
lmtp_destination_recipient_limit = 1000
lmtp_destination_concurrency_limit = 64
ringpost_destination_recipient_limit = 1
smtpd_recipient_restrictions = permit_mynetworks, reject
smtpd_client_connection_count_limit = 0
smtpd_forbid_bare_newline = no
strict_mime_encoding_domain = no
in_flow_delay = 0
minimal_backoff_time = 5s
maximal_backoff_time = 10s
queue_run_delay = 5s
"""

MASTER = """
127.0.0.1:{smtp_port} inet n - n - - smtpd
pickup    unix  n - n 60  1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
proxywrite unix - - n - 1 proxymap
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
local     unix  - n n - - local
lmtp      unix  - - n - - lmtp flags=RX
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
ringpost  unix  - n n - 8 pipe
  flags=RXhu user=nobody argv={wrapper} -f ${{sender}} -q ${{queue_id}} -d ${{recipient}}
"""


class Postfix:
    """Started on construction, stopped by `stop`."""

    def __init__(self, scratch: pathlib.Path, wrapper: pathlib.Path, lmtp_unix: str, lmtp_port: int) -> None:
        self.smtp_port = free_port()
        self._conf = scratch / "postfix"
        self.log = pathlib.Path(f"{scratch}/postfix.log")
        names = {
            "conf": self._conf,
            "queue": scratch / "queue",
            "data": scratch / "postfix-data",
            "log": self.log,
            "lmtp_unix": lmtp_unix,
            "lmtp_port": lmtp_port,
            "smtp_port": self.smtp_port,
            "wrapper": wrapper,
        }
        self._conf.mkdir()
        (scratch / "queue").mkdir()
        (scratch / "postfix-data").mkdir()
        shutil.chown(scratch / "postfix-data", "postfix", "root")
        (self._conf / "main.cf").write_text(MAIN.format(**names))
        (self._conf / "master.cf").write_text(MASTER.format(**names))
        dynamic = pathlib.Path("/etc/postfix/dynamicmaps.cf")
        if dynamic.exists():
            shutil.copy(dynamic, self._conf)
        self._call("check")
        self._call("start")
        self._pid_file = scratch / "queue/pid/master.pid"
        wait_for(lambda: can_connect(self.smtp_port), 30, "Postfix to listen")

    def _call(self, verb: str) -> None:
        command = ["postfix", "-c", str(self._conf), verb]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise RuntimeError(f"postfix {verb}: {done.stdout}{done.stderr}")

    def stop(self) -> None:
        if not self._pid_file.exists():
            return
        pid = int(self._pid_file.read_text())
        self._call("stop")
        wait_for(lambda: not pathlib.Path(f"/proc/{pid}").exists(), 60, "Postfix to end")

    def queued(self) -> int:
        command = ["postqueue", "-c", str(self._conf), "-j"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return len(done.stdout.splitlines())

    def statuses(self) -> dict[str, int]:
        """How often its log says status=sent, bounced and deferred."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        counts: dict[str, int] = {}
        for status in re.findall(r" status=(\w+)", text):
            counts[status] = counts.get(status, 0) + 1
        return counts

    def complaints(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        bad = r"status=(?:bounced|deferred|undeliverable)|warning:|error:|fatal:|panic:"
        return "\n".join([line for line in text.splitlines() if re.search(bad, line)][:15])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
        return True
    except OSError:
        return False


def wait_for(holds, seconds: float, what: str) -> None:
    """Polls a foreign program that has no event to wait for."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.1)


def to_wire(content: bytes) -> bytes:
    """Line ends to CRLF, dots doubled, the final dot; other control characters stay."""
    lines = content.replace(b"\r\n", b"\n").split(b"\n")
    if lines and lines[-1] == b"":
        lines.pop()
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"


class Sender:
    """Hands mail to Postfix's smtpd over some connections at a time."""

    def __init__(self, port: int, connections: int = 4) -> None:
        self._port = port
        self._connections = connections

    def send(self, jobs: list[tuple[str, list[str], bytes]]) -> list[str]:
        """Each job is sender, recipients, content. Returns what smtpd did not take."""
        refused: list[str] = []
        shares = [jobs[first :: self._connections] for first in range(self._connections)]
        threads = [threading.Thread(target=self._run, args=(share, refused)) for share in shares]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return refused

    def _run(self, jobs, refused: list[str]) -> None:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 60) as sock:
                replies = sock.makefile("rb")
                expect(replies, b"220", "greeting")
                command(sock, replies, b"EHLO client.rig.test", b"250")
                for sender, recipients, content in jobs:
                    command(sock, replies, b"MAIL FROM:<%s> BODY=8BITMIME" % sender.encode(), b"250")
                    for recipient in recipients:
                        command(sock, replies, b"RCPT TO:<%s>" % recipient.encode(), b"250")
                    command(sock, replies, b"DATA", b"354")
                    sock.sendall(to_wire(content))
                    expect(replies, b"250", "content")
                command(sock, replies, b"QUIT", b"221")
        except (OSError, RuntimeError) as error:
            refused.append(str(error))


def command(sock: socket.socket, replies, line: bytes, code: bytes) -> None:
    sock.sendall(line + b"\r\n")
    expect(replies, code, line.decode("latin-1"))


def expect(replies, code: bytes, what: str) -> None:
    while True:
        line = replies.readline()
        if not line.startswith(code):
            raise RuntimeError(f"{what}: {line!r}")
        if line[3:4] != b"-":
            return


def shim_wrapper(path: pathlib.Path, notes: pathlib.Path, program: str) -> None:
    """A program for pipe(8) and mailbox_command that notes its stdin and passes it on to `program`.

    pipe(8) gives arguments, local(8) the environment: USER, EXTENSION, SENDER.
    """
    path.write_text(
        f"""#!/bin/bash
note=$(mktemp {notes}/XXXXXXXXXXXX) || exit 75
if [ $# -gt 0 ]; then
    arguments=("$@")
    recipient=${{!#}}
else
    arguments=(-f "$SENDER" -d "$USER")
    [ -z "$EXTENSION" ] || arguments+=(-m "$EXTENSION")
    recipient=$USER
fi
printf '%s' "$recipient" >"$note.recipient"
tee "$note.content" | {program} "${{arguments[@]}}"
status=("${{PIPESTATUS[@]}}")
echo "${{status[1]}}" >"$note.status.part"
mv "$note.status.part" "$note.status"
exit "${{status[1]}}"
"""
    )
    path.chmod(0o755)


def noted(notes: pathlib.Path) -> list[tuple[str, bytes, int]]:
    """What the wrapper noted: recipient, stdin, exit code of the shim."""
    found = []
    for status in sorted(notes.glob("*.status")):
        base = str(status)[: -len(".status")]
        found.append(
            (
                pathlib.Path(base + ".recipient").read_text(),
                pathlib.Path(base + ".content").read_bytes(),
                int(status.read_text()),
            )
        )
    return found


def make_notes(folder: pathlib.Path) -> pathlib.Path:
    folder.mkdir()
    os.chmod(folder, 0o1777)
    return folder
