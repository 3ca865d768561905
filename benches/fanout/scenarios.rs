//! The scenarios and their bars.

use crate::fanout::figures;
use crate::fanout::loads::Load;
use crate::fanout::redis::{Pace, Passage};
use crate::fanout::rooms::Shape;
use crate::fanout::target::{History, Side};

/// What a figure must be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// At least this share of the floor's.
    OfFloorAtLeast(f64),
    /// At most this share of the floor's.
    OfFloorAtMost(f64),
    /// At least this share of the unbounded floor's, which runs only where a bar asks for it.
    OfUnboundedFloorAtLeast(f64),
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// At least so many times the same figure of another scenario, service against service.
    TimesOf(&'static str, f64),
}

impl Bar {
    /// The floor beside which the bar is shown.
    fn floor(self) -> Side {
        match self {
            Self::OfUnboundedFloorAtLeast(_) => Side::UnboundedFloor,
            _ => Side::Floor,
        }
    }
}

/// A load with a name, and what is expected of the service under it.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) load: Load,
    /// By the names of the figures.
    pub(crate) bars: &'static [(&'static str, Bar)],
}

impl Scenario {
    /// What a figure must be, beside `floor`.
    pub(crate) fn bar(&self, figure: &str, floor: Side) -> Option<Bar> {
        self.bars
            .iter()
            .find(|(name, bar)| *name == figure && bar.floor() == floor)
            .map(|(_, bar)| *bar)
    }

    /// Whether there is something to compare, or to compare with, on `side`.
    pub(crate) fn runs_on(&self, side: Side) -> bool {
        match side {
            Side::Service => true,
            Side::Floor => self.load.has_floor(),
            Side::UnboundedFloor => self.bars.iter().any(|(_, bar)| bar.floor() == side),
        }
    }
}

const fn fan_out(rooms: usize, members: usize, in_flight: usize) -> Load {
    Load::FanOut(Shape { rooms, members, in_flight })
}

const fn through_redis(instances: usize, history: History) -> Load {
    Load::ThroughRedis(Passage { instances, rooms: 8, in_flight: 64, history })
}

/// Each publisher has far more waiting than its fair share, and no member has more coming than its
/// socket holds: the floods press on the server, not on slow members.
const FLOODS: Shape = Shape { rooms: 8, members: 500, in_flight: 128 };

/// Throughput and CPU against the floor, for the many members of one room.
const LARGE_ROOM: &[(&str, Bar)] = &[
    (figures::DELIVERIES, Bar::OfFloorAtLeast(0.90)),
    (figures::DELIVERY_CPU, Bar::OfFloorAtMost(1.15)),
];

