//! The commit log of one shard: batches, frames in flight, log files (storage.md 2.3, 4.1).
//!
//! A [`Log`] carries groups of type `G` from [`Log::room`] to [`Log::completed`] without looking into
//! them. It promises: frames are written in order, `completed` hands groups out in that order and
//! only when their frame *and all before it* are on the medium; a frame's position is fixed when its
//! batch opens; a block that holds acknowledged data is never written again. It never truncates.

mod files;
mod recovery;

use std::collections::VecDeque;

use ringpost_netproto::id::WallNs;

use crate::canary::{self, Canary};
use crate::commit::Positions;
use crate::config::ShardConfig;
use crate::error::IoError;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameKind};
use crate::format::record::{Encoder, Tally};
use crate::io::{AlignedBuf, Done, Failed, Io, Op, RelPath};
use crate::limits::{BLOCK_BYTES, NOOP_AFTER_NS, NOOP_INTERVAL_NS};
use crate::metrics::Metrics;
use crate::ops::{Ops, Purpose, unreachable_done};
use crate::position::Lsn;
use crate::request::{MonotonicNs, Now};

pub(crate) use files::{Files, Held, Keep, LogIdentity, Salts};
pub(crate) use recovery::{Found, recover};

/// Log buffers: one in flight, one being filled, two closed and waiting.
const BUFS: usize = 4;

/// A batch: the frame being filled. Its position is fixed, since MSG runs hold it.
pub(crate) struct Batch<G> {
    lsn: Lsn,
    file: usize,
    buf: AlignedBuf,
    tally: Tally,
    recipients: u64,
    groups: Vec<G>,
}

impl<G> Batch<G> {
    /// Position of the frame.
    pub(crate) fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Bytes of records so far.
    pub(crate) fn payload_len(&self) -> usize {
        self.tally.payload_len
    }

    /// Where the frame will end if nothing more is added.
    pub(crate) fn end(&self) -> Lsn {
        let len = u32::try_from(self.tally.payload_len).expect("a frame is at most 4 MiB");
        self.lsn.after(FrameHeader::frame_len_of(len))
    }

    /// The records so far.
    fn records(&self) -> &[u8] {
        let end = FRAME_HEADER_BYTES + self.tally.payload_len;
        self.buf.get(FRAME_HEADER_BYTES..end).unwrap_or_default()
    }

    /// Appends records; `fill` gets an encoder that goes on where the last one ended.
    pub(crate) fn encode<T>(&mut self, fill: impl FnOnce(&mut Encoder<'_>) -> T) -> T {
        let payload = self.buf.get_mut(FRAME_HEADER_BYTES..).unwrap_or_default();
        let mut encoder = Encoder::resume(payload, self.tally);
        let value = fill(&mut encoder);
        self.tally = encoder.tally();
        value
    }

    /// Adds a group that is answered when this frame is durable.
    pub(crate) fn attach(&mut self, group: G, recipients: u64) {
        self.groups.push(group);
        self.recipients += recipients;
    }
}

/// Which batches [`Log::seal`] may close.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Seal {
    /// Also the open one, whatever room it has.
    Open,
    /// Those that are full.
    Full,
}

/// Whether records are on all copies of which no frame says so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unstated {
    /// Such records.
    Records,
    /// None: always so with one copy.
    Nothing,
}

/// A frame with records as it is handed to the kernel.
pub(crate) struct Sealed<'a, G> {
    /// Of the log file.
    pub(crate) salt: u64,
    /// Where the frame ends.
    pub(crate) end: Lsn,
    /// Its records.
    pub(crate) payload: &'a [u8],
    pub(crate) groups: &'a [G],
}

/// What waits to be sealed, in order.
enum Closed<G> {
    Records(Batch<G>),
    /// The rest of a file is left unused, up to where its successor starts.
    Skip {
        lsn: Lsn,
        file: usize,
        len: u64,
    },
}

/// A frame handed to the kernel.
struct Flight<G> {
    number: u64,
    end: Lsn,
    /// Its header says that all below this is durable.
    durable: Lsn,
    kind: FrameKind,
    done: bool,
    submitted: MonotonicNs,
    groups: Vec<G>,
}

