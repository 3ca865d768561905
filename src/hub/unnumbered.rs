//! Logs in which something was said without a number, as the broker was away or refused it: each is to begin a new
//! epoch, so that nobody is told that nothing is missing.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::MAX_UNNUMBERED_LOGS;
use crate::protocol::Target;
use crate::runtime::clock::Moment;

/// After this a renewal that came to nothing is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// The same of the renewal of all logs, which takes a while.
const ASK_ALL_AGAIN: Duration = Duration::from_secs(60);
/// So long a renewal waits where the message is on its way to the other instances: their members are to be told
/// behind it.
const ASK_LATER: Duration = Duration::from_secs(2);
/// The same, where another instance is to ask first.
const ASK_FOR_OTHERS: Duration = Duration::from_secs(6);

/// All such logs.
#[derive(Debug, Default)]
pub(super) struct Unnumbered {
    logs: HashMap<Target, Gap>,
    /// Those whose renewal was not asked for. May name some twice, or some that are renewed.
    unasked: Vec<Target>,
    /// There were too many: the renewal of all logs there are.
    all: Option<Renewal>,
    /// Number of the last renewal.
    last: u64,
}

/// A log in which something was said without a number.
#[derive(Debug, Default)]
struct Gap {
    /// Another instance said all of it, and the stream has brought it: any renewal that the stream brings behind it
    /// will do.
    is_foreign: bool,
    /// The first renewal is not asked for yet, although it has a time.
    is_later: bool,
    /// By which messages could still turn up in the log, although they were delivered here.
    tickets: Vec<u64>,
    renewal: Renewal,
}

/// A renewal. It keeps its number when it is asked for again: that it comes late does not make it wrong.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Renewal {
    number: Option<u64>,
    /// When it was asked for; `None` when it is to be.
    asked: Option<Moment>,
}

impl Unnumbered {
    /// Something was said in this log without a number; under this ticket it may turn up in the log.
    pub(super) fn note(&mut self, target: &Target, ticket: Option<u64>) {
        if self.all.is_some() {
            // What was renewed already is to be renewed again.
            self.all = Some(Renewal::default());
            return;
        }
        if self.logs.len() >= MAX_UNNUMBERED_LOGS && !self.logs.contains_key(target) {
            *self = Self { all: Some(Renewal::default()), last: self.last, ..Self::default() };
            return;
        }
        let is_new = !self.logs.contains_key(target);
        let gap = self.logs.entry(target.clone()).or_default();
        gap.tickets.extend(ticket);
        (gap.is_foreign, gap.is_later) = (false, false);
        // A renewal that is on its way may come before this.
        if std::mem::take(&mut gap.renewal).asked.is_some() || is_new {
            self.unasked.push(target.clone());
        }
    }

    /// Something was said in this log without a number, and goes to the other instances so.
    pub(super) fn note_published(&mut self, target: &Target, now: Moment) {
        self.note(target, None);
        if let Some(gap) = self.logs.get_mut(target) {
            self.last += 1;
            gap.renewal = Renewal { number: Some(self.last), asked: Some(now) };
            gap.is_later = true;
        }
    }

    /// Another instance said something in this log without a number, and has it renewed.
    pub(super) fn note_foreign(&mut self, target: &Target, now: Moment) {
        let is_own = self.logs.get(target).is_some_and(|gap| !gap.is_foreign);
        if !is_own && self.all.is_none() {
            self.note_published(target, now);
            if let Some(gap) = self.logs.get_mut(target) {
                gap.is_foreign = true;
            }
        }
    }

    /// Whether something was said in this log without a number.
    pub(super) fn contains(&self, target: &Target) -> bool {
        self.all.is_some() || (!self.logs.is_empty() && self.logs.contains_key(target))
    }

    /// Whether this message has been delivered here, without a number.
    pub(super) fn was_delivered(&self, target: &Target, ticket: u64) -> bool {
        !self.logs.is_empty()
            && self.logs.get(target).is_some_and(|gap| gap.tickets.contains(&ticket))
    }

