//! How the hub reads a log from the broker: what a copy lacks, or all that there is.
//!
//! A reading has a place in the broker's stream, its *mark*. What the stream brings before it is in the answer; what
//! it brings behind it is held until the answer is there. So the two fit together without a gap or a repetition.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::copies::{KeptFrame, LogEvent};
use super::core::{Hub, Work};
use super::event::ConnectionKey;
use super::history::{LogKey, Place};
use crate::bridge::{Answer, KeptMessage, Logged, Reading};
use crate::config::BROKER_TIMEOUT;
use crate::protocol::{Number, Position, Target};
use crate::runtime::clock::Moment;

/// After this a reading whose answer or place did not come has come to nothing.
const READING_TIMEOUT: Duration = BROKER_TIMEOUT.saturating_mul(5);

/// A reading on its way.
pub(super) struct Read {
    pub(super) number: u64,
    /// When its last page was asked for.
    pub(super) since: Moment,
    from_start: bool,
    /// Whether nothing was known of the log before.
    is_first_look: bool,
    /// Whether the stream has come to its place.
    pub(super) is_marked: bool,
    pub(super) answer: Option<Answer>,
    /// Messages of this instance that the stream brought before its place.
    left: Vec<(Logged, u32)>,
    /// What the stream brought behind its place.
    pub(super) held: Vec<LogEvent>,
    /// Of a reading from the start: the epoch, and what earlier pages had.
    epoch: Option<Arc<str>>,
    collected: VecDeque<KeptFrame>,
    collected_bytes: usize,
}

impl Hub {
    /// Whether a connection that asks for a log has to wait until it is read.
    pub(super) fn has_to_wait(
        &mut self,
        key: ConnectionKey,
        target: Target,
        since: Option<&Position>,
    ) -> bool {
        if !self.history.is_copy() || !self.copies.is_up {
            return false;
        }
        let now = Moment::now();
        let Some(log) = self.open_log(&target, now) else { return false };
        let is_read = self.copies.readings.contains_key(&target);
        let Some(connection) = self.connections.slots.get_mut(key) else { return false };
        // It may have been at an instance that is ahead of this one; once it is read, all are even.
        let is_ahead = !connection.conversation.has_waited() && self.history.is_ahead(log, since);
        if !is_read && !is_ahead && self.history.answers(log, since) {
            return false;
        }
        // Nobody waits for what has not been answered to anyone for a while.
        let unanswered = self.copies.unanswered_since;
        if unanswered.is_some_and(|since| now.since(since) >= BROKER_TIMEOUT) {
            return false;
        }
        if connection.conversation.is_patience_over(now) {
            return false;
        }
        if !is_read {
            self.read(log, &target, since.is_some());
        }
        self.copies.waiting.entry(target).or_default().push(key);
        true
    }

    /// Reads what a copy lacks, or all that there is; unless it is being read.
    pub(super) fn read(&mut self, log: LogKey, target: &Target, from_start: bool) {
        if self.copies.readings.contains_key(target) {
            return;
        }
        self.copies.readings.insert(target.clone(), Read::new(from_start));
        let since = if from_start { None } else { self.history.position(log) };
        self.ask(target, since);
        self.history.freshen(log, Moment::now());
    }

    /// Asks for a page of what is being read.
    fn ask(&mut self, target: &Target, since: Option<Position>) {
        let Some(read) = self.copies.readings.get_mut(target) else { return };
        self.copies.last_reading += 1;
        self.copies.counts.readings += 1;
        (read.number, read.is_marked) = (self.copies.last_reading, false);
        read.since = Moment::now();
        // Of another epoch than the known one, all is new.
        let (number, from_start) = (read.number, read.from_start || since.is_some());
        let reading = Reading { number, target: target.clone(), since, from_start };
        if let Some(log) = self.ordered_log() {
            log.read(reading);
        }
    }

    pub(super) fn settle_if_answered(&mut self, target: &Target) -> usize {
        let read = self.copies.readings.get_mut(target);
        match read.filter(|read| read.is_marked).and_then(|read| read.answer.take()) {
            Some(answer) => self.settle(target, answer),
            None => 0,
        }
    }