/// All, in the order in which they run.
pub(crate) const ALL: &[Scenario] = &[
    Scenario {
        name: "room-100-w1",
        about: "100 members, 1 in flight",
        load: fan_out(1, 100, 1),
        bars: &[
            (figures::DELIVERIES, Bar::OfFloorAtLeast(0.95)),
            (figures::DELIVERY_CPU, Bar::OfFloorAtMost(1.10)),
        ],
    },
    Scenario {
        name: "room-100-w64",
        about: "100 members, 64 in flight",
        load: fan_out(1, 100, 64),
        bars: &[
            (figures::DELIVERIES, Bar::OfFloorAtLeast(0.90)),
            (figures::DELIVERY_CPU, Bar::OfFloorAtMost(1.25)),
        ],
    },
    Scenario {
        name: "room-1000-w8",
        about: "1,000 members, 8 in flight",
        load: fan_out(1, 1_000, 8),
        bars: LARGE_ROOM,
    },
    Scenario {
        name: "room-5000-w4",
        about: "5,000 members, 4 in flight",
        load: fan_out(1, 5_000, 4),
        bars: LARGE_ROOM,
    },
    Scenario {
        name: "room-10000-w4",
        about: "10,000 members, 4 in flight",
        load: fan_out(1, 10_000, 4),
        bars: &[
            LARGE_ROOM[0],
            LARGE_ROOM[1],
            (figures::DELIVERIES, Bar::OfUnboundedFloorAtLeast(0.85)),
        ],
    },
    Scenario {
        name: "pairs-500",
        about: "500 rooms of two, 1 in flight in each",
        load: fan_out(500, 2, 1),
        bars: &[
            (figures::DELIVERIES, Bar::OfFloorAtLeast(0.70)),
            (figures::DELIVERY_CPU, Bar::OfFloorAtMost(1.60)),
        ],
    },
    Scenario {
        name: "notify-1",
        about: "REST notify, 1 keep-alive connection",
        load: Load::Notify { callers: 1, batch: 1 },
        bars: &[(figures::NOTIFICATIONS, Bar::OfFloorAtLeast(0.85))],
    },
    Scenario {
        name: "notify-16",
        about: "REST notify, 16 keep-alive connections",
        load: Load::Notify { callers: 16, batch: 1 },
        bars: &[(figures::NOTIFICATIONS, Bar::OfFloorAtLeast(0.85))],
    },
    Scenario {
        name: "notify-1-batch",
        about: "REST notify, 100 at a time, 1 connection",
        load: Load::Notify { callers: 1, batch: 100 },
        bars: &[(figures::NOTIFICATIONS, Bar::TimesOf("notify-1", 10.0))],
    },
    Scenario {
        name: "notify-16-batch",
        about: "REST notify, 100 at a time, 16 connections",
        load: Load::Notify { callers: 16, batch: 100 },
        bars: &[(figures::NOTIFICATIONS, Bar::TimesOf("notify-16", 10.0))],
    },
    Scenario {
        name: "idle-10000",
        about: "10,000 connections that say nothing",
        load: Load::Idle { connections: 10_000 },
        bars: &[
            (figures::MEMORY, Bar::AtMost(64.0)),
            // One each, and a few that come and go with the service itself.
            (figures::THREADS, Bar::AtMost(1.01)),
        ],
    },
    Scenario {
        name: "churn-1000",
        about: "1,000 connections a second come, join a room and go",
        load: Load::Churn { per_second: 1_000 },
        bars: &[
            // The arrivals set the rate; the last one's stay makes it a little less.
            (figures::CAME_AND_WENT, Bar::AtLeast(950.0)),
            (figures::LEFT_BEHIND, Bar::AtMost(0.0)),
        ],
    },
    Scenario {
        name: "wake-up",
        about: "one message to one client after 100 ms of silence",
        load: Load::WakeUp,
        bars: &[(figures::P50, Bar::AtMost(150.0))],
    },
    Scenario {
        name: "behind-10000",
        about: "a message to another room right behind a broadcast to 10,000",
        load: Load::Behind { members: 10_000 },
        bars: &[(figures::DELAY_IN_FLUSHES, Bar::AtMost(1.0))],
    },
    Scenario {
        name: "fair",
        about: "8 publishers that flood a room of 500 each, and a pair that talks",
        load: Load::Fair(FLOODS),
        bars: &[(figures::PAIR_P99, Bar::AtMost(100.0))],
    },
    Scenario {
        name: "recover-1000",
        about: "1,000 clients recover 100 messages each, all at once",
        load: Load::Recover { clients: 1_000, messages: 100 },
        bars: &[(figures::RECOVERED_TO_LIVE, Bar::AtLeast(0.5))],
    },
    Scenario {
        name: "two-instances",
        about: "two instances over Redis, 1,000 clients on each, 100 messages/s in turn",
        load: Load::TwoInstances { clients: 1_000, pace: Pace::PerSecond(100) },
        bars: &[(figures::WAY_P99, Bar::AtMost(5.0))],
    },
    Scenario {
        name: "two-instances-w1",
        about: "two instances over Redis, a member at each, 1 in flight",
        load: Load::TwoInstances { clients: 1, pace: Pace::InTurn },
        bars: &[],
    },
    Scenario {
        name: "two-instances-w64",
        about: "two instances over Redis, a member at each, 32 in flight from each",
        load: Load::TwoInstances { clients: 1, pace: Pace::InFlight(32) },
        bars: &[],
    },
    Scenario {
        name: "redis-log",
        about: "8 rooms of one, 64 in flight in each, numbered by Redis; floor: the bare script",
        load: through_redis(1, History::On),
        bars: &[],
    },
    Scenario {
        name: "redis-log-two",
        about: "the same with a member of each room at each of two instances",
        load: through_redis(2, History::On),
        bars: &[],
    },
    Scenario {
        name: "redis-plain-two",
        about: "the same without history; floor: the bare PUBLISH",
        load: through_redis(2, History::Off),
        bars: &[],
    },
    Scenario {
        name: "notify-1-redis",
        about: "REST notify beside Redis, 1 keep-alive connection",
        load: Load::NotifyRedis { callers: 1 },
        bars: &[],
    },
    Scenario {
        name: "notify-16-redis",
        about: "REST notify beside Redis, 16 keep-alive connections",
        load: Load::NotifyRedis { callers: 16 },
        bars: &[],
    },
];
