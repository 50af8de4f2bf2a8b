//! The key file: `[anonymous]` and `[keys.NAME]`, each with its grants.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use thiserror::Error;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Keys, Principal,
    grant::Grant,
    secret::{self, Hash},
};
use crate::{
    limits::rate::{self, Rate},
    read_file::read_text,
};

/// A key file that has been read and is valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    pub(super) path: PathBuf,
    pub(super) keys: Keys,
}

/// An error in a key file. The text is one line that names the file, the line, the key and the grant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{location}: {problem}")]
pub struct KeyFileError {
    location: String,
    problem: String,
}

impl KeyFile {
    /// Reads a file. Blocks for up to ten seconds.
    ///
    /// # Errors
    /// When the file cannot be read in time, or the first error in it.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, KeyFileError> {
        let path = path.into();
        let text = read_text(&path).map_err(|error| KeyFileError {
            location: path.display().to_string(),
            problem: format!("cannot read the file: {error}"),
        })?;
        Self::parse(path, &text)
    }

    pub(super) fn parse(path: PathBuf, text: &str) -> Result<Self, KeyFileError> {
        let keys = Source { path: &path, text }.keys()?;
        Ok(Self { path, keys })
    }
}

const RATE: &str = "publish-rate";

type Table<'a> = DeTable<'a>;
type Value<'a> = Spanned<DeValue<'a>>;

/// Quotes a word of the file for an error, unless it may be a secret.
fn quoted(word: &str) -> String {
    if secret::may_be_secret(word) { "(possibly a secret)".to_owned() } else { format!("{word:?}") }
}

