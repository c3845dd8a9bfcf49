//! The bytes of every frame are those of `tests/golden/*.hex` for ever: they decode, mean what the
//! sample says, and encode again identically.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fmt::Write;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use ringpost_netproto::codec;
use ringpost_netproto::frame::{Frame, Kind, Opcode, Status, Verdict};
use ringpost_netproto::message::Fault;
use ringpost_netproto::message::append::{AppendBody, AppendReply, AppendRequest};
use ringpost_netproto::message::backup::BackupRequest;
use ringpost_netproto::message::deliver::{BodyForm, DeliverBody, DeliverRequest, RecipientReply};
use ringpost_netproto::message::fetch::{self, FetchRequest};
use ringpost_netproto::message::list::{ListPage, ListRequest};
use ringpost_netproto::message::mailbox::{self, MailboxStatus};
use ringpost_netproto::message::report::ReportField;
use ringpost_netproto::message::scrub;
use ringpost_netproto::message::stream::decode_end;
use ringpost_netproto::version::{Hello, Role};
use zerocopy::IntoBytes;

use support::samples;

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(format!("{name}.hex"))
}

/// `length <n>`, then `<offset>: <32 bytes>`.
fn dump(bytes: &[u8]) -> String {
    let mut out = format!("length {}\n", bytes.len());
    for (line, chunk) in bytes.chunks(32).enumerate() {
        write!(out, "{:06x}: ", line * 32).unwrap();
        for byte in chunk {
            write!(out, "{byte:02x}").unwrap();
        }
        out.push('\n');
    }
    out
}

fn undump(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let len = lines.next().unwrap().strip_prefix("length ").unwrap();
    let bytes: Vec<u8> = lines
        .flat_map(|line| line.split_once(": ").unwrap().1.as_bytes().chunks(2))
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    assert_eq!(bytes.len(), len.parse::<usize>().unwrap());
    bytes
}

/// The payload again, through the message that it is; with the length of its meta struct.
fn payload_again(frame: &Frame) -> Result<(Bytes, usize), Fault> {
    let mut out = BytesMut::new();
    let meta_len = match (frame.opcode().unwrap(), frame.kind) {
        (Opcode::Hello, _) => {
            let ours = Hello::new(Role::Shim);
            let hello = Hello::from_payload(&frame.payload, &ours).unwrap();
            out.extend_from_slice(hello.to_payload().as_bytes());
            out.len()
        }
        (Opcode::Fetch, Kind::StreamEnd) if frame.status() != Status::Ok => {
            out.extend_from_slice(&frame.payload);
            frame.meta().len()
        }
        (Opcode::DeliverBody | Opcode::Append | Opcode::Fetch, Kind::StreamEnd) => {
            let end = decode_end(frame)?;
            assert!(samples::body_sum().matches(&end));
            samples::body_sum().encode_end(&mut out)
        }
        (_, Kind::Response) if frame.status().verdict() != Verdict::Done => {
            out.extend_from_slice(&frame.payload);
            0
        }
        (Opcode::Deliver, Kind::Request) => match DeliverRequest::decode(frame)? {
            (request, DeliverBody::Inline(body)) => {
                let meta_len = request.encode(BodyForm::Inline, &mut out);
                out.extend_from_slice(&body);
                meta_len
            }
            (request, DeliverBody::Streamed) => request.encode(BodyForm::Streamed, &mut out),
        },
        (Opcode::Deliver, _) => {
            RecipientReply::encode_all(&RecipientReply::decode_all(frame, 2)?, &mut out)
        }
        (Opcode::Append, Kind::Request) => match AppendRequest::decode(frame)? {
            (request, AppendBody::Inline(body)) => {
                let meta_len = request.encode(BodyForm::Inline, &mut out);
                out.extend_from_slice(&body);
                meta_len
            }
            (request, AppendBody::Streamed) => request.encode(BodyForm::Streamed, &mut out),
        },
        (Opcode::Append, Kind::Response) => AppendReply::decode(frame)?.encode(&mut out),
        (Opcode::MailboxList, Kind::Request) => {
            mailbox::encode_request(&mailbox::decode_request(frame)?, &mut out)
        }
        (Opcode::MailboxList, _) => {
            MailboxStatus::encode_all(&MailboxStatus::decode_all(frame)?, &mut out)
        }
        (Opcode::List, Kind::Request) => ListRequest::decode(frame)?.encode(&mut out),
        (Opcode::List, _) => ListPage::decode(frame)?.encode(&mut out),
        (Opcode::Fetch, Kind::Request) => FetchRequest::decode(frame)?.encode(&mut out),
        (Opcode::Fetch, Kind::Response) => {
            fetch::encode_head(&fetch::decode_head(frame)?, &mut out)
        }
        (Opcode::Backup, Kind::Request) => BackupRequest::decode(frame)?.encode(&mut out),
        (Opcode::Scrub, Kind::Request) => {
            scrub::encode_request(scrub::decode_request(frame)?.as_deref(), &mut out)
        }
        (Opcode::Status | Opcode::Backup | Opcode::Scrub, Kind::Response) => {
            ReportField::encode_all(&ReportField::decode_all(frame)?, &mut out)
        }
        _ => {
            out.extend_from_slice(&frame.payload);
            0
        }
    };
    Ok((out.freeze(), meta_len))
}

