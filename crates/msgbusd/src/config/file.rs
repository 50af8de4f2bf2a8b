//! The configuration file: settings by the names of their flags, and rules for topics in `[topics."pattern"]`.

use std::{borrow::Cow, mem, path::Path};

use msgbus_core::{TopicPattern, TopicRule, store::Promise};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    ConfigError,
    engines::{self, EngineRule, EngineTable, NotInEngines},
    keep_headers::HeaderPattern,
    layers::{Layer, Raw},
    settings::{self, SETTINGS},
    values,
};
use crate::read_file::read_text;

#[derive(Debug, Clone)]
pub(super) struct File {
    pub(super) settings: Layer,
    pub(super) rules: Rules,
}

/// The rules in `[topics."pattern"]`, and what they refer to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) topics: Vec<TopicRule>,
    pub(super) keep_headers: Vec<(TopicPattern, Vec<HeaderPattern>)>,
    pub(super) durable: Vec<DurableRule>,
    pub(super) engine_topics: Vec<EngineRule>,
    /// The settings of rules that topics in an engine do not have.
    pub(super) not_in_engines: Vec<NotInEngines>,
    /// The tables `[engines.NAME]`, which are not about topics.
    pub(super) engines: Vec<EngineTable>,
}

/// What a rule says about durability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DurableRule {
    /// The index of the rule in [`Rules::topics`].
    pub(super) rule: usize,
    pub(super) durable: Option<bool>,
    pub(super) sync: Option<Promise>,
    /// The line, for errors.
    pub(super) origin: String,
}

/// The text of a file, and its path for errors.
struct Source<'a> {
    path: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn origin(&self, offset: usize) -> String {
        let line = 1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count();
        format!("{}:{line}", self.path)
    }

    fn error(&self, offset: usize, problem: impl Into<String>) -> ConfigError {
        ConfigError::new(self.origin(offset), problem)
    }

    /// An error of the TOML parser, with the name of the setting on that line.
    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span().unwrap_or_default();
        let problem = error.message().replace('\n', ", ");
        if problem == "duplicate key" {
            let name = self.text.get(span.clone()).unwrap_or_default();
            return self.error(span.start, format!("duplicate setting {name:?}"));
        }
        let begin = self.text.get(..span.start).unwrap_or_default();
        let begin = begin.rfind('\n').map_or(0, |end| end + 1);
        let line = self.text[begin..].lines().next().unwrap_or_default();
        let named = line.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
        let Some((name, value)) =
            named.filter(|(name, _)| SETTINGS.iter().any(|setting| setting.name == *name))
        else {
            return self.error(span.start, problem);
        };
        if problem.starts_with("string values must be quoted") {
            let value = value.split('#').next().unwrap_or_default().trim();
            // A URL may have a password.
            let value = if value.is_empty() || value.contains('@') { "..." } else { value };
            let problem = format!("{name} must be a string: {name} = \"{value}\"");
            return self.error(span.start, problem);
        }
        self.error(span.start, format!("{name}: {problem}"))
    }
}

const RULE_KEYS: [&str; 8] = [
    "ttl",
    "max-queue-size",
    "max-queue-bytes",
    "overflow",
    "keep-headers",
    "durable",
    "sync",
    "engine",
];
/// What topics in an engine do not have.
const NOT_IN_ENGINES: [&str; 6] =
    ["ttl", "max-queue-size", "max-queue-bytes", "overflow", "durable", "sync"];

impl File {
    pub(super) fn read(path: &Raw) -> Result<Self, ConfigError> {
        let text = read_text(Path::new(&path.value)).map_err(|error| {
            ConfigError::new(&path.origin, format!("cannot read {}: {error}", path.value))
        })?;
        Self::parse_text(&path.value, &text)
    }

    pub(super) fn parse_text(path: &str, text: &str) -> Result<Self, ConfigError> {
        Self::parse(&Source { path, text })
    }

    fn parse(source: &Source<'_>) -> Result<Self, ConfigError> {
        let table = DeTable::parse(source.text).map_err(|error| source.syntax(&error))?;
        let mut file = Self { settings: Layer::new(), rules: Rules::default() };
        for (key, value) in table.into_inner() {
            let line = key.span().start;
            if key.get_ref() == "topics" {
                let engines = mem::take(&mut file.rules.engines);
                file.rules = Rules { engines, ..rules(source, &value)? };
                continue;
            }
            if key.get_ref() == "engines" {
                file.rules.engines = engine_tables(source, &value)?;
                continue;
            }
            let setting = SETTINGS
                .iter()
                .find(|setting| setting.name == key.get_ref().as_ref())
                // A file cannot name another file.
                .filter(|setting| setting.name != "config")
                .ok_or_else(|| {
                    unknown_key(
                        source,
                        &key,
                        settings::closest(
                            key.get_ref(),
                            SETTINGS
                                .iter()
                                .map(|setting| setting.name)
                                .filter(|name| *name != "config")
                                .chain(["topics", "engines"]),
                        ),
                    )
                })?;
            let values = list(source, &value)?;
            if values.len() != 1 && setting.kind != settings::Kind::List {
                return Err(source.error(line, format!("{}: takes one value", setting.name)));
            }
            if values.is_empty() && setting.name == "bind" {
                return Err(source.error(line, "bind: at least one address is required"));
            }
            let origin = format!("{}: {}", source.origin(line), setting.name);
            let raw = |value| Raw { value, origin: origin.clone() };
            file.settings.insert(setting.name, values.into_iter().map(raw).collect());
        }
        Ok(file)
    }
}

