//! Planted bugs (storage.md 12.4): one at a time can be turned on, on one thread, in builds with the
//! feature `sim`. The simulator has to find each of them; a rig that does not proves nothing. Without
//! the feature `on` is a constant `false` and nothing of a bug is compiled.

#[cfg(feature = "sim")]
use std::cell::Cell;

/// Declares the bugs with their names, in the order of storage.md 12.4.
macro_rules! canaries {
    ($($(#[$doc:meta])+ $canary:ident = $name:literal,)+) => {
        /// A bug on purpose.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        #[non_exhaustive]
        #[cfg_attr(
            not(feature = "sim"),
            expect(dead_code, unreachable_pub, reason = "only asked for by name, never there")
        )]
        pub enum Canary {
            $($(#[$doc])+ $canary,)+
        }

        #[cfg(feature = "sim")]
        impl Canary {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$canary,)+];

            /// Whether it shows between two nodes only: `tests/copies` has to find it, not the
            /// simulator of one node.
            pub const fn needs_a_copy(self) -> bool {
                matches!(
                    self,
                    Self::CopyNotAwaited
                        | Self::UnconfirmedShown
                        | Self::LeadNotTakenBack
                        | Self::CutWithoutHold
                )
            }

            /// Lower case with hyphens, for command lines and reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$canary => $name,)+
                }
            }
        }
    };
}

