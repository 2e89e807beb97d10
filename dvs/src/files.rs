//! A container's files, as the administrator sees them: calls of vfs-server that the DVS itself makes.

use crate::limits::RESTART_PAUSE;
use crate::place::{self, Connected};
use anyhow::Result;
use calls::vfs::RESTART;
use calls::{Row, call};
use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::door::kind;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Cred, Endpoint, Errno, Wait};

/// A way to a container's vfs-server.
pub(crate) struct Files {
    port: Connected,
}

impl Files {
    /// # Errors
    /// One sentence: no DVS, or this user may not.
    pub(crate) fn reach(dc: Option<&str>, node: Option<&str>) -> Result<Files> {
        let place = place::Place::required(dc, node)?;
        Ok(Files { port: place.connect_as(kind::AGENT, || ())? })
    }

    /// Makes a call as the DVS itself.
    ///
    /// # Errors
    /// The server's, or why it did not answer.
    pub(crate) fn call<R: Row>(
        &self,
        row: &R,
        payload: &[u8],
    ) -> Result<(R::Reply, Vec<u8>), Errno> {
        let mut cred = [0; CRED_SIZE_MAX];
        let len = Cred::ROOT.encode(&mut cred);
        let send = [&cred[..len], payload];
        let mut received = vec![0; PAYLOAD_MAX];
        loop {
            match call(&self.port, Endpoint::VFS, row, &send, &mut received, Wait::FOREVER) {
                Err(error) if error.errno == RESTART => std::thread::sleep(RESTART_PAUSE),
                Err(error) => return Err(error),
                Ok((reply, len)) => {
                    received.truncate(len);
                    return Ok((reply, received));
                }
            }
        }
    }
}
