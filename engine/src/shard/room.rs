//! Whether there is room for what is asked: bounds of the shard (storage.md 4.4), quotas, keywords,
//! bytes of a frame (4.6).

use std::collections::BTreeSet;
use std::sync::Arc;

use ringpost_netproto::placement::NAME_BYTES_MAX;

use super::Shard;
use super::append::Append;
use crate::format::info::SLOT;
use crate::format::record::{name_len, runs_len};
use crate::io::Io;
use crate::limits::{KEYWORDS_MAX, USER_QUEUE_MAX};
use crate::request::{BusyReason, Limit, Now, QuotaLimits, Refused, is_keyword};
use crate::tail::{Existence, MailboxTail, Usage};

impl<I: Io> Shard<I> {
    /// Whether a recipient may have one more message, behind those of `chunk`: the last word on
    /// quota (storage.md 4.6) and keywords.
    pub(super) fn has_room(
        &self,
        append: &Append,
        place: usize,
        chunk: &[usize],
    ) -> Result<(), Refused> {
        let group = &append.group;
        let recipient = group.recipients.get(place).expect("as many as users");
        if recipient.quota == QuotaLimits::default() && recipient.flags.keywords.is_empty() {
            return Ok(());
        }
        let user = append.users.get(place).expect("as many as recipients");
        let Some(live) = self.users.get(*user).live() else {
            return Ok(());
        };
        let earlier = chunk
            .iter()
            .filter(|at| append.users.get(**at) == Some(user));
        let one = Usage::of(group.body.summary().rfc822_size);
        let earlier_count = u64::try_from(earlier.clone().count()).unwrap_or(u64::MAX);
        let usage = live.tail.usage().plus(one.times(earlier_count));
        within_quota(usage, one, &recipient.quota)?;
        if recipient.flags.keywords.is_empty() {
            return Ok(());
        }
        let same = earlier.filter_map(|at| group.recipients.get(*at));
        let same = same.filter(|other| other.mailbox == recipient.mailbox);
        let words = same
            .chain([recipient])
            .flat_map(|other| &other.flags.keywords);
        keywords_fit(live.tail.mailbox(recipient.mailbox), words)?;
        let body = &group.body;
        let mailbox = append.special.mailbox_need();
        let alone =
            Self::body_need(body) + self.recipient_need_of(*user, recipient, body) + mailbox;
        if alone > self.log.payload_max() {
            return Err(Refused::TooLarge);
        }
        Ok(())
    }

    /// Age of the oldest append without an answer that waits for room, in ns.
    pub(super) fn oldest_append_ns(&self, now: Now) -> u64 {
        let oldest = self
            .ready
            .front()
            .and_then(|index| self.appends.get(*index));
        oldest.map_or(0, |append| now.monotonic.since(append.since))
    }

    /// Which bound keeps new mail waiting, if any (storage.md 4.4).
    pub(super) fn pressure(&self) -> Option<BusyReason> {
        let used = self.log.used_bytes(self.positions.checkpointed_to().lsn());
        let log_limit = self
            .checkpoint
            .log_limit(self.log.files().capacity_bytes_max());
        if used >= log_limit {
            return Some(BusyReason::Log);
        }
        let records_limit = self.config.pending_records_max * 95 / 100;
        if self.pending_records >= records_limit.max(1) {
            return Some(BusyReason::PendingRecords);
        }
        let bodies_limit = self.checkpoint.bodies_limit(self.config.pending_bytes_max);
        if bodies_limit.is_some_and(|limit| self.bodies.bytes() >= limit) {
            return Some(BusyReason::Bodies);
        }
        None
    }

    /// Whether too many requests wait for one user.
    pub(super) fn user_queue_is_full(&self, index: usize) -> bool {
        let user = self.users.get(index);
        user.waiting.len() + user.changes.len() >= USER_QUEUE_MAX
    }

    /// At most so many bytes of records that make a user, if it has to be made.
    pub(super) fn creation_need(&self, user: usize) -> usize {
        let live = self.users.get(user).live();
        let absent = live.is_none_or(|live| live.tail.existence == Existence::Absent);
        if absent {
            name_len(NAME_BYTES_MAX) + runs_len(4 * SLOT)
        } else {
            0
        }
    }
}

/// At most so many bytes of a record that defines these keywords.
pub(super) fn keywords_need(words: &[Arc<str>]) -> usize {
    let run = |word: &Arc<str>| SLOT + word.len().next_multiple_of(SLOT);
    let runs: usize = words.iter().map(run).sum();
    if runs == 0 { 0 } else { runs_len(runs) }
}

/// Whether these are keywords and there are bits for those that a mailbox does not have yet.
pub(super) fn keywords_fit<'a>(
    mailbox: Option<&MailboxTail>,
    words: impl Iterator<Item = &'a Arc<str>>,
) -> Result<(), Refused> {
    let known = mailbox.map_or(0, |mailbox| mailbox.keywords.len());
    let mut fresh = BTreeSet::new();
    for word in words {
        if !is_keyword(word) {
            return Err(Refused::BadKeyword);
        }
        if mailbox.is_none_or(|mailbox| mailbox.keyword_bit(word).is_none()) {
            fresh.insert(word.to_ascii_lowercase());
        }
        if known + fresh.len() > KEYWORDS_MAX {
            return Err(Refused::Limit(Limit::Keywords));
        }
    }
    Ok(())
}

/// Whether a user who keeps `usage` may have `more` (storage.md 4.6).
pub(super) fn within_quota(usage: Usage, more: Usage, limits: &QuotaLimits) -> Result<(), Refused> {
    let then = usage.plus(more);
    let over = limits.bytes_max.is_some_and(|max| then.bytes > max)
        || limits.messages_max.is_some_and(|max| then.messages > max);
    if over {
        return Err(Refused::OverQuota {
            bytes: usage.bytes,
            messages: usage.messages,
        });
    }
    Ok(())
}
