//! Two ends of a connection on the loopback interface, one of them often not what it should be.

use super::*;
use crate::dvkd::authority::Authority;
use crate::dvkd::certificate::{fingerprint, seconds, system_clock};
use crate::dvkd::members::Members;
use crate::dvkd::members::tests::member;
use crate::dvkd::tests::clock_at;
use crate::limits::{CERTIFICATE_LIFE, CLOCK_DIFFERENCE};
use std::net::TcpListener;

/// A DVS with members 1 to 3.
struct World {
    authority: Authority,
    trust: Arc<Trust>,
}

impl World {
    fn new() -> World {
        let authority = Authority::create(&system_clock()).unwrap();
        let nodes = (1..=3).map(member).collect();
        let members = Members {
            dvs: authority.dvs(),
            revision: 1,
            authority: 1,
            nodes,
            dcs: Vec::new(),
            last_dc: 0,
        };
        let trust = Arc::new(Trust::new(authority.certificate.clone(), Arc::new(members)));
        World { authority, trust }
    }

    /// What node `node` shows and believes.
    fn configs(&self, node: u16) -> Configs {
        self.configs_at(node, &system_clock())
    }

    fn configs_at(&self, node: u16, clock: &Clock) -> Configs {
        let (key, certificate) = self.authority.certify_new(&system_clock(), node).unwrap();
        Configs::new(&self.trust, &certificate, &key.to_der(), clock, node == 1).unwrap()
    }

    fn subject(&self, node: u16) -> Subject {
        Subject { dvs: self.authority.dvs(), node }
    }

    fn revoke(&self, node: u16) {
        let mut members = Members::clone(&self.trust.members());
        members.find_mut(node).unwrap().revoked = true;
        self.trust.replace(Arc::new(members));
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// The two ends of a TCP connection.
fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (one, listener.accept().unwrap().0)
}

/// One connects, the other accepts.
fn meet(
    one: &Configs,
    expected: Subject,
    two: &Configs,
) -> (Result<(Tls, Subject)>, Result<Accepted>) {
    let (ours, theirs) = sockets();
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| accept(two, theirs, soon()));
        let connected = connect(one, ours, expected, soon());
        (connected, accepting.join().unwrap())
    })
}

fn pair() -> (Tls, Tls) {
    let world = World::new();
    let (one, two) = meet(&world.configs(1), world.subject(2), &world.configs(2));
    let (one, subject) = one.unwrap();
    assert_eq!(subject, world.subject(2));
    match two.unwrap() {
        Accepted::Link(two, subject) => {
            assert_eq!(subject, world.subject(1));
            (one, two)
        }
        other => panic!("{other:?}"),
    }
}

/// The end that accepts must refuse for this reason.
fn refused(accepted: Result<Accepted>, says: &str) {
    let error = format!("{:#}", accepted.unwrap_err());
    assert!(error.contains(says), "{error:?} does not say {says:?}");
}

#[test]
fn members_meet_and_each_knows_who_the_other_is() {
    let (one, two) = pair();
    one.write_all_by(b"there", soon()).unwrap();
    two.write_all_by(b"back", soon()).unwrap();
    let (mut there, mut back) = ([0; 5], [0; 4]);
    two.read_exact_by(&mut there, soon()).unwrap();
    one.read_exact_by(&mut back, soon()).unwrap();
    assert_eq!((&there, &back), (b"there", b"back"));
    let version = one.lock().connection.protocol_version();
    assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_3));
}

#[test]
fn a_certificate_of_another_authority_is_refused_on_both_sides() {
    let (world, other) = (World::new(), World::new());
    let (one, two) = meet(&other.configs(1), other.subject(2), &world.configs(2));
    assert!(format!("{:#}", one.unwrap_err()).contains("UnknownIssuer"));
    assert!(two.is_err());
    // One that believes everybody is refused by the other.
    let believer = World { trust: world.trust.clone(), ..other };
    let (_, two) = meet(&believer.configs(1), world.subject(2), &world.configs(2));
    refused(two, "UnknownIssuer");
}

