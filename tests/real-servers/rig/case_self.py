"""The rig proves itself: Postfix and the recorders against a sink that stores what it gets.

Then once more with a sink that damages one byte, which the comparison has to notice.
"""

from __future__ import annotations

import os
import pathlib

import doors
from corpus import breakers, python_mails
from doors import FourDoors, compare, without_envelope
from postfix import free_port
from sink import Sink
from verdict import Verdict

FAKE_SHIM = """#!/bin/bash
while getopts f:q:d:m: option; do
    [ "$option" != d ] || user=$OPTARG
done
exec cat >"$(mktemp {store}/"$user".XXXXXXXXXX)"
"""


def run(verdict: Verdict, scratch: pathlib.Path) -> None:
    _round(verdict, scratch / "true", damage=False)
    _round(verdict, scratch / "damaging", damage=True)


def _round(verdict: Verdict, scratch: pathlib.Path, damage: bool) -> None:
    scratch.mkdir()
    store = scratch / "store"
    store.mkdir()
    os.chmod(store, 0o1777)
    fake = scratch / "fake-shim"
    fake.write_text(FAKE_SHIM.format(store=store))
    fake.chmod(0o755)
    port = free_port()
    over_unix = Sink(str(scratch / "sink"), damage)
    over_tcp = Sink(("127.0.0.1", port), damage)
    rig = FourDoors(scratch, str(scratch / "sink"), ("127.0.0.1", port), str(fake))
    try:
        mails = [mail.content for mail in python_mails() + breakers()]
        jobs = []
        for index, content in enumerate(mails):
            door = doors.DOORS[index % 4]
            user = doors.USERS[door][index % len(doors.USERS[door])]
            jobs.append(("sender@rig.test", [user if "@" in user else f"{user}@{door}"], content))
        done = rig.deliver(jobs, 120)

        def contents(user: str) -> list[bytes]:
            found = over_unix.contents(user) + over_tcp.contents(user)
            return found + [without_envelope(path.read_bytes()) for path in store.glob(f"{user}.??????????")]

        truth = rig.handed_over()
        differences = compare(truth, contents)
        if damage:
            verdict.check("the comparison sees one changed byte", bool(differences), rig.faults())
            return
        verdict.check("Postfix delivered all through four doors", done, rig.faults())
        verdict.equal("messages recorded", sum(rig.by_door().values()), len(jobs))
        verdict.check("a sink holds what the recorders noted", not differences, "\n".join(differences))
    finally:
        rig.close()
        over_unix.close()
        over_tcp.close()
