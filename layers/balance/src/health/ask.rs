//! Sending a check, and reading what comes back.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
};

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;
use palisade_core::BoxError;
use tower_service::Service;

/// What checks call themselves in `user-agent`, so that a server can tell them from requests.
pub(super) const AGENT: HeaderValue = HeaderValue::from_static("palisade-health");

/// No answer to a check is read further.
const READ_AT_MOST: usize = 64 * 1024;

/// How much of an answer is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    Nothing,
    Data,
}

pub(super) async fn ask<S, B, R>(
    service: &mut S,
    request: Request<B>,
) -> Result<Response<R>, BoxError>
where
    S: Service<Request<B>, Response = Response<R>, Error: Into<BoxError>>,
{
    poll_fn(|cx| service.poll_ready(cx))
        .await
        .map_err(Into::into)?;
    service.call(request).await.map_err(Into::into)
}

/// Reads a body to its end, so that its connection can be used again, or as far as answers are read.
pub(super) async fn read<B>(body: B, keep: Keep) -> Result<(Vec<u8>, Option<HeaderMap>), BoxError>
where
    B: Body<Error: Into<BoxError>>,
{
    let mut body: Pin<&mut B> = pin!(body);
    let (mut read, mut kept, mut trailers) = (0, Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(Into::into)?;
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                trailers = frame.into_trailers().ok().or(trailers);
                continue;
            }
        };
        let len = data.remaining();
        if keep == Keep::Data {
            let data: Bytes = data.copy_to_bytes(len.min(READ_AT_MOST - read));
            kept.extend_from_slice(&data);
        }
        read += len;
        if read >= READ_AT_MOST {
            break;
        }
    }
    Ok((kept, trailers))
}

#[cfg(test)]
mod tests {
    use http_body::Frame;
    use http_body_util::{BodyExt, Channel, Full};

    use super::*;

    #[tokio::test]
    async fn a_body_is_read_to_its_trailers() {
        let mut trailers = HeaderMap::new();
        trailers.insert("a", HeaderValue::from_static("b"));
        let body = Full::new(Bytes::from("ab"))
            .with_trailers(std::future::ready(Some(Ok(trailers.clone()))));
        let (data, came) = read(body, Keep::Data).await.unwrap();
        assert_eq!((data, came), (b"ab".to_vec(), Some(trailers)));
    }

    #[tokio::test]
    async fn a_body_without_end_is_read_as_far_as_answers_are() {
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
        let endless = tokio::spawn(async move {
            let piece = Bytes::from(vec![b'x'; 1000]);
            let mut sent = 0;
            while sender.send(Frame::data(piece.clone())).await.is_ok() {
                sent += piece.len();
            }
            sent
        });
        let (data, _) = read(body, Keep::Data).await.unwrap();
        assert_eq!(data.len(), READ_AT_MOST);
        // The body was dropped, and one piece may have waited in its channel.
        assert!(endless.await.unwrap() <= READ_AT_MOST + 2000);
    }
}
