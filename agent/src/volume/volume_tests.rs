//! The atomic writer and the little that can be checked without mounts.

use super::atomic::{File, Files, write};
use super::*;

fn files(all: &[(&str, &str)]) -> Files {
    let file = |text: &str| File { bytes: text.as_bytes().to_vec(), mode: 0o640, user: None };
    all.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
}

#[test]
fn a_payload_is_swapped_as_a_whole_and_only_when_it_changes() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).ok();
    assert!(write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")])).unwrap());
    assert_eq!((read("a"), read("sub/b")), (Some("1".into()), Some("2".into())));
    let target = std::fs::read_link(dir.path().join("..data")).unwrap();
    assert!(!write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")])).unwrap());
    assert_eq!(std::fs::read_link(dir.path().join("..data")).unwrap(), target);
    assert!(write(dir.path(), &files(&[("a", "3"), ("c", "4")])).unwrap());
    assert_eq!((read("a"), read("c"), read("sub/b")), (Some("3".into()), Some("4".into()), None));
    assert!(dir.path().join("sub").symlink_metadata().is_err());
    assert!(!dir.path().join(&target).exists());
    for bad in ["../x", "/x", "", "a/../../x", "..x"] {
        assert!(write(dir.path(), &files(&[(bad, "1")])).is_err(), "{bad:?}");
    }
}

#[test]
fn host_paths_are_checked_by_type() {
    let dir = tempfile::tempdir().unwrap();
    let run = |name: &str, kind: &str| {
        let source = k8s_openapi::api::core::v1::HostPathVolumeSource {
            path: dir.path().join(name).display().to_string(),
            type_: Some(kind.to_owned()),
        };
        host_path::ensure(&source)
    };
    assert!(run("d", "Directory").unwrap_err().ends_with("/d is not a directory"));
    assert!(run("d", "DirectoryOrCreate").unwrap().is_dir());
    assert!(run("d", "File").unwrap_err().ends_with("is not a file"));
    assert!(run("f", "FileOrCreate").unwrap().is_file());
    assert!(run("f", "Socket").unwrap_err().ends_with("is not a socket file"));
    assert!(run("e", "").unwrap().is_dir());
}

#[test]
fn a_token_belongs_to_the_user_all_containers_share() {
    let user = |spec: serde_json::Value| {
        common_user(&serde_json::from_value(serde_json::json!({"spec": spec})).unwrap())
    };
    let container =
        |user: i64| serde_json::json!({"name": "c", "securityContext": {"runAsUser": user}});
    assert_eq!(user(serde_json::json!({"containers": [container(7)]})), Some(7));
    assert_eq!(user(serde_json::json!({"containers": [container(7), container(8)]})), None);
    assert_eq!(
        user(
            serde_json::json!({"securityContext": {"runAsUser": 5}, "containers": [{"name": "c"}]})
        ),
        Some(5)
    );
}
