//! The patches: pure functions over JSON. Which one a request means is `negotiate`'s to say.

pub mod json;
pub mod merge;
pub mod strategic;

use thiserror::Error;

use crate::status::ApiError;

/// Why a patch was not applied.
#[derive(Debug, Error)]
pub enum PatchError {
    /// The patch itself is malformed.
    #[error("{0}")]
    Malformed(String),
    /// Too many operations.
    #[error("The allowed maximum operations in a JSON patch is {max}, got {got}")]
    TooManyOperations {
        /// The limit.
        max: usize,
        /// What came.
        got: usize,
    },
    /// The patch does not fit the object.
    #[error("{0}")]
    DoesNotApply(String),
}

impl From<PatchError> for ApiError {
    fn from(error: PatchError) -> Self {
        match error {
            PatchError::Malformed(message) => Self::bad_request(message),
            PatchError::TooManyOperations { .. } => {
                Self::request_entity_too_large(error.to_string())
            }
            PatchError::DoesNotApply(_) => Self::unprocessable(),
        }
    }
}
