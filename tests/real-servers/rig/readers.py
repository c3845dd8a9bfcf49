"""Foreign readers of mbox files: Python's mailbox module and mutt."""

from __future__ import annotations

import mailbox
import os
import pathlib
import re
import subprocess

STORE_LINE = re.compile(rb"X-Ringpost: 1 [^\n]*\n")
MUTTRC = """
set folder = {folder}
set spoolfile = {mbox}
set mbox_type = Maildir
set copy = no
set read_only = yes
set mail_check = 0
set timeout = 1
set quit = yes
set delete = no
set move = no
set mark_old = no
set wait_key = no
set confirmappend = no
set confirmcreate = no
set sleep_time = 0
set beep = no
set auto_tag = yes
set header_cache = ""
"""


def subject(content: bytes) -> bytes | None:
    """The first Subject field as it stands, unfolded; `None` if there is none.

    Read with as little cleverness as possible, so that two programs' copies can be compared.
    """
    head = re.split(rb"\r?\n\r?\n", content, maxsplit=1)[0] if not content.startswith((b"\n", b"\r\n")) else b""
    found = re.search(rb"(?im)^subject[ \t]*:[ \t]*([^\n]*(?:\n[ \t][^\n]*)*)", head)
    return re.sub(rb"\r?\n[ \t]+", b" ", found.group(1)).strip() if found else None


def python_reads(path: pathlib.Path) -> list[bytes | None]:
    """The subjects of all messages that mailbox.mbox sees, in order."""
    box = mailbox.mbox(str(path), create=False)
    try:
        return [subject(box.get_bytes(key)) for key in box.keys()]
    finally:
        box.close()


def mutt_reads(path: pathlib.Path, scratch: pathlib.Path) -> list[bytes | None]:
    """The subjects of all messages that mutt sees.

    mutt opens the file read-only, tags everything and copies it into a Maildir: one file a message. It
    wants a terminal, which script(1) gives.
    """
    scratch.mkdir()
    target = scratch / "copies"
    config = scratch / "muttrc"
    config.write_text(MUTTRC.format(folder=scratch, mbox=path))
    keys = f"<tag-pattern>~A<enter><tag-prefix><copy-message>{target}<enter><exit>"
    mutt = f"mutt -n -R -F {config} -f {path} -e 'push \"{keys}\"'"
    environment = {"TERM": "xterm", "HOME": str(scratch), "PATH": os.environ["PATH"], "LANG": "C", "LINES": "50"}
    done = subprocess.run(
        ["script", "-qec", mutt, "/dev/null"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        env=environment,
    )
    if not target.exists():
        raise RuntimeError(f"mutt copied nothing from {path}: {done.stdout[-500:]!r}")
    copies = [*target.glob("new/*"), *target.glob("cur/*")]
    return [subject(copy.read_bytes()) for copy in copies]


def unquoted(path: pathlib.Path, store_lines: bool) -> list[bytes]:
    """The messages of an mboxrd file by the rule of its format alone, without their store lines.

    A message ends before an empty line and a From_ line or the end of the file; one `>` comes off
    every line of `>`s and `From `.
    """
    data = path.read_bytes()
    if not data:
        return []
    messages = []
    for part in re.split(rb"(?:\A|(?<=\n)\n)(?=From )", data)[1:]:
        _, _, rest = part.partition(b"\n")
        if store_lines:
            stored = STORE_LINE.match(rest)
            rest = rest[stored.end() :] if stored else b"no store line: " + rest
        messages.append(re.sub(rb"(?m)^>(>*From )", rb"\1", rest))
    # The empty line behind the last message.
    messages[-1] = messages[-1].removesuffix(b"\n")
    return messages
