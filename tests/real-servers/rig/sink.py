"""A store of twenty lines that proves the rig: what the recorder noted has to come back from here.

It speaks enough LMTP for Postfix and can damage what it stores, because a comparison that was never
seen to fail proves nothing.
"""

from __future__ import annotations

import collections
import threading

from recorder import Closed, Lines, address, listen, undot


class Sink:
    """Keeps every content it took, by recipient."""

    def __init__(self, at: str | tuple[str, int], damage: bool = False) -> None:
        self.stored: dict[str, list[bytes]] = collections.defaultdict(list)
        self._damage = damage
        self._listener = listen(at)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def contents(self, user: str) -> list[bytes]:
        return list(self.stored.get(user, []))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client) -> None:
        lines = Lines(client)
        recipients: list[str] = []
        try:
            with client:
                client.sendall(b"220 sink LMTP\r\n")
                while True:
                    line = lines.line()
                    verb = line[:4].upper()
                    if verb == b"LHLO":
                        client.sendall(b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SIZE\r\n")
                    elif verb == b"RCPT":
                        recipients.append(address(line))
                        client.sendall(b"250 2.1.5 ok\r\n")
                    elif verb == b"DATA":
                        client.sendall(b"354 go on\r\n")
                        content = undot(lines.until_dot())
                        if self._damage:
                            content = content.replace(b"e", b"3", 1)
                        for recipient in recipients:
                            self.stored[recipient].append(content)
                            client.sendall(b"250 2.0.0 stored\r\n")
                        recipients = []
                    elif verb == b"QUIT":
                        client.sendall(b"221 bye\r\n")
                        return
                    else:
                        client.sendall(b"250 2.0.0 ok\r\n")
        except (Closed, OSError):
            return
