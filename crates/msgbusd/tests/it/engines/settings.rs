//! The settings of engines: flags, variables and the file.

use std::{
    io::Write as _,
    thread,
    time::{Duration, Instant},
};

use msgbus_engine_testkit::server::{Kind, Program, Server};

use super::programs;
use crate::{
    binary::{Running, msgbusd},
    process::refuses,
};

pub(super) fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[test]
fn wrong_settings_of_engines_are_named_in_one_line() {
    for (args, mention) in [
        (&["--engine", "main"][..], "there is no [engines.main]"),
        (&["--engine", "bus:s3cret@localhost"], "write the name of an engine"),
        (&["--engine", "localhost:4222"], "or a URL, such as nats://HOST:PORT"),
        (&["--engine", "amqp://localhost"], "no engine for \"amqp\"; use nats://"),
        (
            &["--engine", "nats://127.0.0.1:4222", "--max-queue-size", "9999999999"],
            "max-queue-size",
        ),
        (&["--engine", "nats://"], "url: write nats://HOST:PORT"),
        (&["--engine", "nats://127.0.0.1:99999"], "url: write nats://HOST:PORT"),
        (&["--engine", "nats://bus:s3cret@localhost/x"], "url: the address of NATS has nothing"),
        (&["--engine", "redis://127.0.0.1,redis://127.0.0.2"], "url: Redis has one address"),
        (&["--engine", "redis://"], "write redis://HOST:PORT"),
    ] {
        refuses(&mut msgbusd(args), &["--engine: ", mention]);
    }
    let main = "[engines.main]\nurl = \"nats://127.0.0.1:4222\"\n";
    for (text, mention) in [
        (
            "[engines.main]\nuri = \"x\"\n",
            ":2: no such setting of an engine: \"uri\"; did you mean",
        ),
        ("[engines.main]\nttl = \"1h\"\n", ":1: engines.\"main\": url is missing"),
        ("[engines.none]\n", ":1: engines.\"none\": \"none\" is not a name"),
        (&format!("{main}password = \"secret\"\n"), ":3: password: use password-file"),
        (&format!("{main}replicas = 7\n"), ":3: replicas: must be between 1 and 5"),
        (
            &format!("{main}duplicate-window = \"2d\"\n"),
            ":3: duplicate-window: must be between 1s and 1d",
        ),
        (&format!("{main}prefix = \"a.b\"\n"), ":3: prefix: must be 1 to 64 of"),
        (
            &format!("{main}password-file = \"Cargo.toml\"\n"),
            "engines.main: a password needs a user",
        ),
        (
            &format!("{main}[topics.\"a/**\"]\nengine = \"main\"\nttl = \"1h\"\n"),
            ":5: ttl: topics in an engine have one for all of them: see [engines.main]",
        ),
        (
            &format!("engine = \"main\"\n[topics.\"a/b\"]\noverflow = \"reject\"\n{main}"),
            ":3: overflow: it has no effect on topics in an engine",
        ),
        (
            &format!("engine = \"main\"\noverflow = \"reject\"\n{main}"),
            ":2: overflow: all topics live",
        ),
        (
            &format!("engine = \"main\"\nmax-queue-bytes = \"1MiB\"\n{main}"),
            ":2: max-queue-bytes: all",
        ),
        (
            &format!("{main}user = \"u\"\n"),
            "engines.main: user needs password-file, or MSGBUSD_ENGINE_MAIN_PASSWORD",
        ),
        (
            &format!("{main}[topics.\"a/**\"]\nengine = \"main\"\ndurable = \"true\"\n"),
            ":5: durable: it has no effect on topics in an engine",
        ),
        (&format!("{main}sync = \"true\"\n"), "sync: NATS syncs as its own sync_interval says"),
        ("[topics.\"a/**\"]\nengine = \"main\"\n", ":2: engine: there is no [engines.main]"),
        (
            "[topics.\"a/**\"]\nengine = \"nats://bus:s3cret@host\"\n",
            ":2: engine: write the name of an engine",
        ),
        ("engine = nats://bus:s3cret@host\n", ":1: engine: "),
        (
            &format!("{main}user = \"u\"\npassword-file = \"/does/not/exist\"\n"),
            "engines.main: password-file: cannot read /does/not/exist",
        ),
    ] {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        refuses(&mut msgbusd(&["--config", path]), &[mention]);
        let output = msgbusd(&["--config", path]).output().unwrap();
        assert!(!String::from_utf8_lossy(&output.stderr).contains("s3cret"));
    }
    for arg in ["nats://bus:s3cret@host", "--engin=nats://bus:s3cret@host"] {
        let output = msgbusd(&[arg]).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("s3cret"));
    }
}

