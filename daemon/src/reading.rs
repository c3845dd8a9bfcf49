//! What the engine answers readers, in the words of the node protocol: for the door of a node and for
//! `ringpost` on the files of a stopped one.

use bytes::Bytes;
use ringpost_engine::request as engine;
use ringpost_netproto::message::list::{ListEntry, ListPage, More};
use ringpost_netproto::message::mailbox::MailboxStatus;

/// A mailbox in numbers.
pub fn mailbox_status(status: engine::MailboxStatus) -> MailboxStatus {
    MailboxStatus {
        mailbox: status.mailbox,
        name: Bytes::from(status.name),
        uidvalidity: status.uidvalidity,
        uidnext: status.uidnext,
        highest_modseq: status.highest_modseq,
        messages_count: status.messages_count,
        bytes: status.bytes,
    }
}

/// A message in a list.
pub fn list_entry(entry: engine::ListEntry) -> ListEntry {
    ListEntry {
        uid: entry.uid,
        modseq: entry.modseq,
        flags: entry.flags,
        internal_date: entry.internal_date,
        rfc822_size: entry.rfc822_size,
        received_size: entry.received_size,
        guid: entry.guid,
        date_s: entry.date_s,
        cache: entry.cache,
    }
}

/// A page of a mailbox.
pub fn list_page(page: engine::ListPage) -> ListPage {
    ListPage {
        status: mailbox_status(page.status),
        entries: page.entries.into_iter().map(list_entry).collect(),
        more: match page.more {
            engine::More::Yes => More::Yes,
            engine::More::No => More::No,
        },
    }
}
