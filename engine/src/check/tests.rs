//! Planted damage: each file kind, each byte class. A sound store with a crash's usual remains
//! gives no finding above `Expected`.

mod store;

use ringpost_netproto::id::{MailboxId, PartitionId, Uid};

use super::{Report, Severity, check};
use crate::error::CorruptReason;
use crate::format::dedupe::DEDUPE_HEADER_BYTES;
use crate::format::superblock::SUPERBLOCK_BYTES;
use crate::io::RelPath;
use store::{CHECKPOINT, LOG_FILE_BYTES, MESSAGES, MemTree, sound, stored, superblock, user_dir};

fn run(tree: &MemTree) -> Report {
    check(tree, &mut |_| {})
}

/// The sound store after a change to one file.
fn with(path: &RelPath, change: impl FnOnce(&mut Vec<u8>)) -> MemTree {
    let mut tree = sound();
    change(tree.files.get_mut(path.as_str()).unwrap());
    tree
}

fn without(path: &RelPath) -> MemTree {
    let mut tree = sound();
    tree.files.remove(path.as_str()).unwrap();
    tree
}

fn log_path() -> RelPath {
    RelPath::log_file(0, 1)
}

/// The only finding, which names `path`.
fn only(report: &Report, path: &RelPath) -> (Severity, u64, CorruptReason) {
    let [finding] = &report.findings[..] else {
        panic!("{:?}", report.findings);
    };
    let corrupt = finding.corrupt.clone();
    assert_eq!(corrupt.file, path.to_string());
    (finding.severity, corrupt.offset, corrupt.reason)
}

#[test]
fn a_sound_store_has_no_findings() {
    let mut steps = Vec::new();
    let report = check(&sound(), &mut |progress| steps.push(progress));
    assert_eq!(report.findings, []);
    assert!(report.is_sound());
    assert_eq!((report.users, report.messages), (2, MESSAGES));
    assert_eq!(
        report.bytes,
        MESSAGES * u64::try_from(stored(1).len()).unwrap()
    );
    assert_eq!(steps.len(), 5, "one log, four partitions");
    assert_eq!(steps.last().map(|last| (last.done, last.of)), Some((5, 5)));
}

/// Offsets to flip: each byte that is not zero, and some of the zeros.
fn places(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let zeros = |at: usize| at.is_multiple_of(251);
    (0..bytes.len()).filter(move |at| bytes[*at] != 0 || zeros(*at))
}

/// Whether nobody reads a byte of the log: below the checkpoint, behind a frame's records, behind
/// the last frame.
fn is_unread(bytes: &[u8], at: usize) -> bool {
    let checkpoint = 4096 + usize::try_from(CHECKPOINT).unwrap();
    if !(4096..LOG_FILE_BYTES).contains(&at) {
        return false;
    }
    if at < checkpoint {
        return true;
    }
    // Every frame of the sound store is one block.
    let frame = at / 4096 * 4096;
    if at - frame < 4 && frame == checkpoint + 3 * 4096 {
        // Without its magic value the last frame is none.
        return true;
    }
    let len = u32::from_le_bytes(bytes[frame + 44..frame + 48].try_into().unwrap());
    let header = if bytes[frame..].starts_with(b"RPF1") {
        80
    } else {
        0
    };
    at - frame >= header + usize::try_from(len).unwrap()
}

#[test]
fn each_flipped_byte_of_each_file_is_found() {
    let tree = sound();
    for (path, bytes) in &tree.files {
        let in_log = *path == log_path().to_string();
        let unarmed = *path == RelPath::log_file(0, 2).to_string();
        for at in places(bytes) {
            let unread = (in_log && is_unread(bytes, at)) || (unarmed && at >= 4096);
            // A message's sender is written for people; nothing is compared with it.
            let mail = path.starts_with("p/") && bytes.starts_with(b"From ");
            if mail && is_sender(bytes, at) {
                continue;
            }
            let mut bad = tree.clone();
            bad.files.get_mut(path).unwrap()[at] ^= 0x41;
            let report = run(&bad);
            assert_eq!(
                report.findings.is_empty(),
                unread,
                "{path} at {at}: {report:?}"
            );
            assert!(
                unread || report.worst >= Some(least(path, at)),
                "{path} at {at}: {report:?}"
            );
        }
    }
}

/// Whether a byte of Bob's segment belongs to uid 2, which is expunged.
fn is_dead(at: usize) -> bool {
    let len = sound().files[user_dir("bob").segment(1).as_str()].len() / 3;
    (len..2 * len).contains(&at)
}

