//! How a node starts and ends: clear sentences and exit codes, drain, reload, and what it says about
//! itself.

mod testkit;

use std::io::Read as _;
use std::os::unix::net::UnixStream;

use nix::sys::signal::Signal;
use ringpost_daemon::client::Address;
use ringpost_netproto::frame::Status;
use testkit::{Daemon, NodeClient, Scratch, until};

#[test]
fn a_wrong_configuration_is_one_sentence_and_exit_78() {
    let scratch = Scratch::new();
    let file = scratch.path("ringpost.toml");
    std::fs::write(&file, "node_id = 1\n[listen]\nlmpt = \"none\"\n").unwrap();
    let file = file.to_str().unwrap().to_owned();
    for (arguments, want) in [
        (
            vec!["--config", &file],
            "line 3: unknown key \"listen.lmpt\"; did you mean \"listen.lmtp\"?",
        ),
        (vec!["--config", "missing.toml"], "cannot read missing.toml"),
        (
            vec!["--try", "--set", "cores=0"],
            "cores = \"0\": from 1 to 255",
        ),
        (
            vec!["--try", "--set", "listen.lmtp=0.0.0.0:2424"],
            "insecure = true",
        ),
        (vec![], "nobody has an account"),
        (
            vec!["--set", "accounts.file=missing"],
            "accounts.file missing: ",
        ),
    ] {
        let (code, words) = scratch.run(&arguments);
        assert_eq!(code, Some(78), "{arguments:?}: {words}");
        assert!(
            words.starts_with("ringpostd: ") && words.contains(want),
            "{words}"
        );
        assert_eq!(words.trim_end().lines().count(), 1, "{words}");
    }
    assert!(
        !scratch.path("ringpost-data").exists(),
        "nothing is made before the check"
    );
}

#[test]
fn a_directory_of_others_is_refused() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let error = Daemon::start(&scratch, &["accounts.accept=any"]).unwrap_err();
    assert!(
        error.contains(&format!(
            "in use by a running daemon (process {})",
            daemon.pid()
        )),
        "{error}"
    );
    assert_eq!(
        daemon.client().deliver(&["bob@example.test"], b"x\n")[0].status,
        Status::Ok
    );
    assert_eq!(daemon.stop().code(), Some(0));
    let error = Daemon::start(&scratch, &["accounts.accept=any", "node_id=7"]).unwrap_err();
    assert!(
        error.contains("belongs to node 1, the configuration says node 7"),
        "{error}"
    );
    std::fs::create_dir(scratch.path("home")).unwrap();
    std::fs::write(scratch.path("home/letter.txt"), "mine").unwrap();
    let (code, words) = scratch.run(&["--try", "--data", "home", "--set", "listen.lmtp=none"]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("home: "), "{words}");
}

#[test]
fn a_socket_in_the_way_is_told_and_a_dead_one_replaced() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let taken = daemon.lmtp.clone();
    daemon.kill();
    assert!(taken.exists(), "a killed daemon leaves its socket");
    let daemon = scratch.start();
    assert_eq!(daemon.stop().code(), Some(0));
    assert!(!taken.exists(), "a stopped daemon takes its socket along");
    std::fs::write(&taken, "a file").unwrap();
    let error = Daemon::start(&scratch, &["accounts.accept=any"]).unwrap_err();
    assert!(
        error.contains("a file that is no socket is in the way"),
        "{error}"
    );
}

#[test]
fn sigterm_lets_an_open_transaction_end_and_refuses_new_ones() {
    let scratch = Scratch::new();
    let mut daemon = scratch.start();
    let mut open = daemon.lmtp();
    let mut idle = daemon.lmtp();
    open.envelope(&["bob@example.test"]);
    assert!(open.say("DATA").starts_with("354 "));
    open.send(b"Subject: half\r\n");
    daemon.signal(Signal::SIGTERM);
    assert!(idle.rest().starts_with("421 4.3.2 "));
    // The cores are told at the same time as the doors are closed.
    until("the doors to be closed", || {
        UnixStream::connect(&daemon.node).is_err()
    });
    open.send(b"\r\nthe other half\r\n.\r\n");
    let said = open.rest();
    let lines: Vec<&str> = said.lines().collect();
    assert!(
        lines[0].ends_with(" stored") && lines[1].starts_with("421 4.3.2 "),
        "{said}"
    );
    assert_eq!(daemon.wait().code(), Some(0));
    let daemon = scratch.start();
    assert_eq!(daemon.client().count("bob@example.test"), 1);
    let (_, status) = daemon.page("/status");
    assert!(
        status.contains("\"recovered.records\": 0"),
        "a drained log holds nothing: {status}"
    );
}

