//! The services of a bus: requests and replies. One lock for each service, and one for each shard of the map.

use std::{
    fmt,
    hash::{BuildHasher as _, RandomState},
    iter, ptr,
    sync::{Arc, Weak},
    task::Waker,
};

use parking_lot::{Mutex, RwLock};

use super::{MessageBus, SharedEngine, clock, map::TopicMap};
use crate::{
    model::{NewRequest, Reply, ReplyNotWanted, ReplyToken, RequestError, RequestKey, TopicName},
    options::BatchLimit,
    receive::{PendingRequest, ServePull},
    requests::{Origin, Service},
    stats::ServiceStats,
    topic::Reservation,
};

/// A service under its lock.
pub(crate) struct SharedService {
    name: TopicName,
    number: u32,
    map: Weak<TopicMap>,
    /// Through which it reaches other buses.
    engine: Option<SharedEngine>,
    service: Mutex<Service>,
}

/// Omits the requests: their payloads and tokens are secrets.
impl fmt::Debug for SharedService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedService({})", self.name)
    }
}

impl SharedService {
    /// Calls `act` under the lock, and then tells the timer if something is due earlier than it knows.
    pub(crate) fn with<T>(self: &Arc<Self>, act: impl FnOnce(&mut Service) -> T) -> T {
        let mut service = self.service.lock();
        let result = act(&mut service);
        let registration = service.next_registration();
        let discarded = service.discarded();
        drop(service);
        drop(discarded);
        if let (Some(registration), Some(map)) = (registration, self.map.upgrade()) {
            map.timer.register_service(registration, self);
        }
        result
    }

    pub(crate) fn name(&self) -> &TopicName {
        &self.name
    }

    pub(crate) fn engine(&self) -> Option<&SharedEngine> {
        self.engine.as_ref()
    }

    /// The origin of requests that are asked here.
    fn origin(&self) -> Origin {
        if self.engine.is_some() { Origin::HereForAll } else { Origin::Here }
    }

    /// Removes a service that exists only because somebody has asked for it.
    pub(crate) fn forget_if_unused(self: &Arc<Self>) {
        let is_unused = || self.service.lock().is_idle(clock::monotonic());
        if self.engine.is_some()
            && is_unused()
            && let Some(map) = self.map.upgrade()
        {
            map.services.forget(self, is_unused);
        }
    }

    /// The token of one of its requests.
    pub(crate) fn token(&self, key: RequestKey) -> ReplyToken {
        ReplyToken { service: self.number, key }
    }

