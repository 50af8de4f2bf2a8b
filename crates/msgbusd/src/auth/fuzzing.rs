//! The fuzz target of the file of keys and its grants.

use std::{path::PathBuf, str};

use msgbus_core::TopicName;

use super::{Action, Grant, Hash, KeyFile, NewKey, Permission, Principal, secret::check_name};
use crate::fuzzing::common::is_a_line;

/// Read as a file of keys, as a grant and as the name of a key: what is printed is read back as the same,
/// and what is wrong is one line that never has a secret in it.
///
/// # Panics
/// When one of that is not so.
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

/// Written as TOML again, a file has the same keys with the same grants.
fn is_read_back(file: &KeyFile) {
    let anybody = &file.keys.anonymous;
    let allow = |principal: &Principal| {
        let grants = principal.grants.iter().map(|grant| toml_string(&grant.to_string()));
        format!("allow = [{}]\n", grants.collect::<Vec<_>>().join(", "))
    };
    let mut text = format!("[anonymous]\n{}", allow(anybody));
    for principal in file.keys.by_hash.values() {
        let (name, hash) = principal.key.as_ref().expect("who has a hash has a key");
        text.push_str(&format!("[keys.{name}]\nhash = \"{hash}\"\n{}", allow(principal)));
        let gives_as_much = anybody.grants.iter().all(|grant| principal.grants.contains(grant));
        assert!(gives_as_much, "{name} may do less than who has no key");
    }
    let back = read(&text).expect("it was just written");
    assert_eq!(back.keys.anonymous.grants, anybody.grants);
    assert_eq!(back.keys.by_hash.len(), file.keys.by_hash.len());
    for (hash, principal) in &file.keys.by_hash {
        let same = &back.keys.by_hash[hash];
        assert_eq!(same.key, principal.key);
        // Those of anybody are there twice now.
        let own = &same.grants[..principal.grants.len()];
        assert_eq!(own, principal.grants);
    }
}

/// A string of JSON, but for the one character that TOML would have escaped.
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
    for known in [Action::Publish, Action::Pull, Action::Subscribe, Action::Delete, Action::Inspect]
    {
        let need = Permission::EveryTopic(known);
        let of_this_action = action == "*" || need.to_string() == format!("{action}:**");
        assert_eq!(grant.gives(Permission::SomeTopic(known)), of_this_action);
        assert_eq!(grant.gives(need), of_this_action && pattern == "**");
        if let Ok(topic) = TopicName::new(pattern) {
            let need = Permission::Topic(known, &topic);
            assert_eq!(grant.gives(need), of_this_action);
            let wanted: Grant = need.to_string().parse().expect("what is missing is a grant");
            assert!(wanted.gives(need));
        }
    }
    // The file takes it as `msgbusd key new` writes it.
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

/// What stands in the place of a hash may be the secret itself.
fn no_hash(text: &str) {
    let lines = |hash: &str| format!("[keys.a]\nhash = {}\nallow = []\n", toml_string(hash));
    match (text.parse::<Hash>(), read(&lines(text))) {
        (Ok(hash), Ok(file)) => {
            assert!(file.keys.by_hash.contains_key(&hash));
            assert_eq!(hash.to_string(), text.to_ascii_lowercase());
        }
        (Ok(hash), Err(_)) => assert_eq!(hash, Hash::of("")),
        (Err(why), Err(error)) => assert_eq!(error, format!("keys.toml:2: keys.a: hash: {why}")),
        (Err(why), Ok(_)) => panic!("the file takes it as a hash, but {why}"),
    }
}
