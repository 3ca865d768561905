//! Logs in which something was said without a number, as the broker was away or refused it: each is to begin a new
//! epoch, so that nobody is told that nothing is missing.

use std::collections::HashMap;
use std::time::Duration;

use crate::config::MAX_UNNUMBERED_LOGS;
use crate::protocol::Target;
use crate::runtime::clock::Moment;

/// After this a renewal that came to nothing is asked for again. So long the first one waits where the message is
/// on its way to the other instances: their members are to be told behind it.
const ASK_AGAIN: Duration = Duration::from_secs(2);

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

/// The same, where another instance is to ask first.
const ASK_FOR_OTHERS: Duration = Duration::from_secs(6);

/// A log in which something was said without a number.
#[derive(Debug, Default)]
struct Gap {
    /// Another instance said all of it, and the stream has brought it: any renewal that the stream brings behind it
    /// will do.
    is_foreign: bool,
    /// By which messages could still turn up in the log, although they were delivered here.
    tickets: Vec<u64>,
    renewal: Renewal,
}

/// Number of a renewal, and when it was asked for.
type Renewal = Option<(u64, Moment)>;

impl Unnumbered {
    /// Something was said in this log without a number; under this ticket it may turn up in the log.
    pub(super) fn note(&mut self, target: &Target, ticket: Option<u64>) {
        if self.all.is_some() {
            // What was renewed already is to be renewed again.
            self.all = Some(None);
            return;
        }
        if self.logs.len() >= MAX_UNNUMBERED_LOGS && !self.logs.contains_key(target) {
            *self = Self { all: Some(None), last: self.last, ..Self::default() };
            return;
        }
        let is_new = !self.logs.contains_key(target);
        let gap = self.logs.entry(target.clone()).or_default();
        gap.tickets.extend(ticket);
        gap.is_foreign = false;
        // A renewal that is on its way may come before this.
        if gap.renewal.take().is_some() || is_new {
            self.unasked.push(target.clone());
        }
    }

    /// Something was said in this log without a number, and goes to the other instances so.
    pub(super) fn note_published(&mut self, target: &Target, now: Moment) {
        self.note(target, None);
        if let Some(gap) = self.logs.get_mut(target) {
            self.last += 1;
            gap.renewal = Some((self.last, now));
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
        let is_asked = |gap: &Gap| {
            gap.renewal.is_some_and(|(number, _)| renewal.is_some_and(|it| it == number))
        };
        if self.logs.get(target).is_some_and(|gap| gap.is_foreign || is_asked(gap)) {
            self.logs.remove(target);
            if self.logs.is_empty() {
                self.logs.shrink_to_fit();
            }
        }
    }

    /// The renewal of all logs is done.
    pub(super) fn all_renewed(&mut self, renewal: u64) {
        if self.all.flatten().is_some_and(|(number, _)| number == renewal) {
            self.all = None;
        }
    }

    /// Whether [`Self::next`] has something to ask for.
    pub(super) fn has_unasked(&self) -> bool {
        !self.unasked.is_empty() || self.all == Some(None)
    }

    /// What to ask for next: the log, or `None` for all, and the number of the renewal.
    pub(super) fn next(&mut self, now: Moment) -> Option<(Option<Target>, u64)> {
        if self.all == Some(None) {
            self.last += 1;
            self.all = Some(Some((self.last, now)));
            return Some((None, self.last));
        }
        while let Some(target) = self.unasked.pop() {
            if let Some(gap) = self.logs.get_mut(&target).filter(|gap| gap.renewal.is_none()) {
                self.last += 1;
                gap.renewal = Some((self.last, now));
                return Some((Some(target), self.last));
            }
        }
        None
    }

    /// Has renewals asked for again that came to nothing.
    pub(super) fn ask_again(&mut self, now: Moment) {
        let is_late = |renewal: &Renewal, patience| {
            renewal.is_some_and(|(_, asked)| now.since(asked) >= patience)
        };
        if self.all.as_ref().is_some_and(|renewal| is_late(renewal, ASK_AGAIN)) {
            self.all = Some(None);
        }
        let is_due = |gap: &Gap| {
            is_late(&gap.renewal, if gap.is_foreign { ASK_FOR_OTHERS } else { ASK_AGAIN })
        };
        for (target, gap) in self.logs.iter_mut().filter(|(_, gap)| is_due(gap)) {
            gap.renewal = None;
            self.unasked.push(target.clone());
        }
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
        unnumbered.ask_again(Moment::from_millis(1999));
        assert!(unnumbered.next(Moment::from_millis(1999)).is_none());
        unnumbered.ask_again(Moment::from_millis(2000));
        assert!(unnumbered.next(Moment::from_millis(2000)).is_some());
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
}
