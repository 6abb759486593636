//! Owns the `kube::Client` that reaches the API server in this process: no socket, no TLS, the same authorization and admission. Knows
//! nothing of what its users do.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use apiserver::{ApiServer, Body, BodyError, Caller, Fence, User};
use http::{Request, Response};
use http_body_util::BodyExt;
use tower::Service;

/// The identity of the scheduler.
pub const SCHEDULER: &str = "system:kube-scheduler";
/// The identity of the master itself, which may do everything.
pub const MASTER: (&str, &[&str]) = ("system:apiserver", &["system:masters"]);
/// The identity of the controllers.
pub const CONTROLLERS: &str = "system:kube-controller-manager";

/// Answers a client's requests from the API server, as one user.
#[derive(Debug, Clone)]
struct InProcess {
    server: ApiServer,
    caller: Caller,
}

impl Service<Request<kube::client::Body>> for InProcess {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let (server, caller) = (self.server.clone(), self.caller.clone());
        let request = request.map(|body| body.map_err(BodyError::from).boxed_unsync());
        Box::pin(async move { Ok(server.handle(request, caller).await) })
    }
}

/// A client that acts as `user`, and writes only while a term lasts.
pub fn fenced_client(server: ApiServer, user: &str, fence: Fence) -> kube::Client {
    let caller = Caller::new(User::authenticated(user, &[])).fenced(fence);
    kube::Client::new(InProcess { server, caller }, "default")
}

/// A client that acts as `user`, in `groups`.
pub fn client(server: ApiServer, user: &str, groups: &[&str]) -> kube::Client {
    let caller = Caller::new(User::authenticated(user, groups));
    kube::Client::new(InProcess { server, caller }, "default")
}
