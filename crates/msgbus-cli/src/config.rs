//! Defaults from the environment and from `~/.msgbus.yaml`. The file contains lines of `key: value` and named
//! servers with indented lines, a small subset of YAML.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::{failure::Failure, output::note};

/// A value and its origin, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) value: String,
    pub(crate) origin: String,
}

impl Given {
    pub(crate) fn new(value: impl Into<String>, origin: impl Into<String>) -> Self {
        Self { value: value.into(), origin: origin.into() }
    }

    /// The value as a path; `~/` is the home directory.
    pub(crate) fn path(&self) -> PathBuf {
        match (self.value.strip_prefix("~/"), env::var_os("HOME")) {
            (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
            _ => PathBuf::from(&self.value),
        }
    }
}

/// The settings of a server in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) uri: Option<Given>,
    /// Sent to this server only.
    pub(crate) key: Option<Given>,
    pub(crate) key_file: Option<Given>,
    pub(crate) ca_file: Option<Given>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct File {
    path: PathBuf,
    /// The settings that are not below a server name.
    pub(crate) default: Server,
    named: BTreeMap<String, Server>,
    pub(crate) debug: bool,
}

/// Reads the file. It must exist if `--config` names it.
pub(crate) fn read(file: Option<PathBuf>, quiet: bool) -> Result<File, Failure> {
    let asked_for = file.is_some();
    let Some(path) =
        file.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".msgbus.yaml")))
    else {
        return Ok(File::default());
    };
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        // The default file is optional.
        Err(_) if !asked_for => return Ok(File::default()),
        Err(error) => {
            return Err(Failure::usage(format!("cannot read {}: {error}", path.display())));
        }
    };
    let file = parse(&path, &text)?;
    let has_key = file.named.values().chain([&file.default]).any(|server| server.key.is_some());
    let is_open = || fs::metadata(&path).is_ok_and(|file| file.permissions().mode() & 0o044 != 0);
    if !quiet && has_key && is_open() {
        let name = path.display();
        note(&format!("other users can read the key in {name}; run chmod 600 {name}"));
    }
    Ok(file)
}

impl File {
    /// The server of this name.
    pub(crate) fn server(&self, name: &str, origin: &str) -> Result<&Server, Failure> {
        self.named.get(name).ok_or_else(|| {
            let names: Vec<String> =
                self.named.keys().map(|name| name.escape_debug().to_string()).collect();
            let there = match &names[..] {
                [] => "it names none".to_owned(),
                names => format!("it names {}", names.join(", ")),
            };
            let file = match self.path.to_str() {
                None | Some("") => "~/.msgbus.yaml".to_owned(),
                Some(path) => path.to_owned(),
            };
            Failure::usage(format!("{origin}: no server {name:?} in {file}; {there}"))
        })
    }
}

fn parse(path: &Path, text: &str) -> Result<File, Failure> {
    let file = File { path: path.to_owned(), ..File::default() };
    let mut parser = Parser { file, lines: BTreeMap::new(), section: None };
    // Some editors write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (number, line) in (1..).zip(text.lines()) {
        let origin = format!("{}:{number}", path.display());
        parser
            .line(number, line, &origin)
            .map_err(|problem| Failure::usage(format!("{origin}: {problem}")))?;
    }
    Ok(parser.file)
}

struct Parser {
    file: File,
    /// The line of the first occurrence of each key of each server.
    lines: BTreeMap<(Option<String>, String), usize>,
    /// The server that indented lines belong to.
    section: Option<String>,
}

impl Parser {
    fn line(&mut self, number: usize, line: &str, origin: &str) -> Result<(), String> {
        let is_indented = line.starts_with([' ', '\t']);
        let line = line.split(" #").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with('#') || line == "---" {
            return Ok(());
        }
        let (key, value) = line.split_once(':').ok_or("write it as key: value")?;
        let (key, value) = (key.trim(), value.trim().trim_matches(['"', '\'']));
        if !is_indented {
            self.section = None;
        } else if self.section.is_none() {
            return Err("it is indented, but no server name is above it".to_owned());
        }
        if let Some(first) = self.lines.insert((self.section.clone(), key.to_owned()), number) {
            let key = key.escape_debug();
            return Err(format!("{key} is given twice; the first is in line {first}"));
        }
        let is_setting = matches!(key, "uri" | "key" | "key-file" | "ca-file" | "debug");
        if value.is_empty() && !is_setting && !is_indented {
            self.section = Some(key.to_owned());
            self.file.named.insert(key.to_owned(), Server::default());
            return Ok(());
        }
        if value.is_empty() {
            return Err(format!("{} is empty", key.escape_debug()));
        }
        self.set(key, Given::new(value, origin))
    }

    fn set(&mut self, key: &str, given: Given) -> Result<(), String> {
        let server = match &self.section {
            Some(name) => self.file.named.entry(name.clone()).or_default(),
            None => &mut self.file.default,
        };
        match (key, &self.section) {
            ("uri", _) => server.uri = Some(given),
            ("key", _) => server.key = Some(given),
            ("key-file", _) => server.key_file = Some(given),
            ("ca-file", _) => server.ca_file = Some(given),
            ("debug", None) => {
                self.file.debug = match &*given.value {
                    "true" => true,
                    "false" => false,
                    other => return Err(format!("debug must be true or false, not {other:?}")),
                }
            }
            (_, None) => {
                return Err(format!(
                    "no such setting: {key:?}; there are uri, key, key-file, ca-file and debug, \
                     and servers by name"
                ));
            }
            (_, Some(name)) => {
                let name = name.escape_debug();
                return Err(format!(
                    "no such setting of {name}: {key:?}; there are uri, key, key-file and ca-file"
                ));
            }
        }
        Ok(())
    }
}

