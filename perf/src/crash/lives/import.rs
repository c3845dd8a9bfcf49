//! An import that is cut: an mbox goes into a user of a running daemon, the power goes, the import is
//! run again to its end. Then every message of the mbox is there once, with its bytes, beside
//! those of earlier rounds. An import that had ended well before the cut has nothing left to do.

#![expect(
    clippy::print_stdout,
    reason = "a rig speaks to whoever runs it, and its last line is read by scripts"
)]

use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::{Lives, end, pause};
use crate::crash::life::{self, USERS};
use crate::daemon::{Daemon, Setup};

/// Messages of a round's mbox: some tenths of a second of import, so that most cuts fall into it.
const MESSAGES: usize = 5_000;

/// How long a start and an orderly stop may take.
const PATIENCE: Duration = Duration::from_mins(2);

/// What an import says with `--json`.
#[derive(serde::Deserialize)]
struct Report {
    imported: u64,
    already_there: u64,
}

impl Lives<'_> {
    pub(super) fn import_round(&mut self, round: u32) -> anyhow::Result<()> {
        let user = usize::try_from(round)? % USERS;
        let mbox = self.folder.join("import.mbox");
        let serials = write_mbox(&mbox, self.seed, self.serial)?;
        self.serial = serials.last().context("an mbox with messages")? + 1;
        let setup = self.import_setup()?;

        let moment = Duration::from_millis(self.random.u64(5..=self.common.window_ms));
        let ended = self.import_and_cut(&setup, user, &mbox, moment)?;
        self.check(round)?;
        let report = self.import_to_its_end(&setup, user, &mbox)?;
        if ended && report.imported > 0 {
            self.violations.push(format!(
                "round {round}: lost: {} messages of an import that had ended",
                report.imported
            ));
        }
        let count = self.hold_against(round, user, &serials)?;
        self.stored += u64::try_from(serials.len())?;
        self.struck_in_import += u32::from(!ended);
        println!(
            "round {round}: struck after {} ms, {} the import; {} were there after it, {} more \
             came, {count} in all",
            moment.as_millis(),
            if ended { "behind" } else { "in" },
            report.already_there,
            report.imported,
        );
        Ok(())
    }

    fn import_setup(&mut self) -> anyhow::Result<Setup> {
        let sockets = self.folder.join("s");
        std::fs::create_dir_all(&sockets)?;
        let interval = if self.random.bool() { "300 ms" } else { "60 s" };
        Ok(Setup {
            ringpostd: self.programs.ringpostd.clone(),
            data: self.data(),
            sockets,
            log: self.folder.join("ringpostd.log"),
            settings: vec![
                "cores=1".to_owned(),
                format!("checkpoint_interval={interval}"),
                "log_bytes_per_core=256 MiB".to_owned(),
                "disk_reserve=16 MiB".to_owned(),
                "logs.level=warn".to_owned(),
            ],
            start_max: PATIENCE,
        })
    }

    /// Takes the power away at `moment` of an import. Whether that had ended.
    fn import_and_cut(
        &mut self,
        setup: &Setup,
        user: usize,
        mbox: &Path,
        moment: Duration,
    ) -> anyhow::Result<bool> {
        let daemon = Daemon::start(setup)?;
        let mut import = self
            .import(&daemon, user, mbox)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start the import")?;
        pause(moment);
        let ended = import.try_wait()?;
        if let Some(status) = ended {
            ensure!(status.success(), "the import ended with {status}");
        }
        self.disk.cut_power()?.wait()?;
        end(&mut import)?;
        daemon.kill()?;
        self.disk.power_up()?;
        Ok(ended.is_some())
    }

    /// Imports the same again, with nothing in the way, and stops the daemon in order.
    fn import_to_its_end(&self, setup: &Setup, user: usize, mbox: &Path) -> anyhow::Result<Report> {
        let daemon = Daemon::start(setup)?;
        let again = self.import(&daemon, user, mbox).output()?;
        let said = String::from_utf8_lossy(&again.stderr);
        ensure!(
            again.status.success(),
            "the import after the cut ended with {}: {said}",
            again.status
        );
        let report = serde_json::from_slice(&again.stdout)
            .context("the import after the cut printed no report")?;
        let status = daemon.stop(PATIENCE)?;
        ensure!(status.success(), "the daemon stopped with {status}");
        Ok(report)
    }

    /// Every message of the mbox is there, once, beside those of earlier rounds; how many in all.
    fn hold_against(&mut self, round: u32, user: usize, serials: &[u64]) -> anyhow::Result<usize> {
        if let Some(truth) = self.boxes.get_mut(user) {
            truth.doubtful.extend(serials);
        }
        let found = self.read()?;
        self.compare(round, &found);
        let there = self.boxes.get(user).map(|truth| &truth.kept);
        for serial in serials {
            if !there.is_some_and(|kept| kept.values().any(|kept| kept == serial)) {
                self.violations.push(format!(
                    "round {round}: not there after a whole import: user {user} serial {serial}"
                ));
            }
        }
        Ok(found.len())
    }

    fn import(&self, daemon: &Daemon, user: usize, mbox: &Path) -> Command {
        let mut command = Command::new(&self.programs.ringpost);
        command
            .arg("--json")
            .arg("--to")
            .arg(format!("unix:{}", daemon.doors().node.display()))
            .arg("import")
            .args(["--mbox-flavour", "mboxrd"])
            .arg(life::user(user))
            .arg(mbox)
            .stdin(Stdio::null());
        command
    }
}

/// Writes messages from `from` on as an mboxrd; their serials. Only those that an mbox can hold byte
/// for byte are taken: lines that end with LF, the last one too. Quoted here and not by the engine,
/// whose reading of it is what is tried.
fn write_mbox(path: &Path, seed: u64, from: u64) -> anyhow::Result<Vec<u64>> {
    let mut out = BufWriter::new(std::fs::File::create(path)?);
    let mut serials = Vec::with_capacity(MESSAGES);
    let mut serial = from;
    while serials.len() < MESSAGES {
        if let Some(bytes) = life::content(seed, serial)
            && bytes.ends_with(b"\n")
            && !bytes.contains(&b'\r')
        {
            out.write_all(b"From rig@rig.test Thu Nov 15 12:00:00 2001\n")?;
            for line in bytes.split_inclusive(|byte| *byte == b'\n') {
                let unquoted = line.iter().position(|byte| *byte != b'>').unwrap_or(0);
                if line
                    .get(unquoted..)
                    .is_some_and(|rest| rest.starts_with(b"From "))
                {
                    out.write_all(b">")?;
                }
                out.write_all(line)?;
            }
            out.write_all(b"\n")?;
            serials.push(serial);
        }
        serial += 1;
    }
    out.flush()?;
    Ok(serials)
}
