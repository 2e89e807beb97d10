//! What dvs-run asks a container to run: the request of a session, and its bytes.

use crate::limits::{MAPS_MAX, REQUEST_MAX};
use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// A program and its surroundings. Who runs it is not in here: that is the kernel's word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The command and its arguments; never empty.
    pub(crate) argv: Vec<Vec<u8>>,
    /// `NAME=value` each.
    pub(crate) environment: Vec<Vec<u8>>,
    /// Where the caller is; the program starts there if the directory exists, else in `/`.
    pub(crate) cwd: Vec<u8>,
    /// Absolute paths where the program sees the tree of the DC, beside `/dvs`.
    pub(crate) maps: Vec<Vec<u8>>,
    pub(crate) umask: u32,
}

impl Request {
    /// # Errors
    /// It is longer than [`REQUEST_MAX`].
    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        let bytes = postcard::to_stdvec(self)?;
        ensure!(bytes.len() <= REQUEST_MAX, "the arguments and the environment are too long");
        Ok(bytes)
    }

    /// A request from a caller; `None` unless it is whole and could be executed.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Request> {
        let (request, rest) = postcard::take_from_bytes::<Request>(bytes).ok()?;
        (rest.is_empty() && request.is_possible()).then_some(request)
    }

    fn is_possible(&self) -> bool {
        let strings =
            self.argv.iter().chain(&self.environment).chain(&self.maps).chain([&self.cwd]);
        !self.argv.is_empty()
            && !strings.into_iter().any(|string| string.contains(&0))
            && self.environment.iter().all(|pair| is_pair(pair))
            && self.maps.len() <= MAPS_MAX
            && self.maps.iter().all(|path| path.first() == Some(&b'/'))
            && self.umask <= 0o777
    }

    /// The value of an environment variable.
    pub(crate) fn variable(&self, name: &str) -> Option<&[u8]> {
        self.environment.iter().find_map(|pair| {
            pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="))
        })
    }
}

/// `NAME=value` with a name.
fn is_pair(pair: &[u8]) -> bool {
    pair.iter().position(|byte| *byte == b'=').is_some_and(|equals| equals > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn request() -> Request {
        Request {
            argv: vec![b"echo".to_vec(), b"\xff\n".to_vec(), Vec::new()],
            environment: vec![b"PATH=/bin".to_vec(), b"EMPTY=".to_vec()],
            cwd: b"/tmp".to_vec(),
            maps: vec![b"/data".to_vec()],
            umask: 0o22,
        }
    }

    #[test]
    fn a_request_survives_the_wire_and_a_cut_one_is_refused() {
        let bytes = request().encode().unwrap();
        assert_eq!(Request::decode(&bytes), Some(request()));
        for cut in 0..bytes.len() {
            assert_eq!(Request::decode(&bytes[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Request::decode(&[&bytes[..], b"x"].concat()), None);
    }

    #[test]
    fn a_request_that_could_not_be_executed_is_refused() {
        check(|request| request.argv.clear());
        check(|request| request.argv[0].push(0));
        check(|request| request.environment.push(b"NOVALUE".to_vec()));
        check(|request| request.environment.push(b"=x".to_vec()));
        check(|request| request.maps.push(b"data".to_vec()));
        check(|request| request.maps = vec![b"/d".to_vec(); MAPS_MAX + 1]);
        check(|request| request.cwd = b"/a\0b".to_vec());
        check(|request| request.umask = 0o1000);
    }

    fn check(spoil: impl FnOnce(&mut Request)) {
        let mut request = request();
        spoil(&mut request);
        assert_eq!(Request::decode(&request.encode().unwrap()), None, "{request:?}");
    }

    #[test]
    fn a_variable_is_found_by_its_whole_name() {
        assert_eq!(request().variable("PATH"), Some(&b"/bin"[..]));
        assert_eq!(request().variable("EMPTY"), Some(&b""[..]));
        assert_eq!(request().variable("PAT"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Request::decode(&bytes);
        }
    }
}
