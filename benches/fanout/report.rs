//! What was measured: medians over the runs, set against the floor and the bars, as one table.

use crate::fanout::figures::Figure;
use crate::fanout::measure::median;
use crate::fanout::scenarios::{Bar, Scenario};
use crate::fanout::target::Side;

/// All runs of one scenario.
pub(crate) struct Outcome {
    pub(crate) scenario: &'static Scenario,
    floor: Vec<Vec<Figure>>,
    unbounded_floor: Vec<Vec<Figure>>,
    service: Vec<Vec<Figure>>,
    /// What ended a run early.
    failures: Vec<String>,
}

/// One figure of a scenario, judged.
pub(crate) struct Line {
    pub(crate) figure: &'static str,
    /// The medians of the floor beside it and of the service, `NaN` where not measured.
    pub(crate) floor: f64,
    pub(crate) service: f64,
    pub(crate) bar: Option<Bar>,
    /// `None` without a bar, or when one side of it was not measured.
    pub(crate) met: Option<bool>,
}

impl Outcome {
    pub(crate) fn new(scenario: &'static Scenario) -> Self {
        Self {
            scenario,
            floor: Vec::new(),
            unbounded_floor: Vec::new(),
            service: Vec::new(),
            failures: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, side: Side, figures: Vec<Figure>) {
        match side {
            Side::Floor => self.floor.push(figures),
            Side::UnboundedFloor => self.unbounded_floor.push(figures),
            Side::Service => self.service.push(figures),
        }
    }

    pub(crate) fn add_failure(&mut self, side: Side, error: &str) {
        self.failures.push(format!("{side:?}: {error}"));
    }

    fn runs(&self, side: Side) -> &[Vec<Figure>] {
        match side {
            Side::Floor => &self.floor,
            Side::UnboundedFloor => &self.unbounded_floor,
            Side::Service => &self.service,
        }
    }

    /// The median of a figure on one side.
    pub(crate) fn value(&self, side: Side, figure: &str) -> f64 {
        let values: Vec<f64> = self
            .runs(side)
            .iter()
            .filter_map(|figures| {
                figures.iter().find(|(name, _)| *name == figure).map(|(_, value)| *value)
            })
            .collect();
        median(&values)
    }

    /// The figures beside those of `beside`, one of the floors, in the order in which the load gives
    /// them.
    pub(crate) fn lines(&self, beside: Side, all: &[Self]) -> Vec<Line> {
        let Some(first) = self.service.first().or(self.runs(beside).first()) else {
            return Vec::new();
        };
        first.iter().map(|(figure, _)| self.line(figure, beside, all)).collect()
    }

    fn line(&self, figure: &'static str, beside: Side, all: &[Self]) -> Line {
        let (floor, service) = (self.value(beside, figure), self.value(Side::Service, figure));
        let bar = self.scenario.bar(figure, beside);
        let against =
            |other: f64, is_met: bool| (!service.is_nan() && !other.is_nan()).then_some(is_met);
        let met = bar.and_then(|bar| match bar {
            Bar::OfFloorAtLeast(share) | Bar::OfUnboundedFloorAtLeast(share) => {
                against(floor, service >= floor * share)
            }
            Bar::OfFloorAtMost(share) => against(floor, service <= floor * share),
            Bar::AtLeast(least) => against(least, service >= least),
            Bar::AtMost(most) => against(most, service <= most),
            Bar::TimesOf(name, times) => {
                let other = all.iter().find(|outcome| outcome.scenario.name == name)?;
                let single = other.value(Side::Service, figure);
                against(single, service >= single * times)
            }
        });
        Line { figure, floor, service, bar, met }
    }
}

fn bar_text(bar: Option<Bar>) -> String {
    match bar {
        None => String::new(),
        Some(Bar::OfFloorAtLeast(share) | Bar::OfUnboundedFloorAtLeast(share)) => {
            format!("≥ {share:.2} of floor")
        }
        Some(Bar::OfFloorAtMost(share)) => format!("≤ {share:.2} of floor"),
        Some(Bar::AtLeast(least)) => format!("≥ {least}"),
        Some(Bar::AtMost(most)) => format!("≤ {most}"),
        Some(Bar::TimesOf(name, times)) => format!("≥ {times} × {name}"),
    }
}

/// Three digits or more, with commas in large numbers; empty when there is none.
pub(crate) fn number(value: f64) -> String {
    if !value.is_finite() {
        return String::new();
    }
    let decimals = match value.abs() {
        0.0 => 0,
        small if small < 1.0 => 3,
        medium if medium < 10.0 => 2,
        medium if medium < 1000.0 => 1,
        _ => 0,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text
        .split_once('.')
        .map_or((text.as_str(), ""), |(whole, _)| (whole, &text[whole.len()..]));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0
            && digit.is_ascii_digit()
            && (whole.len() - at).is_multiple_of(3)
            && !grouped.ends_with('-')
        {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped + fraction
}

/// Prints the table; returns how many bars were missed.
pub(crate) fn print(outcomes: &[Outcome], runs: usize) -> usize {
    let mut missed = 0;
    println!(
        "\nMedians of {runs} interleaved runs. Every message was checked at every receiver: once, and in order.\n"
    );
    println!(
        "| {:<16} | {:<41} | {:>10} | {:>10} | {:>6} | {:<18} | {:<4} |",
        "scenario", "figure", "floor", "service", "ratio", "bar", ""
    );
    println!(
        "|{:-<18}|{:-<43}|{:->12}|{:->12}|{:->8}|{:-<20}|{:-<6}|",
        "", "", ":", ":", ":", "", ""
    );
    for outcome in outcomes {
        let mut name = outcome.scenario.name;
        for line in outcome.lines(Side::Floor, outcomes) {
            missed += usize::from(line.met == Some(false));
            print_line(std::mem::take(&mut name), &line);
        }
        if !outcome.unbounded_floor.is_empty() {
            let mut beside = "unbounded floor:";
            for line in outcome.lines(Side::UnboundedFloor, outcomes) {
                missed += usize::from(line.met == Some(false));
                print_line(std::mem::take(&mut beside), &line);
            }
        }
        for failure in &outcome.failures {
            missed += 1;
            println!("| {:<16} | {failure} |", std::mem::take(&mut name));
        }
    }
    println!("\n{missed} missed");
    missed
}

fn print_line(name: &str, line: &Line) {
    println!(
        "| {name:<16} | {:<41} | {:>10} | {:>10} | {:>6} | {:<18} | {:<4} |",
        line.figure,
        number(line.floor),
        number(line.service),
        number(line.service / line.floor),
        bar_text(line.bar),
        match line.met {
            None => "",
            Some(true) => "pass",
            Some(false) => "MISS",
        }
    );
}
