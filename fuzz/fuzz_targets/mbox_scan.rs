//! See `targets::mbox_scan`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::mbox_scan::run(input));
