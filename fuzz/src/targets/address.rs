//! A recipient's address: reads back as written, or an error.

use ringpost_daemon::address::Address;

/// The input is an address.
pub fn run(input: &[u8]) {
    if let Ok(address) = Address::parse(input) {
        assert!(!address.local().is_empty());
        assert_eq!(Address::parse(address.to_string().as_bytes()), Ok(address));
    }
}