    /// The log has begun anew: what turns up now is new to everybody.
    pub(super) fn begins_anew(&mut self, target: &Target) {
        if let Some(gap) = self.logs.get_mut(target) {
            gap.tickets.clear();
        }
    }

    /// The stream has brought a renewal, of this number where this instance asked for it.
    pub(super) fn renewed(&mut self, target: &Target, renewal: Option<u64>) {
        let is_asked = |gap: &Gap| renewal.is_some() && gap.renewal.number == renewal;
        if self.logs.get(target).is_some_and(|gap| gap.is_foreign || is_asked(gap)) {
            self.logs.remove(target);
            if self.logs.is_empty() {
                self.logs.shrink_to_fit();
            }
        }
    }

    /// The renewal of all logs is done.
    pub(super) fn all_renewed(&mut self, renewal: u64) {
        if self.all.is_some_and(|all| all.number == Some(renewal)) {
            self.all = None;
        }
    }

    /// Whether [`Self::next`] has something to ask for.
    pub(super) fn has_unasked(&self) -> bool {
        !self.unasked.is_empty() || self.all.is_some_and(|all| all.asked.is_none())
    }

    /// What to ask for next: the log, or `None` for all, and the number of the renewal.
    pub(super) fn next(&mut self, now: Moment) -> Option<(Option<Target>, u64)> {
        if let Some(all) = self.all.as_mut().filter(|all| all.asked.is_none()) {
            return Some((None, all.ask(&mut self.last, now)));
        }
        while let Some(target) = self.unasked.pop() {
            if let Some(gap) = self.logs.get_mut(&target).filter(|gap| gap.renewal.asked.is_none())
            {
                return Some((Some(target), gap.renewal.ask(&mut self.last, now)));
            }
        }
        None
    }

    /// Has renewals asked for again that came to nothing.
    pub(super) fn ask_again(&mut self, now: Moment) {
        let is_late = |renewal: &Renewal, patience| {
            renewal.asked.is_some_and(|asked| now.since(asked) >= patience)
        };
        if let Some(all) = self.all.as_mut().filter(|all| is_late(all, ASK_ALL_AGAIN)) {
            all.asked = None;
        }
        let is_due = |gap: &Gap| {
            let patience = match gap {
                Gap { is_foreign: true, .. } => ASK_FOR_OTHERS,
                Gap { is_later: true, .. } => ASK_LATER,
                _ => ASK_AGAIN,
            };
            is_late(&gap.renewal, patience)
        };
        for (target, gap) in self.logs.iter_mut().filter(|(_, gap)| is_due(gap)) {
            (gap.renewal.asked, gap.is_later) = (None, false);
            self.unasked.push(target.clone());
        }
    }
}

