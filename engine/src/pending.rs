//! What is in the log only: the changes of each user since the last checkpoint (storage.md 4.3, 5).
//!
//! An entry is exactly what will be written: runs with their slots, bytes with their offsets. All
//! positions come from the log, so writing an entry twice is harmless. A body may be dropped from
//! memory, since the log holds it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use bytes::Bytes;
use ringpost_netproto::id::{MailboxId, Uid};

use crate::canary::{self, Canary};
use crate::format::info::{FIRST_SLOT, MSG_FIXED_BYTES, SLOT};
use crate::index::DeadFile;
use crate::io::RelPath;
use crate::limits::SLOT_BYTES;
use crate::position::Lsn;

/// One change of a user.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// First slot in the info file; 0 for the header, and for what has no runs (any more).
    pub(crate) slot: u32,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    /// The user begins: the info header.
    Create { name: Bytes, lsn: Lsn },
    /// MAILBOX, KEYWORD or CHANGE runs.
    Runs(Bytes),
    /// A message in a shared segment.
    Small(SmallMail),
    /// A message with a file of its own, still named `.part`.
    Large(LargeMail),
    /// Files of large messages that earlier entries made dead. In memory only: redo finds them when
    /// the user is loaded.
    Dead(Box<[DeadFile]>),
    /// The files of a new generation get their names.
    Swap(Swap),
}

/// What an `INFO_SWAP` orders (storage.md 8.5).
#[derive(Clone, Debug)]
pub(crate) struct Swap {
    /// Of the info file, until then `.part`.
    pub(crate) generation: u32,
    /// Slots of that file.
    pub(crate) slots: u32,
    /// Segments that are named `.part` until then.
    pub(crate) new: Rc<[u32]>,
    /// Segments in which nothing is alive; ascending.
    pub(crate) retired: Rc<[u32]>,
}

impl Swap {
    /// Part name and final name of each file it made.
    pub(crate) fn renames<'a>(
        &'a self,
        dir: &'a RelPath,
    ) -> impl Iterator<Item = (RelPath, RelPath)> + 'a {
        let info = (dir.info_part(self.generation), dir.info(self.generation));
        let segments = self.new.iter();
        let segments = segments.map(|segment| (dir.segment_part(*segment), dir.segment(*segment)));
        std::iter::once(info).chain(segments)
    }

    /// Takes out of the entries before it what the new generation holds: all runs, the messages in
    /// retired segments, and earlier swaps, whose names were made durable with this one's files.
    /// Bytes for segments that live on stay. Gives the number of entries that went.
    pub(crate) fn carry(&self, entries: &mut Vec<Entry>) -> u64 {
        if canary::on(Canary::OldEntriesRedone) {
            return 0;
        }
        let before = entries.len();
        entries.retain_mut(|entry| {
            let segment = match &entry.what {
                What::Small(mail) => mail.segment,
                What::Large(mail) => mail.segment,
                What::Create { .. } | What::Runs(_) | What::Swap(_) => return false,
                What::Dead(_) => return true,
            };
            entry.slot = 0;
            if canary::on(Canary::SwapDropsBytes) {
                return false;
            }
            self.retired.binary_search(&segment).is_err()
        });
        u64::try_from(before - entries.len()).expect("an index has at most 64 bits")
    }
}

#[derive(Clone, Debug)]
pub(crate) struct SmallMail {
    /// Fixed part of the MSG run, then `From_` line and store line.
    pub(crate) head: Bytes,
    pub(crate) cache: Bytes,
    /// `None` once the running checkpoint has written it.
    pub(crate) body: Option<Rc<PendingBody>>,
    pub(crate) mailbox: MailboxId,
    pub(crate) uid: Uid,
    pub(crate) segment: u32,
    pub(crate) offset: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct LargeMail {
    /// Fixed part of the MSG run.
    pub(crate) head: Bytes,
    pub(crate) cache: Bytes,
    pub(crate) mailbox: MailboxId,
    pub(crate) uid: Uid,
    pub(crate) segment: u32,
}

impl Entry {
    /// The slot behind its runs.
    pub(crate) fn slot_end(&self) -> u32 {
        let bytes = match &self.what {
            What::Create { .. } => return FIRST_SLOT,
            What::Dead(_) => return 0,
            What::Swap(swap) => return swap.slots,
            _ if self.slot == 0 => return 0,
            What::Runs(runs) => runs.len(),
            What::Small(SmallMail { cache, .. }) | What::Large(LargeMail { cache, .. }) => {
                MSG_FIXED_BYTES + cache.len()
            }
        };
        self.slot + u32::try_from(bytes / SLOT).expect("a record is below 4 GiB")
    }

