#!/usr/bin/env python3
"""Reads a Ringpost data directory, written from engine/FORMAT.md alone and in nobody's debt to the engine.

    reader.py DIR users                          who has mail
    reader.py DIR folders USER                   a user's mailboxes, one JSON object a line
    reader.py DIR list USER [--folder F]         the messages of a mailbox, likewise
    reader.py DIR show USER UID [--folder F]     one message, byte for byte as it was received
    reader.py DIR extract OUT                    every message: OUT/USER/FOLDER/UID
    reader.py DIR check                          every checksum; a sentence for each finding

It is a second opinion on the document: where the two differ, one of them is wrong. It never writes into DIR,
no daemon may use DIR meanwhile, and what the log holds above the checkpoint is applied in memory. Standard
library only. Exit codes: 0, 1 something is damaged, 2 wrong call.
"""

import argparse
import json
import os
import re
import struct
import sys
import zlib
from datetime import datetime, timezone

BLOCK = 4096
SLOT = 64
FIRST_SLOT = 8
MAJOR = 1
MINOR = 0
FRAME_MAX = 4 << 20
FORMAT_FLAGS_STORED = 0x1F
OWN_FILE = 0x40
BODY, DELIVER, DELIVER_FILE, FLAGS, EXPUNGE, MAILBOX, KEYWORD, USER_CREATE = range(1, 9)
INFO_SWAP, NOOP = 10, 15
EPOCH, TRUNCATE, PROMISE = 13, 14, 16
OF_NO_USER = (BODY, NOOP, EPOCH, TRUNCATE, PROMISE)
KNOWN_KINDS = (*OF_NO_USER, DELIVER, DELIVER_FILE, FLAGS, EXPUNGE, MAILBOX, KEYWORD, USER_CREATE, INFO_SWAP)
RUN_MSG, RUN_FLAGS, RUN_EXPUNGE, RUN_MAILBOX, RUN_KEYWORD, RUN_RETIRE = range(1, 7)
CREATE, RENAME, DELETE, SUBSCRIBE, UNSUBSCRIBE, SNAPSHOT = range(1, 7)
CACHE_FIELDS = ("from", "to", "subject", "date", "message_id", "in_reply_to")


class Damage(Exception):
    """One wrong place: file, offset, and why."""

    def __init__(self, file, offset, why):
        super().__init__(f"{file} at offset {offset}: {why}")
        self.file, self.offset, self.why = file, offset, why


def crc32(data, start=0):
    return zlib.crc32(data, start) & 0xFFFFFFFF


def u16(data, at):
    return struct.unpack_from("<H", data, at)[0]


def u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


def u64(data, at):
    return struct.unpack_from("<Q", data, at)[0]


def siphash24(key, data):
    """SipHash-2-4 with a 64-bit result, as in its authors' paper."""
    mask = (1 << 64) - 1
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rotate(x, by):
        return ((x << by) | (x >> (64 - by))) & mask

    def rounds(count):
        for _ in range(count):
            v[0] = (v[0] + v[1]) & mask
            v[2] = (v[2] + v[3]) & mask
            v[1] = rotate(v[1], 13) ^ v[0]
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[1]) & mask
            v[0] = (v[0] + v[3]) & mask
            v[1] = rotate(v[1], 17) ^ v[2]
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = rotate(v[2], 32)

    whole = len(data) - len(data) % 8
    words = [u64(data, at) for at in range(0, whole, 8)]
    words.append(int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56)
    for word in words:
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def file_start(data, magic, size, file, at=0):
    """Checks the 24 bytes that every binary header starts with; gives whether a newer minor wrote it."""
    head = data[at : at + size]
    if len(head) < size:
        raise Damage(file, at, f"cut short: {len(head)} of {size} bytes of its header")
    if not any(head):
        raise Damage(file, at, "zeros where a header should be")
    if head[:8] != magic:
        raise Damage(file, at, f"begins with {head[:8]!r}, not {magic!r}")
    if u32(head, 8) != crc32(head[12:]):
        raise Damage(file, at, "the header's checksum does not hold")
    if head[12] != MAJOR:
        raise Damage(file, at, f"is of format {head[12]}; this reader knows {MAJOR}")
    if u32(head, 16):
        raise Damage(file, at, f"uses features {u32(head, 16):#x}, unknown to this reader")
    newer = head[13] > MINOR
    known = u16(head, 14)
    if not 24 <= known <= size or any(head[known:]):
        raise Damage(file, at, f"has something behind the {known} bytes that its header says it has")
    return newer


def unescape(word):
    """Of names in `folders`: `%` and two upper-case hexadecimal digits."""
    return re.sub(rb"%([0-9A-F]{2})", lambda m: bytes([int(m.group(1), 16)]), word)


def escape(name):
    return "".join(chr(b) if 0x21 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in name)


