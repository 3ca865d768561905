//! The pure core of the hub: [`Hub::accept`] takes one event, [`Hub::serve`] serves what publishers said,
//! [`Hub::flush`] sends what that appended, [`Hub::tick`] is its only clock.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use log::info;
use slotmap::SlotMap;

use super::allowance::{Allowance, Budget};
use super::batch::{FrameBatch, FrameNumber};
use super::connection::{Audience, Clocks, Connection, DisconnectReason, Due, State};
use super::conversation::Outcome;
use super::copies::{Copies, LogEvent, Published};
use super::event::{Broadcast, ConnectionKey, Event, Notify, Place, PublisherName, Refusal, Said};
use super::groups::Groups;
use super::handle::HubHandle;
use super::history::{History, LogKey, Numbers};
use super::outbox::{BacklogLimits, Flush};
use super::pending::{Notifies, NotifyKey, Waits};
use super::rates::{Pace, UserLimits};
use super::room_rates::RoomRates;
use super::rooms::Rooms;
use super::schedule::{QUANTUM, Schedule, Share};
use super::socket::Socket;
use super::stats::{MessageKind, Stats};
use super::users::UserTable;
use super::{Outlets, WriterJob};
use crate::auth::{Identity, Role};
use crate::bridge::Outgoing;
use crate::config::{
    Config, FLUSH_BYTES, FLUSH_FRAMES, FLUSH_SOCKETS, LONE_FLUSH_FRAMES, RATE_TOLD_EVERY,
};
use crate::protocol::close::Close;
use crate::protocol::{
    Delivery, ErrorCode, MessageId, OPCODE_PING, OPCODE_PONG, Position, Reply, Room, Target,
    control_frame, error_frame, resumed_frame,
};
use crate::runtime::channel::Sender;
use crate::runtime::clock::{Moment, uptime};

/// Deliveries to connections that a flush reaches anyway which cost as much as reaching one more: a send takes
/// microseconds, and a further frame in it a tenth of one.
const DELIVERIES_PER_SEND: usize = 16;
/// Whose message goes to no more connections may come first when it had nothing waiting: a pair does not
/// notice a hundred such, and would notice one to a large room.
const SMALL_REACH: usize = 16;
/// Connections that are flushed before the hub looks whether something has come that goes first.
const FLUSHED_AT_ONCE: usize = 128;
/// Rooms that closed connections leave in one iteration of the loop: an admin may be in a million.
const LEFT_AT_ONCE: usize = 1000;

/// The pure core.
pub struct Hub {
    pub(super) config: Arc<Config>,
    pub(super) outlets: Outlets,
    budget: Arc<Budget>,
    /// Where what came through the broker is given back.
    pub(super) broker: Arc<Allowance>,
    /// The same for answers of its log.
    pub(super) answers: Arc<Allowance>,
    /// The same for notifications of this instance.
    pub(super) notifications: Arc<Allowance>,
    pub(super) notifies: Notifies,
    pub(super) connections: Connections,
    pub(super) rooms: Rooms,
    pub(super) audiences: Groups<Audience>,
    users: UserTable,
    room_rates: RoomRates,
    pub(super) history: History,
    pub(super) copies: Copies,
    schedule: Schedule<PublisherName, Work>,
    /// What newcomers have cost in this flush, in sends.
    newcomers_served: usize,
    /// Closed connections that have still to leave rooms.
    leaving: VecDeque<ConnectionKey>,
    /// Connections whose sockets took all that they were sent, and that have more of a replay to get.
    pub(super) replaying: Vec<ConnectionKey>,
    pub(super) stats: Stats,
    /// Set by the shutdown, and dropped with the last connection.
    closed: Option<crossbeam_channel::Sender<Infallible>>,
    shutting_down: bool,
}

/// What waits in the schedule.
pub(super) enum Work {
    Said {
        key: ConnectionKey,
        said: Said,
        taken: Option<usize>,
    },
    Notify {
        publisher: PublisherName,
        waiting: std::vec::IntoIter<Delivery>,
        notify: NotifyKey,
    },
    /// A message of the broker that has no number.
    Remote(Delivery),
    /// What happens to a log of the broker.
    Log(Target, LogEvent),
    /// The next turn of a connection's replays.
    Replay(ConnectionKey),
    /// What a connection has said and had to wait with.
    GoOn(ConnectionKey),
}

/// Where a message was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// At this instance.
    Here,
    /// At another one, or by another system.
    Broker,
}

