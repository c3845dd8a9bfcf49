//! What a call leaves in a folder (`--out`): every run as JSON and CSV, the medians as a Markdown
//! table, and a bar chart of their rates as SVG, one panel for each size and number in flight.
//!
//! The chart has a logarithmic axis: rates differ by factors of a hundred.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;

use super::report::{RunReport, median};
use super::run::{by_cell, rows};
use crate::table;

/// Writes `peers.ndjson`, `peers.csv`, `peers.md` and `peers.svg`.
pub(crate) fn write(folder: &Path, reports: &[RunReport]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let save = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    let lines: Result<Vec<String>, _> = reports.iter().map(serde_json::to_string).collect();
    save("peers.ndjson", lines?.join("\n") + "\n")?;
    save("peers.csv", csv(reports))?;
    save("peers.md", markdown(&RunReport::HEADS, &rows(reports)))?;
    save("peers.svg", svg(&bars(reports)))
}

/// One line per run.
fn csv(reports: &[RunReport]) -> String {
    let mut text = String::from(
        "system,version,size,in_flight,round,messages_per_s,answered_per_s,p50_us,p99_us,p999_us,\
         flushes_per_message,bytes_written_per_byte,cpu_us_per_message,disk_messages_per_s,\
         echo_messages_per_s,stolen_share,good\n",
    );
    let maybe = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    for report in reports {
        let (asked, figures, limits) = (&report.parameters, &report.figures, &report.limits);
        let fields = [
            asked.system.clone(),
            format!("\"{}\"", asked.version),
            asked.size.to_string(),
            asked.in_flight.to_string(),
            asked.round.to_string(),
            figures.messages_per_s.to_string(),
            figures.answered_per_s.to_string(),
            figures.latency.p50_us.to_string(),
            figures.latency.p99_us.to_string(),
            figures.latency.p999_us.to_string(),
            maybe(figures.flushes_per_message),
            maybe(figures.bytes_written_per_byte),
            maybe(figures.cpu_us_per_message),
            maybe(limits.disk_messages_per_s),
            maybe(limits.echo_messages_per_s),
            maybe(limits.stolen_share),
            report.good.to_string(),
        ];
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    text
}

/// A table of Markdown.
pub(crate) fn markdown(heads: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    let mut text = line(&heads);
    text.push_str(&line(&vec!["---".to_owned(); heads.len()]));
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

/// The bars of one cell, with its name.
struct Panel {
    title: String,
    bars: Vec<Bar>,
}

struct Bar {
    name: String,
    rate: f64,
    ours: bool,
}

fn bars(reports: &[RunReport]) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for run in by_cell(reports).iter().filter_map(|cell| median(cell)) {
        let asked = &run.parameters;
        let title = format!("{}, {} in flight", asked.size.label(), asked.in_flight);
        let bar = Bar {
            name: asked.system.clone(),
            rate: run.figures.messages_per_s,
            ours: asked.system.contains("ringpost"),
        };
        match panels.iter_mut().find(|panel| panel.title == title) {
            Some(panel) => panel.bars.push(bar),
            None => panels.push(Panel {
                title,
                bars: vec![bar],
            }),
        }
    }
    panels
}

const WIDTH: f64 = 760.0;
const NAMES: f64 = 160.0;
const FIGURES: f64 = 80.0;
const ROW: f64 = 22.0;
const TITLE: f64 = 34.0;
const AXIS: f64 = 24.0;

fn svg(panels: &[Panel]) -> String {
    let rates = || {
        panels
            .iter()
            .flat_map(|panel| panel.bars.iter().map(|bar| bar.rate))
    };
    let powers = |rate: f64| rate.max(1.0).log10();
    let low = rates().map(powers).reduce(f64::min).unwrap_or(0.0).floor();
    let high = rates()
        .map(powers)
        .reduce(f64::max)
        .unwrap_or(1.0)
        .ceil()
        .max(low + 1.0);
    let plot = WIDTH - NAMES - FIGURES;
    let at = |rate: f64| plot * ((powers(rate) - low) / (high - low)).clamp(0.0, 1.0);
    let mut body = String::new();
    let mut y = 10.0;
    for panel in panels {
        let count = u32::try_from(panel.bars.len()).map_or(0.0, f64::from);
        let bottom = y + TITLE + ROW * count;
        text(&mut body, NAMES, y + 20.0, "bold", &panel.title);
        let mut power = low;
        while power <= high {
            let rate = 10_f64.powf(power);
            let x = NAMES + at(rate);
            // Writing to a String cannot fail.
            writeln!(
                body,
                "<line x1='{x:.1}' x2='{x:.1}' y1='{:.1}' y2='{bottom:.1}' stroke='#ccc'/>",
                y + TITLE - 4.0
            )
            .ok();
            text(&mut body, x, bottom + 14.0, "tick", &table::number(rate));
            power += 1.0;
        }
        for (row, bar) in (0..).zip(&panel.bars) {
            let top = y + TITLE + ROW * f64::from(row);
            let width = at(bar.rate).max(1.0);
            let color = if bar.ours { "#1f6f8b" } else { "#b0b7bd" };
            writeln!(
                body,
                "<rect x='{NAMES}' y='{top:.1}' width='{width:.1}' height='{:.1}' fill='{color}'/>",
                ROW - 5.0
            )
            .ok();
            text(&mut body, NAMES - 8.0, top + 13.0, "name", &bar.name);
            let x = NAMES + width + 6.0;
            text(&mut body, x, top + 13.0, "rate", &table::number(bar.rate));
        }
        y = bottom + AXIS;
    }
    let height = y + 24.0;
    text(
        &mut body,
        NAMES,
        height - 8.0,
        "foot",
        "messages a second, stored and durable; logarithmic; ours is dark",
    );
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {height:.0}' \
         width='{WIDTH}' height='{height:.0}'>\n<style>text {{ font: 12px sans-serif; fill: #222 }} \
         .bold {{ font-weight: bold }} .name {{ text-anchor: end }} \
         .tick {{ text-anchor: middle; fill: #666; font-size: 11px }} \
         .foot {{ fill: #666; font-size: 11px }}</style>\n\
         <rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    )
}

fn text(body: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let safe = text.replace('&', "&amp;").replace('<', "&lt;");
    // Writing to a String cannot fail.
    writeln!(
        body,
        "<text x='{x:.1}' y='{y:.1}' class='{class}'>{safe}</text>"
    )
    .ok();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::report::tests::report;

    #[test]
    fn a_folder_gets_runs_table_and_chart() {
        let folder = tempfile::tempdir().unwrap();
        let reports = [
            report("ringpost-node", 20_000.0),
            report("dovecot-mdbox", 200.0),
            report("ringpost-node", 30_000.0),
        ];
        write(folder.path(), &reports).unwrap();
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("peers.ndjson").lines().count(), 3);
        let csv = read("peers.csv");
        assert_eq!(csv.lines().count(), 4);
        let columns = csv.lines().next().unwrap().split(',').count();
        assert!(csv.lines().all(|line| line.split(',').count() == columns));
        let markdown = read("peers.md");
        assert_eq!(markdown.lines().count(), 4);
        assert!(markdown.contains("| dovecot-mdbox | 512 | 4 | 200 |"));
        let svg = read("peers.svg");
        assert_eq!(svg.matches("fill='#1f6f8b'").count(), 1);
        assert_eq!(svg.matches("fill='#b0b7bd'").count(), 1);
        assert!(svg.contains(">20,000<") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn bars_are_as_long_as_the_logarithm() {
        let bar = |rate| Bar {
            name: "a<b".to_owned(),
            rate,
            ours: false,
        };
        let panel = Panel {
            title: "x".to_owned(),
            bars: vec![bar(100.0), bar(1000.0), bar(10_000.0)],
        };
        let svg = svg(&[panel]);
        // From 100 to 10,000: nothing, half and all of 520.
        for width in ["width='1.0'", "width='260.0'", "width='520.0'"] {
            assert!(svg.contains(width), "{width}: {svg}");
        }
        assert!(svg.contains("a&lt;b") && !svg.contains("a<b"));
    }
}
