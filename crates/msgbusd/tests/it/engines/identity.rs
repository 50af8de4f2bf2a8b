//! The keys of users of NATS: `.creds` files and nkeys.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::TcpStream,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use msgbus_engine_testkit::server::{Kind, Program, Server};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::settings::{file, say_until};
use crate::{
    binary::{Running, msgbusd},
    process::refuses,
};

/// What an operator makes of these claims. `expires` is in seconds since 1970; 0 is never.
fn jwt(issuer: &KeyPair, subject: &KeyPair, expires: u64, nats: &Value) -> String {
    let claims = json!({
        "jti": "x", "iat": 1, "exp": expires, "name": "x",
        "iss": issuer.public_key(), "sub": subject.public_key(), "nats": nats,
    });
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let head = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let signed = format!("{}.{}", encode(&head), encode(&claims));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// As `nsc` writes it.
fn creds(account: &KeyPair, user: &KeyPair, expires: u64) -> String {
    let nats = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    format!(
        "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
         ************************* IMPORTANT *************************\n\
         NKEY Seed printed below can be used to sign and prove identity.\n\n\
         -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
        jwt(account, user, expires, &nats),
        user.seed().unwrap()
    )
}

/// The configuration of a server that trusts an operator, who vouches for this account.
fn operator_mode(account: &KeyPair) -> String {
    let (operator, system) = (KeyPair::new_operator(), KeyPair::new_account());
    let root = jwt(&operator, &operator, 0, &json!({ "type": "operator", "version": 2 }));
    let mut accounts = String::new();
    for (account, storage) in [(&system, 0), (account, -1)] {
        let limits = json!({
            "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1, "mem_storage": storage, "disk_storage": storage,
            "streams": storage, "consumer": storage,
        });
        let nats = json!({ "type": "account", "version": 2, "limits": limits });
        let jwt = jwt(&operator, account, 0, &nats);
        writeln!(accounts, "{}: {jwt}", account.public_key()).unwrap();
    }
    let system = system.public_key();
    format!(
        "operator: {root}\nsystem_account: {system}\nresolver: MEMORY\nresolver_preload {{\n{accounts}}}\n"
    )
}

/// A server with this configuration, which is removed with the file.
fn server(program: &Program, text: &str) -> (Server, NamedTempFile) {
    let config = file(text);
    let mut server = Server::new(program);
    server.arguments = vec!["-c".to_owned(), config.path().to_str().unwrap().to_owned()];
    server.run();
    (server, config)
}

/// The configuration of a daemon whose topics live in NATS, which knows it by this file.
fn config(url: &str, key: &str, path: &Path) -> String {
    let path = path.display();
    format!("engine = \"main\"\n[engines.main]\nurl = \"{url}\"\n{key} = \"{path}\"\n")
}

fn start(engine: &Server, key: &str, path: &Path) -> Running {
    let config = file(&config(&engine.url(), key, path));
    let path = config.path().to_str().unwrap();
    Running::start(&mut msgbusd(&["-d", "--bind", "127.0.0.1:0", "--config", path]))
}

/// Publishes and follows, also after a restart of the server, which asks for another signature.
fn serves(engine: &mut Server, daemon: Running, seed: &str) {
    say_until(&daemon, "PUT /t", "msgbus-durability: engine");
    let mut follower = TcpStream::connect(daemon.address).unwrap();
    follower.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    follower.write_all(b"GET /t?stream=sse HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut lines = BufReader::new(follower).lines();
    let mut hears = |text: &str| assert!(lines.any(|line| line.unwrap().contains(text)), "{text}");
    hears("200 OK");
    say_until(&daemon, "PUT /t", "msgbus-durability: engine");
    hears("data: {");
    engine.stop();
    engine.run();
    say_until(&daemon, "PUT /t", "msgbus-durability: engine");
    hears("data: {");
    daemon.signal("-TERM");
    let (status, log) = daemon.end();
    assert!(status.success() && !log.contains(&seed[..20]) && !log.contains("eyJ"), "{log}");
}

#[test]
fn an_nkey_is_used_from_its_file_and_from_a_variable() {
    for program in Kind::Nats.programs() {
        let user = KeyPair::new_user();
        let users = format!("authorization {{ users: [{{ nkey: {} }}] }}\n", user.public_key());
        let (mut engine, _config) = server(&program, &users);
        let seed = user.seed().unwrap();
        let at = file(&format!("{seed}\n"));
        let daemon = start(&engine, "nkey-file", at.path());
        serves(&mut engine, daemon, &seed);

        let mut command = msgbusd(&["-d", "--bind", "127.0.0.1:0", "--engine", &engine.url()]);
        let daemon = Running::start(command.env("MSGBUSD_ENGINE_NKEY", &seed));
        serves(&mut engine, daemon, &seed);

        let unknown = file(&KeyPair::new_user().seed().unwrap());
        let daemon = start(&engine, "nkey-file", unknown.path());
        say_until(&daemon, "PUT /t", "the engine refuses the credentials of this server");
    }
}

#[test]
fn a_creds_file_is_used() {
    for program in Kind::Nats.programs() {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let (mut engine, _config) = server(&program, &operator_mode(&account));
        let seed = user.seed().unwrap();
        // Some editors end lines in another way.
        let at = file(&creds(&account, &user, 0).replace('\n', "\r\n"));
        let daemon = start(&engine, "creds-file", at.path());
        serves(&mut engine, daemon, &seed);

        let mut command = msgbusd(&["-d", "--bind", "127.0.0.1:0", "--engine", &engine.url()]);
        command.env("MSGBUSD_ENGINE_CREDS", creds(&account, &user, 0));
        serves(&mut engine, Running::start(&mut command), &seed);

        let unknown = file(&creds(&KeyPair::new_account(), &user, 0));
        let daemon = start(&engine, "creds-file", unknown.path());
        say_until(&daemon, "PUT /t", "the engine refuses the credentials of this server");
    }
}

/// The server ends the connection when the JWT expires. The file is read again for each connection.
#[test]
fn a_creds_file_may_be_renewed() {
    const LIFE: Duration = Duration::from_secs(8);
    for program in Kind::Nats.programs() {
        let (account, user) = (KeyPair::new_account(), KeyPair::new_user());
        let (engine, _config) = server(&program, &operator_mode(&account));
        let expires = (SystemTime::now() + LIFE).duration_since(UNIX_EPOCH).unwrap().as_secs();
        let at = file(&creds(&account, &user, expires));
        let mut daemon = start(&engine, "creds-file", at.path());
        daemon.logs("connected to NATS");
        daemon.logs("the connection to NATS is lost");
        let path = at.path().display();
        daemon.logs(&format!("engines.main: creds-file: {path}: its JWT has expired"));
        say_until(&daemon, "GET /readyz", "refuses the credentials");
        // What is half written is not used.
        fs::write(at.path(), "-----BEGIN NATS USER JWT-----\n").unwrap();
        daemon.logs(&format!("creds-file: {path}: it has no JWT"));
        fs::write(at.path(), creds(&account, &user, 0)).unwrap();
        say_until(&daemon, "PUT /t", "msgbus-durability: engine");
    }
}

#[test]
fn wrong_keys_are_named_at_the_start() {
    let (account, user, other) = (KeyPair::new_account(), KeyPair::new_user(), KeyPair::new_user());
    let (seed, right) = (user.seed().unwrap(), creds(&account, &user, 0));
    let of_account = account.seed().unwrap();
    let damaged = seed.replace(&seed[20..22], if &seed[20..22] == "AA" { "BB" } else { "AA" });
    for (key, text, problem) in [
        ("creds-file", String::new(), "it has no JWT, which comes after the line -----BEGIN NATS"),
        ("creds-file", seed.clone(), "; a seed alone is for nkey-file"),
        ("creds-file", right.replace("NKEY SEED", "NKEY"), "it has no seed, which comes after"),
        ("creds-file", right.replace("eyJ", "eyK"), "its JWT is damaged"),
        ("creds-file", right.replace(&seed, &damaged), "its seed is damaged"),
        ("creds-file", right.replace(&seed, &of_account), "its seed begins with SA, and that of a"),
        ("creds-file", right.replace(&seed, &other.seed().unwrap()), "its JWT is for U"),
        ("nkey-file", String::new(), "it is empty"),
        ("nkey-file", right.clone(), "it is a .creds file, which is for creds-file"),
        ("nkey-file", of_account.clone(), "its seed begins with SA, and that of a user with SU"),
        ("nkey-file", user.public_key(), "it has a public key; the seed of a user begins with SU"),
        ("nkey-file", damaged.clone(), "its seed is damaged; a seed has 58 letters and digits"),
        ("nkey-file", seed[..50].to_owned(), "its seed is damaged"),
        ("nkey-file", "ä".repeat(29), "its seed is damaged"),
    ] {
        let at = file(&text);
        let config = file(&config("nats://127.0.0.1:1", key, at.path()));
        let mut command = msgbusd(&["--config", config.path().to_str().unwrap()]);
        let origin = format!("engines.main: {key}: {}: ", at.path().display());
        refuses(&mut command, &[&origin, problem]);
        let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
        for secret in [&seed, &of_account, &damaged, &other.seed().unwrap()] {
            assert!(!said.contains(&secret[2..10]), "{said}");
        }
        assert!(!said.contains("eyJ"), "{said}");
    }
    let (at, nats) = (file(&right), "nats://127.0.0.1:1");
    let also = |text: &str| config(nats, "creds-file", at.path()) + text;
    let one =
        "engines.main: use one of these: a user and a password, a token, a .creds file, an nkey";
    for (text, problem) in [
        (also("user = \"u\"\npassword-file = \"Cargo.toml\"\n"), one),
        (also("token-file = \"Cargo.toml\"\n"), one),
        (also("nkey-file = \"Cargo.toml\"\n"), one),
        (also("creds = \"x\"\n"), "no such setting of an engine: \"creds\""),
        (config(nats, "nkey-file", Path::new("/does/not/exist")), "cannot read /does/not/exist"),
        (config(nats, "creds-file", Path::new("/")), "creds-file: cannot read /: Is a directory"),
        (config("redis://127.0.0.1", "creds-file", at.path()), ": Redis has users and passwords"),
    ] {
        let config = file(&text);
        refuses(&mut msgbusd(&["--config", config.path().to_str().unwrap()]), &[problem]);
    }
    let mut command = msgbusd(&["--engine", nats]);
    refuses(command.env("MSGBUSD_ENGINE_NKEY", "x"), &["MSGBUSD_ENGINE_NKEY: its seed is damaged"]);
}
