//! A PostgreSQL server of the test's own.

use std::{
    fs::{create_dir_all, read_dir, remove_dir_all},
    os::unix::{fs::chown, process::CommandExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use sqlx::{Connection, PgConnection};

use crate::support::eventually;

const INSTALL: &str = "the tests need a PostgreSQL server: apt-get install postgresql";

/// A server on a port of its own, which ends with the test.
pub(crate) struct Postgres {
    child: Child,
    port: u16,
    folder: PathBuf,
}

impl Postgres {
    pub(crate) async fn start() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            "palisade-postgres-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Relaxed)
        );
        let folder = std::env::temp_dir().join(name);
        create_dir_all(&folder).unwrap();
        if let Some((user, group)) = user() {
            chown(&folder, Some(user), Some(group)).unwrap();
        }
        let made = command("initdb", &folder)
            .args(["--auth=trust", "--username=postgres", "--no-sync"])
            .args(["--encoding=UTF8", "--locale=C", "-D"])
            .arg(folder.join("data"))
            .output()
            .expect(INSTALL);
        assert!(made.status.success(), "{made:?}");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let server = Self {
            child: serve(&folder, port),
            port,
            folder,
        };
        server.answers().await;
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url()).await.unwrap()
    }

    async fn answers(&self) {
        eventually("PostgreSQL answers", async || {
            PgConnection::connect(&self.url()).await.is_ok()
        })
        .await;
    }

    /// Says this to the server and to all that work for it.
    pub(crate) fn signal(&self, signal: &str) {
        let server = self.child.id().to_string();
        let workers = Command::new("ps")
            .args(["-o", "pid=", "--ppid", &server])
            .output();
        let workers = String::from_utf8(workers.unwrap().stdout).unwrap();
        let all = std::iter::once(&*server).chain(workers.split_whitespace());
        let killed = Command::new("kill").arg(signal).args(all).status();
        // One that has ended meanwhile is an error of no matter.
        let _some_may_be_gone = killed.unwrap();
    }

    /// As if the machine had lost its power.
    pub(crate) fn kill(&mut self) {
        self.signal("-KILL");
        self.child.wait().unwrap();
    }

    /// On the same port, with what was there.
    pub(crate) async fn restart(&mut self) {
        self.child = serve(&self.folder, self.port);
        self.answers().await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
        }
        let _ = remove_dir_all(&self.folder);
    }
}

fn serve(folder: &PathBuf, port: u16) -> Child {
    command("postgres", folder)
        .args(["-h", "127.0.0.1", "-k", "", "-c", "fsync=off", "-p"])
        .arg(port.to_string())
        .arg("-D")
        .arg(folder.join("data"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect(INSTALL)
}

/// One of its programs, which Debian keeps out of the way, as a user who may run it: the superuser may not.
fn command(name: &str, folder: &PathBuf) -> Command {
    let versions = read_dir("/usr/lib/postgresql").into_iter().flatten();
    let found = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin").join(name)))
        .find(|path| path.exists());
    let mut command = Command::new(found.unwrap_or(name.into()));
    command.current_dir(folder).stdin(Stdio::null());
    if let Some((user, group)) = user() {
        command.uid(user).gid(group);
    }
    command
}

/// Who runs it, if that is somebody else.
fn user() -> Option<(u32, u32)> {
    let ask = |args: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(args).output().unwrap();
        String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .ok()
    };
    if ask(&["-u"]) != Some(0) {
        return None;
    }
    let user = ask(&["-u", "postgres"]).expect(INSTALL);
    Some((user, ask(&["-g", "postgres"]).expect(INSTALL)))
}
