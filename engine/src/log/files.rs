//! Log files: made once of zeros, armed, filled, recycled (storage.md 2.3, 3.4).
//!
//! The file after the active one is armed before it is needed. A file is free again when a
//! checkpoint has passed its end, unless a backup or the archive wants it: then it leaves the log and
//! another is made. More files are made while the log is used, up to the limit: a log that is never
//! full stays small.

use std::collections::VecDeque;

use ringpost_netproto::id::WallNs;
use siphasher::sip::SipHasher24;

use crate::canary::{self, Canary};
use crate::error::IoError;
use crate::format::Version;
use crate::format::log_file::{LOG_HEADER_BYTES, LogFileHeader};
use crate::format::store_file::StoreId;
use crate::io::{AlignedBuf, Done, FileId, Io, Op, OpenMode, RelPath};
use crate::ops::{Ops, Purpose, unreachable_done};
use crate::position::Lsn;
use crate::request::{MonotonicNs, Now};

/// Between two tries to make a file on a full disk, ns: as often as free space is looked at.
const MAKE_AGAIN_NS: u64 = 1_000_000_000;

/// What every structure of a log is bound to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogIdentity {
    pub(crate) store: StoreId,
    pub(crate) log_id: u32,
}

/// What a log file is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Role {
    Free,
    Arming,
    Armed,
    Live,
    /// Wholly below the checkpoint, and wanted by a backup or the archive: never armed again.
    Held,
    /// It left the log; its place in the table is free.
    Gone,
    /// Of another length than the configuration wants now, and not live any more: unlinked at the
    /// next opening.
    Outgrown,
}

#[derive(Debug)]
struct LogFile {
    number: u32,
    file: FileId,
    /// Size, header included.
    bytes: u64,
    role: Role,
    /// Of the last arming; `None` if never armed.
    header: Option<LogFileHeader>,
}

/// All finished log files of a shard.
#[derive(Debug)]
pub(crate) struct Files {
    identity: LogIdentity,
    file_bytes: u64,
    count_max: u32,
    all: Vec<LogFile>,
    /// In the order of their positions; the last is being filled.
    live: VecDeque<usize>,
    making: Option<u32>,
    /// Not before this, since there was no room.
    make_after: MonotonicNs,
    sequence: u64,
    salts: Salts,
    /// Whether files leave the log instead of being armed again.
    keep: Keep,
}

/// What becomes of a file that a checkpoint has passed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Keep {
    /// It leaves the log as it is.
    Yes,
    /// It is armed again.
    No,
}

/// A file that leaves the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    /// Place in the table.
    pub(crate) index: usize,
    pub(crate) number: u32,
    pub(crate) file: FileId,
    pub(crate) bytes: u64,
    /// Of its last arming.
    pub(crate) sequence: u64,
}

/// Salts from a seed: different at every arming, never 0, the same for the same seed and life. A
/// store that is opened again with the same seed still draws others, since the boot counter is in.
#[derive(Debug)]
pub(crate) struct Salts {
    hasher: SipHasher24,
    drawn: u64,
}

impl Salts {
    pub(crate) fn new(seed: &[u8; 16], boots: u32) -> Self {
        Self {
            hasher: SipHasher24::new_with_key(seed),
            drawn: u64::from(boots) << 32,
        }
    }

    fn draw(&mut self) -> u64 {
        self.drawn += u64::from(!canary::on(Canary::SaltKept));
        self.hasher.hash(&self.drawn.to_le_bytes()).max(1)
    }
}

impl Files {
    /// A log without any file yet.
    pub(crate) fn new(
        identity: LogIdentity,
        file_bytes: u64,
        files_max: u32,
        salts: Salts,
    ) -> Self {
        Self {
            identity,
            file_bytes,
            count_max: files_max,
            all: Vec::new(),
            live: VecDeque::new(),
            making: None,
            make_after: MonotonicNs::new(0),
            sequence: 0,
            salts,
            keep: Keep::No,
        }
    }

