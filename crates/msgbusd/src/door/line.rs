//! A door for tests. It shows what another protocol needs: the service and a byte stream. `PUB topic text` returns the
//! id; `SUB topic` returns each payload in a line.

use std::{future::poll_fn, io, sync::Arc};

use msgbus_core::{LagPolicy, NewMessage, Position, TopicName};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

use crate::{
    encode::format::FrameFormat,
    net::{peer::Peer, timeout_stream::TimeoutStream},
    service::{
        Authority, Call,
        error::ServiceError,
        follower::{FollowOptions, Follower, Item},
    },
    worker::Worker,
};

async fn serve(worker: Arc<Worker>, stream: TimeoutStream, peer: Peer) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let principal = worker.keyring.as_ref().map(|keyring| keyring.anonymous());
    let call = Call { worker: &worker, peer, principal, authority: Authority::Own };
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        let mut words = line.trim_end().splitn(3, ' ');
        let (verb, topic) = (words.next(), words.next().and_then(|name| name.parse().ok()));
        let answer = match (verb, topic, words.next()) {
            (Some("PUB"), Some(topic), Some(text)) => match publish(&call, &topic, text).await {
                Ok(id) => format!("OK {id}\n"),
                Err(error) => format!("ERR {}: {error}\n", error.code().word()),
            },
            (Some("SUB"), Some(topic), None) => match follow(&call, &topic).await {
                Ok(follower) => return push(follower, stream).await,
                Err(error) => format!("ERR {}: {error}\n", error.code().word()),
            },
            _ => "ERR use PUB topic text, or SUB topic\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

async fn publish(call: &Call<'_>, topic: &TopicName, text: &str) -> Result<u64, ServiceError> {
    let message = NewMessage::new(text.to_owned());
    Ok(call.publish(topic)?.put(message).await?.id)
}

async fn follow(call: &Call<'_>, topic: &TopicName) -> Result<Follower, ServiceError> {
    let (from, lag) = (Position::All, LagPolicy::default());
    call.follow(topic, FollowOptions { from, lag, format: FrameFormat::RawLine }).await
}

async fn push(mut follower: Follower, mut stream: BufReader<TimeoutStream>) -> io::Result<()> {
    loop {
        let mut lines = Vec::new();
        let received = poll_fn(|cx| {
            follower.poll_batch(cx, |item, _| {
                if let Item::Frame(frame) = item {
                    lines.extend(frame.pieces().concat());
                }
            })
        });
        if received.await.is_err() {
            return stream.shutdown().await;
        }
        stream.write_all(&lines).await?;
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{config::Config, net::raw_stream::Accepted, state::App};

    #[tokio::test]
    async fn a_door_needs_the_service_and_a_stream() {
        let config = Config { max_subscriptions: 1, ..Config::default() };
        let worker = Worker::new(&Arc::new(App::in_memory(config, None)));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut clients = Vec::new();
        for request in ["PUB t one\nPUB t two\nPUB a/ x\n", "SUB t\n", "SUB t\n"] {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            client.write_all(request.as_bytes()).await.unwrap();
            let (stream, address) = listener.accept().await.unwrap();
            let permit = worker.connections.try_acquire(Some(address.ip())).unwrap();
            let accepted = Accepted::Tcp(stream.into_std().unwrap());
            let stream = TimeoutStream::new(accepted, worker.config.timeouts.write, permit);
            let peer = Peer { address: Some(address), has_tls: false };
            tokio::spawn(serve(Arc::clone(&worker), stream.unwrap(), peer));
            let mut answer = [0; 8];
            client.read_exact(&mut answer).await.unwrap();
            clients.push((client, answer));
        }
        assert_eq!(
            clients.iter().map(|(_, answer)| answer).collect::<Vec<_>>(),
            [b"OK 0\nOK ", b"one\ntwo\n", b"ERR too_"]
        );
        worker.bus.put(&"t".parse().unwrap(), "three").unwrap();
        let mut line = [0; 6];
        clients[1].0.read_exact(&mut line).await.unwrap();
        assert_eq!(&line, b"three\n");
    }
}
