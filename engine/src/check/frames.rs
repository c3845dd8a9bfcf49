//! The walk over a log's frames from the checkpoint to the end, over damage and gaps (storage.md 6.1,
//! 6.2). Where the engine refuses to go on, this looks for the next frame that is whole and says what
//! was passed over; `flushed_lsn` in later frames tells damage from the torn end.

use super::files::{
    FileState, HIDDEN, LogFile, Proof, behind_gap, header_at, hidden, is_vouched_for, latest,
    missed,
};
use super::log::LogSurvey;
use super::records::Walk;
use super::salvage::{Damaged, MEND_BYTES_MAX};
use super::tree::Window;
use super::{Checker, Severity};
use crate::error::{CorruptReason, IoError};
use crate::format::frame::{FRAME_HEADER_BYTES, FrameError, FrameHeader};
use crate::format::index;
use crate::format::log_file::LogFileHeader;
use crate::format::superblock::Shutdown;
use crate::io::RelPath;
use crate::limits::BLOCK_BYTES;
use crate::position::Lsn;

/// What is at a position instead of a frame.
enum Stop {
    Frame(FrameError),
    Io(IoError),
}

impl From<IoError> for Stop {
    fn from(error: IoError) -> Self {
        Self::Io(error)
    }
}

/// A file of the chain, and what its header says or its frames prove.
pub(super) type Link = (usize, LogFileHeader);

/// What the walk needs to find its next file.
struct Chain<'a> {
    files: &'a [LogFile],
    /// Of some armed file, or of none: the log's identity.
    like: LogFileHeader,
}

