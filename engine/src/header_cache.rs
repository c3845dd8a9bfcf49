//! The header cache of a MSG run: the six fields that a list of messages shows, so that listing a
//! mailbox reads no message (storage.md 3.8). Derived data: it can be made again from the message.
//!
//! The layout is in FORMAT.md, "Header cache".

use crate::error::CorruptReason;
use crate::limits::{CACHE_SLOTS_MAX, SLOT_BYTES};

/// Fields in the cache.
pub const FIELDS_COUNT: usize = 6;

/// Bytes of the six lengths, u16 each: 12 bits of length, and the two bits below.
const LENGTHS_BYTES: usize = 2 * FIELDS_COUNT;

/// Bytes of an info slot as a `usize`.
const SLOT: usize = {
    assert!(SLOT_BYTES == 64);
    64
};

/// Bytes that all values share.
pub const VALUES_BYTES_MAX: usize = CACHE_SLOTS_MAX * SLOT - LENGTHS_BYTES;
const _: () = assert!(VALUES_BYTES_MAX < LENGTH_MASK as usize);

const LENGTH_MASK: u16 = 0x0FFF;
/// The message has the field.
const PRESENT: u16 = 0x8000;
/// The value was cut.
const CUT: u16 = 0x4000;

/// A cached field, in the order of the layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Field {
    /// `From:`.
    From,
    /// `To:`.
    To,
    /// `Subject:`, perhaps with encoded words.
    Subject,
    /// `Date:`; [`Summary::date_s`](crate::prepare::Summary::date_s) has it in seconds.
    Date,
    /// `Message-ID:`.
    MessageId,
    /// `In-Reply-To:`.
    InReplyTo,
}

impl Field {
    /// All of them, in the order of the layout.
    pub const ALL: [Self; FIELDS_COUNT] = [
        Self::From,
        Self::To,
        Self::Subject,
        Self::Date,
        Self::MessageId,
        Self::InReplyTo,
    ];

    /// The field's name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::From => "From",
            Self::To => "To",
            Self::Subject => "Subject",
            Self::Date => "Date",
            Self::MessageId => "Message-ID",
            Self::InReplyTo => "In-Reply-To",
        }
    }

    /// Place in the layout.
    pub(crate) const fn index(self) -> usize {
        self as usize
    }
}

/// The value of one field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Value<'a> {
    /// Raw bytes, unfolded; any byte but LF may occur.
    pub bytes: &'a [u8],
    /// Whether the message has more of it.
    pub extent: Extent,
}

/// Whether a value is all that the message has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Its beginning.
    Cut,
}

/// The values of a message's cached fields; `None` for a field it does not have.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Fields<'a>([Option<Value<'a>>; FIELDS_COUNT]);

impl<'a> Fields<'a> {
    /// Of values in the order of [`Field::ALL`].
    pub const fn new(values: [Option<Value<'a>>; FIELDS_COUNT]) -> Self {
        Self(values)
    }

    /// The value of `field`.
    pub fn value(&self, field: Field) -> Option<Value<'a>> {
        self.0.get(field.index()).copied().flatten()
    }

    /// The bytes of `field`, empty if the message does not have it.
    pub fn bytes(&self, field: Field) -> &'a [u8] {
        self.value(field).map_or(&[], |value| value.bytes)
    }
}

/// The longest common length to which values are cut so that all fit.
fn longest_that_fits(fields: &Fields<'_>) -> usize {
    let mut lengths = fields.0.map(|value| value.map_or(0, |v| v.bytes.len()));
    lengths.sort_unstable();
    let mut room = VALUES_BYTES_MAX;
    let mut left = FIELDS_COUNT;
    for length in lengths {
        if length * left > room {
            return room / left;
        }
        room -= length;
        left -= 1;
    }
    VALUES_BYTES_MAX
}

/// The cache's bytes: as few slots as the values need.
pub fn encode(fields: &Fields<'_>) -> Vec<u8> {
    if fields.0.iter().all(Option::is_none) {
        return Vec::new();
    }
    let most = longest_that_fits(fields);
    let kept = |value: &Value<'_>| value.bytes.len().min(most);
    let len: usize = fields.0.iter().flatten().map(kept).sum();
    let mut out = Vec::with_capacity((LENGTHS_BYTES + len).next_multiple_of(SLOT));
    for value in &fields.0 {
        let word = value.map_or(0, |value| {
            let len = u16::try_from(kept(&value)).expect("below VALUES_BYTES_MAX");
            let cut = value.extent == Extent::Cut || value.bytes.len() > most;
            len | PRESENT | if cut { CUT } else { 0 }
        });
        out.extend_from_slice(&word.to_le_bytes());
    }
    for value in fields.0.iter().flatten() {
        out.extend_from_slice(value.bytes.get(..kept(value)).unwrap_or(value.bytes));
    }
    out.resize(out.len().next_multiple_of(SLOT), 0);
    out
}

