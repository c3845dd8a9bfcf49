//! See `targets::node_frame`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::node_frame::run(input));