impl Checker<'_> {
    /// Walks over the frames from the checkpoint on, and leaves in `survey` where the log ends.
    pub(super) fn frames(&mut self, survey: &mut LogSurvey, walk: &mut Walk<'_>) {
        let mut previous = Some(survey.superblock.previous_crc).filter(|_| !survey.made_up);
        self.all_frames(survey, walk, &mut previous);
        survey.previous_crc = previous.unwrap_or(0);
    }

    fn all_frames(
        &mut self,
        survey: &mut LogSurvey,
        walk: &mut Walk<'_>,
        previous: &mut Option<u32>,
    ) {
        let files = survey.files.clone();
        let chain = Chain {
            files: &files,
            like: survey.any_header(),
        };
        let mut current = self.first(survey, &chain, previous);
        while let Some((place, header)) = current {
            let Some(file) = files.get(place) else { return };
            let next = latest(&files, |other, _| {
                other.previous_salt == header.salt && other.sequence > header.sequence
            });
            let limit = next.map_or(file.end(&header), |(_, next)| next.start_lsn);
            let from = survey.end;
            survey.headless = header.sequence == HIDDEN;
            let here = (file, &header, place);
            let walked = self.file(survey, walk, (&chain, limit), here, previous);
            current = match (walked, next) {
                (Walked::Over(found), _) => Some(found),
                (Walked::On, Some(next)) => Some(next),
                // Nothing was read of a file that was looked for: there is no other.
                (Walked::End, _) if survey.end == from && survey.headless => {
                    self.behind(survey, &chain, &header, previous)
                }
                _ => self.onward(survey, &chain, (place, &header, walked), previous),
            };
        }
    }

    /// The file in which the walk begins; none if there is nothing to read.
    fn first(
        &mut self,
        survey: &mut LogSurvey,
        chain: &Chain<'_>,
        previous: &mut Option<u32>,
    ) -> Option<Link> {
        let pos = survey.end;
        let files = chain.files;
        let holds = latest(files, |header, file| {
            header.start_lsn <= pos && pos < file.end(header)
        });
        if holds.is_some() {
            return holds;
        }
        if let Some(found) = self.hidden(chain, (pos, *previous), Proof::Header) {
            return Some(found);
        }
        // The first header of a log may be torn: with no frame anywhere there is nothing to read.
        let blank = pos == Lsn::new(0)
            && files
                .iter()
                .all(|file| matches!(file.state, FileState::Blank | FileState::Damaged))
            && is_vouched_for(self.tree, files, None, pos) == Ok(false);
        let full = latest(files, |header, file| file.end(header) == pos).is_some();
        let clean = survey.superblock.shutdown == Shutdown::Clean;
        let gap = behind_gap(self.tree, files, pos);
        if gap.is_none() && (blank || full || clean) {
            return None;
        }
        let path = RelPath::superblock(survey.log_id);
        let what = "checkpoint_lsn and the log files: none holds that position";
        self.damage(&path, 72, CorruptReason::Disagree(what));
        let (place, header) = gap?;
        survey.end = header.start_lsn;
        *previous = None;
        Some((place, header))
    }

    /// Where the log goes on behind its last file that was read, if anything says that it does.
    fn onward(
        &mut self,
        survey: &mut LogSurvey,
        chain: &Chain<'_>,
        (place, header, walked): (usize, &LogFileHeader, Walked),
        previous: &mut Option<u32>,
    ) -> Option<Link> {
        let pos = survey.end;
        if missed(chain.files, header, pos).is_none() {
            if walked == Walked::End {
                return self.hidden(chain, (pos, *previous), Proof::Frame);
            }
            match is_vouched_for(self.tree, chain.files, Some(place), pos) {
                Ok(true) => {}
                Ok(false) => return self.hidden(chain, (pos, *previous), Proof::Frame),
                Err(error) => {
                    self.finding(Severity::Damage, error.corrupt());
                    return None;
                }
            }
        }
        if let Some(found) = self.hidden(chain, (pos, *previous), Proof::Header) {
            return Some(found);
        }
        let path = RelPath::log_dir(survey.log_id);
        let reason = CorruptReason::Disagree("a log file is missing, or its header and frames are");
        self.damage(&path, 0, reason);
        self.behind(survey, chain, header, previous)
    }

    /// The file behind a gap. The log ends behind the gap if none has frames.
    fn behind(
        &mut self,
        survey: &mut LogSurvey,
        chain: &Chain<'_>,
        header: &LogFileHeader,
        previous: &mut Option<u32>,
    ) -> Option<Link> {
        let pos = survey.end;
        let found = behind_gap(self.tree, chain.files, pos);
        let found_at = found.map(|(_, found)| found.start_lsn);
        let goes_on = found_at.or_else(|| missed(chain.files, header, pos))?;
        survey.gaps.push((pos, goes_on));
        survey.end = goes_on;
        *previous = None;
        found
    }

    /// A file whose header is damaged and whose frames are needed.
    fn hidden(&mut self, chain: &Chain<'_>, at: (Lsn, Option<u32>), proof: Proof) -> Option<Link> {
        let found = hidden(self.tree, chain.files, &chain.like, at, proof)?;
        let file = chain.files.get(found.0)?;
        let what = "its frames and its header, which is damaged";
        self.damage(&file.path, 0, CorruptReason::Disagree(what));
        Some(found)
    }

    /// The frames of one file up to `limit`.
    fn file(
        &mut self,
        survey: &mut LogSurvey,
        walk: &mut Walk<'_>,
        (chain, limit): (&Chain<'_>, Lsn),
        (file, header, place): (&LogFile, &LogFileHeader, usize),
        previous: &mut Option<u32>,
    ) -> Walked {
        let mut window = Window::new(self.tree, &file.path);
        while survey.end < limit {
            let pos = survey.end;
            let offset = header.offset_of(pos).expect("the chain ascends");
            let reason = match read_frame(&mut window, header, (pos, *previous), offset) {
                Ok((frame, payload)) => {
                    self.records(walk, (file, header), &frame, (offset, &payload));
                    survey.end = frame.end();
                    *previous = Some(frame.header_crc);
                    continue;
                }
                Err(Stop::Io(error)) => error.corrupt().reason,
                Err(Stop::Frame(error)) => {
                    match is_vouched_for(self.tree, &survey.files, Some(place), pos) {
                        Ok(true) => error.reason(),
                        Ok(false) => {
                            self.log_end(survey, file, offset, error);
                            return Walked::End;
                        }
                        Err(error) => error.corrupt().reason,
                    }
                }
            };
            // The file may have been left here for one that lost its header.
            if !survey.headless
                && let Some(found) = self.hidden(chain, (pos, *previous), Proof::Header)
            {
                return Walked::Over(found);
            }
            self.damage(&file.path, offset, reason.clone());
            let whole = header_at(&mut window, offset)
                .filter(|frame| frame.salt == header.salt && frame.lsn == pos);
            let next = whole.map_or_else(
                || next_frame(&mut window, header, (pos, limit)),
                |frame| frame.end().min(limit),
            );
            let follower = header.offset_of(next).filter(|_| next < limit);
            let follower = follower.and_then(|offset| header_at(&mut window, offset));
            let damaged = Damaged {
                file,
                header,
                offset,
                lsn: pos,
                end: next,
                whole,
                previous: *previous,
                follower_crc: follower.map(|frame| frame.previous_crc),
                reason,
            };
            (survey.end, *previous) = self.salvage(survey, walk, &damaged);
        }
        Walked::On
    }

    /// The log ends here; what is there is unused or was being written.
    fn log_end(&mut self, survey: &mut LogSurvey, file: &LogFile, offset: u64, error: FrameError) {
        let unused = matches!(error, FrameError::NotAFrame | FrameError::OtherSalt);
        if !unused {
            self.found(Severity::Expected, &file.path, offset, error.reason());
        }
        survey.torn = !unused;
    }
}

