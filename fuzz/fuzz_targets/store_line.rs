//! See `targets::store_line`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::store_line::run(input));
