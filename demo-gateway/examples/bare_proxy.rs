//! A proxy on hyper and nothing else: what the gateway's layers are held against.
//!
//! `bare_proxy LISTEN BACKEND`: one runtime per core, each with its own listener and its own pool of connections.

use std::{convert::Infallible, env, error::Error, net::SocketAddr, thread};

use http::{Request, Response, Uri, uri};
use http_body_util::{Either, Empty};
use hyper::{
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::TcpSocket;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Pool = Client<HttpConnector, Incoming>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [listen, backend] = &arguments[..] else {
        return Err(
            "usage: bare_proxy LISTEN BACKEND, two addresses such as 127.0.0.1:8000".into(),
        );
    };
    let listen: SocketAddr = listen.parse()?;
    let backend: uri::Authority = backend.parse()?;
    let threads: Vec<_> = (0..thread::available_parallelism()?.get())
        .map(|_| {
            let backend = backend.clone();
            thread::spawn(move || serve(listen, backend).map_err(|error| error.to_string()))
        })
        .collect();
    println!("listening on http://{listen}");
    for thread in threads {
        thread.join().map_err(|_| "a thread has panicked")??;
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn serve(listen: SocketAddr, backend: uri::Authority) -> Result<(), Box<dyn Error>> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(listen)?;
    let listener = socket.listen(1024)?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let pool: Pool = Client::builder(TokioExecutor::new()).build(connector);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (pool, backend) = (pool.clone(), backend.clone());
        tokio::spawn(async move {
            let service =
                service_fn(move |request| forward(pool.clone(), backend.clone(), request));
            // A connection that breaks is its client's affair.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn forward(
    pool: Pool,
    backend: uri::Authority,
    mut request: Request<Incoming>,
) -> Result<Response<Either<Incoming, Empty<Bytes>>>, Infallible> {
    let mut parts = request.uri().clone().into_parts();
    parts.scheme = Some(uri::Scheme::HTTP);
    parts.authority = Some(backend);
    *request.uri_mut() = Uri::from_parts(parts).expect("a path and an authority");
    Ok(match pool.request(request).await {
        Ok(response) => response.map(Either::Left),
        Err(_) => {
            let mut response = Response::new(Either::Right(Empty::new()));
            *response.status_mut() = http::StatusCode::BAD_GATEWAY;
            response
        }
    })
}
