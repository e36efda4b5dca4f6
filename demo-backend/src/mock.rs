//! A backend in the process of a test.

use std::{
    collections::VecDeque,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use palisade_core::{BoxError, time};
use tokio::{net::TcpListener, task::JoinHandle, time::timeout};

use crate::{
    answer::Backend,
    api::Load,
    body::AnswerBody,
    fault::Fault,
    forward::Forward,
    instance::{Instance, Phase, Settings},
    reply::Reply,
    seen::Seen,
    server,
    simulation::Lengths,
};

/// A backend that runs as tasks of this process: what `demo-backend` is as a program, with a script and a record.
///
/// Without further words it answers each request at once, with 16 tokens, and writes down what it has seen.
/// Dropping it cuts all its connections.
///
/// ```
/// use demo_backend::{Ended, Fault, MockBackend, Reply};
/// # async fn post(url: String) -> std::io::Result<String> {
/// #     use tokio::io::{AsyncReadExt, AsyncWriteExt};
/// #     let (host, path) = url["http://".len()..].split_once('/').unwrap();
/// #     let mut stream = tokio::net::TcpStream::connect(host).await?;
/// #     let body = r#"{"prompt": "Hello"}"#;
/// #     let head = format!("POST /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
/// #     stream.write_all((head + body).as_bytes()).await?;
/// #     let mut answer = String::new();
/// #     stream.read_to_string(&mut answer).await?;
/// #     Ok(answer)
/// # }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let backend = MockBackend::builder()
///     .id("one")
///     .script([Reply::status(503), Reply::text("Hello there")])
///     .start()
///     .await?;
///
/// // With any HTTP client:
/// let first = post(format!("{}/generate", backend.url())).await?;
/// let second = post(format!("{}/generate", backend.url())).await?;
/// assert!(first.starts_with("HTTP/1.1 503"));
/// assert!(second.contains(r#""response":"Hello there""#));
///
/// let seen = backend.seen();
/// assert_eq!(seen[0].path, "/generate");
/// assert!(matches!(seen[1].ended, Ended::Completed { tokens_sent: 2, .. }));
///
/// backend.chaos([Fault::reset(3)]);
/// backend.stop().await;
/// # Ok(())
/// # }
/// ```
pub struct MockBackend {
    backend: Backend,
    addr: SocketAddr,
    grace: Duration,
    /// None while it is down.
    server: Mutex<Option<JoinHandle<()>>>,
}

/// What a [`MockBackend`] will be like.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    addr: SocketAddr,
    settings: Settings,
}

/// What was seen is kept for this many requests.
const RECORDING: usize = 10_000;
/// What the gateway gives its own requests when it stops.
const GRACE: Duration = Duration::from_secs(30);

