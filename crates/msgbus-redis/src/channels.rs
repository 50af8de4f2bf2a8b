//! The channels on which servers say that a topic has something new. One connection is subscribed to all of them.

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Acquire, Release},
        },
    },
};

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value, aio::MultiplexedConnection};
use tokio::sync::{Notify, RwLock};

use crate::news::Told;

/// All channels that somebody listens to, or has until lately.
#[derive(Default)]
pub(crate) struct Channels {
    known: Mutex<HashMap<String, Arc<Channel>>>,
    /// Those who subscribe share it. Who unsubscribes has it alone, so that no one subscribes in between.
    order: RwLock<()>,
    /// The bytes that are kept until somebody takes them.
    kept: Arc<AtomicUsize>,
}

struct Channel {
    said: Mutex<Said>,
    changed: Notify,
    /// The generation of the connection that is subscribed. 0 is none.
    subscribed: AtomicU64,
}

#[derive(Default)]
struct Said {
    /// How often there was something new, or may have been.
    version: u64,
    /// What was said since it was last taken. `None` if nobody takes it, or something is not here.
    told: Option<Told>,
}

/// What is said when what comes next says what is new, to those who hear it.
const MORE_FOLLOWS: &[u8] = b"+";

/// Hears of what is new on a channel, as long as the connection of its generation lasts.
pub(crate) struct Listener {
    channel: Arc<Channel>,
    name: String,
    /// The version that is not new.
    seen: u64,
    /// Whether it takes what is said.
    takes: bool,
}

impl Channel {
    /// Something was said, or may have been.
    fn change(&self, text: Option<Vec<u8>>) {
        let mut said = self.said.lock();
        said.version += 1;
        let is_kept =
            text.is_some_and(|text| said.told.as_mut().is_some_and(|told| told.add(text)));
        if !is_kept {
            said.told = None;
        }
        drop(said);
        self.changed.notify_waiters();
    }
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").field("known", &self.known.lock().len()).finish_non_exhaustive()
    }
}

impl Channels {
    pub(crate) fn listen(&self, name: String) -> Listener {
        let new = || {
            let (said, subscribed) = (Mutex::default(), AtomicU64::new(0));
            Arc::new(Channel { said, changed: Notify::new(), subscribed })
        };
        let mut known = self.known.lock();
        // Under the lock, so that nobody finds the channel unused.
        let channel = Arc::clone(known.entry(name.clone()).or_insert_with(new));
        drop(known);
        let seen = channel.said.lock().version;
        Listener { channel, name, seen, takes: false }
    }

    /// What the server has said on the connection of a generation. Must not block.
    pub(crate) fn hear(&self, push: PushInfo, generation: u64) {
        let mut data = push.data.into_iter();
        let (PushKind::SMessage, Some(Value::BulkString(name)), Some(Value::BulkString(text))) =
            (push.kind, data.next(), data.next())
        else {
            return;
        };
        let Ok(name) = str::from_utf8(&name) else { return };
        if text == MORE_FOLLOWS {
            return;
        }
        let channel = self.known.lock().get(name).map(Arc::clone);
        if let Some(channel) = channel {
            // A connection that was given up may lead to a server that does not lead any longer.
            let is_current = channel.subscribed.load(Acquire) == generation;
            channel.change(is_current.then_some(text));
        }
    }

    /// Tells everybody that the connection is another one, or gone.
    pub(crate) fn wake_all(&self) {
        let channels: Vec<_> = self.known.lock().values().map(Arc::clone).collect();
        for channel in channels {
            channel.change(None);
        }
    }

    /// Subscribes a connection, unless it is.
    pub(crate) async fn subscribe(
        &self,
        listener: &Listener,
        generation: u64,
        connection: &mut MultiplexedConnection,
    ) -> redis::RedisResult<()> {
        let is_subscribed = || listener.channel.subscribed.load(Acquire) == generation;
        if is_subscribed() {
            return Ok(());
        }
        let _order = self.order.read().await;
        if is_subscribed() {
            return Ok(());
        }
        let mut command = redis::cmd("SSUBSCRIBE");
        command.arg(&listener.name).query_async::<Value>(connection).await?;
        listener.channel.subscribed.store(generation, Release);
        Ok(())
    }

    /// Unsubscribes the connection from channels that nobody listens to.
    pub(crate) async fn unsubscribe_unused(
        &self,
        connection: &mut MultiplexedConnection,
    ) -> redis::RedisResult<()> {
        /// How many are named in a command.
        const CHUNK: usize = 100;
        let is_unused = |channel: &Arc<Channel>| Arc::strong_count(channel) == 1;
        if !self.known.lock().values().any(is_unused) {
            return Ok(());
        }
        let _order = self.order.write().await;
        let mut unused = Vec::new();
        self.known.lock().retain(|name, channel| {
            let is_used = !is_unused(channel);
            if !is_used {
                unused.push(name.clone());
            }
            is_used
        });
        for chunk in unused.chunks(CHUNK) {
            let mut commands = redis::pipe();
            for name in chunk {
                commands.cmd("SUNSUBSCRIBE").arg(name);
            }
            commands.query_async::<Value>(connection).await?;
        }
        Ok(())
    }
}

impl Listener {
    /// From now on, only what comes later is new.
    pub(crate) fn mark_seen(&mut self) {
        self.seen = self.channel.said.lock().version;
    }

    /// As [`mark_seen`](Self::mark_seen). Returns what was said since somebody has last done this, unless something may not
    /// be there.
    pub(crate) fn take(&mut self, channels: &Channels) -> Option<Told> {
        let mut said = self.channel.said.lock();
        self.seen = said.version;
        self.takes = true;
        said.told.replace(Told::new(&channels.kept))
    }

    /// Waits until there is something new, or the connection is another one.
    pub(crate) async fn wait(&mut self) {
        let mut changed = pin!(self.channel.changed.notified());
        // Before it looks, so that nothing is overlooked.
        changed.as_mut().enable();
        let is_new = self.channel.said.lock().version != self.seen;
        if !is_new {
            changed.await;
        }
    }
}

/// Nothing is kept any longer. Somebody else who takes it notices that.
impl Drop for Listener {
    fn drop(&mut self) {
        if self.takes {
            self.channel.said.lock().told = None;
        }
    }
}
