//! The files of a new generation: everything gets its place, then the part files are written piece by
//! piece (storage.md 8.5).

use std::collections::BTreeSet;

use bytes::Bytes;

use super::super::Shard;
use super::super::append::line_flags;
use super::contents::{Contents, Life, Message, OwnFile};
use super::plan::Layout;
use super::write::{self, Writer};
use super::{Capture, Copy, HOLD_ENTRIES_MAX, PIECE_BYTES, Step, segment_of, sweep};
use crate::format::info::InfoHeader;
use crate::format::store_line::StoreLine;
use crate::index::BadInfo;
use crate::io::{Io, Op, Piece, RelPath, Step as WriteStep, Work, WorkSync};
use crate::request::Now;
use crate::space::Space;

impl<I: Io> Shard<I> {
    /// Gives everything that lives its place in the new generation.
    pub(super) fn lay_out(
        &mut self,
        now: Now,
        header: &InfoHeader,
        mut contents: Contents,
    ) -> Result<(), BadInfo> {
        let base_lsn = self.positions.durable_to().lsn();
        let segment_max = self.config.segment_bytes_max;
        let Some(running) = &mut self.compactor.running else {
            return Ok(());
        };
        let user = self.users.get_mut(running.wanted.user);
        let mut there: BTreeSet<u32> = sweep::owed(user);
        // Dead ones that a snapshot reads may have got their names since the directory was listed.
        there.extend(user.kept.iter().map(|dead| dead.segment));
        there.extend(
            running
                .names
                .iter()
                .filter_map(|(name, _)| segment_of(name)),
        );
        let Some(live) = user.live_mut() else {
            return Ok(());
        };
        let active = live.tail.mailboxes.iter().map(|tail| tail.segment);
        let active = active.collect();
        contents.agree_with(&live.tail);
        let Split { kept, retired } = split(
            &contents,
            &running.victims,
            active,
            (&running.sealed, &there),
        );
        let mut layout = Layout::new(live.tail.next_segment, segment_max);
        let segments = (&kept, &running.victims);
        let (space, copies) = places(&contents, segments, &mut layout)?;
        let next_segment = layout.next_segment();
        live.tail.next_segment = live.tail.next_segment.max(next_segment);
        let new_header = write::header(
            header,
            running.generation,
            (base_lsn, live.tail.modseq),
            next_segment,
            (live.tail.uidvalidity_max, now.wall),
        );
        let mut writer = Writer::new(&new_header);
        contents.prologue(&mut writer, &retired);
        running.made = layout.finish();
        running.kept = kept;
        running.retired = retired;
        running.writer = Some(writer);
        running.contents = Some(contents);
        running.step = Step::Feed;
        live.tail.space.remember();
        user.capture = Some(Box::new(Capture {
            entries: Vec::new(),
            space,
            copies,
        }));
        Ok(())
    }

    /// The next piece: of the index, then of the segments, then what was captured meanwhile; when
    /// little of that is left, the user is held.
    pub(super) fn feed_compaction(&mut self, now: Now) {
        let Some(running) = &mut self.compactor.running else {
            return;
        };
        let index = running.wanted.user;
        let user = self.users.get_mut(index);
        let dir = user.dir();
        let old = user.seed(user.generation());
        let Some(capture) = &mut user.capture else {
            return;
        };
        let Some(writer) = &mut running.writer else {
            return;
        };
        if let Some(contents) = &running.contents {
            let place = (&mut running.next_message, &mut running.next_run);
            let kept = (&running.kept, &running.victims);
            let filled = fill(contents, capture, writer, kept, place);
            if filled == Filled::Whole {
                running.contents = None;
            }
        }
        let indexed = running.contents.is_none();
        let mut work = Vec::new();
        if indexed && running.next_copy < capture.copies.len() {
            let copies = capture.copies.get(running.next_copy..).unwrap_or_default();
            let (steps, count, bytes) = copy_steps(&dir, copies);
            running.next_copy += count;
            running.copied_bytes += bytes;
            self.metrics.compact_copied_bytes += bytes;
            work = steps;
        } else if indexed {
            let entries = std::mem::take(&mut capture.entries);
            let few = entries.len() <= HOLD_ENTRIES_MAX && writer.len() == 0;
            if few {
                capture.entries = entries;
                self.hold(now, index);
                return;
            }
            for entry in &entries {
                writer
                    .entry(entry, old)
                    .expect("its checksum was made here");
            }
        }
        if writer.len() > 0 {
            let (offset, bytes) = writer.take();
            work.push(WriteStep::Write {
                path: dir.info_part(running.generation),
                offset,
                pieces: vec![Piece::Bytes(bytes)],
            });
        }
        self.write_part(now, work);
    }

    /// Writes and syncs a piece of the part files; the next may follow when it is paid for.
    fn write_part(&mut self, now: Now, steps: Vec<WriteStep>) {
        let bytes: u64 = steps.iter().map(super::super::writes::step_bytes).sum();
        self.purse
            .spend(now, bytes, self.config.compact_bytes_per_s);
        let work = Work {
            steps,
            sync: WorkSync::Each,
        };
        self.compaction_op(Op::Materialise(vec![work]));
    }
}

