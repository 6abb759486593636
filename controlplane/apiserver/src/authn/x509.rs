//! Client certificates: the common name is the user, the organizations are its groups.
//!
//! The TLS layer has verified the chain and the validity; this module only reads the subject.

use super::{AuthnError, CREDENTIAL_ID_KEY};
use crate::User;
use std::collections::BTreeMap;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The user that a verified client certificate (DER) names.
pub fn user_of(der: &[u8]) -> Result<User, AuthnError> {
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|error| AuthnError::Certificate(format!("parse: {error}")))?;
    let subject = certificate.subject();
    let name = subject
        .iter_common_name()
        .next()
        .and_then(|cn| cn.as_str().ok())
        .filter(|cn| !cn.is_empty())
        .ok_or_else(|| AuthnError::Certificate("the subject has no common name".to_owned()))?;
    let groups =
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    let fingerprint = hex(ring::digest::digest(&ring::digest::SHA256, der).as_ref());
    let extra =
        BTreeMap::from([(CREDENTIAL_ID_KEY.to_owned(), vec![format!("X509SHA256={fingerprint}")])]);
    Ok(User { name: name.to_owned(), uid: String::new(), groups, extra })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
