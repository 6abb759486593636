//! Owns the service `Watch`: one stream with its many watches. A task per watch brings its events; a slow client holds its own
//! tasks up and nobody else: what waits is bounded, and a watch that fell behind goes on from the history while that reaches back.

mod response;
mod task;

use std::collections::HashMap;

use bytes::Bytes;
use hyper::body::Incoming;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::grpc::kv::keys;
use crate::grpc::messages::watch::{WatchCreateRequest, WatchRequest, WatchResponse, WatchUnion};
use crate::grpc::refusal::{Refusal, STOPPED};
use crate::grpc::watching::task::{Begin, Task, Wanted};
use crate::grpc::wire::{Answer, Messages, Piece, framed};
use crate::grpc::{Services, stopped};
use crate::revision::Revision;

/// Responses of one stream that may wait for its client, each of at most about `response::BYTES_MAX`.
const RESPONSES_MAX: usize = 16;
/// Watches of one stream.
const WATCHES_MAX: usize = 10_000;
/// What belongs to no watch, and the id of a watch that was not made.
const NO_WATCH: i64 = -1;

const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const TOO_MANY: &str = "etcdserver: too many watches on one stream";

/// Serves a stream until the client ends it, or `stop`.
pub(super) fn watch(services: Services, body: Incoming, stop: watch::Receiver<bool>) -> Answer {
    let (sender, receiver) = mpsc::channel(RESPONSES_MAX);
    let (ended, endings) = mpsc::channel(RESPONSES_MAX);
    let outlet = Outlet { services, sender };
    let stream = Stream::new(outlet, ended);
    tokio::spawn(stream.run(Messages::new(body), endings, stop));
    Answer::Many(receiver)
}

/// Where responses of one stream go.
#[derive(Debug, Clone)]
struct Outlet {
    services: Services,
    sender: mpsc::Sender<Piece>,
}

/// The client takes no more.
#[derive(Debug)]
struct Gone;

impl Outlet {
    async fn send(&self, response: WatchResponse) -> Result<(), Gone> {
        match framed(&response) {
            Ok(message) => self.sender.send(Piece::Message(message)).await.map_err(|_| Gone),
            Err(refusal) => {
                self.end(refusal).await;
                Err(Gone)
            }
        }
    }

    async fn end(&self, why: Refusal) {
        // Nobody may be there to hear it.
        drop(self.sender.send(Piece::End(why)).await);
    }
}

/// A running watch.
#[derive(Debug)]
struct Watch {
    /// Tells it from others that have the same id after each other.
    generation: u64,
    /// Questions for its progress, which is told when everything before is sent.
    questions: mpsc::Sender<oneshot::Sender<Revision>>,
    task: JoinHandle<()>,
}

struct Stream {
    outlet: Outlet,
    watches: HashMap<i64, Watch>,
    next_id: i64,
    next_generation: u64,
    /// Watches tell here that they ended by themselves.
    ended: mpsc::Sender<Ended>,
}

/// The id of a watch that ended, and its generation.
type Ended = (i64, u64);

impl Drop for Stream {
    fn drop(&mut self) {
        for watch in self.watches.values() {
            watch.task.abort();
        }
    }
}

impl Stream {
    fn new(outlet: Outlet, ended: mpsc::Sender<Ended>) -> Self {
        Self { outlet, watches: HashMap::new(), next_id: 0, next_generation: 0, ended }
    }

    async fn run(
        mut self,
        mut requests: Messages<WatchRequest>,
        mut endings: mpsc::Receiver<Ended>,
        mut stop: watch::Receiver<bool>,
    ) {
        let (sender, mut reading) = (self.outlet.sender.clone(), true);
        loop {
            let request = tokio::select! {
                request = requests.next(), if reading => request,
                Some(ended) = endings.recv() => {
                    self.forget(ended);
                    continue;
                }
                () = sender.closed() => return,
                () = stopped(&mut stop) => return self.outlet.end(STOPPED).await,
            };
            let served = match request {
                Ok(Some(WatchRequest { request_union: Some(request) })) => {
                    self.serve(request).await
                }
                // What is not understood is passed over, as etcd does.
                Ok(Some(WatchRequest { request_union: None })) => Ok(()),
                // A client that asks for no more goes on listening.
                Ok(None) => {
                    reading = false;
                    Ok(())
                }
                Err(refusal) => return self.outlet.end(refusal).await,
            };
            if served.is_err() {
                return;
            }
        }
    }

    async fn serve(&mut self, request: WatchUnion) -> Result<(), Gone> {
        match request {
            WatchUnion::Create(request) => self.create(request).await,
            WatchUnion::Cancel(request) => self.cancel(request.watch_id).await,
            WatchUnion::Progress(_) => self.progress().await,
        }
    }

    async fn create(&mut self, mut request: WatchCreateRequest) -> Result<(), Gone> {
        let revision = self.outlet.services.store().revision();
        let header = self.outlet.services.header(revision);
        let mut created = WatchResponse { header, created: true, ..WatchResponse::default() };
        if request.key.is_empty() {
            // The lowest key there is.
            request.key = Bytes::from_static(&[0]);
        }
        match self.free_id(&request) {
            Err(reason) => {
                let (canceled, cancel_reason) = (true, reason.to_owned());
                (created.watch_id, created.canceled) = (NO_WATCH, canceled);
                created.cancel_reason = cancel_reason;
                self.outlet.send(created).await
            }
            Ok(id) => {
                created.watch_id = id;
                self.outlet.send(created).await?;
                self.begin(id, revision, &request);
                Ok(())
            }
        }
    }

