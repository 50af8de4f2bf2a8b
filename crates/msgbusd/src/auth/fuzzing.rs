//! The fuzz target for the key file and grants.

use std::{path::PathBuf, str};

use msgbus_core::TopicName;

use super::{Action, Grant, Hash, KeyFile, NewKey, Permission, Principal, secret::check_name};
use crate::fuzzing::common::is_a_line;

/// Parses `data` as a key file, as a grant and as the name of a key. Printed values parse to the same value, and
/// an error is one line without a secret.
///
/// # Panics
/// When a property does not hold.
pub fn keys(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match read(text) {
        Ok(file) => is_read_back(&file),
        Err(error) => {
            assert!(error.starts_with("keys.toml:"), "it names file and line: {error}");
            is_a_line(&error, 300 + 10 * text.len());
        }
    }
    grant(text);
    name(text);
    no_hash(text);
}

pub(crate) fn read(text: &str) -> Result<KeyFile, String> {
    KeyFile::parse(PathBuf::from("keys.toml"), text).map_err(|error| error.to_string())
}

pub(crate) fn hash(secret: &str) -> String {
    Hash::of(secret).to_string()
}

/// Checks that a file written as TOML again has the same keys with the same grants.
fn is_read_back(file: &KeyFile) {
    let anonymous = &file.keys.anonymous;
    let allow = |principal: &Principal| {
        let grants = principal.grants.iter().map(|grant| toml_string(&grant.to_string()));
        format!("allow = [{}]\n", grants.collect::<Vec<_>>().join(", "))
    };
    let mut text = format!("[anonymous]\n{}", allow(anonymous));
    for principal in file.keys.by_hash.values() {
        let (name, hash) = principal.key.as_ref().expect("a principal with a hash has a key");
        text.push_str(&format!("[keys.{name}]\nhash = \"{hash}\"\n{}", allow(principal)));
        let includes_anonymous =
            anonymous.grants.iter().all(|grant| principal.grants.contains(grant));
        assert!(includes_anonymous, "{name} may do less than a client without a key");
    }
    let back = read(&text).expect("it was just written");
    assert_eq!(back.keys.anonymous.grants, anonymous.grants);
    assert_eq!(back.keys.by_hash.len(), file.keys.by_hash.len());
    for (hash, principal) in &file.keys.by_hash {
        let same = &back.keys.by_hash[hash];
        assert_eq!(same.key, principal.key);
        // The grants of [anonymous] were appended a second time.
        let own = &same.grants[..principal.grants.len()];
        assert_eq!(own, principal.grants);
    }
}

/// A TOML string: like JSON, but TOML escapes one more character.
fn toml_string(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

fn grant(text: &str) {
    let grant = match text.parse::<Grant>() {
        Ok(grant) => grant,
        Err(error) => return is_a_line(&error, 300 + 10 * text.len()),
    };
    assert_eq!(grant.to_string(), text);
    let (action, pattern) = text.split_once(':').expect("a grant has a colon");
    for known in Action::ALL {
        let permission = Permission::EveryTopic(known);
        let covers =
            |own: Action| Permission::EveryTopic(own).to_string() == format!("{action}:**");
        let is_covered = || Action::ALL.into_iter().any(|own| covers(own) && own.covers(known));
        let of_this_action = action == "*" || is_covered();
        assert_eq!(grant.allows(Permission::SomeTopic(known)), of_this_action);
        assert_eq!(grant.allows(permission), of_this_action && pattern == "**");
        if let Ok(topic) = TopicName::new(pattern) {
            let permission = Permission::Topic(known, &topic);
            assert_eq!(grant.allows(permission), of_this_action);
            let wanted: Grant = permission.to_string().parse().expect("what is missing is a grant");
            assert!(wanted.allows(permission));
        }
    }
    // The key file accepts the lines that `msgbusd key new` prints.
    let key = NewKey::make("a", std::slice::from_ref(&grant)).expect("there is randomness");
    let file = read(&key.lines).expect("it was made for the file");
    assert_eq!(file.keys.by_hash[&Hash::of(&key.secret)].grants, [grant]);
    assert!(!format!("{key:?} {file:?}").contains(&key.secret));
}

fn name(text: &str) {
    if check_name(text).is_err() {
        return;
    }
    let lines = format!("[keys.{text}]\nhash = \"{}\"\nallow = []\n", Hash::of("x"));
    let file = read(&lines).expect("a name that can stand in the file");
    assert_eq!(file.keys.by_hash[&Hash::of("x")].key_name(), Some(text));
}

/// Checks that an invalid hash, which may be the secret itself, is not quoted in the error.
fn no_hash(text: &str) {
    let lines = |hash: &str| format!("[keys.a]\nhash = {}\nallow = []\n", toml_string(hash));
    match (text.parse::<Hash>(), read(&lines(text))) {
        (Ok(hash), Ok(file)) => {
            assert!(file.keys.by_hash.contains_key(&hash));
            assert_eq!(hash.to_string(), text.to_ascii_lowercase());
        }
        (Ok(hash), Err(_)) => assert_eq!(hash, Hash::of("")),
        (Err(why), Err(error)) => assert_eq!(error, format!("keys.toml:2: keys.a: hash: {why}")),
        (Err(why), Ok(_)) => panic!("the file accepts it as a hash, but {why}"),
    }
}
