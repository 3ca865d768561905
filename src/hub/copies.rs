//! The hub's side of the broker's ordered log: what it publishes sets out there and is delivered when it comes
//! back with its number, and its own logs are copies of the broker's ends (docs/ARCHITECTURE.md, "History").
//!
//! The hub never waits. Where a copy is not known to be the end, it is read: what the stream brings before the
//! reading's mark is in the answer, what it brings behind that is held until the answer is there. While the broker
//! is away, messages are delivered here at once, without a number, and their logs begin anew afterwards.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::core::{Hub, Origin, Work, members};
use super::event::ConnectionKey;
use super::history::{LogKey, Place};
use super::pending::{Pending, PendingMessages, Ticket, Waits};
use super::reading::Read;
use super::unnumbered::Unnumbered;
use crate::bridge::{Answer, Incoming, Logged, OrderedLog, Outgoing, Unanswered};
use crate::config::BROKER_TIMEOUT;
use crate::protocol::{Delivery, Draft, Number, Position, Target};
use crate::runtime::clock::Moment;

/// Copies that are read, and logs that are renewed, in one iteration of the loop.
const ASKED_AT_ONCE: usize = 1000;
/// After this a message that neither came back nor was given up is given up here.
const PENDING_TIMEOUT: Duration = BROKER_TIMEOUT.saturating_mul(3);
/// For so long a copy waits for messages that it lacks; then its members are told.
const BEHIND_TIMEOUT: Duration = BROKER_TIMEOUT.saturating_mul(3);

/// What the hub knows of the broker's log besides the copies, which are [`History`](super::history::History)'s.
#[derive(Default)]
pub(super) struct Copies {
    /// Whether messages flow both ways.
    pub(super) is_up: bool,
    /// What is being read; one reading of a log at a time.
    pub(super) readings: HashMap<Target, Read>,
    /// Number of the last reading.
    pub(super) last_reading: u64,
    /// What all readings from the start have collected.
    pub(super) collected_bytes: usize,
    /// Connections that wait for a log to be read.
    pub(super) waiting: HashMap<Target, Vec<ConnectionKey>>,
    /// Messages of this instance that are not back yet.
    pub(super) pending: PendingMessages,
    /// Those of them that are to be given up.
    given_up: Vec<Ticket>,
    /// The highest ticket that came back, and when one did.
    last_back: Option<(u64, Moment)>,
    /// Logs whose reading came to nothing; they are read again after a while.
    pub(super) failed: HashSet<LogKey>,
    /// Since when no reading was answered, if the last was not.
    pub(super) unanswered_since: Option<Moment>,
    pub(super) unnumbered: Unnumbered,
    pub(super) counts: CopyCounts,
}

/// What was counted since the start, and what is on its way now.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyCounts {
    /// Messages of this instance that the broker has not given back yet.
    pub pending: u64,
    /// Messages delivered without a number, since the broker was away or refused them.
    pub unnumbered: u64,
    /// Logs that were read from the broker.
    pub readings: u64,
    /// Logs that had to begin anew.
    pub renewals: u64,
}

/// A message of the past, ready to be sent.
#[derive(Clone)]
pub(super) struct KeptFrame {
    pub(super) seq: u64,
    pub(super) ticket: Option<u64>,
    pub(super) frame: Bytes,
    pub(super) at: Moment,
}

/// What happens to one log; all of it in the order in which it came.
pub(super) enum LogEvent {
    /// The broker has numbered a message, and told so in this stream.
    Logged(Logged, u32),
    /// It has begun anew.
    Renewed(Arc<str>, Option<u64>),
    /// Another instance has said this without a number.
    Unnumbered(Draft),
    /// A reading's place in the stream.
    Marked(u64),
    /// A reading's answer.
    Answer(u64, Result<Answer, Unanswered>),
    /// A message will not come back; whether the broker has refused it.
    GivenUp(Ticket, bool),
    /// A message that gets no number is back.
    Returned(u64),
}

