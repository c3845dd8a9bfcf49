//! Appends of the node protocol's door: a message into a mailbox of a user, as it is.
//!
//! A mailbox that is named is looked for once per connection, and made if that was asked. Until its
//! id is known the message's bytes wait here; their credit is kept back, so that they are no more
//! than the window. Then an append is a delivery to one user with a [`Filing`].

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use ringpost_engine::format::info::SpecialUse;
use ringpost_engine::mailbox_name::canonical_to_create;
use ringpost_engine::request::{
    Event as Answered, Flags, MailboxChange, Refused, Request, is_keyword,
};
use ringpost_netproto::frame::Status;
use ringpost_netproto::id::MailboxId;
use ringpost_netproto::message::MailboxRef;
use ringpost_netproto::message::append::{AppendReply, AppendRequest, Made, Missing};
use ringpost_netproto::placement::UserKey;
use ringpost_netproto::session::server::RequestId;

use super::{Message, NodeSession, deadline_ns, status_of};
use crate::address::Address;
use crate::core_loop::Waiter;
use crate::delivery::{Delivery, Envelope, Filing, Mailee, Result as Outcome};
use crate::letter::{Answer, Door, Trust};
use crate::lmtp;

/// Above so many known mailboxes of a connection, all are forgotten and looked for again.
const KNOWN_MAX: usize = 4_096;

/// A mailbox by user and name, and what to do if there is none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Wanted {
    user: Box<[u8]>,
    name: Box<str>,
    create: bool,
}

/// A mailbox that a connection appends to.
#[derive(Clone, Copy, Debug)]
struct Known {
    mailbox: MailboxId,
    made: Made,
}

/// The mailboxes that a connection has named.
#[derive(Default)]
pub(super) struct Folders {
    known: BTreeMap<Wanted, Known>,
    /// Those that are looked for, by tag, and the appends that wait for each, in order.
    asked: BTreeMap<u64, (Wanted, UserKey, Vec<RequestId>)>,
    asked_count: u64,
}

impl Folders {
    /// Tags of lookups are even: those of requests are their odd ids.
    pub(super) const fn has(tag: u64) -> bool {
        tag.is_multiple_of(2)
    }
}

/// An append without its answer.
pub(super) struct Waiting {
    user: UserKey,
    sender: Bytes,
    size_hint: Option<u64>,
    filing: Filing,
    made: Made,
    /// Set if the mailbox was given by name.
    wanted: Option<Wanted>,
    /// Bytes that came while the mailbox was looked for.
    kept: Vec<Bytes>,
}

impl NodeSession {
    pub(super) fn append(&self, id: RequestId, request: AppendRequest) {
        match self.check_append(request) {
            Ok((waiting, deadline)) => {
                let known = match &waiting.wanted {
                    None => true,
                    Some(wanted) => self.folders.borrow().known.contains_key(wanted),
                };
                let message = Message {
                    delivery: None,
                    waiting_append: Some(waiting),
                    replies: Vec::new(),
                    places: Vec::new(),
                    waiting: 1,
                    unreleased: 0,
                    ended_at: None,
                    deadline_ns: deadline,
                };
                self.messages.borrow_mut().insert(id, message);
                if known {
                    self.begin_append(id);
                } else {
                    self.look_for(id);
                }
            }
            Err((status, text)) => self.session.borrow_mut().fail(id, status, &text),
        }
    }

    fn check_append(&self, request: AppendRequest) -> Result<(Waiting, u64), (Status, String)> {
        let refuse = |status, text: &str| Err((status, text.to_owned()));
        if self.trust != Trust::Read {
            return refuse(Status::NoUser, "this user may only deliver (trusted_uids)");
        }
        if let Some((status, text)) = self.refusal(request.size_hint) {
            return refuse(status, text);
        }
        let Some(user) = self.account(&request.user) else {
            return refuse(Status::NoUser, "no such account");
        };
        if let Some(refused) = self.core.refusal(&user) {
            return refuse(status_of(&refused), "no room for new mail now, try again");
        }
        let words = request
            .keywords
            .iter()
            .map(|word| std::str::from_utf8(word));
        let Some(keywords) = words
            .map(|word| word.ok().filter(|word| is_keyword(word)).map(Arc::from))
            .collect()
        else {
            return refuse(Status::Invalid, "a keyword is not an atom of RFC 9051");
        };
        let wanted = wanted(&user, &request)?;
        let mailbox = match &request.mailbox {
            MailboxRef::Id(mailbox) => *mailbox,
            MailboxRef::Name(_) => MailboxId::INBOX,
        };
        let waiting = Waiting {
            user,
            sender: request.sender,
            size_hint: request.size_hint,
            filing: Filing {
                mailbox,
                flags: Flags {
                    system: request.flags,
                    keywords,
                },
                internal_date: request.internal_date,
                id: request.dedupe_id,
            },
            made: Made::No,
            wanted,
            kept: Vec::new(),
        };
        Ok((waiting, deadline_ns(request.deadline_ms)))
    }

