//! Feeds over HTTP: pages that link to the next one, from a server that may be slow, lie or break
//! off.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::crypto::ring;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::source::{Source, decompressed};
use crate::lease::Validators;

/// Largest number of redirects of a page.
const MAX_REDIRECTS: u32 = 5;

/// Largest number of pages.
const MAX_PAGES: usize = 100_000;

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a page may take in all, and how long it may be until the last page begins.
const WHOLE: Duration = Duration::from_secs(3600);

/// A feed on a server.
pub struct HttpFeed {
    agent: Agent,
    url: String,
}

/// What a server says to a request for the first page.
pub enum Answer {
    /// The feed is as it was.
    NotModified,
    /// The feed, and its validators.
    Pages(Box<Pages>, Validators),
}

/// The pages of a feed.
pub struct Pages {
    agent: Agent,
    /// The page that was asked for, and has not been given out.
    current: Option<Response<Body>>,
    /// The URL of the page after it.
    next: Option<String>,
    count: usize,
    /// Hashes of the URLs of all pages so far.
    seen: HashSet<u64>,
    /// When all pages must have come.
    until: Instant,
}

impl HttpFeed {
    /// Checks a URL.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn check(url: &str) -> Result<(), &'static str> {
        let uri = url.parse::<Uri>().ok();
        match uri {
            Some(uri) if matches!(uri.scheme_str(), Some("http" | "https")) => {
                let authority = uri.authority();
                match authority.is_some_and(|authority| authority.as_str().contains('@')) {
                    true => Err(
                        "it holds a user or a password, which everybody on this machine could see",
                    ),
                    false => Ok(()),
                }
            }
            _ => Err("not a URL of HTTP: write http://HOST/PATH or https://HOST/PATH"),
        }
    }

    /// Returns the feed at this URL. A server that sends nothing for the time `idle` is given up.
    pub fn new(url: &str, idle: Duration) -> Self {
        let roots = rustls_native_certs::load_native_certs().certs;
        let roots: Vec<_> = roots
            .iter()
            .map(|root| Certificate::from_der(root).to_owned())
            .collect();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            // A feed that is asked for encrypted stays so.
            .https_only(url.starts_with("https://"))
            .max_redirects(MAX_REDIRECTS)
            .http_status_as_error(false)
            .proxy(None)
            .accept_encoding("gzip")
            .user_agent(concat!("blockchain-tcpd/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_resolve(Some(CONNECT))
            .timeout_per_read(Some(idle))
            .timeout_per_write(Some(idle))
            .timeout_global(Some(WHOLE))
            .build();
        HttpFeed {
            agent: agent.into(),
            url: url.to_string(),
        }
    }

    /// Asks for the feed, unless it is as these validators say.
    ///
    /// # Errors
    ///
    /// If the server can't be reached, or answers something else.
    pub fn get(&self, known: &Validators) -> io::Result<Answer> {
        let mut request = self.agent.get(&self.url);
        let is_conditional = known.feed.as_deref() == Some(&*self.url)
            && (known.etag.is_some() || known.last_modified.is_some());
        if is_conditional {
            if let Some(etag) = &known.etag {
                request = request.header("If-None-Match", etag);
            }
            if let Some(date) = &known.last_modified {
                request = request.header("If-Modified-Since", date);
            }
        }
        let response = request.call().map_err(io::Error::other)?;
        if response.status() == 304 && is_conditional {
            return Ok(Answer::NotModified);
        }
        let field = |name: &str| {
            let value = response.headers().get(name)?.to_str().ok()?;
            Some(value.to_string())
        };
        let mut validators = Validators {
            feed: Some(self.url.clone()),
            etag: field("etag"),
            last_modified: field("last-modified"),
        };
        let next = checked(&response)?;
        if next.is_some() {
            // They are those of the first page alone.
            (validators.etag, validators.last_modified) = (None, None);
        }
        let pages = Pages {
            agent: self.agent.clone(),
            current: Some(response),
            next,
            count: 0,
            seen: HashSet::from([hash(&self.url)]),
            until: Instant::now() + WHOLE,
        };
        Ok(Answer::Pages(Box::new(pages), validators))
    }

    /// Ends all requests of this feed, also in other threads.
    pub fn shut_down(&self) {
        self.agent.clone().shutdown();
    }
}

impl Iterator for Pages {
    type Item = io::Result<Source>;

    fn next(&mut self) -> Option<Self::Item> {
        let response = match (self.current.take(), self.next.take()) {
            (Some(current), next) => {
                self.next = next;
                current
            }
            (None, None) => return None,
            (None, Some(url)) => {
                self.count += 1;
                if !self.seen.insert(hash(&url)) {
                    let why = "the pages of the feed follow each other in a circle";
                    return Some(Err(io::Error::other(why)));
                }
                if self.count == MAX_PAGES || Instant::now() >= self.until {
                    return Some(Err(io::Error::other("the feed has too many pages")));
                }
                match self.agent.get(&url).call().map_err(io::Error::other) {
                    Err(error) => return Some(Err(error)),
                    Ok(response) => match checked(&response) {
                        Err(error) => return Some(Err(error)),
                        Ok(next) => {
                            self.next = next;
                            response
                        }
                    },
                }
            }
        };
        Some(decompressed(
            response
                .into_body()
                .into_with_config()
                .limit(u64::MAX)
                .reader(),
        ))
    }
}

fn hash(url: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    url.hash(&mut hasher);
    hasher.finish()
}

/// Checks the status of a page. Returns the URL of the next page, if it names one.
fn checked(response: &Response<Body>) -> io::Result<Option<String>> {
    use ureq::ResponseExt as _;
    if response.status() != 200 {
        let status = response.status();
        return Err(io::Error::other(format!(
            "the server of the feed answers with the HTTP status {status}"
        )));
    }
    let links = response.headers().get_all("link").iter();
    let links: Vec<_> = links
        .map(|link| String::from_utf8_lossy(link.as_bytes()))
        .collect();
    let page = response.get_uri().to_string();
    let next = links.iter().find_map(|link| next_link(link));
    Ok(next.map(|target| resolve(&page, target)))
}

/// Returns the target of the first link in a field (RFC 8288) whose relation is `next`.
fn next_link(mut links: &str) -> Option<&str> {
    loop {
        let (target, rest) = links.split_once('<')?.1.split_once('>')?;
        let (mut parameters, others) = split_unquoted(rest, ',');
        while !parameters.is_empty() {
            let (parameter, rest) = split_unquoted(parameters, ';');
            parameters = rest;
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            if name.trim().eq_ignore_ascii_case("rel") {
                let mut relations = value.trim().trim_matches('"').split_whitespace();
                if relations.any(|relation| relation.eq_ignore_ascii_case("next")) {
                    return Some(target);
                }
                // Only the first counts.
                break;
            }
        }
        links = others;
    }
}

/// Splits a text at the first `end` that is not between quotes.
fn split_unquoted(text: &str, end: char) -> (&str, &str) {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let at = text.find(|c: char| {
        let is_end = c == end && !is_quoted;
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = is_quoted,
            '"' => is_quoted = !is_quoted,
            _ => {}
        }
        is_end
    });
    match at {
        Some(at) => (&text[..at], &text[at + end.len_utf8()..]),
        None => (text, ""),
    }
}

