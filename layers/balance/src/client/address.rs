//! Where an endpoint is, and what the URL of a request is there.

use std::{error::Error, fmt};

use http::{
    HeaderValue, Uri,
    uri::{Authority, Parts, PathAndQuery, Scheme},
};

/// What comes before the path of each request.
#[derive(Clone, Debug)]
pub(super) struct Base {
    scheme: Scheme,
    authority: Authority,
    /// Without a slash at its end.
    prefix: Box<str>,
    host: HeaderValue,
}

impl Base {
    pub(super) fn new(url: &Uri) -> Result<Self, InvalidUrl> {
        let scheme = url.scheme().ok_or(InvalidUrl::Scheme)?;
        let known =
            *scheme == Scheme::HTTP || (cfg!(feature = "hyper-tls") && *scheme == Scheme::HTTPS);
        if !known {
            return Err(InvalidUrl::Scheme);
        }
        let authority = url.authority().ok_or(InvalidUrl::Host)?;
        if authority.host().is_empty() {
            return Err(InvalidUrl::Host);
        }
        if authority.as_str().contains('@') {
            return Err(InvalidUrl::Credentials);
        }
        if url.query().is_some() {
            return Err(InvalidUrl::Query);
        }
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| InvalidUrl::Host)?;
        Ok(Self {
            scheme: scheme.clone(),
            authority: authority.clone(),
            prefix: url.path().trim_end_matches('/').into(),
            host,
        })
    }

    /// The path and query of another, here. `None` if that is too long for a URL.
    pub(super) fn at(&self, target: &Uri) -> Option<Uri> {
        let mut parts = Parts::default();
        parts.scheme = Some(self.scheme.clone());
        parts.authority = Some(self.authority.clone());
        let path = target.path_and_query();
        parts.path_and_query = match &*self.prefix {
            "" => path.cloned().or(Some(PathAndQuery::from_static("/"))),
            prefix => {
                let path = path.map_or("/", PathAndQuery::as_str);
                // What is asked of a server as a whole is asked of the part that is meant.
                let path = if path == "*" { "" } else { path };
                format!("{prefix}{path}").parse().ok()
            }
        };
        Uri::from_parts(parts).ok()
    }

    pub(super) fn host(&self) -> &HeaderValue {
        &self.host
    }

    pub(super) fn authority(&self) -> &str {
        self.authority.as_str()
    }

    #[cfg(feature = "hyper-tls")]
    pub(super) fn is_secure(&self) -> bool {
        self.scheme == Scheme::HTTPS
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme, self.authority, self.prefix)
    }
}

/// Why requests cannot be sent to a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidUrl {
    /// It is no URL.
    Syntax,
    /// It begins neither with `http:` nor, with the feature `hyper-tls`, with `https:`.
    Scheme,
    /// It names no host.
    Host,
    /// It has a user name or a password, which would show in logs: send them as a header.
    Credentials,
    /// It has a query, which belongs to requests.
    Query,
}

impl fmt::Display for InvalidUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Syntax => "not a URL",
            Self::Scheme if cfg!(feature = "hyper-tls") => {
                "the scheme of the URL is neither http nor https"
            }
            Self::Scheme => "the scheme of the URL is not http",
            Self::Host => "the URL names no host",
            Self::Credentials => "the URL contains a user name or a password",
            Self::Query => "the URL contains a query",
        })
    }
}

impl Error for InvalidUrl {}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(base: &str, target: &str) -> Option<String> {
        let base = Base::new(&base.parse().unwrap()).unwrap();
        let uri = base.at(&target.parse().unwrap())?;
        Some(uri.to_string())
    }

    #[test]
    fn the_path_of_a_request_goes_below_that_of_the_url() {
        for (base, target, there) in [
            ("http://a:1", "/generate", "http://a:1/generate"),
            ("http://a:1/", "/v1/models?x=1", "http://a:1/v1/models?x=1"),
            ("http://a/llm/", "/v1/models", "http://a/llm/v1/models"),
            ("http://a/llm", "/", "http://a/llm/"),
            ("http://a/llm", "/?x=1", "http://a/llm/?x=1"),
            ("http://a", "https://elsewhere:8/x", "http://a/x"),
            ("http://a", "elsewhere:8", "http://a/"),
            ("http://a/llm", "elsewhere:8", "http://a/llm/"),
            ("http://a/llm", "*", "http://a/llm"),
            ("http://[::1]:8/b", "/c//d", "http://[::1]:8/b/c//d"),
        ] {
            assert_eq!(at(base, target).as_deref(), Some(there), "{base} {target}");
        }
    }

    #[test]
    fn what_is_too_long_below_the_path_of_the_url_is_not_sent_to_another() {
        let long = format!("/{}", "x".repeat(65_500));
        assert!(at("http://a", &long).is_some());
        assert_eq!(at(&format!("http://a/{}", "y".repeat(50)), &long), None);
    }

    #[test]
    fn urls_that_cannot_be_meant_say_why() {
        let why = |url: &'static str| Base::new(&Uri::from_static(url)).err();
        assert_eq!(why("http://a:1/b"), None);
        assert_eq!(why("ftp://a"), Some(InvalidUrl::Scheme));
        assert_eq!(why("a:1"), Some(InvalidUrl::Scheme));
        assert_eq!(why("/a"), Some(InvalidUrl::Scheme));
        assert_eq!(why("http://u:p@a"), Some(InvalidUrl::Credentials));
        assert_eq!(why("http://a/?b"), Some(InvalidUrl::Query));
        let secure = (!cfg!(feature = "hyper-tls")).then_some(InvalidUrl::Scheme);
        assert_eq!(why("https://a"), secure);
    }
}