/// Whether a byte is in the sender of a `From_` line.
fn is_sender(bytes: &[u8], at: usize) -> bool {
    let before = bytes[..at]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |lf| lf + 1);
    let line = &bytes[before..];
    line.starts_with(b"From ") && (5.."From eve@example.test".len()).contains(&(at - before))
}

/// How bad a flipped byte must be called at least.
fn least(path: &str, at: usize) -> Severity {
    let noop = 4096 + usize::try_from(CHECKPOINT).unwrap() + 3 * 4096;
    if path.ends_with("/00000001.mbox") && is_dead(at) {
        Severity::Minor
    } else if path.ends_with("/super") || (path == log_path().as_str() && at >= noop) {
        // The other copy counts; nothing vouches for the last frame.
        Severity::Expected
    } else if path.ends_with("/dedupe") || path == RelPath::log_file(0, 2).as_str() {
        Severity::Minor
    } else {
        Severity::Damage
    }
}

#[test]
fn each_missing_file_is_found() {
    let unarmed = RelPath::log_file(0, 2).to_string();
    for path in sound().files.keys().filter(|path| **path != unarmed) {
        let mut tree = sound();
        tree.files.remove(path);
        let report = run(&tree);
        let least = if path.ends_with("/dedupe") {
            Severity::Minor
        } else {
            Severity::Damage
        };
        assert!(report.worst >= Some(least), "{path}: {report:?}");
    }
}

#[test]
fn each_cut_file_is_found() {
    for (path, bytes) in sound()
        .files
        .iter()
        .filter(|(path, _)| !path.starts_with("log/00/000"))
    {
        for len in [0, 1, 63, bytes.len() / 2, bytes.len() - 1] {
            let mut tree = sound();
            tree.files.get_mut(path).unwrap().truncate(len);
            let report = run(&tree);
            let copies = path.ends_with("/super") && len >= SUPERBLOCK_BYTES;
            assert!(
                copies || path.ends_with("/dedupe") || !report.is_sound(),
                "{path} {len}"
            );
            assert_ne!(report.findings, [], "{path} cut at {len}");
        }
    }
}

#[test]
fn bytes_behind_the_end_are_found() {
    let dir = user_dir("bob");
    let large = dir.large(3, MailboxId::INBOX, Uid::new(5));
    for path in [
        dir.segment(1),
        dir.info(1),
        dir.folders(),
        large,
        dir.segment_part(4),
    ] {
        let report = run(&with(&path, |bytes| bytes.extend_from_slice(&[b'x'; 1024])));
        assert_eq!(report.worst, Some(Severity::Damage), "{path}");
    }
}

#[test]
fn a_torn_tail_is_expected_and_damage_before_it_is_not() {
    let records = 4096 + usize::try_from(CHECKPOINT).unwrap();
    // Without the NOOP frame nothing vouches for the expunge in front of it.
    let noop = records + 3 * 4096;
    let torn = with(&log_path(), |bytes| {
        bytes[noop..noop + 4096].fill(0);
        bytes[noop - 4096 + 100] ^= 1;
    });
    let report = run(&torn);
    let (severity, offset, reason) = only(&report, &log_path());
    assert_eq!(
        (severity, reason),
        (Severity::Expected, CorruptReason::Checksum)
    );
    assert_eq!(offset, u64::try_from(noop - 4096).unwrap());
    assert_eq!(
        report.messages,
        MESSAGES + 1,
        "the expunge was not acknowledged"
    );
    // The frame before that is vouched for by it.
    let damaged = with(&log_path(), |bytes| bytes[noop - 2 * 4096 + 100] ^= 1);
    let findings = run(&damaged).findings;
    assert!(findings.iter().any(|finding| {
        finding.severity == Severity::Damage && finding.corrupt.file == log_path().to_string()
    }));
}

#[test]
fn a_whole_lost_end_of_the_log_is_its_end() {
    let records = 4096 + usize::try_from(CHECKPOINT).unwrap();
    let report = run(&with(&log_path(), |bytes| bytes[records..].fill(0)));
    // Only what the lost records explain is left: the part file, which was never promised.
    assert_eq!(report.findings, []);
    assert_eq!((report.users, report.messages), (1, 4));
}

