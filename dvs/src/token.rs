//! `dvs token create`: a token with which one machine may join.

use crate::{state, table};
use anyhow::{Context, Result};
use dvk::dvkd;
use std::time::Duration;

/// Options of `dvs token create`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Run it on the node where \"dvs init\" was run. The token lets one machine join, once: hand it over as you would a \
password. On that machine: dvs join ADDRESS --token TOKEN")]
pub(crate) struct Options {
    /// How long it counts: a number with s, m, h or d
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_time)]
    ttl: Duration,
    #[command(flatten)]
    state: state::StateOption,
}

/// `dvs token create`.
///
/// # Errors
/// One sentence: this node has not the authority.
pub(crate) fn create(options: &Options) -> Result<()> {
    let credentials = options.state.config()?.credentials;
    let credentials = credentials.context("this node is alone: nobody can join it")?;
    let token = dvkd::create_token(&credentials, options.ttl)?;
    table::say(&format!("{token}\n"))
}

/// A time like `90s`, `10m`, `2h` or `1d`.
///
/// # Errors
/// It is none.
pub(crate) fn parse_time(text: &str) -> Result<Duration> {
    let parse = || {
        let (number, seconds) = match text.char_indices().next_back()? {
            (at, 's') => (&text[..at], 1),
            (at, 'm') => (&text[..at], 60),
            (at, 'h') => (&text[..at], 3600),
            (at, 'd') => (&text[..at], 86_400),
            _ => return None,
        };
        let number = number.parse::<u64>().ok().filter(|number| *number > 0)?;
        number.checked_mul(seconds).map(Duration::from_secs)
    };
    parse().context("a time is a number with s, m, h or d, such as 10m")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(parse_time(text).ok().map(|time| time.as_secs()), expected, "{text:?}");
        };
        check("90s", Some(90));
        check("10m", Some(600));
        check("2h", Some(7200));
        check("1d", Some(86_400));
        for bad in [
            "",
            "m",
            "10",
            "0s",
            "-1s",
            "1.5h",
            "1é",
            "99999999999999999999d",
            "9999999999999999999d",
        ] {
            check(bad, None);
        }
    }
}
