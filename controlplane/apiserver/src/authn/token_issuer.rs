//! The key of service-account tokens: signs and verifies JWTs (ES256) and publishes the public keys.
//!
//! Owns the token's bytes. Who may have a token and what a verified token's claims still have to prove is
//! `service_account`'s. The private key never leaves this module.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
    UnparsedPublicKey,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Uncompressed SEC1 point of P-256: `04 || x || y`.
const POINT_LENGTH: usize = 65;
/// SubjectPublicKeyInfo of P-256 up to the point.
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const JWKS_PATH: &str = "/openid/v1/jwks";

/// Why the issuer can't be made or can't sign.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// The PEM is not what it should be.
    #[error("service-account key: {0}")]
    Pem(String),
    /// The private key is not an ECDSA P-256 key in PKCS#8.
    #[error("service-account key is no ECDSA P-256 key in PKCS#8: {0}")]
    PrivateKey(String),
    /// A public key is not an ECDSA P-256 key in SPKI.
    #[error("service-account public key is no ECDSA P-256 key in SPKI")]
    PublicKey,
    /// There is no audience to give tokens to.
    #[error("the API server needs at least one audience")]
    NoAudience,
    /// Signing failed.
    #[error("sign token")]
    Sign,
    /// The claims could not be encoded.
    #[error("encode claims")]
    Encode(#[source] serde_json::Error),
}

/// Why a token's bytes are not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not a JWT of ours by its form.
    #[error("not a token of this cluster's form")]
    Malformed,
    /// Another algorithm than ES256.
    #[error("algorithm is not ES256")]
    Algorithm,
    /// No known key verifies the signature.
    #[error("no key verifies the signature")]
    Signature,
}

/// What the issuer is made of; keys as PEM.
#[derive(Clone)]
pub struct IssuerConfig {
    /// ECDSA P-256, PKCS#8.
    pub key_pem: String,
    /// SPKI keys accepted besides the signing key's own.
    pub public_keys_pem: Vec<String>,
    /// `iss`.
    pub issuer: String,
    /// What the API server accepts as `aud`; the first is a new token's default.
    pub audiences: Vec<String>,
}

impl std::fmt::Debug for IssuerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuerConfig").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

struct PublicKey {
    id: String,
    point: Vec<u8>,
}

/// Signs and verifies tokens.
pub struct TokenIssuer {
    key: EcdsaKeyPair,
    keys: Vec<PublicKey>,
    issuer: String,
    audiences: Vec<String>,
    random: SystemRandom,
}

#[derive(Serialize, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