    /// Ends what is due.
    pub(super) fn run_due(self: &Arc<Self>) {
        let wakers = self.with(|service| service.run_due(clock::monotonic()));
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Drop for SharedService {
    /// The timer would keep its memory until the deadline.
    fn drop(&mut self) {
        let registered = self.service.get_mut().registered();
        if let (Some(at), Some(map)) = (registered, self.map.upgrade()) {
            map.timer.unregister(at, ptr::from_ref(self).addr());
        }
    }
}

/// The services of a bus, by name and by number.
#[derive(Debug)]
pub(super) struct ServiceMap {
    shards: Box<[RwLock<Shard>]>,
    hasher: RandomState,
}

/// Services by number within the shard. There are few in each.
type Shard = Vec<Option<Arc<SharedService>>>;

impl ServiceMap {
    const SHARDS: u32 = 256;
    /// The maximum number of services. It bounds the memory of their counters.
    pub(super) const MAX: u32 = 65_536;

    pub(super) fn new() -> Self {
        let shards = iter::repeat_with(RwLock::default).take(Self::SHARDS as usize).collect();
        Self { shards, hasher: RandomState::new() }
    }

    fn shard_of(&self, name: &TopicName) -> u32 {
        u32::try_from(self.hasher.hash_one(name) % u64::from(Self::SHARDS)).unwrap_or(0)
    }

    fn shard(&self, number: u32) -> &RwLock<Shard> {
        &self.shards[(number % Self::SHARDS) as usize]
    }

    fn find(&self, name: &TopicName) -> Option<Arc<SharedService>> {
        let shard = self.shard(self.shard_of(name)).read();
        shard.iter().flatten().find(|service| service.name == *name).map(Arc::clone)
    }

    fn get(&self, number: u32) -> Option<Arc<SharedService>> {
        let shard = self.shard(number).read();
        shard.get((number / Self::SHARDS) as usize)?.clone()
    }

    fn all(&self) -> Vec<Arc<SharedService>> {
        self.shards
            .iter()
            .flat_map(|shard| shard.read().iter().flatten().map(Arc::clone).collect::<Vec<_>>())
            .collect()
    }

    fn find_or_create(
        &self,
        name: &TopicName,
        map: &TopicMap,
    ) -> Result<Arc<SharedService>, RequestError> {
        if let Some(service) = self.find(name) {
            return Ok(service);
        }
        let of_name = self.shard_of(name);
        let mut shard = self.shard(of_name).write();
        // Under the lock: a closed bus closes the services that it finds.
        if map.is_closed() {
            return Err(RequestError::Closed);
        }
        // Another thread may have created it in between.
        if let Some(service) = shard.iter().flatten().find(|service| service.name == *name) {
            return Ok(Arc::clone(service));
        }
        let index = shard.iter().position(Option::is_none).unwrap_or(shard.len());
        let number = u32::try_from(index).ok().and_then(|index| index.checked_mul(Self::SHARDS));
        let number = number.map(|number| number + of_name).filter(|number| *number < Self::MAX);
        let number = number.ok_or(RequestError::TooManyServices { limit: Self::MAX })?;
        let memory = Reservation::new(Arc::clone(&map.budget));
        let service = Service::new(name.clone(), memory);
        let shared = Arc::new(SharedService {
            name: name.clone(),
            number,
            map: Weak::clone(&map.own),
            engine: map.engines().and_then(|engines| engines.find(name)).cloned(),
            service: Mutex::new(service),
        });
        if index == shard.len() {
            shard.push(None);
        }
        shard[index] = Some(Arc::clone(&shared));
        Ok(shared)
    }

    /// Removes a service that only the caller holds.
    fn forget(&self, service: &Arc<SharedService>, is_unused: impl FnOnce() -> bool) {
        let mut shard = self.shard(service.number).write();
        let Some(slot) = shard.get_mut((service.number / Self::SHARDS) as usize) else { return };
        slot.take_if(|found| {
            Arc::ptr_eq(found, service) && Arc::strong_count(found) == 2 && is_unused()
        });
    }

    /// Removes services that nobody uses.
    pub(super) fn remove_idle(&self) {
        let now = clock::monotonic();
        for shard in &self.shards {
            let mut shard = shard.write();
            for slot in shard.iter_mut() {
                // Whoever else holds it is about to use it.
                slot.take_if(|service| {
                    Arc::strong_count(service) == 1 && service.service.lock().is_idle(now)
                });
            }
            while shard.last().is_some_and(Option::is_none) {
                shard.pop();
            }
        }
    }

    pub(super) fn close(&self) {
        for service in self.all() {
            let wakers = service.service.lock().close();
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl MessageBus {
    /// Asks a service. Its request goes to the responder that has waited longest, or waits for one. Nobody else sees it.
    ///
    /// If the service lives in an engine and no responder waits here, a responder at another bus gets it; see
    /// [`engine`](crate::engine).
    ///
    /// A program whose requests are to end in time without [`PendingRequest::wait`] calls [`run_due`](Self::run_due).
    ///
    /// ```
    /// use msgbus_core::{BatchLimit, MessageBus, Options};
    ///
    /// let bus = MessageBus::new(Options::default());
    /// let upper = "upper".parse()?;
    ///
    /// let responder = bus.serve(&upper, BatchLimit::ONE)?;
    /// let reply = bus.request(&upper, "hello");
    /// for request in responder.wait()? {
    ///     let payload = request.payload().to_ascii_uppercase();
    ///     request.reply(payload)?;
    /// }
    /// assert_eq!(reply.wait()?.payload, "HELLO");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn request(&self, service: &TopicName, request: impl Into<NewRequest>) -> PendingRequest {
        let service = match self.0.services.find(service) {
            None if self.0.engines().is_some_and(|engines| engines.find(service).is_some()) => {
                self.0.services.find_or_create(service, &self.0)
            }
            None if self.0.is_closed() => Err(RequestError::Closed),
            None => Err(RequestError::NoResponder),
            Some(service) => Ok(service),
        };
        match service {
            Ok(service) => PendingRequest::ask(&service, request.into(), service.origin()),
            Err(error) => PendingRequest::refused(error),
        }
    }

    /// Serves a service: waits for its next requests, up to `limit` of them, but at least one. While no responder waits,
    /// requests wait until one does, but are refused when none was there for two seconds.
    ///
    /// # Errors
    /// [`RequestError::Closed`] when the bus is closed. [`RequestError::TooManyServices`] when there are too many; the
    /// limit is 65,536, or fewer if their names are distributed badly.
    pub fn serve(&self, service: &TopicName, limit: BatchLimit) -> Result<ServePull, RequestError> {
        let service = self.0.services.find_or_create(service, &self.0)?;
        let responder = service.with(|service| service.join(clock::monotonic()))?;
        service.announce();
        Ok(ServePull::new(service, responder, limit))
    }

    /// The service of a request that a responder is about to answer.
    ///
    /// # Errors
    /// When nobody waits for the reply.
    pub fn service_of(&self, token: &ReplyToken) -> Result<TopicName, ReplyNotWanted> {
        let service = self.0.services.get(token.service).ok_or(ReplyNotWanted)?;
        service.with(|service| service.wants_reply(token.key, clock::monotonic()))?;
        Ok(service.name.clone())
    }

    /// Whether a responder has a request whose requester still waits. Unlike [`service_of`](Self::service_of), it does
    /// not announce a reply.
    pub fn is_in_hand(&self, token: &ReplyToken) -> bool {
        let service = self.0.services.get(token.service);
        service
            .is_some_and(|service| service.service.lock().is_in_hand(token.key, clock::monotonic()))
    }

    /// Answers a request with a reply, or with the reason of a failure.
    ///
    /// # Errors
    /// When nobody waits for the reply.
    pub fn reply(
        &self,
        token: &ReplyToken,
        reply: Result<Reply, Box<str>>,
    ) -> Result<(), ReplyNotWanted> {
        self.0.services.get(token.service).ok_or(ReplyNotWanted)?.reply(token, reply)
    }

    /// The responder of a request has left: the request fails, or goes to another one.
    pub fn hand_back(&self, token: &ReplyToken) {
        if let Some(service) = self.0.services.get(token.service) {
            service.hand_back(token);
        }
    }

    /// Counts a request that was refused because nobody serves its service.
    pub fn count_refused(&self, service: &TopicName) {
        if let Some(service) = self.0.services.find(service) {
            service.with(Service::count_refused);
        }
    }

    /// Whether somebody serves a service at this bus, or did within the last two seconds.
    pub fn is_served(&self, service: &TopicName) -> bool {
        let service = self.0.services.find(service);
        service.is_some_and(|service| !service.service.lock().is_absent(clock::monotonic()))
    }

    /// One service at this bus. `None` if it does not exist.
    pub fn service(&self, service: &TopicName) -> Option<ServiceStats> {
        self.0.services.find(service).map(|service| service.service.lock().stats())
    }

    /// All services of this bus, sorted by name.
    pub fn services(&self) -> Vec<ServiceStats> {
        let all = self.0.services.all();
        let mut all: Vec<_> = all.iter().map(|service| service.service.lock().stats()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl SharedService {
    pub(crate) fn reply(
        self: &Arc<Self>,
        token: &ReplyToken,
        reply: Result<Reply, Box<str>>,
    ) -> Result<(), ReplyNotWanted> {
        let replied = self.with(|service| service.reply(token.key, reply, clock::monotonic()));
        if let Some(requester) = replied? {
            requester.wake();
        }
        Ok(())
    }

    pub(crate) fn hand_back(self: &Arc<Self>, token: &ReplyToken) {
        if let Some(waker) = self.with(|service| service.hand_back(token.key, clock::monotonic())) {
            waker.wake();
        }
    }
}
