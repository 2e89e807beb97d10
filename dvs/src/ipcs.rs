//! `dvs ipcs`: the semaphores and message queues of a DC, in the layout of ipcs(1).

use crate::cli::ListOptions;
use crate::place::Place;
use crate::table::{self, Cell, Table};
use anyhow::{Result, anyhow, bail};
use calls::call;
use calls::ipc::{List, Listed};
use calls::wire::Wire;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Sendrec, Wait};

/// A listed object and its name (empty if it has a key instead).
type Object = (Listed, Vec<u8>);

/// `dvs ipcs`.
///
/// # Errors
/// One sentence: no DVS, or it does not answer.
pub(crate) fn main(options: &ListOptions) -> Result<()> {
    let place = Place::required(options.dc.as_deref(), options.node.as_deref())?;
    let objects = list(&place.connect(|| ())?)?;
    for (number, table) in tables(&objects).iter().enumerate() {
        if number > 0 && !options.json.json {
            table::say("\n")?;
        }
        table.print(options.json.json)?;
    }
    Ok(())
}

/// All objects, fetched in as many parts as they need.
fn list(port: &impl Sendrec) -> Result<Vec<Object>> {
    let mut objects = Vec::new();
    let mut payload = vec![0; PAYLOAD_MAX];
    loop {
        let row = List { from: u32::try_from(objects.len())?, size: u32::try_from(PAYLOAD_MAX)? };
        let (total, len) = call(port, Endpoint::IPC, &row, &[], &mut payload, Wait::FOREVER)
            .map_err(|errno| anyhow!("ipc-server does not list its objects: {errno}"))?;
        let Some(part) = decode(&payload[..len]) else { bail!("ipc-server's list is malformed") };
        let end = part.is_empty();
        objects.extend(part);
        if end || objects.len() as u64 >= total.count {
            return Ok(objects);
        }
    }
}

/// The records of a payload with their names; `None` if it is cut.
fn decode(mut payload: &[u8]) -> Option<Vec<Object>> {
    let mut objects = Vec::new();
    while !payload.is_empty() {
        let object = Listed::get(payload)?;
        let rest = payload.get(Listed::SIZE..)?;
        let (name, rest) = rest.split_at_checked(object.name_len.into())?;
        objects.push((object, name.to_vec()));
        payload = rest;
    }
    Some(objects)
}

/// One table per kind, as ipcs(1) has them.
fn tables(objects: &[Object]) -> [Table; 4] {
    let of = |kind: u8| objects.iter().filter(move |(object, _)| object.kind == kind);
    let mut semaphores = Table::new(&["NAME", "OWNER", "PERMS", "VALUE", "WAITING"]);
    for (object, name) in of(b's') {
        semaphores.row(by_name(object, name));
    }
    let mut queues = Table::new(&["NAME", "OWNER", "PERMS", "MESSAGES", "MAXIMUM"]);
    for (object, name) in of(b'q') {
        queues.row(by_name(object, name));
    }
    let mut sets = Table::new(&["KEY", "SEMID", "OWNER", "PERMS", "NSEMS"]);
    for (object, _) in of(b'S') {
        sets.row(by_key(object, &[object.a]));
    }
    let mut messages = Table::new(&["KEY", "MSQID", "OWNER", "PERMS", "USED-BYTES", "MESSAGES"]);
    for (object, _) in of(b'Q') {
        messages.row(by_key(object, &[object.b, object.a]));
    }
    [
        semaphores.titled("POSIX semaphores"),
        queues.titled("POSIX message queues"),
        sets.titled("Semaphore arrays"),
        messages.titled("Message queues"),
    ]
}

fn by_name(object: &Listed, name: &[u8]) -> Vec<Cell> {
    vec![
        Cell::text(String::from_utf8_lossy(name)),
        Cell::number(object.uid),
        permissions(object),
        Cell::number(object.a),
        Cell::number(object.b),
    ]
}

fn by_key(object: &Listed, counts: &[u64]) -> Vec<Cell> {
    let head = [
        Cell::text(format!("{:#010x}", object.key)),
        Cell::number(object.id),
        Cell::number(object.uid),
        permissions(object),
    ];
    head.into_iter().chain(counts.iter().map(|count| Cell::number(*count))).collect()
}

fn permissions(object: &Listed) -> Cell {
    Cell::text(format!("{:03o}", object.mode & 0o777))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(kind: u8, name: &[u8]) -> Object {
        let name_len = u8::try_from(name.len()).unwrap();
        let object = Listed {
            kind,
            name_len,
            mode: 0o100_640,
            uid: 7,
            key: 0x1f,
            id: 3,
            a: 2,
            b: 5,
            ..Listed::default()
        };
        (object, name.to_vec())
    }

    #[test]
    fn a_list_is_decoded_whole_or_not_at_all() {
        let (first, second) = (object(b's', b"/sem"), object(b'Q', b""));
        let payload = [&first.0.bytes()[..], b"/sem", &second.0.bytes()].concat();
        assert_eq!(decode(&payload), Some(vec![first, second]));
        for cut in 1..payload.len() {
            assert_eq!(decode(&payload[..cut]).is_some(), cut == Listed::SIZE + 4, "cut at {cut}");
        }
    }

    #[test]
    fn each_kind_has_its_own_table() {
        let objects =
            [object(b's', b"/sem"), object(b'q', b"/mq"), object(b'S', b""), object(b'Q', b"")];
        let [semaphores, queues, sets, messages] = tables(&objects).map(|table| table.text());
        assert!(semaphores.contains("POSIX semaphores") && semaphores.contains("/sem"));
        assert!(queues.contains("/mq"));
        let last = |text: &str| -> Vec<String> {
            text.lines().last().unwrap().split_whitespace().map(str::to_owned).collect()
        };
        assert_eq!(last(&sets), ["0x0000001f", "3", "7", "640", "2"]);
        assert_eq!(last(&messages), ["0x0000001f", "3", "7", "640", "5", "2"]);
    }
}
