//! See `targets::log_frame`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::log_frame::run(input));
