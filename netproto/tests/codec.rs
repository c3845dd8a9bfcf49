//! The decoder at its edges: every cut of a stream, every flipped bit of a frame, lengths that lie,
//! and any bytes at all.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use ringpost_netproto::codec::{self, Decoder};
use ringpost_netproto::error::DecodeError;
use ringpost_netproto::frame::{Frame, FrameHeader, HEADER_BYTES, Kind, Opcode, RequestId};
use ringpost_netproto::limits::{PAYLOAD_BYTES_CEILING, PAYLOAD_BYTES_DEFAULT};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use support::samples;

fn decode_all(decoder: &mut Decoder) -> Result<Vec<Frame>, DecodeError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.next()? {
        frames.push(frame);
    }
    Ok(frames)
}

/// Some frames in a row: with and without payload.
fn stream() -> (Bytes, Vec<Frame>) {
    let mut bytes = BytesMut::new();
    let mut frames = Vec::new();
    for (name, frame) in samples::all() {
        if [
            "ping",
            "deliver_inline",
            "credit",
            "deliver_reply",
            "cancel",
        ]
        .contains(&name)
        {
            bytes.extend_from_slice(&frame);
            frames.push(samples::one_frame(&frame));
        }
    }
    (bytes.freeze(), frames)
}

#[test]
fn every_split_point_gives_the_same_frames() {
    let (bytes, wanted) = stream();
    for at in 0..=bytes.len() {
        let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
        decoder.push(bytes.slice(..at));
        let mut found = decode_all(&mut decoder).unwrap();
        decoder.push(bytes.slice(at..));
        found.extend(decode_all(&mut decoder).unwrap());
        assert_eq!(found, wanted, "split at {at}");
    }
}

#[test]
fn every_piece_length_gives_the_same_frames() {
    let (bytes, wanted) = stream();
    for len in 1..=bytes.len() {
        let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
        let mut found = Vec::new();
        for piece in bytes.chunks(len) {
            decoder.push(Bytes::copy_from_slice(piece));
            found.extend(decode_all(&mut decoder).unwrap());
        }
        assert_eq!(found, wanted, "pieces of {len}");
        // Pushed all at once, taken out afterwards.
        let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
        for piece in bytes.chunks(len) {
            decoder.push(Bytes::copy_from_slice(piece));
        }
        assert_eq!(
            decode_all(&mut decoder).unwrap(),
            wanted,
            "queued pieces of {len}"
        );
    }
}

#[test]
fn every_truncation_waits_for_more() {
    for (name, frame) in samples::all() {
        for len in 0..frame.len() {
            let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
            decoder.push(frame.slice(..len));
            assert_eq!(decoder.next(), Ok(None), "{name} cut at {len}");
        }
    }
}

#[test]
fn every_flipped_bit_is_detected() {
    for (name, frame) in samples::all() {
        for bit in 0..frame.len() * 8 {
            let mut damaged = BytesMut::from(&frame[..]);
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
            decoder.push(damaged.freeze());
            let error = decoder.next().unwrap_err();
            let expected = matches!(
                (bit / 8, error),
                (0..4, DecodeError::Magic { .. })
                    | (4..HEADER_BYTES, DecodeError::HeaderCrc { .. })
                    | (HEADER_BYTES.., DecodeError::PayloadCrc { .. })
            );
            assert!(expected, "{name}: bit {bit} gave {error:?}");
            assert_eq!(decoder.next(), Err(error), "an error is final");
        }
    }
}

/// A header whose checksum is right, whatever it says.
fn sealed(change: impl FnOnce(&mut FrameHeader)) -> Bytes {
    let mut header = FrameHeader::new(Kind::Request, Opcode::Ping, RequestId::new(1));
    change(&mut header);
    header.header_crc = U32::new(header.computed_crc());
    Bytes::copy_from_slice(header.as_bytes())
}

