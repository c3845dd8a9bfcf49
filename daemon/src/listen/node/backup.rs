//! A backup that a peer of the node protocol's door asks for: held on every core, and let go on every
//! core when the peer ends it or goes away.

use std::collections::BTreeMap;
use std::rc::Rc;

use ringpost_engine::position::Lsn;
use ringpost_engine::request::{Event as Answered, Refused, Request};
use ringpost_netproto::frame::Status;
use ringpost_netproto::message::backup::{BackupRequest, fields};
use ringpost_netproto::message::report::ReportField;
use ringpost_netproto::session::server::RequestId;

use super::{NodeSession, status_of};
use crate::core_loop::{Reader, Waiter};
use crate::letter::{Answer, CoreReport, Trust};

/// The backup of a connection.
#[derive(Default)]
pub(super) struct Backups {
    /// Held by some core, perhaps by all.
    held: Option<u64>,
    asked: BTreeMap<RequestId, Asked>,
}

/// A request, while not all cores have answered.
struct Asked {
    request: BackupRequest,
    waiting: usize,
    ends: BTreeMap<usize, Lsn>,
    held_bytes: u64,
    refused: Option<Refused>,
}

impl Backups {
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }
}

/// Waits for one core.
struct Part {
    session: Rc<NodeSession>,
    core: usize,
}

impl Reader for Part {
    fn answered(&self, tag: u64, answer: Answer) {
        self.session
            .backup_answered(RequestId::new(tag), self.core, answer);
    }

    fn reported(&self, _tag: u64, _reports: Vec<CoreReport>) {}
}

impl NodeSession {
    pub(super) fn backup(&self, id: RequestId, request: BackupRequest) {
        if self.trust != Trust::Read {
            let text = "this user may only deliver (trusted_uids)";
            return self.session.borrow_mut().fail(id, Status::NoUser, text);
        }
        if let BackupRequest::Hold { id, .. } = request {
            self.backups.borrow_mut().held = Some(id);
        }
        let asked = Asked {
            request,
            waiting: self.core.cores,
            ends: BTreeMap::new(),
            held_bytes: 0,
            refused: None,
        };
        self.backups.borrow_mut().asked.insert(id, asked);
        for core in 0..self.core.cores {
            let part = Rc::new(Part {
                session: self.me(),
                core,
            });
            let request = match request {
                BackupRequest::Hold { id, lease_s } => Request::BackupBegin {
                    id,
                    lease_ns: u64::from(lease_s) * 1_000_000_000,
                },
                BackupRequest::End { id } => Request::BackupEnd { id },
            };
            self.core
                .ask(core, request, Waiter::Reader(part, id.value()));
        }
    }

    fn backup_answered(&self, id: RequestId, core: usize, answer: Answer) {
        let mut backups = self.backups.borrow_mut();
        let Some(asked) = backups.asked.get_mut(&id) else {
            return;
        };
        match answer {
            Answer::Event(Answered::BackupBegun { result, .. }) => match result {
                Ok(end) => drop(asked.ends.insert(core, end)),
                Err(refused) => asked.refused = Some(refused),
            },
            Answer::Event(Answered::BackupEnded { result, .. }) => match result {
                Ok(bytes) => asked.held_bytes += bytes,
                Err(refused) => asked.refused = Some(refused),
            },
            Answer::Refused(refused) => asked.refused = Some(refused),
            Answer::Event(other) => unreachable!("not an answer to a backup: {other:?}"),
        }
        asked.waiting -= 1;
        if asked.waiting > 0 {
            return;
        }
        let Some(asked) = backups.asked.remove(&id) else {
            return;
        };
        drop(backups);
        self.backup_reply(id, asked);
        self.take_events();
        self.wire.write();
    }

    fn backup_reply(&self, id: RequestId, asked: Asked) {
        if let Some(refused) = asked.refused {
            // What one core cannot hold, none has to.
            self.let_backup_go();
            let status = match refused {
                Refused::NoSuchBackup => Status::NoMessage,
                ref other => status_of(other),
            };
            return self
                .session
                .borrow_mut()
                .fail(id, status, &refused.to_string());
        }
        let mut report = Vec::new();
        let mut put = |name: String, value: u64| {
            report.push(ReportField {
                name,
                value: value.to_string(),
            });
        };
        match asked.request {
            BackupRequest::Hold { .. } => {
                for (core, end) in &asked.ends {
                    let name = format!("{}{core}{}", fields::LOG_PREFIX, fields::LOG_END);
                    put(name, end.value());
                }
            }
            BackupRequest::End { .. } => {
                self.backups.borrow_mut().held = None;
                put(fields::HELD_BYTES.to_owned(), asked.held_bytes);
            }
        }
        self.session.borrow_mut().backup_reply(id, &report);
    }

    /// Ends the backup of this connection, if it has one, on every core.
    pub(super) fn let_backup_go(&self) {
        let held = self.backups.borrow_mut().held.take();
        if let Some(id) = held {
            for core in 0..self.core.cores {
                let request = Request::BackupEnd { id };
                self.core.ask(core, request, Waiter::Nobody);
            }
        }
    }
}