/// Reads a cache. Every byte string gives fields or a reason; only what [`encode`] writes is taken.
pub fn decode(cache: &[u8]) -> Result<Fields<'_>, CorruptReason> {
    if cache.is_empty() {
        return Ok(Fields::default());
    }
    if !cache.len().is_multiple_of(SLOT) || cache.len() > CACHE_SLOTS_MAX * SLOT {
        return Err(CorruptReason::Length);
    }
    let (lengths, mut rest) = cache
        .split_first_chunk::<LENGTHS_BYTES>()
        .ok_or(CorruptReason::Truncated)?;
    let mut fields = Fields::default();
    for (slot, word) in fields.0.iter_mut().zip(lengths.as_chunks::<2>().0) {
        let word = u16::from_le_bytes(*word);
        if word == 0 {
            continue;
        }
        if word & PRESENT == 0 || word & !(PRESENT | CUT | LENGTH_MASK) != 0 {
            return Err(CorruptReason::Value("header cache: length bits"));
        }
        let (bytes, behind) = rest
            .split_at_checked(usize::from(word & LENGTH_MASK))
            .ok_or(CorruptReason::Length)?;
        rest = behind;
        let extent = if word & CUT == 0 {
            Extent::Whole
        } else {
            Extent::Cut
        };
        *slot = Some(Value { bytes, extent });
    }
    if fields.0.iter().all(Option::is_none) || rest.len() >= SLOT {
        return Err(CorruptReason::Value("header cache: more slots than needed"));
    }
    if rest.iter().any(|byte| *byte != 0) {
        return Err(CorruptReason::Value("header cache: padding is not zero"));
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value(bytes: &[u8]) -> Value<'_> {
        Value {
            bytes,
            extent: Extent::Whole,
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_table() {
        let fields = Fields::new([
            Some(value(b"a@b")),
            None,
            Some(value(b"")),
            None,
            None,
            None,
        ]);
        let mut want = vec![3, 0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0];
        want.extend_from_slice(b"a@b");
        want.resize(64, 0);
        assert_eq!(encode(&fields), want);
        assert_eq!(decode(&want), Ok(fields));
    }

    #[test]
    fn no_field_means_no_slot() {
        assert_eq!(encode(&Fields::default()), Vec::<u8>::new());
        assert_eq!(decode(&[]), Ok(Fields::default()));
    }

    #[test]
    fn the_longest_values_are_cut_and_short_ones_stay() {
        let long = [b'x'; 5_000];
        let fields = Fields::new([
            Some(value(b"a@b")),
            Some(value(&long)),
            Some(value(&long)),
            None,
            Some(value(b"<1@b>")),
            None,
        ]);
        let cache = encode(&fields);
        assert_eq!(cache.len(), 960);
        let read = decode(&cache).expect("just encoded");
        assert_eq!(read.value(Field::From), Some(value(b"a@b")));
        assert_eq!(read.value(Field::MessageId), Some(value(b"<1@b>")));
        for field in [Field::To, Field::Subject] {
            let value = read.value(field).expect("present");
            assert_eq!(value.extent, Extent::Cut);
            assert_eq!(value.bytes.len(), 470);
        }
    }

    #[test]
    fn a_flipped_bit_in_lengths_or_padding_never_reads_as_before() {
        let cache = encode(&Fields::new([
            Some(value(b"a@b")),
            None,
            None,
            None,
            None,
            None,
        ]));
        for bit in 0..cache.len() * 8 {
            let in_value = (12..15).contains(&(bit / 8));
            let mut bad = cache.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(in_value || decode(&bad) != decode(&cache), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            values in proptest::array::uniform6(proptest::option::of(
                proptest::collection::vec(any::<u8>(), 0..400),
            )),
        ) {
            let fields = Fields::new(values.each_ref().map(|value| {
                value.as_deref().map(self::value)
            }));
            let cache = encode(&fields);
            prop_assert!(cache.len() <= 960 && cache.len().is_multiple_of(64));
            let read = decode(&cache).expect("just encoded");
            for field in Field::ALL {
                let (was, is) = (fields.value(field), read.value(field));
                prop_assert_eq!(was.is_some(), is.is_some());
                prop_assert!(fields.bytes(field).starts_with(read.bytes(field)));
                if let (Some(was), Some(is)) = (was, is) {
                    prop_assert_eq!(is.extent == Extent::Cut, is.bytes.len() < was.bytes.len());
                }
            }
        }

        #[test]
        fn any_bytes_decode_or_give_a_reason(
            bytes in proptest::collection::vec(any::<u8>(), 0..1024),
        ) {
            if let Ok(fields) = decode(&bytes) {
                prop_assert_eq!(encode(&fields), bytes);
            }
        }
    }
}
