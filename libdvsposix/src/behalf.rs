//! Calls on behalf of somebody else: an agent puts the caller's credentials in front of each payload.

use m3ipc::cred::CRED_SIZE_MAX;
use m3ipc::{Cred, Endpoint, IpcError, Message, Sendrec, Wait};

/// Most pieces of payload that one call of this crate is made of.
const PIECES_MAX: usize = 6;

/// A port of an agent (`m3ipc::door::kind::AGENT`), speaking for the process that `cred` describes.
#[derive(Debug)]
pub struct OnBehalf<P> {
    port: P,
    cred: [u8; CRED_SIZE_MAX],
    cred_len: usize,
}

impl<P: Sendrec> OnBehalf<P> {
    pub fn new(port: P, cred: &Cred) -> OnBehalf<P> {
        let mut bytes = [0; CRED_SIZE_MAX];
        let cred_len = cred.encode(&mut bytes);
        OnBehalf { port, cred: bytes, cred_len }
    }
}

impl<P: Sendrec> Sendrec for OnBehalf<P> {
    fn sendrec(
        &self,
        to: Endpoint,
        message: &mut Message,
        send: &[&[u8]],
        receive: &mut [u8],
        wait: Wait,
    ) -> Result<usize, IpcError> {
        let mut pieces: [&[u8]; PIECES_MAX + 1] = [&[]; PIECES_MAX + 1];
        let used = pieces.get_mut(..send.len() + 1).ok_or(IpcError::TooLarge)?;
        let (first, rest) = used.split_first_mut().ok_or(IpcError::TooLarge)?;
        *first = self.cred.get(..self.cred_len).unwrap_or_default();
        for (piece, bytes) in rest.iter_mut().zip(send) {
            *piece = bytes;
        }
        self.port.sendrec(to, message, used, receive, wait)
    }
}

#[cfg(test)]
mod tests {
    use super::OnBehalf;
    use crate::fake::Fake;
    use crate::file;
    use calls::vfs::Attr;
    use m3ipc::Cred;
    use std::vec::Vec;

    #[test]
    fn the_credentials_stand_in_front_of_the_payload() {
        let cred = Cred::new(7, 1000, 100).with_groups([4, 24]);
        let fake = Fake::answering(Attr { ino: 9, ..Attr::default() }.bytes());
        let attr = file::lookup(&OnBehalf::new(&fake, &cred), 1, b"name");
        assert_eq!(attr.map(|attr| attr.ino), Ok(9));
        let sent: Vec<u8> = fake.payload();
        assert_eq!(Cred::decode(&sent), Some((cred, &b"name"[..])));
    }
}
