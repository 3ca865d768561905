//! Rooms of members, one of whom publishes: the connections, and the account of what they hear.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crate::Fallible;
use crate::fanout::ledger::Ledger;
use crate::fanout::swarm::{self, Arrival, Swarm};
use crate::fanout::tokens::Tokens;
use crate::fanout::wire::{self, Template, Unit};

/// One who publishes broadcasts to a room from a connection in it.
struct Publisher {
    link: usize,
    stream: usize,
    template: Template,
}

/// How many members are where.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) rooms: usize,
    /// In each room.
    pub(crate) members: usize,
    /// Messages of each room that are on their way at a time, at most.
    pub(crate) in_flight: usize,
}

impl Shape {
    /// One room of one.
    pub(crate) const SINGLE: Self = Self { rooms: 1, members: 1, in_flight: 1 };
}

/// Members in rooms, their publishers, and the account of what they say and hear.
pub(crate) struct Rooms {
    swarm: Swarm,
    pub(crate) ledger: Ledger,
    publishers: Vec<Publisher>,
    /// What the next send carries.
    outgoing: Vec<u8>,
}

impl Rooms {
    /// Opens the connections and joins each to its room, `<prefix>-0`, `<prefix>-1`, …; the first
    /// member of each publishes.
    pub(crate) fn open(
        address: SocketAddr,
        prefix: &str,
        shape: Shape,
        tokens: &Tokens,
    ) -> Fallible<Self> {
        let Shape { rooms, members, in_flight } = shape;
        let mut swarm = Swarm::new()?;
        let names: Vec<String> = (0..rooms).map(|room| format!("{prefix}-{room}")).collect();
        let seats: Vec<String> =
            names.iter().flat_map(|name| vec![name.clone(); members]).collect();
        swarm.admit(address, &seats, tokens)?;
        let mut ledger = Ledger::new();
        let mut publishers = Vec::new();
        for (room, name) in names.iter().enumerate() {
            let stream = ledger.add_stream(members as u32, in_flight);
            for _ in 0..members {
                ledger.add_member([stream; 2], 0, wire::BROADCAST_TAIL_BYTES);
            }
            publishers.push(Publisher {
                link: room * members,
                stream,
                template: Template::broadcast(name, 0),
            });
        }
        Ok(Self::new(swarm, ledger, publishers))
    }

    /// One room that `clients` connections to each of two addresses share; the first of each publishes.
    /// What a member hears from its own address is near, the rest far.
    pub(crate) fn shared(
        addresses: [SocketAddr; 2],
        clients: usize,
        in_flight: usize,
        tokens: &Tokens,
    ) -> Fallible<Self> {
        let mut swarm = Swarm::new()?;
        let mut ledger = Ledger::new();
        let seats = vec!["shared".to_owned(); clients];
        let streams = [0, 1].map(|_| ledger.add_stream(2 * clients as u32, in_flight));
        let mut publishers = Vec::new();
        for (number, (address, stream)) in (0..).zip(addresses.into_iter().zip(streams)) {
            let link = swarm.admit(address, &seats, tokens)?;
            for _ in &seats {
                ledger.add_member(streams, number, wire::BROADCAST_TAIL_BYTES);
            }
            let template = Template::broadcast(&seats[0], number);
            publishers.push(Publisher { link, stream, template });
        }
        Ok(Self::new(swarm, ledger, publishers))
    }

    /// Rooms with one member at each of these addresses. One of them publishes, and which one goes round.
    pub(crate) fn across(
        addresses: &[SocketAddr],
        rooms: usize,
        in_flight: usize,
        tokens: &Tokens,
    ) -> Fallible<Self> {
        let mut swarm = Swarm::new()?;
        let mut ledger = Ledger::new();
        let names: Vec<String> = (0..rooms).map(|room| format!("room-{room}")).collect();
        let streams: Vec<usize> =
            names.iter().map(|_| ledger.add_stream(addresses.len() as u32, in_flight)).collect();
        let mut publishers = Vec::new();
        for (at, address) in addresses.iter().enumerate() {
            let first = swarm.admit(*address, &names, tokens)?;
            for (room, (name, &stream)) in names.iter().zip(&streams).enumerate() {
                let publishes = room % addresses.len() == at;
                ledger.add_member([stream; 2], u8::from(!publishes), wire::BROADCAST_TAIL_BYTES);
                if publishes {
                    let template = Template::broadcast(name, 0);
                    publishers.push(Publisher { link: first + room, stream, template });
                }
            }
        }
        publishers.sort_by_key(|publisher| publisher.stream);
        Ok(Self::new(swarm, ledger, publishers))
    }

