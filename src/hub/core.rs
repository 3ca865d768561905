//! The pure core of the hub: [`Hub::handle`] takes one event, [`Hub::flush`] sends what that appended,
//! [`Hub::tick`] is its only clock.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use log::{debug, info};
use slotmap::SlotMap;

use super::batch::{FrameBatch, FrameNumber};
use super::connection::{Clocks, Connection, DisconnectReason, Due, State};
use super::event::{Broadcast, ConnectionKey, Delivery, Event, Refusal, Target};
use super::groups::{GroupKey, Groups};
use super::outbox::{BacklogLimits, Flush};
use super::socket::Socket;
use super::stats::{MessageKind, Stats};
use super::{Limits, Outlets, WriterJob};
use crate::auth::{Identity, Role};
use crate::config::FLUSH_FRAMES;
use crate::protocol::close::Close;
use crate::protocol::{
    ErrorCode, Id, MessageId, OPCODE_PING, OPCODE_PONG, Reply, Room, control_frame, error_frame,
};
use crate::runtime::channel::Sender;
use crate::runtime::clock::Moment;

/// The pure core.
pub struct Hub {
    pub(super) limits: Limits,
    pub(super) outlets: Outlets,
    pub(super) connections: Connections,
    pub(super) rooms: Groups<Room>,
    pub(super) users: Groups<Id>,
    pub(super) stats: Stats,
    pub(super) writers: usize,
    /// Set by the shutdown, and dropped with the last connection.
    pub(super) closed: Option<crossbeam_channel::Sender<Infallible>>,
    pub(super) shutting_down: bool,
}

/// The connections, and which of them have something to flush.
#[derive(Default)]
pub(super) struct Connections {
    pub(super) slots: SlotMap<ConnectionKey, Connection>,
    pub(super) dirty: Vec<ConnectionKey>,
    pub(super) batch: FrameBatch,
    /// Frames appended since the last flush.
    pub(super) appended: usize,
}

impl Connections {
    fn open(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.slots.get_mut(key).filter(|connection| connection.state == State::Open)
    }

    /// Appends a frame for a live connection; whether it took it.
    fn append(&mut self, key: ConnectionKey, frame: FrameNumber) -> bool {
        let Some(connection) = self.slots.get_mut(key).filter(|c| c.state == State::Open) else {
            return false;
        };
        connection.outbox.append(frame);
        connection.sent += 1;
        self.appended += 1;
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(key);
        }
        true
    }

    fn append_all(&mut self, keys: &[ConnectionKey], frame: Bytes) -> usize {
        if keys.is_empty() {
            return 0;
        }
        let frame = self.batch.add(frame);
        keys.iter().filter(|key| self.append(**key, frame)).count()
    }

    fn append_where(&mut self, frame: Bytes, wanted: impl Fn(&Identity) -> bool) -> usize {
        let keys: Vec<_> = self
            .slots
            .iter()
            .filter(|(_, connection)| wanted(&connection.identity))
            .map(|(key, _)| key)
            .collect();
        self.append_all(&keys, frame)
    }

    fn mark_dirty(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.slots.get_mut(key).filter(|c| !c.dirty) {
            connection.dirty = true;
            self.dirty.push(key);
        }
    }
}

impl Hub {
    /// An empty hub.
    pub fn new(limits: Limits, outlets: Outlets) -> Self {
        Self {
            limits,
            outlets,
            connections: Connections::default(),
            rooms: Groups::default(),
            users: Groups::default(),
            stats: Stats::default(),
            writers: 0,
            closed: None,
            shutting_down: false,
        }
    }

