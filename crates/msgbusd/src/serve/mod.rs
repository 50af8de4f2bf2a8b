//! Serving one connection: in the clear or in TLS, HTTP/1.1 or HTTP/2, until it ends or becomes a
//! websocket.

mod bodies;

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    rt::Executor,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    select,
    time::{sleep, timeout},
};
use tokio_rustls::rustls::ServerConfig;
use tokio_util::either::Either;
use tracing::{debug, warn};

use self::bodies::{MOST_OFFERED, Offered, Watched};
use crate::{
    connection::{self, Connection, MOST_STREAMS},
    http::{self, App},
    metrics::Deadline,
    peer::Peer,
    places::Place,
    socket::{Conversation, Linger, Socket},
    stream::Accepted,
    tls,
};

/// The largest buffer of a connection, in bytes: for heads, and for what of a body is in flight.
const MOST_BUFFERED: usize = 64 << 10;
/// What a client of HTTP/2 may send of one body, and of all, before somebody has read it, in bytes.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// As in HTTP/1.1.
const MOST_HEADERS: usize = 100;
/// How often a client of HTTP/2 is asked whether it is still there, and how long it has to answer.
const PING_EVERY: Duration = Duration::from_secs(54);
const PING_PATIENCE: Duration = Duration::from_secs(20);
/// How long the close of an idle connection of HTTP/2 may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one connection until it ends, or becomes a websocket.
pub(crate) async fn serve(
    app: Arc<App>,
    accepted: Accepted,
    place: Place,
    tls: Option<Arc<ServerConfig>>,
    peer: Peer,
) {
    let socket = match Socket::new(accepted, app.config.timeouts.write, place) {
        Ok(socket) => socket,
        Err(error) => return warn!(%peer, %error, "cannot serve a connection"),
    };
    let conversation = socket.conversation();
    let connection = match tls {
        None => Either::Left(socket),
        // Boxed, as all that most connections do without: they are not to be larger for it.
        Some(settings) => match Box::pin(encrypt(&app, settings, socket, &conversation)).await {
            Ok(connection) => connection,
            Err(error) => return debug!(%peer, %error, "no TLS"),
        },
    };
    if connection::is_http2(&connection) {
        Box::pin(serve_http2(&app, connection, &conversation, peer)).await;
    } else {
        serve_http1(&app, connection, &conversation, peer).await;
    }
}

async fn encrypt(
    app: &App,
    settings: Arc<ServerConfig>,
    socket: Socket,
    conversation: &Conversation,
) -> io::Result<Connection> {
    select! {
        stream = tls::begin(settings, socket) => Ok(Either::Right(Box::new(stream?))),
        late = conversation.overdue(&app.config.timeouts) => {
            late.inspect(|deadline| app.metrics.timeout(*deadline));
            Err(io::ErrorKind::TimedOut.into())
        }
        () = app.tasks.drain.cancelled() => Err(io::Error::other("the server stops")),
    }
}

async fn serve_http1(
    app: &Arc<App>,
    connection: Connection,
    conversation: &Conversation,
    peer: Peer,
) {
    // Its own for each protocol: shared by both it would be copied more often.
    let service = service_fn(|mut request: Request<Incoming>| {
        let (app, conversation) = (Arc::clone(app), conversation.clone());
        async move {
            let exchange = conversation.begin();
            let answer = http::answer(&app, peer, &mut request).await;
            Ok::<_, Infallible>(answer.map(|body| Watched::new(exchange, body)))
        }
    });
    let connection = http1::Builder::new()
        // The socket has deadlines of its own, which tell an idle connection from a slow head.
        .header_read_timeout(None)
        .max_header_size(app.config.max_header)
        .max_buf_size(app.config.max_header.max(MOST_BUFFERED))
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    let connection = pin!(connection);
    let ended =
        attend(app, conversation, connection, http1::UpgradeableConnection::graceful_shutdown);
    note_end(app, peer, ended.await);
}

