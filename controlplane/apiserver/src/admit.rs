//! Where writes meet admission. Must not decide anything itself.

use apimachinery::status::ApiError;
use serde_json::Value;

use crate::verb::Call;

/// What is being done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
}

/// Mutating plugins, in order.
pub(crate) async fn mutate(
    call: &Call,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let _ = (&call.user, operation, object, old);
    Ok(())
}

/// Validating plugins, in order.
pub(crate) async fn validate(
    call: &Call,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let _ = (&call.user, operation, object, old);
    Ok(())
}
