//! Ours: a daemon of its own on an empty folder, through each of its doors. It is durable by
//! itself: no setting makes an acknowledgement come before the log is on the disk.

use std::path::PathBuf;
use std::time::Duration;

use super::compare::{self, Quoting};
use super::group::Group;
use super::peer::{Door, ReadDoor, Running, Site};
use crate::address::Address;
use crate::daemon::{Daemon, Setup};
use crate::deliver::mda;
use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::{self, Verification};

/// A daemon fills its first log files before it serves, and ends with a checkpoint.
const PATIENCE: Duration = Duration::from_mins(2);

/// Which of our doors.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Via {
    /// The node protocol.
    Node,
    /// LMTP.
    Lmtp,
    /// One `ringpost-deliver` per message.
    Mda,
}

/// A daemon that runs.
pub(crate) struct Ringpost {
    // Ended before its group is.
    daemon: Daemon,
    group: Group,
    via: Via,
    deliver: PathBuf,
}

impl Ringpost {
    /// Starts one on the site's scratch folder.
    pub(crate) fn start(site: &Site<'_>, via: Via) -> anyhow::Result<Self> {
        let group = Group::make()?;
        let setup = Setup {
            ringpostd: site.programs.ringpostd.clone(),
            data: site.scratch.join("data"),
            sockets: site.sockets.to_owned(),
            log: site.scratch.join("ringpostd.log"),
            settings: site.settings.to_vec(),
            start_max: PATIENCE,
        };
        let daemon = Daemon::start(&setup)?;
        group.take_in(daemon.pid())?;
        Ok(Self {
            daemon,
            group,
            via,
            deliver: site.programs.deliver.clone(),
        })
    }

    /// The node protocol's socket.
    pub(crate) fn node(&self) -> Address {
        Address::from(self.daemon.doors().node.as_path())
    }

    /// The LMTP socket.
    fn lmtp(&self) -> Address {
        Address::from(self.daemon.doors().lmtp.as_path())
    }

    /// Compares behind an MTA, which adds header fields: watched users, line by line.
    pub(crate) fn compare_lines(
        &self,
        plan: &Plan,
        tally: &mut Tally,
        before: &[u32],
    ) -> anyhow::Result<Verification> {
        let mut mailbox = |user: &str| verify::mailbox(&self.node(), user);
        compare::compare(plan, tally, before, Quoting::None, &mut mailbox)
    }
}

impl Running for Ringpost {
    fn door(&self) -> Door {
        match self.via {
            Via::Node => Door::Node(self.node()),
            Via::Lmtp => Door::Lmtp(self.lmtp()),
            Via::Mda => {
                let (program, node) = (self.deliver.clone(), self.node());
                Door::Program(Box::new(move |users| mda::shim(&program, &node, users)))
            }
        }
    }

    fn reads(&self) -> Option<ReadDoor> {
        Some(ReadDoor::Node(self.node()))
    }

    fn cpu(&self) -> anyhow::Result<Duration> {
        self.group.cpu()
    }

    fn compare(
        &mut self,
        plan: &Plan,
        tally: &mut Tally,
        before: &[u32],
    ) -> anyhow::Result<Verification> {
        verify::verify(&self.node(), plan, tally, before)
    }

    fn stop(self: Box<Self>) -> anyhow::Result<()> {
        let status = self.daemon.stop(PATIENCE)?;
        anyhow::ensure!(status.success(), "ringpostd ended with {status}");
        Ok(())
    }
}
