//! The store against a real registry on loopback, with images made by umoci and skopeo.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{
    Credentials, Image, ImageStore, ImageStoreConfig, Progress, PullError, Reference,
    mount_overlay, unmount,
};

struct Registry {
    dir: tempfile::TempDir,
    port: u16,
    process: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

fn tool(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).exists())
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
}

/// `None`, with the reason printed, where the tools are missing.
fn registry(auth: &str) -> Option<Registry> {
    let missing = ["docker-registry", "skopeo", "umoci"].into_iter().find(|name| !tool(name));
    if let Some(name) = missing {
        println!("SKIPPED: no {name}");
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: not root");
        return None;
    }
    let dir = tempfile::Builder::new().prefix("registry-").tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = format!(
        "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
        dir.path().join("data").display()
    );
    let file = dir.path().join("config.yml");
    fs::write(&file, config.replace("@DIR@", &dir.path().to_string_lossy())).unwrap();
    fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
    let process = Command::new("docker-registry")
        .args(["serve", &file.to_string_lossy()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "no registry");
        std::thread::yield_now();
    }
    Some(Registry { dir, port, process })
}

/// `user:secret`.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// Makes an OCI layout: a base, a layer that changes and removes things, and one that names no
/// parent directories.
fn make_layout(dir: &Path) -> PathBuf {
    let layout = dir.join("layout");
    let image = format!("{}:v1", layout.display());
    run("umoci", &["init", "--layout", &layout.to_string_lossy()]);
    run("umoci", &["new", "--image", &image]);
    for layer in [make_base(dir), make_second(dir)] {
        run("umoci", &["raw", "add-layer", "--image", &image, &layer]);
    }
    let mut args = vec!["config", "--image", &image, "--config.user", "12:34"];
    args.extend(["--config.env", "A=b", "--config.cmd", "tool", "--config.workingdir", "/data"]);
    args.extend(["--config.volume", "/data"]);
    run("umoci", &args);
    layout
}

fn make_tar(path: &Path, folder: &Path, files: &[&str]) -> String {
    let (path, folder) = (path.to_string_lossy().into_owned(), folder.to_string_lossy());
    let args = ["--numeric-owner", "-cf", &path, "-C", &folder];
    run("tar", &[&args[..], files].concat());
    path
}

