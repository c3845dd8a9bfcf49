//! See `targets::import_mbox`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::import_mbox::run(input));