impl MockBackend {
    /// Begins to describe one.
    pub fn builder() -> Builder {
        Builder {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            settings: Settings {
                id: None,
                seed: 0,
                slots: 0,
                queue: 1024,
                tokens_per_second: 0.0,
                first_token: Duration::ZERO,
                prompt_token: Duration::ZERO,
                prefix_cache: 4096,
                lengths: Lengths::from(16),
                faults: Vec::new(),
                script: VecDeque::new(),
                recording: RECORDING,
                grace: GRACE,
                forward: None,
            },
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://` and where it listens, without a slash at the end.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Its name, as in `backend_id` and `x-instance-id`.
    pub fn id(&self) -> &str {
        &self.instance().id
    }

    /// From now on these faults, instead of those that were set before; none end the chaos.
    pub fn chaos(&self, faults: impl IntoIterator<Item = Fault>) {
        self.instance().set_chaos(faults.into_iter().collect());
    }

    /// More answers behind those that are scripted already.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        self.instance().extend_script(replies);
    }

    /// What came in, in the order of arrival: the latest 10 000 requests, or as many as
    /// [`recording`](Builder::recording) says, with 64 MiB of bodies at most.
    pub fn seen(&self) -> Vec<Seen> {
        self.instance().record.all()
    }

    /// Returns as soon as this holds for what was seen; looks again whenever a request comes or ends.
    ///
    /// A test that waits so needs no sleep. Wrap it in a timeout of your own.
    pub async fn until(&self, mut holds: impl FnMut(&[Seen]) -> bool) {
        let record = &self.instance().record;
        record.until(|| holds(&record.all())).await;
    }

    /// Returns as soon as [`in_flight`](Self::in_flight) is 0.
    pub async fn idle(&self) {
        let instance = self.instance();
        instance.record.until(|| instance.in_flight() == 0).await;
    }

    /// How many requests to `/generate` and `/v1` are between their head and the end of their answer.
    pub fn in_flight(&self) -> usize {
        self.instance().in_flight()
    }

    /// What `GET /load` answers.
    pub fn load(&self) -> Load {
        self.instance().load()
    }

    /// Answers one request without any connection, as if it were the first of its own.
    ///
    /// With a paused clock this is the exact way: a clock that runs ahead whenever all tasks wait does not wait for
    /// sockets. An error stands for a connection that ends without an answer.
    pub async fn answer<B>(&self, request: Request<B>) -> io::Result<Response<AnswerBody>>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>>,
    {
        if self.instance().is_down() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.backend.answer(request, None).await
    }

    /// Ends as a program ends that is killed: no connection is left and no new one is taken, until
    /// [`restart`](Self::restart).
    pub async fn crash(&self) {
        self.instance().crash();
        self.ended().await;
    }

    /// Returns when it has crashed.
    pub async fn crashed(&self) {
        let mut phase = self.instance().phase.subscribe();
        let _sender_lives = phase.wait_for(|phase| *phase == Phase::Down).await;
    }

    /// Listens again where it did before a [`crash`](Self::crash) or a [`stop`](Self::stop), which comes first if need
    /// be. Its state is kept but for a crash that was set as a fault, and would happen again.
    pub async fn restart(&self) -> io::Result<()> {
        self.crash().await;
        let faults = self.instance().chaos().faults().to_vec();
        let stays = |fault: &Fault| fault.name() != "crash";
        self.chaos(faults.into_iter().filter(stays));
        let listener = TcpListener::bind(self.addr).await?;
        self.run(listener);
        Ok(())
    }

    /// Takes no more connections, lets the requests end that are in flight (for [`grace`](Builder::grace) at most), and
    /// cuts what is left.
    pub async fn stop(&self) {
        self.instance().phase.send_if_modified(|phase| {
            let running = *phase == Phase::Running;
            if running {
                *phase = Phase::Draining;
            }
            running
        });
        let server = self.take_server();
        if let Some(mut server) = server
            && timeout(self.grace, &mut server).await.is_err()
        {
            self.instance().crash();
            // It cannot panic, and if it did it would be over.
            let _ended = server.await;
        }
        self.instance().crash();
    }

    async fn ended(&self) {
        if let Some(server) = self.take_server() {
            let _ended = server.await;
        }
    }

    fn run(&self, listener: TcpListener) {
        self.instance().phase.send_replace(Phase::Running);
        let server = tokio::spawn(server::serve(listener, self.backend.clone()));
        let mut held = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        *held = Some(server);
    }

    fn take_server(&self) -> Option<JoinHandle<()>> {
        let mut held = self.server.lock().unwrap_or_else(PoisonError::into_inner);
        held.take()
    }

    fn instance(&self) -> &Arc<Instance> {
        &self.backend.instance
    }
}

impl Drop for MockBackend {
    fn drop(&mut self) {
        self.instance().crash();
        if let Some(server) = self.take_server() {
            server.abort();
        }
    }
}

impl fmt::Debug for MockBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockBackend")
            .field("id", &self.id())
            .field("addr", &self.addr)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Listens here: by default on a free port of 127.0.0.1.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.addr = addr;
        self
    }

    /// Is called this: by default `backend-` and the port.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.settings.id = Some(id.into());
        self
    }

    /// Two runs with the same seed and the same requests in the same order have the same answers and faults.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// Serves this many requests together, the others wait: by default, and with 0, without limit.
    pub fn slots(mut self, slots: usize) -> Self {
        self.settings.slots = slots;
        self
    }

    /// Lets this many requests wait for a slot, by default 1024; more are answered with 503 and `Retry-After`.
    pub fn queue(mut self, places: usize) -> Self {
        self.settings.queue = places;
        self
    }

    /// Makes this many tokens per second, shared evenly among those that are being answered: by default, and with what
    /// is not above 0, without limit.
    pub fn tokens_per_second(mut self, rate: f64) -> Self {
        self.settings.tokens_per_second = rate;
        self
    }

    /// Has the first token this long after a slot, for an empty prompt: by default at once.
    pub fn first_token(mut self, delay: Duration) -> Self {
        self.settings.first_token = delay;
        self
    }

    /// Takes this long for each token of a prompt that is not in the prefix cache: by default no time.
    pub fn prompt_token(mut self, time: Duration) -> Self {
        self.settings.prompt_token = time;
        self
    }

    /// Knows the beginnings of earlier prompts in this many blocks of 16 tokens: by default 4096, none with 0.
    /// Looked at only when [`prompt_token`](Self::prompt_token) is not zero.
    pub fn prefix_cache(mut self, blocks: usize) -> Self {
        self.settings.prefix_cache = blocks;
        self
    }

    /// Gives answers of this many tokens, if the request allows as many: by default 16.
    pub fn tokens(mut self, lengths: impl Into<Lengths>) -> Self {
        self.settings.lengths = lengths.into();
        self
    }

    /// Has this fault as well, from its start on.
    pub fn fault(mut self, fault: Fault) -> Self {
        self.settings.faults.push(fault);
        self
    }

    /// Answers requests to `/generate` and `/v1` with these in the order of arrival, then with the simulation.
    pub fn script(mut self, replies: impl IntoIterator<Item = Reply>) -> Self {
        self.settings.script.extend(replies);
        self
    }

    /// Keeps this many of the requests that it has seen, by default 10 000; with 0 none, which is the fastest.
    pub fn recording(mut self, requests: usize) -> Self {
        self.settings.recording = requests;
        self
    }

    /// Gives requests in flight this long when it is stopped: by default 30 s.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.settings.grace = grace;
        self
    }

    /// Lets a real provider answer `/generate` and `/v1`; faults and the record stay.
    pub fn forward(mut self, forward: Forward) -> Self {
        self.settings.forward = Some(forward);
        self
    }

    /// Starts it. Connections are taken as soon as this returns.
    ///
    /// # Errors
    ///
    /// When the address cannot be listened on.
    pub async fn start(mut self) -> io::Result<MockBackend> {
        let listener = TcpListener::bind(self.addr).await?;
        let addr = listener.local_addr()?;
        let id = self.settings.id.take();
        let id = id.unwrap_or_else(|| format!("backend-{}", addr.port()));
        let grace = self.settings.grace;
        let instance = Arc::new(Instance::new(self.settings, id, time::now()));
        let mock = MockBackend {
            backend: Backend::new(instance),
            addr,
            grace,
            server: Mutex::new(None),
        };
        mock.run(listener);
        Ok(mock)
    }
}
