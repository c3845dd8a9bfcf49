//! Places to listen at or to connect to: `host:port`, `unix:PATH`, `none`.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};

/// A Unix socket's path has at most this many bytes (unix(7): `sun_path` less its final NUL).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Where a door is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// Over TCP. Port 0 lets the kernel choose; the daemon says which.
    Tcp(SocketAddr),
    /// A Unix stream socket.
    Unix(PathBuf),
}

impl Address {
    /// One address, not `none`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || path.contains('\0') {
                return Err("unix: is followed by a path".to_owned());
            }
            return Ok(Self::Unix(PathBuf::from(path)));
        }
        if let Ok(socket) = text.parse() {
            return Ok(Self::Tcp(socket));
        }
        let hint = "an address is host:port, unix:PATH or none";
        let (host, port) = text.rsplit_once(':').ok_or(hint)?;
        port.parse::<u16>()
            .map_err(|error| format!("port {port:?}: {error}; {hint}"))?;
        if host.is_empty() {
            return Err(format!("the host is missing; {hint}"));
        }
        let mut found = text
            .to_socket_addrs()
            .map_err(|error| format!("cannot look up {host:?}: {error}"))?;
        found
            .next()
            .map(Self::Tcp)
            .ok_or_else(|| format!("{host:?} has no address"))
    }

    /// A comma-separated list; `none` and the empty text are the empty list.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, String> {
        if matches!(text.trim(), "" | "none") {
            return Ok(Vec::new());
        }
        text.split(',')
            .map(|part| Self::parse(part.trim()))
            .collect()
    }

    /// Puts a relative path into the data directory.
    pub(super) fn resolve(&mut self, data_dir: &Path) {
        if let Self::Unix(path) = self
            && path.is_relative()
        {
            *path = data_dir.join(&*path);
        }
    }

    /// A path that the kernel does not take, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Unix(path) if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX => Err(format!(
                "{} is too long for a Unix socket ({SOCKET_PATH_BYTES_MAX} bytes at most)",
                path.display()
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Address {
    /// As the configuration writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(socket) => write!(f, "{socket}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A list as the configuration writes it.
pub(super) fn show_list(list: &[Address]) -> String {
    if list.is_empty() {
        return "none".to_owned();
    }
    let words: Vec<_> = list.iter().map(Address::to_string).collect();
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_are_written() {
        for text in [
            "127.0.0.1:24",
            "[::1]:4024",
            "unix:/run/ringpost/lmtp",
            "unix:run/node",
        ] {
            assert_eq!(Address::parse(text).expect("valid").to_string(), text);
        }
        assert_eq!(
            Address::parse("localhost:24")
                .expect("valid")
                .to_string()
                .len(),
            12
        );
        let both = Address::parse_list("unix:/a, 127.0.0.1:1").expect("valid");
        assert_eq!(show_list(&both), "unix:/a, 127.0.0.1:1");
        assert_eq!(Address::parse_list("none"), Ok(Vec::new()));
    }

    #[test]
    fn nonsense_is_refused_with_a_sentence() {
        for text in [
            "unix:",
            "24",
            ":24",
            "127.0.0.1",
            "127.0.0.1:x",
            "127.0.0.1:99999",
            "a, b",
        ] {
            assert!(Address::parse_list(text).is_err(), "{text}");
        }
        assert!(
            Address::Unix(PathBuf::from("x".repeat(200)))
                .check()
                .is_err()
        );
    }
}
