//! A real Chromium, steered through its DevTools protocol.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::wire::{Seen, Wire};

/// Where Debian and others keep it.
const PROGRAMS: [&str; 4] = [
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome",
    "/usr/local/bin/chromium",
];

const FLAGS: [&str; 14] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0",
];

/// A browser of its own, with a folder of its own. Dropped, both are gone.
pub(crate) struct Browser {
    child: Child,
    folder: PathBuf,
    wire: Wire,
}

impl Browser {
    pub(crate) async fn start(name: &str) -> Self {
        let program = PROGRAMS.iter().find(|path| Path::new(path).exists());
        let program = program.expect("there is no Chromium here: `apt-get install chromium`");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = folder.join(format!("chromium-{name}-{}", std::process::id()));
        let _fresh = std::fs::remove_dir_all(&folder);
        let mut child = Command::new(program)
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", folder.display()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Its children end with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some(url) = line.strip_prefix("DevTools listening on ") {
                    return url.to_owned();
                }
            }
            panic!("the browser ended");
        };
        let url = timeout(Duration::from_secs(60), said).await;
        let url = url.expect("the browser does not start");
        // Else it stops where its messages are not taken.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let wire = Wire::open(&url).await;
        Self {
            child,
            folder,
            wire,
        }
    }

    /// A tab of this size, with nothing in it.
    pub(crate) async fn page(&self, width: u32, height: u32) -> Page {
        let target = json!({"url": "about:blank"});
        let target = self.wire.ask(None, "Target.createTarget", target).await;
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = self.wire.ask(None, "Target.attachToTarget", attach).await;
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let seen = Arc::new(Mutex::new(Vec::new()));
        self.wire.listen(&session, seen.clone());
        let page = Page {
            wire: self.wire.clone(),
            session,
            seen,
        };
        for domain in ["Page", "Runtime", "Network", "Log"] {
            page.ask(&format!("{domain}.enable"), json!({})).await;
        }
        page.resize(width, height).await;
        page
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(id) = self.child.id() {
            // With all that it started.
            let group = format!("-{id}");
            let _gone = std::process::Command::new("kill")
                .args(["-9", "--", &group])
                .status();
        }
        let _left = std::fs::remove_dir_all(&self.folder);
    }
}

/// A tab.
pub(crate) struct Page {
    wire: Wire,
    session: String,
    /// Every event so far: its name and what it says.
    seen: Seen,
}

impl Page {
    pub(crate) async fn ask(&self, method: &str, params: Value) -> Value {
        self.wire.ask(Some(&self.session), method, params).await
    }

    /// Opens the one address of this tab.
    pub(crate) async fn open(&self, url: &str) {
        let answer = self.ask("Page.navigate", json!({"url": url})).await;
        assert!(answer["errorText"].is_null(), "{answer}");
        let loaded = async {
            while self.events("Page.loadEventFired").is_empty() {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let loaded = timeout(Duration::from_secs(60), loaded).await;
        assert!(loaded.is_ok(), "{url} does not load");
    }

    pub(crate) async fn resize(&self, width: u32, height: u32) {
        let metrics = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600});
        self.ask("Emulation.setDeviceMetricsOverride", metrics)
            .await;
    }

    /// `light` or `dark`.
    pub(crate) async fn prefers(&self, scheme: &str) {
        let feature = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.ask("Emulation.setEmulatedMedia", json!({"features": feature}))
            .await;
    }

    /// The value of an expression, awaited if it is a promise.
    pub(crate) async fn eval(&self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true});
        let answer = self.ask("Runtime.evaluate", params).await;
        let error = &answer["exceptionDetails"];
        assert!(error.is_null(), "{expression}\n{error:#}");
        answer["result"]["value"].clone()
    }

    /// The text of the first element that the selector finds.
    pub(crate) async fn text(&self, selector: &str) -> String {
        let expression = format!("document.querySelector({selector:?})?.textContent ?? ''");
        self.eval(&expression).await.as_str().unwrap().to_owned()
    }

    /// Clicks where a finger would, and fails if something else is in the way.
    pub(crate) async fn click(&self, selector: &str) {
        let found = format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{ block: 'center' }});
              const r = e.getBoundingClientRect(), x = r.x + r.width / 2, y = r.y + r.height / 2;
              return e.contains(document.elementFromPoint(x, y)) ? [x, y] : null; }})()"
        );
        let place = self.eval(&found).await;
        assert!(place.is_array(), "{selector} cannot be clicked");
        for kind in ["mousePressed", "mouseReleased"] {
            let click = json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.ask("Input.dispatchMouseEvent", click).await;
        }
    }

    pub(crate) async fn type_text(&self, text: &str) {
        self.ask("Input.insertText", json!({"text": text})).await;
    }

    pub(crate) async fn press(&self, key: &str) {
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Tab" => (9, ""),
            _ => (27, ""),
        };
        for kind in ["keyDown", "keyUp"] {
            let press = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text});
            self.ask("Input.dispatchKeyEvent", press).await;
        }
    }

    /// Looks again until the expression is true; how long that took.
    pub(crate) async fn until(&self, what: &str, expression: &str, within: Duration) -> Duration {
        let since = palisade::time::now();
        loop {
            if self.eval(expression).await == true {
                return since.elapsed();
            }
            if since.elapsed() > within {
                let shown = self
                    .eval("document.querySelector('main')?.innerText ?? ''")
                    .await;
                panic!(
                    "not within {within:?}: {what}\n{expression}\n{}",
                    shown.as_str().unwrap()
                );
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// What it looks like, from top to bottom, kept for people as `NAME.png`.
    pub(crate) async fn shoot(&self, name: &str) {
        // What lies over the page stands still.
        let whole = self.eval("!document.querySelector('dialog[open]')").await;
        let whole = json!({"format": "png", "captureBeyondViewport": whole});
        let shot = self.ask("Page.captureScreenshot", whole).await;
        let png = decode(shot["data"].as_str().unwrap());
        assert!(png.starts_with(b"\x89PNG"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dashboard");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(format!("{name}.png")), png).unwrap();
    }

    /// What events of this name have said so far.
    pub(crate) fn events(&self, name: &str) -> Vec<Value> {
        let seen = self.seen.lock().unwrap();
        let of_name = seen.iter().filter(|(known, _)| known == name);
        of_name.map(|(_, said)| said.clone()).collect()
    }
}

/// Base 64.
fn decode(text: &str) -> Vec<u8> {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter(|byte| *byte != b'=') {
        let value = DIGITS.iter().position(|known| *known == digit).unwrap();
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes
}