#[test]
fn files_that_redo_writes_again_may_hold_anything_there() {
    let (info, segment) = (user_dir("bob").info(1), user_dir("bob").segment(1));
    for garbage in [0, 0xA5] {
        // Slots 21 to 25 and the sixth message are in the log.
        let mut tree = with(&info, |bytes| bytes.resize(26 * 64, garbage));
        tree.files
            .get_mut(segment.as_str())
            .unwrap()
            .extend_from_slice(&[garbage; 30]);
        assert_eq!(run(&tree).findings, []);
    }
    let tree = with(&info, |bytes| bytes.resize(27 * 64, 0));
    let (severity, offset, _) = only(&run(&tree), &info);
    assert_eq!((severity, offset), (Severity::Damage, 21 * 64));
}

#[test]
fn a_large_message_may_have_either_name_while_its_record_is_in_the_log() {
    let dir = user_dir("bob");
    let mut tree = sound();
    let bytes = tree.files.remove(dir.segment_part(4).as_str()).unwrap();
    assert!(!run(&tree).is_sound());
    tree.put(&dir.large(4, MailboxId::INBOX, Uid::new(7)), bytes);
    assert_eq!(run(&tree).findings, []);
}

#[test]
fn what_a_crash_leaves_is_no_damage() {
    let mut tree = sound();
    let dir = user_dir("bob");
    tree.put(&dir.segment_part(99), b"half a mess".to_vec());
    tree.put(&dir.folders().with_suffix(".new"), Vec::new());
    tree.put(&RelPath::stage(0, 1), b"half a mess".to_vec());
    let torn = superblock(3, 0).seal();
    let copies = tree.files.get_mut("log/00/super").unwrap();
    copies[..80].copy_from_slice(&torn[..80]);
    let report = run(&tree);
    assert_eq!(only(&report, &RelPath::superblock(0)).0, Severity::Expected);
    assert_eq!(report.messages, MESSAGES);
}

#[test]
fn a_name_that_nothing_explains_is_reported() {
    let dir = user_dir("bob");
    let odd = dir.entry("notes.txt").unwrap();
    let mut tree = sound();
    tree.put(&odd, Vec::new());
    assert_eq!(only(&run(&tree), &odd).0, Severity::Minor);
    let mut tree = sound();
    tree.put(&dir.segment(9), b"From x".to_vec());
    assert_eq!(only(&run(&tree), &dir.segment(9)).0, Severity::Damage);
    let mut tree = sound();
    let stranger = RelPath::partition_dir(PartitionId::new(0))
        .entry("stranger")
        .unwrap();
    tree.dirs.push(stranger.to_string());
    assert_eq!(only(&run(&tree), &stranger).0, Severity::Minor);
}

#[test]
fn files_of_another_user_or_log_are_not_taken() {
    let (bob, eve) = (user_dir("bob"), user_dir("eve"));
    let mut tree = sound();
    let info = tree.files.get(bob.info(1).as_str()).unwrap().clone();
    tree.put(&eve.info(1), info);
    assert!(!run(&tree).is_sound());
    let large = bob.large(3, MailboxId::INBOX, Uid::new(5));
    let mut tree = without(&large);
    let other = tree
        .files
        .get(bob.segment_part(4).as_str())
        .unwrap()
        .clone();
    tree.put(&large, other);
    let (severity, _, reason) = only(&run(&tree), &large);
    assert_eq!(severity, Severity::Damage);
    assert_eq!(
        reason,
        CorruptReason::Disagree("the store line and the index")
    );
}

#[test]
fn a_missing_partition_directory_is_damage() {
    let mut tree = sound();
    let empty = tree
        .dirs
        .iter()
        .position(|dir| !tree.files.keys().any(|path| path.starts_with(dir.as_str())));
    tree.dirs.remove(empty.unwrap());
    let report = run(&tree);
    assert_eq!(report.worst, Some(Severity::Damage));
    let reason = &report.findings[0].corrupt.reason;
    assert_eq!(
        *reason,
        CorruptReason::Unreadable {
            errno: libc::ENOENT
        }
    );
}

#[test]
fn a_lap_of_the_dedupe_ring_before_its_superblock_is_no_finding() {
    let path = RelPath::dedupe(0);
    let tree = with(&path, |bytes| {
        // Sequence 4 lies where 0 was.
        let entry = bytes[DEDUPE_HEADER_BYTES..DEDUPE_HEADER_BYTES + 48].to_vec();
        let read = crate::format::dedupe::DedupeEntry::open(&entry, 0).unwrap();
        bytes[DEDUPE_HEADER_BYTES..DEDUPE_HEADER_BYTES + 48].copy_from_slice(&read.seal(4));
    });
    assert_eq!(run(&tree).findings, []);
}
