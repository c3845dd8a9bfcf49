//! One wrong byte anywhere in a small store costs at most one message, which is named. Here some of the
//! bytes; the example `flip` does all of them.
mod flipkit;
mod testkit;

use flipkit::{flip, mail, small_store};

#[test]
fn the_store_is_as_it_was_delivered() {
    let image = small_store();
    assert_eq!(mail(image.disk()).len(), 6 + 4 + 4 + 1);
}

#[test]
fn a_flipped_byte_costs_at_most_one_message_and_names_it() {
    let image = small_store();
    let held = mail(image.disk());
    let mut flips = 0;
    let mut losses = 0;
    for (name, size) in image.files() {
        let step = if name.starts_with("log/") { 401 } else { 53 };
        for at in (0..size).step_by(step) {
            let verdict = flip(&image, &held, (&name, at, 0x10));
            assert!(verdict.missing.len() <= 1, "{name} at {at}: {verdict:?}");
            flips += 1;
            losses += verdict.missing.len();
        }
    }
    assert!(flips > 500, "{flips} flips, {losses} messages lost");
}