/// Repeats a request until the answer contains this.
pub(super) fn say_until(daemon: &Running, request: &str, expected: &str) -> String {
    let start = Instant::now();
    loop {
        let answer = daemon.say(request);
        if answer.contains(expected) {
            return answer;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{answer}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// They would be accepted silently, and deliver nothing.
#[test]
fn settings_that_follow_patterns_of_engines_are_warned_of() {
    let start = |more: &[&str]| {
        let engine = ["--bind", "127.0.0.1:0", "--engine", "nats://127.0.0.1:1"];
        Running::start(&mut msgbusd(&[&engine, more].concat())).opening.clone()
    };
    let broadcasts = start(&["--drs-broadcast", "all/**", "--drs-broadcast", "one"]);
    let warning =
        "--drs-broadcast all/** has no effect, because topics of all/** may live in an engine";
    assert!(broadcasts.contains(warning) && !broadcasts.contains("broadcast one"), "{broadcasts}");
    let copies = start(&["--middleman-super", "auditor"]);
    assert!(copies.contains("--middleman-super auditor has no effect, because"), "{copies}");
    assert!(copies.contains("--middleman-super has no effect without --middleman"), "{copies}");
    let file = file("[engines.main]\nurl = \"nats://127.0.0.1:1\"\n");
    let unused = ["--bind", "127.0.0.1:0", "--config", file.path().to_str().unwrap()];
    let unused = Running::start(&mut msgbusd(&unused)).opening.clone();
    assert!(unused.contains("[engines.main] is not used"), "{unused}");
}

/// The arguments of an engine that asks for a user and a password.
fn arguments(kind: Kind, password: &str) -> Vec<String> {
    let arguments = match kind {
        Kind::Nats => format!("--user bus --pass {password}"),
        Kind::Redis => format!("--user bus on >{password} ~* &* +@all --user default off"),
    };
    arguments.split(' ').map(str::to_owned).collect()
}

fn asking_for(program: &Program, password: &str) -> Server {
    let mut engine = Server::new(program);
    engine.arguments = arguments(program.kind, password);
    engine.run();
    engine
}

/// Some topics live in an engine that asks for a password, others in the server.
#[test]
fn topics_choose_their_engine_and_passwords_come_from_files_and_variables() {
    for program in programs() {
        let engine = asking_for(&program, "s3cret");
        let url = engine.url();
        let password = file("s3cret\n");
        let text = format!(
            "[engines.main]\nurl = \"{url}\"\nuser = \"bus\"\nprefix = \"shop\"\npassword-file = \"{}\"\n\
             [topics.\"orders/**\"]\nengine = \"main\"\n",
            password.path().display()
        );
        let config = file(&text);
        let path = config.path().to_str().unwrap();
        let daemon =
            Running::start(&mut msgbusd(&["-d", "--bind", "127.0.0.1:0", "--config", path]));
        say_until(&daemon, "GET /readyz", "200 OK");
        assert!(daemon.say("PUT /orders/a").contains("msgbus-durability: engine"));
        assert!(daemon.say("PUT /else").contains("msgbus-durability: memory"));
        assert!(daemon.say("GET /else/*?stream=sse&max=1").contains("400"));
        assert!(daemon.say("GET /orders/*?stream=sse").contains("501"));
        let listed = daemon.say("GET /");
        assert!(listed.contains("else\n") && listed.contains("orders/a\n"), "{listed}");
        daemon.signal("-TERM");
        let (status, log) = daemon.end();
        assert!(status.success(), "{log}");
        assert!(!log.contains("s3cret"), "{log}");

        let mut command = msgbusd(&["--bind", "127.0.0.1:0", "--engine", &url]);
        command.env("MSGBUSD_ENGINE_USER", "bus").env("MSGBUSD_ENGINE_PASSWORD", "s3cret");
        command.env("MSGBUSD_ENGINE_OTHER_TOKEN", "s3cret");
        let daemon = Running::start(&mut command);
        let notice = "MSGBUSD_ENGINE_OTHER_TOKEN belongs to no engine";
        assert!(daemon.opening.contains(notice), "{}", daemon.opening);
        say_until(&daemon, "GET /readyz", "200 OK");
        assert!(daemon.say("PUT /else").contains("msgbus-durability: engine"));

        let daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--engine", &url]));
        let refused = say_until(&daemon, "PUT /else", " 502 ");
        let why = "the engine refuses the credentials of this server";
        assert!(refused.contains(why), "{refused}");
        let ready = daemon.say("GET /readyz");
        assert!(ready.contains(&format!("default cannot be used: {why}")), "{ready}");
    }
}

/// Characters that a URL cannot have are percent-encoded, as for all clients of NATS and Redis.
#[test]
fn credentials_in_a_url_are_used() {
    for program in programs() {
        let engine = asking_for(&program, "a/b@c");
        let url = engine.url().replace("://", "://bus:a%2Fb%40c@");
        let mut command = msgbusd(&["-d", "--bind", "127.0.0.1:0", "--engine", &url]);
        let daemon = Running::start(&mut command);
        say_until(&daemon, "PUT /t", "msgbus-durability: engine");
        daemon.signal("-TERM");
        let (status, log) = daemon.end();
        assert!(status.success() && !log.contains("a%2Fb") && !log.contains("a/b@c"), "{log}");
    }
    for program in Kind::Nats.programs() {
        let mut engine = Server::new(&program);
        engine.arguments = vec!["--auth".to_owned(), "t0ken".to_owned()];
        engine.run();
        let url = engine.url().replace("://", "://t0ken@");
        let daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--engine", &url]));
        say_until(&daemon, "PUT /t", "msgbus-durability: engine");
    }
}

/// The address is in the log, and the password is not.
#[test]
fn the_log_says_why_nats_cannot_be_reached() {
    let url = "nats://bus:s3cret@127.0.0.1:1";
    let mut daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--engine", url]));
    let line = daemon.logs("cannot connect to NATS at 127.0.0.1:1: the connection is refused");
    assert!(!line.contains("s3cret"), "{line}");
}

/// A password may change while the server runs: its file is read for each connection.
#[test]
fn a_new_password_is_read_from_its_file() {
    for program in programs() {
        let mut engine = asking_for(&program, "old");
        let password = file("old\n");
        let config = file(&format!(
            "engine = \"main\"\n[engines.main]\nurl = \"{}\"\nuser = \"bus\"\npassword-file = \"{}\"\n",
            engine.url(),
            password.path().display()
        ));
        let path = config.path().to_str().unwrap();
        let daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--config", path]));
        say_until(&daemon, "PUT /t", "msgbus-durability: engine");
        engine.kill();
        engine.arguments = arguments(program.kind, "new");
        std::fs::write(password.path(), "new\n").unwrap();
        engine.run();
        say_until(&daemon, "PUT /t", "msgbus-durability: engine");
    }
}

/// With `sync`, Redis confirms that its disk has a message; versions that cannot do that say so.
#[test]
fn redis_confirms_that_its_disk_has_a_message() {
    for program in Kind::Redis.programs() {
        let version = std::process::Command::new(&*program).arg("--version").output().unwrap();
        let is_old = String::from_utf8_lossy(&version.stdout).contains("v=7.0.");
        let engine = Server::start(&program);
        let url = engine.url();
        let text = format!("engine = \"main\"\n[engines.main]\nurl = \"{url}\"\nsync = \"true\"\n");
        let config = file(&text);
        let path = config.path().to_str().unwrap();
        let daemon = Running::start(&mut msgbusd(&["--bind", "127.0.0.1:0", "--config", path]));
        let expected = if is_old { "it needs Redis 7.2" } else { "msgbus-durability: engine" };
        say_until(&daemon, "PUT /t", expected);
    }
}
