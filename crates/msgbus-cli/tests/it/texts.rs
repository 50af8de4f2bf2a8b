//! Error texts for likely mistakes on the command line, compared word for word.

use crate::support::{Daemon, msgbus, run};

/// The arguments, and the line on standard error without the name of the program.
const WRONG_USAGE: [(&[&str], &str); 73] = [
    // Missing arguments.
    (&[], "no command given; see msgbus --help"),
    (&["pub"], "no topic given; usage: msgbus pub TOPIC [MESSAGE]"),
    (&["sub", "--count", "1"], "no topic given; usage: msgbus sub TOPIC... [COMMAND [ARG...]]"),
    (&["rm"], "no topic given; usage: msgbus rm TOPIC"),
    (&["bench"], "choose a benchmark: pub, sub, pull, fanout, idle, latency or request"),
    (
        &["bench", "put"],
        "no benchmark \"put\"; choose one of pub, sub, pull, fanout, idle, latency, request",
    ),
    (&["completion"], "which shell: bash, zsh or fish?"),
    (&["completion", "tcsh"], "the shells are bash, zsh and fish"),
    // Unknown commands.
    (&["list"], "no such command: \"list\"; did you mean topics?"),
    (&["delete", "t"], "no such command: \"delete\"; did you mean rm?"),
    (&["send", "t", "x"], "no such command: \"send\"; did you mean pub?"),
    (&["status"], "no such command: \"status\"; did you mean topics?"),
    (&["pul", "t"], "no such command: \"pul\"; did you mean pull?"),
    (&["subscribe"], "no such command: \"subscribe\"; did you mean sub?"),
    (&["publish"], "no such command: \"publish\"; did you mean pub?"),
    (&["frobnicate"], "no such command: \"frobnicate\"; see msgbus --help"),
    // Unexpected arguments.
    (&["pull", "a", "b"], "unexpected argument \"b\"; pull takes one topic"),
    (&["topics", "a", "b"], "unexpected argument \"b\"; topics takes one prefix"),
    (&["rm", "a", "b"], "unexpected argument \"b\"; rm takes one topic"),
    (&["ping", "a"], "unexpected argument \"a\"; ping takes no arguments"),
    (
        &["pub", "t", "two", "words"],
        "unexpected argument \"words\"; put a message with spaces in quotes",
    ),
    // Unknown options, and options of another command.
    (&["sub", "hello", "--tail", "5"], "no such option: --tail; see msgbus tail -n 5 hello"),
    (&["pub", "hello", "-m", "hi"], "no option -m: write msgbus pub hello \"hi\""),
    (&["pub", "hello", "--message=hi"], "no option --message: write msgbus pub hello \"hi\""),
    (&["pub", "-m", "hi", "hello"], "no option -m: write msgbus pub TOPIC \"hi\""),
    (&["pub", "hello", "--file", "x.json"], "no option --file: write msgbus pub hello < x.json"),
    (
        &["pub", "hello", "-f", "x.json"],
        "-f is not an option of pub; write msgbus pub TOPIC < FILE",
    ),
    (&["pub", "t", "-5"], "no such option: -5; use -- before a message that starts with a dash"),
    (&["sub", "-t", "hello"], "-t is not an option of sub; give the topic as a plain argument"),
    (
        &["pull", "--topic", "hello"],
        "--topic is not an option of pull; give the topic as a plain argument",
    ),
    (&["pull", "hello", "--json"], "--json is not an option of pull; use -o json"),
    (&["sub", "hello", "--raw"], "--raw is not an option of sub; use -o raw"),
    (&["pull", "t", "--lines"], "--lines is not an option of pull; see msgbus pull --help"),
    (&["bench", "pub", "--subs", "1"], "--subs is not an option of bench pub"),
    (&["-s", "http://a"], "no such option: -s; did you mean --uri?"),
    (&["pub", "t", "x", "--server", "a"], "no such option: --server; did you mean --uri?"),
    (&["--foo"], "no such option: --foo; see --help"),
    (&["pull", "t", "--cont", "2"], "no such option: --cont; did you mean --count?"),
    (&["pull", "t", "-x"], "no such option: -x; see --help"),
    // Invalid values.
    (&["pull", "t", "-n", "0"], "--count must be at least 1"),
    (&["pull", "t", "--max=many"], "--max: not a whole number: \"many\""),
    (&["sub", "t", "--cursor", "--debug", "--count"], "--count needs a value"),
    (&["pull", "t", "-n", "1", "-n", "2"], "--count is given more than once"),
    (&["pull", "t", "--fail-empty=yes"], "--fail-empty takes no value"),
    (&["pull", "t", "-o", "xml"], "--output must be json, raw or pretty, not \"xml\""),
    (&["sub", "t", "--color", "red"], "--color must be auto, always or never, not \"red\""),
    (&["pub", "t", "x", "-t", "text"], "--content-type: not a media type: \"text\""),
    (
        &["pub", "t", "x", "--content-encoding", "ü"],
        "--content-encoding: not a content coding: \"ü\"",
    ),
    (&["pub", "t", "x", "--lines"], "--lines and --split read standard input; omit the message"),
    (
        &["pub", "--from-dump", "t"],
        "unexpected argument \"t\"; --from-dump reads topics and messages from standard input",
    ),
    (
        &["pub", "--from-dump", "--split"],
        "--from-dump does not go with --split: each line is a message with its own ttl and headers; \
         omit --split",
    ),
    (
        &["pub", "--from-dump", "-H", "a: b", "--header=c: d"],
        "--from-dump does not go with --header: each line is a message with its own ttl and headers; \
         omit --header",
    ),
    (
        &["pub", "--ttl=1s", "--from-dump"],
        "--from-dump does not go with --ttl: each line is a message with its own ttl and headers; \
         omit --ttl",
    ),
    (
        &["sub", "t", "-o", "pretty", "cat"],
        "a command receives json or raw; pretty is for terminals only",
    ),
    (&["sub", "t", "--all", "--new"], "give one of --since, --all and --new"),
    (&["pub", "t", "x", "--key", "a", "--key-file", "b"], "give one of --key and --key-file"),
    // Invalid topics.
    (
        &["sub", "orders/#"],
        "bad topic \"orders/#\": write orders/**: \"*\" stands for one segment, and \"**\" at the end for \
         all that follow",
    ),
    (
        &["tail", "orders/>/+"],
        "bad topic \"orders/>/+\": write orders/*/*: \"*\" stands for one segment, and \"**\" at the end \
         for all that follow",
    ),
    (
        &["sub", "a", "orders/"],
        "bad topic \"orders/\": it ends with a slash; write orders for the topic, orders/* or orders/** \
         for those below it",
    ),
    (
        &["sub", "orders*"],
        "bad topic \"orders*\": \"*\" stands for a whole segment, as in logs/*, not for a part of one",
    ),
    (&["sub", "**/a"], "bad topic \"**/a\": \"**\" must be the last segment of a pattern"),
    (
        &["sub", "a", "b", "--since", "5"],
        "--since: a position with an id is for one topic; use all, new, 10m or a time",
    ),
    (&["pub", "", "x"], "bad topic \"\": it is empty; is the variable set?"),
    (&["sub", "/"], "bad topic \"/\": it is empty; is the variable set?"),
    (&["sub", "t", ""], "the command is empty; is the variable set?"),
    // Invalid servers.
    (
        &["topics", "-u", "http://127.0.0.1:99999"],
        "--uri: port 99999 is out of range: a port is 1 to 65535",
    ),
    (
        &["topics", "-u", "gopher://a"],
        "--uri: cannot speak \"gopher\": use http://host:port, https://host or unix:/path",
    ),
    (&["topics", "-u", "@prod"], "--uri: no server \"prod\" in ~/.msgbus.yaml; it names none"),
    (
        &["topics", "-u", "a b"],
        "--uri: not a server's URI: \"a b\"; use http://host:port, https://host or unix:/path",
    ),
    (
        &["topics", "--key", "a b"],
        "--key: not a key; a key has no spaces or control characters, as printed by msgbusd key new",
    ),
    (
        &["topics", "--config", "/absent"],
        "cannot read /absent: No such file or directory (os error 2)",
    ),
    (
        &["topics", "--key-file", "/absent"],
        "--key-file: cannot read /absent: No such file or directory (os error 2)",
    ),
    (&["pull", "t", "--key="], "--key is empty; is the variable set?"),
];

