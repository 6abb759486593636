//! Tests of the shared secrets: on a real folder and a real store.

use super::*;
use crate::pki::{CA, SERVICE_ACCOUNT_KEY};

fn now() -> Timestamp {
    "2026-06-01T12:00:00Z".parse().unwrap()
}

fn open_store(dir: &Path, loaded: &Loaded) -> Result<Store, SecretsError> {
    let mut config = store::Config::new(dir.join("store"));
    config.seal = Some(loaded.ring().clone());
    Store::open(config).map_err(|error| loaded.explain(error))
}

async fn open(dir: &Path) -> Result<Secrets, SecretsError> {
    let loaded = Loaded::read(dir, None)?;
    let store = open_store(dir, &loaded)?;
    Secrets::open(store, loaded).await
}

/// The error's text.
async fn refusal(dir: &Path) -> String {
    open(dir).await.unwrap_err().to_string()
}

fn in_file(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn the_store_keeps_what_the_files_only_cache() {
    let temporary = tempfile::tempdir().unwrap();
    let (dir, pki) = (temporary.path(), temporary.path().join("pki"));
    let secrets = open(dir).await.unwrap();
    let ca = secrets.shared(&pki, &CA, now()).await.unwrap();
    let key = secrets.shared(&pki, &SERVICE_ACCOUNT_KEY, now()).await.unwrap();
    assert_eq!(in_file(&pki.join("ca.key")), ca[1]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let modes = ["ca.key", "ca.crt", "."].map(|name| mode(&pki.join(name)));
    assert_eq!((modes, mode(&dir.join(FILE_NAME))), ([0o600, 0o644, 0o700], 0o600));
    for entry in secrets.entries(PREFIX).unwrap() {
        let text = String::from_utf8_lossy(&entry.value).into_owned();
        assert!(!text.contains("PRIVATE") && !text.contains("CERTIFICATE"), "{entry:?}");
    }
    secrets.store.clone().close().await;
    drop(secrets);

    fs::remove_file(pki.join("ca.crt")).unwrap();
    fs::write(pki.join("sa.key"), "another's").unwrap();
    let secrets = open(dir).await.unwrap();
    assert_eq!(secrets.shared(&pki, &CA, now()).await.unwrap(), ca);
    assert_eq!(secrets.shared(&pki, &SERVICE_ACCOUNT_KEY, now()).await.unwrap(), key);
    assert_eq!(
        (in_file(&pki.join("ca.crt")), in_file(&pki.join("sa.key"))),
        (ca[0].clone(), key[0].clone())
    );
    assert_eq!(in_file(&pki.join("sa.key.replaced")), "another's");
}

#[tokio::test]
async fn a_cluster_of_files_is_taken_over() {
    let temporary = tempfile::tempdir().unwrap();
    let (dir, pki) = (temporary.path(), temporary.path().join("pki"));
    fs::create_dir(&pki).unwrap();
    let ca = (CA.make)(now()).unwrap();
    fs::write(pki.join("ca.key"), &ca[1]).unwrap();
    let secrets = open(dir).await.unwrap();
    let half = secrets.shared(&pki, &CA, now()).await.unwrap_err().to_string();
    assert!(half.contains("ca.crt"), "{half}");
    fs::write(pki.join("ca.crt"), &(CA.make)(now()).unwrap()[0]).unwrap();
    let mixed = secrets.shared(&pki, &CA, now()).await.unwrap_err().to_string();
    assert!(mixed.contains("ca.key is not a usable key of the certificate"), "{mixed}");
    fs::write(pki.join("ca.crt"), &ca[0]).unwrap();
    assert_eq!(secrets.shared(&pki, &CA, now()).await.unwrap(), ca);
    assert!(!pki.join("ca.crt.replaced").exists());
}

#[tokio::test]
async fn without_its_cluster_secret_a_store_says_what_to_do() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let secrets = open(dir).await.unwrap();
    let name = secrets.loaded.ring.secret().name().to_owned();
    let put = Op::put(format!("{SEALED_PREFIX}default/a"), "plain");
    secrets.store.txn(Txn::of(vec![put])).await.unwrap();
    secrets.store.clone().close().await;
    drop(secrets);
    let path = dir.join(FILE_NAME);
    let kept = in_file(&path);

    fs::remove_file(&path).unwrap();
    let missing = refusal(dir).await;
    assert!(missing.contains("cluster-secret is missing") && missing.contains(&name), "{missing}");
    assert!(!path.exists(), "none was made instead");
    fs::write(&path, ClusterSecret::generate().unwrap().to_text()).unwrap();
    let other = refusal(dir).await;
    assert!(other.contains("holds the cluster secret") && other.contains(&name), "{other}");
    fs::write(&path, "something").unwrap();
    assert!(refusal(dir).await.contains("holds no cluster secret"));
    let named = Loaded::read(dir, Some(&dir.join("elsewhere"))).unwrap_err().to_string();
    assert!(named.contains("elsewhere"), "{named}");
    fs::write(&path, kept).unwrap();
    let secrets = open(dir).await.unwrap();
    let entry = secrets.store.get(format!("{SEALED_PREFIX}default/a").as_bytes()).unwrap();
    assert_eq!(entry.value, "plain");
}

#[tokio::test]
async fn of_two_first_masters_on_one_store_one_makes_the_cluster() {
    let temporary = tempfile::tempdir().unwrap();
    let (one, two) = (temporary.path().join("one"), temporary.path().join("two"));
    for dir in [&one, &two] {
        fs::create_dir(dir).unwrap();
    }
    let store = Store::open(store::Config::new(temporary.path().join("store"))).unwrap();
    let (first, second) = (Loaded::read(&one, None).unwrap(), Loaded::read(&two, None).unwrap());
    let (first, second) =
        tokio::join!(Secrets::open(store.clone(), first), Secrets::open(store.clone(), second));
    assert_ne!(first.is_ok(), second.is_ok());
    let (winner, loser) = if first.is_ok() { (&one, second) } else { (&two, first) };
    let loser = loser.unwrap_err().to_string();
    assert!(loser.contains("is missing") && loser.contains("cluster-secret"), "{loser}");
    let files = [&one, &two].map(|dir| dir.join(FILE_NAME).exists());
    assert_eq!(files, [winner == &one, winner == &two], "the loser keeps no secret of its own");
}

#[test]
fn encryption_keys_are_counted() {
    assert_eq!(next_encryption_key(&[]), "/flotilla/secrets/encryption-0001");
    let keys: [&[u8]; 3] = [
        b"/flotilla/secrets/encryption-0001",
        b"/flotilla/secrets/encryption-0010",
        b"/flotilla/secrets/encryption-x",
    ];
    assert_eq!(next_encryption_key(&keys), "/flotilla/secrets/encryption-0011");
}