/// Where a message of this instance is.
pub(super) enum Published {
    /// It has reached so many connections.
    Delivered(usize),
    /// With the broker, under this ticket.
    OnItsWay(Ticket),
}

impl Hub {
    /// The broker's ordered log, if it gives the numbers.
    pub(super) fn ordered_log(&self) -> Option<&dyn OrderedLog> {
        if !self.history.is_copy() {
            return None;
        }
        self.outlets.broker.as_ref()?.ordered_log()
    }

    /// Reacts to what came from the broker.
    pub(super) fn hear_broker(&mut self, incoming: Incoming) {
        match incoming {
            Incoming::Message(delivery) => self.publish(Work::Remote(delivery)),
            Incoming::BrokenOff => self.break_off(),
            Incoming::Logged(logged) => {
                let (target, stream) = (logged.target.clone(), self.history.stream());
                let event = LogEvent::Logged(logged, stream);
                self.publish(Work::Log(target, event));
            }
            Incoming::Unnumbered(Delivery { target, draft }) => {
                self.publish(Work::Log(target, LogEvent::Unnumbered(draft)));
            }
            Incoming::Renewed { target, epoch, renewal } => {
                self.publish(Work::Log(target, LogEvent::Renewed(epoch, renewal)));
            }
            Incoming::Marked { target, reading } => {
                self.publish(Work::Log(target, LogEvent::Marked(reading)));
            }
            Incoming::Answer { target, reading, answer } => {
                self.publish(Work::Log(target, LogEvent::Answer(reading, answer)));
            }
            Incoming::AllRenewed(renewal) => self.copies.unnumbered.all_renewed(renewal),
            Incoming::Returned { target, ticket } => {
                self.publish(Work::Log(target, LogEvent::Returned(ticket)));
            }
            Incoming::Refused(ticket) => self.give_up(ticket.into(), true),
            Incoming::Away(last) => self.go_away(last),
            Incoming::Back => {
                self.copies.is_up = true;
                self.retry_failed();
            }
        }
    }

    /// Publishes a message of this instance: with an ordered log, it is delivered when it is back.
    pub(super) fn publish_here(&mut self, delivery: Delivery, waits: Waits) -> Published {
        let Delivery { target, draft } = delivery;
        let is_published = matches!(target, Target::Room(_) | Target::User(_) | Target::Everyone);
        let Some(log) = self.ordered_log().filter(|_| is_published) else {
            return Published::Delivered(self.deliver(Delivery { target, draft }, Origin::Here));
        };
        let members = draft.into_members();
        let outgoing = Outgoing { target: target.clone(), members: members.clone() };
        let taken = log.append(outgoing);
        let pending = Pending { target, members, waits, since: Moment::now() };
        let copies = &mut self.copies;
        let ticket = match taken {
            Ok(ticket) => copies.pending.insert(ticket, pending),
            // The hub knows that the broker is away, and nothing is to be delivered before.
            Err(_) if !copies.is_up && copies.pending.len() == 0 => {
                return Published::Delivered(self.deliver_here(pending, None, Origin::Broker));
            }
            Err(_) => {
                let ticket = copies.pending.insert_untaken(pending);
                if !copies.is_up {
                    copies.given_up.push(ticket);
                }
                ticket
            }
        };
        Published::OnItsWay(ticket)
    }

    /// Delivers a message of this instance without the broker; it may have a number there under this ticket.
    fn deliver_here(&mut self, pending: Pending, ticket: Option<u64>, origin: Origin) -> usize {
        let Pending { target, members, .. } = pending;
        if target != Target::Everyone {
            match origin {
                Origin::Here => self.copies.unnumbered.note_published(&target, Moment::now()),
                Origin::Broker => self.copies.unnumbered.note(&target, ticket),
            }
            self.copies.counts.unnumbered += 1;
        }
        self.deliver(Delivery { target, draft: Draft::object(&[&members]) }, origin)
    }

