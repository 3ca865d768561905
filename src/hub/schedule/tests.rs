//! Verifies the schedule's promises over publishers that queue at random: nothing is lost or overtaken, and
//! what others queue decides neither how long a message waits nor how much a publisher gets.

#![allow(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

/// A message: its publisher, its number there, and how many deliveries it costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    publisher: usize,
    number: usize,
    cost: usize,
}

/// A schedule, and what a plain model knows of it.
struct Model {
    schedule: Schedule<usize, Message>,
    queues: Vec<VecDeque<Message>>,
    pushed: Vec<usize>,
    /// Deliveries served in all, and of each publisher.
    served: usize,
    served_of: Vec<usize>,
    /// For each publisher's first message: deliveries served when it became the first.
    first_since: Vec<usize>,
    /// Whether that message came when its publisher had nothing waiting and owed nothing.
    first_is_sparse: Vec<bool>,
}

impl Model {
    fn new(publishers: usize) -> Self {
        Self {
            schedule: Schedule::default(),
            queues: vec![VecDeque::new(); publishers],
            pushed: vec![0; publishers],
            served: 0,
            served_of: vec![0; publishers],
            first_since: vec![0; publishers],
            first_is_sparse: vec![false; publishers],
        }
    }

    fn push(&mut self, publisher: usize, weight: u32, cost: usize) {
        if self.queues[publisher].is_empty() {
            self.first_since[publisher] = self.served;
            self.first_is_sparse[publisher] = !self.schedule.keys.contains_key(&publisher);
        }
        let message = Message { publisher, number: self.pushed[publisher], cost };
        self.pushed[publisher] += 1;
        self.queues[publisher].push_back(message);
        self.schedule.push(&publisher, Share { weight, comes_first: true }, message);
    }

    /// Serves one message: what it is, how long it waited as the first of its publisher, and whether it
    /// had come to an idle one.
    fn serve(&mut self) -> Option<(Message, usize, bool)> {
        let message = self.schedule.next()?;
        let Message { publisher, cost, .. } = message;
        assert_eq!(self.queues[publisher].pop_front(), Some(message), "overtaken or made up");
        let waited = self.served - self.first_since[publisher];
        let was_sparse = std::mem::take(&mut self.first_is_sparse[publisher]);
        self.schedule.charge(cost);
        self.served += cost;
        self.served_of[publisher] += cost;
        self.first_since[publisher] = self.served;
        let waiting = self.queues.iter().map(VecDeque::len).sum::<usize>();
        assert_eq!(self.schedule.len(), waiting);
        let active = self.queues.iter().filter(|queue| !queue.is_empty()).count();
        assert_eq!(self.schedule.active(), active);
        Some((message, waited, was_sparse))
    }
}

const SHARE: Share = Share { weight: 1, comes_first: true };
const PUBLISHERS: usize = 8;
const MOST: usize = QUANTUM as usize;

#[derive(Debug, Clone)]
enum Step {
    /// So many messages of this cost at once.
    Push(usize, usize, usize),
    Serve(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..PUBLISHERS, 1..200_usize, 1..=MOST).prop_map(|(p, n, cost)| Step::Push(p, n, cost)),
        2 => (0..PUBLISHERS, 1..3_usize, 1..4_usize).prop_map(|(p, n, cost)| Step::Push(p, n, cost)),
        3 => (1..60_usize).prop_map(Step::Serve),
    ];
    prop::collection::vec(step, 1..150)
}

proptest! {
    #[test]
    fn a_message_waits_for_turns_and_not_for_queues(steps in steps()) {
        let mut model = Model::new(PUBLISHERS);
        let check = |model: &mut Model| -> Result<bool, TestCaseError> {
            let Some((message, waited, was_sparse)) = model.serve() else { return Ok(false) };
            // A turn is at most two quanta, when no message costs more than one.
            let turns = if was_sparse { PUBLISHERS } else { 2 * PUBLISHERS };
            prop_assert!(waited <= turns * 2 * MOST, "{message:?} waited for {waited}, sparse: {was_sparse}");
            Ok(true)
        };
        for step in steps {
            match step {
                Step::Push(publisher, count, cost) => {
                    (0..count).for_each(|_| model.push(publisher, 1, cost));
                }
                Step::Serve(count) => {
                    for _ in 0..count {
                        check(&mut model)?;
                    }
                }
            }
        }
        while check(&mut model)? {}
        prop_assert!(model.queues.iter().all(VecDeque::is_empty), "lost");
        prop_assert!(model.schedule.flows.is_empty() && model.schedule.keys.is_empty());
    }

    /// Rooms of any size: who sends to a large one gets no more deliveries than who sends to a small one.
    #[test]
    fn deliveries_are_shared_by_weight(
        costs in prop::collection::vec(1..20_000_usize, 2..6),
        weights in prop::collection::vec(1..9_u32, 6),
    ) {
        let mut model = Model::new(costs.len());
        let most = *costs.iter().max().unwrap_or(&1);
        let fill = |model: &mut Model| {
            for (publisher, cost) in costs.iter().enumerate() {
                while model.queues[publisher].len() < 3 {
                    model.push(publisher, weights[publisher], *cost);
                }
            }
        };
        let total = 400_000 + 40 * most;
        fill(&mut model);
        while model.served < total {
            model.serve();
            fill(&mut model);
        }
        let shares: Vec<_> = (0..costs.len())
            .map(|p| model.served_of[p] as f64 / f64::from(weights[p]))
            .collect();
        let (least, largest) = shares.iter().fold((f64::MAX, 0.0_f64), |(a, b), s| (a.min(*s), b.max(*s)));
        // Each may be ahead by one turn: a quantum, and a message that was begun.
        let ahead = 2.0 * (most + MOST) as f64;
        prop_assert!(largest - least <= ahead, "{shares:?}");
    }
}

#[test]
fn one_publisher_alone_is_served_at_once_and_forgotten() {
    let mut model = Model::new(1);
    for _ in 0..3 {
        (0..5).for_each(|_| model.push(0, 1, 10_000));
        for number in 0..5 {
            assert_eq!(model.serve().map(|(message, ..)| message.number % 5), Some(number));
        }
        assert!(model.serve().is_none());
        assert!(model.schedule.keys.is_empty());
    }
}

#[test]
fn the_rest_of_a_batch_stays_the_first_of_its_publisher() {
    let mut schedule = Schedule::<u8, &str>::default();
    schedule.push(&1, SHARE, "batch");
    schedule.push(&1, SHARE, "later");
    assert_eq!(schedule.next(), Some("batch"));
    schedule.put_back("rest of the batch");
    schedule.charge(2 * MOST);
    schedule.push(&2, SHARE, "other");
    assert_eq!(schedule.active(), 2);
    let order: Vec<_> = std::iter::from_fn(|| {
        let message = schedule.next();
        schedule.charge(1);
        message
    })
    .collect();
    assert_eq!(order, ["other", "rest of the batch", "later"]);
}
