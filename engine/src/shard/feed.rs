//! The change feed of a mailbox (RFC 7162): what happened since a modseq, and a wake-up when
//! something does.

use ringpost_netproto::id::{MailboxId, Modseq};

use super::read::{Page, bad_index, list_entry};
use super::{Phase, Shard};
use crate::index::{above, alive};
use crate::io::Io;
use crate::limits::WATCHES_MAX;
use crate::request::{BusyReason, ChangesPage, Event, Horizon, More, Refused, Ticket, UidSet};
use crate::user::User;

/// A caller that waits for a change.
pub(super) struct Watch {
    user: usize,
    mailbox: Option<MailboxId>,
    since: u64,
}

impl<I: Io> Shard<I> {
    /// What came, changed and went in a mailbox since a modseq, ascending by uid.
    pub(super) fn changes_page(
        &self,
        user: usize,
        page: Page,
        since: u64,
    ) -> Result<ChangesPage, Refused> {
        let user = self.users.get(user);
        let live = user.live().ok_or(Refused::NoSuchUser)?;
        let tail = live.tail.visible_mailbox(page.mailbox);
        let status = tail.ok_or(Refused::NoSuchMailbox)?.status();
        let index = live.index.as_ref().expect("a read waits for it");
        let all = index.mailbox(page.mailbox);
        let known = index.vanished(page.mailbox, since);
        let (horizon, vanished) = if let Some(vanished) = known {
            (Horizon::Known, vanished)
        } else {
            let uids = alive(all).map(|entry| entry.uid.value());
            (Horizon::Passed, holes(uids, status.uidnext))
        };
        let mut changed = Vec::new();
        let mut more = More::No;
        let mut upto = status.uidnext.saturating_sub(1);
        for entry in above(all, page.after).filter(|entry| entry.modseq > since) {
            if changed.len() == page.entries_max {
                more = More::Yes;
                break;
            }
            let msg = entry
                .msg()
                .map_err(|reason| Refused::Damaged(std::sync::Arc::new(bad_index(user, reason))))?;
            changed.push(list_entry(&msg, bytes::Bytes::new()));
        }
        if more == More::Yes {
            upto = changed.last().map_or(upto, |entry| entry.uid.value());
        }
        // What vanished is cut at the same uids, and into pages of as many ranges.
        let mut part = UidSet::none();
        for range in vanished.ranges() {
            let (low, high) = (range.low.max(page.after.saturating_add(1)), range.high);
            if high <= page.after || low > upto {
                continue;
            }
            if part.ranges().len() == page.entries_max {
                more = More::Yes;
                upto = part.ranges().last().map_or(upto, |last| last.high);
                changed.retain(|entry| entry.uid.value() <= upto);
                break;
            }
            part.push_range(low, high.min(upto));
        }
        Ok(ChangesPage {
            status,
            changed,
            vanished: part,
            horizon,
            upto,
            more,
        })
    }

    /// Whether one more watch may wait.
    pub(super) fn admit_watch(&self) -> Result<(), Refused> {
        if self.watches.len() >= WATCHES_MAX {
            return Err(Refused::Busy(BusyReason::Watches));
        }
        Ok(())
    }

    /// Answers a watch whose user is loaded, or lets it wait.
    pub(super) fn watch(
        &mut self,
        read: usize,
        user: usize,
        mailbox: Option<MailboxId>,
        since: u64,
    ) {
        let now = reached(self.users.get(user), mailbox);
        let ticket = self.close_read(read);
        match now {
            // Its user was loaded while the shard drained.
            Ok(now) if now.value() <= since && self.phase != Phase::Serving => {
                let result = Err(Refused::Stopped);
                self.answer(Event::Woken { ticket, result });
            }
            Ok(now) if now.value() <= since => {
                let watch = Watch {
                    user,
                    mailbox,
                    since,
                };
                self.watches.insert(ticket.value(), watch);
                self.users.get_mut(user).watches.push(ticket.value());
            }
            result => self.answer(Event::Woken { ticket, result }),
        }
    }

    /// A user changed: those who wait for that learn it.
    pub(super) fn wake_watches(&mut self, user: usize) {
        if self.users.get(user).watches.is_empty() {
            return;
        }
        for number in std::mem::take(&mut self.users.get_mut(user).watches) {
            let Some(watch) = self.watches.get(&number) else {
                continue;
            };
            match reached(self.users.get(user), watch.mailbox) {
                Ok(now) if now.value() <= watch.since => {
                    self.users.get_mut(user).watches.push(number);
                }
                result => {
                    self.watches.remove(&number);
                    let ticket = Ticket(number);
                    self.answer(Event::Woken { ticket, result });
                }
            }
        }
    }

    /// Ends a watch that waits, or whose user is being loaded.
    pub(super) fn unwatch(&mut self, ticket: Ticket) {
        if let Some(watch) = self.watches.remove(&ticket.value()) {
            let user = self.users.get_mut(watch.user);
            user.watches.retain(|number| *number != ticket.value());
            self.answer(Event::Woken {
                ticket,
                result: Err(Refused::Cancelled),
            });
            self.users.forget_if_absent(watch.user);
        } else {
            self.cancel_watch_read(ticket);
        }
    }

    /// The shard ends: nothing will change any more. Nobody waits for the users of watches that are
    /// still to be loaded, so those are answered, too.
    pub(super) fn refuse_watches(&mut self) {
        self.refuse_watch_reads();
        for (number, watch) in std::mem::take(&mut self.watches) {
            self.users.get_mut(watch.user).watches.clear();
            self.answer(Event::Woken {
                ticket: Ticket(number),
                result: Err(Refused::Stopped),
            });
        }
    }
}

/// The highest modseq of a mailbox, or of all.
fn reached(user: &User, mailbox: Option<MailboxId>) -> Result<Modseq, Refused> {
    let tail = &user.live().ok_or(Refused::NoSuchUser)?.tail;
    let reached = match mailbox {
        None => tail.modseq_visible,
        Some(mailbox) => {
            let found = tail.visible_mailbox(mailbox);
            found.ok_or(Refused::NoSuchMailbox)?.highest_modseq
        }
    };
    Ok(Modseq::new(reached))
}

/// The uids below `uidnext` that no message has.
fn holes(uids: impl Iterator<Item = u32>, uidnext: u32) -> UidSet {
    let mut set = UidSet::none();
    let mut next = 1;
    for uid in uids.chain([uidnext]) {
        if uid > next {
            set.push_range(next, uid - 1);
        }
        next = uid.saturating_add(1);
    }
    set
}
