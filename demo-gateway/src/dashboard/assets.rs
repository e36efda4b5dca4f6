//! The files of the page, from the binary.

use std::sync::LazyLock;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
        REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
    },
};
use sha2::{Digest, Sha256};

/// Whatever else a page could load, this one loads from here alone, and nobody frames its buttons.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

const SAME_ORIGIN: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const PICTURE: &str = "image/svg+xml";
const TEXT: &str = "text/plain; charset=utf-8";

/// A file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    content: &'static [u8],
    /// Of its content, and so another with each other content.
    tag: HeaderValue,
}

macro_rules! assets {
    ($($name:literal: $kind:expr,)*) => {
        [$(($name, $kind, include_bytes!(concat!("page/", $name)).as_slice()),)*]
    };
}

static ASSETS: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    let files = assets! {
        "index.html": HTML,
        "style.css": STYLE,
        "icon.svg": PICTURE,
        "theme.js": SCRIPT,
        "app.js": SCRIPT,
        "admin.js": SCRIPT,
        "endpoints.js": SCRIPT,
        "first.js": SCRIPT,
        "plots.js": SCRIPT,
        "promises.js": SCRIPT,
        "requests.js": SCRIPT,
        "states.js": SCRIPT,
        "store.js": SCRIPT,
        "tools.js": SCRIPT,
        "verdict.js": SCRIPT,
        "uPlot.iife.min.js": SCRIPT,
        "uPlot.min.css": STYLE,
        "uPlot.LICENSE": TEXT,
    };
    let assets = files.into_iter().map(|(name, kind, content)| Asset {
        name,
        kind,
        content,
        tag: tag(content),
    });
    assets.collect()
});

fn tag(content: &[u8]) -> HeaderValue {
    let digest = Sha256::digest(content);
    let half: String = digest[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    HeaderValue::from_str(&format!("\"{half}\"")).expect("hexadecimal digits")
}

/// The page itself.
pub(super) fn page(asked: &HeaderMap) -> Response {
    let mut page = file("index.html", asked).expect("part of the binary");
    page.headers_mut()
        .insert(VARY, HeaderValue::from_static("accept"));
    page
}

/// A file beside the page; `None` if there is none of this name.
pub(super) fn file(name: &str, asked: &HeaderMap) -> Option<Response> {
    let asset = ASSETS.iter().find(|asset| asset.name == name)?;
    let known = asked.get_all(IF_NONE_MATCH).into_iter();
    let mut response = if known.into_iter().any(|known| matches(known, &asset.tag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let mut response = Bytes::from_static(asset.content).into_response();
        let kind = HeaderValue::from_static(asset.kind);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        response
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, asset.tag.clone());
    // Asked for each time, and sent again only when the binary is another.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    guard(headers);
    Some(response)
}

/// Adds what keeps browsers from doing more with it than the page needs.
pub(super) fn guard(headers: &mut HeaderMap) {
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(SAME_ORIGIN, HeaderValue::from_static("same-origin"));
}

/// Whether a list of tags has this one. `W/` makes no difference to who asks for what is new.
fn matches(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(known), Ok(tag)) = (known.to_str(), tag.to_str()) else {
        return false;
    };
    let mut known = known.split(',').map(str::trim);
    known.any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

/// Whether somebody asks for JSON rather than for a page. Who takes anything gets the page.
pub(super) fn prefers_json(asked: &HeaderMap) -> bool {
    let accepts = || {
        let values = asked.get_all(ACCEPT).into_iter();
        let values = values.filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(','))
    };
    // The most exact range that matches counts.
    let wish = |main: &str, sub: &str| {
        let ranges = accepts().filter_map(|range| {
            let mut parts = range.split(';').map(str::trim);
            let (own_main, own_sub) = parts.next()?.split_once('/')?;
            let exact = match (own_main, own_sub) {
                ("*", "*") => 0,
                (own, "*") if own.eq_ignore_ascii_case(main) => 1,
                (own, part) if own.eq_ignore_ascii_case(main) && part.eq_ignore_ascii_case(sub) => {
                    2
                }
                _ => return None,
            };
            let weight = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
            Some((exact, weight.unwrap_or(1.0)))
        });
        let best = ranges.max_by_key(|(exact, _)| *exact);
        best.map_or(0.0, |(_, weight)| weight)
    };
    wish("application", "json") > wish("text", "html")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, value.parse().unwrap());
        headers
    }

    #[test]
    fn programs_that_ask_for_json_get_it_and_all_others_the_page() {
        assert!(!prefers_json(&HeaderMap::new()));
        for (accept, json) in [
            ("*/*", false),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
            ("application/json", true),
            ("application/json, text/plain, */*", false),
            ("application/json, */*;q=0.1", true),
            ("text/html;q=0.5, application/*", true),
            ("application/json;q=0", false),
            ("nonsense", false),
        ] {
            assert_eq!(prefers_json(&accepting(accept)), json, "{accept}");
        }
    }

    #[test]
    fn all_that_the_page_names_is_there_and_nothing_of_another_host() {
        for asset in ASSETS.iter() {
            let text = String::from_utf8_lossy(asset.content);
            assert!(!text.is_empty());
            for part in text.split("/dashboard/").skip(1) {
                let end = part.find(['"', '\'', '`', ')']).unwrap_or(part.len());
                assert!(
                    file(&part[..end], &HeaderMap::new()).is_some(),
                    "{}",
                    &part[..end]
                );
            }
            for part in text.split(" from './").skip(1) {
                let end = part.find('\'').unwrap();
                assert!(
                    file(&part[..end], &HeaderMap::new()).is_some(),
                    "{}",
                    &part[..end]
                );
            }
            // An inline handler or style is one that the policy forbids.
            if asset.kind == HTML {
                for forbidden in [" onclick=", " style=", "javascript:", "<style"] {
                    assert!(!text.contains(forbidden), "{forbidden}");
                }
            }
            if asset.kind == SCRIPT && !asset.name.starts_with("uPlot") {
                assert!(!text.contains("innerHTML"), "{}", asset.name);
                assert!(text.lines().count() < 300, "{}", asset.name);
            }
        }
    }

    #[test]
    fn a_file_that_is_known_is_not_sent_again() {
        let first = page(&HeaderMap::new());
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()[ETAG].to_str().unwrap().to_owned();
        for (known, status) in [
            (tag.clone(), StatusCode::NOT_MODIFIED),
            (format!("\"x\", W/{tag}"), StatusCode::NOT_MODIFIED),
            ("\"x\"".into(), StatusCode::OK),
        ] {
            let mut asked = HeaderMap::new();
            asked.insert(IF_NONE_MATCH, known.parse().unwrap());
            assert_eq!(page(&asked).status(), status, "{known}");
        }
    }
}
