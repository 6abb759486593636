//! The token cleaner: bootstrap tokens past their expiration are deleted.

use crate::{
    cluster::Cluster,
    kinds::Secret,
    runtime::{Error, Key, Next, WorkQueue, object::Kind, run_workers, write::Deletion},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use std::{sync::Arc, time::Duration};

/// Registers the handlers and gives the work to be run.
pub(crate) fn start(cluster: &Arc<Cluster>) -> impl Future<Output = ()> + use<> {
    let queue = WorkQueue::new();
    let q = Arc::clone(&queue);
    cluster.tokens.on_change(move |change| {
        if let Some(token) = &change.new {
            q.add(token.key());
        }
    });
    let cluster = Arc::clone(cluster);
    run_workers("token-cleaner", queue, 1, move |key| {
        let cluster = Arc::clone(&cluster);
        async move { reconcile(&cluster, &key).await }
    })
}

async fn reconcile(cluster: &Cluster, key: &Key) -> Result<Next, Error> {
    let Some(token) = cluster.tokens.get(key) else { return Ok(Next::Done) };
    let Some(expiration) = expiration(&token) else { return Ok(Next::Done) };
    let left = expiration.as_millisecond() - cluster.now().as_millisecond();
    if let Some(left) = u64::try_from(left).ok().filter(|l| *l > 0) {
        return Ok(Next::After(Duration::from_millis(left)));
    }
    tracing::info!(token = %key, "bootstrap token expired");
    let how = Deletion { same_version: true, ..Deletion::default() };
    cluster.tokens.delete(&token.metadata, how).await?;
    Ok(Next::Done)
}

/// When the token expires; one without or with an unreadable time never does here (and does not authenticate).
fn expiration(token: &Secret) -> Option<Timestamp> {
    let text = BASE64_STANDARD.decode(token.data.get("expiration")?).ok()?;
    String::from_utf8(text).ok()?.trim().parse().ok()
}