/// Gives each message that moves its place; and what the new generation's files hold.
fn places(
    contents: &Contents,
    (kept, victims): (&BTreeSet<u32>, &BTreeSet<u32>),
    layout: &mut Layout,
) -> Result<(Space, Vec<Copy>), BadInfo> {
    let mut space = Space::default();
    let mut copies = Vec::new();
    for message in &contents.messages {
        if !is_written(message, kept) {
            continue;
        }
        let read = contents.values(message);
        let (mut msg, _) = read.map_err(|reason| BadInfo { offset: 0, reason })?;
        if victims.contains(&message.segment) {
            let folder = contents.folders.get(&msg.mailbox);
            let (segment, offset) = layout.place(msg.mailbox, msg.segment_bytes());
            copies.push(Copy {
                from_segment: msg.segment,
                from_offset: msg.offset,
                skip: msg.skip,
                line: StoreLine {
                    mailbox: msg.mailbox,
                    uidvalidity: folder.map_or(0, |folder| folder.uidvalidity.value()),
                    uid: msg.uid.value(),
                    guid: msg.guid,
                    internal_date: msg.internal_date,
                    stored_len: msg.stored_len,
                    stored_crc: msg.stored_crc,
                    format_flags: line_flags(msg.format_flags),
                },
                segment,
                offset,
            });
            (msg.segment, msg.offset) = (segment, offset);
        }
        space.stored(&msg);
        if message.life == Life::Gone {
            space.expunged(&msg, 0);
        }
    }
    Ok((space, copies))
}

/// What becomes of the segments.
struct Split {
    /// Those that live on.
    kept: BTreeSet<u32>,
    /// The victims, and what else has nothing alive in it: segments of large messages that are
    /// gone, sealed segments that emptied, what earlier generations left behind. Ascending.
    retired: Vec<u32>,
}

/// `active` are being appended to; of the rest only what is `there`, or will be, has to go. A record in
/// flight may be mail for a segment that is not `sealed`: it lives on.
fn split(
    contents: &Contents,
    victims: &BTreeSet<u32>,
    active: BTreeSet<u32>,
    (sealed, there): (&BTreeSet<u32>, &BTreeSet<u32>),
) -> Split {
    let mut kept = active;
    let mut known: BTreeSet<u32> = contents.retired.clone();
    for message in &contents.messages {
        known.insert(message.segment);
        let segment = message.segment;
        let lives = message.life == Life::Alive
            || (message.own_file == OwnFile::No
                && !sealed.contains(&segment)
                && there.contains(&segment)
                && contents.is_there(message.mailbox));
        if lives {
            kept.insert(segment);
        }
    }
    kept.retain(|segment| !victims.contains(segment));
    let dead = known
        .intersection(there)
        .filter(|segment| !kept.contains(segment));
    let retired: BTreeSet<u32> = dead.chain(victims).copied().collect();
    Split {
        kept,
        retired: retired.into_iter().collect(),
    }
}

/// Whether the new generation has a run of a message: of one that is gone, where its bytes lie in a
/// segment that lives on and must stay explained.
fn is_written(message: &Message, kept: &BTreeSet<u32>) -> bool {
    message.life == Life::Alive
        || (message.own_file == OwnFile::No && kept.contains(&message.segment))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Filled {
    /// More is to come.
    Piece,
    Whole,
}

/// Writes runs of messages, from the given places on, until there is a piece.
fn fill(
    contents: &Contents,
    capture: &Capture,
    writer: &mut Writer,
    (kept, victims): (&BTreeSet<u32>, &BTreeSet<u32>),
    (next_message, next_run): (&mut usize, &mut usize),
) -> Filled {
    let piece = usize::try_from(PIECE_BYTES).expect("1 MiB");
    while writer.len() < piece {
        let Some(message) = contents.messages.get(*next_message) else {
            for gone in &contents.gone {
                writer.gone(gone);
            }
            return Filled::Whole;
        };
        *next_message += 1;
        if !is_written(message, kept) {
            continue;
        }
        let (mut msg, mut cache) = contents.values(message).expect("it was read before");
        if victims.contains(&message.segment)
            && let Some(copy) = capture.copies.get(*next_run)
        {
            assert_eq!(
                (copy.line.mailbox, copy.line.uid),
                (msg.mailbox, msg.uid.value()),
                "copies are in the order of the messages"
            );
            *next_run += 1;
            (msg.segment, msg.offset) = (copy.segment, copy.offset);
        }
        if message.life == Life::Gone {
            cache = Bytes::new();
        }
        writer.message(&msg, &cache);
    }
    Filled::Piece
}

/// One piece of copying: steps, how many copies, how many bytes. Neighbours share a step.
fn copy_steps(dir: &RelPath, copies: &[Copy]) -> (Vec<WriteStep>, usize, u64) {
    let mut steps: Vec<WriteStep> = Vec::new();
    let mut open: Option<(u32, u64, Vec<Piece>)> = None;
    let (mut count, mut bytes) = (0, 0);
    let close = |open: Option<(u32, u64, Vec<Piece>)>, steps: &mut Vec<WriteStep>| {
        if let Some((segment, offset, pieces)) = open {
            let path = dir.segment_part(segment);
            steps.push(WriteStep::Write {
                path,
                offset,
                pieces,
            });
        }
    };
    for copy in copies {
        if bytes >= PIECE_BYTES {
            break;
        }
        let piece = Piece::Message {
            path: dir.segment(copy.from_segment),
            offset: copy.from_offset,
            skip: copy.skip,
            line: copy.line,
        };
        count += 1;
        bytes += piece.len();
        match &mut open {
            Some((segment, _, pieces)) if *segment == copy.segment => pieces.push(piece),
            _ => {
                close(open.take(), &mut steps);
                open = Some((copy.segment, copy.offset, vec![piece]));
            }
        }
    }
    close(open, &mut steps);
    (steps, count, bytes)
}
