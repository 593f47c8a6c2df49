//! Calls of a client that sends any bytes as messages, and names any method: what the client
//! library would never do.

use bytes::{Buf as _, BufMut as _, Bytes};
use futures::Stream;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Uri;
use tonic::{Request, Status, Streaming};

/// A client of one node. It is none of tonic's channels, which end a call at its deadline by
/// themselves: what a test hears comes from the node.
#[derive(Clone)]
pub struct Raw {
    client: Client<HttpConnector, Body>,
    origin: Uri,
}

impl Raw {
    /// A client of the node at this client address.
    ///
    /// # Panics
    /// When it is no address.
    pub fn at(address: &str) -> Self {
        let origin = format!("http://{address}").parse().expect("an address");
        let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
        Self { client, origin }
    }

    /// Sends these messages to a method, and returns the stream of replies.
    ///
    /// # Errors
    /// When the call fails before it has any reply.
    pub async fn call(
        &self,
        path: &'static str,
        messages: impl Stream<Item = Bytes> + Send + 'static,
        timeout: Option<std::time::Duration>,
    ) -> Result<Streaming<Bytes>, Status> {
        let mut grpc = Grpc::with_origin(self.client.clone(), self.origin.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let mut request = Request::new(messages);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let replies = grpc.streaming(request, PathAndQuery::from_static(path), AsTheyAre).await?;
        Ok(replies.into_inner())
    }
}

/// Messages as they are.
struct AsTheyAre;

impl Codec for AsTheyAre {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
