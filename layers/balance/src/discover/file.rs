//! A list in a file, which is read again each second.

use std::{
    error::Error,
    fmt, fs, io,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use palisade_core::{BoxError, time};
use tokio::{
    task::spawn_blocking,
    time::{Instant, sleep_until},
};
use toml::Spanned;

use super::{
    Empty, Source, Target,
    serial::{Distinct, List, Names},
};

const EVERY: Duration = Duration::from_secs(1);
/// What has changed is believed when it reads the same after this long: somebody may be writing it.
const SETTLED: Duration = Duration::from_millis(100);
const LARGEST: u64 = 16 << 20;
/// As good as never, and no instant overflows.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A list of targets in a file: JSON if its name ends in `.json`, else TOML.
///
/// ```toml
/// [[targets]]
/// address = "http://10.0.0.1:8080"
///
/// [[targets]]
/// address = "http://10.0.0.2:8080"
/// name = "large"          # its address unless said otherwise
/// weight = 2.0
/// zone = "eu-1a"
/// priority = 0
/// max_in_flight = 100
/// state = "serving"       # or "draining"
/// labels = { gpu = "h100" }
/// ```
///
/// The file is read each second as a whole, so that no way of writing it, and no file system, keeps a change from
/// being seen; a change counts when two readings a tenth of a second apart agree. A file that is gone, or that is
/// wrong anywhere, changes nothing; the error says in which line, and is told once. Fields that are not known are
/// wrong, so that a slip is not taken for a default. `targets = []` is believed.
///
/// Needs a tokio runtime, whose threads for blocking work do the reading.
#[derive(Debug)]
pub struct TargetFile {
    path: PathBuf,
    every: Duration,
    due: Option<Instant>,
    told: Option<Content>,
    /// Read once, and not yet twice.
    fresh: Option<Content>,
}

/// What a reading has found. Errors are the same if they are of the same kind.
type Content = Result<Vec<u8>, io::ErrorKind>;

impl TargetFile {
    /// At this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            every: EVERY,
            due: None,
            told: None,
            fresh: None,
        }
    }

    /// How often it is read: each second unless said otherwise, and each tenth of a second at most.
    #[must_use]
    pub fn every(mut self, every: Duration) -> Self {
        self.every = every.clamp(SETTLED, LONGEST);
        self
    }
}

impl Source for TargetFile {
    async fn next(&mut self) -> Result<Vec<Target>, BoxError> {
        loop {
            if let Some(due) = self.due {
                sleep_until(due).await;
            }
            let path = self.path.clone();
            let read = spawn_blocking(move || read(&path)).await?;
            self.due = Some(time::now() + self.every);
            let content = match &read {
                Ok(content) => Ok(content.clone()),
                Err(error) => Err(error.kind()),
            };
            if self.told.as_ref() == Some(&content) {
                self.fresh = None;
                continue;
            }
            // There is nothing to protect from the first one.
            if self.told.is_some() && self.fresh.as_ref() != Some(&content) {
                self.fresh = Some(content);
                self.due = Some(time::now() + SETTLED);
                continue;
            }
            self.fresh = None;
            self.told = Some(content);
            let wrong = |(line, why)| FileError {
                path: self.path.clone(),
                line,
                why,
            };
            let content = read.map_err(|error| wrong((None, error.to_string())))?;
            return Ok(parse(&self.path, &content).map_err(wrong)?);
        }
    }

    fn kind(&self) -> &'static str {
        "file"
    }

    fn empty(&self) -> Empty {
        Empty::Believed
    }
}

/// What is wrong with a file of targets, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1 on, if it is one.
    pub line: Option<usize>,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl Error for FileError {}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    // A pipe would keep the reader for ever.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    let mut content = Vec::new();
    let size = fs::File::open(path)?
        .take(LARGEST + 1)
        .read_to_end(&mut content)?;
    if size as u64 > LARGEST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            "it is larger than 16 MiB",
        ));
    }
    Ok(content)
}

