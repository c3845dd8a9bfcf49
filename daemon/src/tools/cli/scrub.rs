//! `scrub`: asks a running node to read what it has and compare it with its checksums, and says what
//! it knows to be damaged. While it waits, a second connection asks how far the node is.

use std::ffi::OsStr;
use std::io::Write as _;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ringpost_netproto::message::report::ReportField;

use super::node::Node;
use super::options::Global;
use super::{Failure, Output, show};
use crate::exit::Code;

/// How often a person is told how far it is.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// What is to be scrubbed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish<'a> {
    /// Nothing: say what is known.
    Known,
    /// All of the node, from the start.
    All,
    /// One user.
    User(&'a OsStr),
}

/// `Code::Failed` if damage is known.
pub fn scrub(global: &Global, wish: Wish<'_>, output: &mut Output) -> Result<Code, Failure> {
    let mut node = Node::connect(global)?;
    let fields = match wish {
        Wish::Known => {
            let about = |field: &ReportField| {
                field.name.starts_with("scrub.") || field.name.starts_with("damaged.")
            };
            let mut fields = node.status()?;
            fields.retain(about);
            fields
        }
        Wish::All => watched(global, || node.scrub(None))?,
        Wish::User(user) => watched(global, || node.scrub(Some(user)))?,
    };
    let damaged = fields
        .iter()
        .any(|field| field.name == "scrub.damaged" && field.value != "0");
    show::fields(fields, output)?;
    output.writer.flush()?;
    Ok(if damaged { Code::Failed } else { Code::Done })
}

/// Waits for `answer` while another thread shows how far the node is.
fn watched<T>(global: &Global, answer: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    let (done, wait) = mpsc::channel::<()>();
    let global = global.clone();
    let watcher = std::thread::spawn(move || watch(&global, &wait));
    let result = answer();
    drop(done);
    // Its end is nobody's result.
    drop(watcher.join());
    result
}

fn watch(global: &Global, done: &Receiver<()>) {
    // Hidden where standard error is no terminal.
    let bar = ProgressBar::new(1_000);
    bar.set_style(
        ProgressStyle::with_template("scrub {bar:30} {percent}% {msg}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let mut node = None;
    while !bar.is_hidden() && done.recv_timeout(PROGRESS_PERIOD) == Err(RecvTimeoutError::Timeout) {
        if node.is_none() {
            node = Node::connect(global).ok();
        }
        let Some(Ok(fields)) = node.as_mut().map(Node::status) else {
            break;
        };
        let value = |name: &str| {
            let found = fields.iter().find(|field| field.name == name);
            found.map_or("", |field| field.value.as_str())
        };
        bar.set_position(value("scrub.permille").parse().unwrap_or(0));
        let (messages, bytes) = (value("scrub.messages"), value("scrub.bytes"));
        bar.set_message(format!("{messages} messages, {bytes} bytes so far"));
    }
    bar.finish_and_clear();
}
