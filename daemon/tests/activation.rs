//! Sockets that systemd made: each goes to the door of its name, which opens none of its own; and what is
//! not understood ends the start.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod testkit;

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::fcntl::{FcntlArg, fcntl};
use ringpost_daemon::client::Address;
use testkit::{Daemon, Lmtp, NodeClient, Scratch, stamped};

/// Copies that a child inherits, side by side from `first` on; they stay open until the test ends.
fn inherited(first: i32, sockets: &[BorrowedFd<'_>]) -> String {
    for (fd, socket) in (first..).zip(sockets) {
        let copy = fcntl(socket, FcntlArg::F_DUPFD(fd)).unwrap();
        assert_eq!(copy, fd, "taken already");
    }
    first.to_string()
}

/// Starts a daemon with these sockets.
fn start(
    scratch: &Scratch,
    (first, names): (&str, &str),
    settings: &[&str],
) -> Result<Daemon, String> {
    let count = names.split(':').count().to_string();
    let environment = [
        ("LISTEN_FDS", &*count),
        ("LISTEN_FDNAMES", names),
        // Descriptors 3 and above are the test's own.
        ("LISTEN_FDS_FIRST_FD", first),
    ];
    let mut all = vec!["accounts.accept=any"];
    all.extend(settings);
    Daemon::start_in(scratch, &all, &environment)
}

#[test]
fn passed_sockets_are_the_doors_and_outlive_the_daemon() {
    let scratch = Scratch::new();
    let (node, admin) = (scratch.path("passed-node"), scratch.path("passed-admin"));
    let sockets = (
        UnixListener::bind(&node).unwrap(),
        TcpListener::bind("127.0.0.1:0").unwrap(),
        UnixListener::bind(&admin).unwrap(),
    );
    let first = inherited(
        200,
        &[sockets.0.as_fd(), sockets.1.as_fd(), sockets.2.as_fd()],
    );
    let address = sockets.1.local_addr().unwrap();
    for round in 1..=2 {
        // Nobody is there yet: the connection waits in the kernel.
        let early = TcpStream::connect(address).unwrap();
        let daemon = start(&scratch, (&first, "node:lmtp:admin"), &[]);
        let daemon = daemon.unwrap_or_else(|words| panic!("{words}"));
        for own in [&daemon.node, &daemon.lmtp, &daemon.admin] {
            assert!(!own.exists(), "{} was opened too", own.display());
        }
        drop(early);
        let message = stamped(&format!("round {round}"));
        let mut lmtp = Lmtp::over_tcp(&address.to_string());
        assert!(lmtp.reply().starts_with("220 "));
        assert!(lmtp.say("LHLO test").starts_with("250 "));
        let replies = lmtp.deliver(&["bob@v.test"], &message);
        assert!(replies[0].starts_with("250 "), "{replies:?}");
        let mut client = NodeClient::connect(&Address::Unix(node.clone())).unwrap();
        assert_eq!(client.count("bob@v.test"), round);
        drop(UnixStream::connect(&admin).unwrap());
        assert!(daemon.stop().success());
        assert!(node.exists() && admin.exists(), "they are systemd's");
    }
}

#[test]
fn what_is_not_understood_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let open = TcpListener::bind("0.0.0.0:0").unwrap();
    for (place, socket, name, why) in [
        (
            300,
            listener.as_fd(),
            "ringpostd.socket",
            "under the name \"ringpostd.socket\"",
        ),
        (301, listener.as_fd(), "", "FileDescriptorName="),
        (302, datagrams.as_fd(), "lmtp", "is no stream socket"),
        (303, connected.as_fd(), "node", "does not listen"),
        (304, open.as_fd(), "lmtp", "set insecure = true"),
    ] {
        let scratch = Scratch::new();
        let first = inherited(place, &[socket]);
        let words = start(&scratch, (&first, name), &[]).map(drop);
        let words = words.expect_err("it must not start");
        assert!(words.contains(why), "{name}: {words}");
    }
}
