//! `ringpost`: the operator's tool.

pub mod options;

pub use self::options::Options;
