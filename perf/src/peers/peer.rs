//! The seam between the comparison and a system: how it is started on an empty store, through
//! which door it gets mail, what it has used, and what it has stored.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::root::Root;
use crate::address::Address;
use crate::deliver::cell;
use crate::deliver::lmtp::{Dialect, LmtpSession, Transfer};
use crate::deliver::mda;
use crate::deliver::node::NodeSession;
use crate::deliver::plan::Plan;
use crate::deliver::session::Session;
use crate::deliver::tally::Tally;
use crate::deliver::verify::Verification;
use crate::programs::Programs;
use crate::workload::{LineEnd, Users};

/// Connections of the node protocol: many messages share one.
const NODE_CONNECTIONS: usize = 16;

/// Where a system is started.
pub(crate) struct Site<'a> {
    /// Its packages; of ours there are none.
    pub(crate) roots: &'a dyn Fn(&super::packages::Family) -> anyhow::Result<std::rc::Rc<Root>>,
    /// An empty folder on the disk under test.
    pub(crate) scratch: &'a Path,
    /// An empty folder with a short path.
    pub(crate) sockets: &'a Path,
    /// Our programs.
    pub(crate) programs: &'a Programs,
    /// Settings of our daemon, `KEY=VALUE`.
    pub(crate) settings: &'a [String],
    /// Who gets mail.
    pub(crate) users: &'a Users,
    /// Messages in flight: servers that fork must be allowed as many processes.
    pub(crate) in_flight: usize,
}

/// Makes the call of a program for a message to these users.
type Calls = Box<dyn Fn(&[&str]) -> Command + Sync>;

/// How mail goes in.
pub(crate) enum Door {
    /// The node protocol.
    Node(Address),
    /// LMTP: an answer says that the message is stored.
    Lmtp(Address),
    /// SMTP: an answer says that the message is queued.
    Smtp(Address),
    /// A program for each message.
    Program(Calls),
}

/// How mail is read.
#[derive(Clone, Debug)]
pub(crate) enum ReadDoor {
    /// The node protocol.
    Node(Address),
    /// IMAP.
    Imap(Address),
}

/// A system that runs. Dropping it ends it.
pub(crate) trait Running {
    /// Where mail goes in.
    fn door(&self) -> Door;

    /// The domain of its users, if they need one.
    fn domain(&self) -> Option<&'static str> {
        None
    }

    /// Gives each user a first message past the door, where that has a reason; how many each has.
    fn fill(&self) -> anyhow::Result<Option<Vec<u32>>> {
        Ok(None)
    }

    /// A door past its queue, for first messages, where it has one.
    fn store_door(&self) -> Option<Door> {
        None
    }

    /// Where clients read, if it serves any ([`System::is_read`](super::system::System::is_read)).
    fn reads(&self) -> Option<ReadDoor> {
        None
    }

    /// Whether mail is kept at all: a dummy throws it away, and nothing can be compared.
    fn keeps(&self) -> bool {
        true
    }

    /// CPU time of its servers so far. Programs that the generator runs are not in it.
    fn cpu(&self) -> anyhow::Result<Duration>;

    /// Whether all mail that was taken has been delivered: of an MTA, whether its queue is empty.
    fn is_idle(&self) -> anyhow::Result<bool> {
        Ok(true)
    }

    /// Compares what is stored with the account; `before` is what mailboxes held when it began.
    fn compare(
        &mut self,
        plan: &Plan,
        tally: &mut Tally,
        before: &[u32],
    ) -> anyhow::Result<Verification>;

    /// Its orderly end.
    fn stop(self: Box<Self>) -> anyhow::Result<()>;
}

impl Door {
    /// Line ends of messages that it takes.
    pub(crate) fn line_end(&self) -> LineEnd {
        match self {
            Self::Lmtp(_) | Self::Smtp(_) => LineEnd::CrLf,
            Self::Node(_) | Self::Program(_) => LineEnd::Lf,
        }
    }

    /// Whether an answer comes before the message is stored.
    pub(crate) fn is_queue(&self) -> bool {
        matches!(self, Self::Smtp(_))
    }

    /// Connections for so many messages in flight; 0 for programs.
    pub(crate) fn connections(&self, in_flight: usize) -> usize {
        match self {
            Self::Node(_) => in_flight.min(NODE_CONNECTIONS),
            Self::Lmtp(_) | Self::Smtp(_) => in_flight,
            Self::Program(_) => 0,
        }
    }

    /// Runs a plan's load through it.
    pub(crate) fn drive(&self, plan: &Plan) -> anyhow::Result<Tally> {
        let connections = self.connections(plan.in_flight);
        let speaking = |dialect| {
            move || -> Box<dyn Session> { Box::new(LmtpSession::speaking(dialect, Transfer::Data)) }
        };
        let links = match self {
            Self::Program(calls) => return mda::run(plan, calls.as_ref(), Instant::now()),
            Self::Node(address) => {
                cell::connect(address, connections, &|| Box::new(NodeSession::new()))?
            }
            Self::Lmtp(address) => cell::connect(address, connections, &speaking(Dialect::Lmtp))?,
            Self::Smtp(address) => cell::connect(address, connections, &speaking(Dialect::Smtp))?,
        };
        cell::load(plan, 1, links, Instant::now())
    }
}
