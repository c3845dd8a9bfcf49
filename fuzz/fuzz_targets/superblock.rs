//! See `targets::superblock`.
#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| ringpost_fuzz::targets::superblock::run(input));
