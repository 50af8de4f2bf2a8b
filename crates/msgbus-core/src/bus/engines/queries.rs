//! What a bus knows of its engines, and what engines know of topics and groups.

use std::sync::Arc;

use super::{Engines, SharedEngine, window::Window};
use crate::{
    bus::{MessageBus, TopicMap, op::Op},
    engine::{
        Begin, Engine, EngineError, EngineGroup, EngineGroupSettings, EngineStats, EngineTopics,
        EngineUsage, WindowStats,
    },
    error::GroupError,
    model::{GroupName, TopicName, TopicPattern},
    options::GroupConfig,
    store::StoreError,
};

/// How many topics are asked for at a time: to find them, an engine may have to go through all of its topics.
const PAGE: usize = 10_000;

impl MessageBus {
    /// The engine in which a topic lives. `None` if it does not live in any.
    pub fn engine_of(&self, topic: &TopicName) -> Option<Arc<dyn Engine>> {
        let engine = self.topic_ref(topic, &mut None).engine()?;
        Some(engine.engine)
    }

    /// An engine in which a topic may live that matches a pattern. Such a pattern cannot be followed. `None` if there is none.
    pub fn engine_of_pattern(&self, pattern: &TopicPattern) -> Option<Arc<dyn Engine>> {
        let engine = self.0.engines()?.of_pattern(pattern)?;
        Some(Arc::clone(&engine.engine))
    }

    /// The windows of topics that live in engines.
    pub fn engine_windows(&self) -> Vec<WindowStats> {
        let windows = self.0.engines().map(Engines::windows).unwrap_or_default();
        windows.iter().map(|window| window.stats()).collect()
    }

    /// The window of a topic that lives in an engine. `None` if there is none: nobody follows the topic.
    pub fn engine_window(&self, topic: &TopicName) -> Option<WindowStats> {
        let window = self.0.engines()?.windows.lock().get(topic).map(Arc::clone);
        window.map(|window: Arc<Window>| window.stats())
    }

    /// What the bus has asked of its engines.
    pub fn engine_usage(&self) -> Vec<(Arc<dyn Engine>, EngineUsage)> {
        let Some(engines) = self.0.engines() else { return Vec::new() };
        let all = engines.all().map(|shared| (Arc::clone(&shared.engine), shared.usage.read()));
        all.collect()
    }

    /// What an engine knows of a topic. `None` if the topic does not live in an engine, or has no messages.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn engine_stats(
        &self,
        topic: &TopicName,
    ) -> Result<Option<EngineStats>, EngineError> {
        match self.topic_ref(topic, &mut None).engine() {
            Some(engine) => engine.call(|engine| engine.stats(topic)).await,
            None => Ok(None),
        }
    }

    /// The first `max` topics that live in engines, have messages, begin with `prefix`, come after `after` and are wanted.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn engine_topics(
        &self,
        prefix: &str,
        after: &str,
        max: usize,
        mut is_wanted: impl FnMut(&TopicName) -> bool,
    ) -> Result<EngineTopics, EngineError> {
        let mut all = EngineTopics::default();
        let Some(engines) = self.0.engines() else { return Ok(all) };
        for engine in engines.all() {
            let found = engines.topics_in(engine, prefix, after, max, &mut is_wanted).await?;
            all.topics.extend(found.topics);
            all.has_more |= found.has_more;
        }
        all.topics.sort_unstable();
        all.has_more |= all.topics.len() > max;
        all.topics.truncate(max);
        Ok(all)
    }

    /// Whether a pattern can be followed: it cannot if a topic that matches may live in an engine.
    ///
    /// # Errors
    /// [`EngineError::NotSupported`].
    pub fn may_follow(&self, pattern: &TopicPattern) -> Result<(), EngineError> {
        self.0.refuse_pattern(pattern)
    }

    /// A group of a topic that lives in an engine. `None` if the topic does not, or if there is no such group.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub async fn engine_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
    ) -> Result<Option<EngineGroup>, EngineError> {
        match self.topic_ref(topic, &mut None).engine() {
            Some(engine) => engine.call(|engine| engine.group(topic, group)).await,
            None => Ok(None),
        }
    }
}

