//! `registries.toml`: mirrors, credentials and certificates of registries.
//!
//! ```toml
//! [mirror."docker.io"]
//! endpoints = ["http://10.0.0.1:5000"]
//!
//! [registry."registry.example.com:5000"]
//! username = "device"
//! password = "secret"
//! ca_file = "/etc/flotilla/registry-ca.pem"
//! plain_http = false
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::credentials::Credentials;

/// The file's content.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registries {
    mirror: BTreeMap<String, Mirror>,
    registry: BTreeMap<String, Registry>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    /// Asked in this order before the registry itself.
    endpoints: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Registry {
    username: String,
    password: String,
    ca_file: Option<PathBuf>,
    plain_http: bool,
}

/// Why the file can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistriesError {
    #[error("{path:?}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path:?}")]
    Parse { path: PathBuf, source: Box<toml::de::Error> },
    #[error("{path:?}: mirror endpoint {endpoint:?} is not http:// or https://")]
    Endpoint { path: PathBuf, endpoint: String },
}

/// Where a registry's API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Without a slash at its end, `/v2/...` follows.
    pub(crate) url: String,
    /// `host[:port]`, by which credentials and certificates are found.
    pub(crate) host: String,
    pub(crate) is_mirror: bool,
}

impl Registries {
    /// Reads the file; none is an empty one.
    pub(crate) fn load(path: &Path) -> Result<Registries, RegistriesError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(RegistriesError::Read { path: path.to_owned(), source }),
        };
        let registries: Registries = toml::from_str(&text).map_err(|source| {
            RegistriesError::Parse { path: path.to_owned(), source: Box::new(source) }
        })?;
        let endpoints = registries.mirror.values().flat_map(|mirror| &mirror.endpoints);
        for endpoint in endpoints {
            if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
                let (path, endpoint) = (path.to_owned(), endpoint.clone());
                return Err(RegistriesError::Endpoint { path, endpoint });
            }
        }
        Ok(registries)
    }

    /// Where to ask for images of a registry, in order.
    pub(crate) fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let mirrors = self.mirror.get(registry).map_or(&[][..], |mirror| &mirror.endpoints);
        let mut endpoints: Vec<Endpoint> = mirrors
            .iter()
            .map(|url| {
                let url = url.trim_end_matches('/').to_owned();
                let host = url.split("://").nth(1).unwrap_or_default();
                let host = host.split('/').next().unwrap_or_default().to_owned();
                Endpoint { url, host, is_mirror: true }
            })
            .collect();
        let host = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let is_plain = self
            .registry
            .get(registry)
            .map_or_else(|| is_loopback(registry), |registry| registry.plain_http);
        let scheme = if is_plain { "http" } else { "https" };
        let url = format!("{scheme}://{host}");
        endpoints.push(Endpoint { url, host: registry.to_owned(), is_mirror: false });
        endpoints
    }

    /// Credentials of the file for an endpoint.
    pub(crate) fn credentials(&self, host: &str) -> Option<Credentials> {
        let registry = self.registry.get(host).filter(|registry| !registry.username.is_empty())?;
        Some(Credentials {
            server: host.to_owned(),
            username: registry.username.clone(),
            password: registry.password.clone(),
            identity_token: String::new(),
        })
    }

    /// Certificate authority of an endpoint, besides the system's.
    pub(crate) fn ca_file(&self, host: &str) -> Option<&Path> {
        self.registry.get(host)?.ca_file.as_deref()
    }
}

/// As Docker and containerd have it: a registry on this host needs no TLS.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.toml");
        std::fs::write(
            &path,
            "[mirror.\"docker.io\"]\nendpoints=[\"http://10.0.0.1:5000/\"]\n\
             [registry.\"10.0.0.1:5000\"]\nusername=\"u\"\npassword=\"p\"\n\
             [registry.\"q.io\"]\nplain_http=true",
        )
        .unwrap();
        let registries = Registries::load(&path).unwrap();
        let urls = |registry: &str| -> Vec<String> {
            registries.endpoints(registry).into_iter().map(|endpoint| endpoint.url).collect()
        };
        assert_eq!(urls("docker.io"), ["http://10.0.0.1:5000", "https://registry-1.docker.io"]);
        assert_eq!(urls("q.io"), ["http://q.io"]);
        assert_eq!(urls("127.0.0.1:5000"), ["http://127.0.0.1:5000"]);
        let host = &registries.endpoints("docker.io")[0].host;
        assert_eq!(registries.credentials(host).unwrap().username, "u");
        std::fs::write(&path, "[mirrors.x]").unwrap();
        assert!(Registries::load(&path).is_err());
        assert!(Registries::load(&dir.path().join("none")).is_ok());
    }
}
