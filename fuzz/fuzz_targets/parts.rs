//! See `targets::parts`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::parts::run(input));
