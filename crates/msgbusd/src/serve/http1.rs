//! Serving one connection of HTTP/1.1.

use std::{convert::Infallible, pin::pin, sync::Arc};

use hyper::{
    Request,
    body::Incoming,
    server::conn::http1::{Builder, UpgradeableConnection},
    service::service_fn,
};
use hyper_util::rt::TokioIo;

use super::{attend, bodies::Watched, date, note_end};
use crate::{
    connection::Connection,
    http::{self, App},
    peer::Peer,
    socket::Conversation,
};

/// The largest buffer of a connection, in bytes: for heads, and for what of a body is in flight.
const MOST_BUFFERED: usize = 64 << 10;

pub(super) async fn serve(
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
            Ok::<_, Infallible>(date::stamp(answer).map(|body| Watched::new(exchange, body)))
        }
    });
    let connection = Builder::new()
        // The socket has deadlines of its own, which tell an idle connection from a slow head.
        .header_read_timeout(None)
        .auto_date_header(false)
        .max_header_size(app.config.max_header)
        .max_buf_size(app.config.max_header.max(MOST_BUFFERED))
        .serve_connection(TokioIo::new(connection), service)
        .with_upgrades();
    let connection = pin!(connection);
    let ended = attend(app, conversation, connection, UpgradeableConnection::graceful_shutdown);
    note_end(app, peer, ended.await);
}
