//! As much of `IMAP4rev1` (RFC 3501) as reading a mailbox needs, blocking.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::address::{Address, Stream};

/// For each answer.
const PATIENCE: Duration = Duration::from_mins(1);

/// A message that is longer was not sent by us.
const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// A logged-in IMAP connection with INBOX selected.
pub(crate) struct Imap {
    stream: BufReader<Stream>,
    /// Messages in INBOX.
    pub(crate) exists: u32,
}

impl Imap {
    /// Logs in; any password is right for the peers that are set up here.
    pub(crate) fn open(address: &Address, user: &str) -> anyhow::Result<Self> {
        let stream = address.connect()?;
        stream.bound(PATIENCE)?;
        let mut imap = Self {
            stream: BufReader::new(stream),
            exists: 0,
        };
        let greeting = imap.line()?;
        ensure!(greeting.starts_with("* OK"), "IMAP greets with: {greeting}");
        imap.ask(&format!("LOGIN \"{user}\" secret"))?;
        for line in imap.ask("SELECT INBOX")? {
            if let Some(count) = line
                .strip_prefix("* ")
                .and_then(|l| l.strip_suffix(" EXISTS"))
            {
                imap.exists = count.parse()?;
            }
        }
        Ok(imap)
    }

    /// A message by its number, from 1.
    pub(crate) fn fetch(&mut self, number: u32) -> anyhow::Result<Vec<u8>> {
        self.send(&format!("FETCH {number} BODY.PEEK[]"))?;
        let mut message = None;
        loop {
            let line = self.line()?;
            if let Some(status) = line.strip_prefix("a ") {
                ensure!(status.starts_with("OK"), "FETCH was answered: {status}");
                return message.context("FETCH gave no message");
            }
            if let Some(len) = literal(&line) {
                message = Some(self.bytes(len)?);
            }
        }
    }

    /// All messages of INBOX with what a list of messages shows; how many there are.
    pub(crate) fn list(&mut self) -> anyhow::Result<usize> {
        let lines = self.ask("FETCH 1:* (UID FLAGS INTERNALDATE RFC822.SIZE ENVELOPE)")?;
        let is_entry = |line: &&String| line.starts_with("* ") && line.contains(" FETCH (");
        Ok(lines.iter().filter(is_entry).count())
    }

    /// Untagged lines of a command that succeeds.
    fn ask(&mut self, command: &str) -> anyhow::Result<Vec<String>> {
        self.send(command)?;
        let mut lines = Vec::new();
        loop {
            let mut line = self.line()?;
            if let Some(status) = line.strip_prefix("a ") {
                ensure!(status.starts_with("OK"), "{command} was answered: {status}");
                return Ok(lines);
            }
            while let Some(len) = literal(&line) {
                let bytes = self.bytes(len)?;
                line.push_str(&String::from_utf8_lossy(&bytes));
                line.push_str(&self.line()?);
            }
            lines.push(line);
        }
    }

    fn send(&mut self, command: &str) -> anyhow::Result<()> {
        let line = format!("a {command}\r\n");
        let sent = self.stream.get_mut().write_all(line.as_bytes());
        sent.context("cannot write to the IMAP server")
    }

    fn line(&mut self) -> anyhow::Result<String> {
        line(&mut self.stream)
    }

    fn bytes(&mut self, len: usize) -> anyhow::Result<Vec<u8>> {
        ensure!(len <= MESSAGE_BYTES_MAX, "IMAP sends {len} bytes at once");
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// All messages of a user's INBOX.
pub(crate) fn mailbox(address: &Address, user: &str) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut imap = Imap::open(address, user).with_context(|| format!("INBOX of {user}"))?;
    (1..=imap.exists).map(|number| imap.fetch(number)).collect()
}

fn line(stream: &mut BufReader<Stream>) -> anyhow::Result<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        bail!("the server closed the connection");
    }
    let text = String::from_utf8_lossy(&line);
    Ok(text.trim_end_matches('\r').to_owned())
}

/// The length of a literal that a line announces at its end: `{123}`.
fn literal(line: &str) -> Option<usize> {
    let (_, len) = line.strip_suffix('}')?.rsplit_once('{')?;
    len.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A server that says each piece after one line from the client.
    fn server(script: &'static [&'static str]) -> (Address, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap());
            for piece in script {
                (&stream).write_all(piece.as_bytes()).unwrap();
                lines.read_line(&mut String::new()).unwrap();
            }
        });
        (Address::Unix(path), folder)
    }

    #[test]
    fn literals_are_announced_at_the_end_of_a_line() {
        assert_eq!(literal("* 1 FETCH (BODY[] {3845}"), Some(3845));
        assert_eq!(literal("* 1 EXISTS"), None);
        assert_eq!(literal("x {y}"), None);
    }

    #[test]
    fn inbox_is_read_over_imap() {
        let (address, _folder) = server(&[
            "* OK hi\r\n",
            "a OK in\r\n",
            "* 1 EXISTS\r\na OK [READ-WRITE] done\r\n",
            "* 1 FETCH (BODY[] {6}\r\na: b\r\n)\r\na OK done\r\n",
        ]);
        assert_eq!(mailbox(&address, "u").unwrap(), [b"a: b\r\n".to_vec()]);
    }

    #[test]
    fn a_list_counts_messages_and_nothing_else() {
        let (address, _folder) = server(&[
            "* OK hi\r\n",
            "a OK in\r\n",
            "* 2 EXISTS\r\na OK [READ-WRITE] done\r\n",
            "* 1 FETCH (UID 1 ENVELOPE (NIL {6}\r\nx\r\ny z NIL))\r\n* 2 EXISTS\r\n\
             * 2 FETCH (UID 7 FLAGS ())\r\na OK done\r\n",
        ]);
        let mut imap = Imap::open(&address, "u").unwrap();
        assert_eq!((imap.exists, imap.list().unwrap()), (2, 2));
    }

    #[test]
    fn a_refused_login_is_told() {
        let (address, _folder) = server(&["* OK hi\r\n", "a NO who are you\r\n"]);
        let error = mailbox(&address, "u").unwrap_err();
        assert!(format!("{error:#}").contains("who are you"), "{error:#}");
    }
}
