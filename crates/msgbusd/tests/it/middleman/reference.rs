//! Sections 2 to 5 of the facts as transcripts, byte by byte. What differs from the old servers is in
//! docs/compatibility.md.

use super::Broker;
use crate::{
    keys::key,
    transcript::{Wire, of_documentation, play},
};

/// Plays a transcript, in which `{service}` and `{page}` are the keys of the two roles.
async fn dialogue(text: &str) {
    let (service, page) = (key("service", &["serve:**"]), key("page", &["inspect:nothing"]));
    let broker = Broker::with_keys(&[&service, &page], |config| {
        config.middleman.without_id = vec!["old".to_owned()];
    });
    let text = text.replace("{service}", &service.secret).replace("{page}", &page.secret);
    let connect = async |_: &str| Wire { connection: broker.raw().await, is_websocket: true };
    play(&text, connect).await;
}

#[tokio::test]
async fn the_dialogue_of_the_documentation() {
    let broker = Broker::start();
    let connect = async |_: &str| Wire { connection: broker.raw().await, is_websocket: true };
    play(of_documentation("## middleman"), connect).await;
}

/// Section 2.
#[tokio::test]
async fn the_handshake() {
    dialogue(
        r"
        one > {service}
        one < MM OK
        one < {one}
        # A trusted key works everywhere; every connection has an id of its own, and its private channel.
        two > {page}
        two < MM OK
        two < {two}
        one > PUB MSG:{two}\r\ncmd: error\r\n\r\n.\r\n
        two < PUB MSG:{two}\r\nCid: {one}\r\nUid: \r\ncmd: error\r\n\r\n\r\n.\r\n
        # A bad key: no text and no close frame.
        bad > plugh
        bad |
        # The key is exact: without white space or a line end.
        padded > {page}\n
        padded |
        ",
    )
    .await;
}

/// Section 3. Names of headers keep their spelling, `Cid` and `Uid` come first, and bodies pass as they are: these are the
/// faults of the old servers that are not kept.
#[tokio::test]
async fn the_grammar_of_frames() {
    dialogue(
        r"
        one > {service}
        one < MM OK
        one < {one}
        one > SUB Chat\n\n.\n
        one > PUB Chat\r\ncmd: Say\r\nroom: red\r\n\r\nhi\r\n.\r\n
        one < PUB Chat\r\nCid: {one}\r\nUid: \r\ncmd: Say\r\nroom: red\r\n\r\nhi\r\n.\r\n
        # An empty body, with and without headers; line feeds only, no space after the colon.
        one > SUB k\n\n\r\n.\r\n
        one > PUB k\r\n\r\n.\r\n
        one < PUB k\r\nCid: {one}\r\nUid: \r\n\r\n\r\n.\r\n
        one > PUB k\ncmd:Say\n\nhi\r\n.\r\n
        one < PUB k\r\nCid: {one}\r\nUid: \r\ncmd: Say\r\n\r\nhi\r\n.\r\n
        # A value goes on in the next line; a repeated name is another value.
        one > PUB k\r\na: 1\r\na: 2\r\nb: x\r\n  y\r\n\r\n.\r\n
        one < PUB k\r\nCid: {one}\r\nUid: \r\na: 1\r\na: 2\r\nb: x y\r\n\r\n\r\n.\r\n
        # The target goes up to the end of the line.
        one > SUB a b\n\n.\n
        one > PUB a b\n\n.\n
        one < PUB a b\r\nCid: {one}\r\nUid: \r\n\r\n\r\n.\r\n
        # What is after the line with the dot is ignored. Dots at the beginning of lines are stuffed.
        one > PUB k\n\n..x\n...y\nz\n.\nignored
        one < PUB k\r\nCid: {one}\r\nUid: \r\n\r\n..x\n...y\nz\r\n.\r\n
        # A parse error ends the connection.
        one > PUB k\r\n\r\nno end
        one < PUB ERROR\r\n\r\nthe line with a dot that ends the body is missing\r\n.\r\n
        one close 1002
        ",
    )
    .await;
}