#[test]
fn lengths_that_lie_reserve_nothing() {
    for len in [PAYLOAD_BYTES_DEFAULT + 1, u32::MAX / 2, u32::MAX] {
        let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
        decoder.push(sealed(|header| header.payload_len = U32::new(len)));
        assert_eq!(
            decoder.next(),
            Err(DecodeError::PayloadTooLong {
                found: len,
                max: PAYLOAD_BYTES_DEFAULT
            })
        );
        assert_eq!(decoder.buffered_bytes(), 0);
    }
    let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
    decoder.push(sealed(|header| {
        header.payload_len = U32::new(8);
        header.meta_len = U32::new(9);
    }));
    let error = DecodeError::MetaTooLong {
        meta: 9,
        payload: 8,
    };
    assert_eq!(decoder.next(), Err(error));
    decoder.push(Bytes::from_static(&[0; 100]));
    assert_eq!((decoder.next(), decoder.buffered_bytes()), (Err(error), 0));
}

#[test]
fn an_unfinished_payload_holds_no_more_than_its_length() {
    let mut decoder = Decoder::new(u32::MAX);
    let len = PAYLOAD_BYTES_CEILING;
    decoder.push(sealed(|header| header.payload_len = U32::new(len)));
    assert_eq!(decoder.next(), Ok(None));
    assert_eq!(
        decoder.buffered_bytes(),
        0,
        "nothing before the first byte of it"
    );
    let bound = usize::try_from(len).unwrap() + HEADER_BYTES;
    for _ in 0..1_000 {
        decoder.push(Bytes::from_static(&[7; 1_000]));
        assert_eq!(decoder.next(), Ok(None));
        assert!(decoder.buffered_bytes() <= bound);
    }
    let mut above = Decoder::new(u32::MAX);
    above.push(sealed(|header| header.payload_len = U32::new(len + 1)));
    assert!(matches!(
        above.next(),
        Err(DecodeError::PayloadTooLong { .. })
    ));
}

#[test]
fn unknown_kinds_end_the_stream_and_unknown_opcodes_do_not() {
    for kind in 6..=u8::MAX {
        let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
        decoder.push(sealed(|header| header.kind = kind));
        assert_eq!(decoder.next(), Err(DecodeError::Kind { found: kind }));
    }
    let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
    decoder.push(sealed(|header| header.opcode.set(60_000)));
    let frame = decoder.next().unwrap().unwrap();
    assert_eq!(frame.opcode(), None);
}

/// A whole frame in one buffer is a slice of it.
#[test]
fn whole_frames_are_not_copied() {
    let frame = samples::body_frame(
        FrameHeader::new(Kind::StreamData, Opcode::Fetch, RequestId::new(1)),
        &[7; 10_000],
    );
    let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
    decoder.push(frame.clone());
    let payload = decoder.next().unwrap().unwrap().payload;
    assert_eq!(payload.as_ptr(), frame[HEADER_BYTES..].as_ptr());
    // A header in one buffer and its whole payload in the next, too.
    decoder.push(frame.slice(..10));
    assert_eq!(decoder.next(), Ok(None));
    decoder.push(frame.slice(10..HEADER_BYTES));
    assert_eq!(decoder.next(), Ok(None));
    decoder.push(frame.slice(HEADER_BYTES..));
    let payload = decoder.next().unwrap().unwrap().payload;
    assert_eq!(payload.as_ptr(), frame[HEADER_BYTES..].as_ptr());
}

#[test]
fn a_tail_that_follows_as_shared_bytes_is_part_of_the_frame() {
    let header = FrameHeader::new(Kind::Request, Opcode::Deliver, RequestId::new(1));
    let head = |out: &mut BytesMut| {
        out.extend_from_slice(b"meta");
        4
    };
    let mut out = BytesMut::new();
    codec::encode(&mut out, header, head, b"tail");
    assert_eq!(out.len(), HEADER_BYTES + 4, "the tail is not appended");
    out.extend_from_slice(b"tail");
    let frame = samples::one_frame(&out);
    assert_eq!(
        (frame.meta(), &frame.body()[..]),
        (&b"meta"[..], &b"tail"[..])
    );
}

