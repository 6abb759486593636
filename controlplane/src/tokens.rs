//! Owns the tokens that nodes join with: Kubernetes' bootstrap tokens as Secrets, with the CA's fingerprint behind them. Speaks to the
//! running master; decides nothing about who may join.
//!
//! Beside upstream's keys a token that is limited in uses has `uses-left`; the controller that approves a node's certificate counts it
//! down and approves none at 0.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, bail};
use jiff::{Timestamp, Unit};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use kube::config::Kubeconfig;
use ring::rand::{SecureRandom, SystemRandom};

use crate::cli::{Output, TokenCreateArgs, TokenListArgs, TokenRevokeArgs};
use crate::config::duration;
use crate::{kubeconfig, pki, status};

const NAMESPACE: &str = "kube-system";
const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
/// The data key of what is left of a limited number of uses.
pub const USES_LEFT: &str = "uses-left";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;

/// What is told of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    id: String,
    expires: Option<String>,
    uses_left: Option<String>,
    description: String,
    state: String,
}

/// The command `token create`.
///
/// # Errors
/// The master does not answer, or refuses.
pub fn create(args: &TokenCreateArgs) -> anyhow::Result<()> {
    let expires = expiration(&args.ttl, Timestamp::now())?;
    let fingerprint = fingerprint(&args.data_dir)?;
    let (id, secret) = (random_text(ID_LENGTH)?, random_text(SECRET_LENGTH)?);
    let object = render_secret(&id, &secret, args, expires);
    block_on(async {
        let client = kubeconfig::client(&args.data_dir).await?;
        let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
        let created = secrets.create(&PostParams::default(), &object).await;
        created.map_err(|error| status::explain(&args.data_dir, error)).map(drop)
    })?;
    let token = format!("{id}.{secret}.{fingerprint}");
    let mut out = std::io::stdout();
    match args.output {
        Output::Text => writeln!(out, "{token}")?,
        Output::Json => {
            let told = serde_json::json!({
                "token": token,
                "id": id,
                "expires": expires.map(|at| at.to_string()),
                "uses": args.uses,
                "description": args.description,
            });
            writeln!(out, "{told}")?;
        }
    }
    Ok(())
}

/// The command `token list`.
///
/// # Errors
/// The master does not answer, or refuses.
pub fn list(args: &TokenListArgs) -> anyhow::Result<()> {
    let found = block_on(async {
        let client = kubeconfig::client(&args.data_dir).await?;
        let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
        let params = ListParams::default().fields(&format!("type={SECRET_TYPE}"));
        let found = secrets.list(&params).await;
        found.map_err(|error| status::explain(&args.data_dir, error))
    })?;
    let now = Timestamp::now();
    let told: Vec<_> = found.items.iter().filter_map(|secret| tell(secret, now)).collect();
    std::io::stdout().write_all(
        match args.output {
            Output::Text => render_table(&told),
            Output::Json => render_json(&told),
        }
        .as_bytes(),
    )?;
    Ok(())
}

/// The command `token revoke`.
///
/// # Errors
/// A token is not there, or the master does not answer or refuses.
pub fn revoke(args: &TokenRevokeArgs) -> anyhow::Result<()> {
    block_on(async {
        let client = kubeconfig::client(&args.data_dir).await?;
        let secrets: Api<Secret> = Api::namespaced(client, NAMESPACE);
        for token in &args.tokens {
            let id = token.split('.').next().unwrap_or_default();
            let name = format!("{NAME_PREFIX}{id}");
            match secrets.delete(&name, &DeleteParams::default()).await {
                Ok(_) => writeln!(std::io::stdout(), "token {id} revoked")?,
                Err(kube::Error::Api(status)) if status.is_not_found() => {
                    bail!("token {id}: there is none; see `controlplane token list`");
                }
                Err(error) => return Err(status::explain(&args.data_dir, error)),
            }
        }
        Ok(())
    })
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// When a token of this length ends; `None`: never.
fn expiration(ttl: &str, now: Timestamp) -> anyhow::Result<Option<Timestamp>> {
    if ttl == "0" {
        return Ok(None);
    }
    let ttl = duration("ttl", ttl)?;
    if ttl.is_zero() {
        return Ok(None);
    }
    let expires = now.checked_add(ttl).context("--ttl: too long")?;
    // Rounded up: a token of a second is not over when it is made.
    let rounded = jiff::TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Ceil);
    Ok(Some(expires.round(rounded)?))
}

/// The fingerprint of the CA that the folder's kubeconfig trusts.
fn fingerprint(data_dir: &Path) -> anyhow::Result<String> {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let path = kubeconfig::path(data_dir);
    let read = Kubeconfig::read_from(&path);
    let read = read.with_context(|| {
        format!("{}: is `controlplane run` using another --data-dir?", path.display())
    })?;
    let cluster = read.clusters.into_iter().find_map(|named| named.cluster);
    let ca = cluster.and_then(|cluster| cluster.certificate_authority_data);
    let pem =
        ca.and_then(|ca| STANDARD.decode(ca).ok()).and_then(|pem| String::from_utf8(pem).ok());
    let fingerprint = pem.and_then(|pem| pki::fingerprint(&pem));
    fingerprint.with_context(|| format!("{}: no CA certificate in it", path.display()))
}