fn make_base(dir: &Path) -> String {
    let base = dir.join("base");
    for folder in ["usr/bin", "data/sub", "gone", "tmp"] {
        fs::create_dir_all(base.join(folder)).unwrap();
    }
    fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::symlink("usr/bin", base.join("bin")).unwrap();
    fs::write(base.join("usr/bin/tool"), "tool").unwrap();
    std::os::unix::fs::chown(base.join("usr/bin/tool"), Some(12), Some(34)).unwrap();
    fs::set_permissions(base.join("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(base.join("usr/bin/tool"), base.join("usr/bin/alias")).unwrap();
    fs::write(base.join("data/old"), "old").unwrap();
    fs::write(base.join("data/sub/file"), "x".repeat(300_000)).unwrap();
    fs::write(base.join("gone/file"), "gone").unwrap();
    make_tar(&dir.join("one.tar"), &base, &["."])
}

/// Names files only, no directory.
fn make_second(dir: &Path) -> String {
    let second = dir.join("second");
    fs::create_dir_all(second.join("data/sub")).unwrap();
    fs::create_dir_all(second.join("bin")).unwrap();
    fs::create_dir_all(second.join("tmp")).unwrap();
    for (name, text) in [
        ("data/.wh.old", ""),
        (".wh.gone", ""),
        ("data/sub/.wh..wh..opq", ""),
        ("data/sub/new", "new"),
        ("bin/added", "added"),
        ("tmp/scratch", "s"),
    ] {
        fs::write(second.join(name), text).unwrap();
    }
    let files = [
        "data/.wh.old",
        ".wh.gone",
        "data/sub/.wh..wh..opq",
        "data/sub/new",
        "bin/added",
        "tmp/scratch",
    ];
    make_tar(&dir.join("two.tar"), &second, &files)
}

impl Registry {
    fn push(&self, layout: &Path, name: &str, extra: &[&str]) -> Reference {
        let full = format!("127.0.0.1:{}/{name}", self.port);
        let source = format!("oci:{}:v1", layout.display());
        let target = format!("docker://{full}");
        let mut args = vec!["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"];
        args.extend(extra);
        args.extend([source.as_str(), target.as_str()]);
        run("skopeo", &args);
        full.parse().unwrap()
    }
}

fn store(dir: &Path) -> ImageStore {
    let config =
        ImageStoreConfig { dir: dir.join("images"), registries: dir.join("registries.toml") };
    ImageStore::open(config).unwrap()
}

fn check_merged(image: &Image, dir: &Path) {
    let make = |name: &str| {
        fs::create_dir_all(dir.join(name)).unwrap();
        dir.join(name)
    };
    let (upper, work, root) = (make("upper"), make("work"), make("root"));
    mount_overlay(&image.layers, &upper, &work, &root).unwrap();
    let read = |path: &str| fs::read_to_string(root.join(path)).map_err(|error| error.kind());
    let missing = Err(std::io::ErrorKind::NotFound);
    let results = [
        (read("usr/bin/tool"), Ok("tool".to_owned())),
        (read("bin/tool"), Ok("tool".to_owned())),
        (read("usr/bin/added"), Ok("added".to_owned())),
        (read("data/old"), missing.clone()),
        (read("gone/file"), missing.clone()),
        (read("data/sub/file"), missing),
        (read("data/sub/new"), Ok("new".to_owned())),
    ];
    let link = fs::read_link(root.join("bin"));
    let tool = fs::metadata(root.join("usr/bin/tool")).unwrap();
    let alias = fs::metadata(root.join("usr/bin/alias")).unwrap();
    let tmp = fs::metadata(root.join("tmp")).unwrap().mode();
    unmount(&root).unwrap();
    for (found, wanted) in results {
        assert_eq!(found, wanted);
    }
    assert_eq!(link.unwrap(), Path::new("usr/bin"));
    assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777), (12, 34, 0o4755));
    assert_eq!(tool.ino(), alias.ino());
    assert_eq!(tmp & 0o7777, 0o1777, "an implied directory keeps the mode of the one below");
}

#[tokio::test]
async fn pulls_what_was_pushed_in_every_format() {
    let Some(registry) = registry("") else { return };
    let layout = make_layout(registry.dir.path());
    for (number, extra) in [
        &["--dest-compress-format=gzip", "--format=oci"][..],
        &["--dest-compress-format=zstd", "--format=oci"],
        &["--format=v2s2"],
    ]
    .iter()
    .enumerate()
    {
        let dir = registry.dir.path().join(format!("store{number}"));
        let reference = registry.push(&layout, &format!("lib/app:v{number}"), extra);
        let store = store(&dir);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        let progress: Progress = Arc::new(move |progress| sink.lock().unwrap().push(progress));
        let image = store.pull(&reference, &[], Some(progress)).await.unwrap();
        let last = *seen.lock().unwrap().last().unwrap();
        assert_eq!((last.layers_done, last.bytes_done), (2, last.bytes));
        assert_eq!(image.layers.len(), 2);
        assert_eq!(
            (image.config.user.as_str(), image.config.working_dir.as_str()),
            ("12:34", "/data")
        );
        assert_eq!(image.config.cmd, ["tool"]);
        assert_eq!(image.tags, [reference.to_string()]);
        check_merged(&image, &dir);
        assert!(store.verify(&image.id).unwrap());
        drop(store);
        let again = self::store(&dir);
        assert_eq!(again.get(&reference), Some(image.clone()));
        let by_digest: Reference = image.digests[0].parse().unwrap();
        assert_eq!(again.pull(&by_digest, &[], None).await.unwrap().id, image.id);
    }
}

