//! TLS 1.3 over TCP, raw: what the links of DVS are measured against.

use crate::stream::MESSAGE;
use anyhow::{Context, Result};
use rcgen::generate_simple_self_signed;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

/// The name in the certificate.
const NAME: &str = "bench";

/// A connection to [`serve`].
pub(crate) type Connection = StreamOwned<ClientConnection, TcpStream>;

/// Listens at `address`, writes its certificate to the file `certificate`, prints where it listens, and serves one
/// connection: a message of [`MESSAGE`] bytes begins with the number of bytes to send back.
pub(crate) fn serve(address: IpAddr, certificate: &Path) -> Result<()> {
    let made = generate_simple_self_signed([NAME.to_owned()])?;
    fs::write(certificate, made.cert.der())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let config = ServerConfig::builder_with_protocol_versions(&[&TLS13])
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let listener = TcpListener::bind((address, 0))?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?)?;
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    let mut stream = StreamOwned::new(ServerConnection::new(Arc::new(config))?, stream);
    let mut message = [0; MESSAGE];
    let mut bytes = Vec::new();
    while stream.read_exact(&mut message).is_ok() {
        let len = u32::from_le_bytes(*message.first_chunk().context("a message is longer")?);
        bytes.resize(len as usize, 7);
        stream.write_all(&bytes)?;
        stream.flush()?;
    }
    Ok(())
}

/// Connects to a server with this certificate.
pub(crate) fn connect(address: &str, certificate: &Path) -> Result<Connection> {
    let mut roots = RootCertStore::empty();
    let read = fs::read(certificate).context("the server's certificate")?;
    roots.add(CertificateDer::from(read))?;
    let config = ClientConfig::builder_with_protocol_versions(&[&TLS13])
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(NAME)?;
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    Ok(StreamOwned::new(ClientConnection::new(Arc::new(config), name)?, stream))
}

/// Asks for `bytes.len()` bytes, and reads them.
pub(crate) fn fetch(connection: &mut Connection, bytes: &mut [u8]) -> std::io::Result<()> {
    let mut message = [7; MESSAGE];
    let len = u32::try_from(bytes.len()).map_err(std::io::Error::other)?;
    message[..4].copy_from_slice(&len.to_le_bytes());
    connection.write_all(&message)?;
    connection.read_exact(bytes)
}
