//! Which part of a shard answers which request.

use super::append::Asker;
use super::change;
use super::fetch::Fetch;
use super::read::{Page, Wanted};
use super::{Phase, Shard};
use crate::io::Io;
use crate::request::{Now, Refused, Request, Ticket};

impl<I: Io> Shard<I> {
    /// Hands a request to the part of the shard that answers it.
    pub(super) fn dispatch(
        &mut self,
        now: Now,
        ticket: Ticket,
        request: Request,
    ) -> Result<(), Refused> {
        match request {
            Request::Append(group) => self.submit_append(now, ticket, group)?,
            Request::Hold(group) => self.submit_hold(now, Asker::Ticket(ticket), group)?,
            Request::StageBegin {
                size_hint,
                sender,
                internal_date,
            } => {
                self.stage_begin(ticket, size_hint, &sender, internal_date)?;
            }
            Request::StageWrite { stage, data } => self.stage_write(ticket, stage, data)?,
            Request::StageExpand { stage } => self.stage_expand(ticket, stage)?,
            Request::StageFinish {
                stage,
                summary,
                cache,
                guid,
            } => {
                self.stage_finish(ticket, stage, *summary, cache, guid)?;
            }
            Request::StageTake { prefix } => self.stage_take(ticket, prefix)?,
            Request::StageSeal { stage } => self.stage_seal(ticket, stage)?,
            Request::StageDrop { stage } => self.stage_drop(stage),
            Request::Mailboxes { user } => self.submit_read(ticket, &user, Wanted::Mailboxes)?,
            Request::List {
                user,
                mailbox,
                after,
                entries_max,
            } => {
                let page = Page::new(mailbox, after, entries_max);
                self.submit_read(ticket, &user, Wanted::List(page))?;
            }
            Request::Fetch {
                user,
                mailbox,
                uid,
                stored_offset,
                bytes_max,
            } => {
                let fetch = Fetch::new((mailbox, uid), None, stored_offset, bytes_max);
                self.submit_read(ticket, &user, Wanted::Fetch(fetch))?;
            }
            Request::Compact { user } => self.submit_compact(ticket, &user)?,
            Request::BackupBegin { id, lease_ns } => {
                self.backup_begin(now, ticket, id, lease_ns)?;
            }
            Request::BackupEnd { id } => self.backup_end(ticket, id)?,
            Request::Scrub { what } => self.submit_scrub(ticket, what)?,
            Request::Checkpoint => {
                let durable = self.positions.durable_to().lsn();
                self.checkpoint.ask(ticket, durable);
            }
            Request::Drain => {
                self.give_backup_up("the node stops");
                self.phase = Phase::Draining(ticket);
                self.refuse_watches();
            }
            other => return self.dispatch_copies(now, ticket, other),
        }
        Ok(())
    }

    /// The requests of whoever keeps copies of partitions alike.
    fn dispatch_copies(
        &mut self,
        now: Now,
        ticket: Ticket,
        request: Request,
    ) -> Result<(), Refused> {
        match request {
            Request::Replicate(records) => self.submit_replicate(now, ticket, *records)?,
            Request::Lead {
                partition,
                epoch,
                copy,
                peers_pseq,
            } => self.submit_lead(ticket, partition, (epoch, copy, peers_pseq))?,
            Request::Disown { partition, pseq } => self.submit_cut(ticket, partition, pseq)?,
            Request::RefillMail { group, given } => {
                self.submit_refill_mail(now, ticket, group, given)?;
            }
            Request::Resume {
                partition,
                epoch,
                pseq,
                chain,
            } => self.submit_resume(ticket, partition, (epoch, pseq, chain))?,
            other => return self.dispatch_mailbox(now, ticket, other),
        }
        Ok(())
    }

    /// The requests of mail clients.
    fn dispatch_mailbox(
        &mut self,
        now: Now,
        ticket: Ticket,
        request: Request,
    ) -> Result<(), Refused> {
        match request {
            Request::Changes {
                user,
                mailbox,
                since,
                after,
                entries_max,
            } => {
                let page = Page::new(mailbox, after, entries_max);
                let since = since.value();
                self.submit_read(ticket, &user, Wanted::Changes { page, since })?;
            }
            Request::Watch {
                user,
                mailbox,
                since,
            } => {
                self.accepts_mail()?;
                self.admit_watch()?;
                let since = since.value();
                self.submit_read(ticket, &user, Wanted::Watch { mailbox, since })?;
            }
            Request::Unwatch { watch } => self.unwatch(watch),
            Request::SnapshotOpen { user, mailbox } => {
                self.submit_read(ticket, &user, Wanted::Snapshot(mailbox))?;
            }
            Request::SnapshotList {
                snapshot,
                after,
                entries_max,
            } => self.list_snapshot(ticket, snapshot, after, entries_max),
            Request::SnapshotFetch {
                snapshot,
                uid,
                stored_offset,
                bytes_max,
            } => self.fetch_snapshot(ticket, snapshot, uid, (stored_offset, bytes_max))?,
            Request::SnapshotClose { snapshot } => self.close_snapshot(snapshot),
            other => {
                let (user, wish) = change::wish_of(other);
                self.submit_change(now, ticket, user, wish)?;
            }
        }
        Ok(())
    }
}

impl Request {
    /// Whether an event answers it.
    pub(super) fn is_answered(&self) -> bool {
        !matches!(
            self,
            Self::StageDrop { .. } | Self::Unwatch { .. } | Self::SnapshotClose { .. }
        )
    }

    /// Whether it brings new mail.
    pub(super) fn is_mail(&self) -> bool {
        matches!(
            self,
            Self::Append(_)
                | Self::Hold(_)
                | Self::RefillMail { .. }
                | Self::StageBegin { .. }
                | Self::StageWrite { .. }
                | Self::StageExpand { .. }
                | Self::StageFinish { .. }
                | Self::StageTake { .. }
                | Self::StageSeal { .. }
                | Self::Drain
        )
    }
}
