//! Log records: 64 bytes of header and a payload, padded with zeros to 8. They have no checksum of
//! their own: the frame's `payload_crc` covers them, and `chain` ties a partition's together.

mod chain;
mod decode;
mod encode;
mod lone;
mod replica;
mod swap;

pub use chain::{chain, make_replica};
pub use decode::{Body, Deliver, DeliverFile, Payload, Record, Records};
pub use encode::{
    BodyParts, DeliverParts, Encoder, Placed, Tally, body_len, deliver_file_len, deliver_len,
    name_len, runs_len,
};
pub(crate) use lone::{blank, detach};
pub use replica::{Local, heads, localise};
pub use swap::{InfoSwap, SwapParts, swap_len};

use ringpost_netproto::id::{Epoch, MailboxId, Modseq, PartitionId, UserHash};
use zerocopy::little_endian::{U16, U32, U64};

use super::Layout;

/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 64;

/// Where the stored message begins in a BODY record without a header cache.
pub const BODY_STORED_AT: usize = RECORD_HEADER_BYTES + size_of::<RawBody>();

/// Where the MSG run, and behind it the prefix, begins in a DELIVER record.
pub const DELIVER_FIXED_AT: usize = RECORD_HEADER_BYTES + core::mem::offset_of!(RawDeliver, fixed);

/// Where the MSG run, and behind it the header cache, begins in a `DELIVER_FILE` record.
pub const DELIVER_FILE_FIXED_AT: usize =
    RECORD_HEADER_BYTES + core::mem::offset_of!(RawDeliverFile, fixed);

/// What a record is. Numbers that are missing here belong to later versions (FORMAT.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordType {
    /// A message and its header cache, for the DELIVERs behind it.
    Body,
    /// A message for one user.
    Deliver,
    /// A large message for one user, in a file of its own.
    DeliverFile,
    /// Flags of messages.
    Flags,
    /// Messages are gone.
    Expunge,
    /// A mailbox.
    Mailbox,
    /// A keyword.
    Keyword,
    /// A user's first record.
    UserCreate,
    /// A user has a new generation of files: the commit point of a compaction.
    InfoSwap,
    /// A new primary's barrier: its epoch begins.
    Epoch,
    /// What follows a place in a partition is void.
    Truncate,
    /// Nothing.
    Noop,
    /// Lower epochs of a partition are refused from here on.
    Promise,
}

impl RecordType {
    /// Bit 7 of an unknown type: may be skipped.
    const OPTIONAL: u8 = 0x80;

    const ALL: [Self; 13] = [
        Self::Body,
        Self::Deliver,
        Self::DeliverFile,
        Self::Flags,
        Self::Expunge,
        Self::Mailbox,
        Self::Keyword,
        Self::UserCreate,
        Self::InfoSwap,
        Self::Epoch,
        Self::Truncate,
        Self::Noop,
        Self::Promise,
    ];

    /// As it stands on disk.
    pub const fn value(self) -> u8 {
        match self {
            Self::Body => 1,
            Self::Deliver => 2,
            Self::DeliverFile => 3,
            Self::Flags => 4,
            Self::Expunge => 5,
            Self::Mailbox => 6,
            Self::Keyword => 7,
            Self::UserCreate => 8,
            Self::InfoSwap => 10,
            Self::Epoch => 13,
            Self::Truncate => 14,
            Self::Noop => 15,
            Self::Promise => 16,
        }
    }

    fn from_value(value: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.value() == value)
    }

    /// Whether it has a pseq and a place in the partition's chain: what has not is local to a node.
    pub const fn is_replicated(self) -> bool {
        !matches!(
            self,
            Self::Body | Self::InfoSwap | Self::Truncate | Self::Noop | Self::Promise
        )
    }

    /// Whether it belongs to a partition and to none of its users.
    pub const fn is_of_partition(self) -> bool {
        matches!(self, Self::Epoch | Self::Truncate | Self::Promise)
    }
}

/// Whether a group ends with a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// More records of this group follow in the frame.
    GoesOn,
    /// Its last record.
    Ends,
}

/// Flag: the group goes on.
const GOES_ON: u8 = 1;

on_disk! {
    struct RawHeader, "record header", 64 {
        0 rec_len: U32,
        4 kind: u8,
        5 flags: u8,
        6 partition: U16,
        8 user_hash: U64,
        16 ordinal: U32,
        20 mailbox: U32,
        24 modseq: U64,
        32 uid: U32,
        36 generation: U32,
        40 slot: U32,
        44 body_crc: U32,
        48 pseq: U64,
        56 epoch: U32,
        60 chain: U32,
    }
}

on_disk! {
    struct RawBody, "BODY payload", 8 {
        0 stored_len: U32,
        4 cache_slots: u8,
        5 reserved: [u8; 3],
    }
}