    /// A message will not come back: it is delivered here, when all is that came before it.
    fn give_up(&mut self, ticket: Ticket, is_refused: bool) {
        if let Some(target) = self.copies.pending.target(ticket) {
            let target = target.clone();
            self.publish(Work::Log(target, LogEvent::GivenUp(ticket, is_refused)));
        }
    }

    /// Reacts to what happens to a log; returns the deliveries.
    pub(super) fn follow_log(&mut self, target: Target, event: LogEvent) -> usize {
        match event {
            LogEvent::GivenUp(ticket, is_refused) => self.deliver_unnumbered(ticket, is_refused),
            LogEvent::Returned(ticket) => {
                self.copies.came_back(ticket);
                if self.copies.pending.target(ticket.into()) != Some(&Target::Everyone) {
                    return 0;
                }
                let Some(pending) = self.copies.pending.take(ticket.into()) else { return 0 };
                let Pending { target, members, waits, .. } = pending;
                let frame = Draft::object(&[&members]).complete(None).frame;
                let reached = self.fan_out(&target, frame, None);
                self.answer_to(waits, ticket.into(), reached);
                reached
            }
            LogEvent::Marked(reading) => {
                let read = self.copies.readings.get_mut(&target);
                match read.filter(|read| read.number == reading) {
                    Some(read) => {
                        read.is_marked = true;
                        self.settle_if_answered(&target)
                    }
                    None => 0,
                }
            }
            LogEvent::Answer(reading, answer) => {
                if let Ok(answer) = &answer {
                    self.answers.give_back(answer.bytes());
                }
                let read = self.copies.readings.get_mut(&target);
                match (read.filter(|read| read.number == reading), answer) {
                    (Some(read), Ok(answer)) => {
                        read.answer = Some(answer);
                        self.settle_if_answered(&target)
                    }
                    (Some(_), Err(Unanswered)) => self.fail_reading(&target),
                    (None, _) => 0,
                }
            }
            event @ (LogEvent::Logged(..) | LogEvent::Renewed(..) | LogEvent::Unnumbered(_)) => {
                // Behind a reading's place it is not in the answer, and comes after it.
                let read = self.copies.readings.get_mut(&target);
                match read.filter(|read| read.is_marked) {
                    Some(read) => {
                        read.held.push(event);
                        0
                    }
                    None => self.follow_stream(&target, event),
                }
            }
        }
    }

    /// The next thing that the stream says of a log.
    pub(super) fn follow_stream(&mut self, target: &Target, event: LogEvent) -> usize {
        match event {
            LogEvent::Logged(logged, stream) => {
                self.broker.give_back(logged.draft.len());
                if !self.history.is_copy() {
                    let Logged { target, draft, .. } = logged;
                    return self.deliver(Delivery { target, draft }, Origin::Broker);
                }
                self.take_logged(logged, stream)
            }
            LogEvent::Renewed(epoch, renewal) => {
                if self.copies.readings.contains_key(target) {
                    // It is in the answer.
                } else if let Some(log) = self.history.find(target) {
                    let position = Position { epoch, seq: 0 };
                    if self.history.place(log, &position) == Place::OtherEpoch {
                        self.go_to(log, target, &position);
                    }
                }
                self.copies.unnumbered.renewed(target, renewal);
                0
            }
            LogEvent::Unnumbered(draft) => {
                self.broker.give_back(draft.len());
                self.copies.unnumbered.note_foreign(target, Moment::now());
                let delivery = Delivery { target: target.clone(), draft };
                self.deliver(delivery, Origin::Broker)
            }
            _ => 0,
        }
    }

