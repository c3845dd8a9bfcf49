//! A frame of the commit log and its records: total decode, bodies found where a DELIVER points.

use ringpost_engine::format::crc;
use ringpost_engine::format::frame::{FRAME_HEADER_BYTES, FrameHeader};
use ringpost_engine::format::record::{Payload, Records, chain};

use crate::seal;

/// The input begins with a frame's header; its records follow.
pub fn run(input: &[u8]) {
    check(input);
    let mut sealed = input.to_vec();
    sealed.resize(sealed.len().max(FRAME_HEADER_BYTES), 0);
    let here = sealed.len() - FRAME_HEADER_BYTES;
    let len = usize::try_from(seal::get_u32(&sealed, 44)).unwrap_or(usize::MAX);
    let payload = sealed.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + len.min(here));
    let payload_crc = crc::of(payload.unwrap_or_default());
    seal::put(&mut sealed, 0, b"RPF1");
    seal::put_u32(&mut sealed, 60, payload_crc);
    let header_crc = crc::of(sealed.get(8..FRAME_HEADER_BYTES).unwrap_or_default());
    seal::put_u32(&mut sealed, 4, header_crc);
    check(&sealed);
    records(sealed.get(FRAME_HEADER_BYTES..).unwrap_or_default());
}

fn check(input: &[u8]) {
    let Ok(mut header) = FrameHeader::open(input) else {
        return;
    };
    assert!(header.end() > header.lsn);
    assert_eq!(
        FrameHeader::open_at(input, header.salt, header.lsn, header.previous_crc),
        Ok(header)
    );
    assert!(input.starts_with(&header.seal()));
    if let Ok(payload) = header.payload(input) {
        records(payload);
    }
}

fn records(payload: &[u8]) {
    let mut at = 0;
    for record in Records::new(payload).map_while(Result::ok) {
        assert!(record.at >= at && record.bytes.len() <= payload.len());
        at = record.at + record.bytes.len();
        chain(record.head.chain, record.bytes);
        if let Payload::Deliver(deliver) = &record.payload {
            assert!(deliver.body_at < record.at);
            let body = Records::at(payload, deliver.body_at);
            if let Ok(body) = body {
                assert_eq!(body.at, deliver.body_at);
            }
        }
    }
    assert!(at <= payload.len());
}