#[tokio::test]
async fn wrong_usage_is_reported_word_for_word_and_exits_with_2() {
    for (args, text) in WRONG_USAGE {
        let said = run(msgbus(args)).await;
        assert_eq!(said.err, format!("msgbus: {text}\n"), "{args:?}");
        assert_eq!((said.code, &said.out[..]), (Some(2), ""), "{args:?}");
    }
}

/// An empty value usually comes from an unset variable in a script.
#[tokio::test]
async fn an_empty_value_is_called_empty_in_every_option_and_variable() {
    for (command, option) in [
        ("sub", "--since"),
        ("sub", "--count"),
        ("sub", "-n"),
        ("sub", "--timeout"),
        ("sub", "--cursor"),
        ("sub", "--output"),
        ("sub", "--color"),
        ("pub", "--ttl"),
        ("pub", "--content-type"),
        ("pub", "--content-encoding"),
        ("pull", "--wait"),
        ("pull", "--max"),
        ("topics", "--uri"),
        ("topics", "--config"),
        ("topics", "--key"),
        ("topics", "--key-file"),
        ("topics", "--ca-file"),
        ("bench", "--rate"),
    ] {
        let said = run(msgbus(&[command, "t", option, ""])).await;
        said.fails(2, &format!("msgbus: {option} is empty; is the variable set?\n"));
    }
    for variable in
        ["MSGBUS_URI", "MSGBUS_KEY", "MSGBUS_KEY_FILE", "MSGBUS_CA_FILE", "MSGBUS_DEBUG"]
    {
        let mut command = msgbus(&["topics"]);
        command.env(variable, "");
        let said = format!("msgbus: {variable} is empty; unset it, or give it a value\n");
        run(command).await.fails(2, &said);
    }
}