on_disk! {
    struct RawDeliver, "DELIVER payload", 152 {
        0 offset: U64,
        8 segment: U32,
        12 distance: U32,
        16 prefix_len: U16,
        18 cache_slots: u8,
        19 reserved: [u8; 5],
        24 fixed: [u8; 128],
    }
}

on_disk! {
    struct RawDeliverFile, "DELIVER_FILE payload", 136 {
        0 segment: U32,
        4 reserved: [u8; 4],
        8 fixed: [u8; 128],
    }
}

const _: () = assert!(size_of::<RawHeader>() == RECORD_HEADER_BYTES);

pub(super) const HEADER_LAYOUT: Layout = RawHeader::LAYOUT;
pub(super) const BODY_LAYOUT: Layout = RawBody::LAYOUT;
pub(super) const DELIVER_LAYOUT: Layout = RawDeliver::LAYOUT;
pub(super) const DELIVER_FILE_LAYOUT: Layout = RawDeliverFile::LAYOUT;
pub(super) use swap::LAYOUT as SWAP_LAYOUT;

/// The header of a record, all but its length and type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    /// Whether the group goes on.
    pub group: Group,
    /// The user's partition; 0 in BODY.
    pub partition: PartitionId,
    /// Whose; 0 in BODY.
    pub user: UserHash,
    /// Tells users with equal hashes apart.
    pub ordinal: u32,
    /// Which mailbox; 0 if none.
    pub mailbox: MailboxId,
    /// Of the group; 0 in BODY.
    pub modseq: Modseq,
    /// Of the message, else 0.
    pub uid: u32,
    /// Of the info file that `slot` is in.
    pub generation: u32,
    /// Where its runs go in the info file; 0 if it has none.
    pub slot: u32,
    /// CRC of the stored message (BODY, DELIVER, `DELIVER_FILE`), else 0.
    pub body_crc: u32,
    /// Contiguous per partition; 0 in BODY, `INFO_SWAP` and NOOP.
    pub pseq: u64,
    /// Of the partition's primary.
    pub epoch: Epoch,
    /// On disk: the chain up to and with this record. Given to an encoder: the chain of the
    /// partition *before* it. 0 in BODY, `INFO_SWAP` and NOOP.
    pub chain: u32,
}

impl Head {
    /// Of a BODY or NOOP: no user, no place in a chain.
    pub const fn unowned(group: Group, body_crc: u32) -> Self {
        Self {
            group,
            partition: PartitionId::new(0),
            user: UserHash::new(0),
            ordinal: 0,
            mailbox: MailboxId::new(0),
            modseq: Modseq::new(0),
            uid: 0,
            generation: 0,
            slot: 0,
            body_crc,
            pseq: 0,
            epoch: Epoch::new(0),
            chain: 0,
        }
    }

    /// Of a record that belongs to a partition as a whole: EPOCH, TRUNCATE, PROMISE.
    pub const fn of_partition(partition: PartitionId, epoch: Epoch, pseq: u64, chain: u32) -> Self {
        Self {
            partition,
            pseq,
            epoch,
            chain,
            ..Self::unowned(Group::Ends, 0)
        }
    }

    fn raw(&self, kind: RecordType, rec_len: u32) -> RawHeader {
        RawHeader {
            rec_len: U32::new(rec_len),
            kind: kind.value(),
            flags: match self.group {
                Group::GoesOn => GOES_ON,
                Group::Ends => 0,
            },
            partition: U16::new(self.partition.value()),
            user_hash: U64::new(self.user.value()),
            ordinal: U32::new(self.ordinal),
            mailbox: U32::new(self.mailbox.value()),
            modseq: U64::new(self.modseq.value()),
            uid: U32::new(self.uid),
            generation: U32::new(self.generation),
            slot: U32::new(self.slot),
            body_crc: U32::new(self.body_crc),
            pseq: U64::new(self.pseq),
            epoch: U32::new(self.epoch.value()),
            chain: U32::new(0),
        }
    }

    fn from_raw(raw: &RawHeader) -> Self {
        Self {
            group: if raw.flags & GOES_ON == 0 {
                Group::Ends
            } else {
                Group::GoesOn
            },
            partition: PartitionId::new(raw.partition.get()),
            user: UserHash::new(raw.user_hash.get()),
            ordinal: raw.ordinal.get(),
            mailbox: MailboxId::new(raw.mailbox.get()),
            modseq: Modseq::new(raw.modseq.get()),
            uid: raw.uid.get(),
            generation: raw.generation.get(),
            slot: raw.slot.get(),
            body_crc: raw.body_crc.get(),
            pseq: raw.pseq.get(),
            epoch: Epoch::new(raw.epoch.get()),
            chain: raw.chain.get(),
        }
    }
}
