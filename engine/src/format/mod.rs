//! Bytes on disk: every structure once, as a little-endian zerocopy struct, with its checks.
//!
//! `engine/FORMAT.md` is the only prose about these bytes and a test compares it with [`LAYOUTS`].
//! Decoding never panics and allocates nothing by a length that was not checked. What is on disk is
//! believed only after magic, version, checksum and identity held; reserved bytes are written zero
//! and checked zero unless the file's minor version is newer.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::CorruptReason;

/// Declares a structure on disk: fields with their offsets, which are asserted, and its layout.
macro_rules! on_disk {
    (
        $(#[$doc:meta])*
        $vis:vis struct $name:ident, $title:literal, $size:literal {
            $($(#[$field_doc:meta])* $offset:literal $field:ident: $type:ty,)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout)]
        #[derive(zerocopy::Immutable, zerocopy::Unaligned)]
        #[repr(C)]
        $vis struct $name {
            $($(#[$field_doc])* $field: $type,)+
        }

        const _: () = assert!(size_of::<$name>() == $size);
        $(const _: () = assert!(core::mem::offset_of!($name, $field) == $offset);)+

        impl $name {
            /// The fields, as `FORMAT.md` must list them.
            pub(super) const LAYOUT: $crate::format::Layout = $crate::format::Layout {
                title: $title,
                size: $size,
                fields: &[$($crate::format::Field {
                    name: stringify!($field),
                    offset: $offset,
                    size: size_of::<$type>(),
                }),+],
            };
        }
    };
}

pub mod crc;
pub mod dedupe;
pub mod folders;
pub mod frame;
pub mod info;
pub mod log_file;
pub mod parts;
pub mod record;
pub mod scrub;
pub mod store_file;
pub mod store_line;
pub mod superblock;
mod text;

/// Another major version is refused.
pub const MAJOR: u8 = 1;

/// Files of a newer minor version are read, and their unknown parts kept.
pub const MINOR: u8 = 0;

/// Incompatible features this program knows: none yet. Any other bit is refused.
pub const INCOMPAT_KNOWN: u32 = 0;

/// Bytes of the headers of superblock, log file, dedupe and partition state.
pub const BLOCK_HEADER_BYTES: usize = 4096;

/// One structure as the compiler lays it out.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Its title in `FORMAT.md`.
    pub title: &'static str,
    /// Bytes.
    pub size: usize,
    /// In order, without gaps.
    pub fields: &'static [Field],
}

/// One field of a [`Layout`].
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in code and in `FORMAT.md`.
    pub name: &'static str,
    /// Bytes from the structure's start.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
}

/// All structures with an offset table in `FORMAT.md`.
pub const LAYOUTS: &[Layout] = &[
    FileStart::LAYOUT,
    superblock::LAYOUT,
    log_file::LAYOUT,
    frame::LAYOUT,
    record::HEADER_LAYOUT,
    record::BODY_LAYOUT,
    record::DELIVER_LAYOUT,
    record::DELIVER_FILE_LAYOUT,
    record::SWAP_LAYOUT,
    info::HEADER_LAYOUT,
    info::MSG_LAYOUT,
    info::CHANGE_LAYOUT,
    info::MAILBOX_LAYOUT,
    info::KEYWORD_LAYOUT,
    info::RETIRE_LAYOUT,
    parts::HEADER_LAYOUT,
    parts::ENTRY_LAYOUT,
    parts::EPOCH_LAYOUT,
    dedupe::HEADER_LAYOUT,
    dedupe::ENTRY_LAYOUT,
];

on_disk! {
    /// How every file header starts. `crc` covers from byte 12 to the end of the header.
    struct FileStart, "file start", 24 {
        0 magic: [u8; 8],
        8 crc: U32,
        12 major: u8,
        13 minor: u8,
        14 header_len: U16,
        16 incompat: U32,
        20 compat: U32,
    }
}

/// Positions and sequence numbers of a log are at most this, so that sums of what a file claims do not
/// overflow. At 10 GB a second a log gets there after 14 years.
pub(crate) const COUNTER_MAX: u64 = 1 << 62;

/// Where the checksum of a file header begins to cover.
const COVERED_FROM: usize = 12;

/// Who wrote a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version {
    /// Minor version; the major is ours, else nothing was opened.
    pub minor: u8,
    /// Incompatible features in use, all known.
    pub incompat: u32,
    /// Compatible features in use, perhaps unknown; kept set.
    pub compat: u32,
}

impl Version {
    /// What this program writes.
    pub const OURS: Self = Self {
        minor: MINOR,
        incompat: 0,
        compat: 0,
    };

    /// Whether reserved bytes of such a file must be zero.
    pub const fn reserved(self) -> Reserved {
        if self.minor > MINOR {
            Reserved::Unknown
        } else {
            Reserved::Zero
        }
    }
}

/// What is known of reserved bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reserved {
    /// They must be zero.
    Zero,
    /// A newer writer may have given them a meaning.
    Unknown,
}

impl Reserved {
    /// Refuses bytes that are not zero where zero is due.
    fn check(self, bytes: &[u8]) -> Result<(), CorruptReason> {
        if self == Self::Zero && bytes.iter().any(|byte| *byte != 0) {
            return Err(CorruptReason::Value("reserved bytes are not zero"));
        }
        Ok(())
    }
}

/// A whole header starting with [`FileStart`]: `start` is filled in last, over all the rest.
/// `used` is how many bytes the writer knows; what follows is zero.
fn seal_header(header: &mut [u8], magic: [u8; 8], used: usize, version: Version) {
    let mut start = FileStart {
        magic,
        crc: U32::ZERO,
        major: MAJOR,
        minor: version.minor,
        header_len: U16::new(u16::try_from(used).expect("headers are at most 4096 bytes")),
        incompat: U32::new(version.incompat),
        compat: U32::new(version.compat),
    };
    write_prefix(&start, header);
    start.crc = U32::new(crc::of(header.get(COVERED_FROM..).unwrap_or_default()));
    write_prefix(&start, header);
}

/// Checks magic, checksum, version and header length of the first `size` bytes of `bytes`, and that
/// what lies behind `used` is zero or from a newer writer.
fn open_header(
    bytes: &[u8],
    magic: [u8; 8],
    used: usize,
    size: usize,
) -> Result<Version, CorruptReason> {
    let header = bytes.get(..size).ok_or(CorruptReason::Truncated)?;
    let (start, _) =
        FileStart::ref_from_prefix(header).map_err(|_short| CorruptReason::Truncated)?;
    if start.magic != magic {
        return Err(CorruptReason::Magic);
    }
    if crc::of(header.get(COVERED_FROM..).unwrap_or_default()) != start.crc.get() {
        return Err(CorruptReason::Checksum);
    }
    let version = check_version(start.major, start.minor, start.incompat.get())?;
    let version = Version {
        compat: start.compat.get(),
        ..version
    };
    let len = usize::from(start.header_len.get());
    let fits = match start.minor.cmp(&MINOR) {
        core::cmp::Ordering::Equal => len == used,
        core::cmp::Ordering::Greater => (used..=size).contains(&len),
        core::cmp::Ordering::Less => (size_of::<FileStart>()..=used).contains(&len),
    };
    if !fits {
        return Err(CorruptReason::Length);
    }
    version
        .reserved()
        .check(header.get(used..).unwrap_or_default())?;
    Ok(version)
}

/// Refuses another major version and unknown incompatible features.
fn check_version(major: u8, minor: u8, incompat: u32) -> Result<Version, CorruptReason> {
    let unknown = incompat & !INCOMPAT_KNOWN;
    if major != MAJOR || unknown != 0 {
        return Err(CorruptReason::Version {
            major,
            minor,
            incompat: unknown,
        });
    }
    Ok(Version {
        minor,
        incompat,
        compat: 0,
    })
}

/// Copies `value` over the start of `out`, which is long enough.
fn write_prefix<T: IntoBytes + Immutable>(value: &T, out: &mut [u8]) {
    value
        .write_to_prefix(out)
        .expect("the caller made room for the whole structure");
}

/// Reads a structure from the start of `bytes`; `Truncated` if it is not all there.
fn read_prefix<T>(bytes: &[u8]) -> Result<&T, CorruptReason>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    T::ref_from_prefix(bytes)
        .map(|(value, _)| value)
        .map_err(|_short| CorruptReason::Truncated)
}

/// A length as an index; lengths on disk have 32 bits.
pub(crate) fn index(value: u32) -> usize {
    const { assert!(usize::BITS >= 32) };
    usize::try_from(value).expect("an index has at least 32 bits")
}

/// The next multiple of 8: records lie on these.
const fn pad8(len: usize) -> usize {
    len.next_multiple_of(8)
}
