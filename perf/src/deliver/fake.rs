//! A server that stores nothing and answers at once: `--to fake` measures the generator's own
//! ceiling with it, tests run the loop against it. One thread per connection.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bytes::BytesMut;
use ringpost_netproto::frame::Status;
use ringpost_netproto::session::Config;
use ringpost_netproto::session::server::{Event, RecipientReply, RequestId, ServerSession};
use ringpost_netproto::version::{Hello, Role};

use super::echo::REPLY_BYTES;
use crate::address::Address;

const READ_BYTES: usize = 256 << 10;

/// Which protocol is spoken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// The node protocol.
    Node,
    /// LMTP.
    Lmtp,
    /// For every so many bytes, [`REPLY_BYTES`] come back.
    Echo {
        /// Bytes of a request; not 0.
        size: usize,
    },
}

/// A listening fake. Its threads end with their connections, the listener with the process.
#[derive(Debug)]
pub(crate) struct Fake {
    path: PathBuf,
}

impl Fake {
    /// Listens at a socket in `folder`.
    pub(crate) fn start(folder: &Path, dialect: Dialect) -> anyhow::Result<Self> {
        let path = folder.join("fake");
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || match dialect {
                    Dialect::Node => serve_node(stream),
                    Dialect::Lmtp => serve_lmtp(stream),
                    Dialect::Echo { size } => serve_echo(stream, size),
                });
            }
        });
        Ok(Self { path })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> Address {
        Address::from(self.path.as_path())
    }
}

fn serve_node(mut stream: UnixStream) -> io::Result<()> {
    let mut session = ServerSession::new(Config::new(Hello::new(Role::Node)));
    let mut recipients: BTreeMap<RequestId, usize> = BTreeMap::new();
    let mut buffer = BytesMut::new();
    loop {
        buffer.resize(READ_BYTES, 0);
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let input = buffer.split_to(count).freeze();
        session.handle_input(input).map_err(io::Error::other)?;
        while let Some(event) = session.poll_event() {
            match event {
                Event::DeliverBegin { id, request } => {
                    recipients.insert(id, request.recipients.len());
                }
                Event::DeliverData { id, data } => {
                    session.release(id, u64::try_from(data.len()).unwrap_or(0));
                }
                Event::DeliverEnd { id } => {
                    let count = recipients.remove(&id).unwrap_or(0);
                    session.deliver_reply(id, &vec![RecipientReply::new(Status::Ok); count]);
                }
                _ => {}
            }
        }
        let mut out = Vec::new();
        while let Some(piece) = session.poll_transmit() {
            out.extend_from_slice(&piece);
        }
        stream.write_all(&out)?;
    }
}

/// Knows as much of LMTP as our own client needs: it sends a command group or a message, and waits.
fn serve_lmtp(mut stream: UnixStream) -> io::Result<()> {
    stream.write_all(b"220 fake LMTP\r\n")?;
    let mut buffer = vec![0; READ_BYTES];
    let mut pending: Vec<u8> = Vec::new();
    let (mut recipients, mut in_data) = (0, false);
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let input = buffer.get(..count).unwrap_or_default();
        if in_data {
            // Only the end matters; five bytes of the last piece are kept for it.
            pending.extend_from_slice(input.get(count.saturating_sub(5)..).unwrap_or_default());
            if pending.ends_with(b"\r\n.\r\n") {
                stream.write_all("250 2.0.0 stored\r\n".repeat(recipients).as_bytes())?;
                (recipients, in_data) = (0, false);
                pending.clear();
            }
            continue;
        }
        pending.extend_from_slice(input);
        let mut replies = String::new();
        while let Some(end) = pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            match line.get(..4) {
                Some(b"LHLO") => replies.push_str("250-fake\r\n250 PIPELINING\r\n"),
                Some(b"DATA") => {
                    replies.push_str("354 go\r\n");
                    in_data = true;
                }
                Some(b"RCPT") => {
                    replies.push_str("250 ok\r\n");
                    recipients += 1;
                }
                _ => replies.push_str("250 ok\r\n"),
            }
        }
        stream.write_all(replies.as_bytes())?;
    }
}

fn serve_echo(mut stream: UnixStream, size: usize) -> io::Result<()> {
    let mut buffer = vec![0; READ_BYTES];
    let mut reply = Vec::new();
    let mut bytes = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        bytes += count;
        reply.resize(bytes / size * REPLY_BYTES, 0);
        bytes %= size;
        stream.write_all(&reply)?;
    }
}
