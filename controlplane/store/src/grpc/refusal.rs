//! Owns what a call is refused with: gRPC's code and etcd's text, which clients compare.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::Code;

use crate::txn::{ReadError, WriteError};

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
pub(super) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: Code,
    pub(crate) message: Cow<'static, str>,
}

pub(super) const EMPTY_KEY: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: key is not provided");
pub(super) const KEY_NOT_FOUND: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: key not found");
pub(super) const VALUE_PROVIDED: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: value is provided");
pub(super) const LEASE_PROVIDED: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: lease is provided");
pub(super) const TOO_MANY_OPS: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: too many operations in txn request");
pub(super) const DUPLICATE_KEY: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: duplicate key given in txn request");
pub(super) const INVALID_SORT: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: invalid sort option");
pub(super) const INVALID_COMPARE: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: invalid comparison");
pub(super) const TOO_LARGE: Refusal =
    Refusal::of(Code::InvalidArgument, "etcdserver: request is too large");
pub(super) const COMPACTED: Refusal =
    Refusal::of(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted");
pub(super) const FUTURE: Refusal =
    Refusal::of(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision");
pub(super) const LEASE_NOT_FOUND: Refusal =
    Refusal::of(Code::NotFound, "etcdserver: requested lease not found");
pub(super) const LEASE_EXISTS: Refusal =
    Refusal::of(Code::FailedPrecondition, "etcdserver: lease already exists");
pub(super) const LEASE_TTL: Refusal =
    Refusal::of(Code::OutOfRange, "etcdserver: too large lease TTL");
pub(super) const NO_SPACE: Refusal =
    Refusal::of(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded");
pub(super) const STOPPED: Refusal = Refusal::of(Code::Unavailable, "etcdserver: server stopped");

impl Refusal {
    pub(super) const fn of(code: Code, message: &'static str) -> Self {
        Self { code, message: Cow::Borrowed(message) }
    }

    pub(super) fn new(code: Code, message: String) -> Self {
        Self { code, message: Cow::Owned(message) }
    }

    /// The head or tail of an answer that says so.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(2);
        headers.insert(GRPC_STATUS, HeaderValue::from(self.code as i32));
        if let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.message)) {
            headers.insert(GRPC_MESSAGE, message);
        }
        headers
    }
}

/// gRPC's encoding of a message in a header: printable ASCII but `%` stands for itself.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            let digit = |at: u8| char::from(DIGITS[usize::from(at & 0xf)]);
            encoded.extend(['%', digit(byte >> 4), digit(byte)]);
        }
    }
    encoded
}

impl From<ReadError> for Refusal {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Compacted { .. } => COMPACTED,
            ReadError::Future { .. } => FUTURE,
        }
    }
}

impl From<WriteError> for Refusal {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::DuplicateKey { .. } => DUPLICATE_KEY,
            WriteError::EmptyKey => EMPTY_KEY,
            WriteError::TooManyOps { .. } => TOO_MANY_OPS,
            WriteError::KeyNotFound { .. } => KEY_NOT_FOUND,
            WriteError::TooLarge { .. } => TOO_LARGE,
            WriteError::Read(error) => error.into(),
            WriteError::LeaseNotFound { .. } => LEASE_NOT_FOUND,
            WriteError::LeaseExists { .. } => LEASE_EXISTS,
            WriteError::LeaseTtl { .. } => LEASE_TTL,
            WriteError::Seal { .. } => Self::new(Code::Internal, format!("etcdserver: {error}")),
            WriteError::SealedCompare { .. } => {
                Self::new(Code::InvalidArgument, format!("etcdserver: {error}"))
            }
            WriteError::Refused { .. }
            | WriteError::Unavailable { .. }
            | WriteError::Unknown { .. } => {
                Self::new(Code::Unavailable, format!("etcdserver: {error}"))
            }
            WriteError::Closed => STOPPED,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_printable_headers() {
        let refusal = Refusal::new(Code::Internal, "50 % \u{fc}\n".to_owned());
        let headers = refusal.headers();
        assert_eq!(headers[GRPC_STATUS], "13");
        assert_eq!(headers[GRPC_MESSAGE], "50 %25 %C3%BC%0A");
    }
}