    /// The stream stands where the log was read: takes over what the copy lacks.
    fn settle(&mut self, target: &Target, answer: Answer) -> usize {
        let now = Moment::now();
        let Answer { position: end, messages } = answer;
        let Some(log) = self.open_log(target, now) else { return 0 };
        let page = page(target, messages, now);
        let next = page.last().filter(|last| last.seq < end.seq);
        let next = next.map(|last| Position { epoch: Arc::clone(&end.epoch), seq: last.seq });
        let own = self.history.position(log);
        let is_other = own.as_ref().is_some_and(|own| own.epoch != end.epoch);
        let is_all = page.first().is_some_and(|first| first.seq == 1);
        if is_other && is_all {
            // All of the new epoch is here: who listens loses nothing of it.
            self.go_to(log, target, &Position { epoch: Arc::clone(&end.epoch), seq: 0 });
        }
        let is_same = own.is_some() && (!is_other || is_all);
        let mut reached = 0;
        for message in page.iter().filter(|_| is_same) {
            if self.history.is_next(log, message.seq) {
                reached += self.append(log, target, message.clone());
            }
        }
        let is_behind = self.history.position(log).is_none_or(|own| own != end);
        let goes_on = is_same && next.is_some();
        let is_new = self.history.position(log).is_none();
        let is_told = is_behind && !goes_on && self.go_to(log, target, &end);
        let read = self.copies.readings.get_mut(target);
        let is_first = read.is_some_and(|read| {
            read.is_first_look |= is_new && !is_told;
            read.is_first_look
        });
        // Those of this instance that were not delivered above. Where somebody knew of a position, that was told,
        // and they have no place.
        for message in &page {
            let ticket =
                message.ticket.filter(|ticket| self.copies.pending.contains((*ticket).into()));
            if ticket.is_some() {
                let frame = message.frame.clone();
                let count = if is_first { self.fan_out(target, frame, None) } else { 0 };
                self.is_back(ticket, count);
                reached += count;
            }
        }
        reached + self.turn_page(log, target, (page, end.epoch), next)
    }

    /// Asks for the next page, or ends a reading.
    fn turn_page(
        &mut self,
        log: LogKey,
        target: &Target,
        (page, epoch): (Vec<KeptFrame>, Arc<str>),
        next: Option<Position>,
    ) -> usize {
        let Some(read) = self.copies.readings.get_mut(target) else { return 0 };
        if read.from_start {
            let others = self.copies.collected_bytes.saturating_sub(read.collected_bytes);
            read.collect(page, epoch, self.config.history_bytes.saturating_sub(others));
            self.copies.collected_bytes = others + read.collected_bytes;
        }
        if next.is_some() {
            // All of this is in the next answer.
            let held = std::mem::take(&mut read.held);
            self.drop_held(target, held);
            self.ask(target, next);
            return 0;
        }
        let Some(read) = self.end_reading(target) else { return 0 };
        self.copies.unanswered_since = None;
        self.history.freshen(log, Moment::now());
        self.history.catch_up(log);
        // The numbers of what is filled in are told by the last one's.
        let end = self.history.position(log).map(|position| position.seq);
        if read.from_start && read.collected.back().is_none_or(|last| Some(last.seq) == end) {
            let messages = read.collected.into_iter().map(|kept| (kept.frame, kept.at)).collect();
            self.history.fill(log, messages, Moment::now());
        }
        // Those that are delivered have been answered; the rest is no longer kept, and that was told.
        read.left.iter().for_each(|(logged, _)| self.is_back(logged.ticket, 0));
        let reached = self.follow_held(target, read.held);
        self.wake(target);
        reached
    }

    fn end_reading(&mut self, target: &Target) -> Option<Read> {
        let read = self.copies.readings.remove(target)?;
        let copies = &mut self.copies;
        copies.collected_bytes = copies.collected_bytes.saturating_sub(read.collected_bytes);
        Some(read)
    }

