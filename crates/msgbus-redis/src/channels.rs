//! The channels on which servers say that a topic has something new. One connection is subscribed to all of them.

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value, aio::MultiplexedConnection};
use tokio::sync::{Notify, RwLock};

/// All channels that somebody listens to, or has until lately.
#[derive(Default)]
pub(crate) struct Channels {
    known: Mutex<HashMap<String, Arc<Channel>>>,
    /// Those who subscribe share it. Who unsubscribes has it alone, so that no one subscribes in between.
    order: RwLock<()>,
}

struct Channel {
    /// How often there was something new, or may have been.
    version: AtomicU64,
    changed: Notify,
    /// The generation of the connection that is subscribed. 0 is none.
    subscribed: AtomicU64,
}

/// Hears of what is new on a channel, as long as the connection of its generation lasts.
pub(crate) struct Listener {
    channel: Arc<Channel>,
    name: String,
    /// The version that is not new.
    seen: u64,
}

impl Channel {
    fn change(&self) {
        self.version.fetch_add(1, Release);
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
            let (version, subscribed) = (AtomicU64::new(0), AtomicU64::new(0));
            Arc::new(Channel { version, changed: Notify::new(), subscribed })
        };
        let mut known = self.known.lock();
        // Under the lock, so that nobody finds the channel unused.
        let channel = Arc::clone(known.entry(name.clone()).or_insert_with(new));
        drop(known);
        let seen = channel.version.load(Acquire);
        Listener { channel, name, seen }
    }

    /// What the server has said. Must not block.
    pub(crate) fn hear(&self, push: &PushInfo) {
        let (PushKind::SMessage, Some(Value::BulkString(name))) = (&push.kind, push.data.first())
        else {
            return;
        };
        let Ok(name) = str::from_utf8(name) else { return };
        let channel = self.known.lock().get(name).map(Arc::clone);
        if let Some(channel) = channel {
            channel.change();
        }
    }

    /// Tells everybody that the connection is another one, or gone.
    pub(crate) fn wake_all(&self) {
        let channels: Vec<_> = self.known.lock().values().map(Arc::clone).collect();
        for channel in channels {
            channel.change();
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
        self.seen = self.channel.version.load(Acquire);
    }

    /// Waits until there is something new, or the connection is another one.
    pub(crate) async fn wait(&mut self) {
        let mut changed = pin!(self.channel.changed.notified());
        // Before it looks, so that nothing is overlooked.
        changed.as_mut().enable();
        if self.channel.version.load(Acquire) == self.seen {
            changed.await;
        }
    }
}
