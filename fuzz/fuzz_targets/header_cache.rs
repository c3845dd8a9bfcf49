//! See `targets::header_cache`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::header_cache::run(input));
