//! Mailboxes made, renamed, removed, subscribed to (storage.md 8.3; RFC 9051 6.3.4 to 6.3.8).

use ringpost_netproto::id::{MailboxId, Modseq, UidValidity};
use smallvec::SmallVec;

use super::{At, MailboxChange, MailboxChanged, Placed};
use crate::format::info::{Mailbox, MailboxOp, SLOT, Seed, SpecialUse};
use crate::format::record::{Group, RecordType, runs_len};
use crate::io::Io;
use crate::limits::MAILBOXES_MAX;
use crate::mailbox_name::{NameFault, below, canonical, canonical_to_create};
use crate::position::{DurableTo, Lsn};
use crate::request::{Limit, Now, Refused};
use crate::shard::Shard;
use crate::shard::append::seconds;
use crate::shard::encode::{RunsAt, next_modseq};
use crate::tail::{MailboxTail, Stand, Tail};

/// A run to be encoded, but for what its group gives it.
struct Planned {
    op: MailboxOp,
    special_use: SpecialUse,
    /// 0 for one that is to be made.
    mailbox: MailboxId,
    uidvalidity: UidValidity,
    uidnext: u32,
    highest_modseq: u64,
    name: Box<str>,
}

/// Runs of one group, and what will be answered.
pub(in crate::shard) struct MailboxPlan {
    runs: Vec<Planned>,
    /// Bytes of records, at most; those that make the user apart.
    need: usize,
    mailbox: MailboxId,
    uidvalidity: UidValidity,
    modseq: Option<Modseq>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    ToDo,
    Done,
}

/// Decides a change of mailboxes; `room` is what one frame can hold.
pub(super) fn plan(
    at: &At<'_>,
    asked: &MailboxChange,
    room: usize,
) -> Result<MailboxPlan, Refused> {
    let runs = match asked {
        MailboxChange::Create { name, special_use } => create(at, name, *special_use)?,
        MailboxChange::Rename { from, to } => rename(at, from, to)?,
        MailboxChange::Delete {
            mailbox: MailboxId::INBOX,
        }
        | MailboxChange::DeleteEmpty {
            mailbox: MailboxId::INBOX,
        } => return Err(Refused::BadName(NameFault::Inbox)),
        MailboxChange::Delete { mailbox } => {
            let found = at.mailbox(*mailbox)?;
            vec![Planned::of(found, MailboxOp::Delete, &found.name)]
        }
        MailboxChange::DeleteEmpty { mailbox } => {
            let found = at.mailbox(*mailbox)?;
            // A uid that nobody saw yet is of a message in the log.
            if found.messages_count > 0 || found.uidnext != found.uidnext_visible {
                return Err(Refused::NotEmpty);
            }
            vec![Planned::of(found, MailboxOp::Delete, &found.name)]
        }
        MailboxChange::Subscribe { mailbox } => {
            let found = at.mailbox(*mailbox)?;
            vec![Planned::of(found, MailboxOp::Subscribe, &found.name)]
        }
        MailboxChange::Unsubscribe { mailbox } => {
            let found = at.mailbox(*mailbox)?;
            vec![Planned::of(found, MailboxOp::Unsubscribe, &found.name)]
        }
    };
    let bytes = |run: &Planned| SLOT + run.name.len().next_multiple_of(SLOT);
    let need = runs_len(runs.iter().map(bytes).sum());
    if need > room {
        return Err(Refused::TooLarge);
    }
    let (mailbox, uidvalidity) = match asked {
        // The one that was named comes first, if it is a mailbox at all.
        MailboxChange::Rename { from, .. } => {
            let from = canonical(from).map_err(Refused::BadName)?;
            let named = at.tail.visible().find(|tail| *tail.name == *from);
            named.map_or((MailboxId::new(0), UidValidity::new(0)), |tail| {
                (tail.mailbox, tail.uidvalidity)
            })
        }
        _ => runs
            .first()
            .map_or((MailboxId::new(0), UidValidity::new(0)), |run| {
                (run.mailbox, run.uidvalidity)
            }),
    };
    Ok(MailboxPlan {
        runs,
        need,
        mailbox,
        uidvalidity,
        modseq: None,
        state: State::ToDo,
    })
}

fn create(at: &At<'_>, name: &str, special_use: SpecialUse) -> Result<Vec<Planned>, Refused> {
    let name = canonical_to_create(name).map_err(Refused::BadName)?;
    // A user that is made by this has the first mailboxes before.
    let first = super::super::append::FIRST_MAILBOXES;
    let absent = at.tail.mailboxes.is_empty();
    let taken = at.tail.mailboxes.iter().any(|tail| *tail.name == *name)
        || (absent && first.iter().any(|(_, known, _)| *known == name));
    if taken {
        return Err(Refused::Exists);
    }
    if at.tail.mailboxes.len() >= MAILBOXES_MAX {
        return Err(Refused::Limit(Limit::Mailboxes));
    }
    Ok(vec![Planned {
        op: MailboxOp::Create,
        special_use,
        // Given when it is encoded.
        mailbox: MailboxId::new(0),
        uidvalidity: UidValidity::new(0),
        uidnext: 1,
        highest_modseq: 0,
        name: name.into_boxed_str(),
    }])
}