class Store:
    """STORE: what this directory is."""

    def __init__(self, root):
        with open(os.path.join(root, "STORE"), "rb") as file:
            text = file.read((64 << 10) + 1)
        if len(text) > 64 << 10:
            raise Damage("STORE", 0, "is above 64 KiB")
        cut = text.rfind(b"crc ")
        if cut < 0 or text[cut:] != b"crc %08x\n" % crc32(text[:cut]):
            raise Damage("STORE", max(cut, 0), "the checksum does not hold")
        lines = text[:cut].decode("ascii").splitlines()
        names = ["ringpost store", "uuid", "node", "partitions", "logs", "key", "key-check", "incompat", "compat"]
        values = {}
        for number, name in enumerate(names):
            line = lines[number] if number < len(lines) else ""
            if not line.startswith(name + " "):
                raise Damage("STORE", 0, f"line {number + 1} should begin with {name!r}")
            values[name] = line[len(name) + 1 :]
        major, minor = (int(part) for part in values["ringpost store"].split("."))
        if major != MAJOR or int(values["incompat"], 16):
            raise Damage("STORE", 0, f"is of format {major}.{minor}, features {values['incompat']}")
        if minor <= MINOR and len(lines) > len(names):
            raise Damage("STORE", 0, "has lines that version 1.0 does not know")
        self.uuid = bytes.fromhex(values["uuid"])
        self.node = int(values["node"])
        self.partitions = int(values["partitions"])
        self.logs = int(values["logs"])
        self.key = bytes.fromhex(values["key"])
        self.key_check = int(values["key-check"], 16)
        if siphash24(self.key, b"ringpost key check") & 0xFFFFFFFF != self.key_check:
            raise Damage("STORE", 0, "key and key-check do not belong together")
        power_of_two = self.partitions & (self.partitions - 1) == 0
        if not (1 <= self.partitions <= 65536 and power_of_two and 1 <= self.logs <= 256):
            raise Damage("STORE", 0, "partitions or logs are out of range")

    def partition(self, user_hash):
        return user_hash * self.partitions >> 64


class Record:
    """A record of the log: header fields, payload, and the BODY that a DELIVER shares."""

    def __init__(self, data, at, lsn):
        self.lsn = lsn
        self.kind, self.flags, self.partition = struct.unpack_from("<BBH", data, at + 4)
        self.user_hash, self.ordinal, self.mailbox = struct.unpack_from("<QII", data, at + 8)
        self.modseq, self.uid, self.generation, self.slot = struct.unpack_from("<QIII", data, at + 24)
        self.body_crc, self.pseq, self.epoch, self.chain = struct.unpack_from("<IQII", data, at + 44)
        self.at = at
        self.raw = bytes(data[at : at + u32(data, at)])
        self.payload = self.raw[64:]
        self.body = None

    def replicated(self):
        """The whole record without what is local to a node."""
        raw = bytearray(self.raw)

        def zero(at, length):
            raw[at : at + length] = bytes(length)

        zero(5, 1)
        zero(36, 8)
        zero(60, 4)
        if self.kind == DELIVER:
            zero(64, 16)
            fixed = 64 + 24
        elif self.kind == DELIVER_FILE:
            zero(64, 4)
            fixed = 64 + 8
        else:
            fixed = None
        if fixed is not None:
            zero(fixed, 4)
            zero(fixed + 24, 8 + 4)
            zero(fixed + 40, 8)
        elif self.kind in (FLAGS, EXPUNGE, MAILBOX, KEYWORD):
            at = 64
            while at < len(raw):
                zero(at, 4)
                zero(at + 24, 8)
                at += SLOT * (1 + raw[at + 5])
        return bytes(raw)


