//! The time, read here only; everybody else gets it as a value.
#![expect(clippy::disallowed_methods, reason = "this is where the clock is read")]

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use ringpost_engine::request::{MonotonicNs, Now};
use ringpost_netproto::id::WallNs;

/// The moment that [`MonotonicNs`] counts from: the first call.
static START: OnceLock<Instant> = OnceLock::new();

/// Since the first call of the process.
pub fn monotonic() -> MonotonicNs {
    let start = START.get_or_init(Instant::now);
    MonotonicNs::new(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// Since 1970.
pub fn wall() -> WallNs {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallNs::new(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Both.
pub fn now() -> Now {
    Now {
        monotonic: monotonic(),
        wall: wall(),
    }
}
