//! A file that is there as a whole or not at all.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

/// So many links to links are followed, as by the kernel.
const LINKS: usize = 40;

/// A file that takes the place of another once all of it is written. Dropped before, it leaves everything as it was.
#[derive(Debug)]
pub(super) struct Whole {
    file: File,
    /// Where it is written, and where it is to be; `None` for what is no file, such as a pipe: that is written to as it is.
    paths: Option<(PathBuf, PathBuf)>,
}

impl Whole {
    /// Begins one beside this path.
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let known = match fs::metadata(path) {
            Ok(known) => Some(known),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if known.as_ref().is_some_and(|known| !known.is_file()) {
            let file = OpenOptions::new().write(true).open(path)?;
            return Ok(Self { file, paths: None });
        }
        // A link goes on to where it does.
        let target = match known {
            Some(_) => {
                // It may be one that may not be written to.
                OpenOptions::new().write(true).open(path)?;
                fs::canonicalize(path)?
            }
            None => end_of_links(path)?,
        };
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut beside = OsString::from(".");
        beside.push(name);
        beside.push(format!(".{:016x}.part", rand::random::<u64>()));
        let beside = target.with_file_name(beside);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        if let Some(known) = &known {
            // From the start: whoever may not read it must not have it open by the time there is something in it.
            options.mode(known.permissions().mode() & 0o777);
        }
        let file = options.open(&beside)?;
        let whole = Self {
            file,
            paths: Some((beside, target)),
        };
        if let Some(known) = known {
            // Somebody else may do this for whoever owns it: as far as that is allowed.
            let _best_effort = fchown(&whole.file, Some(known.uid()), Some(known.gid()));
            whole.file.set_permissions(known.permissions())?;
        }
        Ok(whole)
    }

    /// Whether there is anything to tidy up when it is not finished.
    pub(super) fn is_beside(&self) -> bool {
        self.paths.is_some()
    }

    /// Puts it where it is to be, also if the machine stops right after.
    pub(super) fn finish(mut self) -> io::Result<()> {
        let Some((beside, target)) = &self.paths else {
            return self.file.flush();
        };
        self.file.sync_all()?;
        fs::rename(beside, target)?;
        let folder = target.parent().filter(|it| *it != Path::new(""));
        let folder = folder.unwrap_or(Path::new(".")).to_owned();
        self.paths = None;
        // Not all file systems do that for a folder.
        let _best_effort = File::open(folder).and_then(|folder| folder.sync_all());
        Ok(())
    }
}

/// Where links to what is not there yet end.
fn end_of_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Ok(next) = fs::read_link(&path) else {
            return Ok(path);
        };
        path = path.with_file_name("").join(next);
    }
    Err(io::ErrorKind::InvalidInput.into())
}

impl Write for &Whole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        (&self.file).flush()
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if let Some((beside, _)) = &self.paths
            && let Err(error) = fs::remove_file(beside)
        {
            tracing::warn!(%error, path = %beside.display(), "half a file stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;
    use crate::store::folder::Folder;

    fn names(folder: &Folder) -> Vec<String> {
        let all = fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = all
            .map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_not_finished_leaves_what_there_was_and_nothing_beside_it() {
        let folder = Folder::new().unwrap();
        let path = folder.path().join("log.csv");
        for there_was in [None, Some("old")] {
            if let Some(text) = there_was {
                fs::write(&path, text).unwrap();
            }
            let whole = Whole::create(&path).unwrap();
            (&whole).write_all(b"half").unwrap();
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), there_was);
            drop(whole);
            assert_eq!(fs::read_to_string(&path).ok().as_deref(), there_was);
            assert_eq!(names(&folder).len(), usize::from(there_was.is_some()));
        }
    }

    #[test]
    fn what_is_finished_takes_the_place_with_its_rights_and_links_stay() {
        let folder = Folder::new().unwrap();
        let (path, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink("real", &link).unwrap();
        let whole = Whole::create(&link).unwrap();
        (&whole).write_all(b"new").unwrap();
        whole.finish().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(names(&folder), ["link", "real"]);
    }

    #[test]
    fn what_takes_the_place_belongs_to_whom_the_old_did() {
        let folder = Folder::new().unwrap();
        let path = folder.path().join("log.csv");
        fs::write(&path, "old").unwrap();
        // Only root may give files away; anybody else finds their own.
        let _allowed = chown(&path, Some(4711), Some(4712));
        let owner = |path: &Path| fs::metadata(path).map(|it| (it.uid(), it.gid())).unwrap();
        let before = owner(&path);
        Whole::create(&path).unwrap().finish().unwrap();
        assert_eq!(owner(&path), before);
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn a_link_to_what_is_not_there_yet_stays_a_link() {
        let folder = Folder::new().unwrap();
        fs::create_dir(folder.path().join("far")).unwrap();
        for (link, target) in [("near", "far/log.csv"), ("far/one", "../near")] {
            symlink(target, folder.path().join(link)).unwrap();
        }
        let whole = Whole::create(&folder.path().join("far/one")).unwrap();
        (&whole).write_all(b"new").unwrap();
        whole.finish().unwrap();
        assert_eq!(names(&folder), ["far", "near"]);
        let far = folder.path().join("far/log.csv");
        assert!(fs::symlink_metadata(&far).unwrap().is_file());
        assert_eq!(fs::read_to_string(far).unwrap(), "new");
        let one = fs::symlink_metadata(folder.path().join("far/one"));
        assert!(one.unwrap().is_symlink());
    }

    #[test]
    fn what_is_no_file_is_written_to_as_it_is() {
        let whole = Whole::create(Path::new("/dev/null")).unwrap();
        (&whole).write_all(b"gone").unwrap();
        whole.finish().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let folder = Folder::new().unwrap();
        assert!(Whole::create(folder.path()).is_err());
        assert!(Whole::create(&folder.path().join("no/file")).is_err());
    }
}
