"""An LMTP proxy that notes the exact content an MTA hands over, before the node sees it.

It changes nothing: every byte goes on as it came. Only DATA is understood as content: lmtp(8) of
Postfix 3.7 sends no BDAT. Commands are answered one at a time, which a client that pipelines does not
notice.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import threading


@dataclasses.dataclass
class Handed:
    """One transaction as the MTA saw it: what it sent and what it was told."""

    sender: str
    recipients: list[str]
    content: bytes
    replies: list[bytes]


class Closed(Exception):
    """A peer ended the connection."""


class Lines:
    """Reads lines and reply groups from a socket, keeping what came too early."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def fill(self) -> None:
        chunk = self._sock.recv(1 << 16)
        if not chunk:
            raise Closed
        self._buffer += chunk

    def line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            self.fill()
        line = bytes(self._buffer[: end + 1])
        del self._buffer[: end + 1]
        return line

    def reply(self) -> bytes:
        """A whole reply, all of its lines (RFC 5321 4.2.1)."""
        whole = bytearray()
        while True:
            line = self.line()
            whole += line
            if line[3:4] != b"-":
                return bytes(whole)

    def until_dot(self) -> bytes:
        """Everything up to and with CRLF.CRLF, which also ends an empty content (".CRLF")."""
        seen = 0
        while True:
            if self._buffer.startswith(b".\r\n"):
                end = 3
                break
            found = self._buffer.find(b"\r\n.\r\n", max(0, seen - 5))
            if found >= 0:
                end = found + 5
                break
            seen = len(self._buffer)
            self.fill()
        taken = bytes(self._buffer[:end])
        del self._buffer[:end]
        return taken


def undot(raw: bytes) -> bytes:
    """Takes the final dot and the dots behind CRLF off (RFC 5321 4.5.2)."""
    body = raw[:-3]
    if body.startswith(b"."):
        body = body[1:]
    return body.replace(b"\r\n.", b"\r\n")


def address(line: bytes) -> str:
    """What stands between the angle brackets of MAIL FROM or RCPT TO."""
    text = line.decode("latin-1")
    return text[text.find("<") + 1 : text.rfind(">")]


class Recorder:
    """Listens at `front`, talks to `back`; both are a path or a (host, port)."""

    def __init__(self, front: str | tuple[str, int], back: str | tuple[str, int]) -> None:
        self._back = back
        self._changed = threading.Condition()
        self.handed: list[Handed] = []
        self.errors: list[str] = []
        self._listener = listen(front)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def wait_recipients(self, count: int, seconds: float) -> bool:
        """Until so many recipients got a reply that is not temporary."""
        with self._changed:
            return self._changed.wait_for(lambda: self._settled() >= count, seconds)

    def _settled(self) -> int:
        return sum(not reply.startswith(b"4") for one in self.handed for reply in one.replies)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, dial(self._back) as server:
                self._relay(client, Lines(client), server, Lines(server))
        except (Closed, OSError):
            pass
        except Exception as error:  # a fault of the rig must not look like a lost message
            with self._changed:
                self.errors.append(repr(error))

    def _relay(self, client: socket.socket, commands: Lines, server: socket.socket, replies: Lines) -> None:
        client.sendall(replies.reply())
        sender, recipients = "", []
        while True:
            line = commands.line()
            server.sendall(line)
            reply = replies.reply()
            client.sendall(reply)
            verb = line[:4].upper()
            if verb == b"MAIL" and reply.startswith(b"2"):
                sender, recipients = address(line), []
            elif verb == b"RCPT" and reply.startswith(b"2"):
                recipients.append(address(line))
            elif verb == b"RSET":
                recipients = []
            elif verb == b"DATA" and reply.startswith(b"354"):
                raw = commands.until_dot()
                server.sendall(raw)
                answers = []
                for _ in recipients:
                    answers.append(replies.reply())
                    client.sendall(answers[-1])
                with self._changed:
                    self.handed.append(Handed(sender, recipients, undot(raw), answers))
                    self._changed.notify_all()
                recipients = []
            elif verb == b"QUIT":
                return


def listen(at: str | tuple[str, int]) -> socket.socket:
    if isinstance(at, str):
        if os.path.exists(at):
            os.unlink(at)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(at)
        os.chmod(at, 0o666)
    else:
        listener = socket.create_server(at)
    listener.listen(64)
    return listener


def dial(at: str | tuple[str, int], seconds: float = 60) -> socket.socket:
    if isinstance(at, str):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(seconds)
        sock.connect(at)
    else:
        sock = socket.create_connection(at, seconds)
    sock.settimeout(None)
    return sock
