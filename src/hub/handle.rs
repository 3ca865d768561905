//! The ways to the hub: the handle that anyone may have, and that of one connection.

use std::sync::Arc;

use bytes::Bytes;

use super::allowance::{Allowance, Budget, HubGone};
use super::event::{ConnectionKey, Event, Notify, Place, PublisherName, Refusal, Said};
use super::query::Counts;
use super::rates::UserRates;
use super::socket::Socket;
use super::users::UserShare;
use crate::auth::Identity;
use crate::bridge::{Incoming, Logged};
use crate::config::MIB;
use crate::protocol::Delivery;
use crate::protocol::Room;
use crate::protocol::close::Close;
use crate::runtime::channel::{Sender, bounded};

/// Messages of the broker that may wait for the hub; as many answers of its log, and calls that notify.
const WAITING_MESSAGES: usize = 10_000;
/// Bytes of each that may wait for the hub.
const WAITING_BYTES: usize = 16 * MIB;

/// Sends events to the hub, and never waits to do so: what may wait is bounded by allowances, and by what
/// one thread asks at a time.
#[derive(Clone)]
pub struct HubHandle {
    events: Sender<Event>,
    budget: Arc<Budget>,
    broker: Arc<Allowance>,
    answers: Arc<Allowance>,
    notifications: Arc<Allowance>,
}

impl HubHandle {
    /// A handle over the hub's channel.
    pub fn new(events: Sender<Event>) -> Self {
        let budget = Arc::new(Budget::default());
        let own = || Arc::clone(&budget);
        // What others have taken may wait for what these bring.
        let reserved = || Arc::new(Allowance::reserved(own(), WAITING_MESSAGES, WAITING_BYTES));
        let notifications = Arc::new(Allowance::new(own(), WAITING_MESSAGES, WAITING_BYTES));
        Self { events, broker: reserved(), answers: reserved(), notifications, budget }
    }

    /// Sends one event.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn send(&self, event: Event) -> Result<(), HubGone> {
        self.events.send(event).map_err(|_| HubGone)
    }

    /// Asks for a place for a connection of this number.
    ///
    /// # Errors
    /// Why there is none.
    pub fn reserve(&self, identity: Arc<Identity>, number: u64) -> Result<Publisher, Refusal> {
        let place = self.ask(|reply| Event::Reserve { identity, number, reply });
        let Place { key, share } = place.unwrap_or(Err(Refusal::ShuttingDown))?;
        Ok(Publisher { key, hub: self.clone(), share })
    }

    /// Delivers on this instance and hands over to the broker; returns for each the number of local
    /// connections whose outbox took it. It waits while too many notifications wait already.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn notify(
        &self,
        publisher: PublisherName,
        deliveries: Vec<Delivery>,
    ) -> Result<Vec<usize>, HubGone> {
        let taken = deliveries.iter().map(|delivery| delivery.draft.len()).sum();
        self.notifications.take(taken)?;
        self.ask(|reply| Event::Notify(Notify { publisher, deliveries, reply, taken }))
    }

    /// Takes what came from the broker; waits while too much of it waits already.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn hear(&self, incoming: Incoming) -> Result<(), HubGone> {
        match &incoming {
            Incoming::Message(Delivery { draft, .. })
            | Incoming::Unnumbered(Delivery { draft, .. })
            | Incoming::Logged(Logged { draft, .. }) => {
                self.broker.take(draft.len())?;
            }
            // On their own: messages of the stream may have to wait for them.
            Incoming::Answer { answer: Ok(answer), .. } => self.answers.take(answer.bytes())?,
            _ => {}
        }
        self.send(Event::Broker(incoming))
    }

    /// Who is here.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn counts(&self) -> Result<Counts, HubGone> {
        self.ask(Event::Counts)
    }

    /// Sends a question and waits for its answer.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn ask<T>(&self, event: impl FnOnce(Sender<T>) -> Event) -> Result<T, HubGone> {
        let (reply, answer) = bounded(1);
        self.send(event(reply))?;
        answer.recv().map_err(|_| HubGone)
    }

    /// Events that the hub has not looked at yet.
    pub fn queue_len(&self) -> usize {
        self.events.len()
    }

    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(super) fn broker(&self) -> &Arc<Allowance> {
        &self.broker
    }

    pub(super) fn answers(&self) -> &Arc<Allowance> {
        &self.answers
    }

    pub(super) fn notifications(&self) -> &Arc<Allowance> {
        &self.notifications
    }
}

/// A connection's way to the hub: what it says waits in its user's queue, and it waits while that is full.
/// Dropping it, also by a panic, says that nothing more will come.
pub struct Publisher {
    pub(super) key: ConnectionKey,
    hub: HubHandle,
    share: Arc<UserShare>,
}

impl Publisher {
    /// What the user may send, over all its connections.
    pub fn rates(&self) -> &UserRates {
        &self.share.rates
    }

    /// Makes the connection live; the hub writes `response` first.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn register(&self, socket: Arc<dyn Socket>, response: Bytes) -> Result<(), HubGone> {
        self.hub.send(Event::Register { key: self.key, socket, response })
    }

    /// Says something that is based on so many bytes of the peer; waits while too much waits already.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn say(&self, said: Said, bytes: usize) -> Result<(), HubGone> {
        self.share.allowance.take(bytes)?;
        self.hub.send(Event::Said { key: self.key, said, taken: Some(bytes) })
    }

    /// Whether the connection is in the room, once what it has said before is served.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn is_member(&self, room: &Room) -> Result<bool, HubGone> {
        let (reply, answer) = bounded(1);
        self.say(Said::IsMember(room.clone(), reply), room.as_str().len())?;
        answer.recv().map_err(|_| HubGone)
    }

    /// Asks for a Close; from now on nothing else is said.
    ///
    /// # Errors
    /// [`HubGone`] when the hub has ended.
    pub fn close(&self, close: Close) -> Result<(), HubGone> {
        self.hub.send(Event::Said { key: self.key, said: Said::Close(close), taken: None })
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Without a hub no one waits for this.
        let _ = self.hub.send(Event::Said { key: self.key, said: Said::Ended, taken: None });
    }
}
