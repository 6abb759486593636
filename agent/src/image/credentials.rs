//! Who we are to a registry: pull secrets in Docker's formats, and which of them fits an image.
//!
//! Owns the formats and kubelet's matching rules; pure.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::reference::Reference;

/// A name and password for the registries that match.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Credentials {
    /// `host[:port][/path]`, labels of the host may be globs; empty matches all.
    pub(crate) server: String,
    pub(crate) username: String,
    pub(crate) password: String,
    /// An OAuth refresh token instead of a password.
    pub(crate) identity_token: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Credentials")
            .field("server", &self.server)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A pull secret that can't be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialsError {
    #[error("not JSON")]
    Json(#[from] serde_json::Error),
    #[error("entry for {0:?} is malformed")]
    Entry(String),
}

/// Reads `.dockerconfigjson` (`{"auths": {...}}`) or the older `.dockercfg` (the inner object alone).
pub(crate) fn parse_docker_config(text: &[u8]) -> Result<Vec<Credentials>, CredentialsError> {
    let config: Value = serde_json::from_slice(text)?;
    let auths = config.get("auths").unwrap_or(&config);
    let Some(auths) = auths.as_object() else { return Ok(Vec::new()) };
    auths.iter().map(|(server, entry)| parse_entry(server, entry)).collect()
}

fn parse_entry(server: &str, entry: &Value) -> Result<Credentials, CredentialsError> {
    let malformed = || CredentialsError::Entry(server.to_owned());
    let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut credentials = Credentials {
        server: normalize(server),
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
    };
    let auth = text("auth");
    if !auth.is_empty() && credentials.username.is_empty() {
        let decoded = STANDARD.decode(auth.trim()).map_err(|_| malformed())?;
        let decoded = String::from_utf8(decoded).map_err(|_| malformed())?;
        let (username, password) = decoded.split_once(':').ok_or_else(malformed)?;
        username.clone_into(&mut credentials.username);
        password.trim_end_matches('\0').clone_into(&mut credentials.password);
    }
    Ok(credentials)
}

fn normalize(server: &str) -> String {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://");
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    match bare {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// Those that fit, the most specific first, as kubelet tries them.
pub(crate) fn matching<'a>(all: &'a [Credentials], image: &Reference) -> Vec<&'a Credentials> {
    let mut fitting: Vec<&Credentials> =
        all.iter().filter(|credentials| fits(&credentials.server, image)).collect();
    fitting.sort_by(|left, right| right.server.cmp(&left.server));
    fitting.dedup();
    fitting
}

fn fits(server: &str, image: &Reference) -> bool {
    if server.is_empty() {
        return true;
    }
    let (host, path) = server.split_once('/').unwrap_or((server, ""));
    let is_below = path.is_empty()
        || image
            .repository
            .strip_prefix(path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    is_below && host_fits(host, &image.registry)
}

fn host_fits(pattern: &str, host: &str) -> bool {
    let split = |text: &str| match text.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            (host.to_owned(), port.to_owned())
        }
        _ => (text.to_owned(), String::new()),
    };
    let ((pattern, pattern_port), (host, port)) = (split(pattern), split(host));
    let (patterns, labels): (Vec<&str>, Vec<&str>) =
        (pattern.split('.').collect(), host.split('.').collect());
    pattern_port == port
        && patterns.len() == labels.len()
        && patterns.iter().zip(&labels).all(|(pattern, label)| glob(pattern, label))
}

/// `*` stands for any run of characters within a label.
fn glob(pattern: &str, label: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == label,
        Some((head, tail)) => label.strip_prefix(head).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(tail, &rest[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats() {
        let text = br#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYTpzcw=="},
            "q.io":{"username":"a","password":"b"}}}"#;
        let all = parse_docker_config(text).unwrap();
        let docker = all.iter().find(|credentials| credentials.server == "docker.io").unwrap();
        assert_eq!((docker.username.as_str(), docker.password.as_str()), ("user", "pa:ss"));
        assert_eq!(parse_docker_config(br#"{"q.io":{"auth":"YTpi"}}"#).unwrap()[0].username, "a");
        assert!(parse_docker_config(br#"{"auths":{"q.io":{"auth":"!"}}}"#).is_err());
        assert!(!format!("{all:?}").contains("pa:ss"));
    }

    #[test]
    fn the_most_specific_comes_first() {
        let of = |server: &str| Credentials {
            server: server.into(),
            username: String::new(),
            password: String::new(),
            identity_token: String::new(),
        };
        let all = [of("*.q.io"), of("r.q.io"), of("r.q.io/team"), of("q.io"), of("r.q.io:444")];
        let image = "r.q.io/team/app".parse().unwrap();
        let servers: Vec<&str> =
            matching(&all, &image).iter().map(|credentials| credentials.server.as_str()).collect();
        assert_eq!(servers, ["r.q.io/team", "r.q.io", "*.q.io"]);
        assert!(matching(&all, &"x.io/team".parse().unwrap()).is_empty());
        assert!(matching(&[of("r.q.io/tea")], &image).is_empty());
    }
}
