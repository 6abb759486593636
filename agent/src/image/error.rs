//! Why an image can't be had, in the classes that kubelet tells apart.

use std::io;

use super::reference::ReferenceError;

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PullError {
    /// Not an image's name.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The registry has no such image.
    #[error(
        "failed to pull image {image:?}: failed to resolve reference {image:?}: {image}: not found"
    )]
    NotFound { image: String },
    /// It may have, but not for us.
    #[error(
        "failed to pull image {image:?}: pull access denied, repository does not exist or may \
         require authorization: {reason}"
    )]
    Unauthorized { image: String, reason: String },
    /// None of its manifests is for this machine.
    #[error("failed to pull image {image:?}: no match for platform {platform} in manifest")]
    Platform { image: String, platform: String },
    /// No answer, or one that means try later.
    #[error("failed to pull image {image:?}: {reason}")]
    Unreachable { image: String, reason: String },
    /// What came is not what was asked for.
    #[error("failed to pull image {image:?}: {reason}")]
    Corrupt { image: String, reason: String },
    /// The node's disk.
    #[error("failed to pull image {image:?}: {what}")]
    Disk { image: String, what: String, source: io::Error },
    /// Another caller's pull of the same image failed.
    #[error("{message}")]
    Shared { reason: &'static str, message: String },
}

impl PullError {
    /// Kubelet's reason of a waiting container.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            PullError::Name(_) => "InvalidImageName",
            PullError::Shared { reason, .. } => reason,
            _ => "ErrImagePull",
        }
    }

    /// Whole text with its causes.
    pub(crate) fn chain(&self) -> String {
        match self {
            PullError::Disk { source, .. } => format!("{self}: {source}"),
            other => other.to_string(),
        }
    }
}