async fn serve_http2(
    app: &Arc<App>,
    connection: Connection,
    conversation: &Conversation,
    peer: Peer,
) {
    conversation.multiplex();
    let service = service_fn(|mut request: Request<Incoming>| {
        let (app, conversation) = (Arc::clone(app), conversation.clone());
        async move {
            let exchange = conversation.clone().begin();
            let answer = if request.headers().len() > MOST_HEADERS {
                http::too_many_headers(&app)
            } else {
                http::answer(&app, peer, &mut request).await
            };
            if !request.body().is_end_stream() {
                app.tasks.spawn(linger(request.into_body()));
            }
            let body = |body| Offered::new(&app, conversation, exchange, body);
            Ok::<_, Infallible>(answer.map(body))
        }
    });
    let header_size = u32::try_from(app.config.max_header).unwrap_or(u32::MAX);
    let connection = http2::Builder::new(Streams(Arc::clone(app)))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MOST_STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MOST_OFFERED)
        .max_header_list_size(header_size)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_PATIENCE)
        .serve_connection(TokioIo::new(connection), service);
    let mut connection = pin!(connection);
    let stop = http2::Connection::graceful_shutdown;
    // It has to agree to its end, and may not answer any more.
    let quiet_at_the_end = async {
        app.tasks.drain.cancelled().await;
        loop {
            sleep(FAREWELL).await;
            if conversation.is_quiet() {
                return;
            }
        }
    };
    let end = select! {
        end = attend(app, conversation, connection.as_mut(), stop) => end,
        () = quiet_at_the_end => End::Over(Ok(())),
    };
    if matches!(end, End::Overdue(_)) {
        // A request may be on its way: its client is told that nobody will look at it.
        stop(connection.as_mut());
        let _ = timeout(FAREWELL, connection).await;
    }
    note_end(app, peer, end);
}

/// Why a connection is no longer served.
enum End {
    /// By itself.
    Over(hyper::Result<()>),
    /// Nothing came in time; or, where no deadline is named, the peer is gone.
    Overdue(Option<Deadline>),
}

fn note_end(app: &App, peer: Peer, end: End) {
    match end {
        End::Over(Ok(())) => {}
        End::Over(Err(error)) => {
            // hyper has answered by itself.
            if error.is_parse_too_large() {
                app.metrics.refusal("header_too_large");
            } else if error.is_parse() {
                app.metrics.refusal("bad_http");
            } else if is_timeout(&error) {
                app.metrics.timeout(Deadline::Write);
            }
            debug!(%peer, %error, "connection ended");
        }
        End::Overdue(deadline) => {
            deadline.inspect(|deadline| app.metrics.timeout(*deadline));
            debug!(%peer, ?deadline, "connection closed: nothing came in time, or it is gone");
        }
    }
}

/// Whether the peer took no bytes for too long, see [`Socket`].
fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    let is_one = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
    error.downcast_ref().is_some_and(is_one) || error.source().is_some_and(is_timeout)
}

/// Lets a connection go on until it ends or nothing comes in time; tells it when the server stops.
async fn attend<C: Future<Output = hyper::Result<()>>>(
    app: &App,
    conversation: &Conversation,
    mut connection: Pin<&mut C>,
    stop: impl Fn(Pin<&mut C>),
) -> End {
    let mut draining = pin!(app.tasks.drain.cancelled());
    let mut overdue = pin!(conversation.overdue(&app.config.timeouts));
    let mut is_draining = false;
    loop {
        select! {
            ended = connection.as_mut() => return End::Over(ended),
            deadline = &mut overdue => return End::Overdue(deadline),
            () = &mut draining, if !is_draining => {
                is_draining = true;
                stop(connection.as_mut());
            }
        }
    }
}

/// Reads a little of what nobody wants, as a socket does when it is closed: reset at once, some clients
/// do not look at the answer.
async fn linger(mut body: Incoming) {
    let reading = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > Linger::BYTES {
                return;
            }
        }
    };
    // The answer is out: who is slower has to make do with it.
    let _ = timeout(Linger::TIME, reading).await;
}

/// Runs the exchanges of HTTP/2, so that the end of the server waits for each.
#[derive(Clone)]
struct Streams(Arc<App>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.tasks.spawn(stream);
    }
}
