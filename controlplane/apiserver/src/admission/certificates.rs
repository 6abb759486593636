//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction: who may approve or sign for which signer.
//!
//! Kubernetes 1.36 (`plugin/pkg/admission/certificates`).

use super::{AdmissionRequest, Operation};
use crate::authz::{Attributes, Authorizer, ResourceTarget, Target};
use apimachinery::status::ApiError;
use base64::Engine as _;
use serde_json::Value;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer as _;

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";
const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) fn validate(
    authorizer: &Authorizer,
    request: &AdmissionRequest<'_>,
    object: &Value,
) -> Result<(), ApiError> {
    if request.resource.group != GROUP || request.resource.plural != PLURAL {
        return Ok(());
    }
    let old = request.old.unwrap_or(&Value::Null);
    match (request.operation, request.subresource) {
        (Operation::Create, "") => restrict_subject(request, object),
        (Operation::Update, "approval") => may(authorizer, request, object, "approve"),
        (Operation::Update, "status") => {
            let status = |object: &Value| {
                (object["status"]["certificate"].clone(), object["status"]["conditions"].clone())
            };
            // Neither a certificate nor a condition changes: nobody signs.
            match status(old) == status(object) {
                true => Ok(()),
                false => may(authorizer, request, object, "sign"),
            }
        }
        _ => Ok(()),
    }
}

/// Whether the user may do that for the signer, by name or for all names of its domain.
fn may(
    authorizer: &Authorizer,
    request: &AdmissionRequest<'_>,
    object: &Value,
    verb: &str,
) -> Result<(), ApiError> {
    let old = request.old.unwrap_or(object);
    let signer = old["spec"]["signerName"].as_str().unwrap_or_default();
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    let wildcard = format!("{domain}/*");
    let allowed = [signer, wildcard.as_str()].into_iter().any(|name| {
        let target = ResourceTarget {
            group: GROUP,
            version: "*",
            resource: "signers",
            name,
            ..ResourceTarget::default()
        };
        let attributes = Attributes { user: request.user, verb, target: Target::Resource(target) };
        authorizer.authorize(&attributes).is_allowed()
    });
    if allowed {
        return Ok(());
    }
    let done = if verb == "sign" { "sign" } else { "approve" };
    let why = format!(
        "user not permitted to {done} requests with signerName {}",
        apimachinery::field::quote(signer)
    );
    Err(request.forbidden(object, why))
}

/// No request for an ordinary client certificate names the group of masters.
fn restrict_subject(request: &AdmissionRequest<'_>, object: &Value) -> Result<(), ApiError> {
    if object["spec"]["signerName"] != CLIENT_SIGNER {
        return Ok(());
    }
    let organizations = organizations(object["spec"]["request"].as_str().unwrap_or_default())
        .map_err(|problem| request.forbidden(object, format!("failed to parse CSR: {problem}")))?;
    if organizations.iter().any(|name| name == crate::user::GROUP_MASTERS) {
        let why = format!("use of {CLIENT_SIGNER} signer with system:masters group is not allowed");
        return Err(request.forbidden(object, why));
    }
    Ok(())
}

/// The organizations in the subject of a base64-encoded PEM request.
fn organizations(encoded: &str) -> Result<Vec<String>, String> {
    let pem = base64::engine::general_purpose::STANDARD
        .decode(encoded)
        .map_err(|error| error.to_string())?;
    let (_, pem) = parse_x509_pem(&pem).map_err(|error| error.to_string())?;
    let (_, request) =
        X509CertificationRequest::from_der(&pem.contents).map_err(|error| error.to_string())?;
    let subject = &request.certification_request_info.subject;
    Ok(subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect())
}