fn rename(at: &At<'_>, from: &str, to: &str) -> Result<Vec<Planned>, Refused> {
    let from = canonical(from).map_err(Refused::BadName)?;
    let to = canonical(to).map_err(Refused::BadName)?;
    if from == "INBOX" {
        return Err(Refused::BadName(NameFault::Inbox));
    }
    if below(&to, &from).is_some() {
        return Err(Refused::BadName(NameFault::BelowItself));
    }
    let mut runs = Vec::new();
    for tail in at.tail.visible() {
        let name = if *tail.name == *from {
            to.clone()
        } else if let Some(rest) = below(&tail.name, &from) {
            format!("{to}/{rest}")
        } else {
            continue;
        };
        let name = canonical(&name).map_err(Refused::BadName)?;
        let run = Planned::of(tail, MailboxOp::Rename, &name);
        runs.push(run);
    }
    if runs.is_empty() {
        return Err(Refused::NoSuchMailbox);
    }
    let is_new = |name: &str| runs.iter().any(|run| *run.name == *name);
    let stays = |tail: &&MailboxTail| *tail.name != *from && below(&tail.name, &from).is_none();
    let mut others = at.tail.visible().filter(stays);
    if from == to || others.any(|tail| *tail.name == *to || is_new(&tail.name)) {
        return Err(Refused::Exists);
    }
    Ok(runs)
}

impl Planned {
    fn of(tail: &MailboxTail, op: MailboxOp, name: &str) -> Self {
        Self {
            op,
            special_use: tail.special_use,
            mailbox: tail.mailbox,
            uidvalidity: tail.uidvalidity,
            uidnext: tail.uidnext_visible,
            highest_modseq: tail.highest_modseq,
            name: Box::from(name),
        }
    }

    fn run(&self, modseq: Modseq, lsn: Lsn, now: Now) -> Mailbox<'_> {
        Mailbox {
            op: self.op,
            special_use: self.special_use,
            mailbox: self.mailbox,
            uidvalidity: self.uidvalidity,
            modseq,
            lsn,
            uidnext: self.uidnext,
            highest_modseq: self.highest_modseq,
            time: now.wall,
            name: &self.name,
        }
    }
}

impl MailboxPlan {
    pub(super) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(super) fn answer(self, tail: Option<&Tail>, durable: DurableTo) -> MailboxChanged {
        let known = tail.map_or(0, |tail| tail.modseq_visible);
        MailboxChanged {
            mailbox: self.mailbox,
            uidvalidity: self.uidvalidity,
            modseq: self.modseq.unwrap_or(Modseq::new(known)),
            durable,
        }
    }
}

impl<I: Io> Shard<I> {
    /// Encodes a change of mailboxes, in one group.
    pub(super) fn place_mailbox(
        &mut self,
        now: Now,
        change: usize,
        index: usize,
        plan: &mut MailboxPlan,
    ) -> Placed {
        let need = self.creation_need(index) + plan.need;
        if self.log.room(need).is_none() {
            return Placed::NoRoom;
        }
        let name = self
            .changes
            .get(change)
            .expect("an open change")
            .key
            .clone();
        let mut entries = SmallVec::new();
        self.encode_creation(now, index, name.name(), &mut entries);
        let lsn = self.log.open_batch_mut().expect("room was made").lsn();
        let epoch = self.epoch_of(self.users.get(index).partition);
        let user = self.users.get_mut(index);
        let hash = user.hash;
        let tail = &mut user.live_mut().expect("decided").tail;
        let seed = Seed {
            user: hash,
            generation: tail.generation,
        };
        let modseq = next_modseq(tail, epoch);
        plan.modseq = Some(modseq);
        plan.state = State::Done;
        let slot = tail.next_slot;
        let mut runs = Vec::new();
        for planned in &mut plan.runs {
            if planned.op == MailboxOp::Create {
                // A uidvalidity is given once to a user, also over compaction: so it serves as id.
                let uidvalidity = (tail.uidvalidity_max + 1).max(seconds(now.wall));
                planned.mailbox = MailboxId::new(uidvalidity);
                planned.uidvalidity = UidValidity::new(uidvalidity);
                (plan.mailbox, plan.uidvalidity) = (planned.mailbox, planned.uidvalidity);
            }
            let run = planned.run(modseq, lsn, now);
            run.encode(seed, tail.next_slot, &mut runs);
            let slots = run.encoded_len() / SLOT;
            tail.next_slot += u32::try_from(slots).expect("at most 17");
            match planned.op {
                MailboxOp::Create => tail.add_mailbox(&run, Stand::Coming),
                MailboxOp::Delete => {
                    if let Some(mailbox) = tail.mailbox_mut(planned.mailbox) {
                        mailbox.stand = Stand::Leaving;
                    }
                }
                _ => {}
            }
        }
        let at = RunsAt {
            user: index,
            mailbox: plan.mailbox,
            kind: RecordType::Mailbox,
            slot,
            modseq,
            group: Group::Ends,
        };
        self.encode_runs(&at, runs, &mut entries);
        self.attach_change(change, entries);
        Placed::All
    }
}
