//! See `targets::node_client`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::node_client::run(input));
