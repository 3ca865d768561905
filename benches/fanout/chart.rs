//! The chart for the README: the service's throughput as a share of the floor's, one row for each
//! scenario.

use std::fmt::Write;

use crate::fanout::figures;
use crate::fanout::report::{Outcome, number};
use crate::fanout::scenarios::Bar;
use crate::fanout::target::Side;

const WIDTH: f64 = 760.0;
const ROW: f64 = 34.0;
const TOP: f64 = 58.0;
const LABEL_WIDTH: f64 = 290.0;
/// Length of a bar of 100 %.
const FULL: f64 = 220.0;
/// A longer bar would push its label out of the picture.
const LONGEST: f64 = 1.15;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#1f2328}.small{font-size:12px;fill:#59636e}.title{font-size:15px;\
font-weight:600}.service{fill:#0969da}.floor{stroke:#59636e;stroke-dasharray:3 3}.bar{stroke:#bc4c00;stroke-width:2}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.service{fill:#4493f8}\
.floor{stroke:#9198a1}.bar{stroke:#f0883e}}";

/// The SVG of all outcomes in which both sides have a throughput.
pub(crate) fn svg(outcomes: &[Outcome]) -> String {
    let rows: Vec<String> = outcomes.iter().filter_map(row).collect();
    let height = TOP + ROW * rows.len() as f64 + 12.0;
    let floor_x = LABEL_WIDTH + FULL;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-labelledby=\"title\">\n<style>{STYLE}</style>\n\
         <title id=\"title\">Throughput of realtime_service as a share of the floor's</title>\n\
         <text class=\"title\" x=\"8\" y=\"20\">Throughput against the least work that any server could do</text>\n\
         <text class=\"small\" x=\"8\" y=\"40\">dashed: the floor, a bare loop without tokens, limits or JSON; \
         tick: the bar to reach; µs: server CPU each</text>\n\
         <line class=\"floor\" x1=\"{floor_x}\" y1=\"{}\" x2=\"{floor_x}\" y2=\"{}\"/>\n",
        TOP - 8.0,
        height - 8.0
    );
    for (index, row) in rows.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        // Writing to a String cannot fail.
        let _ = writeln!(svg, "<g transform=\"translate(0 {y})\">{row}</g>");
    }
    svg + "</svg>\n"
}

fn row(outcome: &Outcome) -> Option<String> {
    let throughputs = [
        (figures::DELIVERIES, figures::DELIVERY_CPU),
        (figures::NOTIFICATIONS, figures::NOTIFICATION_CPU),
    ];
    let measured = |figure: &str| {
        let (floor, service) =
            (outcome.value(Side::Floor, figure), outcome.value(Side::Service, figure));
        (!floor.is_nan() && !service.is_nan()).then_some((floor, service))
    };
    let ((floor, service), cpu) = throughputs
        .iter()
        .find_map(|(figure, cpu)| Some((measured(figure)?, outcome.value(Side::Service, cpu))))?;
    let share = service / floor;
    let length = share.min(LONGEST) * FULL;
    let about = outcome.scenario.about;
    let mut row = format!(
        "<text x=\"8\" y=\"15\">{about}</text><rect class=\"service\" x=\"{LABEL_WIDTH}\" y=\"1\" width=\"{length:.1}\" \
         height=\"20\" rx=\"2\"/><text class=\"small\" x=\"{:.1}\" y=\"15\">{:.0} % · {}/s · {} µs</text>",
        LABEL_WIDTH + length.max(FULL) + 8.0,
        share * 100.0,
        number(service),
        number(cpu)
    );
    let bar = throughputs.iter().find_map(|(figure, _)| outcome.scenario.bar(figure, Side::Floor));
    if let Some(Bar::OfFloorAtLeast(least)) = bar {
        let x = LABEL_WIDTH + least * FULL;
        let _ = write!(row, "<line class=\"bar\" x1=\"{x}\" y1=\"-2\" x2=\"{x}\" y2=\"24\"/>");
    }
    Some(row)
}