#[test]
fn a_certificate_counts_only_in_its_time() {
    let world = World::new();
    let now = seconds(&system_clock());
    let check = |time: u64, says: &str| {
        let (_, two) =
            meet(&world.configs(1), world.subject(2), &world.configs_at(2, &clock_at(time)));
        match says {
            "" => drop(two.unwrap()),
            _ => refused(two, says),
        }
    };
    let (life, difference) = (CERTIFICATE_LIFE.as_secs(), CLOCK_DIFFERENCE.as_secs());
    check(now + life - 60, "");
    check(now + life + 60, "expired");
    check(now - difference + 60, "");
    check(now - difference - 60, "not valid yet");
}

#[test]
fn a_revoked_node_and_one_that_is_no_member_are_refused_on_both_sides() {
    let world = World::new();
    let configs = (world.configs(1), world.configs(2), world.configs(9));
    let (one, two) = meet(&configs.2, world.subject(2), &configs.1);
    refused(two, "node 9 is not a member");
    drop(one);
    world.revoke(1);
    let (_, two) = meet(&configs.0, world.subject(2), &configs.1);
    refused(two, "Revoked");
    let (two, _) = meet(&configs.1, world.subject(1), &configs.0);
    assert!(format!("{:#}", two.unwrap_err()).contains("Revoked"));
}

#[test]
fn the_authority_itself_is_no_node() {
    let world = World::new();
    assert!(Subject::of(&world.authority.certificate).is_err());
}

#[test]
fn a_link_needs_a_certificate_and_joining_is_only_where_the_authority_is() {
    let world = World::new();
    let pinned = fingerprint(&world.authority.certificate);
    let join = |pinned: [u8; 32], configs: &Configs| {
        let (ours, theirs) = sockets();
        std::thread::scope(|scope| {
            let accepting = scope.spawn(|| accept(configs, theirs, soon()));
            let joined = connect_to_join(ours, Pinned(pinned), &system_clock(), soon());
            (joined, accepting.join().unwrap())
        })
    };
    let (joined, accepted) = join(pinned, &world.configs(1));
    assert!(joined.is_ok() && matches!(accepted.unwrap(), Accepted::Join(_)));
    let (joined, accepted) = join([0; 32], &world.configs(1));
    assert!(format!("{:#}", joined.unwrap_err()).contains("for another DVS"));
    assert!(accepted.is_err());
    let (joined, accepted) = join(pinned, &world.configs(2));
    assert!(format!("{:#}", joined.unwrap_err()).contains("NoApplicationProtocol"));
    assert!(accepted.is_err());
    // One without a certificate that says it wants a link.
    let (ours, theirs) = sockets();
    let mut config = client(&system_clock())
        .unwrap()
        .with_custom_certificate_verifier(world.trust.clone())
        .with_no_client_auth();
    set_client(&mut config, LINK);
    let name = ServerName::try_from("n2.dvs").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let configs = world.configs(2);
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| accept(&configs, theirs, soon()));
        Tls::new(ours, connection.into()).unwrap().shake_hands(soon()).ok();
        refused(accepting.join().unwrap(), "peer sent no certificates");
    });
}

/// What a client sends, byte by byte, to one that accepts; returns why it is refused.
fn send_to_acceptor(bytes: &[u8], deadline: Duration) -> String {
    let configs = World::new().configs(2);
    let (mut ours, theirs) = sockets();
    std::thread::scope(|scope| {
        let accepting = scope.spawn(move || accept(&configs, theirs, Instant::now() + deadline));
        ours.write_all(bytes).unwrap();
        let error = accepting.join().unwrap().unwrap_err();
        format!("{error:#}")
    })
}

#[test]
fn tls_1_2_is_refused() {
    // A ClientHello without supported_versions (RFC 8446, 4.2.1): one suite, no compression, curve and signatures.
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..],
        &[0, 11, 0, 2, 1, 0],
        &[0, 13, 0, 4, 0, 2, 8, 7],
        &[0, 23, 0, 0],
    ]
    .concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(&extensions);
    let mut message = vec![1, 0];
    message.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
    message.extend(&body);
    let mut record = vec![22, 3, 1];
    record.extend(u16::try_from(message.len()).unwrap().to_be_bytes());
    record.extend(&message);
    let error = send_to_acceptor(&record, Duration::from_secs(10));
    assert!(error.contains("SupportedVersionsExtensionRequired"), "{error}");
}