/// Whether the walk goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Walked {
    /// Up to its limit.
    On,
    /// To the end of the log.
    End,
    /// To where the log goes over to a file that lost its header.
    Over(Link),
}

fn read_frame(
    window: &mut Window<'_>,
    header: &LogFileHeader,
    (pos, previous): (Lsn, Option<u32>),
    offset: u64,
) -> Result<(FrameHeader, Vec<u8>), Stop> {
    let bytes = window.at(offset, FRAME_HEADER_BYTES)?;
    let previous = previous.or_else(|| FrameHeader::open(bytes).ok().map(|f| f.previous_crc));
    let frame = FrameHeader::open_at(bytes, header.salt, pos, previous.unwrap_or(0))
        .map_err(Stop::Frame)?;
    // `open_at` bounded the length by that of the largest frame.
    let bytes = window.at(offset, FRAME_HEADER_BYTES + index(frame.payload_len))?;
    let payload = frame.payload(bytes).map_err(Stop::Frame)?;
    Ok((frame, payload.to_vec()))
}

/// Where behind `pos` the next whole frame header of this file is; `limit` if there is none.
fn next_frame(window: &mut Window<'_>, header: &LogFileHeader, (pos, limit): (Lsn, Lsn)) -> Lsn {
    let mut at = pos.after(BLOCK_BYTES);
    while at < limit {
        let offset = header.offset_of(at).expect("behind the file's start");
        let found = header_at(window, offset);
        if found.is_some_and(|frame| frame.salt == header.salt && frame.lsn == at) {
            return at;
        }
        at = at.after(BLOCK_BYTES);
    }
    limit
}

/// Bytes of a damaged stretch of the log; blocks that the device does not give are zeros.
pub(super) fn read_damaged(checker: &Checker<'_>, damaged: &Damaged<'_>) -> Vec<u8> {
    let bytes = damaged.end.value() - damaged.lsn.value();
    let len = usize::try_from(bytes)
        .unwrap_or(MEND_BYTES_MAX)
        .min(MEND_BYTES_MAX);
    let path = &damaged.file.path;
    if let Ok(bytes) = checker.tree.read(path, damaged.offset, len) {
        return bytes;
    }
    let block = usize::try_from(BLOCK_BYTES).expect("4096");
    let mut out = Vec::new();
    let mut offset = damaged.offset;
    while out.len() < len && offset < damaged.file.bytes {
        let read = checker.tree.read(path, offset, block);
        out.extend(read.unwrap_or_else(|_| vec![0; block]));
        offset += BLOCK_BYTES;
    }
    out.truncate(len);
    out
}
