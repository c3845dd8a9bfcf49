"""Real mail that packages ship, patches of this repository, big attachments, and mbox breakers.

Nothing is installed for it: packages are fetched through apt and unpacked into the scratch folder. What
a mirror does not have is left out and said; the counts of what came are part of the verdict.
"""

from __future__ import annotations

import base64
import dataclasses
import pathlib
import random
import re
import subprocess

# Binary packages that ship mail: Go's enmime, GNU Mailman, Perl's SpamAssassin.
BINARY_PACKAGES = ["golang-github-jhillyerd-enmime-dev", "mailman3", "spamassassin"]
# The test data of Perl's mail modules is in their source packages.
SOURCE_PACKAGES = [
    "libmail-mbox-messageparser-perl",
    "libemail-simple-perl",
    "libmime-tools-perl",
    "libemail-mime-perl",
    "libmail-message-perl",
]
PYTHON_DATA = "/usr/lib/python3.11/test/test_email/data"
FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")


@dataclasses.dataclass(frozen=True)
class Mail:
    """Where it is from, and its bytes as a client would send them."""

    source: str
    content: bytes


def looks_like_mail(data: bytes) -> bool:
    """Some header fields at the top; what else lies in a testdata folder is no mail."""
    lines = data.lstrip(b"\r\n").split(b"\n", 6)[:6]
    if lines and lines[0].startswith((b"From ", b">From ")):
        lines = lines[1:]
    return bool(lines) and FIELD.match(lines[0]) is not None and len(data) < 1 << 20


def split_mbox(data: bytes) -> list[bytes]:
    """Cuts at From_ lines, good enough to make single mails out of other programs' test boxes."""
    if not re.match(rb"From [^\n]*\d\d:\d\d", data):
        return [data]
    parts = re.split(rb"(?:\A|(?<=\n)\n)From [^\n]*\d\d:\d\d[^\n]*\n", data)
    return [part for part in parts if part.strip()]


def from_files(source: str, paths: list[pathlib.Path]) -> list[Mail]:
    mails = []
    for path in sorted(paths):
        if not path.is_file() or path.suffix in {".py", ".pm", ".go", ".pl", ".t", ".golden", ".gz"}:
            continue
        for part in split_mbox(path.read_bytes()):
            if looks_like_mail(part):
                mails.append(Mail(f"{source}:{path.name}", part))
    return mails


def python_mails() -> list[Mail]:
    return from_files("cpython", list(pathlib.Path(PYTHON_DATA).glob("*.txt")))


def _apt(arguments: list[str], folder: pathlib.Path, options: list[str]) -> bool:
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", *options, *arguments]
    done = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
    return done.returncode == 0


def packaged_mails(scratch: pathlib.Path) -> list[Mail]:
    """From Debian's binary and source packages, unpacked below `scratch`."""
    folder = scratch / "packages"
    folder.mkdir()
    mails = []
    for package in BINARY_PACKAGES:
        if not _apt(["download", package], folder, []):
            continue
        for deb in folder.glob(f"{package}_*.deb"):
            subprocess.run(["dpkg-deb", "-x", deb, folder / package], check=True)
        mails += from_files(_language(package), _mail_files(folder / package))

    sources = folder / "sources.list"
    suite = subprocess.run(
        ["sh", "-c", ". /etc/os-release; echo $VERSION_CODENAME"], capture_output=True, text=True, check=True
    ).stdout.strip()
    sources.write_text(f"deb-src http://deb.debian.org/debian {suite} main\n")
    (folder / "lists/partial").mkdir(parents=True)
    options = [f"-oDir::Etc::SourceList={sources}", "-oDir::Etc::SourceParts=/dev/null"]
    options.append(f"-oDir::State::Lists={folder / 'lists'}")
    if _apt(["update"], folder, options):
        for package in SOURCE_PACKAGES:
            if not _apt(["source", "--download-only", "--tar-only", package], folder, options):
                continue
            for archive in folder.glob(f"{package}_*.orig.tar.*"):
                (folder / package).mkdir(exist_ok=True)
                subprocess.run(["tar", "-xf", archive, "-C", folder / package], check=True)
            mails += from_files(_language(package), _mail_files(folder / package))
    return mails


def _language(package: str) -> str:
    return "perl" if package.endswith("-perl") or package == "spamassassin" else package


