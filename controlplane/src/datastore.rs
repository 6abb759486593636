//! Owns where the cluster's state lives: in a log of our own in the data folder, or in a real etcd cluster. Opens the store on it. Must
//! not know what is in it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use apiserver::extract::ObjectExtract;
use store::{EtcdConfig, Store};

use crate::config::{Config, ConfigError, value};
use crate::secrets::Loaded;

/// Heartbeats live in memory only: they come again by themselves, and would wear out flash.
const VOLATILE_PREFIX: &[u8] = b"/registry/leases/kube-node-lease/";
/// What else lives in memory only, where the configuration says so.
const EVENTS_PREFIX: &[u8] = b"/registry/events/";
/// Name of the log's folder in the data folder.
const FOLDER: &str = "store";

/// A real etcd cluster, as flags and file name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datastore {
    /// URLs of its members.
    pub endpoints: Vec<String>,
    /// The CA of its certificates.
    pub ca_file: Option<PathBuf>,
    /// The certificate shown to it.
    pub certificate_file: Option<PathBuf>,
    /// The key of that certificate.
    pub key_file: Option<PathBuf>,
}

impl Datastore {
    /// `None`: no endpoint is named, so the log is our own.
    ///
    /// # Errors
    /// What is given doesn't make a whole.
    pub fn checked(self) -> Result<Option<Self>, ConfigError> {
        const ENDPOINTS: &str = "datastore-endpoints";
        let files = [
            ("datastore-cafile", &self.ca_file),
            ("datastore-certfile", &self.certificate_file),
            ("datastore-keyfile", &self.key_file),
        ];
        let given = files.iter().find_map(|(flag, file)| Some((*flag, file.as_ref()?)));
        if self.endpoints.is_empty() {
            return match given {
                Some((flag, file)) => {
                    Err(value(flag, file.display(), "needs --datastore-endpoints"))
                }
                None => Ok(None),
            };
        }
        let mut secure = true;
        for endpoint in &self.endpoints {
            let uri: Option<http::Uri> = endpoint.parse().ok();
            let scheme = uri.as_ref().and_then(http::Uri::scheme_str);
            if !matches!(scheme, Some("http" | "https")) {
                return Err(value(
                    ENDPOINTS,
                    endpoint,
                    "is not a URL such as https://10.0.0.1:2379",
                ));
            }
            secure &= scheme == Some("https");
        }
        match given {
            Some((flag, file)) if !secure => {
                return Err(value(flag, file.display(), "needs https:// endpoints"));
            }
            _ => {}
        }
        match (&self.certificate_file, &self.key_file) {
            (Some(file), None) => {
                Err(value("datastore-certfile", file.display(), "needs --datastore-keyfile"))
            }
            (None, Some(file)) => {
                Err(value("datastore-keyfile", file.display(), "needs --datastore-certfile"))
            }
            _ => Ok(Some(self)),
        }
    }

    /// With the files' contents.
    ///
    /// # Errors
    /// A file can't be read.
    pub fn etcd(&self) -> anyhow::Result<EtcdConfig> {
        let read = |file: &Option<PathBuf>| {
            let text = file.as_ref().map(|file| {
                std::fs::read_to_string(file).with_context(|| file.display().to_string())
            });
            text.transpose()
        };
        Ok(EtcdConfig {
            ca_pem: read(&self.ca_file)?,
            certificate_pem: read(&self.certificate_file)?,
            key_pem: read(&self.key_file)?,
            ..EtcdConfig::new(&self.endpoints)
        })
    }
}

/// The folder of the log, which also says that one process has the data folder.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join(FOLDER)
}

/// How a store in a folder is opened, also by who only copies it.
pub fn settings(dir: impl Into<PathBuf>, loaded: &Loaded) -> store::Config {
    let mut own = store::Config::new(dir);
    own.volatile_prefixes = vec![VOLATILE_PREFIX.to_vec()];
    own.seal = Some(loaded.ring().clone());
    own
}

/// Opens the store where the configuration says.
///
/// # Errors
/// It is in use, damaged, not there, or sealed with another secret.
pub async fn open(config: &Config, loaded: &Loaded) -> anyhow::Result<Store> {
    let mut own = settings(folder(&config.data_dir), loaded);
    own.extract = Arc::new(ObjectExtract::builtin());
    if config.volatile_events {
        own.volatile_prefixes.push(EVENTS_PREFIX.to_vec());
    }
    let opened = match &config.datastore {
        Some(datastore) => Box::pin(Store::open_etcd(datastore.etcd()?, own)).await,
        None => Store::open(own),
    };
    Ok(opened.map_err(|error| loaded.explain(error))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(endpoints: &[&str], files: [Option<&str>; 3]) -> Result<bool, String> {
        let [ca_file, certificate_file, key_file] = files.map(|file| file.map(PathBuf::from));
        let endpoints = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
        let datastore = Datastore { endpoints, ca_file, certificate_file, key_file };
        datastore.checked().map(|some| some.is_some()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_datastore_is_whole_or_refused() {
        let none = [None; 3];
        assert_eq!(checked(&[], none), Ok(false));
        assert_eq!(checked(&["http://a:2379", "http://b:2379"], none), Ok(true));
        assert_eq!(checked(&["https://a:2379"], [Some("ca"), Some("crt"), Some("key")]), Ok(true));
        for (endpoints, files, expected) in [
            (&["10.0.0.1:2379"][..], none, "is not a URL"),
            (&["etcd://a"], none, "is not a URL"),
            (
                &[],
                [Some("ca"), None, None],
                "--datastore-cafile: \"ca\" needs --datastore-endpoints",
            ),
            (&["http://a"], [Some("ca"), None, None], "needs https:// endpoints"),
            (&["https://a"], [None, Some("crt"), None], "needs --datastore-keyfile"),
            (&["https://a"], [None, None, Some("key")], "needs --datastore-certfile"),
        ] {
            let error = checked(endpoints, files).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
