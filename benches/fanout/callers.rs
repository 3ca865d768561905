//! Callers that notify over REST, and the members that they notify.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::Fallible;
use crate::fanout::figures::{self, Figure};
use crate::fanout::ledger::Ledger;
use crate::fanout::loads::Trial;
use crate::fanout::measure::Histogram;
use crate::fanout::swarm::{self, Swarm};
use crate::fanout::target::Purpose;
use crate::fanout::tokens::Tokens;
use crate::fanout::wire::{self, Template, Unit};

/// Requests whose notifications may still be on their way when the caller, which has its answer,
/// sends the next.
const BATCHES_IN_FLIGHT: usize = 8;

/// One who notifies over REST.
struct Caller {
    link: usize,
    stream: usize,
    template: Template,
    /// When the request on its way was sent.
    asked: Option<Instant>,
}

/// The callers, the members that they notify, and the account.
pub(crate) struct Callers {
    swarm: Swarm,
    ledger: Ledger,
    callers: Vec<Caller>,
    batch: usize,
    answered: u64,
    answers: Histogram,
    outgoing: Vec<u8>,
}

impl Callers {
    pub(crate) fn open(
        address: SocketAddr,
        callers: usize,
        batch: usize,
        tokens: &Tokens,
    ) -> Fallible<Self> {
        let mut swarm = Swarm::new()?;
        let rooms: Vec<String> = (0..callers).map(|room| format!("room-{room}")).collect();
        swarm.admit(address, &rooms, tokens)?;
        let mut ledger = Ledger::new();
        let mut open = Vec::new();
        for room in &rooms {
            let stream = ledger.add_stream(1, batch * BATCHES_IN_FLIGHT);
            ledger.add_member([stream; 2], 0, wire::notification_tail_bytes(room));
            open.push(Caller {
                link: swarm.connect(address)?,
                stream,
                template: Template::notify(room, batch, tokens.backend()),
                asked: None,
            });
        }
        Ok(Self {
            swarm,
            ledger,
            callers: open,
            batch,
            answered: 0,
            answers: Histogram::new(),
            outgoing: Vec::new(),
        })
    }

    /// Lets every caller that waits for nothing ask again.
    fn ask(&mut self) -> Fallible<()> {
        for caller in &mut self.callers {
            if caller.asked.is_some() || self.ledger.room_for(caller.stream) < self.batch {
                continue;
            }
            let first = self.ledger.publish(caller.stream);
            for _ in 1..self.batch {
                self.ledger.publish(caller.stream);
            }
            self.outgoing.clear();
            caller.template.append(first, &mut self.outgoing);
            caller.asked = Some(Instant::now());
            self.swarm.send(caller.link, &self.outgoing)?;
        }
        Ok(())
    }

    fn take(&mut self) -> Fallible<()> {
        let Self { swarm, ledger, callers, batch, answered, answers, .. } = self;
        // The callers' connections were opened after the members'.
        let first_caller = callers.len();
        swarm.pump_due(|arrival| match arrival.unit {
            Unit::Text(text) => ledger.deliver(arrival.link, text, arrival.at),
            Unit::Response { status: 200, body } if counts_all(body, *batch) => {
                let caller = &mut callers[arrival.link - first_caller];
                let asked = caller.asked.take().ok_or("an answer without a question")?;
                answers.record(arrival.at.duration_since(asked).as_nanos() as u64);
                *answered += 1;
                Ok(())
            }
            other => Err(swarm::unexpected(arrival.link, &other)),
        })
    }

    /// Starts counting anew: what comes before is warm-up.
    pub(crate) fn reset_counts(&mut self) {
        self.ledger.reset_counts();
        self.answers = Histogram::new();
        self.answered = 0;
    }

    pub(crate) fn answered(&self) -> u64 {
        self.answered
    }

    pub(crate) fn answers(&self) -> &Histogram {
        &self.answers
    }

    pub(crate) fn run(&mut self, span: Duration) -> Fallible<()> {
        let deadline = Instant::now() + span;
        self.ask()?;
        while !self.ledger.is_settled() || self.callers.iter().any(|caller| caller.asked.is_some())
        {
            self.take()?;
            if Instant::now() < deadline {
                self.ask()?;
            }
        }
        Ok(())
    }
}

/// Whether the answer says that one connection took each notification.
fn counts_all(body: &[u8], batch: usize) -> bool {
    let Some((_, counts)) =
        std::str::from_utf8(body).ok().and_then(|body| body.split_once("\"delivered\":"))
    else {
        return false;
    };
    match counts.strip_prefix('[') {
        None => batch == 1 && counts.starts_with('1'),
        Some(list) => list.split(']').next().is_some_and(|list| {
            list.split(',').count() == batch && list.split(',').all(|count| count.trim() == "1")
        }),
    }
}

/// Has `callers` callers notify, each in requests of `batch`.
pub(crate) fn notify(callers: usize, batch: usize, trial: Trial<'_>) -> Fallible<Vec<Figure>> {
    let target = trial.start(Purpose::Rest)?;
    let mut all = Callers::open(target.address, callers, batch, trial.tokens)?;
    all.run(trial.effort.warm_up())?;
    all.reset_counts();
    let (elapsed, cpu) = figures::measured(&target, || all.run(trial.effort.span))?;
    let notifications = all.ledger.deliveries();
    let mut figures = vec![
        (figures::REQUESTS, figures::per_second(all.answered, elapsed)),
        (figures::NOTIFICATIONS, figures::per_second(notifications, elapsed)),
        (figures::NOTIFICATION_CPU, figures::micros_each(cpu, notifications)),
    ];
    figures.extend(figures::latencies(&all.answers));
    Ok(figures)
}
