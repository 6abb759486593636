//! What configMap, secret, downwardAPI and projected volumes contain: paths, bytes and modes,
//! with kubelet's errors. It reads objects and asks for tokens; it writes nothing.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use crate::objects::{Kind, References, Value};
use crate::pod::env::{Lookup, found};
use crate::pod::field;
use crate::volume::atomic::{File, Files};
use crate::volume::{Inputs, common_user, fs_group};

/// Kubernetes' default for `defaultMode`.
const MODE_DEFAULT: u32 = 0o644;
/// A token is nobody else's business.
const TOKEN_MODE: u32 = 0o600;

/// The files of one volume, and when a token in it wants to be renewed.
pub(crate) async fn collect(
    inputs: &Inputs<'_>,
    volume: &Volume,
) -> Result<(Files, Option<Timestamp>), String> {
    let mut files = Files::new();
    let mut renew = None;
    if let Some(source) = &volume.config_map {
        let want = Want {
            kind: Kind::ConfigMap,
            name: &source.name,
            items: source.items.as_deref(),
            optional: source.optional.unwrap_or(false),
            mode: mode(source.default_mode),
        };
        add_object(inputs, &want, &mut files)?;
    } else if let Some(source) = &volume.secret {
        let want = Want {
            kind: Kind::Secret,
            name: source.secret_name.as_deref().unwrap_or_default(),
            items: source.items.as_deref(),
            optional: source.optional.unwrap_or(false),
            mode: mode(source.default_mode),
        };
        add_object(inputs, &want, &mut files)?;
    } else if let Some(source) = &volume.downward_api {
        let items = source.items.as_deref().unwrap_or_default();
        add_downward(inputs, items, mode(source.default_mode), &mut files)?;
    } else if let Some(source) = &volume.projected {
        let mode = mode(source.default_mode);
        for projection in source.sources.iter().flatten() {
            add_projection(inputs, projection, mode, (&mut files, &mut renew)).await?;
        }
    }
    Ok((files, renew))
}

fn mode(given: Option<i32>) -> u32 {
    given.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE_DEFAULT)
}

async fn add_projection(
    inputs: &Inputs<'_>,
    projection: &VolumeProjection,
    mode: u32,
    (files, renew): (&mut Files, &mut Option<Timestamp>),
) -> Result<(), String> {
    if let Some(source) = &projection.config_map {
        let want = Want {
            kind: Kind::ConfigMap,
            name: &source.name,
            items: source.items.as_deref(),
            optional: source.optional.unwrap_or(false),
            mode,
        };
        add_object(inputs, &want, files)?;
    }
    if let Some(source) = &projection.secret {
        let want = Want {
            kind: Kind::Secret,
            name: &source.name,
            items: source.items.as_deref(),
            optional: source.optional.unwrap_or(false),
            mode,
        };
        add_object(inputs, &want, files)?;
    }
    if let Some(source) = &projection.downward_api {
        add_downward(inputs, source.items.as_deref().unwrap_or_default(), mode, files)?;
    }
    if let Some(source) = &projection.service_account_token {
        let at = add_token(inputs, source, mode, files).await?;
        *renew = Some(renew.map_or(at, |have| have.min(at)));
    }
    if projection.cluster_trust_bundle.is_some() || projection.pod_certificate.is_some() {
        return Err("clusterTrustBundle and podCertificate projections are not supported".into());
    }
    Ok(())
}

async fn add_token(
    inputs: &Inputs<'_>,
    source: &ServiceAccountTokenProjection,
    mode: u32,
    files: &mut Files,
) -> Result<Timestamp, String> {
    let token =
        inputs.tokens.get(inputs.pod, source).await.map_err(|error| {
            format!("failed to fetch token: {}", crate::connection::chain(&error))
        })?;
    let user = common_user(inputs.pod);
    // kubelet narrows the mode when it can give the file to the one who reads it.
    let mode = match (fs_group(inputs.pod), user) {
        (None, Some(_)) | (Some(_), _) => TOKEN_MODE,
        (None, None) => mode,
    };
    let user = if fs_group(inputs.pod).is_none() { user } else { None };
    let bytes = token.token.clone().into_bytes();
    files.insert(source.path.clone(), File { bytes, mode, user });
    Ok(token.renew_at)
}

struct Want<'a> {
    kind: Kind,
    name: &'a str,
    items: Option<&'a [KeyToPath]>,
    optional: bool,
    mode: u32,
}