/// See the module.
pub(crate) struct Log<G> {
    config: LogConfig,
    files: Files,
    bufs: Vec<AlignedBuf>,
    open: Option<Batch<G>>,
    closed: VecDeque<Closed<G>>,
    flights: VecDeque<Flight<G>>,
    /// Where the next batch opens.
    next: Lsn,
    previous_crc: u32,
    sealed_count: u64,
    /// Some later durable frame says that all below this was flushed.
    vouched: Lsn,
    /// A frame on the medium says that all below this is durable.
    stated: Lsn,
    last_noop: MonotonicNs,
    last_flush: MonotonicNs,
    /// `header_crc` of the frame that ends at a position: the seed of a checkpoint there.
    ends: VecDeque<(Lsn, u32)>,
}

/// The part of [`ShardConfig`] that the log needs.
#[derive(Clone, Copy)]
pub(crate) struct LogConfig {
    frame_bytes_max: usize,
    depth: usize,
}

impl From<&ShardConfig> for LogConfig {
    fn from(config: &ShardConfig) -> Self {
        Self {
            frame_bytes_max: usize::try_from(config.frame_bytes_max).expect("at most 4 MiB"),
            depth: usize::try_from(config.log_depth).expect("1 or 2"),
        }
    }
}

impl<G> Log<G> {
    /// Goes on where recovery ended: `files` has a live file that starts at `end`.
    pub(crate) fn new<I: Io>(
        ops: &mut Ops<I>,
        config: &ShardConfig,
        files: Files,
        end: Lsn,
        previous_crc: u32,
        now: Now,
    ) -> Self {
        let log_config = LogConfig::from(config);
        let bufs = ops.io_mut().log_bufs(BUFS, log_config.frame_bytes_max);
        Self {
            config: log_config,
            files,
            bufs,
            open: None,
            closed: VecDeque::new(),
            flights: VecDeque::new(),
            next: end,
            previous_crc,
            sealed_count: 0,
            vouched: end,
            stated: Lsn::new(0),
            last_noop: now.monotonic,
            last_flush: now.monotonic,
            ends: VecDeque::from([(end, previous_crc)]),
        }
    }

    /// Ends of frames that recovery read and that a checkpoint may still end at, in order.
    pub(crate) fn knows_ends(&mut self, ends: impl Iterator<Item = (Lsn, u32)>) {
        let last = self.ends.back().copied();
        self.ends = ends.chain(last).collect();
    }

    /// Bytes of records that fit a frame.
    pub(crate) fn payload_max(&self) -> usize {
        self.config.frame_bytes_max - FRAME_HEADER_BYTES
    }

    /// A batch with room for `need` bytes of records, at most [`Self::payload_max`]. `None` when no
    /// buffer or no armed file is free: try again after something completed.
    pub(crate) fn room(&mut self, need: usize) -> Option<&mut Batch<G>> {
        assert!(
            need <= self.payload_max(),
            "a group of {need} bytes does not fit any frame"
        );
        let full = |batch: &Batch<G>| {
            batch.payload_len() + need > self.config.frame_bytes_max - FRAME_HEADER_BYTES
        };
        if self.open.as_ref().is_some_and(full) {
            self.close();
        }
        if self.open.is_none() {
            self.open = Some(self.open_batch()?);
        }
        self.open.as_mut()
    }

    /// Planted: what follows goes into another frame than what was encoded last, if there is one.
    pub(crate) fn split(&mut self) {
        if !self.bufs.is_empty() && self.files.is_armed() {
            self.close();
            self.open = self.open_batch();
        }
    }

    /// The batch being filled, if any.
    pub(crate) fn open_batch_mut(&mut self) -> Option<&mut Batch<G>> {
        self.open.as_mut()
    }

    /// Adds a group that needs no record but must wait for every frame not durable yet. Gives it
    /// back if there is none.
    pub(crate) fn attach_last(&mut self, group: G) -> Result<(), G> {
        if let Some(batch) = &mut self.open {
            batch.groups.push(group);
        } else if let Some(Closed::Records(batch)) = self.closed.back_mut() {
            batch.groups.push(group);
        } else if let Some(flight) = self.flights.back_mut() {
            flight.groups.push(group);
        } else {
            return Err(group);
        }
        Ok(())
    }

