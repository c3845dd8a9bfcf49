//! `profile`: what a running node's threads do, or wait for: a flame graph and a table for each.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::check::daemon_of;
use super::node::{Node, data_dir};
use super::options::{Global, Profile};
use super::{Failure, Output};
use crate::exit::Code;
use crate::flame::{Clock, FlameError, Recording, Report, Unwind};

impl From<FlameError> for Failure {
    fn from(error: FlameError) -> Self {
        Self::Said(error.to_string())
    }
}

/// Records the node that the options name, on this machine.
pub fn profile(global: &Global, wish: &Profile, output: &mut Output) -> Result<Code, Failure> {
    let data = data_of(global)?;
    let pid = daemon_of(&data).ok_or_else(|| {
        Failure::Said(format!(
            "no daemon has {} open, or its LOCK cannot be read: a profile is taken on the node's machine, \
             as its user or as root",
            data.display()
        ))
    })?;
    let recording = Recording {
        seconds: wish.seconds,
        frequency: wish.frequency,
        clock: if wish.waits {
            Clock::Waiting
        } else {
            Clock::Running
        },
        unwind: Unwind::Tables,
    };
    let folder = &wish.directory;
    std::fs::create_dir_all(folder).map_err(|error| super::backup::failed(folder, &error))?;
    let recorded = folder.join("perf.data");
    recording.record(pid, &recorded)?;
    let report = Report {
        threads: recording.threads(&recorded)?,
        clock: recording.clock,
    };
    output.writer.write_all(report.write(folder)?.as_bytes())?;
    if let Some(old) = &wish.diff {
        let text = report.write_difference(old, folder)?;
        output.writer.write_all(text.as_bytes())?;
    }
    Ok(Code::Done)
}

/// The data directory, as the node says if nobody else does.
fn data_of(global: &Global) -> Result<PathBuf, Failure> {
    if let Some(data) = &global.data {
        return Ok(data.clone());
    }
    let report = Node::connect(global)?.status()?;
    let named = report.iter().find(|field| field.name == "data_dir");
    Ok(named.map_or_else(
        || data_dir(global),
        |field| Path::new(&field.value).to_owned(),
    ))
}