    /// Whether it makes, changes or ends a mailbox.
    pub(crate) fn changes_mailboxes(&self) -> bool {
        const KIND_MAILBOX: u8 = 4;
        matches!(&self.what, What::Runs(runs) if runs.get(4) == Some(&KIND_MAILBOX))
    }

    /// Where the bytes begin that it will write into a segment.
    pub(crate) fn owes(&self, segment: u32) -> Option<u64> {
        match &self.what {
            What::Small(mail) if mail.segment == segment => Some(mail.offset),
            _ => None,
        }
    }

    /// The swap that it is, if it is one.
    pub(crate) fn swap(&self) -> Option<&Swap> {
        match &self.what {
            What::Swap(swap) => Some(swap),
            _ => None,
        }
    }

    /// Its runs as they will stand in the info file, in pieces.
    pub(crate) fn runs(&self) -> [Bytes; 2] {
        match &self.what {
            _ if self.slot == 0 => [Bytes::new(), Bytes::new()],
            What::Create { .. } | What::Swap(_) | What::Dead(_) => [Bytes::new(), Bytes::new()],
            What::Runs(runs) => [runs.clone(), Bytes::new()],
            What::Small(SmallMail { head, cache, .. })
            | What::Large(LargeMail { head, cache, .. }) => {
                [head.slice(..MSG_FIXED_BYTES), cache.clone()]
            }
        }
    }

    /// Offset of its runs in the info file.
    pub(crate) fn info_offset(&self) -> u64 {
        u64::from(self.slot) * SLOT_BYTES
    }
}

/// A body that the log holds, shared by the recipients of a message.
#[derive(Debug)]
pub(crate) struct PendingBody {
    memory: RefCell<Option<Bytes>>,
    gauge: Rc<Cell<u64>>,
    /// Of the stored bytes, inside a frame.
    pub(crate) lsn: Lsn,
    pub(crate) stored_len: u32,
    pub(crate) stored_crc: u32,
}

impl PendingBody {
    /// The stored bytes, if they are still in memory.
    pub(crate) fn memory(&self) -> Option<Bytes> {
        self.memory.borrow().clone()
    }

    fn forget(&self) {
        if self.memory.take().is_some() {
            self.gauge
                .set(self.gauge.get() - u64::from(self.stored_len));
        }
    }
}

impl Drop for PendingBody {
    fn drop(&mut self) {
        self.forget();
    }
}

/// All bodies that the log holds, and how much memory they take.
#[derive(Debug, Default)]
pub(crate) struct Bodies {
    gauge: Rc<Cell<u64>>,
    oldest_first: VecDeque<Weak<PendingBody>>,
}

impl Bodies {
    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.gauge.get()
    }

    /// A body whose stored bytes are at `lsn` of the log; `memory` is counted if given.
    pub(crate) fn add(
        &mut self,
        memory: Option<Bytes>,
        lsn: Lsn,
        stored_len: u32,
        stored_crc: u32,
    ) -> Rc<PendingBody> {
        if memory.is_some() {
            self.gauge.set(self.gauge.get() + u64::from(stored_len));
        }
        let body = Rc::new(PendingBody {
            memory: RefCell::new(memory),
            gauge: Rc::clone(&self.gauge),
            lsn,
            stored_len,
            stored_crc,
        });
        self.oldest_first.push_back(Rc::downgrade(&body));
        body
    }

    /// Drops the oldest bodies from memory until at most `bytes_max` are left, and forgets those
    /// that are materialised.
    pub(crate) fn shrink(&mut self, bytes_max: u64) {
        while let Some(oldest) = self.oldest_first.front() {
            match oldest.upgrade() {
                None => {}
                Some(body) if self.gauge.get() > bytes_max => body.forget(),
                Some(_) => return,
            }
            self.oldest_first.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_bodies_leave_memory_first() {
        let mut bodies = Bodies::default();
        let body = |bodies: &mut Bodies, lsn| {
            bodies.add(
                Some(Bytes::from_static(b"0123456789")),
                Lsn::new(lsn),
                10,
                0,
            )
        };
        let first = body(&mut bodies, 1);
        let second = body(&mut bodies, 2);
        let third = body(&mut bodies, 3);
        assert_eq!(bodies.bytes(), 30);
        drop(second);
        assert_eq!(bodies.bytes(), 20);
        bodies.shrink(10);
        assert_eq!(first.memory(), None);
        assert!(third.memory().is_some());
        assert_eq!(bodies.bytes(), 10);
        drop((first, third));
        assert_eq!(bodies.bytes(), 0);
        bodies.shrink(0);
        assert!(bodies.oldest_first.is_empty());
    }
}
