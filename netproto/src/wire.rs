//! How a struct stands on the wire: little-endian, no padding, every offset asserted when it is
//! compiled. [`STRUCTS`] is the list that a test compares with PROTOCOL.md.
//!
//! A meta struct grows at its end only. A reader takes what it knows of a longer one and fills
//! the missing end of a shorter one with zeros, so zero must mean "as before" in every new field.

use zerocopy::{FromBytes, IntoBytes};

/// One field of a wire struct.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its name, as in PROTOCOL.md.
    pub name: &'static str,
    /// Bytes from the start of the struct.
    pub offset: usize,
    /// Its length in bytes.
    pub bytes: usize,
}

/// A wire struct: its name, its length and its fields without gaps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Its name, as in PROTOCOL.md.
    pub name: &'static str,
    /// Its length in bytes.
    pub bytes: usize,
    /// Ascending by offset.
    pub fields: &'static [Field],
}

/// Every struct of the protocol, in the order of PROTOCOL.md.
pub const STRUCTS: &[Layout] = &[
    crate::frame::FrameHeader::LAYOUT,
    crate::version::HelloPayload::LAYOUT,
    crate::message::stream::StreamEndMeta::LAYOUT,
    crate::message::deliver::DeliverMeta::LAYOUT,
    crate::message::deliver::RecipientRow::LAYOUT,
    crate::message::deliver::DeliverReplyMeta::LAYOUT,
    crate::message::deliver::ReplyRow::LAYOUT,
    crate::message::mailbox::MailboxesMeta::LAYOUT,
    crate::message::mailbox::MailboxesReplyMeta::LAYOUT,
    crate::message::mailbox::MailboxRow::LAYOUT,
    crate::message::list::ListMeta::LAYOUT,
    crate::message::list::ListReplyMeta::LAYOUT,
    crate::message::list::EntryRow::LAYOUT,
    crate::message::fetch::FetchMeta::LAYOUT,
    crate::message::report::ReportMeta::LAYOUT,
    crate::message::report::ReportRow::LAYOUT,
    crate::message::append::AppendMeta::LAYOUT,
    crate::message::append::KeywordRow::LAYOUT,
    crate::message::append::AppendReplyMeta::LAYOUT,
    crate::message::backup::BackupMeta::LAYOUT,
    crate::message::scrub::ScrubMeta::LAYOUT,
];

/// Declares a wire struct as its offset table: `OFFSET name: type`, with the whole length in
/// brackets. Offsets, length and the absence of padding are checked by the compiler.
macro_rules! wire_struct {
    (
        $(#[$attribute:meta])*
        $vis:vis struct $name:ident [$bytes:literal] {
            $($(#[$field_attribute:meta])* $offset:literal $field:ident: $kind:ty,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(
            Clone, Copy, PartialEq, Eq, Debug,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout,
            zerocopy::Immutable, zerocopy::Unaligned,
        )]
        #[repr(C)]
        $vis struct $name {
            $($(#[$field_attribute])* pub $field: $kind,)+
        }

        const _: () = assert!(size_of::<$name>() == $bytes);
        $(const _: () = assert!(core::mem::offset_of!($name, $field) == $offset);)+

        impl $name {
            /// Its fields, for the test that compares them with PROTOCOL.md.
            pub const LAYOUT: $crate::wire::Layout = $crate::wire::Layout {
                name: stringify!($name),
                bytes: $bytes,
                fields: &[$($crate::wire::Field {
                    name: stringify!($field),
                    offset: $offset,
                    bytes: size_of::<$kind>(),
                },)+],
            };
        }
    };
}
pub(crate) use wire_struct;

/// Reads a struct that may be longer (newer writer) or shorter (older writer) than ours.
pub(crate) fn read_grown<T: FromBytes + IntoBytes>(bytes: &[u8]) -> T {
    if let Ok((known, _newer)) = T::read_from_prefix(bytes) {
        return known;
    }
    let mut known = T::new_zeroed();
    for (to, from) in known.as_mut_bytes().iter_mut().zip(bytes) {
        *to = *from;
    }
    known
}

/// A length that was bounded before, as the wire has it.
///
/// # Panics
/// If it does not fit: the caller has not checked its limit, which is a bug.
pub(crate) fn wire_len<T: TryFrom<usize>>(len: usize) -> T {
    let Ok(value) = T::try_from(len) else {
        panic!("a length of {len} was not bounded before it was encoded");
    };
    value
}