    /// Reacts to one event. Appended frames wait for [`Hub::flush`].
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Reserve { identity, number, reply } => {
                answer(&reply, self.reserve(identity, number));
            }
            Event::Register { key, socket, response } => self.register(key, socket, response),
            Event::Release(key) => self.free(key),
            Event::Join(key, room, id) => self.join(key, &room, id.as_ref()),
            Event::Leave(key, room, id) => self.leave(key, &room, id.as_ref()),
            Event::Broadcast(key, broadcast) => self.broadcast(key, broadcast),
            Event::IsMember(key, room, reply) => answer(&reply, self.is_member(key, &room)),
            Event::Refuse(key, code, id) => self.refuse(key, code, id.as_ref()),
            Event::Ping(key, payload) => self.pong(key, &payload),
            Event::Close(key, close) => self.close(key, close),
            Event::ReaderEnded(key) => self.reader_ended(key),
            Event::WriterEnded { key, broken } => self.writer_ended(key, broken),
            Event::Notify(deliveries, reply) => {
                let counts = deliveries.into_iter().map(|delivery| self.notify(delivery)).collect();
                answer(&reply, counts);
            }
            Event::Remote(delivery) => {
                self.deliver(delivery);
            }
            Event::Counts(reply) => answer(&reply, self.counts()),
            Event::List(query, reply) => answer(&reply, self.list(&query)),
            Event::Stats(reply) => answer(&reply, self.stats()),
            Event::Shutdown(closed) => self.shut_down(closed),
            // `run` has ended at it.
            Event::Stop => {}
        }
    }

    /// Whether so many frames are appended that others would wait too long behind them.
    pub fn wants_flush(&self) -> bool {
        self.connections.appended >= FLUSH_FRAMES
    }

    /// Sends what is appended, each dirty connection at once.
    pub fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.connections.dirty);
        for key in dirty.drain(..) {
            self.flush_one(key);
        }
        // Nothing that a flush does touches a connection, so the list's memory serves again.
        self.connections.dirty = dirty;
        self.connections.batch.clear();
        self.stats.deliveries += self.connections.appended as u64;
        self.connections.appended = 0;
    }

    /// Does what the clock makes due on every connection, and flushes.
    pub fn tick(&mut self, now: Moment, wall: SystemTime) {
        let Limits { write_timeout, ping_interval, .. } = self.limits;
        let clocks = Clocks { now, wall, write_timeout, ping_interval };
        let due: Vec<_> = self
            .connections
            .slots
            .iter()
            .filter_map(|(key, connection)| Some((key, connection.due(&clocks)?)))
            .collect();
        for (key, due) in due {
            match due {
                Due::Close(close) => self.close(key, close),
                Due::Abort(end) => self.abort(key, end),
                Due::Ping => self.ping(key, now),
                Due::Flush => self.connections.mark_dirty(key),
            }
        }
        self.flush();
    }

    fn reserve(&mut self, identity: Arc<Identity>, number: u64) -> Result<ConnectionKey, Refusal> {
        if self.shutting_down {
            return Err(Refusal::ShuttingDown);
        }
        let user = identity.user_id.clone();
        let here = self.users.key(&user).map_or(0, |group| self.users.members(group).len());
        let cap = self.limits.connections_per_user;
        if cap != 0 && here >= cap {
            return Err(Refusal::UserCap);
        }
        let users = &mut self.users;
        Ok(self.connections.slots.insert_with_key(|key| Connection {
            number,
            identity,
            since: Moment::now(),
            state: State::Reserved,
            socket: None,
            outbox: Default::default(),
            dirty: false,
            rooms: Default::default(),
            user: users.insert(&user, key),
            reader_ended: false,
            writers: 0,
            pinged: None,
            end: None,
            sent: 0,
            received: 0,
        }))
    }

    fn register(&mut self, key: ConnectionKey, socket: Arc<dyn Socket>, response: Bytes) {
        let response = (!response.is_empty()).then(|| self.connections.batch.add(response));
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
        };
        let is_admin = connection.identity.is_admin();
        connection.socket = Some(socket);
        connection.state = State::Open;
        if let Some(response) = response {
            connection.outbox.append(response);
            self.connections.mark_dirty(key);
        }
        self.stats.connects += 1;
        if is_admin {
            self.enter(key, &Room::admins());
        }
        if self.shutting_down {
            self.close(key, Close::GoingAway);
        }
    }

    fn join(&mut self, key: ConnectionKey, room: &Room, id: Option<&MessageId>) {
        let limit = self.limits.rooms_per_client;
        let is_member = self.is_member(key, room);
        let Some(connection) = self.received(key, MessageKind::Join) else {
            return;
        };
        let full = connection.rooms.len() >= limit && !connection.identity.is_admin();
        if full && !is_member {
            return self.send(key, error_frame(ErrorCode::TooManyRooms, id));
        }
        if !is_member {
            self.enter(key, room);
        }
        self.reply(key, Reply::Joined, room, id);
    }

    fn leave(&mut self, key: ConnectionKey, room: &Room, id: Option<&MessageId>) {
        let group = self.rooms.key(room);
        let Some(connection) = self.received(key, MessageKind::Leave) else {
            return;
        };
        let place = group.and_then(|group| Some((group, connection.rooms.remove(&group)?)));
        if let Some((group, position)) = place {
            self.vacate(group, position);
        }
        self.reply(key, Reply::Left, room, id);
    }

    fn broadcast(&mut self, key: ConnectionKey, broadcast: Broadcast) {
        let Broadcast { room, frame, permitted, id } = broadcast;
        if self.received(key, MessageKind::Broadcast).is_none() {
            return;
        }
        if !permitted && !self.is_member(key, &room) {
            return self.send(key, error_frame(ErrorCode::NotAuthorized, id.as_ref()));
        }
        self.notify(Delivery { target: Target::Room(room.clone()), frame });
        self.reply(key, Reply::Sent, &room, id.as_ref());
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
        connection.outbox.append(frame);
        connection.state = State::Closing;
        connection.end = Some(DisconnectReason::Closed(close));
        self.connections.mark_dirty(key);
        self.leave_all(key);
    }

    /// Ends a connection at once: its threads wake and end.
    fn abort(&mut self, key: ConnectionKey, end: DisconnectReason) {
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
        };
        if let Some(socket) = &connection.socket {
            socket.shutdown(std::net::Shutdown::Both);
        }
        let unsent = connection.outbox.len();
        if unsent > 0 {
            *self.stats.dropped.entry(end.label()).or_default() += unsent;
        }
        connection.outbox.clear();
        connection.state = State::Aborted;
        connection.end.get_or_insert(end);
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
        self.writers = self.writers.saturating_sub(1);
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
        };
        connection.writers = connection.writers.saturating_sub(1);
        match connection.state {
            _ if broken => self.abort(key, DisconnectReason::Gone),
            // The Close frame was the last of the backlog.
            State::Draining(_) if connection.writers == 0 => connection.shut_write(),
            _ => {}
        }
        self.free_if_ended(key);
    }

    /// Hands over to the other instances, and delivers here.
    fn notify(&mut self, delivery: Delivery) -> usize {
        (self.outlets.publish)(&delivery.target, &delivery.frame);
        self.deliver(delivery)
    }

    fn deliver(&mut self, delivery: Delivery) -> usize {
        let Delivery { target, frame } = delivery;
        let connections = &mut self.connections;
        let reached = match &target {
            Target::Room(room) => match self.rooms.key(room) {
                Some(group) => connections.append_all(self.rooms.members(group), frame),
                None => 0,
            },
            Target::User(user) => match self.users.key(user) {
                Some(group) => connections.append_all(self.users.members(group), frame),
                None => 0,
            },
            Target::Everyone => connections.append_where(frame, |_| true),
            Target::Admins => connections.append_where(frame, Identity::is_admin),
            Target::Seller(id) => connections.append_where(frame, |identity| {
                identity.role == Role::Seller && identity.seller_id.as_ref() == Some(id)
            }),
        };
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
        self.connections.append_all(&[key], frame);
    }

    fn reply(&mut self, key: ConnectionKey, reply: Reply, room: &Room, id: Option<&MessageId>) {
        if let Some(frame) = reply.frame(room, id) {
            self.send(key, frame);
        }
    }

    fn is_member(&self, key: ConnectionKey, room: &Room) -> bool {
        let joined = self.connections.slots.get(key).map(|connection| &connection.rooms);
        self.rooms.key(room).zip(joined).is_some_and(|(group, joined)| joined.contains_key(&group))
    }

    fn enter(&mut self, key: ConnectionKey, room: &Room) {
        let (group, position) = self.rooms.insert(room, key);
        if let Some(connection) = self.connections.slots.get_mut(key) {
            connection.rooms.insert(group, position);
        }
    }

    fn leave_all(&mut self, key: ConnectionKey) {
        let rooms = self.connections.slots.get_mut(key).map(|c| std::mem::take(&mut c.rooms));
        for (group, position) in rooms.into_iter().flatten() {
            self.vacate(group, position);
        }
    }

    /// Takes a place in a room away, and tells the member that moved into it.
    fn vacate(&mut self, group: GroupKey, position: usize) {
        if let Some(moved) = self.rooms.remove(group, position)
            && let Some(connection) = self.connections.slots.get_mut(moved.member)
        {
            connection.rooms.insert(group, moved.position);
        }
    }

    fn flush_one(&mut self, key: ConnectionKey) {
        let limits = BacklogLimits {
            frames: self.limits.send_queue_frames as u64,
            bytes: self.limits.send_queue_bytes as u64,
        };
        let Some(connection) = self.connections.slots.get_mut(key) else {
            return;
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
        match connection.outbox.flush(&mut self.connections.batch, &**socket, limits) {
            Flush::Sent if closing => {
                connection.state = State::Draining(Moment::now());
                connection.shut_write();
            }
            Flush::Sent => {}
            Flush::Queued => self.queued(key),
            Flush::Full(drain) => {
                let (number, socket) = (connection.number, Arc::clone(socket));
                self.start_writer(WriterJob { key, number, socket, drain });
            }
            Flush::OverLimit => self.abort(key, DisconnectReason::SlowConsumer),
            Flush::Broken => self.abort(key, DisconnectReason::Gone),
        }
    }

    fn start_writer(&mut self, job: WriterJob) {
        let key = job.key;
        if self.writers >= self.limits.writers {
            return self.abort(key, DisconnectReason::NoWriter);
        }
        if let Err(error) = (self.outlets.start_writer)(job) {
            if let Some(Connection { number, identity, .. }) = self.connections.slots.get(key) {
                debug!(conn = *number, user = identity.user_id, error:%; "no thread for a writer");
            }
            return self.abort(key, DisconnectReason::NoWriter);
        }
        self.writers += 1;
        if let Some(connection) = self.connections.slots.get_mut(key) {
            connection.writers += 1;
        }
        self.queued(key);
    }

    /// The writer has it now; behind a Close frame nothing more will come, so it may end.
    fn queued(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.slots.get_mut(key)
            && connection.state == State::Closing
        {
            connection.outbox.end_backlog();
            connection.state = State::Draining(Moment::now());
        }
    }

    fn free_if_ended(&mut self, key: ConnectionKey) {
        let ended = self.connections.slots.get(key).is_some_and(|connection| {
            connection.reader_ended
                && connection.writers == 0
                && matches!(connection.state, State::Draining(_) | State::Aborted)
        });
        if ended {
            self.free(key);
        }
    }

    fn free(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.slots.remove(key) else {
            return;
        };
        let (group, position) = connection.user;
        if let Some(moved) = self.users.remove(group, position)
            && let Some(other) = self.connections.slots.get_mut(moved.member)
        {
            other.user = (group, moved.position);
        }
        if let Some(end) = connection.end {
            *self.stats.disconnects.entry(end.label()).or_default() += 1;
            connection.log_end(end);
        }
        if self.connections.slots.is_empty() {
            self.closed = None;
        }
    }
}

impl Connection {
    fn shut_write(&self) {
        if let Some(socket) = &self.socket {
            socket.shutdown(std::net::Shutdown::Write);
        }
    }

    fn log_end(&self, end: DisconnectReason) {
        info!(
            conn = self.number,
            user = self.identity.user_id,
            reason:% = end,
            seconds = Moment::now().since(self.since).as_secs(),
            received = self.received,
            sent = self.sent;
            "disconnected"
        );
    }
}

/// Whoever asked may have stopped waiting; the hub does not mind, and never waits.
fn answer<T>(reply: &Sender<T>, value: T) {
    let _ = reply.try_send(value);
}
