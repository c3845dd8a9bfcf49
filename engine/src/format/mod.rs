//! Bytes on disk.
/// The format's major version.
pub const MAJOR: u8 = 1;
