//! The tail of a user: what an append or a change needs to know without the index (storage.md 4.3).
//!
//! Positions and numbers are those *reserved*: of records that are written, durable or not. What
//! readers are shown (names, counts, `uidnext_visible`) is of durable records only; the two meet
//! when a record is published.

use std::sync::Arc;

use ringpost_netproto::id::{MailboxId, UidValidity};
use smallvec::SmallVec;

use crate::format::info::{DELETED, Keyword, Mailbox, MailboxOp, Msg, SEEN, SpecialUse};
use crate::request::{MailboxStatus, Subscribed};
use crate::space::Space;

/// Whether a mailbox is there for readers and for new mail.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stand {
    /// Its record is not durable yet: mail may follow it into the log, nobody sees it.
    Coming,
    There,
    /// The record of its end is not durable yet: seen, but no mail may follow.
    Leaving,
}

/// What an append needs of a mailbox.
#[derive(Clone, Debug)]
pub(crate) struct MailboxTail {
    pub(crate) mailbox: MailboxId,
    pub(crate) name: Box<str>,
    pub(crate) special_use: SpecialUse,
    pub(crate) subscribed: Subscribed,
    pub(crate) stand: Stand,
    pub(crate) uidvalidity: UidValidity,
    pub(crate) uidnext: u32,
    /// Above every uid that readers saw.
    pub(crate) uidnext_visible: u32,
    /// The segment being appended to; 0 if there is none yet.
    pub(crate) segment: u32,
    pub(crate) segment_end: u64,
    /// Of what is visible, like all below.
    pub(crate) highest_modseq: u64,
    pub(crate) messages_count: u32,
    pub(crate) unseen_count: u32,
    pub(crate) deleted_count: u32,
    pub(crate) bytes: u64,
    /// By bit, reserved ones included.
    pub(crate) keywords: Vec<Arc<str>>,
    /// So many of them are visible.
    pub(crate) keywords_visible: usize,
}

impl MailboxTail {
    /// The mailbox in numbers.
    pub(crate) fn status(&self) -> MailboxStatus {
        let keywords = self.keywords.get(..self.keywords_visible);
        MailboxStatus {
            mailbox: self.mailbox,
            name: self.name.to_string(),
            uidvalidity: self.uidvalidity,
            uidnext: self.uidnext_visible,
            highest_modseq: self.highest_modseq,
            messages_count: self.messages_count,
            unseen_count: self.unseen_count,
            deleted_count: self.deleted_count,
            bytes: self.bytes,
            special_use: self.special_use,
            subscribed: self.subscribed,
            keywords: keywords.unwrap_or_default().to_vec(),
        }
    }

    /// Whether readers see it.
    pub(crate) fn is_visible(&self) -> bool {
        self.stand != Stand::Coming
    }

    /// Whether mail may be put into it.
    pub(crate) fn takes_mail(&self) -> bool {
        self.stand != Stand::Leaving
    }

    /// The bit of a keyword, durable or not.
    pub(crate) fn keyword_bit(&self, word: &str) -> Option<u8> {
        let found = self
            .keywords
            .iter()
            .position(|known| known.eq_ignore_ascii_case(word));
        found.and_then(|bit| u8::try_from(bit).ok())
    }

    /// Counts a message of these flags in or out.
    fn count(&mut self, flags: u32, way: Way) {
        let unseen = u32::from(flags & SEEN == 0);
        let deleted = u32::from(flags & DELETED != 0);
        for (count, by) in [
            (&mut self.messages_count, 1),
            (&mut self.unseen_count, unseen),
            (&mut self.deleted_count, deleted),
        ] {
            *count = match way {
                Way::In => count.saturating_add(by),
                Way::Out => count.saturating_sub(by),
            };
        }
    }

    /// A visible message's flags changed.
    pub(crate) fn recount(&mut self, from: u32, to: u32) {
        self.count(from, Way::Out);
        self.count(to, Way::In);
    }
}

#[derive(Clone, Copy)]
enum Way {
    In,
    Out,
}

/// Whether a user has been created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Existence {
    /// No record names it.
    Absent,
    /// Its create record is on its way into the log; nobody sees anything of it.
    Coming,
    /// Its create record is durable, or its info file exists.
    Created,
}

/// What an append needs of a user.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub(crate) existence: Existence,
    /// Whether its directory exists on disk, under a name that survives a power cut.
    pub(crate) has_dir: bool,
    pub(crate) generation: u32,
    pub(crate) next_slot: u32,
    pub(crate) next_segment: u32,
    pub(crate) modseq: u64,
    /// Of what is visible.
    pub(crate) modseq_visible: u64,
    pub(crate) uidvalidity_max: u32,
    pub(crate) mailboxes: Vec<MailboxTail>,
    /// Visible messages of all mailboxes and their RFC822.SIZE.
    pub(crate) used: Usage,
    /// Messages written, or about to be, and not visible yet.
    pub(crate) reserved: Usage,
    /// Of them those that will leave another mailbox at the same moment.
    pub(crate) moving: Usage,
    /// What its files hold, and hold for nothing.
    pub(crate) space: Space,
    /// Shared segments with messages that are not visible yet, and how many.
    awaited: SmallVec<[(u32, u32); 1]>,
}

