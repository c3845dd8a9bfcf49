//! What a record of another node makes.

use ringpost_netproto::id::MailboxId;

use super::Incoming;
use crate::format::Reserved;
use crate::format::info::{FIRST_SLOT, Run, Runs, Seed};
use crate::format::record::{Group, Local, RECORD_HEADER_BYTES, RecordType, localise};
use crate::position::Lsn;

/// Mailboxes that a record makes, and the next uid of each.
pub(super) fn mailbox_runs(one: &Incoming) -> Vec<(MailboxId, u32)> {
    if one.kind != RecordType::Mailbox {
        return Vec::new();
    }
    let local = Local {
        group: Group::Ends,
        seed: Seed {
            user: one.head.user,
            generation: 1,
        },
        slot: FIRST_SLOT,
        lsn: Lsn::new(0),
        segment: 0,
        offset: 0,
        distance: 0,
        cache_crc: 0,
    };
    let bytes = localise(&one.record, &local).unwrap_or_default();
    let runs = bytes.get(RECORD_HEADER_BYTES..).unwrap_or_default();
    let runs = Runs::new(runs, local.seed, FIRST_SLOT).reserved(Reserved::Unknown);
    let made = runs.filter_map(|run| match run.run {
        Ok(Run::Mailbox(run)) if run.op == crate::format::info::MailboxOp::Create => {
            Some((run.mailbox, run.uidnext.max(1)))
        }
        _ => None,
    });
    made.collect()
}
