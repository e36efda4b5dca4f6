use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use palisade_balance::{
    Endpoints,
    discover::{
        Discovery, Source,
        file::{FileError, TargetFile},
    },
};
use tokio::{sync::watch, time::sleep};

use super::{World, serving, until};
use crate::support::{MS, balance, load};

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "targets-{}-{}",
            std::process::id(),
            NUMBER.fetch_add(1, SeqCst)
        );
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("targets.toml")
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    fn rename_over(&self, text: &str) {
        let new = self.0.join("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.file()).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn list(names: &[&str]) -> String {
    let entry = |name: &&str| format!("[[targets]]\naddress = \"{name}\"\n");
    names.iter().map(entry).collect()
}

#[tokio::test]
async fn a_file_that_is_never_read_again_is_read_once() {
    let folder = Folder::new();
    folder.write(&list(&["a"]));
    let mut file = TargetFile::new(folder.file()).every(Duration::MAX);
    assert_eq!(&*file.next().await.unwrap()[0].name, "a");
    let again = tokio::time::timeout(MS * 50, file.next());
    assert!(again.await.is_err(), "it waits");
}

struct Rig {
    folder: Folder,
    endpoints: Endpoints<crate::support::Fake>,
    seen: watch::Receiver<Discovery>,
}

impl Rig {
    async fn new(names: &[&str]) -> Self {
        let (folder, endpoints) = (Folder::new(), Endpoints::default());
        folder.write(&list(names));
        let follower = endpoints.follow(TargetFile::new(folder.file()), World::default().make());
        let mut seen = follower.watch();
        tokio::spawn(follower);
        until(&mut seen, |seen| seen.lists == 1).await;
        Self {
            folder,
            endpoints,
            seen,
        }
    }

    fn error(&self) -> FileError {
        let seen = self.seen.borrow();
        seen.error
            .as_ref()
            .unwrap()
            .downcast_ref::<FileError>()
            .unwrap()
            .clone()
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_seen_within_two_seconds_however_it_is_written() {
    let mut rig = Rig::new(&["a"]).await;
    rig.folder.write(&list(&["b"]));
    until(&mut rig.seen, |seen| seen.lists == 2).await;
    assert_eq!(serving(&rig.endpoints), ["b"]);
    // The same size, and perhaps the same time of change.
    rig.folder.rename_over(&list(&["c"]));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(
        (rig.seen.borrow().lists, serving(&rig.endpoints)),
        (3, vec!["c".to_owned()])
    );
    sleep(Duration::from_secs(60)).await;
    assert_eq!(
        rig.seen.borrow().lists,
        3,
        "what stays the same is not told again"
    );
    rig.folder.write("targets = []");
    until(&mut rig.seen, |seen| seen.lists == 4).await;
    assert!(rig.endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_wrong_changes_nothing_and_says_where_once() {
    let mut rig = Rig::new(&["a", "b"]).await;
    rig.folder
        .write(&format!("{}weigth = 2\n", list(&["a", "b"])));
    until(&mut rig.seen, |seen| seen.failing == 1).await;
    let error = rig.error();
    assert_eq!(
        (error.line, error.path == rig.folder.file()),
        (Some(5), true)
    );
    assert!(
        error
            .to_string()
            .contains("targets.toml:5: unknown field `weigth`"),
        "{error}"
    );
    assert_eq!(serving(&rig.endpoints), ["a", "b"]);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.seen.borrow().errors, 1);
    rig.folder.write(&list(&["a", "b"]));
    let back = until(&mut rig.seen, |seen| seen.failing == 0).await;
    assert!(back.error.is_none() && back.changes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_being_written_does_not_count() {
    let (folder, endpoints) = (Folder::new(), Endpoints::default());
    folder.write(&list(&["a", "b"]));
    let source = TargetFile::new(folder.file()).every(MS * 100);
    let follower = endpoints.follow(source, World::default().make());
    let mut seen = follower.watch();
    tokio::spawn(follower);
    until(&mut seen, |seen| seen.lists == 1).await;
    let names: Vec<_> = (10..40).map(|name| name.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    // What is there in between is a shorter list without any fault, and each reading finds another one.
    for end in 1..names.len() {
        folder.write(&list(&names[..end]));
        sleep(MS * 90).await;
        assert_eq!(serving(&endpoints), ["a", "b"]);
    }
    folder.write(&list(&names));
    until(&mut seen, |seen| seen.lists == 2).await;
    assert_eq!(
        (serving(&endpoints), seen.borrow().errors),
        (names.iter().map(ToString::to_string).collect(), 0)
    );
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_keeps_its_last_list_until_it_is_back() {
    let mut rig = Rig::new(&["a"]).await;
    fs::remove_file(rig.folder.file()).unwrap();
    until(&mut rig.seen, |seen| seen.failing == 1).await;
    assert_eq!(
        (serving(&rig.endpoints), rig.error().line),
        (vec!["a".to_owned()], None)
    );
    fs::create_dir(rig.folder.file()).unwrap();
    let other = until(&mut rig.seen, |seen| seen.failing == 2).await;
    assert!(other.error.unwrap().to_string().ends_with("it is no file"));
    fs::remove_dir(rig.folder.file()).unwrap();
    rig.folder.write("");
    let truncated = until(&mut rig.seen, |seen| seen.failing >= 3 && !is_gone(seen)).await;
    assert!(
        truncated
            .error
            .unwrap()
            .to_string()
            .contains("missing field `targets`")
    );
    rig.folder.write(&list(&["b"]));
    until(&mut rig.seen, |seen| seen.lists == 2).await;
    assert_eq!(serving(&rig.endpoints), ["b"]);
}

fn is_gone(seen: &Discovery) -> bool {
    let error = seen.error.as_ref().unwrap().downcast_ref::<FileError>();
    error.unwrap().line.is_none()
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_there_at_first_is_waited_for() {
    let (folder, endpoints) = (Folder::new(), Endpoints::default());
    let source = TargetFile::new(folder.file()).every(MS * 300);
    let follower = endpoints.follow(source, World::default().make());
    let mut seen = follower.watch();
    tokio::spawn(follower);
    until(&mut seen, |seen| seen.failing == 1).await;
    folder.rename_over(&list(&["a"]));
    until(&mut seen, |seen| seen.lists == 1).await;
    assert_eq!(serving(&endpoints), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_file_larger_than_any_list_is_not_read() {
    let mut rig = Rig::new(&["a"]).await;
    let file = fs::File::create(rig.folder.file()).unwrap();
    file.set_len(17 << 20).unwrap();
    let seen = until(&mut rig.seen, |seen| seen.failing == 1).await;
    assert!(
        seen.error
            .unwrap()
            .to_string()
            .ends_with("it is larger than 16 MiB")
    );
}

#[tokio::test(start_paused = true)]
async fn no_request_is_lost_while_the_file_changes() {
    let mut rig = Rig::new(&["a", "b"]).await;
    let service = balance(&rig.endpoints);
    let requests = tokio::spawn(async move { load(&service, 4000, MS * 5).await });
    for (round, names) in (2..).zip([["c", "d"], ["d", "a"], ["b", "c"], ["a", "d"]]) {
        rig.folder.rename_over(&list(&names));
        until(&mut rig.seen, |seen| seen.lists == round).await;
        sleep(MS * 700).await;
    }
    assert_eq!(requests.await.unwrap(), 0);
    assert_eq!(rig.endpoints.snapshot().len(), 2);
}