impl Engines {
    /// Each engine once.
    fn all(&self) -> impl Iterator<Item = &SharedEngine> {
        let engines: Vec<_> = self.rules.iter().filter_map(|(_, engine)| engine.as_ref()).collect();
        let is_first = |(index, engine): &(usize, &&SharedEngine)| {
            !engines[..*index].iter().any(|other| Arc::ptr_eq(&other.engine, &engine.engine))
        };
        let once: Vec<_> = engines.iter().enumerate().filter(is_first).map(|(_, e)| *e).collect();
        once.into_iter()
    }

    /// The wanted topics that live in an engine, at least `max` if there are so many. It may also have some that live
    /// elsewhere by now.
    async fn topics_in(
        &self,
        engine: &SharedEngine,
        prefix: &str,
        after: &str,
        max: usize,
        is_wanted: &mut impl FnMut(&TopicName) -> bool,
    ) -> Result<EngineTopics, EngineError> {
        let lives_here = |name: &TopicName| {
            self.find(name).is_some_and(|found| Arc::ptr_eq(&found.engine, &engine.engine))
        };
        let (mut topics, mut after) = (Vec::new(), after.to_owned());
        loop {
            let page = engine.call(|engine| engine.topics(prefix, &after, PAGE)).await?;
            let last = page.topics.last().map(|(name, _)| name.as_str().to_owned());
            let found = page.topics.into_iter();
            topics.extend(found.filter(|(name, _)| lives_here(name) && is_wanted(name)));
            match last {
                Some(last) if page.has_more && topics.len() < max => after = last,
                _ => return Ok(EngineTopics { topics, has_more: page.has_more }),
            }
        }
    }

    /// An engine in which a topic may live that matches a pattern.
    pub(in crate::bus) fn of_pattern(&self, pattern: &TopicPattern) -> Option<&SharedEngine> {
        for (rule, engine) in &self.rules {
            match engine {
                Some(engine) if rule.pattern.overlaps(pattern) => return Some(engine),
                // Rules with a less specific pattern do not matter.
                None if rule.pattern.covers(pattern) => return None,
                _ => {}
            }
        }
        None
    }
}

impl TopicMap {
    /// Refuses what patterns cannot do, if a topic that matches may live in an engine.
    ///
    /// # Errors
    /// [`EngineError::NotSupported`].
    pub(in crate::bus) fn refuse_pattern(&self, pattern: &TopicPattern) -> Result<(), EngineError> {
        match self.engines().and_then(|engines| engines.of_pattern(pattern)) {
            Some(engine) => Err(engine.unsupported("follow patterns")),
            None => Ok(()),
        }
    }
}

impl SharedEngine {
    pub(in crate::bus) fn set_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
        config: &GroupConfig,
    ) -> Op<Result<bool, GroupError>> {
        let GroupConfig { from, max_deliveries, max_leases, dead_letters } = config.clone();
        if max_leases.is_some() {
            let refusal = StoreError::from(self.unsupported("limit the leases of a group"));
            return Op::ready(Err(refusal.into()));
        }
        let from = from.map(Begin::from);
        let change = EngineGroupSettings { max_deliveries, dead_letters };
        let (engine, topic, group) = (self.clone(), topic.clone(), group.clone());
        Op::running(async move {
            let set = engine.call(|engine| engine.set_group(&topic, &group, from)).await?;
            if change != EngineGroupSettings::default() {
                let changed = engine.call(|engine| engine.change_group(&topic, &group, change));
                changed.await.map_err(|error| match error {
                    // The group may have been made, or moved.
                    EngineError::Unavailable
                    | EngineError::Busy
                    | EngineError::Denied
                    | EngineError::Full
                        if set || from.is_some() =>
                    {
                        EngineError::Unknown
                    }
                    error => error,
                })?;
            }
            Ok(set)
        })
    }

    pub(in crate::bus) fn remove_group(
        &self,
        topic: &TopicName,
        group: &GroupName,
    ) -> Op<Result<bool, StoreError>> {
        let (engine, topic, group) = (self.clone(), topic.clone(), group.clone());
        Op::running(
            async move { Ok(engine.call(|engine| engine.remove_group(&topic, &group)).await?) },
        )
    }
}