#[tokio::test]
async fn says_why_an_image_is_not_to_be_had() {
    let auth = "auth:\n  htpasswd:\n    realm: test\n    path: @DIR@/htpasswd\n";
    let Some(registry) = registry(auth) else { return };
    let layout = make_layout(registry.dir.path());
    let reference = registry.push(&layout, "app:v1", &["--dest-creds=user:secret"]);
    let store = store(registry.dir.path());
    let credentials = |password: &str| Credentials {
        server: reference.registry.clone(),
        username: "user".into(),
        password: password.into(),
        identity_token: String::new(),
    };
    let denied = store.pull(&reference, &[], None).await.unwrap_err();
    assert!(matches!(denied, PullError::Unauthorized { .. }), "{denied}");
    assert!(denied.to_string().contains("pull access denied"), "{denied}");
    let denied = store.pull(&reference, &[credentials("wrong")], None).await.unwrap_err();
    assert!(matches!(denied, PullError::Unauthorized { .. }), "{denied}");
    let nope = Reference { tag: Some("nope".into()), ..reference.clone() };
    let missing = store.pull(&nope, &[credentials("secret")], None).await.unwrap_err();
    assert!(matches!(missing, PullError::NotFound { .. }), "{missing}");
    assert_eq!(missing.reason(), "ErrImagePull");
    let both = [credentials("wrong"), credentials("secret")];
    store.pull(&reference, &both, None).await.unwrap();

    let mirrored: Reference = "q.invalid/app:v1".parse().unwrap();
    let endpoint = format!("127.0.0.1:{}", registry.port);
    let text = format!(
        "[mirror.\"q.invalid\"]\nendpoints=[\"http://127.0.0.1:1\", \"http://{endpoint}\"]\n\
         [registry.\"{endpoint}\"]\nusername=\"user\"\npassword=\"secret\"\n"
    );
    fs::write(registry.dir.path().join("registries.toml"), text).unwrap();
    let image = store.pull(&mirrored, &[], None).await.unwrap();
    assert!(image.tags.contains(&"q.invalid/app:v1".to_owned()), "{:?}", image.tags);
    fs::remove_file(registry.dir.path().join("registries.toml")).unwrap();
    let nowhere: Reference = "127.0.0.1:1/app".parse().unwrap();
    let unreachable = store.pull(&nowhere, &[], None).await.unwrap_err();
    assert!(matches!(unreachable, PullError::Unreachable { .. }), "{unreachable}");
}

/// A registry that has nothing for anybody who says who he is; answers who asked.
fn empty_registry() -> (u16, Arc<Mutex<Vec<String>>>) {
    use std::io::{BufRead, BufReader};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut lines = BufReader::new(client.try_clone().unwrap());
            let mut request = String::new();
            while lines.read_line(&mut request).is_ok_and(|count| count > 2) {}
            let who =
                request.lines().find_map(|line| line.split_once("Basic ").map(|(_, who)| who));
            let status = match who {
                Some(who) => {
                    log.lock().unwrap().push(who.to_owned());
                    "404 Not Found"
                }
                None => "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"r\"",
            };
            let answer =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            client.write_all(answer.as_bytes()).unwrap();
        }
    });
    (port, asked)
}

#[tokio::test]
async fn not_found_for_one_is_asked_for_the_next() {
    let (port, asked) = empty_registry();
    let dir = tempfile::tempdir().unwrap();
    let reference: Reference = format!("127.0.0.1:{port}/app:v1").parse().unwrap();
    let credentials = ["one", "two"].map(|name| Credentials {
        server: reference.registry.clone(),
        username: name.into(),
        password: "secret".into(),
        identity_token: String::new(),
    });
    let error = store(dir.path()).pull(&reference, &credentials, None).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    assert_eq!(*asked.lock().unwrap(), ["b25lOnNlY3JldA==", "dHdvOnNlY3JldA=="]);
}