    fn close(&mut self) {
        if let Some(batch) = self.open.take() {
            self.next = batch.end();
            self.closed.push_back(Closed::Records(batch));
        }
    }

    fn open_batch(&mut self) -> Option<Batch<G>> {
        let frame = u64::try_from(self.config.frame_bytes_max).expect("at most 4 MiB");
        let left = self.files.active_end().value() - self.next.value();
        if self.bufs.is_empty() || (left < frame && !self.files.is_armed()) {
            return None;
        }
        if left < frame {
            let file = self.files.active();
            if left > 0 {
                self.closed.push_back(Closed::Skip {
                    lsn: self.next,
                    file,
                    len: left,
                });
            }
            self.next = self.files.switch();
        }
        let buf = self.bufs.pop()?;
        Some(Batch {
            lsn: self.next,
            file: self.files.active(),
            buf,
            tally: Tally::default(),
            recipients: 0,
            groups: Vec::new(),
        })
    }

    /// Hands the kernel what may go: an empty pipe writes at once, without a timer. With
    /// [`Seal::Full`] a batch that has room stays open. `each` looks at every frame with records.
    pub(crate) fn seal<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        (positions, metrics): (&mut Positions, &mut Metrics),
        now: Now,
        which: Seal,
        mut each: impl FnMut(&Sealed<'_, G>),
    ) {
        self.files.tend(ops, now);
        loop {
            if let Some(Closed::Skip { lsn, file, len }) = self.closed.front() {
                let (lsn, file, len) = (*lsn, *file, *len);
                self.closed.pop_front();
                self.submit_empty(ops, positions, now, FrameKind::Skip, (lsn, file, len));
                metrics.flushes += 1;
                continue;
            }
            if !self.may_write() {
                return;
            }
            if which == Seal::Open && self.closed.is_empty() && self.has_open_records() {
                self.close();
            }
            let Some(Closed::Records(batch)) = self.closed.pop_front() else {
                return;
            };
            each(&Sealed {
                salt: self.files.salt(batch.file),
                end: batch.end(),
                payload: batch.records(),
                groups: &batch.groups,
            });
            self.submit_records(ops, positions, metrics, now, batch);
        }
    }

    /// Whether another frame with records may be in flight.
    fn may_write(&self) -> bool {
        let records = self
            .flights
            .iter()
            .filter(|flight| flight.kind == FrameKind::Records);
        records.count() < self.config.depth
    }

    fn has_open_records(&self) -> bool {
        self.open
            .as_ref()
            .is_some_and(|batch| batch.payload_len() > 0)
    }

    /// Whether records wait for nothing but a [`Self::seal`] of the open batch.
    pub(crate) fn is_gathering(&self) -> bool {
        self.closed.is_empty() && self.has_open_records() && self.may_write()
    }

