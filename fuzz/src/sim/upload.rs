//! Large messages on their way: into a stage file piece by piece, as a connection brings them, and
//! from there to their recipients.

use std::sync::Arc;

use bytes::Bytes;
use ringpost_engine::prepare::{Preparer, Push};
use ringpost_engine::request::{Body, Event, Refused, Request, StageId};
use ringpost_netproto::id::WallNs;

use super::Sim;
use super::asked::{Asked, To};
use super::mail::preparer;
use super::model::Verdict;
use super::work::group;

/// One large message that is being received.
pub(super) struct Upload {
    pub(super) shard: usize,
    mail: usize,
    to: Vec<To>,
    stage: Option<StageId>,
    preparer: Option<Preparer>,
    /// Bytes of the message taken so far.
    taken: usize,
    /// Bytes of a piece.
    piece: usize,
}

impl Sim {
    /// Begins to send a large message.
    pub(super) fn begin_upload(&mut self) -> Verdict {
        let who = self.rng.usize(..self.knobs.users);
        let least = usize::try_from(self.knobs.shard.large_bytes).unwrap_or(4_096);
        let bytes = self.rng.usize(least..4 * least + 8_000);
        let mail = self.new_mail(bytes);
        let to = self.recipients(who, false);
        let shard = self.owner(who);
        let upload = self.uploads.len();
        self.uploads.push(Upload {
            shard,
            mail,
            to,
            stage: None,
            preparer: Some(preparer()),
            taken: 0,
            piece: self.rng.usize(500..5_000),
        });
        let begin = Request::StageBegin {
            size_hint: None,
            sender: Bytes::from_static(b"sender@sim.test"),
            internal_date: WallNs::new(1_767_225_600_000_000_000),
        };
        self.submit((shard, begin, Asked::Stage { upload }))
    }

    /// The next step of an upload, when the one before was answered.
    pub(super) fn upload_went_on(&mut self, upload: usize, event: &Event) -> Verdict {
        let refused = match event {
            Event::StageBegun { result, .. } => result.as_ref().err(),
            Event::StageWritten { result, .. } => result.as_ref().err(),
            Event::StageExpanded { result, .. } => result.as_ref().err(),
            Event::Staged { result, .. } => result.as_ref().err(),
            _ => None,
        };
        if let Some(refused) = refused {
            self.oracle.excused(refused)?;
            return self.drop_stage(upload);
        }
        let one = self.uploads.get_mut(upload).expect("it is going on");
        match event {
            Event::StageBegun {
                result: Ok(stage), ..
            } => one.stage = Some(*stage),
            Event::StageExpanded {
                result: Ok((crc, len)),
                ..
            } => {
                if let Some(preparer) = &mut one.preparer {
                    preparer.expanded(*crc, *len);
                }
                return self.flush_piece(upload);
            }
            Event::Staged {
                result: Ok(body), ..
            } => {
                let (mail, to, shard) = (one.mail, one.to.clone(), one.shard);
                let group = group(&self.oracle, mail, &to, Body::Staged(Arc::clone(body)));
                self.sent.push((mail, to.clone()));
                self.appending.insert(mail, upload);
                return self.submit((shard, Request::Append(group), Asked::Append { mail, to }));
            }
            _ => {}
        }
        self.next_piece(upload)
    }

    /// Takes the next piece of the message in; at its end, finishes the stage file.
    fn next_piece(&mut self, upload: usize) -> Verdict {
        let one = self.uploads.get_mut(upload).expect("it is going on");
        let (Some(stage), Some(preparer)) = (one.stage, &mut one.preparer) else {
            return Ok(());
        };
        let text = &self.oracle.mail(one.mail).bytes;
        if one.taken < text.len() {
            let end = (one.taken + one.piece).min(text.len());
            let pushed = preparer.push(text.get(one.taken..end).unwrap_or_default());
            one.taken = end;
            return match pushed {
                Ok(Push::ExpandSpilled) => {
                    let (shard, request) = (one.shard, Request::StageExpand { stage });
                    self.submit((shard, request, Asked::Stage { upload }))
                }
                _ => self.flush_piece(upload),
            };
        }
        let Some(preparer) = one.preparer.take() else {
            return Ok(());
        };
        let body = preparer.finish().body;
        let rest = (!body.stored.is_empty()).then(|| Request::StageWrite {
            stage,
            data: body.stored.clone(),
        });
        let shard = one.shard;
        let finish = Request::StageFinish {
            stage,
            summary: Box::new(body.summary.clone()),
            cache: body.cache.clone(),
            guid: self.oracle.mail(one.mail).guid,
        };
        match rest {
            // Its answer has no step of its own: both are in order.
            Some(write) => {
                self.finishes.insert(upload, (shard, finish));
                self.submit((shard, write, Asked::Stage { upload }))
            }
            None => self.submit((shard, finish, Asked::Stage { upload })),
        }
    }

    /// Writes what the preparer has taken.
    fn flush_piece(&mut self, upload: usize) -> Verdict {
        let one = self.uploads.get_mut(upload).expect("it is going on");
        let (Some(stage), Some(preparer)) = (one.stage, &mut one.preparer) else {
            return Ok(());
        };
        let data = preparer.take_stored();
        let (shard, request) = (one.shard, Request::StageWrite { stage, data });
        self.submit((shard, request, Asked::Stage { upload }))
    }

    /// Whether the last piece is written and the finish is to follow.
    pub(super) fn finish_upload(&mut self, upload: usize) -> Option<Verdict> {
        let (shard, finish) = self.finishes.remove(&upload)?;
        Some(self.submit((shard, finish, Asked::Stage { upload })))
    }

    /// Forgets a stage file: its message was appended, or refused.
    pub(super) fn drop_stage(&mut self, upload: usize) -> Verdict {
        self.finishes.remove(&upload);
        let one = self.uploads.get_mut(upload).expect("it was going on");
        one.preparer = None;
        if let Some(stage) = one.stage.take() {
            let shard = one.shard;
            let dropped = self.tell(shard, Request::StageDrop { stage });
            return match dropped {
                Ok(()) | Err(Refused::Stopped) => Ok(()),
                Err(refused) => Err(format!("a stage file was not dropped: {refused}")),
            };
        }
        Ok(())
    }
}
