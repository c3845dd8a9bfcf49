//! Where the data of measured cells waits for its end: emptied at once, removed when the call ends.
//!
//! ext4 without a journal gives no inode out again for a minute, five if its table is dirty, and
//! looks at each of those deleted meanwhile whenever a file is made (`recently_deleted` in
//! fs/ext4/ialloc.c). The 60,000 files of one cell, removed before the next, took 55 % of a machine's
//! CPU there. An emptied file gives its blocks back and keeps its inode.

use std::cell::RefCell;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::rc::Rc;

use tempfile::TempDir;

/// Folders that go with the last of its clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attic(Rc<RefCell<Vec<TempDir>>>);

impl Attic {
    /// Empties a folder's files and keeps the folder until the end. What cannot be emptied stays as
    /// it is: it is only room.
    pub(crate) fn store(&self, folder: TempDir) {
        empty(folder.path()).ok();
        self.0.borrow_mut().push(folder);
    }
}

/// Links are not followed.
fn empty(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            empty(&entry.path())?;
        } else if kind.is_file() {
            OpenOptions::new()
                .write(true)
                .truncate(true)
                .open(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_empty_at_once_and_gone_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_owned();
        fs::create_dir(path.join("inner")).unwrap();
        let file = path.join("inner/file");
        fs::write(&file, "text").unwrap();
        let attic = Attic::default();
        attic.clone().store(folder);
        assert_eq!(fs::metadata(&file).unwrap().len(), 0);
        drop(attic);
        assert!(!path.exists());
    }
}