/// Section 4. The requester's `rid` comes back, which it did not; the rest is as it was.
#[tokio::test]
async fn the_headers() {
    dialogue(
        r"
        auth > {service}
        auth < MM OK
        auth < {auth}
        auth > EREQ Auth\r\n\r\n.\r\n
        auth > SUB Auth\r\n\r\n.\r\n
        page > {page}
        page < MM OK
        page < {id}
        auth > PUB Auth\r\n\r\n.\r\n
        auth < PUB Auth\r\nCid: {auth}\r\nUid: \r\n\r\n\r\n.\r\n
        # Cid and Uid of the sender replace what it says.
        page > PUB Auth\r\nCid: forged\r\nUid: root\r\nx: 1\r\n\r\n.\r\n
        auth < PUB Auth\r\nCid: {id}\r\nUid: \r\nx: 1\r\n\r\n\r\n.\r\n
        # A request has a number; ReqID is opaque.
        page > REQ Auth\r\ncmd: Salt\r\nReqID: 5f\r\n\r\na@b\r\n.\r\n
        auth < REQ Auth\r\nCid: {id}\r\nUid: \r\nRid: {r1}\r\ncmd: Salt\r\nReqID: 5f\r\n\r\na@b\r\n.\r\n
        # The requester sees the responder's Cid and Uid, and no number.
        auth > RES Auth\r\ncid: {id}\r\nuid: \r\nrid: {r1}\r\ncmd: Salt\r\nReqID: 5f\r\nauth: Y\r\n\r\nsalt\r\n.\r\n
        page < RES Auth\r\nCid: {auth}\r\nUid: \r\ncmd: Salt\r\nReqID: 5f\r\nauth: Y\r\n\r\nsalt\r\n.\r\n
        # The private channel cannot be left.
        page > UNS MSG:{id}\r\n\r\n.\r\n
        # As the Python services ask: with a number of their own.
        page > REQ Auth\nrid:beef\n\n\r\n.\r\n
        auth < REQ Auth\r\nCid: {id}\r\nUid: \r\nRid: {r2}\r\n\r\n\r\n.\r\n
        auth > RES Auth\nrid:{r2}\n\n\r\n.\r\n
        page < RES Auth\r\nCid: {auth}\r\nUid: \r\nrid: beef\r\n\r\n\r\n.\r\n
        # A user id is on every message from then on.
        auth > INT UID\r\nforcid: {id}\r\nsetuid: 42\r\n\r\n.\r\n
        auth > PUB MSG:{id}\r\n\r\nwelcome\r\n.\r\n
        page < PUB MSG:{id}\r\nCid: {auth}\r\nUid: \r\n\r\nwelcome\r\n.\r\n
        page > PUB Auth\r\n\r\n.\r\n
        auth < PUB Auth\r\nCid: {id}\r\nUid: 42\r\n\r\n\r\n.\r\n
        ",
    )
    .await;
}

/// Section 5, row by row, for a trusted and for an untrusted connection. A refused command is not carried out.
#[tokio::test]
async fn the_commands() {
    dialogue(
        r"
        page > {page}
        page < MM OK
        page < {id}
        page > PUB t\r\n\r\n.\r\n
        page < PUB ERROR\r\n\r\nNot trusted PUB t\r\n.\r\n
        page > SUB t\r\n\r\n.\r\n
        page < PUB ERROR\r\n\r\nNot trusted: SUB t\r\n.\r\n
        page > REQ t\r\n\r\n.\r\n
        page < PUB ERROR\r\n\r\nNot trusted REQ t\r\n.\r\n
        page > RES t\r\nrid: 1\r\n\r\n.\r\n
        page < PUB ERROR\r\n\r\nNot trusted RES t\r\n.\r\n
        page > EPUB t\r\n\r\n.\r\n
        page < PUB ERROR\r\n\r\nNot trusted EPUB t\r\n.\r\n
        page > ESUB t\r\n\r\n.\r\n
        page < PUB ERROR\r\n\r\nNot trusted ESUB t\r\n.\r\n
        page > EREQ t\r\n\r\n.\r\n
        page < PUB ERROR\r\n\r\nNot trusted EREQ t\r\n.\r\n
        page > INT UID\r\nforcid: {id}\r\nsetuid: root\r\n\r\n.\r\n
        page > XYZ t\r\n\r\n.\r\n
        # A service enables: EPUB what pages may PUB and REQ, ESUB what they may SUB.
        one > {service}
        one < MM OK
        one < {one}
        one > EPUB t\r\n\r\n.\r\n
        one > ESUB t\r\n\r\n.\r\n
        one > REQ t\r\n\r\n.\r\n
        one < PUB ERROR\r\n\r\nNo responder for REQ t\r\n.\r\n
        page > SUB t\r\n\r\n.\r\n
        page > SUB t\r\n\r\n.\r\n
        page > PUB t\r\n\r\nown\r\n.\r\n
        page < PUB t\r\nCid: {id}\r\nUid: \r\n\r\nown\r\n.\r\n
        page > REQ t\r\n\r\n.\r\n
        page < PUB ERROR\r\n\r\nNo responder for REQ t\r\n.\r\n
        # UNS ends a subscription, which it did not.
        page > UNS t\r\n\r\n.\r\n
        page > PUB t\r\n\r\nunheard\r\n.\r\n
        # EREQ enables PUB and REQ of its target, too; each request goes to one responder.
        one > EREQ s\r\n\r\n.\r\n
        one > PUB s\r\n\r\nnobody\r\n.\r\n
        one > SUB done\r\n\r\n.\r\n
        one > PUB done\r\n\r\n.\r\n
        one < PUB done\r\nCid: {one}\r\nUid: \r\n\r\n\r\n.\r\n
        page > PUB s\r\n\r\nnobody\r\n.\r\n
        page > REQ s\r\n\r\n1\r\n.\r\n
        one < REQ s\r\nCid: {id}\r\nUid: \r\nRid: {r1}\r\n\r\n1\r\n.\r\n
        one > RES anything\r\nrid: {r1}\r\n\r\n2\r\n.\r\n
        page < RES s\r\nCid: {one}\r\nUid: \r\n\r\n2\r\n.\r\n
        # A number is used once; without one, a RES is ignored.
        one > RES s\r\nrid: {r1}\r\n\r\n2\r\n.\r\n
        one < PUB ERROR\r\n\r\nNo client for request ID  RES s\r\n.\r\n
        one > RES s\r\n\r\n2\r\n.\r\n
        one > RES s\r\nrid: x\r\n\r\n2\r\n.\r\n
        one > PUB done\r\n\r\n.\r\n
        one < PUB done\r\nCid: {one}\r\nUid: \r\n\r\n\r\n.\r\n
        ",
    )
    .await;
}