def _mail_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Files that are test data by their folder or their name."""
    found = []
    for path in folder.rglob("*"):
        where = "/".join(path.parts[-4:])
        if re.search(r"testdata|test-mails|mailboxes|testmsgs|[Mm]ails?/|tests?/data|t/", where):
            found.append(path)
        elif path.suffix in {".eml", ".msg", ".mbox"} or path.name.startswith("sample-"):
            found.append(path)
    return found


def patches(repository: pathlib.Path, scratch: pathlib.Path) -> list[Mail]:
    """git format-patch of this repository's history, the newest 300."""
    folder = scratch / "patches"
    folder.mkdir()
    command = ["git", "-c", f"safe.directory={repository}", "-C", str(repository), "format-patch", "--root"]
    command += ["--quiet", "-300", "--output-directory", str(folder), "HEAD"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return [
        Mail(f"patch:{path.name}", path.read_bytes().split(b"\n", 1)[1])
        for path in sorted(folder.iterdir())
        if path.stat().st_size < 4 << 20
    ]


def attachments(random_source: random.Random) -> list[Mail]:
    """Around the limit where the store changes its ways (128 KiB), and up to several MiB."""
    mails = []
    for kib in [60, 90, 95, 96, 97, 100, 200, 300, 500, 800, 1024, 2048, 4096, 6144]:
        data = random_source.randbytes(kib * 1024)
        lines = base64.encodebytes(data)
        mails.append(
            Mail(
                f"attachment:{kib}K",
                b"From: rig@rig.test\nTo: you@rig.test\nSubject: %d KiB attached\nMIME-Version: 1.0\n" % kib
                + b"Content-Type: application/octet-stream\nContent-Transfer-Encoding: base64\n\n"
                + lines,
            )
        )
    return mails


def breakers() -> list[Mail]:
    """Made to be read as two messages, as none, or as another one."""
    head = b"From: a@rig.test\nTo: b@rig.test\nSubject: %s\n"
    date = b"Mon Nov  5 10:00:00 2001"
    bodies = {
        b"From in body": b"\nhello\n\nFrom me to you\n\nFrom nobody@rig.test " + date + b"\nSubject: forged\n\nx\n",
        b"From first in body": b"\nFrom nobody@rig.test " + date + b"\n\nx\n",
        b"From last without empty line": b"\nx\nFrom nobody@rig.test " + date + b"\n",
        b"quoting depths": b"\n" + b"".join(b">" * depth + b"From x " + date + b"\n" for depth in range(12)),
        b"deep quoting": b"\n" + b">" * 900 + b"From x\n",
        b"From alone": b"\nFrom\nFrom \nFrom:\nFrom : x\nFROM x " + date + b"\nfrom x\n>From\n>>From \n",
        b"Content-Length too long": b"Content-Length: 100000\n\nFrom x " + date + b"\nSubject: forged\n\nx\n",
        b"Content-Length too short": b"Content-Length: 1\n\nbody\n\nFrom x " + date + b"\n\nx\n",
        b"Content-Length negative": b"Content-Length: -5\n\nbody\n",
        b"forged store header": b"X-Ringpost: 1 0 0 0\nX-UID: 77\nStatus: RO\nX-Status: D\n\nbody\n",
        b"forged header in body": b"\nX-Ringpost: 1 0 0 0\nStatus: O\n\nX-Ringpost: x\n",
        b"dots": b"\n.\n..\n.x\n...\n. \n",
        b"empty lines at the end": b"\nx\n\n\n\n",
        b"no body": b"",
        b"empty body": b"\n",
        b"8-bit": b"Content-Type: text/plain; charset=utf-8\n\n\xc3\xa4\xc3\xb6\xc3\xbc \xff\xfe\x80\n",
        b"control characters": b"\n\x01\x02\x0b\x0c\x1b[0m\x7f\n",
        b"trailing blanks": b"\nx   \n\t\n  y\t \n",
        b"long line": b"\n" + b"0123456789" * 5_000 + b"\n",
        b"many empty lines": b"\n" * 3_000,
        b"folded": b"X-Folded: a\n\tb\n c\n  From x " + date + b"\n\nbody\n",
    }
    mails = [Mail(f"breaker:{name.decode()}", head % name + body) for name, body in bodies.items()]
    mails.append(Mail("breaker:no headers", b"\nFrom the first line on, body only\nFrom x " + date + b"\n"))
    mails.append(Mail("breaker:no colon", b"this is not a header field\nneither is this\n\nbody\n"))
    mails.append(Mail("breaker:From_ first", b"From x@rig.test " + date + b"\nSubject: enveloped\n\nbody\n"))
    mails.append(Mail("breaker:empty", b""))
    return mails


def gather(repository: pathlib.Path, scratch: pathlib.Path, seed: int) -> list[Mail]:
    """The whole corpus in an order given by `seed`."""
    draw = random.Random(seed)
    mails = python_mails() + packaged_mails(scratch) + patches(repository, scratch)
    mails += attachments(draw) + breakers()
    draw.shuffle(mails)
    return mails
