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
    let target = || std::fs::read_link(dir.path().join("..data")).unwrap();
    write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
    assert_eq!((read("a"), read("sub/b")), (Some("1".into()), Some("2".into())));
    let first = target();
    write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
    assert_eq!(target(), first);
    write(dir.path(), &files(&[("a", "3"), ("c", "4")]), None).unwrap();
    assert_eq!((read("a"), read("c"), read("sub/b")), (Some("3".into()), Some("4".into()), None));
    assert!(dir.path().join("sub").symlink_metadata().is_err());
    assert!(!dir.path().join(&first).exists());
    for bad in ["../x", "/x", "", "a/../../x", "..x"] {
        assert!(write(dir.path(), &files(&[(bad, "1")]), None).is_err(), "{bad:?}");
    }
}

#[test]
fn a_payload_that_was_left_half_done_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    write(dir.path(), &files(&[("a", "1"), ("b", "2")]), None).unwrap();
    std::fs::remove_file(at("b")).unwrap();
    std::fs::create_dir(at("..2020_01_01_00_00_00.000000001")).unwrap();
    std::os::unix::fs::symlink("..gone", at("..data_tmp")).unwrap();
    write(dir.path(), &files(&[("a", "1"), ("b", "2")]), None).unwrap();
    assert_eq!(std::fs::read(at("b")).unwrap(), b"2");
    assert!(!at("..2020_01_01_00_00_00.000000001").exists());
    write(dir.path(), &files(&[("a", "3")]), None).unwrap();
    assert_eq!(std::fs::read(at("a")).unwrap(), b"3");
}

#[test]
fn a_data_link_that_leads_out_of_the_volume_costs_nobody_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (home, volume) = (dir.path().join("home"), dir.path().join("volume"));
    let stamps = ["..x/../../home".into(), "../home".into(), home.clone(), "..".into()];
    std::fs::create_dir(&home).unwrap();
    std::fs::create_dir(&volume).unwrap();
    for target in stamps {
        std::fs::remove_file(volume.join("..data")).ok();
        std::os::unix::fs::symlink(&target, volume.join("..data")).unwrap();
        write(&volume, &files(&[("a", "1")]), None).unwrap();
        assert!(home.exists(), "{target:?}");
        assert_eq!(std::fs::read(volume.join("a")).unwrap(), b"1");
    }
}

#[test]
fn a_payload_is_its_groups_when_it_appears() {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: not root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut files = files(&[("sub/a", "1")]);
    files.values_mut().for_each(|file| file.mode = 0o400);
    write(dir.path(), &files, Some(2000)).unwrap();
    let meta = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap();
    for (name, mode) in [("", 0o2755), ("..data", 0o2755), ("..data/sub", 0o2755), ("sub/a", 0o440)]
    {
        let meta = meta(name);
        assert_eq!((meta.gid(), meta.mode() & 0o7777), (2000, mode), "{name:?}");
    }
}

#[test]
fn what_the_agent_writes_is_only_read() {
    let read_only = |source: serde_json::Value| {
        let mut volume = source;
        volume["name"] = "v".into();
        is_read_only(&serde_json::from_value(volume).unwrap())
    };
    assert!(read_only(serde_json::json!({"secret": {"secretName": "s"}})));
    assert!(read_only(serde_json::json!({"configMap": {"name": "c"}})));
    assert!(read_only(serde_json::json!({"projected": {"sources": []}})));
    assert!(read_only(serde_json::json!({"downwardAPI": {"items": []}})));
    assert!(!read_only(serde_json::json!({"emptyDir": {}})));
    assert!(!read_only(serde_json::json!({"hostPath": {"path": "/x"}})));
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
