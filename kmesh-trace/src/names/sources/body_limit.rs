//! No answer of an API server without a bound: the client would keep a list, or one event of a watch, of any length.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use hyper::body::{Bytes, Frame};
use kube::Client;
use kube::client::Body;
use tower_service::Service;

/// The longest page of a list: 500 objects of 64 KiB on the average. Each kind is listed on its own, all at once.
const MOST_OF_LIST: usize = 32 << 20;
/// The longest event. An API server keeps no object of more than some megabytes.
const MOST_OF_EVENT: usize = 8 << 20;

/// Asks through this client, and takes no more than that of each answer.
#[derive(Clone)]
pub struct Bounded(pub Client);

impl Service<Request<Body>> for Bounded {
    type Response = Response<Measured>;
    type Error = kube::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, kube::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), kube::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let client = self.0.clone();
        let mut words = request.uri().query().unwrap_or_default().split('&');
        let of_lines = words.any(|word| word == "watch=true");
        Box::pin(async move {
            let answer = client.send(request).await?;
            Ok(answer.map(|body| Measured {
                body,
                of_lines,
                taken: 0,
            }))
        })
    }
}

/// An answer that breaks off where it is too long.
pub struct Measured {
    body: Body,
    /// Each line is an event.
    of_lines: bool,
    /// Bytes of it, or of its present line.
    taken: usize,
}

impl hyper::body::Body for Measured {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
            Some(frame) => frame?,
            None => return Poll::Ready(None),
        };
        let bytes = frame.data_ref().map(Bytes::as_ref).unwrap_or_default();
        let last_line = bytes.iter().rposition(|&byte| self.of_lines && byte == b'\n');
        self.taken = match last_line {
            Some(end) => bytes.len() - end - 1,
            None => self.taken + bytes.len(),
        };
        let most = if self.of_lines { MOST_OF_EVENT } else { MOST_OF_LIST };
        if self.taken > most {
            let what = if self.of_lines { "an event" } else { "its list" };
            return Poll::Ready(Some(Err(format!("{what} has more than {} MiB", most >> 20).into())));
        }
        Poll::Ready(Some(Ok(frame)))
    }
}