/// The connections, and which of them have something to flush.
#[derive(Default)]
pub(super) struct Connections {
    pub(super) slots: SlotMap<ConnectionKey, Connection>,
    pub(super) dirty: VecDeque<ConnectionKey>,
    /// Whether what is marked as dirty now is flushed before the rest.
    is_urgent: bool,
    pub(super) batch: FrameBatch,
    /// Frames appended since the last flush.
    pub(super) appended: usize,
}

impl Connections {
    pub(super) fn open(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.slots.get_mut(key).filter(|connection| connection.state == State::Open)
    }

    /// Appends a frame for a live connection; whether it took it.
    pub(super) fn append(&mut self, key: ConnectionKey, frame: FrameNumber) -> bool {
        let Some(connection) = self.slots.get_mut(key).filter(|c| c.state == State::Open) else {
            return false;
        };
        connection.outbox.append(frame);
        connection.sent += 1;
        self.appended += 1;
        self.mark_dirty(key);
        true
    }

    /// What the next flush costs so far, in sends.
    fn cost(&self) -> usize {
        self.dirty.len() + self.appended / DELIVERIES_PER_SEND
    }

    /// Appends a frame for one.
    pub(super) fn send(&mut self, key: ConnectionKey, frame: Bytes) -> bool {
        let frame = self.batch.add(frame);
        self.append(key, frame)
    }

    /// Appends a frame for all of these; returns how many get it. With a log, it is a frame of this log, and
    /// who still reads it comes to the frame by itself.
    // Inlined where a message is numbered, the loop lacks registers: a fifth more instructions for each delivery.
    #[inline(never)]
    fn append_all(&mut self, keys: &[ConnectionKey], frame: Bytes, read: Option<LogKey>) -> usize {
        if keys.is_empty() {
            return 0;
        }
        let frame = self.batch.add(frame);
        let Some(log) = read else {
            return keys.iter().filter(|key| self.append(**key, frame)).count();
        };
        let reached = |key: &&ConnectionKey| self.reads(**key, log) || self.append(**key, frame);
        keys.iter().filter(reached).count()
    }

    /// Whether a connection has still to come to the end of this log.
    fn reads(&mut self, key: ConnectionKey, log: LogKey) -> bool {
        let replays = self.open(key).and_then(|connection| connection.replays.as_ref());
        replays.is_some_and(|replays| replays.is_reading(log))
    }

    fn mark_dirty(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.slots.get_mut(key).filter(|c| !c.dirty) {
            connection.dirty = true;
            if self.is_urgent {
                self.dirty.push_front(key);
            } else {
                self.dirty.push_back(key);
            }
        }
    }
}

impl Hub {
    /// An empty hub, whose events come through `handle`.
    pub fn new(config: Arc<Config>, handle: &HubHandle, outlets: Outlets) -> Self {
        let limits = UserLimits {
            messages: Pace::messages(config.rate_limit),
            bytes: Pace::user_bytes(config.rate_bytes as u64),
        };
        let numbers = match &outlets.broker {
            None => Numbers::Hub,
            Some(broker) if broker.ordered_log().is_some() => Numbers::Broker,
            Some(_) => Numbers::Nobody,
        };
        Self {
            users: UserTable::new(limits, Arc::clone(handle.budget())),
            room_rates: RoomRates::new(config.room_rate_bytes),
            history: History::new(&config, numbers),
            copies: Copies::default(),
            config,
            outlets,
            budget: Arc::clone(handle.budget()),
            broker: Arc::clone(handle.broker()),
            answers: Arc::clone(handle.answers()),
            notifications: Arc::clone(handle.notifications()),
            notifies: Notifies::default(),
            connections: Connections::default(),
            rooms: Rooms::default(),
            audiences: Groups::default(),
            schedule: Schedule::default(),
            newcomers_served: 0,
            leaving: VecDeque::new(),
            replaying: Vec::new(),
            stats: Stats::default(),
            closed: None,
            shutting_down: false,
        }
    }

    /// Reacts to control at once; what a publisher says waits for [`Self::serve`], unless nothing waits
    /// and it is little. Appended frames wait for [`Self::flush`].
    pub fn accept(&mut self, event: Event) {
        match event {
            Event::Reserve { identity, number, reply } => {
                let reserved = self.reserve(identity, number);
                answer(&reply, reserved);
            }
            Event::Register { key, socket, response } => self.register(key, socket, response),
            Event::WriterEnded { key, broken } => self.writer_ended(key, broken),
            Event::Counts(reply) => answer(&reply, self.counts()),
            Event::List(query, reply) => answer(&reply, self.list(&query)),
            Event::Stats(reply) => answer(&reply, self.stats()),
            Event::Shutdown(closed) => self.shut_down(closed),
            // `run` has ended at it.
            Event::Stop => {}
            Event::Said { key, said, taken } => self.publish(Work::Said { key, said, taken }),
            Event::Notify(Notify { publisher, deliveries, reply, taken }) => {
                let notify = self.notifies.begin(reply, taken);
                let waiting = deliveries.into_iter();
                self.publish(Work::Notify { publisher, waiting, notify });
            }
            Event::Broker(incoming) => self.hear_broker(incoming),
        }
    }

