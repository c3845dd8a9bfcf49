//! Fuzz targets: plain functions over bytes that must not panic, hang, or allocate by an unchecked
//! length, and whose asserts hold for every input. `fuzz_targets/` hands them to libFuzzer,
//! `tests/corpus.rs` replays every corpus file through them on stable Rust; README.md says how. And the
//! simulator ([`sim`]): random work, faults and crashes from a seed.
#![forbid(unsafe_code)]

pub mod count;
mod seal;
pub mod sim;
pub mod targets;

/// A target: its name, which is also that of its corpus folder, and what it does.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Letters and underscores.
    pub name: &'static str,
    /// Panics if the input shows a defect.
    pub run: fn(&[u8]),
}

/// All targets, by name.
pub const TARGETS: &[Target] = &[
    target("address", targets::address::run),
    target("dedupe", targets::dedupe::run),
    target("folders", targets::folders::run),
    target("header_cache", targets::header_cache::run),
    target("import_mbox", targets::import_mbox::run),
    target("info", targets::info::run),
    target("lmtp", targets::lmtp::run),
    target("log_file", targets::log_file::run),
    target("log_frame", targets::log_frame::run),
    target("mbox_scan", targets::mbox_scan::run),
    target("message", targets::message::run),
    target("node_client", targets::node_client::run),
    target("node_frame", targets::node_frame::run),
    target("node_server", targets::node_server::run),
    target("parts", targets::parts::run),
    target("store_file", targets::store_file::run),
    target("store_line", targets::store_line::run),
    target("superblock", targets::superblock::run),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}
