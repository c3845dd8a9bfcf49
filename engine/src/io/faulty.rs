//! Faults on purpose around any disk: each op is shown to a rule, which lets it pass or spoils it.
//! For what a simulated disk cannot show, an engine on a real ring whose device misbehaves.

use std::collections::BTreeMap;
use std::fmt;

use super::{AlignedBuf, Completion, Done, FileId, Io, Op, RelPath, Token};
use crate::error::IoError;

/// Blocks that half a log write consists of.
const BLOCK: usize = 4096;

/// What becomes of an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Nothing special.
    None,
    /// It fails with this errno and is not done.
    Refused(i32),
    /// The first half of its bytes (of its users, for a materialise) is done, then it fails with
    /// this errno: a full disk, a device that goes away. Ops without halves are not done.
    Half(i32),
    /// It is done and its answer is lost: it fails with this errno.
    Unheard(i32),
}

/// The rule: op after op, in the order of `submit`; an op that found no room comes again.
pub type Rule = Box<dyn FnMut(&Op) -> Fault>;

/// An op with the inner disk.
#[derive(Debug)]
struct Passed {
    token: Token,
    /// Of an open, to name the file in later errors.
    path: Option<RelPath>,
    /// What to answer instead.
    error: Option<IoError>,
}

/// A disk with a rule for faults.
pub struct FaultyIo<I> {
    inner: I,
    rule: Rule,
    passed: BTreeMap<u64, Passed>,
    next: u64,
    paths: BTreeMap<FileId, RelPath>,
    finished: Vec<Completion>,
    reaped: Vec<Completion>,
}

impl<I: fmt::Debug> fmt::Debug for FaultyIo<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyIo")
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

impl<I: Io> FaultyIo<I> {
    /// Puts `rule` before `inner`.
    pub fn new(inner: I, rule: Rule) -> Self {
        Self {
            inner,
            rule,
            passed: BTreeMap::new(),
            next: 0,
            paths: BTreeMap::new(),
            finished: Vec::new(),
            reaped: Vec::new(),
        }
    }

    /// Another rule from here on.
    pub fn set_rule(&mut self, rule: Rule) {
        self.rule = rule;
    }

    /// The disk below.
    pub fn inner(&mut self) -> &mut I {
        &mut self.inner
    }

    fn pass(&mut self, op: Op, token: Token, error: Option<IoError>) -> Result<(), Op> {
        let path = match &op {
            Op::Open { path, .. } => Some(path.clone()),
            _ => None,
        };
        self.next += 1;
        self.inner.submit(op, Token(self.next))?;
        let passed = Passed { token, path, error };
        self.passed.insert(self.next, passed);
        Ok(())
    }

    fn refuse(&mut self, op: Op, token: Token, error: IoError) {
        let result = Err(op.into_failed(error));
        self.finished.push(Completion { token, result });
    }

    fn returned(&mut self, completion: Completion) -> Completion {
        let passed = self.passed.remove(&completion.token.0);
        let Passed { token, path, error } = passed.expect("a completion comes once");
        if let (Some(path), Ok(Done::Opened { file, .. })) = (path, &completion.result) {
            self.paths.insert(*file, path);
        }
        let result = match (error, completion.result) {
            (None, result) => result,
            (Some(error), result) => {
                let buf = match result {
                    Ok(Done::Buf(buf) | Done::Read { buf, .. }) => Some(buf),
                    Ok(_) => None,
                    Err(failed) => failed.buf,
                };
                Err(super::Failed { error, buf })
            }
        };
        Completion { token, result }
    }
}

/// The first half of an op, if it has one.
fn half(op: Op) -> Result<Op, Op> {
    match op {
        Op::LogWrite {
            file,
            offset,
            buf,
            len,
        } if len > BLOCK => {
            let len = len / BLOCK / 2 * BLOCK;
            Ok(Op::LogWrite {
                file,
                offset,
                buf,
                len: len.max(BLOCK),
            })
        }
        Op::Write { file, offset, data } if data.len() > 1 => Ok(Op::Write {
            file,
            offset,
            data: data.slice(..data.len() / 2),
        }),
        Op::Materialise(mut works) if works.len() > 1 => {
            works.truncate(works.len() / 2);
            Ok(Op::Materialise(works))
        }
        other => Err(other),
    }
}