    /// Adds an open, finished file that holds nothing of use, or whose use `set_live` tells.
    pub(crate) fn add_free(
        &mut self,
        (number, bytes): (u32, u64),
        file: FileId,
        header: Option<LogFileHeader>,
    ) {
        self.sequence = self
            .sequence
            .max(header.map_or(0, |header| header.sequence));
        let file = LogFile {
            number,
            file,
            bytes,
            role: passed(bytes, self.file_bytes),
            header,
        };
        match self.all.iter_mut().find(|known| known.role == Role::Gone) {
            Some(place) => *place = file,
            None => self.all.push(file),
        }
    }

    /// Says whether files that a checkpoint passes leave the log from now on.
    pub(crate) fn keep(&mut self, keep: Keep) {
        self.keep = keep;
    }

    /// The oldest file that leaves the log.
    pub(crate) fn held(&self) -> Option<Held> {
        let held = self.all.iter().enumerate();
        let held = held.filter(|(_, file)| file.role == Role::Held);
        let held = held.map(|(index, file)| Held {
            index,
            number: file.number,
            file: file.file,
            bytes: file.bytes,
            sequence: file.header.map_or(0, |header| header.sequence),
        });
        held.min_by_key(|held| held.sequence)
    }

    /// Holds every file that was filled below `upto` and had no time to leave the log.
    pub(crate) fn hold_passed(&mut self, upto: Lsn) {
        for file in self.all.iter_mut().filter(|file| file.role == Role::Free) {
            if file.header.is_some_and(|header| header.start_lsn < upto) {
                file.role = Role::Held;
            }
        }
    }

    /// A held file has left the log: its name is free.
    pub(crate) fn left(&mut self, index: usize) {
        if let Some(file) = self.all.get_mut(index) {
            assert_eq!(file.role, Role::Held, "only a held file leaves the log");
            file.role = Role::Gone;
        }
    }

    /// Nobody wants the held files any more: they are armed again.
    pub(crate) fn recycle_held(&mut self) {
        for file in self.all.iter_mut().filter(|file| file.role == Role::Held) {
            file.role = passed(file.bytes, self.file_bytes);
        }
    }

    /// Makes the files with these numbers live, in this order (recovery's chain).
    pub(crate) fn set_live(&mut self, numbers: &[u32]) {
        for number in numbers {
            let index = self.all.iter().position(|file| file.number == *number);
            let index = index.expect("recovery read this file");
            if let Some(file) = self.all.get_mut(index) {
                file.role = Role::Live;
            }
            self.live.push_back(index);
        }
    }

    /// Number of finished files of today's length.
    pub(crate) fn count(&self) -> u32 {
        let ours = |file: &&LogFile| {
            file.bytes == self.file_bytes && !matches!(file.role, Role::Held | Role::Gone)
        };
        u32::try_from(self.all.iter().filter(ours).count()).expect("files_max is a u32")
    }

    /// Whether a file is there for the next arming.
    pub(crate) fn has_free(&self) -> bool {
        self.all.iter().any(|file| file.role == Role::Free)
    }

    /// The lowest number no file has.
    pub(crate) fn next_number(&self) -> u32 {
        let taken = |number: u32| {
            let mut all = self.all.iter();
            all.any(|file| file.number == number && file.role != Role::Gone)
        };
        (1..u32::MAX)
            .find(|number| !taken(*number))
            .expect("there are fewer files than numbers")
    }

    /// Bytes of payload in one file.
    fn payload_bytes(&self) -> u64 {
        self.file_bytes - u64::try_from(LOG_HEADER_BYTES).expect("4096")
    }

