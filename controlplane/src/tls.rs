//! Owns how the API is served over TLS: which certificate is shown, which clients are believed. The certificate can be changed while
//! connections go on; a client without a certificate gets in, and is then somebody only by a token.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientCertVerifierBuilder, ClientHello, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};

use crate::pki::Pair;

/// The certificate that is shown, as of now.
#[derive(Debug)]
pub struct Shown {
    key: RwLock<Arc<CertifiedKey>>,
}

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate or key is no PEM.
    #[error("certificate or key: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// rustls refuses them.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// The CA can't verify clients.
    #[error("verifying clients: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

impl Shown {
    /// Shows a certificate.
    ///
    /// # Errors
    /// It can't be used.
    pub fn new(pair: &Pair) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self { key: RwLock::new(certified(pair)?) }))
    }

    /// Shows another one to whoever connects from now on.
    ///
    /// # Errors
    /// It can't be used; the old one stays.
    pub fn replace(&self, pair: &Pair) -> Result<(), TlsError> {
        let certified = certified(pair)?;
        *self.key.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn certified(pair: &Pair) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes())?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &default_provider())?))
}

/// TLS for the API: HTTP/2 and HTTP/1.1, client certificates of the cluster's CA where a client has one.
///
/// # Errors
/// The CA can't be used.
pub fn server_config(ca_pem: &str, shown: Arc<Shown>) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier = verifier(ca_pem)?.allow_unauthenticated().build()?;
    config(verifier, shown, &[b"h2", b"http/1.1"])
}

/// TLS for the etcd API: HTTP/2 alone, for clients with a certificate of the CA.
///
/// # Errors
/// The CA can't be used.
pub fn etcd_config(ca_pem: &str, shown: Arc<Shown>) -> Result<Arc<ServerConfig>, TlsError> {
    config(verifier(ca_pem)?.build()?, shown, &[b"h2"])
}

fn verifier(ca_pem: &str) -> Result<ClientCertVerifierBuilder, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(default_provider());
    Ok(WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider))
}

fn config(
    verifier: Arc<dyn ClientCertVerifier>,
    shown: Arc<Shown>,
    protocols: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(shown);
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    Ok(Arc::new(config))
}