impl<I: Io> Io for FaultyIo<I> {
    fn submit(&mut self, op: Op, token: Token) -> Result<(), Op> {
        let fault = (self.rule)(&op);
        let path = op.file().and_then(|file| self.paths.get(&file));
        let error = |errno| op.error(path, errno);
        match fault {
            Fault::None => self.pass(op, token, None),
            Fault::Unheard(errno) => {
                let error = error(errno);
                self.pass(op, token, Some(error))
            }
            Fault::Refused(errno) => {
                let error = error(errno);
                self.refuse(op, token, error);
                Ok(())
            }
            Fault::Half(errno) => {
                let error = error(errno);
                let half = half(op).and_then(|half| self.pass(half, token, Some(error.clone())));
                // Without halves, or without room below: none of it is done.
                if let Err(op) = half {
                    self.refuse(op, token, error);
                }
                Ok(())
            }
        }
    }

    fn poll(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.finished);
        let mut reaped = std::mem::take(&mut self.reaped);
        self.inner.poll(&mut reaped);
        out.extend(reaped.drain(..).map(|done| self.returned(done)));
        self.reaped = reaped;
    }

    fn wait(&mut self) {
        if self.finished.is_empty() {
            self.inner.wait();
        }
    }

    fn log_bufs(&mut self, count: usize, bytes: usize) -> Vec<AlignedBuf> {
        self.inner.log_bufs(count, bytes)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::io::conformance::{Driver, Rig, conformance, entry};
    use crate::io::ring::tests::Scratch;
    use crate::io::{OpenMode, UringIo};

    /// A real ring under a rule that lets everything pass.
    struct Harmless(Scratch);

    impl Rig for Harmless {
        type Io = FaultyIo<UringIo>;

        fn new() -> Self {
            Self(Scratch::new())
        }

        fn io(&mut self) -> Self::Io {
            FaultyIo::new(self.0.io(), Box::new(|_| Fault::None))
        }
    }

    conformance!(Harmless);

    /// Spoils the ops that `which` picks.
    fn spoil(which: fn(&Op) -> bool, fault: Fault) -> Rule {
        Box::new(move |op| if which(op) { fault } else { Fault::None })
    }

    #[test]
    fn half_a_log_write_is_done_and_the_buffer_comes_back() {
        let mut rig = Harmless::new();
        let mut disk = Driver::new(rig.io());
        let path = disk.log_file(16 << 10);
        let (file, _) = disk.open(&path, OpenMode::Log);
        let rule = spoil(
            |op| matches!(op, Op::LogWrite { .. }),
            Fault::Half(libc::EIO),
        );
        disk.io.set_rule(rule);
        let mut buf = AlignedBuf::zeroed(16 << 10);
        buf.fill(3);
        let token = disk.start(Op::LogWrite {
            file,
            offset: 0,
            buf,
            len: 16 << 10,
        });
        let failed = disk.finish(token).unwrap_err();
        assert_eq!(failed.error.path, path.as_str());
        assert_eq!(
            (failed.error.len, failed.error.errno),
            (16 << 10, libc::EIO)
        );
        assert_eq!(failed.buf.unwrap().len(), 16 << 10);
        assert_eq!(disk.log_read(file, 0, 16 << 10).0, [3, 3, 0, 0]);
    }

    #[test]
    fn refused_is_not_done_and_unheard_is() {
        let mut rig = Harmless::new();
        let mut disk = Driver::new(rig.io());
        let file = disk.create(&entry("a"), b"....");
        let write = |data: &'static [u8]| Op::Write {
            file,
            offset: 0,
            data: Bytes::from_static(data),
        };
        let is_write: fn(&Op) -> bool = |op| matches!(op, Op::Write { .. });
        for (fault, data, found) in [
            (Fault::Refused(libc::ENOSPC), b"AAAA", b"...."),
            (Fault::Half(libc::ENOSPC), b"BBBB", b"BB.."),
            (Fault::Unheard(libc::EIO), b"CCCC", b"CCCC"),
        ] {
            disk.io.set_rule(spoil(is_write, fault));
            let error = disk.run(write(data)).unwrap_err();
            assert_eq!(error.path, "./a");
            assert_eq!(disk.read(file, 0, 4), found);
        }
    }
}