impl TokenIssuer {
    /// Reads the keys.
    pub fn new(config: IssuerConfig) -> Result<Self, IssuerError> {
        if config.audiences.is_empty() {
            return Err(IssuerError::NoAudience);
        }
        let random = SystemRandom::new();
        let der = pem_body(&config.key_pem, "PRIVATE KEY")?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random)
            .map_err(|error| IssuerError::PrivateKey(error.to_string()))?;
        let mut keys = vec![PublicKey::new(key.public_key().as_ref())];
        for pem in &config.public_keys_pem {
            let point = point_of_spki(&pem_body(pem, "PUBLIC KEY")?)?;
            if keys.iter().all(|known| known.point != point) {
                keys.push(PublicKey::new(&point));
            }
        }
        Ok(Self { key, keys, issuer: config.issuer, audiences: config.audiences, random })
    }

    /// The audiences that the API server accepts.
    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    /// `iss` of new tokens, and the only one that is accepted.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// The signed compact form of the claims.
    pub fn sign<T: Serialize>(&self, claims: &T) -> Result<String, IssuerError> {
        let kid = self.keys.first().map(|key| key.id.clone()).unwrap_or_default();
        let header = serde_json::to_vec(&Header { alg: "ES256".to_owned(), kid })
            .map_err(IssuerError::Encode)?;
        let claims = serde_json::to_vec(claims).map_err(IssuerError::Encode)?;
        let signed =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature =
            self.key.sign(&self.random, signed.as_bytes()).map_err(|_| IssuerError::Sign)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }

    /// The claims of a token whose signature holds. Nothing in the claims has been judged yet.
    pub fn verify<T: DeserializeOwned>(&self, token: &str) -> Result<T, VerifyError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(VerifyError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(VerifyError::Malformed)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| VerifyError::Malformed);
        let header: Header =
            serde_json::from_slice(&decode(header)?).map_err(|_| VerifyError::Malformed)?;
        if header.alg != "ES256" {
            return Err(VerifyError::Algorithm);
        }
        let signature = decode(signature)?;
        let known = self.keys.iter().any(|key| key.id == header.kid);
        self.keys
            .iter()
            .filter(|key| !known || key.id == header.kid)
            .find(|key| {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key.point)
                    .verify(signed.as_bytes(), &signature)
                    .is_ok()
            })
            .ok_or(VerifyError::Signature)?;
        serde_json::from_slice(&decode(claims)?).map_err(|_| VerifyError::Malformed)
    }

    /// A random UUID (version 4) for `jti`.
    pub fn random_id(&self) -> Result<String, IssuerError> {
        use ring::rand::SecureRandom as _;
        let mut bytes = [0u8; 16];
        self.random.fill(&mut bytes).map_err(|_| IssuerError::Sign)?;
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
    }

    /// The document of `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self
            .keys
            .iter()
            .map(|key| {
                json!({
                    "use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256",
                    "x": URL_SAFE_NO_PAD.encode(&key.point[1..33]),
                    "y": URL_SAFE_NO_PAD.encode(&key.point[33..POINT_LENGTH]),
                })
            })
            .collect();
        json!({ "keys": keys })
    }

    /// The document of `/.well-known/openid-configuration`; `external` is `https://host:port` of the API server.
    pub fn openid_configuration(&self, external: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{external}{JWKS_PATH}"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

impl std::fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenIssuer")
            .field("issuer", &self.issuer)
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

impl PublicKey {
    fn new(point: &[u8]) -> Self {
        let mut spki = SPKI_PREFIX.to_vec();
        spki.extend_from_slice(point);
        let digest = ring::digest::digest(&ring::digest::SHA256, &spki);
        Self { id: URL_SAFE_NO_PAD.encode(digest.as_ref()), point: point.to_vec() }
    }
}

fn point_of_spki(der: &[u8]) -> Result<Vec<u8>, IssuerError> {
    match der.strip_prefix(&SPKI_PREFIX) {
        Some(point) if point.len() == POINT_LENGTH && point[0] == 4 => Ok(point.to_vec()),
        _ => Err(IssuerError::PublicKey),
    }
}

/// The DER inside the first PEM block of that label.
fn pem_body(pem: &str, label: &str) -> Result<Vec<u8>, IssuerError> {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let body = pem
        .split_once(&begin)
        .and_then(|(_, rest)| rest.split_once(&end))
        .map(|(body, _)| body)
        .ok_or_else(|| IssuerError::Pem(format!("no {label} block")))?;
    let text: String = body.split_whitespace().collect();
    STANDARD.decode(text).map_err(|error| IssuerError::Pem(error.to_string()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn issuer() -> TokenIssuer {
        let random = SystemRandom::new();
        let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let body = STANDARD.encode(der.as_ref());
        TokenIssuer::new(IssuerConfig {
            key_pem: format!("-----BEGIN PRIVATE KEY-----\n{body}\n-----END PRIVATE KEY-----\n"),
            public_keys_pem: Vec::new(),
            issuer: "https://kubernetes.default.svc.cluster.local".to_owned(),
            audiences: vec!["https://kubernetes.default.svc.cluster.local".to_owned()],
        })
        .unwrap()
    }

    #[test]
    fn a_signed_token_verifies_and_a_changed_one_does_not() {
        let issuer = issuer();
        let token = issuer.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(issuer.verify::<Value>(&token).unwrap(), json!({"sub": "a"}));
        let other = self::issuer();
        assert_eq!(other.verify::<Value>(&token), Err(VerifyError::Signature));
        let parts: Vec<&str> = token.split('.').collect();
        let forged = URL_SAFE_NO_PAD.encode(r#"{"sub":"b"}"#);
        let changed = format!("{}.{forged}.{}", parts[0], parts[2]);
        assert_eq!(issuer.verify::<Value>(&changed), Err(VerifyError::Signature));
        let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        let unsigned = format!("{none}.{forged}.");
        assert_eq!(issuer.verify::<Value>(&unsigned), Err(VerifyError::Algorithm));
    }

    #[test]
    fn the_published_key_is_the_one_that_signs() {
        let issuer = issuer();
        let jwks = issuer.jwks();
        let key = &jwks["keys"][0];
        let part = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
        let point = [vec![4u8], part("x"), part("y")].concat();
        let token = issuer.sign(&json!({})).unwrap();
        let (signed, signature) = token.rsplit_once('.').unwrap();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap())
            .unwrap();
    }
}
