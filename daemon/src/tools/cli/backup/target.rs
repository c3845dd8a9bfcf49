//! The directory that a copy is written into: new or empty, everything in it for its owner alone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Error, ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ringpost_engine::backup::Target;
use ringpost_engine::error::IoError;
use ringpost_engine::io::RelPath;

use super::{MARKER, failed};
use crate::tools::cli::Failure;

/// Names that an empty file system may have.
const HARMLESS: [&str; 1] = ["lost+found"];

/// See the module.
#[derive(Debug)]
pub struct DirTarget {
    root: PathBuf,
    /// The file that is written.
    open: Option<(RelPath, File)>,
}

impl DirTarget {
    /// Takes a directory that is missing or empty, and marks it as unfinished.
    pub fn begin(root: &Path) -> Result<Self, Failure> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(root).map_err(|error| failed(root, &error))?;
        let names = std::fs::read_dir(root).map_err(|error| failed(root, &error))?;
        for name in names {
            let name = name.map_err(|error| failed(root, &error))?.file_name();
            if HARMLESS.iter().any(|harmless| name == *harmless) {
                continue;
            }
            return Err(Failure::Said(if root.join(MARKER).exists() {
                format!(
                    "{} holds a copy that was cut off; remove it (rm -r) and start again",
                    root.display()
                )
            } else {
                format!(
                    "{} is not empty; name a directory that is missing or empty",
                    root.display()
                )
            }));
        }
        let target = Self {
            root: root.to_owned(),
            open: None,
        };
        target.put(
            MARKER,
            b"this copy is being made, or its making was cut off\n",
        )?;
        Ok(target)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.root.join(name);
        create(&path)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .map_err(|error| failed(&path, &error))
    }

    /// Everything written so far is on the medium.
    pub fn sync(&mut self) -> Result<(), Failure> {
        self.open = None;
        let opened = OpenOptions::new().read(true).open(&self.root);
        opened
            .and_then(|dir| nix::unistd::syncfs(&dir).map_err(Error::from))
            .map_err(|error| failed(&self.root, &error))
    }

    /// The copy counts from now on.
    pub fn finish(&mut self, name: &str, manifest: &[u8]) -> Result<(), Failure> {
        let aside = format!("{name}.new");
        self.put(&aside, manifest)?;
        let renamed = std::fs::rename(self.root.join(&aside), self.root.join(name));
        renamed.map_err(|error| failed(&self.root.join(name), &error))?;
        self.unmark()
    }

    /// Takes the mark of the unfinished away.
    pub fn unmark(&mut self) -> Result<(), Failure> {
        let marker = self.root.join(MARKER);
        std::fs::remove_file(&marker).map_err(|error| failed(&marker, &error))?;
        self.sync()
    }

    /// Removes what was written: the directory was empty before. What does not go stays marked.
    pub fn remove(&mut self) {
        self.open = None;
        let Ok(names) = std::fs::read_dir(&self.root) else {
            return;
        };
        let marker = self.root.join(MARKER);
        for entry in names.flatten() {
            let path = entry.path();
            if path == marker || HARMLESS.iter().any(|name| entry.file_name() == *name) {
                continue;
            }
            let gone = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            if gone.is_err() {
                return;
            }
        }
        drop(std::fs::remove_file(&marker));
    }
}

fn create(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path)
}

impl DirTarget {
    fn error(
        &self,
        operation: &'static str,
        path: &RelPath,
        (offset, len): (u64, usize),
        error: &Error,
    ) -> IoError {
        IoError {
            operation,
            path: self.root.join(path.as_str()).display().to_string(),
            offset,
            len: u64::try_from(len).unwrap_or(u64::MAX),
            errno: error.raw_os_error().unwrap_or(nix::libc::EIO),
        }
    }
}

impl Target for DirTarget {
    fn make_dir(&mut self, dir: &RelPath) -> Result<(), IoError> {
        let path = self.root.join(dir.as_str());
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(self.error("create", dir, (0, 0), &error))
            }
            _ => Ok(()),
        }
    }

    fn write(&mut self, file: &RelPath, offset: u64, data: &[u8]) -> Result<(), IoError> {
        let known = self.open.take().filter(|(path, _)| path == file);
        let handle = if let Some((_, handle)) = known {
            handle
        } else {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600);
            let opened = options.open(self.root.join(file.as_str()));
            opened.map_err(|error| self.error("create", file, (0, 0), &error))?
        };
        let written = handle.write_all_at(data, offset);
        written.map_err(|error| self.error("write", file, (offset, data.len()), &error))?;
        self.open = Some((file.clone(), handle));
        Ok(())
    }

    fn link(&mut self, from: &RelPath, to: &RelPath) -> Result<bool, IoError> {
        let (old, new) = (self.root.join(from.as_str()), self.root.join(to.as_str()));
        match std::fs::hard_link(old, new) {
            Ok(()) => Ok(true),
            // A file system without links, or with too many of this file.
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOSPC) => {
                Err(self.error("link", to, (0, 0), &error))
            }
            Err(_) => Ok(false),
        }
    }
}
