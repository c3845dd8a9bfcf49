//! A tree of stacks as a flame graph: one SVG without scripts, names and shares as tooltips.
//!
//! The crate that is made for this (inferno) is under CDDL-1.0, which deny.toml keeps out; a picture
//! of nested bars is not worth an exception.

use std::fmt::Write as _;

use super::report::{float, share};
use super::stacks::{Frame, Name, Side};

const WIDTH: f64 = 1400.0;
const ROW: f64 = 17.0;
/// Of the head, with the title.
const HEAD: f64 = 34.0;
/// Narrower bars are left out: nobody could see or hit them.
const BAR_MIN: f64 = 0.4;
/// Of a character at 11 pixels, about.
const CHARACTER: f64 = 6.6;

/// Draws it, the outermost frame at the bottom.
pub fn draw(title: &str, root: &Frame, unit: &str) -> String {
    picture(title, (root, None), unit)
}

/// Draws it with what is other than before: red has a larger share than in `was`, blue a smaller one,
/// white the same.
pub fn draw_difference(title: &str, root: &Frame, was: &Frame, unit: &str) -> String {
    picture(title, (root, Some(was)), unit)
}

fn picture(title: &str, (root, was): (&Frame, Option<&Frame>), unit: &str) -> String {
    let rows = u32::try_from(root.depth() + 1).unwrap_or(u32::MAX);
    let height = HEAD + f64::from(rows) * ROW + 8.0;
    let mut picture = Picture {
        svg: String::new(),
        all: root.count.max(1),
        all_before: was.map(|was| was.count.max(1)),
        height,
        unit,
    };
    let mut head = String::new();
    write!(
        head,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"monospace\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    )
    .expect("a String takes everything");
    let all = Name {
        text: "all".to_owned(),
        side: Side::User,
    };
    picture.bar(&all, (root, was), 0.0, 0);
    format!("{head}{}</svg>\n", picture.svg)
}

struct Picture<'a> {
    svg: String,
    all: u64,
    /// In the earlier recording, if it is a difference.
    all_before: Option<u64>,
    height: f64,
    unit: &'a str,
}

impl Picture<'_> {
    /// A bar and those above it, with the same frame of the earlier recording; `before` is what is
    /// counted to its left.
    fn bar(&mut self, name: &Name, (frame, was): (&Frame, Option<&Frame>), before: f64, row: u32) {
        let all = float(self.all);
        let width = WIDTH * float(frame.count) / all;
        if width < BAR_MIN {
            return;
        }
        let (x, y) = (
            WIDTH * before / all,
            self.height - 8.0 - f64::from(row + 1) * ROW,
        );
        let percent = 100.0 * share(frame.count, self.all);
        let percent_before = self
            .all_before
            .map(|all| 100.0 * share(was.map_or(0, |was| was.count), all));
        let (fill, earlier) = match percent_before {
            Some(before) => (difference(percent - before), format!(", was {before:.2} %")),
            None => (colour(name), String::new()),
        };
        let text = escaped(&name.text);
        write!(
            self.svg,
            "<g><title>{text}: {} {}, {percent:.2} %{earlier}</title>\
             <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{fill}\" \
             stroke=\"#ffffff\" stroke-width=\"0.5\"/>",
            frame.count,
            self.unit,
            ROW - 1.0,
        )
        .expect("a String takes everything");
        let shown = fitting(&name.text, width);
        if !shown.is_empty() {
            write!(
                self.svg,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + 3.0,
                y + 12.0,
                escaped(&shown)
            )
            .expect("a String takes everything");
        }
        self.svg.push_str("</g>\n");
        let mut before = before;
        for (name, called) in &frame.called {
            let was = was.and_then(|was| was.called.get(name));
            self.bar(name, (called, was), before, row + 1);
            before += float(called.count);
        }
    }
}

/// As much of a name as fits a bar; nothing rather than two letters.
fn fitting(text: &str, width: f64) -> String {
    let mut room = width - 6.0;
    let mut shown = String::new();
    for character in text.chars() {
        room -= CHARACTER;
        if room < 0.0 {
            break;
        }
        shown.push(character);
    }
    if shown.chars().count() < 3 {
        shown.clear();
    }
    shown
}

/// The kernel is blue, we are yellow to red; one name has one colour in every picture.
fn colour(name: &Name) -> String {
    let sum = name.text.bytes().fold(7_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u32::from(byte))
    });
    let hue = match name.side {
        Side::Kernel => 200 + sum % 30,
        Side::User => 10 + sum % 40,
    };
    format!("hsl({hue},75%,{}%)", 66 + sum / 64 % 14)
}

/// From white to full colour at a change of ten points of a hundred.
fn difference(points: f64) -> String {
    let lightness = 100.0 - 40.0 * (points.abs() / 10.0).min(1.0);
    let hue = if points > 0.0 { 0 } else { 220 };
    format!("hsl({hue},85%,{lightness:.0}%)")
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flame::stacks::fold;

    #[test]
    fn bars_are_as_wide_as_their_share_and_names_are_escaped() {
        let script = "a 1\n\t10 <T as U>::f\n\n\na 1\n\t20 g\n\n\na 1\n\t20 g\n\n\na 1\n\t20 g\n";
        let threads = fold(script);
        let svg = draw("core 0 & more", &threads["a"], "samples");
        assert!(svg.contains("core 0 &amp; more"));
        assert!(
            svg.contains("&lt;T as U&gt;::f: 1 samples, 25.00 %"),
            "{svg}"
        );
        assert!(
            svg.contains("x=\"350.0\"") && svg.contains("width=\"1050.0\""),
            "{svg}"
        );
        assert_eq!(svg.matches("<g>").count(), 3);
    }

    #[test]
    fn an_empty_thread_is_a_picture_too() {
        let svg = draw("nothing", &Frame::default(), "us");
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_difference_is_coloured_by_how_the_share_changed() {
        let half = fold("a 1\n\t10 f\n\na 1\n\t10 g\n");
        let later = fold("a 1\n\t10 f\n");
        let svg = draw_difference("a", &later["a"], &half["a"], "samples");
        assert!(svg.contains("f: 1 samples, 100.00 %, was 50.00 %"), "{svg}");
        assert!(svg.contains("hsl(0,85%,60%)"), "{svg}");
        assert!(
            svg.contains("all: 1 samples, 100.00 %, was 100.00 %"),
            "{svg}"
        );
    }

    #[test]
    fn names_are_cut_to_their_bar() {
        assert_eq!(fitting("abcdefgh", 40.0), "abcde");
        assert_eq!(fitting("abcdefgh", 20.0), "");
    }
}
