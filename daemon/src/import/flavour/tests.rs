//! Files of each flavour, and what is decided about them.

use super::*;

const FROM_A: &str = "From a@b Tue Jan  2 03:04:05 2024\n";

fn of(text: &str) -> (Flavour, Evidence) {
    let evidence = survey(text.as_bytes()).unwrap();
    (evidence.flavour().0, evidence)
}

fn with(bodies: &[&str]) -> String {
    let message = |body: &&str| format!("{FROM_A}Subject: x\n\n{body}\n\n");
    bodies.iter().map(message).collect::<Vec<_>>().concat()
}

/// A message with its length, as mboxcl and mboxcl2 have it.
fn long(body: &str) -> String {
    let len = body.len();
    format!("{FROM_A}Subject: x\nContent-Length: {len}\n\n{body}\n")
}

#[test]
fn each_flavour_is_told_by_its_evidence() {
    let cl2 = [
        long("a\n"),
        long("b\n\nFrom x@y Tue Jan  2 03:04:05 2024\nc\n"),
    ]
    .concat();
    let cl = [long("a\nb\n>From the start\n"), long("b\n")].concat();
    for (text, want) in [
        (with(&["a", "b"]), Flavour::Mboxrd),
        (with(&["a\n>From here"]), Flavour::Mboxrd),
        // A quotation: its lines have one `>`, and this one got another.
        (with(&["said:\n>one\n>>From two\n>three"]), Flavour::Mboxrd),
        // Two, and it has two.
        (with(&["said:\n>>one\n>>From two\n>>three"]), Flavour::Mboxo),
        (with(&["said:\n>one\n>From two\n>three"]), Flavour::Mboxo),
        (with(&[">>From alone"]), Flavour::Mboxrd),
        (cl2, Flavour::Mboxcl2),
        (cl, Flavour::Mboxcl),
        (long("a\n"), Flavour::Mboxcl2),
        // One length among many is a sender's.
        (with(&["a", "b", "c"]) + &long("d\n"), Flavour::Mboxrd),
        (String::new(), Flavour::Mboxrd),
    ] {
        assert_eq!(of(&text).0, want, "{text}");
    }
}

#[test]
fn a_length_that_is_wrong_is_no_evidence() {
    let forged = format!(
        "{FROM_A}Content-Length: 90\n\na\n\n{}",
        with(&["b", "c", "d"])
    );
    let (flavour, evidence) = of(&forged);
    assert_eq!(flavour, Flavour::Mboxrd);
    assert_eq!((evidence.messages, evidence.lengths_wrong), (4, 1));
}

#[test]
fn a_text_that_begins_with_from_begins_no_message() {
    let (_, evidence) = of(&with(&["a\n\nFrom here on\nwe know", "b"]));
    assert_eq!(evidence.messages, 2);
}