#[test]
fn every_frame_has_its_golden_bytes_for_ever() {
    for (name, bytes) in samples::all() {
        let golden = std::fs::read_to_string(golden_path(name))
            .unwrap_or_else(|error| panic!("{name}: {error}; it would be\n{}", dump(&bytes)));
        assert_eq!(golden, dump(&bytes), "{name}");
    }
}

#[test]
fn golden_frames_decode_and_encode_identically() {
    for (name, _) in samples::all() {
        let golden = undump(&std::fs::read_to_string(golden_path(name)).unwrap());
        let frame = samples::one_frame(&golden);
        assert_eq!(codec::encode_frame(&frame), golden, "{name}");
        let (payload, meta_len) = payload_again(&frame).unwrap_or_else(|fault| {
            panic!("{name}: {fault:?}");
        });
        assert_eq!(payload, frame.payload, "{name}");
        assert_eq!(meta_len, frame.meta().len(), "{name}");
    }
}

#[test]
fn golden_messages_mean_what_was_sent() {
    let sample = |wanted: &str| {
        let all = samples::all();
        let (_, bytes) = all.iter().find(|(name, _)| *name == wanted).unwrap();
        samples::one_frame(bytes)
    };
    let (request, body) = DeliverRequest::decode(&sample("deliver_inline")).unwrap();
    assert_eq!(request, samples::deliver_request());
    assert_eq!(body, DeliverBody::Inline(Bytes::from_static(samples::BODY)));
    let (request, body) = DeliverRequest::decode(&sample("deliver_streamed")).unwrap();
    assert_eq!((request.size_hint, body), (None, DeliverBody::Streamed));
    assert_eq!(
        RecipientReply::decode_all(&sample("deliver_reply"), 2),
        Ok(samples::replies())
    );
    let (request, body) = AppendRequest::decode(&sample("append_inline")).unwrap();
    assert_eq!(request, samples::append_request());
    assert_eq!(body, AppendBody::Inline(Bytes::from_static(samples::BODY)));
    let (request, body) = AppendRequest::decode(&sample("append_streamed")).unwrap();
    assert_eq!(request, samples::bare_append());
    assert_eq!(body, AppendBody::Streamed);
    let reply = AppendReply::decode(&sample("append_reply"));
    assert_eq!(reply, Ok(samples::append_reply()));
    let again = AppendReply::decode(&sample("append_reply_duplicate")).unwrap();
    assert_eq!(again.status, Status::OkDuplicate);
    assert_eq!(ListPage::decode(&sample("list_reply")), Ok(samples::page()));
    assert_eq!(
        FetchRequest::decode(&sample("fetch")),
        Ok(samples::fetch_request())
    );
    let ours = samples::node_hello();
    assert_eq!(
        Hello::from_payload(&sample("hello_node").payload, &ours),
        Ok(samples::node_hello())
    );
}

/// Nothing in the folder is left over from a sample that went away.
#[test]
fn every_golden_file_has_a_sample() {
    let names: Vec<_> = samples::all().into_iter().map(|(name, _)| name).collect();
    for file in std::fs::read_dir(golden_path("x").parent().unwrap()).unwrap() {
        let path = file.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        assert!(names.contains(&stem), "{}", path.display());
    }
}

#[test]
#[ignore = "writes golden files that are missing; existing ones are never touched"]
fn write_missing_goldens() {
    for (name, bytes) in samples::all() {
        if !golden_path(name).exists() {
            std::fs::write(golden_path(name), dump(&bytes)).unwrap();
        }
    }
}
