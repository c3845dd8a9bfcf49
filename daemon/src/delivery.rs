//! One message on its way from a connection to the shards of its recipients.
//!
//! Bytes go into the engine's `Preparer` as they arrive. What stays below `large_bytes` ends as one
//! shared body in memory; the rest is spilled through a stage file of the receiving core. At the end
//! the recipients are grouped by owner core, each shard gets one group, and every recipient's outcome
//! is told to the connection as it is known. An append is never cancelled: when the connection is
//! gone or its deadline has passed, only the answer is lost, and the MTA's retry meets its own
//! delivery id (mail.md 5).

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_engine::prepare::{PrepareOptions, Prepared, Preparer, Push, ReceivedField, Summary};
use ringpost_engine::request::{
    AppendGroup, Body, Dedupe, Event, Flags, Origin, Outcome, QuotaLimits, Recipient, Refused,
    Request,
};
use ringpost_netproto::id::{Guid, MailboxId, Uid, UidValidity, WallNs};
use ringpost_netproto::placement::UserKey;

use crate::core_loop::{Core, Waiter};
use crate::delivery_id::{delivery_id, key_bytes};
use crate::letter::{Answer, Door};
use crate::spill::{Spill, Want};

/// What became of one recipient, for a reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Result {
    /// On stable storage.
    Stored {
        /// Its number in its mailbox.
        uid: Uid,
        /// Validity of that number.
        uidvalidity: UidValidity,
        /// Its delivery id.
        guid: Guid,
    },
    /// On stable storage since an earlier time.
    Duplicate {
        /// The number of the first copy.
        uid: Uid,
        /// Validity of that number.
        uidvalidity: UidValidity,
        /// Its delivery id.
        guid: Guid,
    },
    /// Not stored.
    Refused(Refused),
    /// Larger than `message_bytes_max`.
    TooLarge,
    /// Nobody knows yet: the deadline has passed while the append goes on.
    Late,
}

/// Who is told: a connection.
pub trait Sink {
    /// What became of recipient `index` of the delivery `tag`. Comes once for each.
    fn delivered(&self, tag: u64, index: usize, result: &Result);

    /// The delivery takes more bytes again.
    fn unblocked(&self, tag: u64);
}

/// A recipient that exists.
#[derive(Clone, Debug)]
pub struct Mailee {
    /// The canonical user.
    pub user: UserKey,
    /// The mailbox that the envelope asks for, if it is not INBOX.
    pub folder: Option<Arc<str>>,
}

impl Mailee {
    /// `wish` is a mailbox from the command line or an address's detail, any bytes. One that no
    /// mailbox can be called, and an empty one, is INBOX (mail.md 6.1).
    pub fn new(user: UserKey, wish: &[u8]) -> Self {
        let named = std::str::from_utf8(wish).ok();
        let folder = named.filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("INBOX"));
        Self {
            user,
            folder: folder.map(Arc::from),
        }
    }
}

/// How a delivery begins.
pub struct Envelope {
    /// Envelope sender, empty for the null sender.
    pub sender: Bytes,
    /// Who gets it, in the order of the replies.
    pub users: Vec<Mailee>,
    /// Announced size in bytes, if any.
    pub size_hint: Option<u64>,
    /// Where it came in.
    pub door: Door,
    /// How it is filed, if nobody delivers it but somebody appends it: to one user.
    pub filing: Option<Filing>,
}

/// What an append says beyond its bytes.
#[derive(Clone, Debug)]
pub struct Filing {
    /// The mailbox.
    pub mailbox: MailboxId,
    /// What the message has from the start.
    pub flags: Flags,
    /// INTERNALDATE; `None`: the time of arrival.
    pub internal_date: Option<WallNs>,
    /// An identity that its sender made.
    pub id: Option<Guid>,
}