/// Returns whether a reference begins with a scheme (RFC 3986, section 3.1).
fn has_scheme(target: &str) -> bool {
    let is_of_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    let scheme = target.split_once("://").map_or("", |(scheme, _)| scheme);
    scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(is_of_scheme)
}

/// Resolves a reference on a page (RFC 3986, section 5.2).
fn resolve(page: &str, target: &str) -> String {
    let page = page.split(['?', '#']).next().unwrap_or(page);
    let authority = page.find("://").map_or(0, |at| at + 3);
    let path = page[authority..]
        .find('/')
        .map_or(page.len(), |at| authority + at);
    match target {
        _ if has_scheme(target) => target.to_string(),
        _ if target.starts_with("//") => format!("{}{target}", &page[..authority - 2]),
        _ if target.starts_with('/') => format!("{}{target}", &page[..path]),
        _ if target.starts_with('?') => format!("{page}{target}"),
        _ => match page[path..].rfind('/') {
            Some(at) => format!("{}{target}", &page[..path + at + 1]),
            None => format!("{page}/{target}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_and_resolved() {
        for (link, expected) in [
            ("<https://b/x?p=2>; rel=\"next\"", Some("https://b/x?p=2")),
            ("</u?p=2>; rel=next", Some("/u?p=2")),
            ("<a>; title=\"x\"; REL=\"prev next\"", Some("a")),
            ("<a>; rel=\"prev\", <b,c>; rel=\"next\"", Some("b,c")),
            ("<a>;rel=prev,<b>;rel=next,<c>;rel=last", Some("b")),
            ("<a>; title=\"x;rel=y, <z>\\\"\"; rel=next", Some("a")),
            ("<a>; rel=last; rel=next", None),
            ("<a>; rel=\"last\"", None),
            ("<a>", None),
            ("", None),
        ] {
            assert_eq!(next_link(link), expected, "{link}");
        }
        for (target, expected) in [
            ("https://c/y", "https://c/y"),
            ("//c/y", "http://c/y"),
            ("/y", "http://b:1/y"),
            ("?p=2", "http://b:1/v1/users?p=2"),
            ("y", "http://b:1/v1/y"),
        ] {
            assert_eq!(
                resolve("http://b:1/v1/users?p=1", target),
                expected,
                "{target}"
            );
        }
        assert_eq!(resolve("http://b", "y"), "http://b/y");
    }

    #[test]
    fn urls_are_those_of_http_without_secrets() {
        assert_eq!(HttpFeed::check("https://example.org/users"), Ok(()));
        for url in [
            "",
            "users.json",
            "ftp://example.org/",
            "http://me:secret@example.org/",
        ] {
            assert!(
                HttpFeed::check(url).is_err_and(|error| !error.contains("secret")),
                "{url}"
            );
        }
    }
}