    /// A message that the stream brings, where nothing holds it.
    pub(super) fn take_logged(&mut self, logged: Logged, stream: u32) -> usize {
        let Logged { target, position, ticket, draft } = logged;
        let now = Moment::now();
        let Some(log) = self.open_log(&target, now) else { return 0 };
        let place = self.history.place(log, &position);
        let before = Position { seq: position.seq.saturating_sub(1), ..position.clone() };
        match place {
            Place::Before => {
                self.is_back(ticket, 0);
                return 0;
            }
            Place::Next => {
                if self.history.position(log).is_none() {
                    self.history.adopt(log, &before);
                }
            }
            Place::Ahead | Place::OtherEpoch
                if self.copies.readings.contains_key(&target)
                    || (place == Place::Ahead
                        && now.since(self.history.is_behind_since(log, now)) < BEHIND_TIMEOUT) =>
            {
                self.read(log, &target, false);
                self.leave_to_reading(Logged { target, position, ticket, draft }, stream);
                return 0;
            }
            Place::Ahead | Place::OtherEpoch => _ = self.go_to(log, &target, &before),
        }
        // It may have waited since before a break, and so says nothing of what came behind that.
        if stream == self.history.stream() {
            self.history.freshen(log, now);
        }
        let frame = draft.complete(Some(Number::of(&target, position.seq))).frame;
        self.append(log, &target, KeptFrame { seq: position.seq, ticket, frame, at: now })
    }

    /// Keeps the next message of a log, and delivers it.
    pub(super) fn append(&mut self, log: LogKey, target: &Target, message: KeptFrame) -> usize {
        let KeptFrame { ticket, frame, at, .. } = message;
        self.history.catch_up(log);
        let was_delivered =
            ticket.is_some_and(|ticket| self.copies.unnumbered.was_delivered(target, ticket));
        self.history.keep(log, frame.clone(), at);
        let reached = if was_delivered {
            // Nobody gets it twice, and whoever counts is told why a number is missing.
            self.tell_reset(log, target);
            0
        } else {
            self.fan_out(target, frame, Some(log))
        };
        self.is_back(ticket, reached);
        reached
    }

    /// A message of this instance is back: who waits for it is answered.
    pub(super) fn is_back(&mut self, ticket: Option<u64>, reached: usize) {
        ticket.into_iter().for_each(|ticket| self.copies.came_back(ticket));
        if let Some(ticket) = ticket
            && let Some(pending) = self.copies.pending.take(ticket.into())
        {
            self.answer_to(pending.waits, ticket.into(), reached);
        }
    }

    fn answer_to(&mut self, waits: Waits, ticket: Ticket, reached: usize) {
        match waits {
            Waits::Connection(key) => self.broadcast_is_back(key, ticket),
            Waits::Notify(key, place) => {
                if let Some(bytes) = self.notifies.deliver(key, place, reached) {
                    self.notifications.give_back(bytes);
                }
            }
        }
    }

    /// Delivers a message here that does not come back.
    fn deliver_unnumbered(&mut self, ticket: Ticket, is_refused: bool) -> usize {
        let Some(pending) = self.copies.pending.take(ticket) else { return 0 };
        let waits = pending.waits;
        // What is in no log may go to the others without a number; what may be in one would come there twice.
        let origin = if is_refused { Origin::Here } else { Origin::Broker };
        let ticket_there = ticket.taken().filter(|_| !is_refused);
        let reached = self.deliver_here(pending, ticket_there, origin);
        self.answer_to(waits, ticket, reached);
        reached
    }

    /// Goes to another position. Where something may be missing, who listens is told; whether that is so.
    pub(super) fn go_to(&mut self, log: LogKey, target: &Target, position: &Position) -> bool {
        self.copies.unnumbered.begins_anew(target);
        let is_reset = self.history.adopt(log, position);
        if is_reset {
            self.tell_reset(log, target);
        }
        is_reset
    }

    /// Tells all who listen to a log that something may be missing.
    fn tell_reset(&mut self, log: LogKey, target: &Target) {
        let keys = members(&self.rooms, &self.audiences, target).to_vec();
        self.reset(&keys, log);
    }

