//! What the tests share: one sample of every frame, and two sessions over a link without sockets.
#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test binary uses a part of it"
)]

pub(crate) mod pair;
pub(crate) mod samples;