impl Renewal {
    /// Asks for it; returns its number.
    fn ask(&mut self, last: &mut u64, now: Moment) -> u64 {
        let number = *self.number.get_or_insert_with(|| {
            *last += 1;
            *last
        });
        self.asked = Some(now);
        number
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use crate::protocol::Id;

    fn user(n: usize) -> Target {
        Target::User(Id::parse(&n.to_string()).unwrap())
    }

    #[test]
    fn a_log_is_renewed_once_and_again_when_something_was_said_meanwhile() {
        let mut unnumbered = Unnumbered::default();
        unnumbered.note(&user(1), Some(7));
        unnumbered.note(&user(1), None);
        let (target, first) = unnumbered.next(Moment::from_millis(0)).unwrap();
        assert_eq!(target, Some(user(1)));
        assert!(!unnumbered.has_unasked() && unnumbered.was_delivered(&user(1), 7));
        unnumbered.note(&user(1), None);
        unnumbered.renewed(&user(1), Some(first));
        assert!(unnumbered.contains(&user(1)));
        let (_, second) = unnumbered.next(Moment::from_millis(0)).unwrap();
        unnumbered.begins_anew(&user(1));
        assert!(!unnumbered.was_delivered(&user(1), 7));
        unnumbered.renewed(&user(1), Some(second));
        assert!(
            !unnumbered.contains(&user(1)) && unnumbered.next(Moment::from_millis(0)).is_none()
        );
    }

    #[test]
    fn where_the_message_is_on_its_way_the_renewal_waits() {
        let mut unnumbered = Unnumbered::default();
        unnumbered.note_published(&user(1), Moment::from_millis(0));
        assert!(unnumbered.contains(&user(1)));
        assert!(unnumbered.next(Moment::from_millis(0)).is_none());
        unnumbered.ask_again(Moment::from_millis(2000));
        let (_, renewal) = unnumbered.next(Moment::from_millis(2000)).unwrap();
        unnumbered.renewed(&user(1), Some(renewal));
        assert!(!unnumbered.contains(&user(1)));
    }

    #[test]
    fn what_others_said_is_renewed_by_anyone_or_at_last_here() {
        let mut unnumbered = Unnumbered::default();
        unnumbered.note_foreign(&user(1), Moment::from_millis(0));
        unnumbered.note_foreign(&user(2), Moment::from_millis(0));
        unnumbered.renewed(&user(1), None);
        assert!(!unnumbered.contains(&user(1)) && unnumbered.contains(&user(2)));
        unnumbered.ask_again(Moment::from_millis(5999));
        assert!(unnumbered.next(Moment::from_millis(5999)).is_none());
        unnumbered.ask_again(Moment::from_millis(6000));
        assert_eq!(unnumbered.next(Moment::from_millis(6000)).unwrap().0, Some(user(2)));
        // What was said here since needs a renewal of its own.
        unnumbered.note(&user(2), None);
        unnumbered.note_foreign(&user(2), Moment::from_millis(6000));
        unnumbered.renewed(&user(2), None);
        assert!(unnumbered.contains(&user(2)));
    }

    #[test]
    fn what_came_to_nothing_is_asked_for_again() {
        let mut unnumbered = Unnumbered::default();
        unnumbered.note(&user(1), None);
        assert!(unnumbered.next(Moment::from_millis(0)).is_some());
        unnumbered.ask_again(Moment::from_millis(4999));
        assert!(unnumbered.next(Moment::from_millis(4999)).is_none());
        unnumbered.ask_again(Moment::from_millis(5000));
        assert!(unnumbered.next(Moment::from_millis(5000)).is_some());
    }

    #[test]
    fn beyond_the_bound_all_logs_are_renewed() {
        let mut unnumbered = Unnumbered::default();
        (0..=MAX_UNNUMBERED_LOGS).for_each(|n| unnumbered.note(&user(n), None));
        assert!(unnumbered.logs.is_empty() && unnumbered.contains(&user(7_000_000)));
        let (target, first) = unnumbered.next(Moment::from_millis(0)).unwrap();
        assert!(target.is_none() && !unnumbered.has_unasked());
        unnumbered.note(&user(5), None);
        unnumbered.all_renewed(first);
        let (_, second) = unnumbered.next(Moment::from_millis(0)).unwrap();
        unnumbered.all_renewed(second);
        assert!(!unnumbered.contains(&user(1)));
    }

    /// The broker takes 3 s for what is asked: it is done all the same.
    #[test]
    fn a_renewal_that_takes_longer_than_the_hub_waits_ends() {
        let mut unnumbered = Unnumbered::default();
        (0..=MAX_UNNUMBERED_LOGS).for_each(|n| unnumbered.note(&user(n), None));
        let mut single = Unnumbered::default();
        single.note(&user(1), None);
        let (mut asked, mut asked_single) = (Vec::new(), Vec::new());
        for ms in (0..60_000).step_by(1000) {
            let now = Moment::from_millis(ms);
            unnumbered.ask_again(now);
            single.ask_again(now);
            asked.extend(unnumbered.next(now).map(|(_, number)| (ms, number)));
            asked_single.extend(single.next(now).map(|(_, number)| (ms, number)));
            for (_, number) in asked.iter().filter(|(at, _)| at + 3000 == ms) {
                unnumbered.all_renewed(*number);
            }
            for (_, number) in asked_single.iter().filter(|(at, _)| at + 3000 == ms) {
                single.renewed(&user(1), Some(*number));
            }
        }
        assert!(!unnumbered.contains(&user(1)) && !single.contains(&user(1)));
    }
}