/// The text of a file, and its path for errors.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, offset: usize, problem: impl Into<String>) -> KeyFileError {
        let line = 1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        let problem: String = problem.into().replace('\n', ", ");
        KeyFileError { location: format!("{}:{line}", self.path.display()), problem }
    }

    /// An error of the TOML parser. For a duplicate it adds the name.
    fn syntax(&self, error: &toml::de::Error) -> KeyFileError {
        let span = error.span().unwrap_or_default();
        match self.text.get(span.clone()) {
            Some(name) if error.message() == "duplicate key" => self.error(
                span.start,
                format!("duplicate entry {}", quoted(name.trim_matches(['"', '\'']))),
            ),
            _ => self.error(span.start, error.message()),
        }
    }

    fn keys(&self) -> Result<Keys, KeyFileError> {
        let table = DeTable::parse(self.text).map_err(|error| self.syntax(&error))?.into_inner();
        let mut anonymous = Principal { key: None, grants: Vec::new(), publish_rate: None };
        let mut keys: Option<&Value<'_>> = None;
        for (name, value) in &table {
            match name.get_ref().as_ref() {
                "anonymous" => anonymous = self.anonymous(value)?,
                "keys" => keys = Some(value),
                other => {
                    let problem = format!(
                        "unknown entry {}; expected [anonymous] or [keys.NAME]",
                        quoted(other)
                    );
                    return Err(self.error(name.span().start, problem));
                }
            }
        }
        let by_hash = match keys {
            Some(keys) => self.named(keys, &anonymous.grants)?,
            None => HashMap::new(),
        };
        // An editor or a full disk may leave an empty file; that must not lock all clients out.
        if by_hash.is_empty() && !table.contains_key("anonymous") {
            let problem = "the file has neither [anonymous] nor a key, so no client could do anything; if \
                           that is intended, add an empty [anonymous]";
            return Err(self.error(0, problem));
        }
        Ok(Keys { anonymous: Arc::new(anonymous), by_hash })
    }

    fn anonymous(&self, value: &Value<'_>) -> Result<Principal, KeyFileError> {
        let (mut grants, mut publish_rate) = (Vec::new(), None);
        for (field, value) in self.table(value, "anonymous")? {
            match field.get_ref().as_ref() {
                "allow" => grants = self.grants(value, "anonymous")?,
                RATE => publish_rate = Some(self.rate(value, "anonymous")?),
                other => {
                    let problem = format!(
                        "anonymous: unknown setting {}; expected allow or {RATE}",
                        quoted(other)
                    );
                    return Err(self.error(field.span().start, problem));
                }
            }
        }
        Ok(Principal { key: None, grants, publish_rate })
    }

    fn named(
        &self,
        keys: &Value<'_>,
        anonymous_grants: &[Grant],
    ) -> Result<HashMap<Hash, Arc<Principal>>, KeyFileError> {
        let mut by_hash: HashMap<Hash, Arc<Principal>> = HashMap::new();
        for (name, value) in self.table(keys, "keys")? {
            let at = name.span().start;
            let name = name.get_ref().as_ref();
            secret::check_name(name)
                .map_err(|why| self.error(at, format!("keys.{}: {why}", quoted(name))))?;
            let entry = format!("keys.{name}");
            let (mut hash, mut grants, mut publish_rate) = (None, None, None);
            for (field, value) in self.table(value, &entry)? {
                match field.get_ref().as_ref() {
                    "hash" => hash = Some(self.hash(value, &entry)?),
                    "allow" => grants = Some(self.grants(value, &entry)?),
                    RATE => publish_rate = Some(self.rate(value, &entry)?),
                    other => {
                        let problem = format!(
                            "{entry}: unknown setting {}; expected hash, allow or {RATE}",
                            quoted(other)
                        );
                        return Err(self.error(field.span().start, problem));
                    }
                }
            }
            let missing = |what| self.error(at, format!("{entry}: {what} is missing"));
            let hash = hash.ok_or_else(|| missing("hash"))?;
            let mut grants = grants.ok_or_else(|| missing("allow"))?;
            grants.extend_from_slice(anonymous_grants);
            let principal = Principal { key: Some((name.to_owned(), hash)), grants, publish_rate };
            if let Some(other) = by_hash.insert(hash, Arc::new(principal)) {
                let other = other.key_name().unwrap_or_default().to_owned();
                let problem =
                    format!("{entry}: same hash as keys.{other}; create a separate key for each");
                return Err(self.error(at, problem));
            }
        }
        Ok(by_hash)
    }

    fn hash(&self, value: &Value<'_>, entry: &str) -> Result<Hash, KeyFileError> {
        let text = value.get_ref().as_str().unwrap_or_default();
        let wrong = |why| self.error(value.span().start, format!("{entry}: hash: {why}"));
        let hash = text.parse().map_err(wrong)?;
        // An unset shell variable gives this hash. Any client with an empty password would have the key.
        if hash == Hash::of("") {
            Err(wrong("the hash of the empty string is not allowed"))
        } else {
            Ok(hash)
        }
    }

    fn rate(&self, value: &Value<'_>, entry: &str) -> Result<Rate, KeyFileError> {
        let rate = value.get_ref().as_integer().and_then(|number| rate::parse(number.as_str()));
        rate.ok_or_else(|| {
            let problem = format!(
                "{entry}: {RATE}: expected a whole number of messages per second, 1 to {}; to forbid \
                 publishing, omit the publish grant",
                rate::HIGHEST
            );
            self.error(value.span().start, problem)
        })
    }

    fn grants(&self, value: &Value<'_>, entry: &str) -> Result<Vec<Grant>, KeyFileError> {
        let wrong = |value: &Value<'_>| {
            let problem =
                format!("{entry}: allow: expected a list, such as [\"publish:orders/**\"]");
            self.error(value.span().start, problem)
        };
        let DeValue::Array(items) = value.get_ref() else { return Err(wrong(value)) };
        items
            .iter()
            .map(|item| {
                let text = item.get_ref().as_str().ok_or_else(|| wrong(item))?;
                text.parse().map_err(|why: String| {
                    // The reason quotes a part of the text.
                    let why = if secret::may_be_secret(text) { Grant::SHAPE } else { &why };
                    let problem = format!("{entry}: {}: {why}", quoted(text));
                    self.error(item.span().start, problem)
                })
            })
            .collect()
    }

    fn table<'v, 'i>(
        &self,
        value: &'v Value<'i>,
        entry: &str,
    ) -> Result<&'v Table<'i>, KeyFileError> {
        value.get_ref().as_table().ok_or_else(|| {
            let shape =
                if entry == "keys" { "[keys.NAME]".to_owned() } else { format!("[{entry}]") };
            self.error(value.span().start, format!("{entry}: expected a table {shape}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::grant::{Action, Permission},
        *,
    };

    fn parse(text: &str) -> Result<Keys, String> {
        let source = Source { path: Path::new("keys.toml"), text };
        source.keys().map_err(|error| error.to_string())
    }

    fn entry(name: &str, secret: &str, allow: &str) -> String {
        format!("[keys.{name}]\nhash = \"{}\"\nallow = [{allow}]\n", Hash::of(secret))
    }

    #[test]
    fn keys_have_their_own_grants_and_those_of_anonymous() {
        let text = format!(
            "{}[anonymous]\nallow = [\"subscribe:public/**\"]\n{}",
            entry("deploy", "s", "\"publish:orders/**\""),
            entry("idle", "t", "")
        );
        let keys = parse(&text).unwrap();
        let principal = |secret: &str| &keys.by_hash[&Hash::of(secret)];
        let (orders, public) = ("orders/eu".parse().unwrap(), "public/x".parse().unwrap());
        let publish = Permission::Topic(Action::Publish, &orders);
        let subscribe = Permission::Topic(Action::Subscribe, &public);
        assert!(principal("s").can(publish) && principal("s").can(subscribe));
        assert!(!principal("t").can(publish) && principal("t").can(subscribe));
        assert!(!keys.anonymous.can(publish) && keys.anonymous.can(subscribe));
        assert!(principal("t").can(Permission::Key) && !keys.anonymous.can(Permission::Key));
        assert_eq!(principal("s").key_name(), Some("deploy"));
        assert!(parse("[anonymous]\n").unwrap().by_hash.is_empty());
    }

    #[test]
    fn faults_are_named_by_line_key_and_grant() {
        let twice = format!("{}{}", entry("a", "s", ""), entry("b", "s", ""));
        let grant = entry("deploy", "s", "\"pull:a\", \"publsh:b\"");
        let pattern = entry("deploy", "s", "\"pull:a//b\"");
        let named = entry("'two words'", "s", "");
        for (text, start) in [
            (&*grant, "keys.toml:3: keys.deploy: \"publsh:b\": unknown action \"publsh\"; exp"),
            (&pattern, "keys.toml:3: keys.deploy: \"pull:a//b\": a topic name must not"),
            (&twice, "keys.toml:4: keys.b: same hash as keys.a"),
            (&named, "keys.toml:1: keys.\"two words\": a key name has"),
            ("[anonymous]\nallow = [\"pull\"]\n", "keys.toml:2: anonymous: \"pull\": expected"),
            ("[anonymous]\nallow = \"pull:a\"\n", "keys.toml:2: anonymous: allow: expected a list"),
            ("[anonymous]\nallow = [1]\n", "keys.toml:2: anonymous: allow: expected a list"),
            ("[anonymous]\nhash = \"x\"\n", "keys.toml:2: anonymous: unknown setting \"hash\""),
            ("anonymous = 1\n", "keys.toml:1: anonymous: expected a table [anonymous]"),
            ("keys = 1\n", "keys.toml:1: keys: expected a table [keys.NAME]"),
            ("[keys]\na = 1\n", "keys.toml:2: keys.a: expected a table [keys.a]"),
            ("[key.a]\n", "keys.toml:1: unknown entry \"key\"; expected [anonymous] or"),
            ("\n[keys.a]\nallow = []\n", "keys.toml:2: keys.a: hash is missing"),
            ("[keys.a]\nhash = \"sha256:0\"\n", "keys.toml:2: keys.a: hash: expected sha256:"),
            ("[keys.a]\nhash = 1\n", "keys.toml:2: keys.a: hash: expected sha256:"),
            ("[keys.a]\nsecret = \"x\"\n", "keys.toml:2: keys.a: unknown setting \"secret\""),
            ("[anonymous]\npublish-rate = 0\n", "keys.toml:2: anonymous: publish-rate: expected"),
            ("[keys.a]\npublish-rate = \"9\"\n", "keys.toml:2: keys.a: publish-rate: expected"),
            ("[keys.a\n", "keys.toml:1: "),
            ("", "keys.toml:1: the file has neither [anonymous] nor a key"),
            ("# [keys.a]\n", "keys.toml:1: the file has neither [anonymous] nor a key"),
            ("[keys]\n", "keys.toml:1: the file has neither [anonymous] nor a key"),
            ("[keys.a]\nallow = []\n[keys.a]\n", "keys.toml:3: duplicate entry \"a\""),
            ("[keys.a]\nallow = []\nallow = []\n", "keys.toml:3: duplicate entry \"allow\""),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(start), "{text:?} gave {error:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        let empty = parse(&entry("a", "", "\"*:**\"")).expect_err("an empty secret");
        assert_eq!(empty, "keys.toml:2: keys.a: hash: the hash of the empty string is not allowed");
        for secret in ["mbk_secret", "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"] {
            for text in [
                format!("[keys.a]\nhash = \"{secret}\"\n"),
                format!("[keys.a]\nallow = [\"{secret}\"]\n"),
                format!("[keys.a]\nallow = [\"pull:a\", \"{secret}:b\"]\n"),
                format!("[keys.a]\n{secret} = 1\n"),
                format!("[anonymous]\n{secret} = 1\n"),
                format!("[keys.'{secret} ']\n"),
                format!("{secret} = 1\n"),
            ] {
                let error = parse(&text).expect_err("a misplaced secret");
                assert!(!error.contains(secret), "{error}");
            }
        }
        let named = parse("[keys.mbk_secret]\n").expect_err("a secret as a name");
        assert_eq!(
            named,
            "keys.toml:1: keys.(possibly a secret): a secret cannot be the name of a key"
        );
    }
}
