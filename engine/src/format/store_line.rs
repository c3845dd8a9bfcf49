//! The line `X-Ringpost:` behind the `From_` line of every stored message: 128 bytes with its LF,
//! fixed so that it can be written last. It makes segments self-describing: the index can be
//! rebuilt from them. It has no checksum of its own: `l` and `c` are proved by the message
//! behind it, the rest by the index.

use ringpost_netproto::id::{Guid, MailboxId, WallNs};

use super::text::{hex, hex_u8, hex_u32, hex_u64, put_hex};
use crate::error::CorruptReason;

/// Bytes of the line with its LF.
pub const STORE_LINE_BYTES: usize = 128;

/// Format flags a store line can carry: those that tell how to give the message back.
pub const STORE_LINE_FLAGS: u16 = 0x1F;

/// The values of a store line. In a large file (one message, perhaps hard-linked to many users)
/// mailbox, uidvalidity and uid are zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreLine {
    /// Which mailbox; 0 in a large file.
    pub mailbox: MailboxId,
    /// Its uidvalidity; 0 in a large file.
    pub uidvalidity: u32,
    /// The message's number; 0 in a large file.
    pub uid: u32,
    /// Identity of the content.
    pub guid: Guid,
    /// INTERNALDATE.
    pub internal_date: WallNs,
    /// Bytes of the stored message.
    pub stored_len: u32,
    /// CRC of the stored message.
    pub stored_crc: u32,
    /// How to give it back: bits of `0x1F` of the format flags.
    pub format_flags: u8,
}

/// A store line with zeros for all values.
const TEMPLATE: [u8; STORE_LINE_BYTES] =
    *b"X-Ringpost: 1 m=00000000 v=00000000 u=00000000 g=00000000000000000000000000000000 \
       d=0000000000000000 l=00000000 c=00000000 e=00\n";

/// What every store line begins with; `1` is its version.
const LINE_START: &[u8] = b"X-Ringpost: 1";

impl StoreLine {
    /// The 128 bytes. Digits are put into a template: one line a recipient is written on the path of
    /// every message, and formatting it took a microsecond.
    pub fn encode(&self) -> [u8; STORE_LINE_BYTES] {
        let mut line = TEMPLATE;
        let mut rest = line.get_mut(LINE_START.len()..).unwrap_or_default();
        rest = put(rest, most_significant_first(self.mailbox.value()));
        rest = put(rest, most_significant_first(self.uidvalidity));
        rest = put(rest, most_significant_first(self.uid));
        rest = put(rest, self.guid.bytes().into_iter());
        let date = self.internal_date.value();
        rest = put(rest, date.to_le_bytes().into_iter().rev());
        rest = put(rest, most_significant_first(self.stored_len));
        rest = put(rest, most_significant_first(self.stored_crc));
        rest = put(rest, [self.format_flags].into_iter());
        debug_assert_eq!(rest, b"\n", "the template has a place for every field");
        line
    }

    /// Reads the line at the start of `bytes`; only the form that `encode` writes.
    pub fn decode(bytes: &[u8]) -> Result<Self, CorruptReason> {
        let line: &[u8; STORE_LINE_BYTES] = bytes.first_chunk().ok_or(CorruptReason::Truncated)?;
        let rest = line
            .strip_prefix(LINE_START)
            .and_then(|rest| rest.strip_suffix(b"\n"))
            .ok_or(CorruptReason::Magic)?;
        Self::fields(rest).ok_or(CorruptReason::Value("not a store line"))
    }

    fn fields(rest: &[u8]) -> Option<Self> {
        let (mailbox, rest) = field(rest, b'm', 8)?;
        let (uidvalidity, rest) = field(rest, b'v', 8)?;
        let (uid, rest) = field(rest, b'u', 8)?;
        let (guid, rest) = field(rest, b'g', 32)?;
        let (date, rest) = field(rest, b'd', 16)?;
        let (len, rest) = field(rest, b'l', 8)?;
        let (crc, rest) = field(rest, b'c', 8)?;
        let (flags, rest) = field(rest, b'e', 2)?;
        let format_flags = hex_u8(flags)?;
        if !rest.is_empty() || u16::from(format_flags) & !STORE_LINE_FLAGS != 0 {
            return None;
        }
        Some(Self {
            mailbox: MailboxId::new(hex_u32(mailbox)?),
            uidvalidity: hex_u32(uidvalidity)?,
            uid: hex_u32(uid)?,
            guid: Guid::new(hex(guid)?),
            internal_date: WallNs::new(hex_u64(date)?),
            stored_len: hex_u32(len)?,
            stored_crc: hex_u32(crc)?,
            format_flags,
        })
    }
}

fn most_significant_first(value: u32) -> impl ExactSizeIterator<Item = u8> {
    value.to_le_bytes().into_iter().rev()
}

/// Puts digits behind ` <name>=` at the start; gives what is behind them.
fn put(rest: &mut [u8], bytes: impl ExactSizeIterator<Item = u8>) -> &mut [u8] {
    let (_name, rest) = rest.split_at_mut(" m=".len());
    let (place, rest) = rest.split_at_mut(2 * bytes.len());
    put_hex(place, bytes);
    rest
}

/// Splits ` <name>=<digits>` off the start.
fn field(rest: &[u8], name: u8, digits: usize) -> Option<(&[u8], &[u8])> {
    rest.strip_prefix(&[b' ', name, b'='])?
        .split_at_checked(digits)
}