fn unknown_key(
    source: &Source<'_>,
    key: &Spanned<impl AsRef<str>>,
    near: Option<&str>,
) -> ConfigError {
    let name = key.get_ref().as_ref();
    let hint = near.map_or("; see --help".to_owned(), |near| format!("; did you mean {near:?}?"));
    source.error(key.span().start, format!("no such setting: {name:?}{hint}"))
}

fn rules(source: &Source<'_>, value: &Spanned<DeValue<'_>>) -> Result<Rules, ConfigError> {
    let mut rules = Rules::default();
    for (key, value) in table(source, value)? {
        let pattern: TopicPattern = key.get_ref().parse().map_err(|error| {
            source.error(key.span().start, format!("topics.{:?}: {error}", key.get_ref()))
        })?;
        rule(source, pattern, table(source, value)?, &mut rules)?;
    }
    Ok(rules)
}

fn rule(
    source: &Source<'_>,
    pattern: TopicPattern,
    table: &DeTable<'_>,
    rules: &mut Rules,
) -> Result<(), ConfigError> {
    let mut rule = TopicRule::new(pattern);
    let mut durable =
        DurableRule { rule: rules.topics.len(), durable: None, sync: None, origin: String::new() };
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        let (pattern, origin) = (rule.pattern.clone(), source.origin(key.span().start));
        let origin = format!("{origin}: {name}");
        match name {
            "keep-headers" => {
                rules.keep_headers.push((pattern, header_patterns(source, key, value)?));
            }
            "engine" => {
                let engine = scalar(source, value)?;
                rules.engine_topics.push(EngineRule { pattern, engine, origin });
            }
            _ => {
                set(source, (key, value), &mut rule, &mut durable)?;
                if matches!(name, "durable" | "sync") {
                    durable.origin.clone_from(&origin);
                }
                if NOT_IN_ENGINES.contains(&name) {
                    let is_of_engines = matches!(name, "ttl" | "max-queue-size");
                    rules.not_in_engines.push(NotInEngines { pattern, is_of_engines, origin });
                }
            }
        }
    }
    rules.topics.push(rule);
    if durable.durable.is_some() || durable.sync.is_some() {
        rules.durable.push(durable);
    }
    Ok(())
}

fn header_patterns(
    source: &Source<'_>,
    key: &Spanned<Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<HeaderPattern>, ConfigError> {
    let headers: Result<_, String> = list(source, value)?.iter().map(|text| text.parse()).collect();
    headers
        .map_err(|problem| source.error(key.span().start, format!("{}: {problem}", key.get_ref())))
}

/// Sets one of the limits of topics.
fn set(
    source: &Source<'_>,
    (key, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>),
    rule: &mut TopicRule,
    durable: &mut DurableRule,
) -> Result<(), ConfigError> {
    let (name, text) = (key.get_ref().as_ref(), scalar(source, value)?);
    let set = match name {
        "ttl" => values::ttl(&text).map(|ttl| rule.ttl = Some(ttl)),
        "max-queue-size" => values::count(&text).map(|count| rule.max_messages = Some(count)),
        "max-queue-bytes" => values::queue_bytes(&text).map(|size| rule.max_bytes = Some(size)),
        "overflow" => values::overflow(&text).map(|policy| rule.overflow = Some(policy)),
        "durable" => values::switch(&text).map(|is_durable| durable.durable = Some(is_durable)),
        "sync" => values::sync(&text).map(|promise| durable.sync = Some(promise)),
        _ => {
            let near = settings::closest(name, RULE_KEYS.into_iter());
            let near = near.map_or(String::new(), |near| format!("; did you mean {near:?}?"));
            let problem = format!("no such setting of topics: {name:?}{near}");
            return Err(source.error(key.span().start, problem));
        }
    };
    set.map_err(|problem| source.error(key.span().start, format!("{name}: {problem}")))
}

/// The tables `[engines.NAME]`.
fn engine_tables(
    source: &Source<'_>,
    value: &Spanned<DeValue<'_>>,
) -> Result<Vec<EngineTable>, ConfigError> {
    let wanted = "write engines as [engines.NAME]";
    let mut tables = Vec::new();
    for (key, value) in table_or(source, value, wanted)? {
        let (name, line) = (key.get_ref().to_string(), key.span().start);
        let origin = format!("{}: engines.{name:?}", source.origin(line));
        engines::check_name(&name).map_err(|problem| ConfigError::new(&origin, problem))?;
        let mut values = Vec::new();
        for (key, value) in table_or(source, value, wanted)? {
            let raw =
                Raw { value: scalar(source, value)?, origin: source.origin(key.span().start) };
            values.push((key.get_ref().to_string(), raw));
        }
        tables.push(EngineTable { name, values, origin });
    }
    Ok(tables)
}

fn table<'a, 'i>(
    source: &Source<'_>,
    value: &'a Spanned<DeValue<'i>>,
) -> Result<&'a DeTable<'i>, ConfigError> {
    table_or(source, value, "write rules for topics as [topics.\"pattern\"]")
}

fn table_or<'a, 'i>(
    source: &Source<'_>,
    value: &'a Spanned<DeValue<'i>>,
    wanted: &str,
) -> Result<&'a DeTable<'i>, ConfigError> {
    value.get_ref().as_table().ok_or_else(|| source.error(value.span().start, wanted))
}

/// One value or several.
fn list(source: &Source<'_>, value: &Spanned<DeValue<'_>>) -> Result<Vec<String>, ConfigError> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().map(|item| scalar(source, item)).collect(),
        _ => scalar(source, value).map(|one| vec![one]),
    }
}