    /// Schedules what a publisher says.
    pub(super) fn publish(&mut self, work: Work) {
        let mut rest = Some(work);
        // Nobody is overtaken while nothing waits, and nobody waits long for so little.
        while self.schedule.is_empty()
            && self.connections.cost() < QUANTUM as usize
            && !self.wants_flush()
            && let Some(work) = rest
        {
            rest = self.perform(work).1;
        }
        let Some(work) = rest else { return };
        // A connection that is gone has nothing to say.
        if let Some(publisher) = self.publisher(&work) {
            let comes_first = publisher.may_come_first()
                && !matches!(work, Work::Replay(_))
                && self.reach(&work) <= SMALL_REACH;
            let share = Share { weight: publisher.weight(), comes_first };
            self.schedule.push(&publisher, share, work);
        }
    }

    /// Who said it; `None` when that is a connection that is gone.
    fn publisher(&self, work: &Work) -> Option<PublisherName> {
        match work {
            Work::Said { key, .. } | Work::Replay(key) | Work::GoOn(key) => {
                self.connections.slots.get(*key).map(|c| PublisherName::of(&c.identity))
            }
            Work::Notify { publisher, .. } => Some(publisher.clone()),
            Work::Remote(Delivery { target, .. }) | Work::Log(target, _) => {
                Some(PublisherName::Broker(target.clone()))
            }
        }
    }

    /// How many connections a piece of work goes to, as far as can be told before it is its turn.
    fn reach(&self, work: &Work) -> usize {
        match work {
            Work::Said { said: Said::Broadcast(broadcast), .. } => {
                self.rooms.members(&broadcast.room).len()
            }
            Work::Said { .. } | Work::Replay(_) | Work::GoOn(_) => 1,
            Work::Notify { waiting, .. } => waiting
                .as_slice()
                .iter()
                .map(|delivery| members(&self.rooms, &self.audiences, &delivery.target).len())
                .sum(),
            Work::Remote(Delivery { target, .. }) | Work::Log(target, _) => {
                members(&self.rooms, &self.audiences, target).len()
            }
        }
    }

    /// Serves what waits, in turns, until a flush is due.
    pub fn serve(&mut self) {
        self.leave_rooms();
        self.catch_up();
        for key in std::mem::take(&mut self.replaying) {
            self.publish(Work::Replay(key));
        }
        while !self.wants_flush()
            && let Some(work) = self.schedule.next()
        {
            self.serve_one(work);
        }
    }

    /// Serves one message, and charges its publisher; returns by how many sends the flush has grown.
    fn serve_one(&mut self, work: Work) -> usize {
        let sends = self.connections.dirty.len();
        let (deliveries, rest) = self.perform(work);
        if let Some(rest) = rest {
            self.schedule.put_back(rest);
        }
        let sends = self.connections.dirty.len().saturating_sub(sends);
        self.schedule.charge(sends + deliveries.div_ceil(DELIVERIES_PER_SEND));
        sends
    }

    /// Between two parts of a flush: serves publishers that had nothing waiting, and has what they say sent
    /// before the rest. A pair so does not wait for a flood that came just before it.
    pub fn serve_newcomers(&mut self) {
        self.connections.is_urgent = true;
        while self.newcomers_served < FLUSH_SOCKETS
            && let Some(work) = self.schedule.next_newcomer()
        {
            self.newcomers_served += 1 + self.serve_one(work);
        }
        self.connections.is_urgent = false;
    }

    /// Whether something waits for [`Self::serve`].
    pub fn has_work(&self) -> bool {
        !(self.schedule.is_empty()
            && self.leaving.is_empty()
            && self.replaying.is_empty()
            && !self.is_behind())
    }

    /// The loop has looked at what came, served and flushed in so much time.
    pub(super) fn observe_iteration(&mut self, time: Duration) {
        self.stats.batch_seconds.observe(time.as_secs_f64());
    }

