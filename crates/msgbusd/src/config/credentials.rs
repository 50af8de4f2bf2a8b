//! The credentials of engines: from files and from variables of the environment. docs/engines.md.

use std::{
    ffi::OsStr,
    fmt,
    path::{Path, PathBuf},
};

use super::{
    Config, ConfigError, EngineConfig, engines::DEFAULT, layers::Environment,
    settings::VARIABLE_PREFIX,
};
use crate::{engines, read_file::read_text};

/// How the variables of the environment end that have credentials.
const VARIABLES: [&str; 5] = ["USER", "PASSWORD", "TOKEN", "CREDS", "NKEY"];

/// A text that is not logged.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the engine only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A secret by which an engine knows this server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The setting for its file is this and `-file`; the end of its variable is this in capital letters.
    name: &'static str,
    /// Where it is, if it is not in a variable.
    pub(super) file: Option<PathBuf>,
    /// The secret. With a file, as it was at the start.
    pub value: Option<Secret>,
}

impl Credential {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, file: None, value: None }
    }

    pub(crate) fn is_given(&self) -> bool {
        self.value.is_some()
    }

    /// The secret, as it was at the start.
    #[cfg(feature = "redis")]
    pub(crate) fn text(&self) -> Option<String> {
        self.value.as_ref().map(|secret| secret.expose().to_owned())
    }

    /// What the file has now.
    fn read(&self) -> Option<Result<Secret, String>> {
        let path = self.file.as_ref()?;
        Some(read_file(&format!("{}-file", self.name), path).map(Secret))
    }
}

impl EngineConfig {
    /// Whether any credential is given beside those of the URL.
    #[cfg(feature = "nats")]
    pub(crate) fn has_credentials(&self) -> bool {
        let secrets = [&self.password, &self.token, &self.creds, &self.nkey];
        self.user.is_some() || secrets.into_iter().any(Credential::is_given)
    }

    /// What is the same for all kinds of engines, when all credentials are known.
    fn check_credentials(&self) -> Result<(), String> {
        let has_user = self.user.is_some();
        if has_user && !self.password.is_given() {
            return Err(format!("user needs password-file, or {}", self.variable("PASSWORD")));
        }
        let others = [&self.token, &self.creds, &self.nkey];
        let others = others.into_iter().filter(|credential| credential.is_given()).count();
        if usize::from(has_user) + others > 1 {
            return Err("use one of these: a user and a password, a token, a .creds file, an nkey"
                .to_owned());
        }
        engines::check(self)
    }

    /// The setting and the file, or the variable, for errors.
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(crate) fn origin_of(&self, credential: &Credential) -> String {
        let name = credential.name;
        match &credential.file {
            Some(path) => format!("{name}-file: {}", path.display()),
            None => self.variable(&name.to_ascii_uppercase()),
        }
    }

    /// What `parse` makes of a credential, as that was at the start.
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(crate) fn at_start<T>(
        &self,
        credential: &Credential,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Option<T>, String> {
        let parsed = credential.value.as_ref().map(|secret| parse(secret.expose()));
        let with_origin = |problem| format!("{}: {problem}", self.origin_of(credential));
        parsed.transpose().map_err(with_origin)
    }

    /// What `parse` makes of a credential as its file has it now, or as it was at the start if that is of no use.
    /// Blocks for up to ten seconds.
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(crate) fn current<T>(
        &self,
        credential: &Credential,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let with_origin = |problem| format!("{}: {problem}", self.origin_of(credential));
        let now = credential.read().map(|read| parse(read?.expose()).map_err(with_origin));
        let before = || self.at_start(credential, &parse).ok().flatten();
        match now {
            Some(Ok(parsed)) => Some(parsed),
            Some(Err(problem)) => {
                tracing::warn!("engines.{}: {problem}: going on with what it was", self.name);
                before()
            }
            None => before(),
        }
    }

    /// A credential that is used as it is: see [`current`](Self::current).
    #[cfg(any(feature = "nats", feature = "redis"))]
    pub(crate) fn current_text(&self, credential: &Credential) -> Option<String> {
        self.current(credential, |text| Ok(text.to_owned()))
    }

    /// The variable of the environment with a credential.
    fn variable(&self, what: &str) -> String {
        let name = match self.name.as_str() {
            DEFAULT => String::new(),
            name => format!("{}_", name.to_ascii_uppercase().replace('-', "_")),
        };
        format!("{VARIABLE_PREFIX}ENGINE_{name}{what}")
    }

    fn read_credentials(&mut self, environment: &Environment) -> Result<(), ConfigError> {
        let values = VARIABLES.map(|what| value_of(environment, self.variable(what)));
        let [user, password, token, creds, nkey] = values;
        self.user = self.user.take().or(user?);
        let origin = format!("engines.{}", self.name);
        let failed = |problem| ConfigError::new(&origin, problem);
        for (credential, variable) in [
            (&mut self.password, password),
            (&mut self.token, token),
            (&mut self.creds, creds),
            (&mut self.nkey, nkey),
        ] {
            let variable = variable?.map(Secret);
            let read = credential.read().transpose().map_err(failed)?;
            credential.value = read.or(variable);
        }
        let tls =
            [("tls-ca", &self.tls_ca), ("tls-cert", &self.tls_cert), ("tls-key", &self.tls_key)];
        for (key, path) in tls {
            path.as_deref().map(|path| read_file(key, path)).transpose().map_err(failed)?;
        }
        self.check_credentials().map_err(failed)
    }
}

/// The value of a variable, if there is one.
fn value_of(environment: &Environment, variable: String) -> Result<Option<String>, ConfigError> {
    let value = environment.get(OsStr::new(&variable)).filter(|value| !value.is_empty());
    let text = value.map(|value| value.to_str().map(str::to_owned).ok_or("not UTF-8"));
    text.transpose().map_err(|problem| ConfigError::new(variable, problem))
}

/// The text of a file, without the line end after it.
fn read_file(key: &str, path: &Path) -> Result<String, String> {
    let text = read_text(path)
        .map_err(|error| format!("{key}: cannot read {}: {error}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Whether a variable of the environment is a credential of an engine.
pub(super) fn is_credential(variable: &str) -> bool {
    let rest = variable.strip_prefix(VARIABLE_PREFIX).and_then(|rest| rest.strip_prefix("ENGINE_"));
    rest.is_some_and(|rest| VARIABLES.iter().any(|end| rest.ends_with(end)))
}

/// Reads the credentials, so that errors in them show before the server runs.
pub(super) fn read(config: &mut Config, environment: &Environment) -> Result<(), ConfigError> {
    for engine in &mut config.engines {
        engine.read_credentials(environment)?;
    }
    note_unused(config, environment);
    Ok(())
}

/// Adds notices about credentials of engines that there are not.
fn note_unused(config: &mut Config, environment: &Environment) {
    let of = |engine: &EngineConfig| VARIABLES.map(|what| engine.variable(what));
    let used: Vec<String> = config.engines.iter().flat_map(of).collect();
    let names = environment.keys().filter_map(|name| name.to_str());
    let mut unused: Vec<_> = names
        .filter(|name| is_credential(name) && !used.iter().any(|known| known == name))
        .collect();
    unused.sort_unstable();
    let notices =
        unused.into_iter().map(|name| format!("{name} belongs to no engine and is ignored"));
    config.notices.extend(notices);
}
