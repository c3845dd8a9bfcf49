#!/usr/bin/env python3
"""Runs reader.py over every store under engine/tests/fixtures and compares it with what was recorded when
they were made; then damages copies of them, to see that every checksum is looked at. `.ci/run reader`.

With RINGPOST set to that program, its own answers about the same directories are compared as well.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
FIXTURES = os.path.join(HERE, "fixtures")
sys.path.insert(0, HERE)
sys.dont_write_bytecode = True
import reader  # noqa: E402


def fixtures():
    for version in sorted(os.listdir(FIXTURES)):
        for name in sorted(os.listdir(os.path.join(FIXTURES, version))):
            path = os.path.join(FIXTURES, version, name)
            with open(os.path.join(path, "expected.json"), encoding="utf-8") as file:
                yield name, os.path.join(path, "store"), json.load(file)


def call(*words):
    """Exit code, output, complaints of reader.py."""
    done = subprocess.run([sys.executable, os.path.join(HERE, "reader.py"), *words], capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode("utf-8")


def lines(output):
    return [json.loads(line) for line in output.decode("utf-8").splitlines()]


def damages(text):
    """Files and offsets that were named."""
    return {(m.group(1), int(m.group(2))) for m in re.finditer(r"^DAMAGE: (\S+) at offset (\d+): ", text, re.M)}


class Fixtures(unittest.TestCase):
    def test_there_are_some(self):
        self.assertGreaterEqual(len(list(fixtures())), 9)

    def test_users(self):
        for name, store, expected in fixtures():
            with self.subTest(name):
                _, out, _ = call(store, "users")
                self.assertEqual(out.decode().split(), sorted(expected["users"]))

    def test_mailboxes_and_messages(self):
        for name, store, expected in fixtures():
            for user, mailboxes in expected["users"].items():
                with self.subTest(f"{name}: {user}"):
                    if isinstance(mailboxes, list):
                        self.compare(store, user, mailboxes)
                    else:
                        self.compare_damaged(store, user, mailboxes, expected)

    def compare(self, store, user, mailboxes):
        code, out, _ = call(store, "folders", user)
        folders = lines(out)
        keys = ("name", "id", "uidvalidity", "uidnext", "highest_modseq", "subscribed")
        self.assertEqual([{k: f[k] for k in keys} for f in folders], [{k: m[k] for k in keys} for m in mailboxes])
        self.assertEqual([f["messages"] for f in folders], [len(m["messages"]) for m in mailboxes])
        for mailbox in mailboxes:
            code, out, _ = call(store, "list", user, "--folder", mailbox["name"])
            listed = lines(out)
            keys = ("uid", "guid", "modseq", "flags", "keywords", "size", "rfc822_size")
            wanted = [{k: m[k] for k in keys} for m in mailbox["messages"]]
            self.assertEqual([{k: m[k] for k in keys} for m in listed], wanted)
            for message in mailbox["messages"]:
                code, out, _ = call(store, "show", user, str(message["uid"]), "--folder", mailbox["name"])
                self.assertEqual(hashlib.sha256(out).hexdigest(), message["sha256"], message)
        self.assertIn(code, (0, 1))

    def compare_damaged(self, store, user, mailboxes, expected):
        """The engine refuses this user; the document says to go on behind a bad run, which costs one message."""
        code, out, errors = call(store, "list", user)
        self.assertEqual(code, 1)
        self.assertIn((mailboxes["refused"]["file"], mailboxes["refused"]["offset"]), damages(errors))
        before = expected["before"][user][0]["messages"]
        found = [message["uid"] for message in lines(out)]
        missing = [message["uid"] for message in before if message["uid"] not in found]
        self.assertEqual((len(found), len(missing)), (len(before) - 1, 1))

    def test_check(self):
        for name, store, expected in fixtures():
            with self.subTest(name):
                code, out, errors = call(store, "check")
                wanted = {(f["file"], f["offset"]) for f in expected["findings"] if f["severity"] == "damage"}
                self.assertEqual(damages(errors), {place for place in wanted if "/info." in place[0]})
                self.assertEqual(code, 1 if wanted else 0)
                for finding in expected["findings"]:
                    if finding["severity"] == "expected":
                        self.assertIn(f"expected: {finding['file']} at offset {finding['offset']}: ", out.decode())

    def test_extract(self):
        for name, store, expected in fixtures():
            with self.subTest(name), tempfile.TemporaryDirectory() as out:
                call(store, "extract", out)
                found = {}
                for folder, _, files in os.walk(out):
                    for file in files:
                        with open(os.path.join(folder, file), "rb") as opened:
                            digest = hashlib.sha256(opened.read()).hexdigest()
                        found.setdefault(os.path.relpath(folder, out).split("/")[0], []).append(digest)
                for user, mailboxes in expected["users"].items():
                    if isinstance(mailboxes, list):
                        wanted = sorted(m["sha256"] for box in mailboxes for m in box["messages"])
                        self.assertEqual(sorted(found.get(user, [])), wanted)

    def test_nothing_is_written(self):
        for name, store, _ in fixtures():
            with self.subTest(name):
                before = sorted((path, os.stat(path).st_mtime_ns) for path in walk(store))
                call(store, "check")
                self.assertEqual(sorted((path, os.stat(path).st_mtime_ns) for path in walk(store)), before)

    @unittest.skipUnless("RINGPOST" in os.environ, "RINGPOST names no program to compare with")
    def test_ringpost_says_the_same(self):
        for name, store, expected in fixtures():
            for user, mailboxes in expected["users"].items():
                with self.subTest(f"{name}: {user}"):
                    if isinstance(mailboxes, list):
                        self.compare_program(store, user, mailboxes)

    def compare_program(self, store, user, mailboxes):
        def program(*words):
            done = subprocess.run([os.environ["RINGPOST"], "--data", store, *words], capture_output=True, check=True)
            return done.stdout

        def same(ours, theirs):
            shared = set(ours[0]) & set(theirs[0]) if ours and theirs else set()
            self.assertEqual([{k: x[k] for k in shared} for x in ours], [{k: x[k] for k in shared} for x in theirs])

        same(lines(call(store, "folders", user)[1]), lines(program("--json", "folders", user)))
        for mailbox in mailboxes:
            folder = ("--folder", mailbox["name"])
            same(lines(call(store, "list", user, *folder)[1]), lines(program("--json", "list", user, *folder)))
            for message in mailbox["messages"]:
                shown = program("show", user, str(message["uid"]), *folder)
                self.assertEqual(hashlib.sha256(shown).hexdigest(), message["sha256"])


def walk(top):
    for folder, _, files in os.walk(top):
        for file in files:
            yield os.path.join(folder, file)


class Damaged(unittest.TestCase):
    """A reader that finds nothing wrong has to be one that would have."""

    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)

    def copy(self, name):
        to = tempfile.mkdtemp(dir=self.scratch.name) + "/store"
        shutil.copytree(os.path.join(FIXTURES, "v1.0", name, "store"), to)
        return to

    def complaints(self, store):
        """What reader.py says of a store, without a process for each."""
        try:
            found = reader.Reader(store)
        except reader.Damage as damage:
            return [damage.file]
        found.check()
        return [damage.file for damage in found.damages + found.minors]

    def flips(self, name, wanted, step, free=lambda file, data, at: False):
        """Flips bytes of the files that match; the reader has to name the file each time."""
        store = self.copy(name)
        count = 0
        for path in sorted(walk(store)):
            file = os.path.relpath(path, store)
            if not re.search(wanted, file):
                continue
            with open(path, "rb") as opened:
                data = opened.read()
            for at in range(0, len(data), step):
                if free(file, data, at):
                    continue
                with open(path, "wb") as opened:
                    opened.write(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
                self.assertIn(file, self.complaints(store), f"{file} at {at}")
                count += 1
            with open(path, "wb") as opened:
                opened.write(data)
        self.assertEqual(self.complaints(store), [])
        return count

    def test_every_byte_of_mailboxes_is_looked_at(self):
        def sender(_, data, at):
            """The one thing in a segment that no checksum covers: the sender, and FORMAT.md says so."""
            start = data.rfind(b"\n\nFrom ", 0, at + 2) + 2 if data.rfind(b"\n\nFrom ", 0, at + 2) >= 0 else 0
            end = data.find(b"\n", start) - 25
            return data[start : start + 5] == b"From " and start + 5 <= at < end

        self.assertGreater(self.flips("clean", r"\.mbox$", 7, sender), 1000)
        self.assertGreater(self.flips("clean", r"/(info\.[0-9a-f]+|folders)$", 7), 500)

    def test_every_byte_of_store_and_superblocks_is_looked_at(self):
        self.assertGreater(self.flips("clean", r"(^STORE|/super)$", 31), 250)

    def test_records_above_the_checkpoint_are_looked_at(self):
        store = self.copy("killed")
        log = reader.Reader(store).logs[0]
        count = 0
        for record in log.records:
            path = os.path.join(store, record.file)
            with open(path, "rb") as opened:
                data = opened.read()
            for at in range(record.offset, record.offset + len(record.raw), 61):
                with open(path, "wb") as opened:
                    opened.write(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
                self.assertIn(record.file, self.complaints(store), f"record at {record.offset}, byte {at}")
                count += 1
            with open(path, "wb") as opened:
                opened.write(data)
        self.assertGreater(count, 100)

    def test_what_is_missing_is_named(self):
        for name, gone in (("clean", r"\.mbox$"), ("clean", "STORE$"), ("clean", "super$"), ("clean", r"parts\.")):
            store = self.copy(name)
            for path in sorted(walk(store)):
                file = os.path.relpath(path, store)
                if re.search(gone, file):
                    os.rename(path, path + "~")
                    said = self.complaints_or_os(store)
                    os.rename(path + "~", path)
                    self.assertTrue(said or file.endswith("parts.0"), file)
            shutil.rmtree(store)

    def complaints_or_os(self, store):
        try:
            return self.complaints(store)
        except FileNotFoundError as error:
            return [error.filename]


if __name__ == "__main__":
    done = unittest.main(exit=False).result
    wrong = len(done.failures) + len(done.errors)
    print(f"{done.testsRun - wrong - len(done.skipped)} passed, {wrong} failed")
    sys.exit(1 if wrong else 0)