/// A proxy that cuts every connection after some bytes of the answer, and counts requests.
fn cutting_proxy(port: u16, cut: usize) -> (u16, Arc<Mutex<Vec<String>>>) {
    use std::io::{BufRead, BufReader, Read};
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&requests);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let log = Arc::clone(&log);
            std::thread::spawn(move || {
                let mut lines = BufReader::new(client.try_clone().unwrap());
                let mut request = String::new();
                while lines.read_line(&mut request).is_ok_and(|count| count > 2) {}
                let is_blob = request.contains("/blobs/");
                log.lock().unwrap().push(request.clone());
                let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
                let closing = request.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
                server.write_all(closing.as_bytes()).unwrap();
                let mut answer = Vec::new();
                server.read_to_end(&mut answer).unwrap();
                let end = if is_blob { answer.len().min(cut) } else { answer.len() };
                let mut client = client;
                client.write_all(&answer[..end]).unwrap_or(());
            });
        }
    });
    (own, requests)
}

#[tokio::test]
async fn broken_downloads_resume_and_asked_twice_is_pulled_once() {
    let Some(registry) = registry("") else { return };
    let layout = make_layout(registry.dir.path());
    let random = registry.dir.path().join("random");
    fs::create_dir(&random).unwrap();
    let mut noise = Vec::new();
    let mut state = 1_u64;
    for _ in 0..60_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        noise.extend_from_slice(&state.to_le_bytes()[4..]);
    }
    fs::write(random.join("noise"), noise).unwrap();
    let tar = registry.dir.path().join("noise.tar").to_string_lossy().into_owned();
    run("tar", &["-cf", &tar, "-C", &random.to_string_lossy(), "noise"]);
    let image = format!("{}:v1", layout.display());
    run("umoci", &["raw", "add-layer", "--image", &image, &tar]);
    registry.push(&layout, "app:v1", &[]);
    let (port, requests) = cutting_proxy(registry.port, 70_000);
    let reference: Reference = format!("127.0.0.1:{port}/app:v1").parse().unwrap();
    let store = store(registry.dir.path());
    let (one, two) =
        tokio::join!(store.pull(&reference, &[], None), store.pull(&reference, &[], None),);
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one, two);
    assert!(store.verify(&one.id).unwrap());
    let requests = requests.lock().unwrap();
    let manifests = requests.iter().filter(|request| request.contains("/manifests/")).count();
    assert_eq!(manifests, 1);
    let ranges =
        requests.iter().filter(|request| request.to_lowercase().contains("range: bytes=")).count();
    assert!(ranges >= 3, "{ranges} of {}", requests.len());
}

#[tokio::test]
async fn damage_is_found_and_what_nobody_has_is_removed() {
    let Some(registry) = registry("") else { return };
    let layout = make_layout(registry.dir.path());
    let reference = registry.push(&layout, "app:v1", &[]);
    let dir = registry.dir.path();
    let image = store(dir).pull(&reference, &[], None).await.unwrap();
    let tool = image.layers[1].join("usr/bin/tool");
    let time = fs::metadata(&tool).unwrap().modified().unwrap();
    fs::write(&tool, "TOOL").unwrap();
    fs::File::options().write(true).open(&tool).unwrap().set_modified(time).unwrap();
    let mode = fs::Permissions::from_mode(0o4755);
    fs::set_permissions(&tool, mode).unwrap();
    let store = self::store(dir);
    assert!(store.get(&reference).is_some(), "the shape is as before");
    assert!(!store.verify(&image.id).unwrap());
    assert!(store.get(&reference).is_none());
    let image = store.pull(&reference, &[], None).await.unwrap();
    fs::write(image.layers[1].join("usr/bin/tool"), "").unwrap();
    let store = self::store(dir);
    assert!(store.get(&reference).is_none(), "truncated, as after a power cut");
    let image = store.pull(&reference, &[], None).await.unwrap();
    assert!(store.verify(&image.id).unwrap());

    let used: BTreeSet<String> = [image.id.clone()].into();
    assert!(store.remove(&image.id, &used).is_err());
    store.pin(&image.id, true).unwrap();
    assert!(store.remove(&image.id, &BTreeSet::new()).is_err());
    store.pin(&image.id, false).unwrap();
    fs::create_dir(dir.join("images/layers/0abc.partial")).unwrap();
    assert_eq!(store.apply_collect(std::slice::from_ref(&image.id)).unwrap(), [&*image.id]);
    let store = self::store(dir);
    assert!(store.list().is_empty());
    assert_eq!(fs::read_dir(dir.join("images/layers")).unwrap().count(), 0);
}