/// A frame of any content, as it goes over the wire.
fn any_frame() -> impl Strategy<Value = Bytes> {
    let fields = (
        prop::sample::select(Kind::ALL.to_vec()),
        prop::sample::select(Opcode::ALL.to_vec()),
        any::<(u64, u32, u16)>(),
        any::<(u32, u64, u16)>(),
    );
    let payload = prop::collection::vec(any::<u8>(), 0..700);
    (fields, payload, any::<prop::sample::Index>(), 0usize..300).prop_map(
        |((kind, opcode, more, place), payload, meta_len, tail)| {
            let mut header = FrameHeader::new(kind, opcode, RequestId::new(more.0));
            header.deadline_ms = U32::new(more.1);
            header.flags.set(more.2 & 7);
            header.partition = U32::new(place.0);
            header.pseq.set(place.1);
            header.status.set(place.2);
            let mut out = BytesMut::new();
            let write = |out: &mut BytesMut| {
                out.extend_from_slice(&payload);
                meta_len.index(payload.len() + 1)
            };
            let tail = vec![7u8; tail];
            codec::encode(&mut out, header, write, &tail);
            out.extend_from_slice(&tail);
            out.freeze()
        },
    )
}

proptest! {
    /// Frames of any content come back, in whatever pieces they arrive and are taken out, and are
    /// written again as they were; and no changed byte goes unnoticed.
    #[test]
    fn any_frames_in_any_pieces_come_back(
        frames in prop::collection::vec(any_frame(), 1..6),
        cuts in prop::collection::vec((any::<prop::sample::Index>(), any::<bool>()), 0..12),
        change in any::<(prop::sample::Index, u8)>(),
    ) {
        let bytes: Bytes = frames.concat().into();
        let mut places: Vec<_> = cuts.iter().map(|(at, take)| (at.index(bytes.len()), *take)).collect();
        places.push((bytes.len(), true));
        places.sort_unstable();
        let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
        let (mut from, mut found) = (0, Vec::new());
        for (to, take) in places {
            decoder.push(bytes.slice(from..to));
            from = to;
            if take {
                found.extend(decode_all(&mut decoder).unwrap());
            }
        }
        prop_assert_eq!(found.iter().map(codec::encode_frame).collect::<Vec<_>>(), frames);
        prop_assert_eq!(decode_all(&mut decoder).unwrap().len(), 0);

        let mut changed = bytes.to_vec();
        let at = change.0.index(changed.len());
        if std::mem::replace(&mut changed[at], change.1) != change.1 {
            let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
            decoder.push(changed.into());
            let whole = decode_all(&mut decoder).is_ok_and(|all| all.len() == found.len());
            prop_assert!(!whole, "byte {at}");
        }
    }

    /// Any bytes give frames or an error, and hold no more than was pushed.
    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 1usize..100) {
        let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
        for piece in bytes.chunks(cut) {
            decoder.push(Bytes::copy_from_slice(piece));
            if decode_all(&mut decoder).is_err() {
                break;
            }
            prop_assert!(decoder.buffered_bytes() <= bytes.len());
        }
    }

    /// Headers with a right checksum and any content.
    #[test]
    fn any_header_with_a_right_checksum_is_survived(content in any::<[u8; 32]>(), more in any::<[u8; 24]>(), len in 0u32..200) {
        let mut bytes = [0; HEADER_BYTES];
        bytes[8..40].copy_from_slice(&content);
        bytes[40..].copy_from_slice(&more);
        let mut header = FrameHeader::read_from_bytes(&bytes).unwrap();
        header.magic = *b"RPN1";
        header.payload_len = U32::new(len);
        header.payload_crc = U32::new(crc32fast::hash(&vec![9; usize::try_from(len).unwrap()]));
        header.header_crc = U32::new(header.computed_crc());
        let mut whole = header.as_bytes().to_vec();
        whole.extend(std::iter::repeat_n(9, usize::try_from(len).unwrap()));
        let whole = Bytes::from(whole);
        let mut decoder = Decoder::new(PAYLOAD_BYTES_DEFAULT);
        decoder.push(whole.clone());
        if let Ok(frames) = decode_all(&mut decoder) {
            prop_assert_eq!(frames.len(), 1);
            prop_assert_eq!(codec::encode_frame(&frames[0]), whole);
        }
    }
}
