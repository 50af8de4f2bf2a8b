//! Serving one connection: in the clear or in TLS, HTTP/1.1 or HTTP/2, until it ends or becomes a
//! websocket.

mod bodies;
mod date;
mod http1;
mod http2;

use std::{
    error::Error,
    io,
    pin::{Pin, pin},
    sync::Arc,
};

use tokio::select;
use tokio_rustls::rustls::ServerConfig;
use tokio_util::either::Either;
use tracing::{debug, warn};

use crate::{
    connection::{self, Connection},
    http::App,
    metrics::Deadline,
    peer::Peer,
    places::Place,
    socket::{Conversation, Socket},
    stream::Accepted,
    tls,
};

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
        Box::pin(http2::serve(&app, connection, &conversation, peer)).await;
    } else {
        http1::serve(&app, connection, &conversation, peer).await;
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
