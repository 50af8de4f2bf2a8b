//! Defaults from the environment and from `~/.msgbus.yaml`, the ancestor's file: lines of
//! `key: value` with the keys `uri`, `ca-file` and `debug`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use msgbus_client::Key;

use crate::failure::Failure;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Defaults {
    /// The server, and where it was named.
    pub(crate) uri: Option<(String, String)>,
    /// Whom to trust, and where that was said.
    pub(crate) ca_file: Option<(PathBuf, String)>,
    pub(crate) debug: bool,
}

/// Reads the file, which must be there if it was asked for, and the environment, which wins.
pub(crate) fn read(file: Option<PathBuf>) -> Result<Defaults, Failure> {
    let asked_for = file.is_some();
    let path = file.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".msgbus.yaml")));
    let mut defaults = match path {
        Some(path) => match fs::read_to_string(&path) {
            Ok(text) => parse(&path, &text)?,
            // Nobody said that there is one, or that it is for us.
            Err(_) if !asked_for => Defaults::default(),
            Err(error) => {
                return Err(Failure::usage(format!("cannot read {}: {error}", path.display())));
            }
        },
        None => Defaults::default(),
    };
    if let Some(uri) = env::var_os("MSGBUS_URI").filter(|uri| !uri.is_empty()) {
        let uri = uri.into_string().map_err(|_| Failure::usage("MSGBUS_URI is not UTF-8"))?;
        defaults.uri = Some((uri, "MSGBUS_URI".to_owned()));
    }
    if let Some(path) = env::var_os("MSGBUS_CA_FILE").filter(|path| !path.is_empty()) {
        defaults.ca_file = Some((path.into(), "MSGBUS_CA_FILE".to_owned()));
    }
    if let Some(debug) = env::var_os("MSGBUS_DEBUG") {
        defaults.debug = debug == "1" || debug == "true";
    }
    Ok(defaults)
}

/// The key that the environment names.
pub(crate) fn key() -> Result<Option<Key>, Failure> {
    let Some(text) = env::var_os("MSGBUS_KEY").filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let key = text.to_str().unwrap_or_default().parse();
    key.map(Some).map_err(|error| Failure::usage(format!("MSGBUS_KEY: {error}")))
}

fn parse(path: &Path, text: &str) -> Result<Defaults, Failure> {
    let mut defaults = Defaults::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') || line == "---" {
            continue;
        }
        let origin = format!("{}:{}", path.display(), number + 1);
        let (key, value) = line
            .split_once(':')
            .ok_or_else(|| Failure::usage(format!("{origin}: write it as key: value")))?;
        let value = value.trim().trim_matches(['"', '\'']).to_owned();
        match key.trim() {
            "uri" => defaults.uri = Some((value, origin)),
            "ca-file" => defaults.ca_file = Some((value.into(), origin)),
            "debug" => defaults.debug = value == "true",
            key => {
                return Err(Failure::usage(format!(
                    "{origin}: no such setting: {key:?}; there are uri, ca-file and debug"
                )));
            }
        }
    }
    Ok(defaults)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ancestors_file_is_read() {
        let path = Path::new("f");
        let text = "---\n# a comment\nuri: \"http://bus:8000\" # there\n\ndebug: true\n\
            ca-file: /etc/ca.pem\n";
        let defaults = parse(path, text).unwrap();
        assert_eq!(defaults.uri, Some(("http://bus:8000".to_owned(), "f:3".to_owned())));
        assert_eq!(defaults.ca_file, Some(("/etc/ca.pem".into(), "f:6".to_owned())));
        assert!(defaults.debug);

        for (text, mention) in [("uri\n", "f:1: write it"), ("\nurl: x\n", "f:2: no such setting")]
        {
            assert!(parse(path, text).unwrap_err().to_string().starts_with(mention));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_in_the_file_it_is_read_or_named_in_one_line(
            lines in prop::collection::vec("(uri|debug|[a-z]{0,3})(: ?|)[^\n]{0,9}( #.{0,3})?", 0..4)
        ) {
            match parse(Path::new("f"), &lines.join("\n")) {
                Ok(defaults) => {
                    let origin = defaults.uri.map(|(_, origin)| origin);
                    prop_assert!(origin.is_none_or(|origin| origin.starts_with("f:")));
                }
                Err(error) => {
                    let text = error.to_string();
                    prop_assert!(text.starts_with("f:"), "{}", text);
                    prop_assert!(!text.contains(char::is_control), "{:?}", text);
                }
            }
        }
    }
}
