//! Calls of `deliver` that other commands stand for: told as its own command line, so that its
//! defaults and its checks are theirs.

use std::path::PathBuf;

use clap::Parser;

use super::args::Args;

/// What such a command chooses; the rest is as `deliver` has it.
#[derive(Clone, Debug)]
pub(crate) struct Preset {
    /// `--via`, a list.
    pub(crate) via: String,
    /// `--size`, a list.
    pub(crate) size: String,
    /// `--in-flight`, a list.
    pub(crate) in_flight: String,
    /// `--users`.
    pub(crate) users: usize,
    /// `--seconds`.
    pub(crate) seconds: f64,
    /// `--warm-up`.
    pub(crate) warm_up: String,
    /// `--warm-up-max`.
    pub(crate) warm_up_max: f64,
    /// `--set`, each.
    pub(crate) settings: Vec<String>,
    /// `--scratch`.
    pub(crate) scratch: Option<PathBuf>,
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

impl Preset {
    /// The call.
    pub(crate) fn arguments(&self) -> anyhow::Result<Args> {
        let mut words = vec!["deliver".to_owned()];
        let mut say = |key: &str, value: &str| words.push(format!("--{key}={value}"));
        say("via", &self.via);
        say("size", &self.size);
        say("in-flight", &self.in_flight);
        say("users", &self.users.to_string());
        say("seconds", &self.seconds.to_string());
        say("warm-up", &self.warm_up);
        say("warm-up-max", &self.warm_up_max.to_string());
        for setting in &self.settings {
            say("set", setting);
        }
        let mut args = Line::try_parse_from(words)?.args;
        args.scratch.clone_from(&self.scratch);
        Ok(args)
    }
}