    fn submit_records<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        positions: &mut Positions,
        metrics: &mut Metrics,
        now: Now,
        batch: Batch<G>,
    ) {
        let Batch {
            lsn,
            file,
            mut buf,
            tally,
            recipients,
            groups,
        } = batch;
        let payload_len = u32::try_from(tally.payload_len).expect("a frame is at most 4 MiB");
        let frame_len = FrameHeader::frame_len_of(payload_len);
        let mut header = self.header(positions, now.wall, file, lsn);
        header.frame_len = u32::try_from(frame_len).expect("a frame is at most 4 MiB");
        header.payload_len = payload_len;
        header.records_count = tally.records_count;
        header.payload_crc = tally.payload_crc;
        let len = usize::try_from(frame_len).expect("a frame is at most 4 MiB");
        let padding = FRAME_HEADER_BYTES + tally.payload_len..len;
        buf.get_mut(padding)
            .expect("a buffer holds a whole frame")
            .fill(0);
        metrics.frames += 1;
        metrics.flushes += 1;
        metrics.frame_bytes += frame_len;
        metrics.payload_bytes += u64::from(payload_len);
        metrics.batch_messages.record(recipients);
        self.submit(ops, positions, now, (header, buf), groups);
    }

    /// A frame without records.
    fn submit_empty<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        positions: &mut Positions,
        now: Now,
        kind: FrameKind,
        (lsn, file, len): (Lsn, usize, u64),
    ) {
        let buf = AlignedBuf::zeroed(block());
        let mut header = self.header(positions, now.wall, file, lsn);
        header.kind = kind;
        header.frame_len = u32::try_from(len).expect("a log file is below 4 GiB");
        self.submit(ops, positions, now, (header, buf), Vec::new());
    }

    fn header(&self, positions: &Positions, wall: WallNs, file: usize, lsn: Lsn) -> FrameHeader {
        FrameHeader {
            salt: self.files.salt(file),
            lsn,
            flushed_lsn: positions.flushed_to().lsn(),
            durable_lsn: positions.durable_to().lsn(),
            frame_len: 0,
            payload_len: 0,
            records_count: 0,
            kind: FrameKind::Records,
            previous_crc: self.previous_crc,
            payload_crc: 0,
            wall,
            map_revision: 0,
            header_crc: 0,
        }
    }

    fn submit<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        positions: &mut Positions,
        now: Now,
        (mut header, mut buf): (FrameHeader, AlignedBuf),
        groups: Vec<G>,
    ) {
        let bytes = header.seal();
        buf.get_mut(..FRAME_HEADER_BYTES)
            .expect("a buffer holds at least a block")
            .copy_from_slice(&bytes);
        self.previous_crc = header.header_crc;
        let number = self.sealed_count;
        self.sealed_count += 1;
        self.ends.push_back((header.end(), header.header_crc));
        let (file, offset) = self.files.place(header.lsn);
        let len = match header.kind {
            FrameKind::Records => usize::try_from(header.frame_len).expect("at most 4 MiB"),
            FrameKind::Noop | FrameKind::Skip => block(),
        };
        positions.submitted(header.end());
        self.flights.push_back(Flight {
            number,
            end: header.end(),
            durable: header.durable_lsn,
            kind: header.kind,
            done: canary::on(Canary::AckAtWritten),
            submitted: now.monotonic,
            groups,
        });
        ops.start(
            Op::LogWrite {
                file,
                offset,
                buf,
                len,
            },
            Purpose::Frame(number),
        );
    }

    /// A frame's write ended. An error is fatal: what is on the medium is in doubt.
    pub(crate) fn written(
        &mut self,
        number: u64,
        result: Result<Done, Failed>,
        metrics: &mut Metrics,
        now: Now,
    ) -> Result<(), IoError> {
        let buf = match result.map_err(|failed| failed.error)? {
            Done::Buf(buf) => buf,
            other => unreachable_done(&other),
        };
        if buf.len() == self.config.frame_bytes_max && self.bufs.len() < BUFS {
            self.bufs.push(buf);
        }
        let flight = self
            .flights
            .iter_mut()
            .find(|flight| flight.number == number);
        if flight.is_none()
            && (canary::on(Canary::AckAtWritten) || canary::on(Canary::AckOutOfOrder))
        {
            return Ok(());
        }
        let flight = flight.expect("a frame completes once");
        flight.done = true;
        if flight.kind == FrameKind::Records {
            metrics
                .log_write_ns
                .record(now.monotonic.since(flight.submitted));
        }
        self.last_flush = now.monotonic;
        Ok(())
    }

    /// The groups of the next frame in order, if it and all before it are on the medium, and where
    /// that frame ends.
    pub(crate) fn completed(&mut self, positions: &mut Positions) -> Option<(Lsn, Vec<G>)> {
        let later = || self.flights.iter().any(|flight| flight.done);
        let early = canary::on(Canary::AckOutOfOrder) && later();
        if !self.flights.front()?.done && !early {
            return None;
        }
        let flight = self.flights.pop_front()?;
        positions.flushed(flight.end);
        self.stated = self.stated.max(flight.durable);
        if flight.kind == FrameKind::Noop {
            self.vouched = flight.end;
        }
        Some((flight.end, flight.groups))
    }

    /// Whether nothing is open, closed or in flight.
    pub(crate) fn is_quiet(&self) -> bool {
        !self.has_open_records() && self.closed.is_empty() && self.flights.is_empty()
    }

    /// Up to here a restart finds it said that all is durable.
    pub(crate) fn stated(&self) -> Lsn {
        self.stated
    }

    /// When an idle log wants to vouch for its last frame (storage.md 6.2), or, where records wait for
    /// copies, to state that they have come.
    pub(crate) fn noop_due(
        &self,
        positions: &Positions,
        unstated: Unstated,
    ) -> Option<MonotonicNs> {
        let doubtful = positions.flushed_to().lsn() > self.vouched || unstated == Unstated::Records;
        (doubtful && self.is_quiet()).then(|| {
            self.last_flush
                .after(NOOP_AFTER_NS)
                .max(self.last_noop.after(NOOP_INTERVAL_NS))
        })
    }

    /// Writes a NOOP frame if one is due and there is room in the active file.
    pub(crate) fn vouch<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        positions: &mut Positions,
        metrics: &mut Metrics,
        (now, unstated): (Now, Unstated),
    ) {
        if self
            .noop_due(positions, unstated)
            .is_none_or(|due| due > now.monotonic)
        {
            return;
        }
        self.last_noop = now.monotonic;
        if unstated == Unstated::Records {
            self.make_room_to_state();
        }
        let end = self.next.after(BLOCK_BYTES);
        if self.open.is_some() || end > self.files.active_end() {
            self.vouched = positions.flushed_to().lsn();
            return;
        }
        metrics.noop_frames += 1;
        metrics.flushes += 1;
        let place = (self.next, self.files.active(), BLOCK_BYTES);
        self.submit_empty(ops, positions, now, FrameKind::Noop, place);
        self.next = end;
    }

    /// What records wait for is written in any case: in place of an empty batch, in the next file.
    fn make_room_to_state(&mut self) {
        if let Some(batch) = self.open.take() {
            if batch.payload_len() == 0 && batch.groups.is_empty() {
                self.next = batch.lsn();
                self.bufs.push(batch.buf);
            } else {
                self.open = Some(batch);
            }
        }
        if self.open.is_none() && self.next >= self.files.active_end() && self.files.is_armed() {
            self.next = self.files.switch();
        }
    }

    /// `header_crc` of the frame that ends at `at`, the seed of a checkpoint there.
    pub(crate) fn crc_at(&mut self, at: Lsn) -> u32 {
        while self.ends.front().is_some_and(|(end, _)| *end < at) {
            self.ends.pop_front();
        }
        let (end, crc) = self
            .ends
            .front()
            .expect("a checkpoint is at the end of a frame");
        assert_eq!(*end, at, "a checkpoint is at the end of a frame");
        *crc
    }

    /// Gives back log files wholly below a checkpoint.
    pub(crate) fn release(&mut self, upto: Lsn) {
        self.files.release(upto);
    }

    /// Where all that was encoded so far ends: `DurableTo` will get there.
    pub(crate) fn end(&self) -> Lsn {
        match &self.open {
            Some(batch) if batch.payload_len() > 0 => batch.end(),
            Some(batch) => batch.lsn(),
            None => self.next,
        }
    }

    /// Bytes between a checkpoint and the end of the log.
    pub(crate) fn used_bytes(&self, checkpointed: Lsn) -> u64 {
        let end = self.open.as_ref().map_or(self.next, Batch::end);
        end.value().saturating_sub(checkpointed.value())
    }

    /// The log's files.
    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// The log's files.
    pub(crate) fn files_mut(&mut self) -> &mut Files {
        &mut self.files
    }

    /// Where the bytes at `lsn` (a position inside a frame) lie: path and offset.
    pub(crate) fn path_of(&self, lsn: Lsn) -> (RelPath, u64) {
        self.files.path_of(lsn)
    }
}

/// A block as a length.
fn block() -> usize {
    usize::try_from(BLOCK_BYTES).expect("4096")
}