    fn free_id(&mut self, request: &WatchCreateRequest) -> Result<i64, &'static str> {
        let end = &request.range_end[..];
        if !end.is_empty() && *end != [0] && request.key[..] >= *end {
            return Err(EMPTY_RANGE);
        }
        if self.watches.len() >= WATCHES_MAX {
            return Err(TOO_MANY);
        }
        if request.watch_id != 0 {
            let taken = self.watches.contains_key(&request.watch_id);
            return if taken { Err(DUPLICATE_ID) } else { Ok(request.watch_id) };
        }
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        Ok(self.next_id - 1)
    }

    fn begin(&mut self, id: i64, revision: Revision, request: &WatchCreateRequest) {
        let from = match request.start_revision {
            0 => revision + 1,
            asked_for => asked_for.max(1),
        };
        let keys = keys(&request.key, &request.range_end);
        let (questions, asked) = mpsc::channel(1);
        let wanted = Wanted::of(request);
        let task = Task::new(self.outlet.clone(), Begin { id, keys, from }, wanted, asked);
        let (ended, generation) = (self.ended.clone(), self.next_generation);
        self.next_generation += 1;
        let task = tokio::spawn(async move {
            if task.run().await.is_ok() {
                // A stream that is over has forgotten the watch.
                ended.send((id, generation)).await.ok();
            }
        });
        self.watches.insert(id, Watch { generation, questions, task });
    }

    /// The watch that ended; its id may be another one's by now.
    fn forget(&mut self, (id, generation): Ended) {
        if self.watches.get(&id).is_some_and(|watch| watch.generation == generation) {
            self.watches.remove(&id);
        }
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Gone> {
        let Some(Watch { task, .. }) = self.watches.remove(&id) else { return Ok(()) };
        task.abort();
        // Nothing of it comes behind the last word. One that ended by itself has said that.
        if task.await.is_ok() {
            return Ok(());
        }
        let header = self.outlet.services.header_now();
        let canceled = WatchResponse { header, watch_id: id, canceled: true, ..Default::default() };
        self.outlet.send(canceled).await
    }

    /// How far every watch of the stream is, once it is so far.
    async fn progress(&mut self) -> Result<(), Gone> {
        let mut reached = self.outlet.services.store().revision();
        let mut answers = Vec::with_capacity(self.watches.len());
        for watch in self.watches.values() {
            let (reply, answer) = oneshot::channel();
            if watch.questions.send(reply).await.is_ok() {
                answers.push(answer);
            }
        }
        for answer in answers {
            // A watch that just ended has nothing to come.
            if let Ok(revision) = answer.await {
                reached = reached.min(revision);
            }
        }
        let header = self.outlet.services.header(reached);
        self.outlet.send(WatchResponse { header, watch_id: NO_WATCH, ..Default::default() }).await
    }
}

/// A stream of one watch without a client: what it would be sent, without the prefix.
#[cfg(test)]
pub(in crate::grpc) async fn for_suite(
    services: Services,
    request: &WatchCreateRequest,
) -> (impl Sized, mpsc::Receiver<Bytes>) {
    const PREFIX_BYTES: usize = 5;
    let ((sender, mut pieces), (told, messages)) =
        (mpsc::channel(RESPONSES_MAX), mpsc::channel(RESPONSES_MAX));
    let (ended, endings) = mpsc::channel(RESPONSES_MAX);
    let outlet = Outlet { services, sender };
    let mut stream = Stream::new(outlet, ended);
    stream.create(request.clone()).await.unwrap();
    tokio::spawn(async move {
        while let Some(Piece::Message(message)) = pieces.recv().await {
            if told.send(message.slice(PREFIX_BYTES..)).await.is_err() {
                return;
            }
        }
    });
    ((stream, endings), messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grpc::Identity;
    use crate::{Config, Store};

    #[tokio::test]
    async fn the_end_of_a_watch_is_not_that_of_the_next_one_with_its_id() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Config::new(dir.path())).unwrap();
        let (name, client_urls) = ("ours".to_owned(), Vec::new());
        let identity = Identity { cluster_id: 1, member_id: 2, name, client_urls };
        let (sender, _receiver) = mpsc::channel(RESPONSES_MAX);
        let (ended, _endings) = mpsc::channel(RESPONSES_MAX);
        let mut stream =
            Stream::new(Outlet { services: Services::new(store, identity), sender }, ended);
        let request = WatchCreateRequest { watch_id: 7, ..WatchCreateRequest::default() };
        stream.create(request.clone()).await.unwrap();
        stream.cancel(7).await.unwrap();
        stream.create(request).await.unwrap();
        stream.forget((7, 0));
        assert!(stream.watches.contains_key(&7));
        stream.forget((7, 1));
        assert!(stream.watches.is_empty());
    }
}
