//! An info file: header and runs. The walk covers every slot once and ends.

use ringpost_engine::format::crc;
use ringpost_engine::format::info::{
    FIRST_SLOT, INFO_HEADER_BYTES, InfoHeader, Run, Runs, SLOT, Seed,
};
use ringpost_engine::header_cache;
use ringpost_netproto::id::UserHash;

use crate::seal;

/// The input is the file; identity is taken from its header.
pub fn run(input: &[u8]) {
    check(input);
    let mut sealed = seal::file_header(input, *b"RINGIDX1", INFO_HEADER_BYTES);
    let seed = seed(&sealed);
    let runs = sealed.get_mut(INFO_HEADER_BYTES..).unwrap_or_default();
    seal_runs(runs, seed);
    check(&sealed);
}

fn seed(file: &[u8]) -> Seed {
    Seed {
        user: UserHash::new(seal::get_u64(file, 24)),
        generation: seal::get_u32(file, 36),
    }
}

/// Gives every run that is all there a checksum that holds at its slot.
fn seal_runs(runs: &mut [u8], seed: Seed) {
    let mut slot = FIRST_SLOT;
    let mut at = 0;
    while let Some(rest) = runs.get_mut(at..).filter(|rest| rest.len() >= SLOT) {
        let extra = rest.get(5).map_or(0, |extra| usize::from(*extra));
        let len = (extra + 1) * SLOT;
        let Some(run) = rest.get_mut(..len) else {
            return;
        };
        let crc = crc::extend(seed.crc(slot), run.get(4..).unwrap_or_default());
        seal::put_u32(run, 0, crc);
        at += len;
        slot += u32::try_from(extra + 1).expect("at most 256");
    }
}

fn check(file: &[u8]) {
    let seed = seed(file);
    let header = InfoHeader::open(file, seed.user, seal::get_u32(file, 32), seed.generation);
    if let Ok(header) = header {
        assert_eq!(header.seed(), seed);
        let again = header.seal();
        InfoHeader::open(&again, header.user, header.ordinal, header.generation)
            .expect("just sealed");
    }
    let runs = file.get(INFO_HEADER_BYTES..).unwrap_or_default();
    let mut slot = FIRST_SLOT;
    for run in Runs::new(runs, seed, FIRST_SLOT) {
        assert_eq!(run.slot, slot);
        assert!(run.slots > 0);
        slot += run.slots;
        if let Ok(Run::Msg { fixed, msg, cache }) = run.run {
            assert!(cache.len() <= header_cache::VALUES_BYTES_MAX + 12);
            assert_eq!(fixed.bytes().len(), 128);
            assert!(msg.segment_bytes() >= u64::from(msg.stored_len));
            if let Ok(fields) = header_cache::decode(cache) {
                assert_eq!(header_cache::encode(&fields), cache);
            }
        }
    }
    let slots = usize::try_from(slot - FIRST_SLOT).expect("fits");
    assert_eq!(slots, runs.len().div_ceil(SLOT));
}
