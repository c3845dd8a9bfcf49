//! A moment as an operator writes it, and whether a backup can be taken to it.

use std::path::Path;

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::tz::TimeZone;
use ringpost_netproto::id::WallNs;
use serde_json::Value;

use crate::tools::cli::Failure;
use crate::tools::cli::backup::{MANIFEST, failed};
use crate::tools::cli::show::date;

/// A moment that is over: `14:05` is today, and a date without a zone is of this machine's.
pub(super) fn parse(text: &str, now: Timestamp, zone: &TimeZone) -> Result<WallNs, Failure> {
    let found = if let Ok(at) = text.parse::<Timestamp>() {
        Ok(at)
    } else if let Ok(at) = text.parse::<DateTime>() {
        zone.to_timestamp(at)
    } else if let Ok(at) = text.parse::<Time>() {
        let today = zone.to_datetime(now).date();
        zone.to_timestamp(today.to_datetime(at))
    } else {
        return Err(Failure::Misused(format!(
            "--at {text}: not a time; write 14:05 (today), \"2026-11-28 14:05\" or 2026-11-28T14:05:00Z"
        )));
    };
    let at = found.map_err(|error| Failure::Misused(format!("--at {text}: {error}")))?;
    if at > now {
        return Err(Failure::Misused(format!(
            "--at {text}: that is still to come; it is {} now",
            now.strftime("%FT%TZ")
        )));
    }
    // All before 1970 is before any backup.
    let at = u64::try_from(at.as_nanosecond()).unwrap_or(0);
    Ok(WallNs::new(at))
}

/// Refuses a backup that is younger than the moment.
pub(super) fn refuse_younger(backup: &Path, at: WallNs) -> Result<(), Failure> {
    let path = backup.join(MANIFEST);
    let text = std::fs::read(&path).map_err(|error| failed(&path, &error))?;
    let manifest: Option<Value> = serde_json::from_slice(&text).ok();
    let ended = manifest.as_ref().and_then(|manifest| {
        let ended = manifest.get("ended")?.as_str()?;
        ended.parse::<Timestamp>().ok()
    });
    let Some(ended) = ended else {
        return Err(Failure::Said(format!(
            "{}: does not say when the backup ended; point-in-time restore wants one that `ringpost backup` made",
            path.display()
        )));
    };
    if i128::from(at.value()) < ended.as_nanosecond() {
        return Err(Failure::Said(format!(
            "{} ended at {ended}, after {}: take an older backup, or leave out --at",
            backup.display(),
            date(at)
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A winter's day in Berlin.
    fn read(text: &str) -> Result<WallNs, Failure> {
        let now = "2026-11-28T14:00:00Z".parse().expect("a time");
        let zone = TimeZone::fixed(jiff::tz::offset(1));
        parse(text, now, &zone)
    }

    #[test]
    fn a_moment_is_read_as_people_write_it() {
        let want = "2026-11-28T13:05:00Z".parse::<Timestamp>().expect("a time");
        let want = u64::try_from(want.as_nanosecond()).expect("after 1970");
        for text in [
            "14:05",
            "14:05:00",
            "2026-11-28 14:05",
            "2026-11-28T14:05:00",
            "2026-11-28T13:05:00Z",
            "2026-11-28T08:05:00-05:00",
        ] {
            let at = read(text);
            assert_eq!(at.ok(), Some(WallNs::new(want)), "{text}");
        }
    }

    #[test]
    fn what_is_no_past_moment_is_refused() {
        for text in [
            "yesterday",
            "",
            "25:00",
            "15:01",
            "2026-11-29",
            "2026-13-01",
        ] {
            assert!(matches!(read(text), Err(Failure::Misused(_))), "{text}");
        }
    }
}