    /// Bytes of payload in all finished files of today's length.
    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.payload_bytes() * u64::from(self.count())
    }

    /// Bytes of payload that the files will hold once all are made.
    pub(crate) fn capacity_bytes_max(&self) -> u64 {
        self.payload_bytes() * u64::from(self.count_max.max(self.count()))
    }

    fn get(&self, index: usize) -> &LogFile {
        self.all
            .get(index)
            .expect("files are never taken out of the table")
    }

    fn header(&self, index: usize) -> &LogFileHeader {
        self.get(index)
            .header
            .as_ref()
            .expect("a live file was armed")
    }

    /// The file being filled.
    pub(crate) fn active(&self) -> usize {
        *self.live.back().expect("an open log has a live file")
    }

    /// Where the file being filled ends.
    pub(crate) fn active_end(&self) -> Lsn {
        self.header(self.active())
            .start_lsn
            .after(self.payload_bytes())
    }

    /// Number, handle and header of every file that recovery would need.
    pub(crate) fn armed_headers(&self) -> impl Iterator<Item = (u32, FileId, LogFileHeader)> + '_ {
        let needed = |file: &&LogFile| matches!(file.role, Role::Armed | Role::Live);
        let needed = self.all.iter().filter(needed);
        needed.filter_map(|file| Some((file.number, file.file, file.header?)))
    }

    /// The salt of a live file.
    pub(crate) fn salt(&self, index: usize) -> u64 {
        self.header(index).salt
    }

    /// Whether the next file is armed.
    pub(crate) fn is_armed(&self) -> bool {
        self.all.iter().any(|file| file.role == Role::Armed)
    }

    /// Goes on in the armed file; gives its first position.
    pub(crate) fn switch(&mut self) -> Lsn {
        let index = self.all.iter().position(|file| file.role == Role::Armed);
        let index = index.expect("the caller asked is_armed");
        if let Some(file) = self.all.get_mut(index) {
            file.role = Role::Live;
        }
        self.live.push_back(index);
        self.header(index).start_lsn
    }

    /// The live file that holds `lsn`, and the offset in it.
    fn index_of(&self, lsn: Lsn) -> (usize, u64) {
        let holds = |index: &&usize| self.header(**index).start_lsn <= lsn;
        let index = *self
            .live
            .iter()
            .rev()
            .find(holds)
            .expect("the position is in the log");
        let offset = self
            .header(index)
            .offset_of(lsn)
            .expect("it starts at or before it");
        (index, offset)
    }

    /// Handle and offset of a position in a live file.
    pub(crate) fn place(&self, lsn: Lsn) -> (FileId, u64) {
        let (index, offset) = self.index_of(lsn);
        (self.get(index).file, offset)
    }

    /// Path and offset of a position in a live file.
    pub(crate) fn path_of(&self, lsn: Lsn) -> (RelPath, u64) {
        let (index, offset) = self.index_of(lsn);
        (
            RelPath::log_file(self.identity.log_id, self.get(index).number),
            offset,
        )
    }

    /// Sequence numbers of the oldest and the newest live file.
    pub(crate) fn sequences(&self) -> (u64, u64) {
        let oldest = self
            .live
            .front()
            .map_or(0, |index| self.header(*index).sequence);
        (oldest, self.sequence)
    }

    /// Gives files wholly below `upto` back, or holds them. The last one stays.
    pub(crate) fn release(&mut self, upto: Lsn) {
        while let (Some(first), Some(second)) = (self.live.front(), self.live.get(1)) {
            if self.header(*second).start_lsn > upto {
                return;
            }
            let first = *first;
            if let Some(file) = self.all.get_mut(first) {
                file.role = match self.keep {
                    Keep::Yes => Role::Held,
                    Keep::No => passed(file.bytes, self.file_bytes),
                };
            }
            self.live.pop_front();
        }
    }

    /// The header of the next arming of a file: a new salt, behind the active file.
    fn next_header(&mut self, start_lsn: Lsn, now: WallNs) -> LogFileHeader {
        self.sequence += 1;
        LogFileHeader {
            store: self.identity.store,
            log_id: self.identity.log_id,
            sequence: self.sequence,
            salt: self.salts.draw(),
            start_lsn,
            previous_salt: self.live.back().map_or(0, |index| self.salt(*index)),
            armed_at: now,
            version: Version::OURS,
        }
    }

    /// Arms the next file and makes another, where needed.
    pub(crate) fn tend<I: Io>(&mut self, ops: &mut Ops<I>, now: Now) {
        let coming = |file: &LogFile| matches!(file.role, Role::Arming | Role::Armed);
        if !self.all.iter().any(coming) {
            let free = self.all.iter().position(|file| file.role == Role::Free);
            if let Some(index) = free {
                let header = self.next_header(self.active_end(), now.wall);
                let file = self.set_arming(index, header);
                let (buf, len) = header_block(&header);
                ops.start(
                    Op::LogWrite {
                        file,
                        offset: 0,
                        buf,
                        len,
                    },
                    Purpose::Arm(index),
                );
            }
        }
        let free = self
            .all
            .iter()
            .filter(|file| file.role == Role::Free)
            .count();
        let wanted = free == 0 && self.making.is_none() && self.count() < self.count_max;
        if wanted && now.monotonic >= self.make_after {
            let number = self.next_number();
            self.making = Some(number);
            let path = RelPath::log_file(self.identity.log_id, number);
            let bytes = self.file_bytes;
            ops.start(Op::LogCreate { path, bytes }, Purpose::LogMake(number));
        }
    }

    fn set_arming(&mut self, index: usize, header: LogFileHeader) -> FileId {
        let file = self.all.get_mut(index).expect("an index of this table");
        file.role = Role::Arming;
        file.header = Some(header);
        file.file
    }

    /// An arming ended; the file can be written now.
    pub(crate) fn armed(&mut self, index: usize) {
        let file = self.all.get_mut(index).expect("an index of this table");
        assert_eq!(file.role, Role::Arming, "a file is armed once");
        file.role = Role::Armed;
    }

    /// A file of zeros is durable: open it.
    pub(crate) fn made<I: Io>(&mut self, ops: &mut Ops<I>, number: u32) {
        let path = RelPath::log_file(self.identity.log_id, number);
        ops.start(
            Op::Open {
                path,
                mode: OpenMode::Log,
            },
            Purpose::LogOpen(number),
        );
    }

    /// A new file can be used.
    pub(crate) fn opened(&mut self, number: u32, file: FileId) {
        self.making = None;
        self.add_free((number, self.file_bytes), file, None);
    }

    /// There was no room for a file: try again at the first need after a while. At once would be
    /// without end, since nothing but the try itself has to complete.
    pub(crate) fn not_made(&mut self, now: MonotonicNs) {
        self.making = None;
        self.make_after = now.after(MAKE_AGAIN_NS);
    }

    /// Makes a file and waits for it (opening).
    pub(crate) fn make_now<I: Io>(&mut self, ops: &mut Ops<I>) -> Result<(), IoError> {
        let number = self.next_number();
        let path = RelPath::log_file(self.identity.log_id, number);
        let bytes = self.file_bytes;
        ops.run_plain(Op::LogCreate {
            path: path.clone(),
            bytes,
        })?;
        match ops.run_plain(Op::Open {
            path,
            mode: OpenMode::Log,
        })? {
            Done::Opened { file, .. } => {
                self.add_free((number, self.file_bytes), file, None);
            }
            other => unreachable_done(&other),
        }
        Ok(())
    }

    /// Arms a free file at `start` and makes it live, and waits for it (opening).
    pub(crate) fn start_now<I: Io>(
        &mut self,
        ops: &mut Ops<I>,
        start: Lsn,
        now: WallNs,
    ) -> Result<(), IoError> {
        if !self.has_free() {
            self.make_now(ops)?;
        }
        let free = self.all.iter().position(|file| file.role == Role::Free);
        let index = free.expect("one was just made");
        let header = self.next_header(start, now);
        let file = self.set_arming(index, header);
        let (buf, len) = header_block(&header);
        ops.run_plain(Op::LogWrite {
            file,
            offset: 0,
            buf,
            len,
        })?;
        self.armed(index);
        self.switch();
        Ok(())
    }
}

/// What a file of that length is used for when nothing of it is needed any more.
fn passed(bytes: u64, file_bytes: u64) -> Role {
    if bytes == file_bytes {
        Role::Free
    } else {
        Role::Outgrown
    }
}

/// A sealed header in a buffer of its own.
fn header_block(header: &LogFileHeader) -> (AlignedBuf, usize) {
    let mut buf = AlignedBuf::zeroed(LOG_HEADER_BYTES);
    buf.copy_from_slice(header.seal().as_slice());
    (buf, LOG_HEADER_BYTES)
}