const VARIABLES: [&str; 5] = ["URI", "KEY", "KEY_FILE", "CA_FILE", "DEBUG"];
const PREFIX: &str = "MSGBUS_";

/// The value of an environment variable.
pub(crate) fn variable(name: &str) -> Result<Option<Given>, Failure> {
    let Some(value) = env::var_os(name) else { return Ok(None) };
    if value.is_empty() {
        return Err(Failure::usage(format!("{name} is empty; unset it, or give it a value")));
    }
    let value = value.into_string().map_err(|_| Failure::usage(format!("{name} is not UTF-8")))?;
    Ok(Some(Given::new(value, name)))
}

/// Warns about variables that are not read but look like misspelt ones.
pub(crate) fn warn_of_other_variables() {
    for (name, _) in env::vars_os() {
        if let Some((name, meant)) = misspelt(&name) {
            note(&format!("{name} is not read; did you mean {PREFIX}{meant}?"));
        }
    }
}

fn misspelt(name: &OsString) -> Option<(&str, &'static str)> {
    let name = name.to_str()?;
    let rest = name.strip_prefix(PREFIX).filter(|rest| !VARIABLES.contains(rest))?;
    let other = match rest {
        "URL" | "SERVER" | "HOST" | "ADDR" | "ADDRESS" => Some("URI"),
        "TOKEN" | "APIKEY" | "API_KEY" => Some("KEY"),
        "KEYFILE" | "KEY_PATH" | "TOKEN_FILE" => Some("KEY_FILE"),
        "CA" | "CAFILE" | "CA_CERT" | "CACERT" => Some("CA_FILE"),
        // Other MSGBUS_ variables exist, for example those that `sub` sets for its command.
        _ => VARIABLES
            .into_iter()
            .find(|known| known.len() > 2 && strsim::damerau_levenshtein(rest, known) == 1),
    };
    Some((name, other?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_file_is_read() {
        let path = Path::new("f");
        let text = "\u{feff}---\r\n# a comment\r\nuri: \"http://bus:8000\" # there\n\ndebug: true\n\
            ca-file: /etc/ca.pem\nkey-file: ~/k\nprod: # the real one\n  uri: https://a\n  key: s\n\
            test:\n\turi: 'b:1'\n";
        let file = parse(path, text).unwrap();
        assert_eq!(file.default.uri, Some(Given::new("http://bus:8000", "f:3")));
        assert_eq!(file.default.ca_file, Some(Given::new("/etc/ca.pem", "f:6")));
        assert_eq!(file.default.key_file, Some(Given::new("~/k", "f:7")));
        assert!(file.debug);
        let prod = file.server("prod", "").unwrap();
        assert_eq!(prod.uri, Some(Given::new("https://a", "f:9")));
        assert_eq!((&prod.key, &prod.ca_file), (&Some(Given::new("s", "f:10")), &None));
        assert_eq!(file.server("test", "").unwrap().uri, Some(Given::new("b:1", "f:12")));
        let error = file.server("other", "--uri").unwrap_err().to_string();
        assert_eq!(error, "--uri: no server \"other\" in f; it names prod, test");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, said) in [
            ("uri\n", "f:1: write it as key: value"),
            ("\nurl: x\n", "f:2: no such setting: \"url\"; there are"),
            ("uri: a\n\nuri: b\n", "f:3: uri is given twice; the first is in line 1"),
            ("a:\n  uri: a\n  uri: b\n", "f:3: uri is given twice; the first is in line 2"),
            ("debug: yes\n", "f:1: debug must be true or false, not \"yes\""),
            ("a:\n  uri: a\na:\n", "f:3: a is given twice; the first is in line 1"),
            ("uri:\n", "f:1: uri is empty"),
            ("a:\n  key: ''\n", "f:2: key is empty"),
            ("  uri: a\n", "f:1: it is indented"),
            ("a:\n  debug: true\n", "f:2: no such setting of a: \"debug\""),
        ] {
            let error = parse(Path::new("f"), text).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn misspelt_variables_are_known() {
        for (name, meant) in [
            ("MSGBUS_URL", Some("URI")),
            ("MSGBUS_UIR", Some("URI")),
            ("MSGBUS_KEYFILE", Some("KEY_FILE")),
            ("MSGBUS_KEYS", Some("KEY")),
            ("MSGBUS_URI", None),
            ("MSGBUS_ID", None),
            ("MSGBUS_TOPIC", None),
            ("MSGBUS_PORT", None),
            ("MSGBUS_SERVICE_HOST", None),
            ("MSGBUSD_URL", None),
        ] {
            assert_eq!(misspelt(&name.into()).map(|(_, meant)| meant), meant, "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_is_in_the_file_it_is_read_or_named_in_one_line(
            lines in prop::collection::vec(" ?(uri|debug|[a-z]{0,3})(: ?|)[^\n]{0,9}( #.{0,3})?", 0..4)
        ) {
            match parse(Path::new("f"), &lines.join("\n")) {
                Ok(file) => {
                    let origin = file.default.uri.map(|given| given.origin);
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