/// Random text of `[a-z0-9]`, each character as likely as the others.
pub(crate) fn random_text(length: usize) -> anyhow::Result<String> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    // The largest multiple of 36 in a byte; what is above would favour the first letters.
    const FAIR: u8 = 252;
    let random = SystemRandom::new();
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 32];
    while text.len() < length {
        random.fill(&mut bytes).ok().context("the system gives no random numbers")?;
        let fair = bytes.iter().filter(|byte| **byte < FAIR);
        let letters = fair.map(|byte| char::from(ALPHABET[usize::from(*byte) % ALPHABET.len()]));
        text.extend(letters.take(length - text.len()));
    }
    Ok(text)
}

fn render_secret(
    id: &str,
    secret: &str,
    args: &TokenCreateArgs,
    expires: Option<Timestamp>,
) -> Secret {
    let mut data = BTreeMap::from([
        ("token-id".to_owned(), id.to_owned()),
        ("token-secret".to_owned(), secret.to_owned()),
        ("usage-bootstrap-authentication".to_owned(), "true".to_owned()),
    ]);
    data.extend(expires.map(|at| ("expiration".to_owned(), at.to_string())));
    data.extend(args.uses.map(|uses| (USES_LEFT.to_owned(), uses.to_string())));
    if !args.description.is_empty() {
        data.insert("description".to_owned(), args.description.clone());
    }
    Secret {
        metadata: ObjectMeta { name: Some(format!("{NAME_PREFIX}{id}")), ..ObjectMeta::default() },
        type_: Some(SECRET_TYPE.to_owned()),
        data: Some(
            data.into_iter().map(|(key, text)| (key, ByteString(text.into_bytes()))).collect(),
        ),
        ..Secret::default()
    }
}

/// `None`: a Secret of the type that is no token.
fn tell(secret: &Secret, now: Timestamp) -> Option<Told> {
    let field = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    };
    let id = field("token-id")?;
    let expires = field("expiration");
    let at = expires.as_ref().and_then(|text| text.parse::<Timestamp>().ok());
    let state = match (&expires, at) {
        (None, _) => "valid".to_owned(),
        (Some(_), Some(at)) if at > now => "valid".to_owned(),
        (Some(_), Some(_)) => "expired".to_owned(),
        (Some(_), None) => "unreadable expiration".to_owned(),
    };
    let description = field("description").unwrap_or_default();
    let uses_left = field(USES_LEFT);
    let used_up = state == "valid" && uses_left.as_deref() == Some("0");
    let state = if used_up { "used up".to_owned() } else { state };
    Some(Told { id, expires, uses_left, description, state })
}

fn render_table(told: &[Told]) -> String {
    let mut text = format!(
        "{:<8} {:<10} {:<22} {:<10} {}\n",
        "ID", "STATE", "EXPIRES", "USES LEFT", "DESCRIPTION"
    );
    for Told { id, expires, uses_left, description, state } in told {
        let expires = expires.as_deref().unwrap_or("never");
        let uses = uses_left.as_deref().unwrap_or("any");
        let line = format!("{id:<8} {state:<10} {expires:<22} {uses:<10} {description}");
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn render_json(told: &[Told]) -> String {
    let all = told.iter().map(|told| {
        serde_json::json!({
            "id": told.id,
            "state": told.state,
            "expires": told.expires,
            "usesLeft": told.uses_left,
            "description": told.description,
        })
    });
    serde_json::Value::Array(all.collect()).to_string() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(ttl: &str, uses: Option<u32>) -> TokenCreateArgs {
        let description = "lab".to_owned();
        TokenCreateArgs {
            data_dir: "".into(),
            ttl: ttl.into(),
            uses,
            description,
            output: Output::Text,
        }
    }

    #[test]
    fn a_token_is_told_as_it_was_made() {
        let now: Timestamp = "2026-06-01T12:00:00.5Z".parse().unwrap();
        let expires = expiration("1s", now).unwrap();
        assert_eq!(expires.unwrap().to_string(), "2026-06-01T12:00:02Z");
        assert_eq!(expiration("0", now).unwrap(), None);
        assert!(expiration("soon", now).is_err());
        let id = random_text(ID_LENGTH).unwrap();
        let secret = render_secret(&id, "s", &args("1s", Some(2)), expires);
        let told = tell(&secret, now).unwrap();
        assert_eq!((told.id.as_str(), told.state.as_str()), (id.as_str(), "valid"));
        assert_eq!(told.uses_left.as_deref(), Some("2"));
        let later = tell(&secret, now + jiff::SignedDuration::from_secs(2)).unwrap();
        let table = render_table(&[later]);
        assert!(
            table.lines().nth(1).unwrap().contains("expired    2026-06-01T12:00:02Z"),
            "{table}"
        );
        assert!(!table.contains("token-secret"));
    }

    #[test]
    fn random_text_has_its_length_and_alphabet() {
        let texts: std::collections::BTreeSet<_> =
            (0..50).map(|_| random_text(SECRET_LENGTH).unwrap()).collect();
        assert_eq!(texts.len(), 50);
        let plain =
            |text: &String| text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase());
        assert!(texts.iter().all(|text| text.len() == SECRET_LENGTH && plain(text)));
    }
}
