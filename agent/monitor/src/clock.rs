//! The wall clock as the monitor needs it: nanoseconds since the epoch, and two texts of it.

use std::time::{SystemTime, UNIX_EPOCH};

const NANOS: i64 = 1_000_000_000;
const DAY_SECONDS: i64 = 86_400;

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// `2026-11-20T17:00:00.000000001Z`.
pub(crate) fn rfc3339(nanos: i64) -> String {
    let (date, time) = civil(nanos);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z",
        date.0,
        date.1,
        date.2,
        time.0,
        time.1,
        time.2,
        nanos.rem_euclid(NANOS)
    )
}

/// `20261120-170000`.
pub(crate) fn compact(nanos: i64) -> String {
    let (date, time) = civil(nanos);
    format!("{:04}{:02}{:02}-{:02}{:02}{:02}", date.0, date.1, date.2, time.0, time.1, time.2)
}

/// Year, month, day and hour, minute, second in UTC. Days are counted in eras of 400 years that
/// begin on the first of March, so that the leap day is the last of a year.
fn civil(nanos: i64) -> ((i64, i64, i64), (i64, i64, i64)) {
    let seconds = nanos.div_euclid(NANOS);
    let (days, second) =
        (seconds.div_euclid(DAY_SECONDS) + 719_468, seconds.rem_euclid(DAY_SECONDS));
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    ((year, month, day), (second / 3600, second / 60 % 60, second % 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_instants() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(rfc3339(951_782_400 * NANOS + 7), "2000-02-29T00:00:00.000000007Z");
        assert_eq!(rfc3339(1_795_193_731 * NANOS), "2026-11-20T16:55:31.000000000Z");
        assert_eq!(compact(1_795_193_731 * NANOS), "20261120-165531");
    }
}