class Log:
    """One log directory: superblock, files, and the records above the checkpoint."""

    def __init__(self, reader, log_id):
        self.reader, self.store, self.log_id = reader, reader.store, log_id
        self.dir = f"log/{log_id:02x}"
        self.records = []
        self.tail = None
        self.read_super()
        self.read_parts()
        self.read_dedupe()
        self.files = self.read_headers()
        self.read_frames()

    def identity(self, data, file, store_at, log_at):
        if data[store_at : store_at + 16] != self.store.uuid:
            raise Damage(file, 0, "is of another store")
        if u32(data, log_at) != self.log_id:
            raise Damage(file, 0, f"is of log {u32(data, log_at):02x}")

    def read_super(self):
        file = f"{self.dir}/super"
        data = self.reader.read(file)
        copies, bad = [], []
        for at in (0, BLOCK):
            try:
                newer = file_start(data, b"RINGSUP1", BLOCK, file, at)
                copy = data[at : at + BLOCK]
                self.identity(copy, file, 24, 44)
                if not newer and any(copy[136:]):
                    raise Damage(file, at + 136, "reserved bytes are not zero")
                if u32(copy, 40) != self.store.node or u32(copy, 60) != self.store.partitions:
                    raise Damage(file, at, "names another node, or other partitions, than STORE")
                if u32(copy, 84) != self.store.key_check:
                    raise Damage(file, at, "belongs to another key than STORE")
                copies.append((u64(copy, 48), copy))
            except Damage as damage:
                bad.append(damage)
        if not copies:
            raise bad[0]
        for damage in bad:
            self.reader.minor(damage)
        current = max(copies)[1]
        self.checkpoint, self.previous_crc = u64(current, 72), u32(current, 80)
        self.oldest_sequence = u64(current, 96)
        self.dedupe_next, self.parts_sequence = u64(current, 112), u64(current, 128)
        if self.checkpoint % BLOCK:
            raise Damage(file, 0, "checkpoint_lsn is no multiple of 4096")

    def read_parts(self):
        """Where each partition's chain stands at the checkpoint: pseq and chain by partition."""
        self.chains = {}
        found = False
        for name in ("parts.0", "parts.1"):
            file = f"{self.dir}/{name}"
            data = self.reader.read(file, missing=b"")
            try:
                newer = file_start(data, b"RINGPRT1", BLOCK, file)
                self.identity(data, file, 24, 40)
            except Damage as damage:
                if data:
                    self.reader.minor(damage)
                continue
            entries, sequence = u32(data, 44), u64(data, 48)
            if sequence != self.parts_sequence:
                continue
            found = True
            if not newer and any(data[56:BLOCK]) or entries > 65536 or len(data) < BLOCK + 256 * entries:
                self.reader.damage(Damage(file, 44, "entries or reserved bytes are wrong"))
                continue
            seed = crc32(struct.pack("<QI", sequence, self.log_id))
            for at in range(BLOCK, BLOCK + 256 * entries, 256):
                entry = data[at : at + 256]
                if u32(entry, 0) != crc32(entry[4:], seed):
                    self.reader.damage(Damage(file, at, "the entry's checksum does not hold"))
                    continue
                self.chains[u16(entry, 4)] = (u64(entry, 16), u32(entry, 12))
        if not found and self.parts_sequence:
            self.reader.damage(Damage(f"{self.dir}/parts.0", 0, f"no parts file has sequence {self.parts_sequence}"))

    def read_dedupe(self):
        file = f"{self.dir}/dedupe"
        data = self.reader.read(file, missing=b"")
        try:
            file_start(data, b"RINGDUP1", BLOCK, file)
            self.identity(data, file, 24, 40)
        except Damage as damage:
            self.reader.minor(damage)
            return
        capacity, base = u64(data, 48), u64(data, 56)
        if not 1 <= capacity <= 1 << 26:
            self.reader.minor(Damage(file, 48, f"a capacity of {capacity}"))
            return
        for sequence in range(max(base, self.dedupe_next - capacity), self.dedupe_next):
            at = BLOCK + 48 * (sequence % capacity)
            entry = data[at : at + 48]
            seeds = [crc32(struct.pack("<Q", lap)) for lap in (sequence, sequence + capacity)]
            if len(entry) < 48 or u32(entry, 0) not in [crc32(entry[4:], seed) for seed in seeds]:
                self.reader.minor(Damage(file, at, "the entry's checksum does not hold"))

    def read_headers(self):
        """The armed files: header fields and path, by sequence."""
        files = []
        for name in self.reader.names(self.dir):
            if not re.fullmatch(r"[0-9]{4,}\.log", name):
                continue
            file = f"{self.dir}/{name}"
            data = self.reader.read(file)
            if not any(data[:BLOCK]):
                if any(data):
                    self.reader.damage(Damage(file, 0, "zeros in front of frames"))
                continue
            try:
                newer = file_start(data, b"RINGLOG1", BLOCK, file)
                self.identity(data, file, 24, 40)
                if not newer and (u32(data, 44) or any(data[88:BLOCK])):
                    raise Damage(file, 0, "reserved bytes are not zero")
            except Damage as damage:
                self.reader.damage(damage)
                continue
            sequence, salt, start, previous = struct.unpack_from("<QQQQ", data, 48)
            files.append({"file": file, "data": data, "sequence": sequence, "salt": salt, "start": start, "previous": previous})
        files.sort(key=lambda found: found["sequence"])
        return [found for found in files if found["sequence"] >= self.oldest_sequence]

    def successor(self, current):
        next_ones = [f for f in self.files if f["previous"] == current["salt"] and f["sequence"] > current["sequence"]]
        return next_ones[-1] if next_ones else None

    def frame(self, current, lsn):
        """The whole header of a frame that is of this use of the file; None if there is none."""
        at = BLOCK + lsn - current["start"]
        head = current["data"][at : at + 80]
        whole = len(head) == 80 and head[:4] == b"RPF1" and u32(head, 4) == crc32(head[8:])
        if not whole or u64(head, 8) != current["salt"] or u64(head, 16) != lsn:
            return None
        return head

    def read_frames(self):
        holders = [found for found in self.files if found["start"] <= self.checkpoint]
        if not holders:
            raise Damage(self.dir, 0, f"no log file holds position {self.checkpoint}")
        current, lsn, previous = holders[-1], self.checkpoint, self.previous_crc
        while True:
            following = self.successor(current)
            if following and lsn >= following["start"]:
                current = following
                continue
            head = self.frame(current, lsn)
            if head is None or u32(head, 56) != previous:
                break
            at = BLOCK + lsn - current["start"]
            length, used, count, flags = struct.unpack_from("<IIII", head, 40)
            payload = current["data"][at + 80 : at + 80 + used]
            if len(payload) < used or used and u32(head, 60) != crc32(payload):
                break
            if used:
                if length != -(-(80 + used) // BLOCK) * BLOCK or length > FRAME_MAX:
                    raise Damage(current["file"], at, f"a frame of {length} bytes with {used} bytes of records")
                self.decode(current["file"], at + 80, payload, count, lsn)
            elif length % BLOCK or not length or count or u32(head, 60):
                raise Damage(current["file"], at, "a frame without records that has some")
            previous, lsn = u32(head, 4), lsn + length
        self.end(current, lsn)

    def end(self, current, lsn):
        """Torn or damaged: whether a later frame says that this position was flushed."""
        at = BLOCK + lsn - current["start"]
        salts = [found["salt"] for found in self.files]
        for found in self.files:
            later = found["sequence"] > current["sequence"] and found["start"] > lsn
            if later and found["previous"] and found["previous"] not in salts:
                raise Damage(current["file"], at, f"the log file that {found['file']} goes on from is missing")
        walk, start = current, lsn
        while walk:
            top = walk["start"] + len(walk["data"]) - BLOCK
            for other in range(max(start, walk["start"]), top, BLOCK):
                head = self.frame(walk, other)
                if head is not None and other > lsn and u64(head, 24) > lsn:
                    raise Damage(current["file"], at, "acknowledged records are damaged here; run ringpost repair")
            walk = self.successor(walk)
        block = current["data"][at : at + BLOCK]
        if block[:4] == b"RPF1" and self.frame(current, lsn) is not None:
            self.tail = f"{current['file']} at offset {at}: a torn frame ends the log, as after a crash"

    def decode(self, file, base, payload, count, lsn):
        at, bodies, seen = 0, {}, 0
        while at < len(payload):
            length = u32(payload, at) if at + 64 <= len(payload) else 0
            if length < 64 or length % 8 or at + length > len(payload):
                raise Damage(file, base + at, f"a record of {length} bytes under a good checksum")
            record = Record(payload, at, lsn)
            record.file, record.offset = file, base + at
            if record.kind == BODY:
                stored, slots = u32(record.payload, 0), record.payload[4]
                body = record.payload[8 + SLOT * slots :][:stored]
                if len(body) < stored or crc32(body) != record.body_crc:
                    raise Damage(file, base + at, "the message of a BODY is not what its header says")
                bodies[at] = (record.payload[8 : 8 + SLOT * slots], body)
            elif record.kind == DELIVER:
                start = at - u32(record.payload, 12)
                if start not in bodies:
                    raise Damage(file, base + at, "a DELIVER without its BODY")
                record.body = bodies[start]
            elif record.kind not in KNOWN_KINDS and not record.kind & 0x80:
                raise Damage(file, base + at, f"a record of the unknown type {record.kind}")
            if record.kind == TRUNCATE:
                self.truncate(record)
            elif record.pseq:
                self.chain(record)
            self.records.append(record)
            at += length
            seen += 1
        if seen != count:
            raise Damage(file, base, f"{seen} records where the frame says {count}")

    def truncate(self, record):
        """The partition's records above that place count for nothing."""
        self.chains[record.partition] = (record.pseq, record.chain)
        self.records = [r for r in self.records if r.partition != record.partition or r.pseq <= record.pseq]

    def chain(self, record):
        pseq, chain = self.chains.get(record.partition, (0, 0))
        if record.pseq != pseq + 1 or record.chain != crc32(record.replicated(), chain):
            where = f"pseq {record.pseq} behind {pseq} of partition {record.partition:04x}"
            self.reader.damage(Damage(record.file, record.offset, f"the chain does not hold: {where}"))
        self.chains[record.partition] = (record.pseq, record.chain)


class Message:
    """A message as the index knows it."""

    def __init__(self, run, file, at):
        self.format, self.mailbox, self.uid, self.modseq = struct.unpack_from("<HIIQ", run, 6)
        self.segment, _, self.offset, self.stored_len, self.skip = struct.unpack_from("<IIQIH", run, 32)
        self.rfc822_size, self.internal_date = struct.unpack_from("<IQ", run, 68)
        self.flags, self.stored_crc, self.keywords = struct.unpack_from("<IIQ", run, 88)
        self.guid = run[104:120]
        self.cache = run[128:]
        self.file, self.at = file, at
        self.gone = False

    def fields(self):
        found = dict.fromkeys(CACHE_FIELDS)
        at = 12
        for number, name in enumerate(CACHE_FIELDS if self.cache else ()):
            word = u16(self.cache, 2 * number)
            if word & 0x8000:
                value = self.cache[at : at + (word & 0xFFF)]
                found[name] = value.decode("utf-8", "replace")
                at += word & 0xFFF
        return found


class Mailbox:
    def __init__(self, ident):
        self.id, self.name, self.uidvalidity, self.uidnext = ident, b"", 0, 1
        self.highest_modseq, self.modseq, self.deleted = 0, -1, False
        self.subscribed, self.subscribed_modseq = False, -1
        self.special_use = 0
        self.messages = {}
        self.keywords = {}

    def live(self):
        return [m for _, m in sorted(self.messages.items()) if not m.gone]


class User:
    """One user's directory with what the logs hold for it applied in memory."""

    def __init__(self, reader, partition, user_hash, ordinal):
        self.reader, self.hash, self.ordinal = reader, user_hash, ordinal
        self.dir = f"p/{partition:04x}/{user_hash:016x}-{ordinal}"
        self.name = None
        self.generation = 0
        self.in_log = None
        self.writes = []
        self.texts = {}
        self.renamed, self.retired = set(), set()
        self.created = False
        self.mailboxes = {}
        self.bad = False
        self.files = set(reader.names(self.dir))

    # The log above the checkpoint.

    def redo(self, record):
        if record.kind == USER_CREATE:
            length = u16(record.payload, 0)
            self.name, self.created, self.in_log = record.payload[2 : 2 + length], True, 1
            return
        if record.kind == INFO_SWAP:
            generation, _, new, retired = struct.unpack_from("<IIII", record.payload, 0)
            ids = struct.unpack_from(f"<{new + retired}I", record.payload, 16)
            self.in_log, self.writes = generation, []
            self.renamed.update(f"{segment:08x}" for segment in ids[:new])
            for segment in ids[new:]:
                self.texts.pop(segment, None)
                self.retired.add(segment)
            return
        if self.in_log is None:
            self.in_log = record.generation
        at = SLOT * record.slot
        if record.kind == DELIVER:
            offset, segment = struct.unpack_from("<QI", record.payload, 0)
            prefix = u16(record.payload, 16)
            cache, body = record.body
            self.writes.append((at, record.payload[24:152] + cache))
            text = record.payload[152 : 152 + prefix] + body + b"\n"
            self.texts.setdefault(segment, []).append((offset, text))
        elif record.kind == DELIVER_FILE:
            slots = record.payload[8 + 5] - 1
            self.writes.append((at, record.payload[8 : 136 + SLOT * slots]))
            self.renamed.add(f"{u32(record.payload, 0):08x}")
        elif record.kind in (FLAGS, EXPUNGE, MAILBOX, KEYWORD):
            self.writes.append((at, record.payload))

    # The index.

    def load(self):
        generations = [int(n[5:], 16) for n in self.files if re.fullmatch(r"info\.[0-9a-f]{8}", n)]
        self.generation = max(generations + [self.in_log or 0])
        if not self.generation:
            if self.created:
                raise Damage(self.dir, 0, "no generation of an index")
            return
        file = f"{self.dir}/info.{self.generation:08x}"
        data = bytearray(self.reader.read(file, missing=None) or self.reader.read(file + ".part", missing=b""))
        fresh = self.created and not any(data[: SLOT * FIRST_SLOT])
        if not fresh:
            self.header(file, data)
        if self.in_log in (None, self.generation):
            for at, run in self.writes:
                if len(data) < at + len(run):
                    data.extend(bytes(at + len(run) - len(data)))
                data[at : at + len(run)] = run
        self.fold(file, bytes(data))
        self.read_folders()

    def header(self, file, data):
        newer = file_start(bytes(data), b"RINGIDX1", 512, file)
        length = u16(data, 80)
        name = bytes(data[88 : 88 + length])
        if (u64(data, 24), u32(data, 32), u32(data, 36)) != (self.hash, self.ordinal, self.generation):
            raise Damage(file, 24, "belongs to another user or generation than its path says")
        if not 1 <= length <= 255 or any(data[88 + length : 344]) or not newer and any(data[344:512]):
            raise Damage(file, 80, "the name or reserved bytes are wrong")
        if siphash24(self.reader.store.key, name) != self.hash or self.name not in (None, name):
            raise Damage(file, 88, f"{name!r} is not the user of this directory")
        self.name = name

    def fold(self, file, data):
        seed = struct.pack("<QI", self.hash, self.generation)
        slot, runs, bad = FIRST_SLOT, [], None
        while SLOT * slot < len(data):
            at = SLOT * slot
            end = at + SLOT * (2 + data[at + 5] - 1) if at + 8 <= len(data) else 0
            run = data[at:end]
            if end <= len(data) and any(run) and u32(run, 0) == crc32(run[4:], crc32(seed + struct.pack("<I", slot))):
                runs.append((at, run))
                slot += 1 + run[5]
                bad = None
                continue
            if bad is None:
                bad = at
                self.wrong(Damage(file, at, "the run's checksum does not hold"))
            slot += 1
        changes = []
        for at, run in runs:
            kind = run[4]
            if kind == RUN_MSG:
                message = Message(run, file, at)
                box = self.box(message.mailbox)
                known = box.messages.get(message.uid)
                if known is None or known.modseq <= message.modseq:
                    box.messages[message.uid] = message
                box.uidnext = max(box.uidnext, message.uid + 1)
                box.highest_modseq = max(box.highest_modseq, message.modseq)
            elif kind in (RUN_FLAGS, RUN_EXPUNGE):
                changes.append((u64(run, 16), at, run))
            elif kind == RUN_MAILBOX:
                self.mailbox(run)
            elif kind == RUN_KEYWORD:
                box = self.box(u32(run, 8))
                word = run[SLOT : SLOT + u16(run, 36)]
                if box.keywords.get(u32(run, 12), (-1,))[0] <= u64(run, 16):
                    box.keywords[u32(run, 12)] = (u64(run, 16), word)
            elif kind == RUN_RETIRE:
                self.retired.update(struct.unpack_from(f"<{u32(run, 8)}I", run, SLOT))
            elif not kind & 0x80:
                self.wrong(Damage(file, at, f"a run of the unknown kind {kind}"))
        for modseq, _, run in sorted(changes, key=lambda change: change[:2]):
            self.change(modseq, run)

    def box(self, ident):
        return self.mailboxes.setdefault(ident, Mailbox(ident))

    def mailbox(self, run):
        op, special, ident, uidvalidity, modseq = struct.unpack_from("<BBIIQ", run, 6)
        uidnext, length = struct.unpack_from("<IH", run, 32)
        box = self.box(ident)
        box.uidnext = max(box.uidnext, uidnext)
        box.highest_modseq = max(box.highest_modseq, u64(run, 40))
        if op in (SUBSCRIBE, UNSUBSCRIBE):
            if modseq >= box.subscribed_modseq:
                box.subscribed, box.subscribed_modseq = op == SUBSCRIBE, modseq
        elif op == DELETE:
            box.deleted = True
        elif modseq >= box.modseq:
            box.name, box.modseq = run[SLOT : SLOT + length], modseq
            if op != RENAME:
                box.uidvalidity, box.special_use = uidvalidity, special

    def change(self, modseq, run):
        box = self.box(u32(run, 8))
        low, high = u32(run, 12), u32(run, 32)
        box.highest_modseq = max(box.highest_modseq, modseq)
        for uid, message in box.messages.items():
            if low <= uid <= high and message.modseq <= modseq:
                message.modseq = modseq
                if run[4] == RUN_EXPUNGE:
                    message.gone = True
                else:
                    message.flags, message.keywords = struct.unpack_from("<IQ", run, 36)
        if run[4] == RUN_EXPUNGE:
            box.uidnext = max(box.uidnext, high + 1)

    def wrong(self, damage):
        self.bad = True
        self.reader.damage(damage)

    def live(self):
        return [box for _, box in sorted(self.mailboxes.items()) if not box.deleted and box.name]

    def read_folders(self):
        """Derived text: only its own checksum and owner are looked at."""
        file = f"{self.dir}/folders"
        text = self.reader.read(file, missing=b"")
        if not text:
            return
        cut = text.rfind(b"crc ")
        lines = text[:cut].split(b"\n")
        good = cut > 0 and text[cut:] == b"crc %08x\n" % crc32(text[:cut]) and lines[0] == b"ringpost folders 1"
        if not good or len(lines) < 2 or unescape(lines[1]) != b"user " + (self.name or b""):
            self.reader.damage(Damage(file, 0, "its checksum or its user does not hold"))

    # Messages.

    def stored(self, message):
        """The stored bytes of a message, all of it verified."""
        if message.format & OWN_FILE:
            name = f"{message.segment:08x}.{message.mailbox:08x}.{message.uid:08x}.mbox"
        else:
            name = f"{message.segment:08x}.mbox"
        file = f"{self.dir}/{name}"
        data = self.segment(message, file)
        prefix = data[message.offset : message.offset + message.skip]
        start = message.offset + message.skip
        stored = data[start : start + message.stored_len]
        if len(stored) < message.stored_len or crc32(stored) != message.stored_crc:
            raise Damage(file, message.offset, f"uid {message.uid}: the message is not as it was written")
        if data[start + message.stored_len : start + message.stored_len + 1] != b"\n":
            raise Damage(file, start + message.stored_len, f"uid {message.uid}: no empty line behind it")
        self.prefix(message, file, prefix)
        return stored

    def segment(self, message, file):
        """A segment's bytes, those of the log laid over them."""
        data = self.reader.read(file, missing=None)
        if data is None and f"{message.segment:08x}" in self.renamed:
            file = f"{self.dir}/{message.segment:08x}.part"
            data = self.reader.read(file, missing=None)
        texts = () if message.format & OWN_FILE else self.texts.get(message.segment, ())
        if data is None and not texts:
            raise Damage(file, 0, f"is missing, with uid {message.uid} in it")
        data = bytearray(data or b"")
        for offset, text in texts:
            if len(data) < offset + len(text):
                data.extend(bytes(offset + len(text) - len(data)))
            data[offset : offset + len(text)] = text
        return bytes(data)

    def prefix(self, message, file, prefix):
        box = self.mailboxes[message.mailbox]
        own = bool(message.format & OWN_FILE)
        numbers = (0, 0, 0) if own else (message.mailbox, box.uidvalidity, message.uid)
        guid, ns = message.guid.hex(), message.internal_date
        given = re.search(rb" g=([0-9a-f]{32}) d=([0-9a-f]{16}) ", prefix[-128:])
        if own and given:
            guid, ns = given.group(1).decode("ascii"), int(given.group(2), 16)
        line = "X-Ringpost: 1 m={:08x} v={:08x} u={:08x} g={} d={:016x} l={:08x} c={:08x} e={:02x}".format(
            *numbers, guid, ns, message.stored_len, message.stored_crc, message.format & FORMAT_FLAGS_STORED
        )
        wanted = line.encode("ascii") + b"\n"
        if len(wanted) != 128 or prefix[-128:] != wanted:
            raise Damage(file, message.offset, f"uid {message.uid}: the store line is not as indexed")
        at = datetime.fromtimestamp(ns // 10**9, timezone.utc)
        date = at.strftime("%a %b ") + f"{at.day:2d}" + at.strftime(" %H:%M:%S %Y")
        if not prefix.startswith(b"From ") or not prefix[:-128].endswith(b" " + date.encode("ascii") + b"\n"):
            raise Damage(file, message.offset, f"uid {message.uid}: the From_ line is not as indexed")

    def received(self, message):
        """What came in, byte for byte."""
        stored = self.stored(message)
        if message.format & 0x08:
            stored = re.sub(rb"(?m)^>(>*From )", rb"\1", stored)
        if message.format & 0x04:
            stored = stored[:-1]
        if message.format & 0x01:
            stored = stored.replace(b"\n", b"\r\n")
        return stored


class Reader:
    """A whole directory."""

    def __init__(self, root):
        self.root = root
        self.damages, self.minors = [], []
        self.cache = {}
        self.store = Store(root)
        self.logs = [Log(self, log_id) for log_id in range(self.store.logs)]
        self.users = {}
        for partition in self.names("p"):
            for name in self.names(f"p/{partition}"):
                match = re.fullmatch(r"([0-9a-f]{16})-(0|[1-9][0-9]*)", name)
                number = int(match.group(1), 16) if match else 0
                if not match or self.store.partition(number) != int(partition, 16):
                    self.damage(Damage(f"p/{partition}/{name}", 0, "is no user's directory of this partition"))
                    continue
                self.user(number, int(match.group(2)))
        for log in self.logs:
            for record in log.records:
                if record.kind in OF_NO_USER or record.kind & 0x80:
                    continue
                self.user(record.user_hash, record.ordinal).redo(record)
        for user in self.users.values():
            try:
                user.load()
            except Damage as damage:
                user.wrong(damage)

    def user(self, user_hash, ordinal):
        key = (user_hash, ordinal)
        if key not in self.users:
            self.users[key] = User(self, self.store.partition(user_hash), user_hash, ordinal)
        return self.users[key]

    def read(self, file, missing=False):
        if file not in self.cache:
            try:
                with open(os.path.join(self.root, file), "rb") as opened:
                    self.cache[file] = opened.read()
            except FileNotFoundError:
                self.cache[file] = None
        data = self.cache[file]
        if data is None and missing is False:
            raise Damage(file, 0, "is missing")
        return missing if data is None else data

    def names(self, directory):
        try:
            return sorted(os.listdir(os.path.join(self.root, directory)))
        except FileNotFoundError:
            return []

    def damage(self, damage):
        self.damages.append(damage)

    def minor(self, damage):
        self.minors.append(damage)

    def named(self):
        return {user.name: user for user in self.users.values() if user.name is not None}

    def find(self, name, folder):
        user = self.named().get(os.fsencode(name))
        if user is None:
            raise SystemExit(f"reader.py: no such user: {name}")
        wanted = os.fsencode(folder)
        for box in user.live():
            same = box.name == wanted or box.id == 1 and wanted.upper() == b"INBOX"
            if same:
                return user, box
        raise SystemExit(f"reader.py: {name} has no mailbox {folder!r}")

    def check(self):
        """Every message, and files that nothing explains."""
        for name, user in sorted(self.named().items()):
            for box in user.live():
                for message in box.live():
                    try:
                        user.stored(message)
                    except Damage as damage:
                        self.damage(damage)
            self.segments(user)

    def segments(self, user):
        """Messages stand back to back from byte 0: nothing lies between them or behind them."""
        ends, wanted = {}, set()
        for box in user.mailboxes.values():
            for message in box.messages.values():
                end = message.offset + message.skip + message.stored_len + 1
                if message.format & OWN_FILE:
                    wanted.add(f"{message.segment:08x}.{message.mailbox:08x}.{message.uid:08x}.mbox")
                else:
                    ends.setdefault(message.segment, []).append((message.offset, end))
        for segment, spans in ends.items():
            name = f"{segment:08x}.mbox"
            wanted.add(name)
            end = 0
            for start, stop in sorted(spans):
                if start != end and not user.bad:
                    self.damage(Damage(f"{user.dir}/{name}", end, f"{start - end} bytes that the index does not know"))
                end = stop
            size = len(self.read(f"{user.dir}/{name}", missing=b""))
            if size > end and not user.bad:
                self.damage(Damage(f"{user.dir}/{name}", end, "bytes behind the last message of the index"))
        for name in user.files:
            known = name in wanted or int(name[:8], 16) in user.retired if name.endswith(".mbox") else True
            if not known and not user.bad:
                self.minor(Damage(f"{user.dir}/{name}", 0, "a segment without a message in the index"))


def date(ns):
    return datetime.fromtimestamp(ns // 10**9, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def entry(user, box, message):
    words = [word.decode("utf-8") for _, word in (box.keywords[bit] for bit in sorted(box.keywords) if message.keywords >> bit & 1)]
    return {
        "uid": message.uid,
        "internal_date": date(message.internal_date),
        "size": len(user.received(message)),
        "rfc822_size": message.rfc822_size,
        "guid": message.guid.hex(),
        "modseq": message.modseq,
        "flags": message.flags,
        "keywords": words,
        **message.fields(),
    }


def folder(box):
    return {
        "name": box.name.decode("utf-8"),
        "id": box.id,
        "messages": len(box.live()),
        "bytes": sum(message.rfc822_size for message in box.live()),
        "uidvalidity": box.uidvalidity,
        "uidnext": box.uidnext,
        "highest_modseq": box.highest_modseq,
        "subscribed": box.subscribed,
    }


def extract(reader, out):
    """All messages that are whole; those that are not are named."""
    for name, user in sorted(reader.named().items()):
        for box in user.live():
            target = os.path.join(out, escape(name).replace("/", "%2F"), escape(box.name).replace("/", "%2F"))
            os.makedirs(target, exist_ok=True)
            for message in box.live():
                try:
                    data = user.received(message)
                except Damage as damage:
                    reader.damage(damage)
                    continue
                with open(os.path.join(target, str(message.uid)), "xb") as file:
                    file.write(data)


def say(line):
    print(json.dumps(line, ensure_ascii=False))


def obey(reader, words):
    if words.command == "users":
        for name in sorted(reader.named()):
            print(name.decode("utf-8"))
    elif words.command == "folders":
        user, _ = reader.find(words.user, "INBOX")
        for box in user.live():
            say(folder(box))
    elif words.command == "list":
        user, box = reader.find(words.user, words.folder)
        for message in box.live():
            try:
                say(entry(user, box, message))
            except Damage as damage:
                reader.damage(damage)
    elif words.command == "show":
        user, box = reader.find(words.user, words.folder)
        message = box.messages.get(words.uid)
        if message is None or message.gone:
            raise SystemExit(f"reader.py: no message {words.uid} in {words.folder!r}")
        sys.stdout.buffer.write(user.received(message))
    elif words.command == "extract":
        extract(reader, words.out)
    else:
        reader.check()
        for log in reader.logs:
            if log.tail:
                print(f"expected: {log.tail}")
        for damage in reader.minors:
            print(f"minor: {damage}")


def main():
    parser = argparse.ArgumentParser(description="Reads a Ringpost data directory that no daemon uses.")
    parser.add_argument("dir")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("users")
    commands.add_parser("folders").add_argument("user")
    for name in ("list", "show"):
        command = commands.add_parser(name)
        command.add_argument("user")
        if name == "show":
            command.add_argument("uid", type=int)
        command.add_argument("--folder", default="INBOX")
    commands.add_parser("extract").add_argument("out")
    commands.add_parser("check")
    words = parser.parse_args()
    try:
        reader = Reader(words.dir)
        obey(reader, words)
    except Damage as damage:
        print(f"DAMAGE: {damage}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"reader.py: {error}", file=sys.stderr)
        return 1
    for damage in reader.damages:
        print(f"DAMAGE: {damage}", file=sys.stderr)
    return 1 if reader.damages else 0


if __name__ == "__main__":
    sys.exit(main())