/// One message. Lives as long as a shard has an answer for it.
pub struct Delivery {
    core: Rc<Core>,
    sink: Rc<dyn Sink>,
    tag: u64,
    sender: Bytes,
    door: Door,
    filing: Option<Filing>,
    state: RefCell<State>,
}

struct State {
    users: Vec<Mailee>,
    size_hint: Option<u64>,
    /// `None` once it is finished, refused or given up.
    preparer: Option<Preparer>,
    prepared: Option<Prepared>,
    spill: Spill,
    input: Input,
    /// Bytes of a body that the shards have and did not answer yet.
    handed_over: u64,
    /// Bytes counted among those being received.
    counted: u64,
    /// Recipient indexes of each append, by group; several stand for one if an address is repeated.
    groups: Vec<Group>,
    groups_open: usize,
    answered: Vec<bool>,
}

struct Group {
    owner: usize,
    guids: Vec<Guid>,
    indexes: Vec<Vec<usize>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Input {
    /// More bytes may come.
    Open,
    /// All have come.
    Ended,
    /// The rest is thrown away and this is the answer at the end.
    TooLarge,
    /// A stage refused; the same.
    Failed,
    /// Nobody wants an answer.
    Abandoned,
    /// Handed to the shards, or answered.
    Done,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

impl Delivery {
    /// Begins a message for at least one recipient. `sink` is told under `tag`.
    pub fn begin(core: &Rc<Core>, sink: Rc<dyn Sink>, tag: u64, envelope: Envelope) -> Rc<Self> {
        let options = PrepareOptions {
            message_bytes_max: core.config.message_bytes_max,
            return_path: (core.settings().return_path && envelope.filing.is_none())
                .then(|| envelope.sender.clone()),
            content_key: key_bytes(&core.hash_key),
        };
        let mut preparer = Preparer::new(options);
        if envelope.filing.is_some() {
            preparer = preparer.without_content_hash();
        }
        let count = envelope.users.len();
        Rc::new(Self {
            core: Rc::clone(core),
            sink,
            tag,
            sender: envelope.sender,
            door: envelope.door,
            filing: envelope.filing,
            state: RefCell::new(State {
                users: envelope.users,
                size_hint: envelope.size_hint,
                preparer: Some(preparer),
                prepared: None,
                spill: Spill::default(),
                input: Input::Open,
                handed_over: 0,
                counted: 0,
                groups: Vec::new(),
                groups_open: 0,
                answered: vec![false; count],
            }),
        })
    }

    /// Takes the next bytes of the message.
    pub fn push(self: &Rc<Self>, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        self.core.count_received(self.door, bytes.len());
        if state.input != Input::Open {
            return;
        }
        let Some(preparer) = &mut state.preparer else {
            return;
        };
        match preparer.push(bytes) {
            Ok(Push::Buffered) => {}
            Ok(Push::ExpandSpilled) => state.spill.expand(),
            Err(_too_large) => {
                state.input = Input::TooLarge;
                state.preparer = None;
                self.recount(&mut state);
                self.drop_stage(&mut state);
                return;
            }
        }
        self.recount(&mut state);
        self.pump(&mut state);
    }

    /// All bytes have come.
    pub fn end(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        match state.input {
            Input::Open => {
                state.input = Input::Ended;
                self.pump(&mut state);
            }
            Input::TooLarge => self.answer_all(state, &Result::TooLarge),
            Input::Failed => {
                let refused = state.spill.failure().unwrap_or(Refused::Stopped);
                self.answer_all(state, &Result::Refused(refused));
            }
            Input::Ended | Input::Abandoned | Input::Done => {}
        }
    }

    /// Whether bytes should wait: the disk is behind.
    pub fn is_blocked(&self) -> bool {
        self.state.try_borrow().is_ok_and(|state| {
            state
                .preparer
                .as_ref()
                .is_some_and(|preparer| state.spill.is_behind(preparer.buffered_len()))
        })
    }

    /// The client is gone before the end of the message: nothing was promised, nothing is kept.
    pub fn abandon(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        if matches!(state.input, Input::Open | Input::TooLarge | Input::Failed) {
            state.input = Input::Abandoned;
            state.preparer = None;
            self.recount(&mut state);
            self.drop_stage(&mut state);
        }
    }

    /// The deadline has passed: recipients without an answer get [`Result::Late`], the append goes
    /// on.
    pub fn expire(&self) {
        let mut state = self.state.borrow_mut();
        let open = Self::take_open(&mut state);
        drop(state);
        self.tell_each(open, &Result::Late);
    }

    /// A shard's answer to what this delivery asked.
    pub(crate) fn answered(self: &Rc<Self>, part: Part, answer: Answer) {
        match part {
            Part::Stage => self.stage_answered(answer),
            Part::Group(index) => self.group_answered(index, answer),
        }
    }

    fn stage_answered(self: &Rc<Self>, answer: Answer) {
        let mut state = self.state.borrow_mut();
        let was_behind = state.spill.is_busy();
        let staged = match answer {
            Answer::Event(Event::StageExpanded {
                result: Ok((crc, len)),
                ..
            }) => {
                if let Some(preparer) = &mut state.preparer {
                    preparer.expanded(crc, len);
                }
                state.spill.expanded();
                None
            }
            Answer::Event(Event::Staged {
                result: Ok(body), ..
            }) => Some(body),
            answer => {
                state.spill.answered(answer);
                None
            }
        };
        if let Some(body) = staged {
            state.spill.staged();
            if state.input == Input::Ended {
                let summary = body.summary.clone();
                self.append(&mut state, &Body::Staged(body), &summary);
            }
            return;
        }
        if let Some(refused) = state.spill.failure() {
            state.preparer = None;
            self.recount(&mut state);
            self.drop_stage(&mut state);
            if state.input == Input::Ended {
                self.answer_all(state, &Result::Refused(refused));
                return;
            }
            if state.input == Input::Open {
                state.input = Input::Failed;
            }
            drop(state);
            self.sink.unblocked(self.tag);
            return;
        }
        if matches!(state.input, Input::Abandoned | Input::TooLarge) {
            self.drop_stage(&mut state);
            return;
        }
        self.pump(&mut state);
        drop(state);
        if was_behind {
            self.sink.unblocked(self.tag);
        }
    }

    /// Does what can be done with what has come.
    fn pump(self: &Rc<Self>, state: &mut State) {
        let large = self.core.large_bytes;
        if state.input == Input::Ended
            && state.prepared.is_none()
            && state.spill.allows_finish()
            && let Some(preparer) = state.preparer.take()
        {
            let prepared = preparer.finish();
            state.spill.put(&prepared.body.stored, large);
            state.prepared = Some(prepared);
            self.recount(state);
        }
        if let Some(preparer) = &mut state.preparer {
            state.spill.take(preparer, large);
        }
        let ended = state.prepared.is_some();
        while let Some(want) = state.spill.next(ended) {
            let request = match want {
                Want::Begin => Request::StageBegin {
                    size_hint: state.size_hint,
                    sender: self.sender.clone(),
                    internal_date: self.date(),
                },
                Want::Write(id, data) => Request::StageWrite { stage: id, data },
                Want::Expand(id) => Request::StageExpand { stage: id },
                Want::Finish(id) => {
                    let prepared = state.prepared.as_ref().expect("asked for at the end only");
                    let summary = &prepared.body.summary;
                    Request::StageFinish {
                        stage: id,
                        summary: Box::new(summary.clone()),
                        cache: prepared.body.cache.clone(),
                        guid: self.guid(state.users.first(), summary),
                    }
                }
            };
            let waiter = Waiter::Delivery(Rc::clone(self), Part::Stage);
            self.core.ask(self.core.index, request, waiter);
        }
        if ended && state.spill.is_unused() && state.input == Input::Ended {
            let mut prepared = state.prepared.take().expect("just seen");
            prepared.body.stored = self.core.hold_body(prepared.body.stored);
            let summary = prepared.body.summary.clone();
            self.append(state, &Body::Small(Arc::new(prepared.body)), &summary);
        }
    }

    /// INTERNALDATE.
    fn date(&self) -> WallNs {
        let given = self.filing.as_ref().and_then(|filing| filing.internal_date);
        given.unwrap_or_else(|| self.core.now().wall)
    }

    fn guid(&self, mailee: Option<&Mailee>, summary: &Summary) -> Guid {
        if let Some(filing) = &self.filing {
            return filing.id.unwrap_or_else(|| self.core.random_guid());
        }
        match (mailee, summary.received_field) {
            (Some(mailee), ReceivedField::Present) => delivery_id(
                &self.core.hash_key,
                &mailee.user,
                // The same in every mailbox of the user: the filter knows mailboxes apart.
                MailboxId::INBOX,
                &self.sender,
                &summary.content_hash,
            ),
            _ => self.core.random_guid(),
        }
    }

    /// Hands the body to the shards of all recipients.
    fn append(self: &Rc<Self>, state: &mut State, body: &Body, summary: &Summary) {
        state.input = Input::Done;
        let dedupe = match (&self.filing, summary.received_field) {
            (Some(Filing { id: Some(_), .. }), _) => Dedupe::Recent,
            (None, ReceivedField::Present) => Dedupe::Yes,
            (Some(_), _) | (None, ReceivedField::Absent) => Dedupe::No,
        };
        let (mailbox, flags, origin) = match &self.filing {
            Some(filing) => (filing.mailbox, filing.flags.clone(), Origin::ClientAppend),
            None => (MailboxId::INBOX, Flags::default(), Origin::Delivery),
        };
        let internal_date = self.date();
        let mut appends: BTreeMap<usize, (Group, Vec<Recipient>)> = BTreeMap::new();
        let mut seen: BTreeMap<_, usize> = BTreeMap::new();
        let many = state.users.len() > 1;
        if let Body::Small(body) = body {
            state.handed_over = u64::try_from(body.stored.len()).unwrap_or(u64::MAX);
        }
        self.recount(state);
        for (index, mailee) in std::mem::take(&mut state.users).into_iter().enumerate() {
            let owner = self.core.owner(&mailee.user);
            let (group, recipients) = appends.entry(owner).or_insert_with(|| {
                (
                    Group {
                        owner,
                        guids: Vec::new(),
                        indexes: Vec::new(),
                    },
                    Vec::new(),
                )
            });
            if many {
                let name = Bytes::copy_from_slice(mailee.user.name());
                let name = (name, mailee.folder.clone());
                if let Some(place) = seen.get(&name).copied() {
                    group
                        .indexes
                        .get_mut(place)
                        .expect("was put there")
                        .push(index);
                    continue;
                }
                seen.insert(name, recipients.len());
            }
            let guid = self.guid(Some(&mailee), summary);
            group.guids.push(guid);
            group.indexes.push(vec![index]);
            recipients.push(Recipient {
                user: mailee.user,
                mailbox,
                folder: mailee.folder,
                guid,
                dedupe,
                internal_date,
                flags: flags.clone(),
                quota: QuotaLimits::default(),
            });
        }
        state.groups_open = appends.len();
        for (owner, (group, recipients)) in appends {
            let part = Part::Group(state.groups.len());
            state.groups.push(group);
            let request = Request::Append(AppendGroup {
                body: body.clone(),
                sender: self.sender.clone(),
                recipients,
                origin,
            });
            self.core
                .ask(owner, request, Waiter::Delivery(Rc::clone(self), part));
        }
    }

    fn group_answered(self: &Rc<Self>, index: usize, answer: Answer) {
        let mut state = self.state.borrow_mut();
        let group = state
            .groups
            .get_mut(index)
            .expect("a group that was asked for");
        let group = Group {
            owner: group.owner,
            guids: std::mem::take(&mut group.guids),
            indexes: std::mem::take(&mut group.indexes),
        };
        state.groups_open -= 1;
        if state.groups_open == 0 {
            state.handed_over = 0;
            self.recount(&mut state);
            self.drop_stage(&mut state);
        }
        let mut told = Vec::with_capacity(group.indexes.len());
        match answer {
            Answer::Event(Event::Appended { outcomes, .. }) => {
                assert_eq!(
                    outcomes.len(),
                    group.guids.len(),
                    "one outcome per recipient"
                );
                for ((outcome, guid), indexes) in
                    outcomes.into_iter().zip(group.guids).zip(group.indexes)
                {
                    let result = match outcome {
                        Outcome::Stored {
                            uid, uidvalidity, ..
                        } => Result::Stored {
                            uid,
                            uidvalidity,
                            guid,
                        },
                        Outcome::Duplicate {
                            uid, uidvalidity, ..
                        } => Result::Duplicate {
                            uid,
                            uidvalidity,
                            guid,
                        },
                        Outcome::Refused(Refused::TooLarge) => Result::TooLarge,
                        Outcome::Refused(refused) => Result::Refused(refused),
                    };
                    told.extend(indexes.into_iter().map(|index| (index, result.clone())));
                }
            }
            Answer::Refused(refused) => {
                let result = Result::Refused(refused);
                let all = group.indexes.into_iter().flatten();
                told.extend(all.map(|index| (index, result.clone())));
            }
            Answer::Event(other) => unreachable!("an append is answered by Appended: {other:?}"),
        }
        told.retain(|(index, _)| {
            state
                .answered
                .get_mut(*index)
                .is_some_and(|done| !std::mem::replace(done, true))
        });
        drop(state);
        for (index, result) in told {
            self.tell(index, &result);
        }
    }

    /// Ends a message that goes to no shard, and tells all recipients.
    fn answer_all(&self, mut state: RefMut<'_, State>, result: &Result) {
        assert!(
            state.groups.is_empty(),
            "what a shard has is not taken back"
        );
        state.input = Input::Done;
        state.preparer = None;
        self.recount(&mut state);
        self.drop_stage(&mut state);
        let open = Self::take_open(&mut state);
        drop(state);
        self.tell_each(open, result);
    }

    /// The recipients that have no answer yet; they count as answered from here on.
    fn take_open(state: &mut State) -> Vec<usize> {
        let open = state
            .answered
            .iter()
            .enumerate()
            .filter(|(_, done)| !**done);
        let open = open.map(|(index, _)| index).collect();
        state.answered.fill(true);
        open
    }

    fn tell_each(&self, indexes: Vec<usize>, result: &Result) {
        for index in indexes {
            self.tell(index, result);
        }
    }

    fn tell(&self, index: usize, result: &Result) {
        self.core.count_result(self.door, result);
        self.sink.delivered(self.tag, index, result);
    }

    fn drop_stage(&self, state: &mut State) {
        if let Some(stage) = state.spill.drop_stage() {
            self.core.tell(Request::StageDrop { stage });
        }
    }

    /// Keeps the core's sum of bytes being received, or received and not answered.
    fn recount(&self, state: &mut State) {
        let buffered = state.preparer.as_ref().map_or(0, Preparer::buffered_len);
        let buffered = u64::try_from(buffered).unwrap_or(u64::MAX);
        let buffered = buffered.saturating_add(state.handed_over);
        self.core.recount_receiving(state.counted, buffered);
        state.counted = buffered;
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        self.core.recount_receiving(state.counted, 0);
    }
}

/// Which of a delivery's requests is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// One about its stage file.
    Stage,
    /// The append of this group.
    Group(usize),
}