fn add_object(inputs: &Inputs<'_>, want: &Want<'_>, files: &mut Files) -> Result<(), String> {
    let Some(data) = data(inputs.objects, want)? else { return Ok(()) };
    select(data, want, files)
}

/// The wanted keys as files. Where two sources give one path, the later wins, as with kubelet.
fn select(data: Data, want: &Want<'_>, files: &mut Files) -> Result<(), String> {
    let Some(items) = want.items.filter(|items| !items.is_empty()) else {
        for (key, bytes) in data {
            files.insert(key, File { bytes, mode: want.mode, user: None });
        }
        return Ok(());
    };
    for item in items {
        let mode = item.mode.map_or(want.mode, |given| mode(Some(given)));
        match data.iter().find(|(key, _)| *key == item.key) {
            Some((_, bytes)) => {
                let file = File { bytes: bytes.clone(), mode, user: None };
                files.insert(item.path.clone(), file);
            }
            None if want.optional => {}
            None => {
                let kind = if want.kind == Kind::ConfigMap { "configmap" } else { "secret" };
                return Err(format!("{kind} references non-existent {kind} key: {}", item.key)
                    .replace(
                        "configmap references non-existent configmap",
                        "configmap references non-existent config",
                    ));
            }
        }
    }
    Ok(())
}

type Data = Vec<(String, Vec<u8>)>;

fn data(objects: &References, want: &Want<'_>) -> Result<Option<Data>, String> {
    let kind = if want.kind == Kind::ConfigMap { "configmap" } else { "secret" };
    let lookup: Lookup<Value> = objects.value(want.kind, want.name);
    let object =
        found(kind, want.name, want.optional, lookup).map_err(|error| error.to_string())?;
    Ok(object.map(|object| match object {
        Value::ConfigMap(map) => {
            let text = map.data.iter().flatten();
            let text = text.map(|(key, value)| (key.clone(), value.clone().into_bytes()));
            let binary = map.binary_data.iter().flatten();
            text.chain(binary.map(|(key, value)| (key.clone(), value.0.clone()))).collect()
        }
        Value::Secret(secret) => {
            let data = secret.data.iter().flatten();
            data.map(|(key, value)| (key.clone(), value.0.clone())).collect()
        }
    }))
}

fn add_downward(
    inputs: &Inputs<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
    files: &mut Files,
) -> Result<(), String> {
    for item in items {
        let text = if let Some(reference) = &item.field_ref {
            field::field(inputs.pod, &reference.field_path, inputs.pod_ips, inputs.node)
        } else if let Some(selector) = &item.resource_field_ref {
            let first = inputs.pod.spec.as_ref().and_then(|spec| spec.containers.first());
            let first = first.map(|container| container.name.as_str()).unwrap_or_default();
            field::resource(inputs.pod, first, selector, inputs.node)
        } else {
            Ok(String::new())
        };
        let bytes = text.map_err(|error| error.to_string())?.into_bytes();
        let mode = item.mode.map_or(default_mode, |given| mode(Some(given)));
        files.insert(item.path.clone(), File { bytes, mode, user: None });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn want(items: Option<&[KeyToPath]>) -> Want<'_> {
        Want { kind: Kind::ConfigMap, name: "c", items, optional: false, mode: 0o644 }
    }

    fn data(all: &[(&str, &str)]) -> Data {
        all.iter().map(|(key, text)| ((*key).to_owned(), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn no_items_are_all_keys_and_the_later_source_wins() {
        let item = KeyToPath { key: "a".into(), path: "sub/a".into(), mode: Some(0o400) };
        let items = [item];
        let cases: [(Option<&[KeyToPath]>, &[&str]); 3] =
            [(None, &["a", "b"]), (Some(&[]), &["a", "b"]), (Some(&items), &["sub/a"])];
        for (items, expected) in cases {
            let mut files = Files::new();
            select(data(&[("a", "1"), ("b", "2")]), &want(items), &mut files).unwrap();
            let paths: Vec<&str> = files.keys().map(String::as_str).collect();
            assert_eq!(paths, expected);
            select(data(&[("a", "3")]), &want(items), &mut files).unwrap();
            assert_eq!(files[expected[0]].bytes, b"3");
        }
    }

    #[test]
    fn a_key_that_is_missing_is_named() {
        let items = [KeyToPath { key: "x".into(), path: "x".into(), mode: None }];
        let error = select(data(&[("a", "1")]), &want(Some(&items)), &mut Files::new());
        assert_eq!(error.unwrap_err(), "configmap references non-existent config key: x");
    }
}
