//! Serving one connection of HTTP/1.1.

use std::{convert::Infallible, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Either;
use hyper::{
    Request,
    body::{Body as _, Incoming},
    server::conn::http1::{Builder, UpgradeableConnection},
    service::service_fn,
    upgrade::OnUpgrade,
};
use hyper_util::rt::TokioIo;
use tokio::{io::AsyncWriteExt as _, select};

use super::{End, attend, bodies::Watched, date, note_end};
use crate::{
    connection::Connection, http, peer::Peer, rewound::Rewound, socket::Conversation,
    worker::Worker,
};

/// The largest buffer of a connection, in bytes: for heads, and for what of a body is in flight.
const MOST_BUFFERED: usize = 64 << 10;
/// For how long a connection is idle before it gives its buffers back, which are 16 KiB.
const KEEP_BUFFERS: Duration = Duration::from_secs(1);

/// Serves until the connection ends or becomes a websocket. While it is idle there is nothing of hyper.
pub(super) async fn serve(
    worker: &Arc<Worker>,
    connection: Connection,
    conversation: &Conversation,
    peer: Peer,
) {
    conversation.hold_answers();
    let mut io = Rewound::new(connection, Bytes::new());
    let end = loop {
        io = match serve_until_idle(worker, io, conversation, peer).await {
            Ok(io) => io,
            Err(end) => break end,
        };
        if io.is_rewound() {
            // Half a head came together with the request before it.
            conversation.is_in_a_head();
        } else if let Some(end) = wait_for_more(worker, conversation, &mut io).await {
            break end;
        }
    };
    note_end(worker, peer, end);
}

/// Answers requests. Gives the connection back when it is idle; else says how it has ended.
async fn serve_until_idle(
    worker: &Arc<Worker>,
    io: Rewound<Connection>,
    conversation: &Conversation,
    peer: Peer,
) -> Result<Rewound<Connection>, End> {
    // Its own for each protocol: shared by both it would be copied more often.
    let service = service_fn(|mut request: Request<Incoming>| async move {
        conversation.begin_only();
        if request.extensions().get::<OnUpgrade>().is_some() {
            // hyper gives the connection away with what it has not written.
            conversation.hold_nothing();
        }
        let answer = http::answer(worker, peer, conversation, &mut request).await;
        // Else the rest of it is still to come, and is no request.
        conversation.is_between_requests(request.body().is_end_stream());
        let answer = answer.map(|body| match body {
            // hyper takes it as a whole, now.
            Either::Left(whole) => {
                conversation.end_only();
                Either::Left(whole)
            }
            Either::Right(live) => Either::Right(Watched::new(conversation.clone().begin(), live)),
        });
        Ok::<_, Infallible>(date::correct(answer))
    });
    // Boxed, so that nothing of it stays while the connection is idle.
    let mut connection = Box::new(
        Builder::new()
            // The socket has deadlines of its own, which tell an idle connection from a slow head.
            .header_read_timeout(None)
            // What has come whole is answered, even if nothing more can come. See docs/protocol.md, 1.7.
            .half_close(true)
            .max_header_size(worker.config.max_header)
            .max_buf_size(worker.config.max_header.max(MOST_BUFFERED))
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades(),
    );
    let stop = UpgradeableConnection::graceful_shutdown;
    let end =
        attend(worker, conversation, Pin::new(&mut *connection), stop, Some(KEEP_BUFFERS)).await;
    match end {
        End::Idle => match connection.into_parts() {
            Some(parts) => {
                let is_a_head = !parts.read_buf.iter().all(|byte| matches!(byte, b'\r' | b'\n'));
                let again = if is_a_head { parts.read_buf } else { Bytes::new() };
                Ok(Rewound::new(parts.io.into_inner().into_inner(), again))
            }
            None => Err(End::Over(Ok(()))),
        },
        end => Err(end),
    }
}

/// Waits until an idle connection has something to read; otherwise says how it has ended.
async fn wait_for_more(
    worker: &Worker,
    conversation: &Conversation,
    io: &mut Rewound<Connection>,
) -> Option<End> {
    select! {
        () = conversation.readable() => None,
        deadline = conversation.overdue(&worker.config.timeouts) => Some(End::Overdue(deadline)),
        () = worker.tasks.drain.cancelled() => {
            // It may be gone, which is what is wanted.
            let _ = io.shutdown().await;
            Some(End::Over(Ok(())))
        }
    }
}
