//! Sections 1 to 6 of the facts as transcripts, byte by byte, on both transports. What differs from the old servers is in
//! docs/compatibility.md.

use super::{ALL, Over, daemon_with};
use crate::{
    support::HANDSHAKE,
    transcript::{Wire, of_documentation, play},
};

/// Plays a transcript on both transports.
async fn dialogue(text: &str) {
    let daemon = daemon_with(|config| config.drs.broadcast = vec!["all".parse().unwrap()]);
    for over in ALL {
        let connect = async |_: &str| {
            let mut connection = daemon.drs_raw(over).await;
            let is_websocket = over == Over::Websocket;
            if is_websocket {
                let head = format!("GET /socket?token=& HTTP/1.1\r\nHost: a\r\n{HANDSHAKE}\r\n");
                connection.write(head.as_bytes()).await;
                let head = connection.read_until(b"\r\n\r\n").await;
                assert!(head.starts_with(b"HTTP/1.1 101 "));
            }
            Wire { connection, is_websocket }
        };
        play(text, connect).await;
    }
}

#[tokio::test]
async fn the_dialogue_of_the_documentation() {
    dialogue(of_documentation("## drs")).await;
}

/// Sections 1 and 4.
#[tokio::test]
async fn the_fields_of_commands_and_answers() {
    dialogue(
        r#"
        server > {"key":"-KY1abc","action":"drs.serve","body":"math.add"}
        server < {"key":"-KY1abc","action":"drs.response"}\n
        peer > {"key":"-KY1abc","action":"math.add","body":{"a":1,"b":2}}\n
        server < {"key":"{k1}","action":"math.add","body":{"a":1,"b":2}}\n
        server > {"key":"{k1}","action":"drs.response","body":3}\n
        peer < {"key":"-KY1abc","action":"drs.response","body":3}\n
        # The older revisions send all fields; Elixir a version and an empty key. Unknown fields are ignored.
        peer > {"key":"0.8372","action":"math.add","body":null,"version":0,"kind":"x"}
        server < {"key":"{k2}","action":"math.add"}\n
        server > {"key":"{k2}","action":"drs.error","body":{"message":"no","kind":"error"}}
        peer < {"key":"0.8372","action":"drs.error","body":{"message":"no"}}\n
        # Numbers pass without loss, the version with its command.
        peer > {"version":7,"body":[1.10,12345678901234567890],"action":"math.add","key":"\u0041"}
        server < {"key":"{k3}","action":"math.add","body":[1.10,12345678901234567890],"version":7}\n
        server > {"key":"{k3}","action":"drs.exception","body":{"message":"boom"}}
        peer < {"key":"\u0041","action":"drs.exception","body":{"message":"boom"}}\n
        # Failures of the older revisions: a bare text, and nothing.
        peer > {"key":"k","action":"math.add"}
        server < {"key":"{k4}","action":"math.add"}\n
        server > {"key":"{k4}","action":"drs.error","body":"bare"}
        peer < {"key":"k","action":"drs.error","body":{"message":"bare"}}\n
        peer > {"key":"k","action":"math.add"}
        server < {"key":"{k5}","action":"math.add"}\n
        server > {"key":"{k5}","action":"drs.exception","body":null}
        peer < {"key":"k","action":"drs.exception","body":{"message":""}}\n
        peer > {"key":"-KY1abc","action":"nobody"}
        peer < {"key":"-KY1abc","action":"drs.error","body":{"message":"No handlers for nobody"}}\n
        server > {"key":"k","action":"drs.off","body":["math.add"]}
        server < {"key":"k","action":"drs.response"}\n
        "#,
    )
    .await;
}

/// Sections 2 and 3. Fires are not answered, which they were.
#[tokio::test]
async fn fires_calls_and_broadcasts() {
    dialogue(
        r#"
        peer > {"key":"1","action":"drs.subscribe","body":"news"}
        peer < {"key":"1","action":"drs.response"}\n
        other > {"key":"1","action":"drs.off","body":"nothing"}
        other < {"key":"1","action":"drs.response"}\n
        other > {"action":"news","body":{"n":1}}
        peer < {"action":"news","body":{"n":1}}\n
        # Node and TypeScript fire with a key, and ignore the answer.
        other > {"key":"k","action":"news","body":2}
        other < {"key":"k","action":"drs.response"}\n
        peer < {"action":"news","body":2}\n
        # A broadcast reaches every peer, also the one that sends it.
        other > {"action":"all","body":"x"}
        other < {"action":"all","body":"x"}\n
        peer < {"action":"all","body":"x"}\n
        # Reserved actions complete calls, and are never answered.
        other > {"key":"unknown","action":"drs.response","body":1}
        other > {"key":"unknown","action":"drs.error","body":{"message":"x"}}
        other > {"action":"drs.exception"}
        # What TypeScript answers: the action of the call.
        peer > {"key":"2","action":"drs.serve","body":["s"]}
        peer < {"key":"2","action":"drs.response"}\n
        other > {"key":"c","action":"s"}
        peer < {"key":"{k1}","action":"s"}\n
        peer > {"key":"{k1}","action":"s","body":true}
        other < {"key":"c","action":"drs.response","body":true}\n
        # The answers of one connection are no answers to calls of another.
        other > {"key":"c","action":"s"}
        peer < {"key":"{k2}","action":"s"}\n
        other > {"key":"{k2}","action":"drs.error"}
        peer > {"key":"{k2}","action":"drs.response"}
        other < {"key":"c","action":"drs.response"}\n
        peer > {"key":"3","action":"drs.off","body":["s","news"]}
        peer < {"key":"3","action":"drs.response"}\n
        "#,
    )
    .await;
}

/// Section 5.
#[tokio::test]
async fn the_plugins() {
    dialogue(
        r#"
        peer > {"key":"k","action":"drs.ping","body":{"ignored":1}}
        peer < {"key":"k","action":"drs.response","body":{time}}\n
        peer > {"key":"k","action":"drs.kaboom"}
        peer < {"key":"k","action":"drs.exception","body":{"message":"💥"}}\n
        peer > {"key":"k","action":"auth.upgrade","body":{"token":"x"}}
        peer < {"key":"k","action":"drs.error","body":{"message":"Token must be a string"}}\n
        peer > {"key":"k","action":"auth.upgrade","body":"any, without keys"}
        peer < {"key":"k","action":"drs.response","body":"anonymous"}\n
        peer > {"key":"k","action":"drs.unknown"}
        peer < {"key":"k","action":"drs.error","body":{"message":"No handlers for drs.unknown"}}\n
        "#,
    )
    .await;
}

/// Section 6: values follow each other, with or without white space between them, in any frames. What is malformed is said,
/// and then the connection ends, which it did silently.
#[tokio::test]
async fn the_framing() {
    dialogue(
        r#"
        peer > {"key":"1","action":"x"}{"key":"2","action":"x"}\n \r\n{"key":"3","action":"x"}\n
        peer < {"key":"1","action":"drs.error","body":{"message":"No handlers for x"}}\n
        peer < {"key":"2","action":"drs.error","body":{"message":"No handlers for x"}}\n
        peer < {"key":"3","action":"drs.error","body":{"message":"No handlers for x"}}\n
        peer > {"key":"4","ac
        peer > tion":"x"}
        peer < {"key":"4","action":"drs.error","body":{"message":"No handlers for x"}}\n
        peer > [1]
        peer < {"action":"drs.exception","body":{"message":"Malformed command: expected a JSON object"}}\n
        "#,
    )
    .await;
}