    /// A message of the stream that is in the answer. One of this instance is kept, as somebody waits for it.
    pub(super) fn leave_to_reading(&mut self, logged: Logged, stream: u32) {
        if logged.ticket.is_some()
            && let Some(read) = self.copies.readings.get_mut(&logged.target)
        {
            read.left.push((logged, stream));
        }
    }

    /// The broker did not answer: the log stays stale.
    pub(super) fn fail_reading(&mut self, target: &Target) -> usize {
        let Some(read) = self.end_reading(target) else { return 0 };
        self.copies.unanswered_since.get_or_insert(Moment::now());
        let mut reached = 0;
        // What others begin without, begins here too; what comes behind a gap comes with the next reading.
        for (logged, stream) in read.left {
            let log = self.history.find(target);
            if log.is_some_and(|log| self.history.place(log, &logged.position) != Place::Ahead) {
                reached += self.take_logged(logged, stream);
            }
        }
        reached += self.follow_held(target, read.held);
        if let Some(log) = self.history.find(target) {
            self.history.doubt(log);
            self.copies.failed.insert(log);
        }
        if !self.copies.is_up {
            self.wake(target);
        }
        reached
    }

    fn follow_held(&mut self, target: &Target, held: Vec<LogEvent>) -> usize {
        held.into_iter().map(|event| self.follow_log(target.clone(), event)).sum()
    }

    /// What was held is in the next answer, but for what has no number.
    pub(super) fn drop_held(&mut self, target: &Target, held: Vec<LogEvent>) {
        for event in held {
            match event {
                LogEvent::Logged(logged, _) => self.broker.give_back(logged.draft.len()),
                LogEvent::Renewed(_, renewal) => {
                    self.copies.unnumbered.renewed(target, renewal);
                }
                event => _ = self.follow_stream(target, event),
            }
        }
    }

    /// Who waits for this log goes on.
    fn wake(&mut self, target: &Target) {
        for key in self.copies.waiting.remove(target).unwrap_or_default() {
            self.publish(Work::GoOn(key));
        }
    }

    pub(super) fn wake_all(&mut self) {
        let waiting = std::mem::take(&mut self.copies.waiting);
        for key in waiting.into_values().flatten() {
            self.publish(Work::GoOn(key));
        }
    }

    /// Has logs read again whose reading came to nothing.
    pub(super) fn retry_failed(&mut self) {
        for log in std::mem::take(&mut self.copies.failed) {
            self.history.ask_again(log);
        }
    }
}

impl Read {
    fn new(from_start: bool) -> Self {
        Self {
            number: 0,
            since: Moment::now(),
            from_start,
            is_first_look: false,
            is_marked: false,
            answer: None,
            left: Vec::new(),
            held: Vec::new(),
            epoch: None,
            collected: VecDeque::new(),
            collected_bytes: 0,
        }
    }

    /// Whether its answer or its place has not come for too long.
    pub(super) fn is_late(&self, now: Moment) -> bool {
        now.since(self.since) >= READING_TIMEOUT
    }

    fn forget(&mut self) {
        self.collected.clear();
        self.collected_bytes = 0;
    }

    /// Adds a page, of which it keeps the end.
    fn collect(&mut self, page: Vec<KeptFrame>, epoch: Arc<str>, most_bytes: usize) {
        if self.epoch.as_ref() != Some(&epoch) {
            self.forget();
        }
        self.epoch = Some(epoch);
        for message in page {
            // Else messages between are gone.
            let last = self.collected.back().map(|last| last.seq);
            if last.is_some_and(|last| last.checked_add(1) != Some(message.seq)) {
                self.forget();
            }
            self.collected_bytes += message.frame.len();
            self.collected.push_back(message);
            while self.collected_bytes > most_bytes
                && let Some(oldest) = self.collected.pop_front()
            {
                self.collected_bytes -= oldest.frame.len();
            }
        }
    }
}

fn page(target: &Target, messages: Vec<KeptMessage>, now: Moment) -> Vec<KeptFrame> {
    let frame = |message: KeptMessage| KeptFrame {
        seq: message.seq,
        ticket: message.ticket,
        frame: message.draft.complete(Some(Number::of(target, message.seq))).frame,
        at: now.before(message.age),
    };
    messages.into_iter().map(frame).collect()
}
