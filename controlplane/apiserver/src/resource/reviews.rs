//! Rows of the reviews of authentication.k8s.io and authorization.k8s.io: posted, answered, never stored.
//! Must not hold their logic.

use super::table::Resource;

fn review(group: &str, kind: &str, plural: &str) -> Resource {
    Resource::new(group, "v1", kind, plural).prefix("").only(&["create"])
}

/// Both groups' rows, in discovery's order.
pub(super) fn rows() -> Vec<Resource> {
    let authn = "authentication.k8s.io";
    let authz = "authorization.k8s.io";
    vec![
        review(authn, "SelfSubjectReview", "selfsubjectreviews").cluster(),
        review(authn, "TokenReview", "tokenreviews").cluster(),
        review(authz, "LocalSubjectAccessReview", "localsubjectaccessreviews"),
        review(authz, "SelfSubjectAccessReview", "selfsubjectaccessreviews").cluster(),
        review(authz, "SelfSubjectRulesReview", "selfsubjectrulesreviews").cluster(),
        review(authz, "SubjectAccessReview", "subjectaccessreviews").cluster(),
    ]
}
