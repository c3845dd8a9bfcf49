//! Two sessions over a link without sockets: bytes are handed over in pieces of a given size.

use bytes::{Bytes, BytesMut};
use ringpost_netproto::error::Violation;
use ringpost_netproto::session::Config;
use ringpost_netproto::session::client::{self, ClientSession};
use ringpost_netproto::session::server::{self, ServerSession};
use ringpost_netproto::version::{Hello, Role};

/// How bytes are cut on their way.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cut {
    /// As they were written.
    Whole,
    /// Into pieces of this many bytes.
    Every(usize),
}

/// A client and a server that are connected.
pub(crate) struct Pair {
    pub(crate) client: ClientSession,
    pub(crate) server: ServerSession,
    pub(crate) cut: Cut,
}

impl Pair {
    pub(crate) fn new(client: Hello, server: Hello) -> Self {
        Self {
            client: ClientSession::new(Config::new(client)),
            server: ServerSession::new(Config::new(server)),
            cut: Cut::Whole,
        }
    }

    /// A pair that has shaken hands, without events left.
    pub(crate) fn connected() -> Self {
        Self::connected_as(Hello::new(Role::Client), Hello::new(Role::Node))
    }

    pub(crate) fn connected_as(client: Hello, server: Hello) -> Self {
        let mut pair = Self::new(client, server);
        pair.run().expect("the handshake");
        assert_eq!(pair.client.poll_event(), Some(client::Event::Connected));
        assert_eq!(pair.server.poll_event(), Some(server::Event::Connected));
        pair
    }

    /// Moves what the client wrote. Events pile up.
    pub(crate) fn move_to_server(&mut self) -> Result<usize, Violation> {
        let mut moved = 0;
        while let Some(bytes) = self.client.poll_transmit() {
            moved += bytes.len();
            for piece in pieces(&bytes, self.cut) {
                self.server.handle_input(piece)?;
            }
        }
        Ok(moved)
    }

    /// Moves what the server wrote.
    pub(crate) fn move_to_client(&mut self) -> Result<usize, Violation> {
        let mut moved = 0;
        while let Some(bytes) = self.server.poll_transmit() {
            moved += bytes.len();
            for piece in pieces(&bytes, self.cut) {
                self.client.handle_input(piece)?;
            }
        }
        Ok(moved)
    }

    /// Moves bytes both ways until nothing moves.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        while self.move_to_server()? + self.move_to_client()? > 0 {}
        Ok(())
    }

    pub(crate) fn server_events(&mut self) -> Vec<server::Event> {
        std::iter::from_fn(|| self.server.poll_event()).collect()
    }

    pub(crate) fn client_events(&mut self) -> Vec<client::Event> {
        std::iter::from_fn(|| self.client.poll_event()).collect()
    }
}

/// All that waits to be written, in one.
pub(crate) fn drain(mut poll: impl FnMut() -> Option<Bytes>) -> Bytes {
    let mut all = BytesMut::new();
    while let Some(bytes) = poll() {
        all.extend_from_slice(&bytes);
    }
    all.freeze()
}

fn pieces(bytes: &Bytes, cut: Cut) -> Vec<Bytes> {
    match cut {
        Cut::Whole => vec![bytes.clone()],
        Cut::Every(len) => bytes.chunks(len).map(Bytes::copy_from_slice).collect(),
    }
}