/// A client that closes behind the dot, while recipients of several cores are owed their replies, leaves
/// nothing behind that the end would wait for.
#[test]
fn a_client_that_goes_while_replies_are_owed_leaves_nothing() {
    let scratch = Scratch::new();
    let mut daemon = scratch.start_with(&["cores=2", "drain_timeout=200 ms"]);
    let users: Vec<String> = (0..8).map(|n| format!("user{n}@example.test")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    for _ in 0..40 {
        let mut client = daemon.lmtp();
        client.envelope(&users);
        assert!(client.say("DATA").starts_with("354 "));
        client.send(b"Subject: gone\r\n\r\ntext\r\n.\r\n");
    }
    until("no connection to be left", || {
        daemon.metric("ringpost_connections{door=\"lmtp\"}") < 1.0
    });
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn sigterm_cuts_off_who_does_not_end() {
    let scratch = Scratch::new();
    let mut daemon = scratch.start_with(&["drain_timeout=200 ms"]);
    let mut open = daemon.lmtp();
    open.envelope(&["bob@example.test"]);
    assert!(open.say("DATA").starts_with("354 "));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(open.rest(), "");
    assert_eq!(daemon.wait().code(), Some(0));
    assert_eq!(scratch.start().client().count("bob@example.test"), 0);
}

#[test]
fn killed_under_load_it_keeps_what_it_acknowledged() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    let mut client = daemon.client();
    for number in 0..50 {
        let message = format!("Subject: {number}\n\nbody {number}\n");
        let user = format!("user{}@example.test", number % 5);
        assert_eq!(
            client.deliver(&[&user], message.as_bytes())[0].status,
            Status::Ok
        );
    }
    daemon.kill();
    let daemon = scratch.start_with(&["cores=1"]);
    let mut client = daemon.client();
    for user in 0..5 {
        assert_eq!(client.count(&format!("user{user}@example.test")), 10);
    }
}

#[test]
fn admin_pages_say_how_it_is() {
    let scratch = Scratch::new();
    let daemon = scratch.start();
    for path in ["/livez", "/readyz"] {
        let (status, body) = daemon.page(path);
        assert_eq!(
            (status.as_str(), body.as_str()),
            ("HTTP/1.1 200 OK", "ok\n"),
            "{path}"
        );
    }
    assert_eq!(
        daemon.client().deliver(&["bob@example.test"], b"x\n")[0].status,
        Status::Ok
    );
    let stored = "ringpost_deliveries_total{door=\"node\",outcome=\"stored\"}";
    assert!((daemon.metric(stored) - 1.0).abs() < 0.5);
    assert!(daemon.metric("ringpost_log_write_seconds_count") > 0.5);
    assert!(daemon.metric("ringpost_flushes_per_recipient") > 0.5);
}

#[test]
fn reload_names_what_needs_a_restart_and_keeps_the_old_on_error() {
    let scratch = Scratch::new();
    let users = scratch.path("users");
    std::fs::write(&users, "bob@example.test\n").unwrap();
    let file = format!("accounts.file={}", users.display());
    let daemon = Daemon::start(&scratch, &[&file]).unwrap();
    std::fs::write(&users, "no address\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    until("the refusal", || {
        daemon.words().contains("line 1: not an address")
    });
    assert_eq!(
        daemon.client().deliver(&["bob@example.test"], b"x\n")[0].status,
        Status::Ok
    );
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn a_connection_too_many_is_told_so_and_the_others_go_on() {
    let scratch = Scratch::new();
    let daemon = scratch.start_with(&["connections_max=4"]);
    let mut held: Vec<_> = (0..4).map(|_| daemon.client()).collect();
    let mut refused = UnixStream::connect(&daemon.lmtp).unwrap();
    let mut said = String::new();
    refused.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("421 4.7.0 "), "{said}");
    let replies = held[0].deliver(&["bob@example.test"], b"x\n");
    assert_eq!(replies[0].status, Status::Ok);
    held.pop();
    let address = Address::Unix(daemon.node.clone());
    until("a free place", || NodeClient::connect(&address).is_ok());
}