    /// The account of a user: mail that nobody could reach is not taken.
    fn account(&self, name: &[u8]) -> Option<UserKey> {
        let address = Address::parse(name).ok()?;
        let settings = self.core.settings();
        let account = settings
            .accounts
            .resolve(address.local(), address.domain())
            .filter(|account| account.detail.is_none())?;
        self.core.user(&account.name)
    }

    /// Keeps bytes of an append whose mailbox is looked for. `false`: they are to be taken.
    pub(super) fn keeps(&self, id: RequestId, data: &Bytes) -> bool {
        let mut messages = self.messages.borrow_mut();
        let Some(open) = messages.get_mut(&id) else {
            return false;
        };
        match &mut open.waiting_append {
            Some(waiting) if open.delivery.is_none() => {
                waiting.kept.push(data.clone());
                true
            }
            _ => false,
        }
    }

    /// The mailbox is known: from here on it is a delivery.
    fn begin_append(&self, id: RequestId) {
        let mut messages = self.messages.borrow_mut();
        let Some(open) = messages.get_mut(&id) else {
            return;
        };
        let Some(waiting) = &mut open.waiting_append else {
            return;
        };
        if let Some(wanted) = &waiting.wanted
            && let Some(known) = self.folders.borrow().known.get(wanted)
        {
            waiting.filing.mailbox = known.mailbox;
            waiting.made = known.made;
        }
        let envelope = Envelope {
            sender: waiting.sender.clone(),
            users: vec![Mailee::new(waiting.user.clone(), b"")],
            size_hint: waiting.size_hint,
            door: Door::Node,
            filing: Some(waiting.filing.clone()),
        };
        let kept = std::mem::take(&mut waiting.kept);
        let delivery = Delivery::begin(&self.core, self.me(), id.value(), envelope);
        open.delivery = Some(Rc::clone(&delivery));
        let ended = open.ended_at.is_some();
        drop(messages);
        for data in kept {
            self.data(id, &data);
        }
        if ended {
            delivery.end();
        }
    }

    fn look_for(&self, id: RequestId) {
        let messages = self.messages.borrow();
        let Some(waiting) = messages
            .get(&id)
            .and_then(|open| open.waiting_append.as_ref())
        else {
            return;
        };
        let Some(wanted) = waiting.wanted.clone() else {
            return;
        };
        let user = waiting.user.clone();
        drop(messages);
        let mut folders = self.folders.borrow_mut();
        let mut asked = folders.asked.values_mut();
        if let Some((_, _, waiters)) = asked.find(|(other, ..)| *other == wanted) {
            waiters.push(id);
            return;
        }
        folders.asked_count += 1;
        let tag = 2 * folders.asked_count;
        folders.asked.insert(tag, (wanted, user.clone(), vec![id]));
        drop(folders);
        self.ask_folder(tag, &user, Request::Mailboxes { user: user.clone() });
    }

    fn ask_folder(&self, tag: u64, user: &UserKey, request: Request) {
        let owner = self.core.owner(user);
        self.core
            .ask(owner, request, Waiter::Reader(self.me(), tag));
    }

    pub(super) fn folder_answered(&self, tag: u64, answer: Answer) {
        let mut folders = self.folders.borrow_mut();
        let Some((wanted, user, _)) = folders.asked.get(&tag) else {
            return;
        };
        let (wanted, user) = (wanted.clone(), user.clone());
        let Some(found) = look_up(&wanted.name, answer) else {
            drop(folders);
            return self.ask_folder(tag, &user, Request::Mailboxes { user: user.clone() });
        };
        let found = match found {
            Ok(None) if wanted.create => {
                drop(folders);
                let change = MailboxChange::Create {
                    name: wanted.name.to_string(),
                    special_use: SpecialUse::None,
                };
                let request = Request::Mailbox {
                    user: user.clone(),
                    change,
                };
                return self.ask_folder(tag, &user, request);
            }
            Ok(None) => Err((Status::NoMailbox, "no such mailbox".to_owned())),
            Ok(Some(found)) => Ok(found),
            Err(why) => Err(why),
        };
        let (_, _, waiters) = folders.asked.remove(&tag).expect("just seen");
        if let Ok((mailbox, made)) = found {
            if folders.known.len() >= KNOWN_MAX {
                folders.known.clear();
            }
            folders.known.insert(wanted, Known { mailbox, made });
        }
        drop(folders);
        for id in waiters {
            match &found {
                Ok(_) => self.begin_append(id),
                Err((status, text)) => {
                    self.messages.borrow_mut().remove(&id);
                    self.session.borrow_mut().fail(id, *status, text);
                }
            }
        }
        self.take_events();
        self.wire.write();
    }

