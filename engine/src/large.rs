//! Messages with a segment of their own (storage.md 7).

use bytes::Bytes;
use ringpost_netproto::id::WallNs;

use crate::io::RelPath;
use crate::prepare::Summary;
use crate::request::StageId;

/// A large message in a synced stage file: `From_` line, store line, stored form, empty line. Shards
/// link it into the directories of its recipients; it is never written again.
#[derive(PartialEq, Eq, Debug)]
pub struct StagedBody {
    /// The shard's handle, for `StageDrop`.
    pub stage: StageId,
    /// The stage file.
    pub path: RelPath,
    /// What was counted.
    pub summary: Summary,
    /// The header cache, as in `PreparedBody`.
    pub cache: Bytes,
    /// Bytes of `From_` line and store line.
    pub prefix_len: u16,
    /// Date of the `From_` line.
    pub internal_date: WallNs,
}
