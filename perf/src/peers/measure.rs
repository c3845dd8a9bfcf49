//! One run of one system: started on an empty store, one message to each user, the load between two
//! looks at clock, device and CPU time, a sample read back, its orderly end.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use nix::unistd::Pid;

use super::args::first_messages;
use super::device::{Device, DeviceCounts};
use super::peer::{Door, Running};
use super::service::wait_until;
use crate::deliver::plan::Plan;
use crate::deliver::tally::Tally;
use crate::deliver::verify::Verification;
use crate::process::{CpuTime, MachineTime};

/// What came of a run.
#[derive(Debug)]
pub(crate) struct Findings {
    /// The generator's account.
    pub(crate) tally: Tally,
    /// From the first message until all that was taken had been delivered.
    pub(crate) delivered_in: Duration,
    /// Whether an answer came before the message was stored.
    pub(crate) queued: bool,
    /// Whether mail is kept at all.
    pub(crate) kept: bool,
    /// CPU time of the system under test: its servers, and programs run for single messages.
    pub(crate) cpu: Duration,
    /// CPU time of the generator.
    pub(crate) generator_cpu: Duration,
    /// The part of the processors' time that the hypervisor withheld meanwhile.
    pub(crate) stolen_share: Option<f64>,
    /// What the device did from the first message until all were delivered.
    pub(crate) device: Option<DeviceCounts>,
    /// Bytes it wrote until the system had ended and everything was durable.
    pub(crate) written_bytes: Option<u64>,
    /// What the store gave back.
    pub(crate) verification: Verification,
    /// What went wrong besides.
    pub(crate) faults: Vec<String>,
}

/// Runs a system that was just started.
pub(crate) fn measure(
    mut running: Box<dyn Running>,
    plan: &dyn Fn(&Door, Option<&str>) -> Plan,
    device: &Device,
) -> anyhow::Result<Findings> {
    let door = running.door();
    let plan = plan(&door, running.domain());
    let before = prepare(running.as_ref(), &door, &plan)?;
    device.sync()?;

    let counts = device.counts();
    let (servers, own) = (running.cpu()?, own_cpu()?);
    let machine = MachineTime::now();
    let begin = Instant::now();
    let mut tally = door.drive(&plan)?;
    let mut faults = Vec::new();
    if let Err(error) = wait_until(plan.drain_max, || running.is_idle()) {
        faults.push(format!("mail is still queued: {error:#}"));
    }
    let delivered_in = begin.elapsed();
    let (servers, own) = (
        running.cpu()?.saturating_sub(servers),
        own_cpu()?.since(own),
    );
    let machine = MachineTime::now().zip(machine);
    let since = |before: Option<DeviceCounts>| Some(device.counts()?.since(before?));
    let loaded = since(counts);

    let verification = running
        .compare(&plan, &mut tally, &before)
        .context("what was stored cannot be read")?;
    let kept = running.keeps();
    if let Err(error) = running.stop() {
        faults.push(format!("{error:#}"));
    }
    device.sync()?;
    Ok(Findings {
        tally,
        delivered_in,
        queued: door.is_queue(),
        kept,
        cpu: servers + own.children,
        generator_cpu: own.own,
        stolen_share: machine.and_then(|(now, before)| now.stolen_since(before)),
        device: loaded,
        written_bytes: since(counts).map(|counts| counts.written_bytes),
        verification,
        faults,
    })
}

/// One message to each user; returns how many each has then.
fn prepare(running: &dyn Running, door: &Door, plan: &Plan) -> anyhow::Result<Vec<u32>> {
    if let Some(counts) = running.fill()? {
        return Ok(counts);
    }
    let store = running.store_door();
    let door = store.as_ref().unwrap_or(door);
    let tally = door.drive(&first_messages(plan, door.line_end()))?;
    ensure!(
        tally.errors_count() == 0 && tally.recipients_all > 0,
        "the first messages were refused: {:?}",
        tally.errors
    );
    wait_until(plan.drain_max, || running.is_idle()).context("the first messages are queued")?;
    Ok(tally.stored_by_user)
}

fn own_cpu() -> anyhow::Result<CpuTime> {
    CpuTime::of(Pid::this()).context("this process's CPU time cannot be read")
}
