//! What the daemon says: `tracing` lines on standard error. Human on a terminal, JSON otherwise.
//! Nothing is logged per message at `info`; the subscriber locks.

use std::io::{IsTerminal as _, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::{LogFormat, LogsConfig};

/// Sets the subscriber of the process. A second call does nothing.
pub fn start(config: &LogsConfig) {
    let filter = EnvFilter::try_new(&config.level).expect("checked when the key was set");
    let human = match config.format {
        LogFormat::Auto => stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let builder = fmt().with_env_filter(filter).with_writer(stderr);
    let result = if human {
        builder
            .with_target(false)
            .with_ansi(stderr().is_terminal())
            .try_init()
    } else {
        builder.json().flatten_event(true).try_init()
    };
    if let Err(error) = result {
        tracing::debug!(%error, "logs were started before");
    }
}
