//! Calls of a client that sends any bytes as messages, and names any method: what the client
//! library would never do.

use bytes::{Buf as _, BufMut as _, Bytes};
use futures::Stream;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// A connection to one node.
#[derive(Clone)]
pub struct Raw {
    channel: Channel,
}

impl Raw {
    /// Connects to a node by its client address.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        Self { channel: endpoint.connect().await.expect("the node answers") }
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
        let mut grpc = Grpc::new(self.channel.clone());
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
