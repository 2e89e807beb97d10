//! Tokens with which a machine may join once: made by an administrator where the authority is.
//!
//! A token has a secret, of which only the hash is kept, and the fingerprint of the authority's certificate, so that
//! a machine knows whom it talks to before it says anything.

use super::certificate::{Clock, fingerprint, random, seconds};
use super::credentials;
use crate::limits::{TOKEN_LIFE_MAX, TOKENS_MAX};
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;
use subtle::ConstantTimeEq;

/// Bytes of a token's secret.
const SECRET: usize = 16;

/// The file with the tokens that are known.
const TOKENS: &str = "tokens";

/// In front of a token: what it is, and of which kind.
const PREFIX: &str = "dvs1-";

/// A right to join a DVS, once.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(super) secret: [u8; SECRET],
    /// SHA-256 of the authority's certificate.
    pub(super) authority: [u8; 32],
}

/// Without the secret: what is logged is not what can be used.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", hex(&self.authority))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}{}", hex(&self.secret), hex(&self.authority))
    }
}

impl FromStr for Token {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Token> {
        let parse = || -> Option<Token> {
            let digits = text.trim().strip_prefix(PREFIX)?;
            let (secret, authority) = digits.split_at_checked(2 * SECRET)?;
            Some(Token { secret: unhex(secret)?, authority: unhex(authority)? })
        };
        parse().context("this is not a whole token; copy all that \"dvs token create\" has printed")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const COUNT: usize>(digits: &str) -> Option<[u8; COUNT]> {
    if digits.len() != 2 * COUNT || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; COUNT];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// A token as it is kept: enough to know it again, not enough to use it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    /// SHA-256 of the secret.
    hash: [u8; 32],
    /// Seconds since 1970.
    expires: u64,
    used: bool,
}

/// Makes a token that counts for `life`, in the credentials directory of the node with the authority.
///
/// # Errors
/// One sentence: the authority is not here, too many tokens, the directory cannot be written.
pub fn create(directory: &Path, life: Duration) -> Result<Token> {
    create_at(directory, life, &super::certificate::system_clock())
}

fn create_at(directory: &Path, life: Duration, clock: &Clock) -> Result<Token> {
    let (authority, is_here) = credentials::authority_in(directory)?;
    ensure!(is_here, "the authority is not on this node; create tokens where \"dvs init\" was run");
    ensure!(
        (1..=TOKEN_LIFE_MAX.as_secs()).contains(&life.as_secs()),
        "a token counts for 1 second to {} days",
        TOKEN_LIFE_MAX.as_secs() / 86_400
    );
    let token = Token { secret: random(), authority };
    let mut tokens = Tokens::open(directory)?;
    let now = seconds(clock);
    // One that is over can still be told from one that never was, for a day.
    tokens.kept.retain(|kept| kept.expires + 86_400 > now);
    let usable = tokens.kept.iter().filter(|kept| !kept.used && kept.expires > now).count();
    ensure!(
        usable < TOKENS_MAX,
        "{TOKENS_MAX} tokens have not been used yet; wait until they expire"
    );
    if tokens.kept.len() >= 2 * TOKENS_MAX {
        tokens.kept.retain(|kept| !kept.used && kept.expires > now);
    }
    let hash = fingerprint(&token.secret);
    tokens.kept.push(Kept { hash, expires: now + life.as_secs(), used: false });
    tokens.write(directory)?;
    Ok(token)
}

/// Uses the token with this secret, if `is_fine`. When it returns the token is used up, also after a crash.
///
/// # Errors
/// One sentence for the one who wants to join, who then may or may not use the token again.
pub(super) fn redeem<T>(
    directory: &Path,
    secret: &[u8; SECRET],
    clock: &Clock,
    is_fine: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let mut tokens = Tokens::open(directory)?;
    let hash = fingerprint(secret);
    let mut found = None;
    // All are looked at, whichever it is.
    for (index, kept) in tokens.kept.iter().enumerate() {
        if bool::from(kept.hash[..].ct_eq(&hash[..])) {
            found = Some(index);
        }
    }
    let again = "create another one with \"dvs token create\"";
    let Some(kept) = found.and_then(|index| tokens.kept.get_mut(index)) else {
        bail!("this token is not known here; {again}");
    };
    ensure!(!kept.used, "this token has been used already; {again}");
    ensure!(kept.expires > seconds(clock), "this token has expired; {again}");
    kept.used = true;
    let result = is_fine()?;
    tokens.write(directory)?;
    Ok(result)
}

/// The known tokens, while nobody else changes them.
struct Tokens {
    kept: Vec<Kept>,
    _lock: File,
}

impl Tokens {
    fn open(directory: &Path) -> Result<Tokens> {
        let path = directory.join(TOKENS);
        let shown = path.display();
        // The directory itself, as the file is replaced.
        let lock = File::open(directory)
            .with_context(|| format!("cannot open {}", directory.display()))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&lock, FlockOperation::LockExclusive))?;
        let kept = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{shown} is not understood; remove it and create new tokens")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error).with_context(|| format!("cannot read {shown}")),
        };
        Ok(Tokens { kept, _lock: lock })
    }

    fn write(&self, directory: &Path) -> Result<()> {
        credentials::replace(&directory.join(TOKENS), &serde_json::to_vec(&self.kept)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dvkd::config::Peer;
    use crate::dvkd::tests::clock_at;
    use proptest::prelude::*;
    use std::path::PathBuf;

    fn authority() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("1");
        let peer = Peer { node: 1, name: "n1".into(), address: ([127, 0, 0, 1], 1).into() };
        credentials::found(&[(peer, path.clone())]).unwrap();
        (directory, path)
    }

    fn refused(result: Result<()>, says: &str) {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(says) && error.contains("dvs token create"), "{error}");
    }

    #[test]
    fn a_token_is_good_once_and_for_its_time() {
        let (_directory, path) = authority();
        let (now, later) = (clock_at(1_000), clock_at(1_060));
        let minute = Duration::from_secs(60);
        let one = create_at(&path, minute, &now).unwrap();
        let two = create_at(&path, minute, &now).unwrap();
        assert_ne!(one, two);
        let kept = std::fs::read_to_string(path.join(TOKENS)).unwrap();
        assert!(!kept.contains(&hex(&one.secret)) && !kept.contains(&format!("{:?}", one.secret)));
        redeem(&path, &one.secret, &now, || Ok(())).unwrap();
        refused(redeem(&path, &one.secret, &now, || Ok(())), "used already");
        refused(redeem(&path, &two.secret, &later, || Ok(())), "has expired");
        refused(redeem(&path, &[0; SECRET], &now, || Ok(())), "not known here");
        // Whoever was refused for another reason may try again.
        assert!(redeem(&path, &two.secret, &now, || -> Result<()> { bail!("no") }).is_err());
        redeem(&path, &two.secret, &now, || Ok(())).unwrap();
    }

    #[test]
    fn tokens_are_bounded_and_old_ones_make_room() {
        let (_directory, path) = authority();
        let (now, later) = (clock_at(1_000), clock_at(1_000 + 90_000));
        for _ in 0..TOKENS_MAX {
            create_at(&path, Duration::from_secs(60), &now).unwrap();
        }
        let error = create_at(&path, Duration::from_secs(60), &now).unwrap_err().to_string();
        assert!(error.contains("have not been used"), "{error}");
        create_at(&path, Duration::from_secs(60), &later).unwrap();
        assert!(create_at(&path, Duration::ZERO, &later).is_err());
        assert!(create_at(&path, TOKEN_LIFE_MAX * 2, &later).is_err());
    }

    #[test]
    fn a_token_survives_its_text_and_no_shorter_text_is_one() {
        let token = Token { secret: random(), authority: random() };
        let text = token.to_string();
        assert_eq!(text.parse::<Token>().unwrap(), token);
        assert_eq!(format!(" {text}\n").parse::<Token>().unwrap(), token);
        assert!(!format!("{token:?}").contains(&hex(&token.secret)));
        for end in 0..text.len() {
            assert!(text[..end].parse::<Token>().is_err());
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(dvs1-)?[0-9a-f+é]{0,120}") {
            if let Ok(token) = text.parse::<Token>() {
                prop_assert_eq!(token.to_string(), text.to_lowercase());
            }
        }
    }
}