canaries! {
    /// Answers go out when a frame was handed to the kernel.
    AckAtWritten = "ack-at-written",
    /// A frame on the medium counts for those before it too.
    AckOutOfOrder = "ack-out-of-order",
    /// Log writes complete without being durable.
    DsyncLeftOff = "dsync-left-off",
    /// The first part of a log write counts as all of it.
    ShortTakenAsWhole = "short-taken-as-whole",
    /// The superblock is written before the sync of the whole file system.
    SuperBeforeSync = "super-before-sync",
    /// Files of a checkpoint are written and not synced.
    FileSyncLeftOut = "file-sync-left-out",
    /// Each superblock is written over the newer copy.
    NewerSuperOverwritten = "newer-super-overwritten",
    /// Log files are free as soon as their checkpoint begins.
    RearmedEarly = "rearmed-early",
    /// After a restart the log goes on in the file in which it ended, and a frame need not name the one
    /// before it: either alone is harmless.
    TornFileReused = "torn-file-reused",
    /// Log files are read after a kill without waiting for what is still on its way into them.
    ReadBeforeSync = "read-before-sync",
    /// A log file keeps its salt when it is armed again.
    SaltKept = "salt-kept",
    /// What looks like the end of the log is believed to be.
    DamageTakenAsTorn = "damage-taken-as-torn",
    /// A torn end of the log is taken for damage.
    TornTakenAsDamage = "torn-taken-as-damage",
    /// A checkpoint says that it holds what was only handed to the kernel.
    CheckpointBeyondDurable = "checkpoint-beyond-durable",
    /// Records are written into a user's files before they are durable.
    WrittenBeyondDurable = "written-beyond-durable",
    /// A failed sync is tried again and believed.
    SyncRetried = "sync-retried",
    /// What found no room on the disk counts as written.
    DroppedOnFull = "dropped-on-full",
    /// A large message gets its final name before its record is durable.
    RenamedBeforeRecord = "renamed-before-record",
    /// The record of a large message is written before its bytes are synced.
    LoggedBeforeSync = "logged-before-sync",
    /// The directory of a large message is not synced before its record.
    DirSyncLeftOut = "dir-sync-left-out",
    /// After a load the next uid is the one behind the last message that is alive.
    UidnextFromLive = "uidnext-from-live",
    /// Readers see a message before it is durable.
    VisibleEarly = "visible-early",
    /// The body of a message and its delivery are in different frames.
    BodyApart = "body-apart",
    /// Delivery ids since the last checkpoint are forgotten at a restart.
    DedupeNotRefilled = "dedupe-not-refilled",
    /// A duplicate is answered while the first copy is not durable.
    DuplicateInFlight = "duplicate-in-flight",
    /// A refused delivery leaves its id.
    RefusedRemembered = "refused-remembered",
    /// Messages that only the log has count twice in a quota.
    QuotaCountedTwice = "quota-counted-twice",
    /// A file that the index does not name is removed when its user is loaded.
    UnreferencedDeleted = "unreferenced-deleted",
    /// Replay applies each record twice, and an index takes a message that it has: either alone is
    /// harmless.
    ReplayedTwice = "replayed-twice",
    /// The checksum of a run does not cover whose it is and where.
    SeedLeftOut = "seed-left-out",
    /// The index of a checkpoint is synced, the segments it points into are not.
    IndexAheadOfData = "index-ahead-of-data",
    /// A compaction's old files are unlinked before its record is durable.
    OldUnlinkedEarly = "old-unlinked-early",
    /// What was published last before a compaction's commit is not in its index.
    LastDeltaLeftOut = "last-delta-left-out",
    /// Records of the old generation are written into the new one after a compaction.
    OldEntriesRedone = "old-entries-redone",
    /// A checkpoint passes a compaction's record without its renames.
    SwapPassed = "swap-passed",
    /// A compaction's files get their names before its record is durable.
    PartRenamedEarly = "part-renamed-early",
    /// A compaction drops bytes that only the log has, for segments that live on.
    SwapDropsBytes = "swap-drops-bytes",
    /// Answers go out at this node's flush though a copy is asked.
    CopyNotAwaited = "copy-not-awaited",
    /// After a restart readers see what no copy confirmed.
    UnconfirmedShown = "unconfirmed-shown",
    /// Uids are given before what the peer has and this node lost is taken back.
    LeadNotTakenBack = "lead-not-taken-back",
    /// Records are cut off and their messages not held.
    CutWithoutHold = "cut-without-hold",
    /// A log buffer is filled again while the kernel still reads it.
    BufferReused = "buffer-reused",
    /// Another number of cores begins while logs hold records of the old one.
    LayoutUndrained = "layout-undrained",
    /// Delivery ids stay behind when the number of cores changes.
    IdsLeftBehind = "ids-left-behind",
    /// Files of users are compacted and unlinked while somebody copies them.
    FilesNotHeld = "files-not-held",
    /// Who copies is told an end of the log that is not the end.
    EndToldEarly = "end-told-early",
    /// A repair does not write what a compaction carried over and only the log has.
    CarriedNotOwed = "carried-not-owed",
    /// A repaired index has its expunges in front of the messages, where they take nothing away.
    ExpungesFirst = "expunges-first",
}

#[cfg(feature = "sim")]
thread_local! {
    static PLANTED: Cell<Option<Canary>> = const { Cell::new(None) };
}

/// Plants one bug on this thread, or takes it out again.
#[cfg(feature = "sim")]
pub fn plant(canary: Option<Canary>) {
    PLANTED.set(canary);
}

/// Whether this bug is planted.
#[cfg(feature = "sim")]
pub(crate) fn on(canary: Canary) -> bool {
    PLANTED.get() == Some(canary)
}

/// Whether this bug is planted: never.
#[cfg(not(feature = "sim"))]
pub(crate) const fn on(_canary: Canary) -> bool {
    false
}

#[cfg(all(test, feature = "sim"))]
mod tests {
    use super::*;

    #[test]
    fn one_bug_at_a_time_and_names_tell_them_apart() {
        assert!(!on(Canary::AckAtWritten));
        plant(Some(Canary::AckAtWritten));
        assert!(on(Canary::AckAtWritten) && !on(Canary::SaltKept));
        plant(None);
        assert!(!on(Canary::AckAtWritten));
        let names: std::collections::BTreeSet<_> = Canary::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Canary::ALL.len());
    }
}
