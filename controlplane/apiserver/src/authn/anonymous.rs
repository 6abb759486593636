//! The caller who offered no proof. What it may do is RBAC's business: health and version, by default.

use super::ALL_UNAUTHENTICATED;
use crate::User;

/// The anonymous user's name.
pub const NAME: &str = "system:anonymous";

/// The anonymous user.
pub fn user() -> User {
    User { name: NAME.to_owned(), groups: vec![ALL_UNAUTHENTICATED.to_owned()], ..User::default() }
}
