//! What a connection says, in its order: where an answer has to wait for the broker, what was said behind it
//! waits too.
//!
//! Broadcasts that follow each other are on their way at the same time; anything else waits until those before
//! it are back. So replies keep the order of what they answer, and behind `left` comes no frame of that room.

use std::collections::VecDeque;

use bytes::Bytes;

use super::core::Hub;
use super::event::{ConnectionKey, Said};
use super::pending::Ticket;
use crate::config::BROKER_TIMEOUT;
use crate::runtime::clock::Moment;

/// Something that has not been answered.
pub(super) enum Unanswered {
    /// A broadcast.
    Broadcast {
        /// By which it comes back; `None` when it is delivered.
        ticket: Option<Ticket>,
        /// Its answer.
        reply: Option<Bytes>,
        taken: Option<usize>,
    },
    /// What has still to be served.
    Said { said: Said, taken: Option<usize> },
}

/// What came of something that a connection said.
pub(super) enum Outcome {
    /// It is served, and caused so many deliveries.
    Done(usize),
    /// It is delivered or refused, or under its ticket on its way; the answer waits for those before.
    Broadcast { ticket: Option<Ticket>, reply: Option<Bytes>, reached: usize },
    /// The log that it asks for has to be read first.
    MustWait(Said),
}

/// What waits of one connection; mostly nothing.
#[derive(Default)]
pub(super) struct Conversation {
    waiting: VecDeque<Unanswered>,
    /// Since when the first waits for a log.
    blocked_since: Option<Moment>,
}

impl Conversation {
    /// Whether something said now has to wait for what was said before.
    fn holds_back(&self, said: &Said) -> bool {
        match said {
            Said::Ping(_) => false,
            Said::Broadcast(_) => {
                self.waiting.iter().any(|waiting| matches!(waiting, Unanswered::Said { .. }))
            }
            _ => !self.waiting.is_empty(),
        }
    }

    /// Whether the first has waited for a log.
    pub(super) fn has_waited(&self) -> bool {
        self.blocked_since.is_some()
    }

    /// Whether the first has waited for a log for as long as anybody waits for the broker; the wait begins with
    /// the first call.
    pub(super) fn is_patience_over(&mut self, now: Moment) -> bool {
        now.since(*self.blocked_since.get_or_insert(now)) >= BROKER_TIMEOUT
    }
}

impl Hub {
    /// Serves what a connection says, or has it wait for what it said before; returns the deliveries.
    pub(super) fn hear(&mut self, key: ConnectionKey, said: Said, taken: Option<usize>) -> usize {
        let Some(connection) = self.connections.slots.get_mut(key) else { return 1 };
        if connection.conversation.holds_back(&said) {
            connection.conversation.waiting.push_back(Unanswered::Said { said, taken });
            return 1;
        }
        let is_first = connection.conversation.waiting.is_empty();
        let (waits, reached) = match self.react(key, said) {
            Outcome::Done(reached) => {
                self.give_back(key, taken);
                return reached.max(1);
            }
            Outcome::Broadcast { ticket: None, reply, reached } if is_first => {
                self.give_back(key, taken);
                if let Some(reply) = reply {
                    self.connections.send(key, reply);
                }
                return reached.max(1);
            }
            Outcome::Broadcast { ticket, reply, reached } => {
                (Unanswered::Broadcast { ticket, reply, taken }, reached)
            }
            Outcome::MustWait(said) => (Unanswered::Said { said, taken }, 0),
        };
        if let Some(connection) = self.connections.slots.get_mut(key) {
            connection.conversation.waiting.push_back(waits);
        }
        reached.max(1)
    }

    /// A broadcast of this connection is back.
    pub(super) fn broadcast_is_back(&mut self, key: ConnectionKey, back: Ticket) {
        let Some(connection) = self.connections.slots.get_mut(key) else { return };
        for waiting in &mut connection.conversation.waiting {
            match waiting {
                Unanswered::Broadcast { ticket, .. } if *ticket == Some(back) => {
                    *ticket = None;
                    break;
                }
                _ => {}
            }
        }
        self.go_on(key);
    }

    /// Answers what is delivered, and serves what waited for it; returns the deliveries.
    pub(super) fn go_on(&mut self, key: ConnectionKey) -> usize {
        let mut reached = 0;
        loop {
            reached += self.answer_first(key);
            let Some(connection) = self.connections.slots.get_mut(key) else { return reached };
            let waiting = &mut connection.conversation.waiting;
            // Behind broadcasts that are on their way, further ones may set out.
            let next =
                waiting.iter().position(|waiting| matches!(waiting, Unanswered::Said { .. }));
            let Some(at) = next else { return reached };
            let is_broadcast =
                matches!(waiting.get(at), Some(Unanswered::Said { said: Said::Broadcast(_), .. }));
            if at > 0 && !is_broadcast {
                return reached;
            }
            let Some(Unanswered::Said { said, taken }) = waiting.remove(at) else { return reached };
            let outcome = self.react(key, said);
            let Some(connection) = self.connections.slots.get_mut(key) else { return reached };
            let conversation = &mut connection.conversation;
            match outcome {
                Outcome::Done(deliveries) => {
                    conversation.blocked_since = None;
                    reached += deliveries;
                    self.give_back(key, taken);
                }
                Outcome::Broadcast { ticket, reply, reached: deliveries } => {
                    reached += deliveries;
                    let broadcast = Unanswered::Broadcast { ticket, reply, taken };
                    conversation.waiting.insert(at, broadcast);
                }
                Outcome::MustWait(said) => {
                    conversation.waiting.insert(at, Unanswered::Said { said, taken });
                    return reached;
                }
            }
        }
    }

    /// Sends the answers of the first broadcasts, as far as they are delivered.
    fn answer_first(&mut self, key: ConnectionKey) -> usize {
        let mut answered = 0;
        while let Some(connection) = self.connections.slots.get_mut(key)
            && let waiting = &mut connection.conversation.waiting
            && matches!(waiting.front(), Some(Unanswered::Broadcast { ticket: None, .. }))
            && let Some(Unanswered::Broadcast { reply, taken, .. }) = waiting.pop_front()
        {
            self.give_back(key, taken);
            if let Some(reply) = reply {
                self.connections.send(key, reply);
                answered += 1;
            }
        }
        answered
    }

    fn give_back(&self, key: ConnectionKey, taken: Option<usize>) {
        if let Some(bytes) = taken
            && let Some(connection) = self.connections.slots.get(key)
        {
            connection.share.allowance.give_back(bytes);
        }
    }
}
