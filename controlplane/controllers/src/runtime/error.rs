//! Errors of reconciles, by class. Code branches on the class, never on text.

/// Why a reconcile did not finish; all are retried.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The API server refused or could not be reached.
    #[error("API: {}", describe(.0))]
    Api(#[from] kube::Error),
    /// An object does not have what its kind always has.
    #[error("{kind} {name:?}: {what}")]
    Malformed {
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A certificate could not be read or made.
    #[error("certificate: {0}")]
    Certificate(String),
}

fn describe(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

impl Error {
    fn status(&self) -> Option<(u16, &str)> {
        match self {
            Self::Api(kube::Error::Api(status)) => Some((status.code, &status.reason)),
            _ => None,
        }
    }

    /// The object changed or was replaced since it was read.
    pub(crate) fn is_conflict(&self) -> bool {
        self.status().is_some_and(|(code, reason)| code == 409 && reason != "AlreadyExists")
    }

    /// An object of that name is there already.
    pub(crate) fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|(_, reason)| reason == "AlreadyExists")
    }

    /// The object is gone.
    pub(crate) fn is_not_found(&self) -> bool {
        self.status().is_some_and(|(code, _)| code == 404)
    }

    /// The namespace is being deleted and takes nothing new.
    pub(crate) fn is_namespace_terminating(&self) -> bool {
        let Self::Api(kube::Error::Api(status)) = self else { return false };
        let causes = status.details.iter().flat_map(|d| &d.causes);
        causes.into_iter().any(|c| c.reason == "NamespaceTerminating")
            || status.code == 403 && status.message.contains("is being terminated")
    }

    /// Nobody has to hear of it: the next reconcile sees the newer state.
    pub(crate) fn is_expected(&self) -> bool {
        self.is_conflict() || self.is_not_found() || self.is_namespace_terminating()
    }
}

/// Turns "it is gone" into success.
pub(crate) fn gone_is_fine<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}
