//! Those who disturb: who deletes, crowds, looks at everything, and speaks badly.

use std::{rc::Rc, time::Duration};

use fastrand::Rng;
use tokio::{task::JoinSet, time::sleep};

use super::{
    Soak,
    account::{Totals, check_bus, check_topic},
    books::Book,
    show,
    topics::{LARGEST_PAYLOAD, MOST_CONNECTIONS, Topic},
    wire::{Wire, ask},
};

/// Deletes topics.
pub(super) async fn delete(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(20..400))).await;
        let topic = Topic::any(&mut rng);
        let name = topic.name();
        let (claim, header) = {
            let keys = soak.keys.borrow();
            let who = keys.some(&mut rng);
            (keys.claim(who, &topic), show::header(&keys, who, &mut rng))
        };
        let request = format!("DELETE /{name} HTTP/1.1\r\nHost: soak.localhost\r\n{header}\r\n");
        match ask(&soak.place, request.as_bytes(), true).await {
            Ok((status, _)) => {
                let mut books = soak.books.borrow_mut();
                let what = format!("DELETE {name}");
                let is_refused = soak.keys.borrow().check_answer(&mut books, &claim, status, &what);
                let is_right = is_refused || matches!(status, 204 | 404 | 503);
                books.check(Book::Answers, is_right, || format!("{what}: {status}"));
                books.count("topics deleted", u64::from(status == 204));
            }
            Err(error) => soak.note_silence(&error, "a delete"),
        }
    }
}

/// Looks at books while they are written: they balance at every moment.
pub(super) async fn look(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(5..100))).await;
        let topic = Topic::any(&mut rng);
        let (method, path) = match rng.u8(..6) {
            0 => ("HEAD", format!("/{}", topic.name())),
            1 | 2 => ("GET", format!("/-/topics/{}", topic.name())),
            3 => ("GET", "/-/stats".to_owned()),
            4 => ("GET", "/metrics".to_owned()),
            _ => ("GET", "/?max=100".to_owned()),
        };
        let request = soak.request(method, &path);
        let (status, body) = match ask(&soak.place, request.as_bytes(), method == "GET").await {
            Ok(answer) => answer,
            Err(error) => {
                soak.note_silence(&error, "a look");
                continue;
            }
        };
        let mut books = soak.books.borrow_mut();
        books.count("looks at topics, stats and metrics", 1);
        books.check(Book::Answers, matches!(status, 200 | 404 | 503), || {
            format!("{method} {path}: {status}")
        });
        if status != 200 {
            continue;
        }
        if path.starts_with("/-/topics/") {
            match serde_json::from_slice(&body) {
                Ok(details) => check_topic(&mut books, &details),
                Err(error) => books.check(Book::Answers, false, || format!("{path}: {error}")),
            }
        } else if path == "/-/stats" {
            match serde_json::from_slice::<Totals>(&body) {
                Ok(totals) => check_bus(&mut books, &totals),
                Err(error) => books.check(Book::Answers, false, || format!("{path}: {error}")),
            }
        }
    }
}

/// Comes in greater numbers than are let in.
pub(super) async fn crowd(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(500..3000))).await;
        if !soak.is_loading() {
            return;
        }
        soak.books.borrow_mut().count("crowds of more connections than are let in", 1);
        let mut crowd = JoinSet::new();
        for _ in 0..MOST_CONNECTIONS + 16 {
            crowd.spawn_local(one_of_many(Rc::clone(&soak), rng.fork()));
        }
        crowd.join_all().await;
    }
}

async fn one_of_many(soak: Rc<Soak>, mut rng: Rng) {
    let Ok(mut wire) = Wire::open(&soak.place).await else { return };
    let request: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: soak.localhost\r\n\r\n";
    let is_whole = rng.u8(..4) > 0;
    let said = if is_whole { request } else { &request[..rng.usize(..request.len())] };
    // Who is one too many may be closed at once.
    if wire.send(said).await.is_ok() && is_whole {
        match wire.answer(true).await {
            Ok((head, _)) => {
                let mut books = soak.books.borrow_mut();
                let (status, what) = (head.status, "connections refused at the bound");
                books.count(what, u64::from(status == 503));
                books.check(Book::Answers, matches!(status, 200 | 503), || {
                    format!("GET /healthz: {status}")
                });
            }
            Err(error) => soak.note_silence(&error, "a look at the health"),
        }
    }
    sleep(Duration::from_millis(rng.u64(..300))).await;
    wire.cut(soak.some_cut(&mut rng));
}

/// A request that is wrong, and what it is answered with, if at all.
type Misfit = (Vec<u8>, &'static [u16]);

/// Sends what is too large, not whole, or nonsense.
pub(super) async fn misbehave(soak: Rc<Soak>, mut rng: Rng) {
    while soak.is_loading() {
        sleep(Duration::from_millis(rng.u64(10..200))).await;
        let (request, statuses) = misfit(&soak, &mut rng);
        soak.books.borrow_mut().count("requests that are wrong, too large or not whole", 1);
        match ask(&soak.place, &request, true).await {
            Ok((503, _)) => {}
            Ok((status, text)) => {
                soak.books.borrow_mut().check(Book::Answers, statuses.contains(&status), || {
                    let begin = String::from_utf8_lossy(&request[..request.len().min(60)]);
                    format!("{begin:?}: {status} {}", String::from_utf8_lossy(&text))
                });
            }
            // Who still sends when it is closed does not always see the answer.
            Err(error) => soak.note_silence(&error, "nonsense"),
        }
    }
}

fn misfit(soak: &Soak, rng: &mut Rng) -> Misfit {
    let topic = Topic::any(rng);
    let name = topic.name();
    let excess = vec![b'x'; LARGEST_PAYLOAD + rng.usize(1..LARGEST_PAYLOAD)];
    let who = &soak.steady;
    let put = format!("PUT /{name} HTTP/1.1\r\nHost: soak.localhost\r\n{who}");
    match rng.u8(..10) {
        0 => {
            let head = format!("{put}Content-Length: {}\r\n\r\n", excess.len());
            ([head.as_bytes(), &excess].concat(), &[413])
        }
        1 => {
            let head = format!("{put}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n", excess.len());
            ([head.as_bytes(), &excess, b"\r\n0\r\n\r\n"].concat(), &[413])
        }
        2 => (format!("{put}Content-Length: 10\r\n\r\nhalf").into_bytes(), &[408]),
        3 => (put.into_bytes(), &[]),
        4 => (format!("{put}Large: {}\r\n\r\n", "x".repeat(20 << 10)).into_bytes(), &[431]),
        5 => (b"not HTTP\r\n\r\n".to_vec(), &[400]),
        6 => (soak.request("PATCH", &format!("/{name}")).into_bytes(), &[405]),
        7 => (soak.request("GET", &format!("/{name}?wait=never")).into_bytes(), &[400]),
        8 => {
            let lines = "\n".repeat(30_000);
            let head = format!("PUT /{name}?split=lines HTTP/1.1\r\nHost: soak.localhost\r\n{who}");
            let request = format!("{head}Content-Length: {}\r\n\r\n{lines}", lines.len());
            (request.into_bytes(), &[413])
        }
        _ => {
            let request = format!(
                "GET /{name} HTTP/1.1\r\nHost: soak.localhost\r\n{who}Upgrade: websocket\r\n\r\n"
            );
            (request.into_bytes(), &[400])
        }
    }
}
