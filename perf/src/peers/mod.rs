//! `peers`: our doors and the mail stores an operator could pick instead, in turn, in one run: the
//! same generator, messages and users, each system durable at its documented safe setting.
//!
//! [`run()`] goes through sizes, messages in flight, rounds and systems; a system is one module behind
//! the trait in [`peer`], on packages that [`packages`] fetches and [`root`] lays out.

mod args;
mod chart;
mod compare;
mod cyrus;
mod device;
mod dovecot;
mod group;
mod imap;
mod mda;
mod measure;
mod packages;
mod peer;
mod postfix;
pub(crate) mod reading;
mod report;
mod ringpost;
mod root;
mod run;
mod sendmail;
mod service;
mod spool;
mod system;
pub(crate) mod thesis;

pub(crate) use args::Args;
pub(crate) use group::members;
pub(crate) use run::run;
