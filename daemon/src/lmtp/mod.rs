//! LMTP as a server speaks it (RFC 2033), without a socket: bytes in, events out; answers in, bytes
//! out. The same session stands behind the listeners and behind `ringpost-deliver -l`.

mod command;
mod data;
mod reply;
mod session;

pub use reply::{Reply, status};
pub use session::{BodyType, Event, LmtpConfig, Session};
