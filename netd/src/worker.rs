//! Blocking work on a thread of its own: short-lived, so it costs memory only while it works, and never waits behind others' work
//! in a shared pool.

use std::io;

use tokio::sync::oneshot;

/// Runs `work` on a new thread of this name. Work that was begun is ended, also when nobody waits for it any more.
pub(crate) async fn run<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, result) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        // The caller may have gone away; then nobody wants the answer.
        drop(answer.send(work()));
    })?;
    result.await.map_err(|_| io::Error::other(format!("thread {name} died")))
}