/// A value in the notation of a flag.
fn scalar(source: &Source<'_>, value: &Spanned<DeValue<'_>>) -> Result<String, ConfigError> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => Ok(number.to_string()),
        DeValue::Boolean(switch) => Ok(switch.to_string()),
        other => {
            let problem =
                format!("expected a string, number or boolean, not a {}", other.type_str());
            Err(source.error(value.span().start, problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<File, String> {
        File::parse(&Source { path: "bus.toml", text }).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_and_rules_are_read() {
        let file = parse(
            "ttl = \"2h\"\nmax-topics = 10\nallow-origin = [\"https://a.example\", \"https://b.example\"]\n\
             [topics.\"orders/**\"]\nttl = 0\nmax-queue-size = 5\noverflow = \"reject\"\n\
             keep-headers = [\"X-GitHub-*\", \"X-Hub-Signature-256\"]\n",
        )
        .unwrap();
        assert_eq!(file.settings["ttl"][0].value, "2h");
        assert_eq!(file.settings["max-topics"][0].value, "10");
        assert_eq!(file.settings["allow-origin"].len(), 2);
        let rule = &file.rules.topics[0];
        assert_eq!((rule.ttl, rule.max_messages, rule.max_bytes), (Some(None), Some(5), None));
        let (pattern, headers) = &file.rules.keep_headers[0];
        assert_eq!((pattern, headers.len()), (&rule.pattern, 2));
    }

    #[test]
    fn faults_are_named_by_their_line() {
        for (text, start) in [
            (
                "ttl = \"1h\"\ntll = \"1h\"\n",
                "bus.toml:2: no such setting: \"tll\"; did you mean \"ttl\"?",
            ),
            ("ttl = ", "bus.toml:1: ttl must be a string: ttl = \"...\""),
            ("\nttl = 2h # two\n", "bus.toml:2: ttl must be a string: ttl = \"2h\""),
            ("ttl = \"1h\"\nttl = \"2h\"\n", "bus.toml:2: duplicate setting \"ttl\""),
            ("\n[topics.\"a//b\"]\n", "bus.toml:2: topics.\"a//b\": a topic name must not"),
            ("[topics.a]\nmax-queue-size = 0\n", "bus.toml:2: max-queue-size: must be 1 or more"),
            ("[topics.a]\nmax-queue = 0\n", "bus.toml:2: no such setting of topics: \"max-queue\""),
            (
                "[topics.a]\nkeep-headers = [\"a*\"]\n",
                "bus.toml:2: keep-headers: \"a*\" matches autho",
            ),
            ("[topic.a]\n", "bus.toml:1: no such setting: \"topic\"; did you mean \"topics\"?"),
            ("topics = 1\n", "bus.toml:1: write rules for topics as"),
            ("ttl = 1.5\n", "bus.toml:1: expected a string, number or boolean"),
            ("ttl = [\"1h\", \"2h\"]\n", "bus.toml:1: ttl: takes one value"),
            ("config = \"x\"\n", "bus.toml:1: no such setting"),
            ("bind = []\n", "bus.toml:1: bind: at least one address is required"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.starts_with(start), "{text:?} gave {error:?}");
            assert!(!error.contains('\n'), "{error:?}");
        }
    }
}
