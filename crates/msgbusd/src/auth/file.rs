//! The file of keys: `[anonymous]` and `[keys.NAME]`, each with what it allows.

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

/// A file of keys that has been read, and has been found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    pub(super) path: PathBuf,
    pub(super) keys: Keys,
}

/// What is wrong with a file of keys: one line that names the file, the line, the key and the grant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub struct KeyFileError {
    place: String,
    problem: String,
}

impl KeyFile {
    /// Reads a file. Blocks for ten seconds at the most: then it is an error.
    ///
    /// # Errors
    /// When it cannot be read, or the first thing in it that is wrong.
    pub fn read(path: impl Into<PathBuf>) -> Result<Self, KeyFileError> {
        let path = path.into();
        let text = read_text(&path).map_err(|error| KeyFileError {
            place: path.display().to_string(),
            problem: format!("cannot read it: {error}"),
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

/// A word of the file as an error repeats it.
fn quoted(word: &str) -> String {
    if secret::may_be_one(word) { "(what may be a secret)".to_owned() } else { format!("{word:?}") }
}

/// The text of a file, for naming the lines of what is wrong with it.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, offset: usize, problem: impl Into<String>) -> KeyFileError {
        let line = 1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        let problem: String = problem.into().replace('\n', ", ");
        KeyFileError { place: format!("{}:{line}", self.path.display()), problem }
    }

    /// What the parser says is wrong; of what is there twice, the name.
    fn syntax(&self, error: &toml::de::Error) -> KeyFileError {
        let span = error.span().unwrap_or_default();
        match self.text.get(span.clone()) {
            Some(name) if error.message() == "duplicate key" => self.error(
                span.start,
                format!("there are two of {}", quoted(name.trim_matches(['"', '\'']))),
            ),
            _ => self.error(span.start, error.message()),
        }
    }

    fn keys(&self) -> Result<Keys, KeyFileError> {
        let table = DeTable::parse(self.text).map_err(|error| self.syntax(&error))?.into_inner();
        let mut anybody = Principal { key: None, grants: Vec::new(), publish_rate: None };
        let mut keys: Option<&Value<'_>> = None;
        for (name, value) in &table {
            match name.get_ref().as_ref() {
                "anonymous" => anybody = self.anonymous(value)?,
                "keys" => keys = Some(value),
                other => {
                    let problem = format!(
                        "no such entry: {}; there are [anonymous] and [keys.NAME]",
                        quoted(other)
                    );
                    return Err(self.error(name.span().start, problem));
                }
            }
        }
        let by_hash = match keys {
            Some(keys) => self.named(keys, &anybody.grants)?,
            None => HashMap::new(),
        };
        // As an editor or a full disk leaves a file behind: it is no order to lock everybody out.
        if by_hash.is_empty() && !table.contains_key("anonymous") {
            let problem = "it has neither [anonymous] nor a key: nobody could do anything; if that \
                           is meant, write [anonymous]";
            return Err(self.error(0, problem));
        }
        Ok(Keys { anonymous: Arc::new(anybody), by_hash })
    }

    fn anonymous(&self, value: &Value<'_>) -> Result<Principal, KeyFileError> {
        let (mut grants, mut publish_rate) = (Vec::new(), None);
        for (field, value) in self.table(value, "anonymous")? {
            match field.get_ref().as_ref() {
                "allow" => grants = self.grants(value, "anonymous")?,
                RATE => publish_rate = Some(self.rate(value, "anonymous")?),
                other => {
                    let problem = format!(
                        "anonymous: no such setting: {}; there are allow and {RATE}",
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
        everybodys: &[Grant],
    ) -> Result<HashMap<Hash, Arc<Principal>>, KeyFileError> {
        let mut by_hash: HashMap<Hash, Arc<Principal>> = HashMap::new();
        for (name, value) in self.table(keys, "keys")? {
            let at = name.span().start;
            let name = name.get_ref().as_ref();
            secret::check_name(name)
                .map_err(|why| self.error(at, format!("keys.{}: {why}", quoted(name))))?;
            let place = format!("keys.{name}");
            let (mut hash, mut grants, mut publish_rate) = (None, None, None);
            for (field, value) in self.table(value, &place)? {
                match field.get_ref().as_ref() {
                    "hash" => hash = Some(self.hash(value, &place)?),
                    "allow" => grants = Some(self.grants(value, &place)?),
                    RATE => publish_rate = Some(self.rate(value, &place)?),
                    other => {
                        let problem = format!(
                            "{place}: no such setting: {}; there are hash, allow and {RATE}",
                            quoted(other)
                        );
                        return Err(self.error(field.span().start, problem));
                    }
                }
            }
            let missing = |what| self.error(at, format!("{place}: {what} is missing"));
            let hash = hash.ok_or_else(|| missing("hash"))?;
            let mut grants = grants.ok_or_else(|| missing("allow"))?;
            grants.extend_from_slice(everybodys);
            let principal = Principal { key: Some((name.to_owned(), hash)), grants, publish_rate };
            if let Some(other) = by_hash.insert(hash, Arc::new(principal)) {
                let other = other.key_name().unwrap_or_default().to_owned();
                let problem =
                    format!("{place}: its hash is that of keys.{other} too; make a key for each");
                return Err(self.error(at, problem));
            }
        }
        Ok(by_hash)
    }

    fn hash(&self, value: &Value<'_>, place: &str) -> Result<Hash, KeyFileError> {
        let text = value.get_ref().as_str().unwrap_or_default();
        let wrong = |why| self.error(value.span().start, format!("{place}: hash: {why}"));
        let hash = text.parse().map_err(wrong)?;
        // Of a variable that was not set: whoever shows an empty password would have this key.
        if hash == Hash::of("") { Err(wrong("it is that of no secret at all")) } else { Ok(hash) }
    }

    fn rate(&self, value: &Value<'_>, place: &str) -> Result<Rate, KeyFileError> {
        let rate = value.get_ref().as_integer().and_then(|number| rate::parse(number.as_str()));
        rate.ok_or_else(|| {
            let problem = format!(
                "{place}: {RATE}: write a whole number of messages per second, 1 to {}; who is to \
                 publish nothing gets no grant for it",
                rate::HIGHEST
            );
            self.error(value.span().start, problem)
        })
    }

    fn grants(&self, value: &Value<'_>, place: &str) -> Result<Vec<Grant>, KeyFileError> {
        let wrong = |value: &Value<'_>| {
            let problem =
                format!("{place}: allow: write it as a list, as in [\"publish:orders/**\"]");
            self.error(value.span().start, problem)
        };
        let DeValue::Array(items) = value.get_ref() else { return Err(wrong(value)) };
        items
            .iter()
            .map(|item| {
                let text = item.get_ref().as_str().ok_or_else(|| wrong(item))?;
                text.parse().map_err(|why: String| {
                    // It repeats a part of the text.
                    let why = if secret::may_be_one(text) { Grant::SHAPE } else { &why };
                    let problem = format!("{place}: {}: {why}", quoted(text));
                    self.error(item.span().start, problem)
                })
            })
            .collect()
    }

    fn table<'v, 'i>(
        &self,
        value: &'v Value<'i>,
        place: &str,
    ) -> Result<&'v Table<'i>, KeyFileError> {
        value.get_ref().as_table().ok_or_else(|| {
            let shape =
                if place == "keys" { "[keys.NAME]".to_owned() } else { format!("[{place}]") };
            self.error(value.span().start, format!("{place}: write it as {shape}"))
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
    fn keys_have_their_own_grants_and_everybodys() {
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
        assert!(principal("s").may(publish) && principal("s").may(subscribe));
        assert!(!principal("t").may(publish) && principal("t").may(subscribe));
        assert!(!keys.anonymous.may(publish) && keys.anonymous.may(subscribe));
        assert!(principal("t").may(Permission::Key) && !keys.anonymous.may(Permission::Key));
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
            (&*grant, "keys.toml:3: keys.deploy: \"publsh:b\": no such action: \"publsh\"; there"),
            (&pattern, "keys.toml:3: keys.deploy: \"pull:a//b\": a topic name must not"),
            (&twice, "keys.toml:4: keys.b: its hash is that of keys.a too"),
            (&named, "keys.toml:1: keys.\"two words\": a name of a key has"),
            ("[anonymous]\nallow = [\"pull\"]\n", "keys.toml:2: anonymous: \"pull\": write it as"),
            ("[anonymous]\nallow = \"pull:a\"\n", "keys.toml:2: anonymous: allow: write it as a"),
            ("[anonymous]\nallow = [1]\n", "keys.toml:2: anonymous: allow: write it as a list"),
            ("[anonymous]\nhash = \"x\"\n", "keys.toml:2: anonymous: no such setting: \"hash\""),
            ("anonymous = 1\n", "keys.toml:1: anonymous: write it as [anonymous]"),
            ("keys = 1\n", "keys.toml:1: keys: write it as [keys.NAME]"),
            ("[keys]\na = 1\n", "keys.toml:2: keys.a: write it as [keys.a]"),
            ("[key.a]\n", "keys.toml:1: no such entry: \"key\"; there are [anonymous] and"),
            ("\n[keys.a]\nallow = []\n", "keys.toml:2: keys.a: hash is missing"),
            ("[keys.a]\nhash = \"sha256:0\"\n", "keys.toml:2: keys.a: hash: write it as sha256:"),
            ("[keys.a]\nhash = 1\n", "keys.toml:2: keys.a: hash: write it as sha256:"),
            ("[keys.a]\nsecret = \"x\"\n", "keys.toml:2: keys.a: no such setting: \"secret\""),
            ("[anonymous]\npublish-rate = 0\n", "keys.toml:2: anonymous: publish-rate: write a"),
            ("[keys.a]\npublish-rate = \"9\"\n", "keys.toml:2: keys.a: publish-rate: write a"),
            ("[keys.a\n", "keys.toml:1: "),
            ("", "keys.toml:1: it has neither [anonymous] nor a key"),
            ("# [keys.a]\n", "keys.toml:1: it has neither [anonymous] nor a key"),
            ("[keys]\n", "keys.toml:1: it has neither [anonymous] nor a key"),
            ("[keys.a]\nallow = []\n[keys.a]\n", "keys.toml:3: there are two of \"a\""),
            ("[keys.a]\nallow = []\nallow = []\n", "keys.toml:3: there are two of \"allow\""),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(start), "{text:?} gave {error:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
        let empty = parse(&entry("a", "", "\"*:**\"")).expect_err("everybody has it");
        assert_eq!(empty, "keys.toml:2: keys.a: hash: it is that of no secret at all");
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
                let error = parse(&text).expect_err("no place for a secret");
                assert!(!error.contains(secret), "{error}");
            }
        }
        let named = parse("[keys.mbk_secret]\n").expect_err("no name");
        assert_eq!(
            named,
            "keys.toml:1: keys.(what may be a secret): a secret is no name for a key"
        );
    }
}