    fn new(swarm: Swarm, ledger: Ledger, publishers: Vec<Publisher>) -> Self {
        Self { swarm, ledger, publishers, outgoing: Vec::new() }
    }

    /// Publishes as much as may be in flight, each message in a send of its own, as clients do.
    pub(crate) fn fill(&mut self, publisher: usize) -> Fallible<()> {
        while self.ledger.room_for(self.publishers[publisher].stream) > 0 {
            self.publish_one(publisher)?;
        }
        Ok(())
    }

    /// Takes one round of arrivals, of which there must be some.
    fn take(&mut self) -> Fallible<()> {
        let ledger = &mut self.ledger;
        self.swarm.pump_due(|arrival| book(ledger, &arrival))
    }

    /// Takes what is on its way.
    pub(crate) fn settle(&mut self) -> Fallible<()> {
        while !self.ledger.is_settled() {
            self.take()?;
        }
        Ok(())
    }

    /// Publishes whenever a fan-out completes, for `span`, then waits for what is on its way.
    pub(crate) fn run(&mut self, span: Duration) -> Fallible<()> {
        let deadline = Instant::now() + span;
        for publisher in 0..self.publishers.len() {
            self.fill(publisher)?;
        }
        while !self.ledger.is_settled() {
            self.take()?;
            // Streams and publishers have the same numbers.
            let completed = self.ledger.take_completed();
            if Instant::now() < deadline {
                for publisher in completed {
                    self.fill(publisher)?;
                }
            }
        }
        Ok(())
    }

    /// For `span`, the publishers speak in turn, each when the last message has reached everyone. A
    /// round starts at the earliest `gap` after the one before: else a fast moment had far more messages
    /// than a slow one, and hid it in every quantile.
    pub(crate) fn talk(&mut self, span: Duration, gap: Duration) -> Fallible<()> {
        let mut next = Instant::now();
        let deadline = next + span;
        while next < deadline {
            for publisher in 0..self.publishers.len() {
                self.publish_one(publisher)?;
                self.settle()?;
            }
            next += gap;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            next = next.max(Instant::now());
        }
        Ok(())
    }

    /// Publishes `count` messages at a fixed rate, from the publishers in turn, then waits for what
    /// is on its way.
    pub(crate) fn run_at_rate(&mut self, rate: u32, count: u32) -> Fallible<()> {
        let gap = Duration::from_secs(1) / rate;
        let start = Instant::now();
        let mut published = 0;
        while published < count || !self.ledger.is_settled() {
            let due = start + gap * published;
            if published < count && Instant::now() >= due {
                let publisher = published as usize % self.publishers.len();
                self.publish_one(publisher)?;
                published += 1;
            } else if published < count {
                self.take_until(due)?;
            } else {
                self.take()?;
            }
        }
        Ok(())
    }

    fn publish_one(&mut self, publisher: usize) -> Fallible<()> {
        let publisher = &mut self.publishers[publisher];
        if self.ledger.room_for(publisher.stream) == 0 {
            return Err("as many messages as may be are on their way, and more are due".into());
        }
        self.outgoing.clear();
        let sequence = self.ledger.publish(publisher.stream);
        publisher.template.append(sequence, &mut self.outgoing);
        self.swarm.send(publisher.link, &self.outgoing)
    }

    /// Takes one round of arrivals, or none when none comes before `due`.
    fn take_until(&mut self, due: Instant) -> Fallible<()> {
        let ledger = &mut self.ledger;
        let wait = due.saturating_duration_since(Instant::now());
        self.swarm.pump(wait, |arrival| book(ledger, &arrival))?;
        Ok(())
    }
}

fn book(ledger: &mut Ledger, arrival: &Arrival<'_>) -> Fallible<()> {
    match arrival.unit {
        Unit::Text(text) => ledger.deliver(arrival.link, text, arrival.at),
        ref other => Err(swarm::unexpected(arrival.link, other)),
    }
}