/// A topic that is probably a mistake is used, with a note.
#[tokio::test]
async fn a_topic_that_looks_like_a_mistake_is_noted() {
    let daemon = Daemon::start();
    let wildcard = |topic| format!("msgbus: no wildcards here: this is a topic named {topic:?}\n");
    for (topic, said) in [
        ("orders/#", wildcard("orders/#")),
        ("orders/+", wildcard("orders/+")),
        ("orders/>/x", wildcard("orders/>/x")),
        ("a,b", "msgbus: no lists here: this is a topic named \"a,b\"\n".to_owned()),
        ("orders/", "msgbus: using orders; a trailing slash means nothing\n".to_owned()),
        ("c#/a+b", String::new()),
    ] {
        let uri = daemon.uri();
        let args = ["pull", topic, "-u", &uri];
        assert_eq!(run(msgbus(&args)).await.err, said);
        run(msgbus(&[&args[..], &["-q"]].concat())).await.is_silent();
    }
    let said = run(msgbus(&["sub", "a,b", "--poll", "-u", &daemon.uri()])).await.err;
    let list = "no lists here: this is a topic named \"a,b\"; give several arguments";
    assert_eq!(said, format!("msgbus: {list}\n"));
}

/// `MSGBUS_PORT` is not one: container platforms set it.
#[tokio::test]
async fn a_misspelt_variable_is_noted() {
    let daemon = Daemon::start();
    for (variable, meant) in [
        ("MSGBUS_URL", "MSGBUS_URI"),
        ("MSGBUS_KEYFILE", "MSGBUS_KEY_FILE"),
        ("MSGBUS_CAFILE", "MSGBUS_CA_FILE"),
    ] {
        let uri = daemon.uri();
        let mut command = msgbus(&["pull", "t", "-u", &uri]);
        command.env(variable, "x").env("MSGBUS_PORT", "tcp://10.0.0.1:8000");
        let said = run(command).await;
        assert_eq!(said.err, format!("msgbus: {variable} is not read; did you mean {meant}?\n"));
        assert_eq!(said.code, Some(0));
    }
}