    /// What waits for the hub in all.
    pub(super) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Publishers that wait, and what they have queued.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.schedule.active(), self.schedule.len())
    }

    /// Does one piece of work; returns how many deliveries that was, one at least, and what is left of it.
    fn perform(&mut self, work: Work) -> (usize, Option<Work>) {
        match work {
            Work::Said { key, said, taken } => (self.hear(key, said, taken), None),
            Work::Notify { publisher, mut waiting, notify } => {
                let reached = waiting.next().map_or(0, |next| self.notify(notify, next));
                let is_last = waiting.as_slice().is_empty();
                if is_last && let Some(bytes) = self.notifies.end_one(notify) {
                    self.notifications.give_back(bytes);
                }
                (reached.max(1), (!is_last).then_some(Work::Notify { publisher, waiting, notify }))
            }
            Work::Remote(delivery) => {
                self.broker.give_back(delivery.draft.len());
                (self.deliver(delivery, Origin::Broker).max(1), None)
            }
            Work::Log(target, event) => (self.follow_log(target, event).max(1), None),
            Work::GoOn(key) => (self.go_on(key).max(1), None),
            Work::Replay(key) => {
                if let Some(connection) = self.connections.open(key)
                    && let Some(replays) = &mut connection.replays
                {
                    replays.is_scheduled = false;
                }
                (self.replay(key).max(1), None)
            }
        }
    }

    /// Publishes one of the messages of a call that notifies; returns the deliveries.
    fn notify(&mut self, notify: NotifyKey, delivery: Delivery) -> usize {
        let place = self.notifies.next_place(notify);
        match self.publish_here(delivery, Waits::Notify(notify, place)) {
            Published::Delivered(reached) => {
                self.notifies.push(notify, Some(reached));
                reached
            }
            Published::OnItsWay(_) => {
                self.notifies.push(notify, None);
                0
            }
        }
    }

    /// Reacts to what a connection says.
    pub(super) fn react(&mut self, key: ConnectionKey, said: Said) -> Outcome {
        let reached = match said {
            Said::Join { room, since, id } => {
                // The answer without an id says nothing of the log.
                let asks = id.is_some() && self.connections.open(key).is_some();
                if asks && self.has_to_wait(key, Target::Room(room.clone()), since.as_ref()) {
                    return Outcome::MustWait(Said::Join { room, since, id });
                }
                self.join(key, &room, since.as_ref(), id.as_ref())
            }
            Said::Resume { since, id } => {
                let user = self.connections.open(key).map(|c| c.identity.user_id.clone());
                if user.is_some_and(|id| self.has_to_wait(key, Target::User(id), since.as_ref())) {
                    return Outcome::MustWait(Said::Resume { since, id });
                }
                self.resume(key, since.as_ref(), id.as_ref())
            }
            Said::Broadcast(broadcast) => return self.broadcast(key, broadcast),
            said => {
                self.react_at_once(key, said);
                0
            }
        };
        Outcome::Done(reached)
    }

    /// What neither reaches others nor waits for the broker.
    fn react_at_once(&mut self, key: ConnectionKey, said: Said) {
        match said {
            Said::Leave(room, id) => self.leave(key, &room, id.as_ref()),
            Said::IsMember(room, reply) => answer(&reply, self.is_member(key, &room)),
            Said::Refuse(code, id) => self.refuse(key, code, id.as_ref()),
            Said::Ping(payload) => self.pong(key, &payload),
            Said::Close(close) => self.close(key, close),
            Said::Ended => self.reader_ended(key),
            Said::Join { .. } | Said::Resume { .. } | Said::Broadcast(_) => {}
        }
    }

    /// Whether so much is appended that others would wait too long behind it. Who publishes alone fills a
    /// larger flush: a send that carries more frames costs each of them less.
    pub(super) fn wants_flush(&self) -> bool {
        let Connections { appended, dirty, batch, .. } = &self.connections;
        let is_shared = self.schedule.active() > 1;
        let most_frames = if is_shared { FLUSH_FRAMES } else { LONE_FLUSH_FRAMES };
        *appended >= most_frames
            || batch.bytes() >= FLUSH_BYTES
            || (is_shared && dirty.len() >= FLUSH_SOCKETS)
    }

    /// Sends what is appended, each dirty connection at once.
    pub fn flush(&mut self) {
        while !self.flush_part() {}
    }

    /// Flushes some of the dirty connections; whether all are flushed now.
    pub fn flush_part(&mut self) -> bool {
        for _ in 0..FLUSHED_AT_ONCE {
            let Some(key) = self.connections.dirty.pop_front() else {
                break;
            };
            self.flush_one(key);
        }
        if !self.connections.dirty.is_empty() {
            return false;
        }
        self.connections.batch.clear();
        self.stats.deliveries += self.connections.appended as u64;
        self.connections.appended = 0;
        self.newcomers_served = 0;
        true
    }

    /// Does what the clock makes due on every connection, and flushes.
    pub fn tick(&mut self, now: Moment, wall: SystemTime) {
        let clocks = Clocks {
            now,
            wall,
            write_timeout: self.config.write_timeout,
            ping_interval: self.config.ping_interval,
        };
        let due: Vec<_> = self
            .connections
            .slots
            .iter()
            .filter_map(|(key, connection)| Some((key, connection.due(&clocks)?)))
            .collect();
        for (key, due) in due {
            match due {
                Due::Close(close) => self.close(key, close),
                Due::Abort(reason) => self.abort(key, reason),
                Due::Ping => self.ping(key, now),
                Due::Flush => self.connections.mark_dirty(key),
            }
        }
        self.users.forget_full(uptime());
        self.room_rates.forget_full(uptime());
        self.history.forget_old(now);
        self.tick_copies(now);
        self.flush();
    }

    fn reserve(&mut self, identity: Arc<Identity>, number: u64) -> Result<Place, Refusal> {
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        let user = Audience::User(identity.user_id.clone());
        let here = self.audiences.members(&user).len();
        let cap = self.config.max_connections_per_user;
        if cap != 0 && here >= cap {
            return Err(Refusal::UserCap);
        }
        let share = self.users.enter(&identity.user_id);
        let connection = Connection::reserved(number, identity, Arc::clone(&share));
        let key = self.connections.slots.insert(connection);
        self.listen(key, user);
        Ok(Place { key, share })
    }

    fn register(&mut self, key: ConnectionKey, socket: Arc<dyn Socket>, response: Bytes) {
        let response = (!response.is_empty()).then(|| self.connections.batch.add(response));
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
        };
        let identity = Arc::clone(&connection.identity);
        connection.socket = Some(socket);
        connection.state = State::Open;
        if let Some(response) = response {
            connection.outbox.append(response);
            self.connections.mark_dirty(key);
        }
        self.stats.connects += 1;
        self.listen(key, Audience::Everyone);
        match (&identity.role, &identity.seller_id) {
            (Role::Admin, _) => {
                self.listen(key, Audience::Admins);
                self.enter(key, &Room::admins());
            }
            (Role::Seller, Some(id)) => self.listen(key, Audience::Seller(id.clone())),
            _ => {}
        }
        if self.shutting_down {
            self.close(key, Close::GoingAway);
        }
    }

    /// Returns the deliveries that it caused, as all that a replay is a part of.
    fn join(
        &mut self,
        key: ConnectionKey,
        room: &Room,
        since: Option<&Position>,
        id: Option<&MessageId>,
    ) -> usize {
        let limit = self.config.max_rooms_per_client;
        let Some(connection) = self.received(key, MessageKind::Join) else {
            return 0;
        };
        let is_member = connection.rooms.contains_key(room);
        let full = connection.rooms.len() >= limit && !connection.identity.is_admin();
        if full && !is_member {
            self.send(key, error_frame(ErrorCode::TooManyRooms, id));
            return 0;
        }
        // Without an id nothing is said of the log, and so nothing of it changes either.
        let standing = id.map(|_| self.stand(key, &Target::Room(room.clone()), since));
        let standing = standing.unwrap_or_default();
        if !is_member {
            self.enter(key, room);
        }
        self.reply(key, &Reply::Joined(standing), room, id);
        self.replay(key)
    }

    fn resume(
        &mut self,
        key: ConnectionKey,
        since: Option<&Position>,
        id: Option<&MessageId>,
    ) -> usize {
        let Some(connection) = self.received(key, MessageKind::Resume) else {
            return 0;
        };
        let target = Target::User(connection.identity.user_id.clone());
        let standing = self.stand(key, &target, since);
        self.send(key, resumed_frame(id, &standing));
        self.replay(key)
    }

    fn leave(&mut self, key: ConnectionKey, room: &Room, id: Option<&MessageId>) {
        let Some(connection) = self.received(key, MessageKind::Leave) else {
            return;
        };
        if let Some(position) = connection.rooms.remove(room) {
            if connection.replays.is_some()
                && let Some(log) = self.history.find(&Target::Room(room.clone()))
            {
                self.end_replay(key, log);
            }
            self.vacate(room, position);
        }
        self.reply(key, &Reply::Left, room, id);
    }

    /// Returns what comes of it: its answer has to wait for those before.
    fn broadcast(&mut self, key: ConnectionKey, broadcast: Broadcast) -> Outcome {
        let Broadcast { room, draft, permitted, id } = broadcast;
        let refused = |reply| Outcome::Broadcast { ticket: None, reply, reached: 0 };
        let Some(connection) = self.received(key, MessageKind::Broadcast) else {
            return Outcome::Done(0);
        };
        let is_backend = connection.identity.role.may_call_api();
        if !permitted && !self.is_member(key, &room) {
            return refused(Some(error_frame(ErrorCode::NotAuthorized, id.as_ref())));
        }
        if !is_backend && !self.room_rates.take(&room, uptime(), draft.len()) {
            return refused(self.over_room_rate(key, id.as_ref()));
        }
        let reply = Reply::Sent.frame(&room, id.as_ref());
        let delivery = Delivery { target: Target::Room(room), draft };
        match self.publish_here(delivery, Waits::Connection(key)) {
            Published::Delivered(reached) => Outcome::Broadcast { ticket: None, reply, reached },
            Published::OnItsWay(ticket) => {
                Outcome::Broadcast { ticket: Some(ticket), reply, reached: 0 }
            }
        }
    }

    /// What the sender is told: with an id always, else once a second.
    fn over_room_rate(&mut self, key: ConnectionKey, id: Option<&MessageId>) -> Option<Bytes> {
        self.stats.room_limited += 1;
        let now = Moment::now();
        let connection = self.connections.open(key)?;
        let is_due =
            connection.told_of_room_rate.is_none_or(|told| now.since(told) >= RATE_TOLD_EVERY);
        if id.is_none() {
            if !is_due {
                return None;
            }
            connection.told_of_room_rate = Some(now);
        }
        Some(error_frame(ErrorCode::RateLimited, id))
    }

    fn refuse(&mut self, key: ConnectionKey, code: ErrorCode, id: Option<&MessageId>) {
        if self.received(key, MessageKind::Refused).is_some() {
            self.send(key, error_frame(code, id));
        }
    }

    fn pong(&mut self, key: ConnectionKey, payload: &[u8]) {
        if let Some(connection) = self.connections.open(key) {
            connection.outbox.pong(control_frame(OPCODE_PONG, payload));
            self.connections.mark_dirty(key);
        }
    }

    fn ping(&mut self, key: ConnectionKey, now: Moment) {
        let ping = self.connections.batch.add(control_frame(OPCODE_PING, &[]));
        if let Some(connection) = self.connections.open(key) {
            connection.pinged = Some(now);
            connection.outbox.append(ping);
            self.connections.mark_dirty(key);
        }
    }

    /// Leaves all rooms and appends the Close frame: the last thing that the peer is sent.
    fn close(&mut self, key: ConnectionKey, close: Close) {
        let frame = self.connections.batch.add(close.frame());
        let Some(connection) = self.connections.open(key) else {
            return;
        };
        connection.outbox.drop_pong();
        connection.outbox.append(frame);
        connection.state = State::Closing;
        connection.ignore();
        connection.reason = Some(DisconnectReason::Closed(close));
        self.connections.mark_dirty(key);
        self.end_replays(key);
        self.leave_all(key);
    }

    /// Ends a connection at once: its threads wake and end, and the kernel keeps nothing of it.
    fn abort(&mut self, key: ConnectionKey, reason: DisconnectReason) {
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
        };
        if let Some(socket) = &connection.socket {
            socket.abort();
        }
        let unsent = connection.outbox.len();
        if unsent > 0 {
            *self.stats.dropped.entry(reason.label()).or_default() += unsent;
        }
        connection.outbox.clear();
        connection.state = State::Aborted;
        connection.ignore();
        connection.reason.get_or_insert(reason);
        self.end_replays(key);
        self.leave_all(key);
    }

    fn reader_ended(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
        };
        connection.reader_ended = true;
        match connection.state {
            State::Open => self.abort(key, DisconnectReason::Gone),
            // A peer that ended its own half only still gets the Close frame.
            State::Closing => self.flush_one(key),
            State::Reserved | State::Draining(_) | State::Aborted => {}
        }
        self.free_if_ended(key);
    }

    fn writer_ended(&mut self, key: ConnectionKey, broken: bool) {
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
        };
        connection.writers = connection.writers.saturating_sub(1);
        if broken {
            self.abort(key, DisconnectReason::Gone);
        } else if matches!(connection.state, State::Draining(_)) && connection.outbox.is_drained() {
            // The Close frame was the last of the backlog.
            connection.shut_write();
        } else if connection.outbox.is_drained() && !connection.dirty {
            self.turn_is_sent(key);
        }
        self.free_if_ended(key);
    }

    /// Delivers a message here, numbered where the hub gives the numbers; one that is from here it hands over to
    /// the other instances. Returns how many connections it reached.
    pub(super) fn deliver(&mut self, delivery: Delivery, origin: Origin) -> usize {
        let Delivery { target, draft } = delivery;
        let now = Moment::now();
        let is_numbered = draft.takes_number() && !self.history.is_copy();
        let log = if is_numbered { self.open_log(&target, now) } else { None };
        let numbered = match log {
            Some(log) => self.history.append(log, draft, now),
            None => draft.complete(None),
        };
        if origin == Origin::Here
            && let Some(broker) = &self.outlets.broker
        {
            let outgoing = Outgoing { target: target.clone(), members: numbered.members() };
            // What does not fit is counted by the bridge.
            let _ = broker.publish(outgoing);
        }
        self.fan_out(&target, numbered.frame, log)
    }

    /// The log of a target, new where there is none.
    pub(super) fn open_log(&mut self, target: &Target, now: Moment) -> Option<LogKey> {
        let has_listeners = !members(&self.rooms, &self.audiences, target).is_empty();
        self.history.open(target, has_listeners, now)
    }

    /// Appends a message for all that it is for; returns how many these are. With a log, it is its last message.
    pub(super) fn fan_out(&mut self, target: &Target, frame: Bytes, log: Option<LogKey>) -> usize {
        // Mostly nobody reads it, and no connection has to be asked.
        let read = log.filter(|log| self.history.is_read(*log));
        let keys = members(&self.rooms, &self.audiences, target);
        let reached = self.connections.append_all(keys, frame, read);
        self.stats.fan_out.observe(reached as f64);
        reached
    }

    fn shut_down(&mut self, closed: crossbeam_channel::Sender<Infallible>) {
        self.shutting_down = true;
        if !self.connections.slots.is_empty() {
            self.closed = Some(closed);
        }
        let keys: Vec<_> = self.connections.slots.keys().collect();
        for key in keys {
            self.close(key, Close::GoingAway);
        }
    }

    /// The connection that a message came from, counted; `None` when it no longer counts.
    fn received(&mut self, key: ConnectionKey, kind: MessageKind) -> Option<&mut Connection> {
        let connection = self.connections.open(key)?;
        connection.received += 1;
        self.stats.received.count(kind);
        Some(connection)
    }

    fn send(&mut self, key: ConnectionKey, frame: Bytes) {
        self.connections.send(key, frame);
    }

    fn reply(&mut self, key: ConnectionKey, reply: &Reply, room: &Room, id: Option<&MessageId>) {
        if let Some(frame) = reply.frame(room, id) {
            self.send(key, frame);
        }
    }

    fn is_member(&self, key: ConnectionKey, room: &Room) -> bool {
        self.connections.slots.get(key).is_some_and(|c| c.rooms.contains_key(room))
    }

    fn enter(&mut self, key: ConnectionKey, room: &Room) {
        let position = self.rooms.insert(room, key);
        if position == 0 {
            self.history.occupy(&Target::Room(room.clone()));
        }
        if let Some(connection) = self.connections.slots.get_mut(key) {
            connection.rooms.insert(room.clone(), position);
        }
    }

    /// Adds a connection to an audience.
    fn listen(&mut self, key: ConnectionKey, audience: Audience) {
        let position = self.audiences.insert(&audience, key);
        if let Audience::User(id) = &audience
            && position == 0
        {
            self.history.occupy(&Target::User(id.clone()));
        }
        if let Some(connection) = self.connections.slots.get_mut(key) {
            connection.audiences.push((audience, position));
        }
    }

    /// Takes a connection that no longer counts out of its audiences, but for that of its user, whose cap it
    /// still counts for until its threads have ended; its rooms follow with [`Self::serve`].
    fn leave_all(&mut self, key: ConnectionKey) {
        while let Some((audience, position)) =
            self.connections.slots.get_mut(key).and_then(Connection::leave_audience)
        {
            self.fall_silent(&audience, position);
        }
        self.leaving.push_back(key);
    }

    /// Goes on with the rooms that closed connections have still to leave.
    fn leave_rooms(&mut self) {
        for _ in 0..LEFT_AT_ONCE {
            let Some(key) = self.leaving.front().copied() else { return };
            let room = self
                .connections
                .slots
                .get_mut(key)
                .and_then(|connection| connection.rooms.pop_first());
            match room {
                Some((room, position)) => self.vacate(&room, position),
                None => {
                    self.leaving.pop_front();
                    self.free_if_ended(key);
                }
            }
        }
    }

    /// Takes a place in a room away, and tells the member that moved into it.
    fn vacate(&mut self, room: &Room, position: usize) {
        if let Some(moved) = self.rooms.remove(room, position)
            && let Some(connection) = self.connections.slots.get_mut(moved.member)
            && let Some(position) = connection.rooms.get_mut(room)
        {
            *position = moved.position;
        }
        if self.rooms.members(room).is_empty() {
            self.history.vacate(&Target::Room(room.clone()), Moment::now());
        }
    }

    /// Takes a place in an audience away, and tells the connection that moved into it.
    fn fall_silent(&mut self, audience: &Audience, position: usize) {
        if let Some(moved) = self.audiences.remove(audience, position)
            && let Some(connection) = self.connections.slots.get_mut(moved.member)
        {
            connection.moved_in_audience(audience, moved.position);
        }
        if let Audience::User(id) = audience
            && self.audiences.members(audience).is_empty()
        {
            self.history.vacate(&Target::User(id.clone()), Moment::now());
        }
    }

    fn flush_one(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
        };
        // What is replayed comes on top: it is no sign of a peer that does not keep up.
        let turn = connection.replays.as_ref().and_then(|replays| replays.turn);
        let limits = BacklogLimits {
            frames: self.config.send_queue_frames as u64 + turn.map_or(0, |turn| turn.frames),
            bytes: self.config.send_queue_bytes as u64 + turn.map_or(0, |turn| turn.bytes),
        };
        connection.dirty = false;
        let (closing, limits) = match connection.state {
            State::Open => (false, limits),
            // Behind a backlog that was within its limits, the Close frame may wait too.
            State::Closing => (true, BacklogLimits::NONE),
            State::Reserved | State::Draining(_) | State::Aborted => return,
        };
        let Some(socket) = &connection.socket else {
            return;
        };
        let flush = connection.outbox.flush(&mut self.connections.batch, &**socket, limits);
        if closing && !matches!(flush, Flush::Broken) {
            connection.state = State::Draining(Moment::now());
        }
        match flush {
            Flush::Sent if closing => connection.shut_write(),
            Flush::Sent if connection.replays.is_some() => self.turn_is_sent(key),
            Flush::Sent | Flush::Queued => {}
            Flush::Full(drain) => {
                connection.writers += 1;
                let socket = Arc::clone(socket);
                self.outlets.writers.submit(WriterJob { key, socket, drain });
            }
            Flush::OverLimit => self.abort(key, DisconnectReason::SlowConsumer),
            Flush::Broken => self.abort(key, DisconnectReason::Gone),
        }
    }

    fn free_if_ended(&mut self, key: ConnectionKey) {
        let ended = self.connections.slots.get(key).is_some_and(|connection| {
            connection.reader_ended
                && connection.writers == 0
                && connection.rooms.is_empty()
                && matches!(connection.state, State::Reserved | State::Draining(_) | State::Aborted)
        });
        if ended {
            self.free(key);
        }
    }

    fn free(&mut self, key: ConnectionKey) {
        let Some(mut connection) = self.connections.slots.remove(key) else {
            return;
        };
        for (audience, position) in connection.audiences.drain(..) {
            self.fall_silent(&audience, position);
        }
        self.users.leave(&connection.identity.user_id, uptime());
        if let Some(reason) = connection.reason {
            *self.stats.disconnects.entry(reason.label()).or_default() += 1;
            connection.log_end(reason);
        }
        if self.connections.slots.is_empty() {
            self.closed = None;
        }
    }
}