#[test]
fn plaintext_and_silence_are_refused() {
    let long = Duration::from_secs(10);
    for junk in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; 100], &[0xff; 100], b"DVSl hello"] {
        let error = send_to_acceptor(junk, long);
        assert!(error.contains("TLS handshake"), "{error}");
    }
    for part in [&[][..], &[22], &[22, 3, 1, 0, 200, 1]] {
        let error = send_to_acceptor(part, Duration::from_millis(50));
        assert!(error.contains("timed out"), "{error}");
    }
}

#[test]
fn what_does_not_fit_the_socket_waits_and_what_was_read_ahead_is_not_forgotten() {
    let (one, two) = pair();
    let piece = vec![5; 100_000];
    let mut written = 0;
    loop {
        match one.write(&[IoSlice::new(&piece[..60_000]), IoSlice::new(&piece[60_000..])]) {
            Ok(count) => written += count,
            Err(error) => break assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert_eq!(one.flush().unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(!one.await_writable(Some(Duration::from_millis(1))).unwrap());
    let mut got = 0;
    // A few bytes at a time: most are plaintext that has been decrypted before.
    let mut buffer = [0; 777];
    while got < written {
        match two.read(&mut buffer) {
            Ok(count) => {
                assert!(count > 0 && buffer[..count].iter().all(|byte| *byte == 5));
                got += count;
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                one.flush().ok();
                // Returns at once, or when something has come; never with plaintext left behind.
                let begin = Instant::now();
                two.await_readable(Some(Duration::from_secs(5))).unwrap();
                assert!(begin.elapsed() < Duration::from_secs(5), "{got} of {written}");
            }
        }
    }
    assert_eq!(got, written);
    assert!(one.flush().is_ok());
}

#[test]
fn bytes_that_wait_decrypted_make_it_readable() {
    let (one, two) = pair();
    one.write_all_by(&[9; 1000], soon()).unwrap();
    let mut byte = [0];
    two.read_exact_by(&mut byte, soon()).unwrap();
    // The socket is empty now; without the account of what is buffered this would take five seconds.
    let begin = Instant::now();
    two.await_readable(Some(Duration::from_secs(5))).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4));
    two.read_exact_by(&mut [0; 999], soon()).unwrap();
    assert_eq!(two.read(&mut byte).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn an_end_is_noticed_whether_it_is_half_or_whole_or_forged() {
    // The other side sends no more, but would read.
    let (one, two) = pair();
    one.stream.shutdown(Shutdown::Write).unwrap();
    two.await_readable(None).unwrap();
    assert_eq!(two.read(&mut [0; 10]).unwrap(), 0);
    // It says so in TLS.
    let (one, two) = pair();
    one.lock().connection.send_close_notify();
    one.flush().unwrap();
    two.await_readable(None).unwrap();
    assert_eq!(two.read(&mut [0; 10]).unwrap(), 0);
    // Whoever waits returns when this side closes.
    let (_one, two) = pair();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| two.await_readable(None));
        two.close();
        waiting.join().unwrap().unwrap();
    });
    // Plaintext in the middle.
    let (one, two) = pair();
    (&one.stream).write_all(b"not encrypted at all").unwrap();
    two.await_readable(None).unwrap();
    assert_eq!(two.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::InvalidData);
}

#[test]
fn a_changed_bit_ends_the_connection() {
    let (one, two) = pair();
    // Encrypted, and changed on the way.
    let mut record = Vec::new();
    {
        let mut state = one.lock();
        state.connection.writer().write_all(b"pay 1").unwrap();
        state.connection.write_tls(&mut record).unwrap();
    }
    let last = record.len() - 1;
    record[last] ^= 1;
    (&one.stream).write_all(&record).unwrap();
    two.await_readable(None).unwrap();
    assert_eq!(two.read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::InvalidData);
}