/// Messages and bytes, as quotas count them (storage.md 4.6).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
}

impl Usage {
    /// Of one message with this RFC822.SIZE.
    pub(crate) fn of(rfc822_size: u32) -> Self {
        Self {
            bytes: u64::from(rfc822_size),
            messages: 1,
        }
    }

    #[must_use]
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            messages: self.messages.saturating_add(other.messages),
        }
    }

    #[must_use]
    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            messages: self.messages.saturating_sub(other.messages),
        }
    }

    #[must_use]
    pub(crate) fn times(self, count: u64) -> Self {
        Self {
            bytes: self.bytes.saturating_mul(count),
            messages: self.messages.saturating_mul(count),
        }
    }
}

/// So many numbers are left at the least while messages are taken: far more than one group uses.
const HEADROOM: u32 = 1 << 20;

/// Whether a uid can have been given: so many are left above it.
pub(crate) fn is_given(uid: u32) -> bool {
    (1..u32::MAX - HEADROOM).contains(&uid)
}

impl Tail {
    /// A tail before any run.
    pub(crate) fn blank(existence: Existence, has_dir: bool) -> Self {
        Self {
            existence,
            has_dir,
            generation: 1,
            next_slot: crate::format::info::FIRST_SLOT,
            next_segment: 1,
            modseq: 0,
            modseq_visible: 0,
            uidvalidity_max: 0,
            mailboxes: Vec::new(),
            used: Usage::default(),
            reserved: Usage::default(),
            moving: Usage::default(),
            space: Space::default(),
            awaited: SmallVec::new(),
        }
    }

    /// A message takes a place in a shared segment.
    pub(crate) fn awaits(&mut self, segment: u32) {
        match self.awaited.iter_mut().find(|(id, _)| *id == segment) {
            Some((_, count)) => *count += 1,
            None => self.awaited.push((segment, 1)),
        }
    }

    /// A message that took one is visible, or will never be.
    pub(crate) fn arrived(&mut self, segment: u32) {
        if let Some((_, count)) = self.awaited.iter_mut().find(|(id, _)| *id == segment) {
            *count -= 1;
        }
        self.awaited.retain(|(_, count)| *count > 0);
    }

    /// Whether a shared segment holds messages, or will.
    pub(crate) fn is_needed(&self, segment: u32) -> bool {
        self.space.is_alive(segment) || self.awaited.iter().any(|(id, _)| *id == segment)
    }

    /// Whether every number that a message takes can still grow. Only absurd files say no.
    pub(crate) fn has_numbers(&self, mailbox: Option<&MailboxTail>) -> bool {
        let most = u32::MAX - HEADROOM;
        self.next_slot < most
            && self.next_segment < most
            && self.modseq < u64::MAX >> 1
            && self.uidvalidity_max < most
            && mailbox.is_none_or(|mailbox| mailbox.uidnext < most)
    }

    pub(crate) fn mailbox(&self, mailbox: MailboxId) -> Option<&MailboxTail> {
        self.mailboxes.iter().find(|tail| tail.mailbox == mailbox)
    }

    pub(crate) fn mailbox_mut(&mut self, mailbox: MailboxId) -> Option<&mut MailboxTail> {
        self.mailboxes
            .iter_mut()
            .find(|tail| tail.mailbox == mailbox)
    }

    /// The mailboxes that readers see.
    pub(crate) fn visible(&self) -> impl Iterator<Item = &MailboxTail> {
        self.mailboxes.iter().filter(|tail| tail.is_visible())
    }

    /// One of them.
    pub(crate) fn visible_mailbox(&self, mailbox: MailboxId) -> Option<&MailboxTail> {
        self.mailbox(mailbox).filter(|tail| tail.is_visible())
    }

    /// What is kept and what will be once all that is written is visible.
    pub(crate) fn usage(&self) -> Usage {
        self.used.plus(self.reserved).minus(self.moving)
    }

    /// A message's place is taken: its numbers are not given again.
    pub(crate) fn take_place(&mut self, msg: &Msg) {
        self.modseq = self.modseq.max(msg.modseq.value());
        self.next_segment = self.next_segment.max(msg.segment.saturating_add(1));
        let shared = msg.format_flags & crate::format::info::OWN_FILE == 0;
        if let Some(mailbox) = self.mailbox_mut(msg.mailbox) {
            mailbox.uidnext = mailbox.uidnext.max(msg.uid.value().saturating_add(1));
            if shared && msg.segment >= mailbox.segment {
                let same = msg.segment == mailbox.segment;
                let known = if same { mailbox.segment_end } else { 0 };
                mailbox.segment = msg.segment;
                mailbox.segment_end = known.max(msg.offset + msg.segment_bytes());
            }
        }
    }