    /// The stream goes on behind a break: what it brought before is all that comes of it, and every copy is stale.
    fn break_off(&mut self) {
        self.history.break_off();
        self.retry_failed();
        let readings = std::mem::take(&mut self.copies.readings);
        self.copies.collected_bytes = 0;
        for (target, read) in readings {
            self.drop_held(&target, read.held);
        }
        // What is on its way may have been in the part that did not come.
        let pending = &self.copies.pending;
        let is_kept = |target: &Target| *target != Target::Everyone;
        let targets: HashSet<_> = pending
            .targets()
            .map(|(_, target)| target)
            .filter(|target| is_kept(target))
            .cloned()
            .collect();
        let lost =
            pending.targets().filter(|(_, target)| !is_kept(target)).map(|(ticket, _)| ticket);
        self.copies.given_up.extend(lost.collect::<Vec<_>>());
        for target in targets {
            if let Some(log) = self.open_log(&target, Moment::now()) {
                let is_known = self.history.position(log).is_some();
                self.read(log, &target, !is_known);
            }
        }
    }

    /// The broker is away: nobody waits for it any more.
    fn go_away(&mut self, last: u64) {
        self.copies.is_up = false;
        for ticket in self.copies.pending.up_to(last) {
            self.give_up(ticket, false);
        }
        let read: Vec<_> = self.copies.readings.keys().cloned().collect();
        for target in read {
            self.fail_reading(&target);
        }
        self.wake_all();
    }

    /// Whether [`Self::catch_up`] has something to do.
    pub(super) fn is_behind(&self) -> bool {
        let asks = || {
            self.history.next_stale(Moment::now()).is_some() || self.copies.unnumbered.has_unasked()
        };
        !self.copies.given_up.is_empty() || (self.copies.is_up && asks())
    }

    /// Gives up what the broker did not take, has stale copies read, and logs renewed in which something was said
    /// without a number.
    pub(super) fn catch_up(&mut self) {
        for ticket in std::mem::take(&mut self.copies.given_up) {
            self.give_up(ticket, false);
        }
        if !self.copies.is_up {
            return;
        }
        let now = Moment::now();
        for _ in 0..ASKED_AT_ONCE {
            let Some(log) = self.history.next_stale(now) else { break };
            let Some(target) = self.history.target(log).cloned() else { break };
            let is_wanted = self.copies.waiting.contains_key(&target)
                || self.copies.readings.contains_key(&target);
            if is_wanted || !self.history.forget_vacant(log) {
                self.history.freshen(log, Moment::now());
                self.read(log, &target, false);
            }
        }
        for _ in 0..ASKED_AT_ONCE {
            let Some((target, renewal)) = self.copies.unnumbered.next(now) else { break };
            self.copies.counts.renewals += 1;
            if let Some(log) = self.ordered_log() {
                log.renew(target, renewal);
            }
        }
    }

    /// For the hub's tick: gives up what has waited for too long.
    pub(super) fn tick_copies(&mut self, now: Moment) {
        if !self.history.is_copy() {
            return;
        }
        self.retry_failed();
        // The broker may have much to do: what stands behind all that came back is still on its way, as long as
        // anything comes.
        let last = self.copies.last_back.filter(|(_, at)| now.since(*at) < PENDING_TIMEOUT);
        for ticket in self.copies.pending.before(now.before(PENDING_TIMEOUT)) {
            if last.is_none_or(|(last, _)| ticket <= Ticket::from(last)) {
                self.give_up(ticket, false);
            }
        }
        let late = self.copies.readings.iter().filter(|(_, read)| read.is_late(now));
        for target in late.map(|(target, _)| target.clone()).collect::<Vec<_>>() {
            self.fail_reading(&target);
        }
        self.wake_all();
        if self.copies.is_up {
            self.copies.unnumbered.ask_again(now);
        }
    }

    /// What was counted.
    pub(super) fn copy_counts(&self) -> CopyCounts {
        CopyCounts { pending: self.copies.pending.len() as u64, ..self.copies.counts }
    }
}

impl Copies {
    fn came_back(&mut self, ticket: u64) {
        let last = self.last_back.map_or(0, |(last, _)| last);
        self.last_back = Some((last.max(ticket), Moment::now()));
    }
}

#[cfg(test)]
mod tests;