impl Connection {
    fn ignore(&self) {
        if let Some(socket) = &self.socket {
            socket.activity().ignore();
        }
    }

    fn shut_write(&self) {
        if let Some(socket) = &self.socket {
            socket.shutdown(std::net::Shutdown::Write);
        }
    }

    fn log_end(&self, reason: DisconnectReason) {
        info!(
            conn = self.number,
            user = self.identity.user_id,
            reason:% = reason,
            seconds = Moment::now().since(self.since).as_secs(),
            received = self.received,
            sent = self.sent;
            "disconnected"
        );
    }
}

/// The connections of a target.
pub(super) fn members<'a>(
    rooms: &'a Rooms,
    audiences: &'a Groups<Audience>,
    target: &Target,
) -> &'a [ConnectionKey] {
    match target {
        Target::Room(room) => rooms.members(room),
        Target::User(id) => audiences.members(&Audience::User(id.clone())),
        Target::Seller(id) => audiences.members(&Audience::Seller(id.clone())),
        Target::Admins => audiences.members(&Audience::Admins),
        Target::Everyone => audiences.members(&Audience::Everyone),
    }
}

/// Whoever asked may have stopped waiting; the hub does not mind, and never waits.
fn answer<T>(reply: &Sender<T>, value: T) {
    let _ = reply.try_send(value);
}
