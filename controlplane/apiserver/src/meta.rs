//! Owns the paths that are no resource's: health, version, metrics, the CA. Must not need authorization's outcome to be known
//! twice: the handler has asked already, except for the CA, which anybody may have.

use std::time::Duration;

use http::{Method, Response, StatusCode};
use serde_json::json;

use crate::{
    ApiServer,
    body::{self, Body},
    query::Query,
};

/// Kubernetes 1.36, `--etcd-readycheck-timeout`.
const DATASTORE_TIMEOUT: Duration = Duration::from_secs(2);

/// The Kubernetes version whose behaviour is served.
pub const GIT_VERSION: &str = concat!("v1.36.2+flotilla-", env!("CARGO_PKG_VERSION"));

/// `/cacerts`: answered to anybody, since its reader checks the fingerprint.
pub(crate) fn cacerts(server: &ApiServer, path: &str) -> Option<Response<Body>> {
    (path == "/cacerts").then(|| {
        body::respond(StatusCode::OK, "application/x-pem-file", server.config().ca_pem.clone())
    })
}

/// Answers a path that is no resource's; `None` for unknown ones.
pub(crate) async fn respond(
    server: &ApiServer,
    method: &Method,
    path: &str,
    query: &Query,
) -> Option<Response<Body>> {
    if !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let trimmed = path.trim_end_matches('/');
    for root in ["/healthz", "/livez", "/readyz"] {
        if let Some(rest) = trimmed.strip_prefix(root)
            && (rest.is_empty() || rest.starts_with('/'))
        {
            return health(&checks(server).await, root, rest, query);
        }
    }
    match trimmed {
        "/version" => Some(version()),
        "/metrics" => {
            let text = server.metrics().render(&server.registry().store().metrics());
            Some(body::respond(StatusCode::OK, "text/plain; version=0.0.4", text))
        }
        _ => None,
    }
}

fn version() -> Response<Body> {
    body::json(
        StatusCode::OK,
        &json!({"major": "1", "minor": "36", "gitVersion": GIT_VERSION,
            "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": "", "compiler": "rustc",
            "emulationMajor": "1", "emulationMinor": "36",
            "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
            "platform": format!("{}/{}", std::env::consts::OS, platform())}),
    )
}

fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The checks, in the order in which they are shown.
async fn checks(server: &ApiServer) -> [(&'static str, bool); 3] {
    let open = !*server.closing().borrow();
    let asked = tokio::time::timeout(DATASTORE_TIMEOUT, server.registry().store().fresh()).await;
    [("ping", true), ("etcd", matches!(asked, Ok(Ok(())))), ("shutdown", open)]
}

fn health(
    checks: &[(&'static str, bool)],
    root: &str,
    rest: &str,
    query: &Query,
) -> Option<Response<Body>> {
    let name = root.trim_start_matches('/');
    let excluded: Vec<&str> = query.all("exclude").collect();
    // A server that drains is alive, and not ready.
    let counts = |check: &str| check != "shutdown" || name == "readyz";
    let mut checks: Vec<(&str, bool)> =
        checks.iter().copied().filter(|(check, _)| counts(check)).collect();
    if let Some(one) = rest.strip_prefix('/') {
        checks.retain(|(check, _)| *check == one);
        if checks.is_empty() {
            return None;
        }
    }
    checks.retain(|(check, _)| !excluded.contains(check));
    let ok = checks.iter().all(|(_, ok)| *ok);
    let mut text = String::new();
    for (check, ok) in &checks {
        text += &if *ok {
            format!("[+]{check} ok\n")
        } else {
            format!("[-]{check} failed: reason withheld\n")
        };
    }
    let status = if ok { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    let text = match (ok, query.find("verbose").is_some()) {
        (true, false) => "ok".to_owned(),
        (true, true) => format!("{text}{name} check passed\n"),
        (false, _) => format!("{text}{name} check failed\n"),
    };
    Some(body::respond(status, "text/plain; charset=utf-8", text))
}