#[tokio::test]
async fn archives_of_both_kinds_are_imported() {
    let Some(registry) = registry("") else { return };
    let dir = registry.dir.path();
    let layout = make_layout(dir);
    let source = format!("oci:{}:v1", layout.display());
    let docker = dir.join("docker.tar");
    let target = format!("docker-archive:{}:q.io/team/app:v2", docker.display());
    run("skopeo", &["--insecure-policy", "copy", "-q", &source, &target]);
    let oci = dir.join("oci.tar");
    let target = format!("oci-archive:{}:q.io/team/oci:v3", oci.display());
    run("skopeo", &["--insecure-policy", "copy", "-q", &source, &target]);
    run("gzip", &["-k", &docker.to_string_lossy()]);
    for (number, archive) in [docker.clone(), dir.join("docker.tar.gz"), oci].iter().enumerate() {
        let place = dir.join(format!("import{number}"));
        let store = store(&place);
        let images = store.import(archive).unwrap();
        let name = if number == 2 { "q.io/team/oci:v3" } else { "q.io/team/app:v2" };
        assert_eq!(images[0].tags, [name]);
        assert_eq!(store.get(&name.parse().unwrap()).unwrap().id, images[0].id);
        check_merged(&images[0], &place);
    }
    let bad = dir.join("bad.tar");
    fs::write(&bad, "no archive at all").unwrap();
    assert!(store(&dir.join("bad")).import(&bad).is_err());
}

#[test]
fn entries_never_leave_the_layer() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: not root");
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("file").to_string_lossy().into_owned();
    let header = |kind: tar::EntryType, name: &str, link: &str, size: u64| {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(size);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_cksum();
        header
    };
    use tar::EntryType::{Char, Link, Regular, Symlink};
    let cases: Vec<(&str, Vec<(tar::Header, &str)>)> = vec![
        ("dots", vec![(header(Regular, "../file", "", 4), "evil")]),
        ("inner dots", vec![(header(Regular, "a/../../file", "", 4), "evil")]),
        (
            "through a symlink",
            vec![
                (header(Symlink, "out", &outside.path().to_string_lossy(), 0), ""),
                (header(Regular, "out/file", "", 4), "evil"),
            ],
        ),
        (
            "through a relative symlink",
            vec![
                (header(Symlink, "out", "../../../../../../../../tmp", 0), ""),
                (header(Regular, "out/file", "", 4), "evil"),
            ],
        ),
        ("hard link", vec![(header(Link, "link", &target, 0), "")]),
        ("whiteout in disguise", vec![(header(Char, "dev", "", 0), "")]),
        (
            "over a symlink",
            vec![
                (header(Symlink, "file", &target, 0), ""),
                (header(Regular, "file", "", 4), "evil"),
            ],
        ),
    ];
    fs::write(&target, "safe").unwrap();
    for (name, entries) in cases {
        let root = tempfile::tempdir().unwrap();
        let mut archive = Vec::new();
        for (header, text) in entries {
            archive.extend_from_slice(header.as_bytes());
            let mut block = text.as_bytes().to_vec();
            block.resize(text.len().next_multiple_of(512), 0);
            archive.extend(block);
        }
        archive.extend([0; 1024]);
        let result = super::layer::unpack(&archive[..], root.path());
        println!("{name}: {:?}", result.map(|unpacked| unpacked.borrowed));
        assert_eq!(fs::read_to_string(&target).unwrap(), "safe", "{name}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{name}");
        assert!(!Path::new("/tmp/file").exists(), "{name}");
    }
}
