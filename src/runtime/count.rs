//! Counts by kind, kept as a family of prometheus-client.

use std::fmt::Debug;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

/// The kinds of something that is counted.
pub trait Kind: Debug + Copy + Eq + 'static {
    /// All kinds.
    const ALL: &'static [Self];

    /// The name in metrics and logs.
    fn as_str(self) -> &'static str;
}

/// Counters that differ in one label.
pub type Counters = Family<[(&'static str, &'static str); 1], Counter>;

/// A counter for each kind; clones share the numbers.
#[derive(Debug, Clone)]
pub struct CountBy<K> {
    family: Counters,
    /// The family's own counters, beside it, so that counting takes no lock.
    counters: Box<[(K, Counter)]>,
}

impl<K: Kind> CountBy<K> {
    /// Counters under this label. All kinds stand in the metrics from the start, so that a rate sees the
    /// first of each.
    pub fn new(label: &'static str) -> Self {
        let family = Counters::default();
        let counter = |kind: &K| (*kind, family.get_or_create_owned(&[(label, kind.as_str())]));
        let counters = K::ALL.iter().map(counter).collect();
        Self { family, counters }
    }

    /// Counts one of this kind.
    pub fn count(&self, kind: K) {
        self.add(kind, 1);
    }

    /// Counts several of this kind.
    pub fn add(&self, kind: K, number: u64) {
        if let Some(counter) = self.counter(kind) {
            counter.inc_by(number);
        }
    }

    /// How many of this kind were counted since the start.
    pub fn get(&self, kind: K) -> u64 {
        self.counter(kind).map_or(0, Counter::get)
    }

    /// The family, to be registered for `/metrics`.
    pub fn family(&self) -> Counters {
        self.family.clone()
    }

    fn counter(&self, kind: K) -> Option<&Counter> {
        self.counters.iter().find(|(known, _)| *known == kind).map(|(_, counter)| counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fruit {
        Apple,
        Pear,
    }

    impl Kind for Fruit {
        const ALL: &'static [Self] = &[Self::Apple, Self::Pear];

        fn as_str(self) -> &'static str {
            match self {
                Self::Apple => "apple",
                Self::Pear => "pear",
            }
        }
    }

    #[test]
    fn each_kind_has_its_own_count_in_the_family() {
        let counts = CountBy::new("fruit");
        counts.count(Fruit::Pear);
        counts.clone().add(Fruit::Pear, 2);
        assert_eq!((counts.get(Fruit::Apple), counts.get(Fruit::Pear)), (0, 3));
        let in_family = |name| counts.family().get(&[("fruit", name)]).map(|count| count.get());
        assert_eq!((in_family("apple"), in_family("pear")), (Some(0), Some(3)));
    }
}
