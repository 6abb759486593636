//! Rows of policy and certificates.k8s.io. Must not touch the store.

use apimachinery::object;
use serde_json::{Value, json};

use super::{
    strategy::{Generation, Strategy},
    table::{Resource, VERBS_READ_WRITE},
};

/// policy, in discovery's order.
pub(super) fn rows() -> Vec<Resource> {
    vec![
        Resource::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
            .short(&["pdb"])
            .status()
            .strategy(Strategy {
                generation: Generation::Content,
                unconditional_update: false,
                empty_status: Some(|| {
                    json!({"disruptionsAllowed": 0, "currentHealthy": 0,
                           "desiredHealthy": 0, "expectedPods": 0})
                }),
                ..Strategy::PLAIN
            }),
    ]
}

/// certificates.k8s.io. Conditions change through `approval` and `status`, the spec never.
pub(super) fn certificates() -> Vec<Resource> {
    let kind = "CertificateSigningRequest";
    vec![
        Resource::new("certificates.k8s.io", "v1", kind, "certificatesigningrequests")
            .cluster()
            .short(&["csr"])
            .sub("approval", None, VERBS_READ_WRITE)
            .status()
            .field("spec.signerName", "")
            .strategy(Strategy {
                empty_status: Some(|| json!({})),
                prepare_update: csr_prepare_update,
                ..Strategy::PLAIN
            }),
    ]
}

fn csr_prepare_update(object: &mut Value, old: &Value) {
    *object::at_mut(object, &["spec"]) = old["spec"].clone();
}