    /// Goes on in another segment if nothing is alive in this one and nothing followed `end`: its file
    /// was removed, or is about to be.
    pub(crate) fn leave_segment(&mut self, segment: u32, end: u64) -> bool {
        if self.space.is_alive(segment) {
            return false;
        }
        let mut mailboxes = self.mailboxes.iter_mut();
        let place = (segment, end);
        let found = mailboxes.find(|mailbox| (mailbox.segment, mailbox.segment_end) == place);
        if let Some(mailbox) = found {
            (mailbox.segment, mailbox.segment_end) = (0, 0);
        }
        true
    }

    /// Counts a message that readers see now.
    pub(crate) fn count_in(&mut self, msg: &Msg) {
        self.saw(msg.modseq.value());
        self.space.stored(msg);
        if let Some(mailbox) = self.mailbox_mut(msg.mailbox) {
            mailbox.highest_modseq = mailbox.highest_modseq.max(msg.modseq.value());
            let next = msg.uid.value().saturating_add(1);
            mailbox.uidnext_visible = mailbox.uidnext_visible.max(next);
            mailbox.bytes += u64::from(msg.rfc822_size);
            mailbox.count(msg.system_flags, Way::In);
            self.used = self.used.plus(Usage::of(msg.rfc822_size));
        }
    }

    /// Counts out a message that readers see no more.
    pub(crate) fn count_out(&mut self, mailbox: MailboxId, flags: u32, rfc822_size: u32) {
        if let Some(mailbox) = self.mailbox_mut(mailbox) {
            mailbox.bytes = mailbox.bytes.saturating_sub(u64::from(rfc822_size));
            mailbox.count(flags, Way::Out);
            self.used = self.used.minus(Usage::of(rfc822_size));
        }
    }

    /// A change with this modseq is visible.
    pub(crate) fn saw(&mut self, modseq: u64) {
        self.modseq = self.modseq.max(modseq);
        self.modseq_visible = self.modseq_visible.max(modseq);
    }

    /// Applies a MAILBOX run of the file, or one whose record is durable.
    pub(crate) fn apply_mailbox(&mut self, run: &Mailbox<'_>) {
        self.saw(run.modseq.value());
        self.uidvalidity_max = self.uidvalidity_max.max(run.uidvalidity.value());
        if let Some(known) = self.mailbox_mut(run.mailbox) {
            known.uidnext = known.uidnext.max(run.uidnext);
            known.uidnext_visible = known.uidnext_visible.max(run.uidnext);
            known.highest_modseq = known.highest_modseq.max(run.highest_modseq);
        }
        match run.op {
            MailboxOp::Create | MailboxOp::Snapshot => {
                if let Some(known) = self.mailbox_mut(run.mailbox) {
                    known.stand = Stand::There;
                } else {
                    self.add_mailbox(run, Stand::There);
                }
            }
            MailboxOp::Rename => {
                if let Some(mailbox) = self.mailbox_mut(run.mailbox) {
                    mailbox.name = Box::from(run.name);
                }
            }
            MailboxOp::Delete => {
                if let Some(gone) = self.mailbox(run.mailbox) {
                    let usage = Usage {
                        bytes: gone.bytes,
                        messages: u64::from(gone.messages_count),
                    };
                    self.used = self.used.minus(usage);
                }
                self.mailboxes.retain(|tail| tail.mailbox != run.mailbox);
                self.space.deleted(run.mailbox);
            }
            MailboxOp::Subscribe | MailboxOp::Unsubscribe => {
                if let Some(mailbox) = self.mailbox_mut(run.mailbox) {
                    mailbox.subscribed = if run.op == MailboxOp::Subscribe {
                        Subscribed::Yes
                    } else {
                        Subscribed::No
                    };
                }
            }
        }
    }

    /// A mailbox begins.
    pub(crate) fn add_mailbox(&mut self, run: &Mailbox<'_>, stand: Stand) {
        self.uidvalidity_max = self.uidvalidity_max.max(run.uidvalidity.value());
        let uidnext = run.uidnext.max(1);
        self.mailboxes.push(MailboxTail {
            mailbox: run.mailbox,
            name: Box::from(run.name),
            special_use: run.special_use,
            subscribed: Subscribed::No,
            stand,
            uidvalidity: run.uidvalidity,
            uidnext,
            uidnext_visible: uidnext,
            segment: 0,
            segment_end: 0,
            highest_modseq: run.highest_modseq,
            messages_count: 0,
            unseen_count: 0,
            deleted_count: 0,
            bytes: 0,
            keywords: Vec::new(),
            keywords_visible: 0,
        });
    }

    /// Applies a KEYWORD run of the file, or one whose record is durable.
    pub(crate) fn apply_keyword(&mut self, run: &Keyword<'_>) {
        self.saw(run.modseq.value());
        let bit = usize::from(run.bit);
        if let Some(mailbox) = self.mailbox_mut(run.mailbox) {
            // Bits are given in order; a file that skips some gets names that no client sends.
            while mailbox.keywords.len() <= bit {
                mailbox.keywords.push(Arc::from(""));
            }
            if let Some(word) = mailbox.keywords.get_mut(bit)
                && word.is_empty()
            {
                *word = Arc::from(run.name);
            }
            mailbox.keywords_visible = mailbox.keywords_visible.max(bit + 1);
        }
    }
}
