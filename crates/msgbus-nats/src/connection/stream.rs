//! The stream: found as it is, or made as the options say.

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, StorageType, Stream};
use msgbus_core::engine::EngineError;
use serde_json::Value;
use tracing::warn;

use super::Connection;
use crate::error::{has_no_responder, is_stream_missing, request_error};

/// Comes before the secret in the description of the stream.
const SECRET: &str = "; secret ";

/// The stream, as it was found.
pub(crate) struct Known {
    pub(crate) stream: Stream,
    pub(crate) epoch: u64,
    /// How long it keeps messages, whatever the options say.
    pub(crate) max_age: Option<Duration>,
    /// The highest sequence that is known.
    pub(crate) highest: Arc<AtomicU64>,
    /// How often there had been a connection. After another one, it may be another stream.
    pub(crate) connects: u64,
    /// Makes the keys of leases.
    pub(crate) secret: String,
}

impl fmt::Debug for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The description of the stream has the secret, too.
        f.debug_struct("Known").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Known {
    /// Whether the server forgets marks by itself.
    pub(crate) fn forgets_marks(&self) -> bool {
        self.stream.cached_info().config.allow_message_ttl
    }
}

impl Connection {
    pub(super) async fn find(&self, connects: u64) -> Result<Known, EngineError> {
        let name = &self.options.stream;
        let stream = match self.context.get_stream(name).await {
            Ok(stream) => self.allow_ttl(stream).await,
            Err(error) if is_stream_missing(&error) => self.create().await?,
            Err(error) => return Err(self.unserved(&error)),
        };
        let info = stream.cached_info();
        let secret = self.options.secret.clone().or_else(|| {
            let description = info.config.description.as_deref()?;
            Some(description.split_once(SECRET)?.1.to_owned())
        });
        let Some(secret) = secret else {
            warn!(stream = name, "the stream was not created by msgbus: set a secret");
            return Err(EngineError::Denied);
        };
        self.compare(&info.config);
        let epoch = epoch(info);
        // A key is of no use in another stream.
        let secret = format!("{secret} {epoch}");
        let highest = Arc::new(AtomicU64::new(info.state.last_sequence));
        let max_age = Some(info.config.max_age).filter(|age| !age.is_zero());
        Ok(Known { stream, epoch, max_age, highest, connects, secret })
    }

    /// Lets messages of a stream have TTLs that was made by msgbus on an older server.
    async fn allow_ttl(&self, stream: Stream) -> Stream {
        let config = &stream.cached_info().config;
        let is_own = config.description.as_deref().is_some_and(|text| text.contains(SECRET));
        if config.allow_message_ttl || !is_own || !self.is_at_least(2, 11) {
            return stream;
        }
        let name = &self.options.stream;
        let allow = async {
            // As JSON, so that nothing is left out that this client does not know.
            let info: Value =
                self.context.request(format!("STREAM.INFO.{name}"), &()).await.ok()?;
            let mut config = info["config"].clone();
            config["allow_msg_ttl"] = true.into();
            let update = format!("STREAM.UPDATE.{name}");
            let updated: Value = self.context.request(update, &config).await.ok()?;
            updated.get("error").is_none().then_some(())?;
            self.context.get_stream(name).await.ok()
        };
        let allowed = allow.await;
        if allowed.is_none() {
            warn!(stream = name, "the stream cannot be changed to allow TTLs of messages");
        }
        allowed.unwrap_or(stream)
    }

    async fn create(&self) -> Result<Stream, EngineError> {
        let created = self.context.create_stream(self.config()).await;
        match created {
            Ok(stream) => Ok(stream),
            // Another node may have created it meanwhile.
            Err(error) => match self.context.get_stream(&self.options.stream).await {
                Ok(stream) => Ok(stream),
                Err(_) => Err(self.unserved(&error)),
            },
        }
    }

    /// Why there is no stream.
    fn unserved(&self, error: &(dyn std::error::Error + 'static)) -> EngineError {
        let is_known = matches!(*self.answers.lock(), Some(Err(_)));
        if !is_known {
            warn!(stream = self.options.stream, "NATS does not serve the stream: {error}");
        }
        if has_no_responder(error) && !self.client.server_info().jetstream {
            let operation = "keep topics: the server runs without JetStream";
            return EngineError::NotSupported { engine: "nats", operation };
        }
        request_error(error)
    }

    fn config(&self) -> Config {
        let options = &self.options;
        let mut random = [0; 16];
        // Without randomness the stream has no secret, and is refused.
        let secret = getrandom::fill(&mut random).map(|()| u128::from_le_bytes(random));
        let description = secret.map(|secret| format!("topics of msgbus{SECRET}{secret:032x}"));
        let limit = |limit: Option<i64>| limit.unwrap_or(-1);
        Config {
            name: options.stream.clone(),
            subjects: vec![format!("{}.>", options.prefix)],
            description: description.ok(),
            max_age: options.max_age.unwrap_or_default(),
            max_messages_per_subject: limit(options.max_messages_per_topic.map(i64::from)),
            max_bytes: limit(options.max_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(-1))),
            max_messages: -1,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: options.replicas,
            duplicate_window: match options.max_age {
                Some(age) => options.duplicate_window.min(age),
                None => options.duplicate_window,
            },
            // Otherwise newer servers allow 1,000.
            max_consumers: 100_000,
            allow_direct: true,
            allow_message_ttl: self.is_at_least(2, 11),
            ..Config::default()
        }
    }

    /// Whether the server has this version or a later one. The client could tell too, with regular expressions, which take
    /// a megabyte of the binary.
    pub(crate) fn is_at_least(&self, major: u32, minor: u32) -> bool {
        version(&self.client.server_info().version) >= (major, minor)
    }

    /// Says what is different from the options.
    fn compare(&self, found: &Config) {
        let wanted = self.config();
        let value = |value: &dyn fmt::Debug| format!("{value:?}");
        let per_topic = |config: &Config| value(&config.max_messages_per_subject);
        let differs = [
            ("max_age", value(&found.max_age), value(&wanted.max_age)),
            ("max_bytes", value(&found.max_bytes), value(&wanted.max_bytes)),
            ("replicas", value(&found.num_replicas), value(&wanted.num_replicas)),
            ("max_messages_per_topic", per_topic(found), per_topic(&wanted)),
            ("duplicate_window", value(&found.duplicate_window), value(&wanted.duplicate_window)),
        ];
        for (setting, found_value, wanted) in differs {
            if found_value != wanted {
                let why = "the stream has another value than the options";
                warn!(stream = found.name, setting, has = found_value, options = wanted, "{why}");
            }
        }
    }
}

pub(crate) fn epoch(info: &Info) -> u64 {
    let created = info.created.timestamp_nanos_opt().unwrap_or_default();
    u64::try_from(created).unwrap_or_default().max(1)
}

/// The major and the minor number of a version such as `2.10.1-beta`.
fn version(text: &str) -> (u32, u32) {
    let mut numbers =
        text.trim_start_matches('v').split(['.', '-']).map_while(|part| part.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("2.9.10"), (2, 9));
        assert_eq!(version("2.11.0-preview.1"), (2, 11));
        assert_eq!(version("v2.14"), (2, 14));
        assert!(version("2.9.10") < (2, 10) && version("2.10.0") >= (2, 10));
        assert_eq!(version(""), (0, 0), "an unknown server counts as old");
    }
}