    /// A shard has decided.
    pub(super) fn appended(&self, id: RequestId, append: &Waiting, outcome: &Outcome) {
        let reply = |status, uid, uidvalidity, guid| AppendReply {
            status,
            uid,
            uidvalidity,
            mailbox: append.filing.mailbox,
            made: append.made,
            guid,
        };
        let failed = match outcome {
            Outcome::Stored {
                uid,
                uidvalidity,
                guid,
            } => Ok(reply(Status::Ok, *uid, *uidvalidity, *guid)),
            Outcome::Duplicate {
                uid,
                uidvalidity,
                guid,
            } => Ok(reply(Status::OkDuplicate, *uid, *uidvalidity, *guid)),
            Outcome::TooLarge => Err((
                Status::TooBig,
                "the message is larger than the limit".to_owned(),
            )),
            Outcome::Late => Err((Status::Deadline, "the deadline has passed".to_owned())),
            Outcome::Refused(refused) => Err(self.append_refused(append, refused)),
        };
        let mut session = self.session.borrow_mut();
        match failed {
            Ok(reply) => session.append_reply(id, &reply),
            Err((status, text)) => session.fail(id, status, &text),
        }
        drop(session);
        self.take_events();
        self.wire.write();
    }

    fn append_refused(&self, append: &Waiting, refused: &Refused) -> (Status, String) {
        match refused {
            Refused::NoSuchMailbox => {
                // Removed since it was found: who wants it made may say so again.
                let mut create = false;
                if let Some(wanted) = &append.wanted {
                    self.folders.borrow_mut().known.remove(wanted);
                    create = wanted.create;
                }
                let status = if create {
                    Status::Busy
                } else {
                    Status::NoMailbox
                };
                (status, refused.to_string())
            }
            Refused::BadKeyword | Refused::Limit(_) => (Status::Invalid, refused.to_string()),
            refused => (lmtp::status(refused), refused.to_string()),
        }
    }
}

/// The mailbox or `Ok(None)` if there is none, or why nobody knows.
type Looked = Result<Option<(MailboxId, Made)>, (Status, String)>;

/// What an answer says of a mailbox; `None`: ask again, another connection made it meanwhile.
fn look_up(name: &str, answer: Answer) -> Option<Looked> {
    let refused = match answer {
        Answer::Event(Answered::Mailboxes { result, .. }) => match result {
            Ok(all) => {
                let named = all.iter().find(|mailbox| mailbox.name == name);
                return Some(Ok(named.map(|found| (found.mailbox, Made::No))));
            }
            // A user who is not there yet begins with INBOX and Sent.
            Err(Refused::NoSuchUser) => {
                return Some(Ok((name == "Sent").then_some((MailboxId::SENT, Made::No))));
            }
            Err(refused) => refused,
        },
        Answer::Event(Answered::MailboxChanged { result, .. }) => match result {
            Ok(made) => return Some(Ok(Some((made.mailbox, Made::Yes)))),
            Err(Refused::Exists) => return None,
            Err(refused) => refused,
        },
        Answer::Refused(refused) => refused,
        Answer::Event(other) => unreachable!("not an answer about mailboxes: {other:?}"),
    };
    Some(Err((status_of(&refused), refused.to_string())))
}

/// The mailbox that an append names, if it has to be looked for.
fn wanted(user: &UserKey, request: &AppendRequest) -> Result<Option<Wanted>, (Status, String)> {
    let MailboxRef::Name(name) = &request.mailbox else {
        return Ok(None);
    };
    let Ok(name) = std::str::from_utf8(name) else {
        let text = "a mailbox name is UTF-8".to_owned();
        return Err((Status::NoMailbox, text));
    };
    let name = canonical_to_create(name).map_err(|fault| (Status::NoMailbox, fault.to_string()))?;
    Ok((name != "INBOX").then(|| Wanted {
        user: user.name().into(),
        name: name.into_boxed_str(),
        create: request.missing == Missing::Create,
    }))
}