fn parse(path: &Path, content: &[u8]) -> Result<Vec<Target>, (Option<usize>, String)> {
    let json = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    if json {
        return serde_json::from_slice(content)
            .map(|list: List<Distinct>| list.targets.0)
            .map_err(|error| (Some(error.line()), without_place(&error)));
    }
    let text = str::from_utf8(content).map_err(|error| {
        let line = line_of(content, error.valid_up_to());
        (Some(line), "it is not UTF-8".to_owned())
    })?;
    let list: List<Vec<Spanned<Target>>> = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| line_of(content, span.start));
        (line, error.message().to_owned())
    })?;
    let mut names = Names::default();
    let targets = list.targets.into_iter().map(|target| {
        let line = line_of(content, target.span().start);
        let target = target.into_inner();
        names.add(&target).map_err(|why| (Some(line), why))?;
        Ok(target)
    });
    targets.collect()
}

/// What serde_json says, without the line that is told apart.
fn without_place(error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    let said = error.to_string();
    said.strip_suffix(&place).unwrap_or(&said).to_owned()
}

fn line_of(content: &[u8], at: usize) -> usize {
    let before = &content[..at.min(content.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(name: &str, content: &str) -> String {
        let path = Path::new(name);
        let (line, why) = parse(path, content.as_bytes()).unwrap_err();
        let path = path.to_owned();
        FileError { path, line, why }.to_string()
    }

    #[test]
    fn both_notations_say_the_same() {
        let toml = "[[targets]]\naddress = \"a:1\"\nweight = 2\nzone = \"z\"\n\
                    [[targets]]\naddress = \"b:1\"\nname = \"b\"\nstate = \"draining\"\nlabels.gpu = \"x\"\n";
        let json = r#"{"targets": [
            {"address": "a:1", "weight": 2, "zone": "z"},
            {"address": "b:1", "name": "b", "state": "draining", "labels": {"gpu": "x"}}
        ]}"#;
        let targets = parse(Path::new("t.toml"), toml.as_bytes()).unwrap();
        assert_eq!(
            targets,
            parse(Path::new("t.JSON"), json.as_bytes()).unwrap()
        );
        assert_eq!(targets[0], Target::new("a:1").weight(2.0).zone("z"));
        assert_eq!((&*targets[1].name, &*targets[1].labels["gpu"]), ("b", "x"));
        assert_eq!(parse(Path::new("t"), b"targets = []").unwrap(), []);
        let written = serde_json::to_string(&targets).unwrap();
        assert_eq!(
            serde_json::from_str::<Vec<Target>>(&written).unwrap(),
            targets
        );
    }

    #[test]
    fn errors_say_what_and_where() {
        let entry = |line: &str| {
            format!("[[targets]]\naddress = \"a:1\"\n\n[[targets]]\naddress = \"b:1\"\n{line}\n")
        };
        for (line, error) in [
            ("weigth = 2", "t.toml:6: unknown field `weigth`"),
            ("weight = \"much\"", "t.toml:6: invalid type"),
            ("weight = nan", "t.toml:6: it is not a positive number"),
            ("weight = 0", "t.toml:6: it is not a positive number"),
            ("max_in_flight = 0", "t.toml:6: invalid value"),
            ("name = \"\"", "t.toml:6: it is empty"),
            ("name = \"a:1\"", "t.toml:4: the name \"a:1\" stands twice"),
            ("state = \"away\"", "t.toml:6: unknown variant `away`"),
            ("weight = ", "t.toml:6: "),
        ] {
            let said = wrong("t.toml", &entry(line));
            assert!(said.contains(error), "{said} instead of {error}");
        }
        assert!(wrong("t.toml", "").contains("missing field `targets`"));
        for (text, error) in [
            (
                "{\"targets\": [\n{\"address\": \"a:1\"},\n{\"address\":",
                "t.json:3: EOF",
            ),
            (
                "{\"targets\": [\n{\"address\": \"a:1\"},\n{\"address\": \"a:1\"}]}",
                "t.json:3: the name \"a:1\" stands twice",
            ),
            (
                "{\"targets\": [\n{\"address\": \" \"}]}",
                "t.json:2: it is empty",
            ),
            ("", "t.json:1: EOF"),
        ] {
            let said = wrong("t.json", text);
            assert!(said.starts_with(error), "{said} instead of {error}");
        }
        let (line, _) = parse(Path::new("t"), b"\n\xff").unwrap_err();
        assert_eq!(line, Some(2));
    }
}
