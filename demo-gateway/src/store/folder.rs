//! A folder that goes when it is not needed any more.

use std::{
    fs::{DirBuilder, remove_dir_all},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// A folder that nobody else may look into, which goes when it is dropped.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn new() -> io::Result<Self> {
        let name = format!("demo-gateway-{:032x}", rand::random::<u128>());
        let path = std::env::temp_dir().join(name);
        // It tells who has asked for what.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A database that is just being closed may make one more file meanwhile.
        let gone = remove_dir_all(&self.0).or_else(|_| remove_dir_all(&self.0));
        if let Err(error) = gone {
            tracing::warn!(%error, path = %self.0.display(), "a temporary folder stays");
        }
    }
}
