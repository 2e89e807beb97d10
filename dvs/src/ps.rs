//! `dvs ps`: the processes of all nodes of a DC.

use crate::cli::ListOptions;
use crate::place::Place;
use crate::table::{Cell, Table};
use anyhow::{Result, bail};
use calls::call;
use calls::pm::{List, Process};
use calls::wire::Wire;
use dvk::dvkd::Description;
use m3ipc::limits::PAYLOAD_MAX;
use m3ipc::{Endpoint, Sendrec, Wait};

/// `dvs ps`.
///
/// # Errors
/// One sentence: no DVS, or it does not answer.
pub(crate) fn main(options: &ListOptions) -> Result<()> {
    let place = Place::required(options.dc.as_deref(), options.node.as_deref())?;
    let processes = list(&place.connect(|| ())?)?;
    table(&processes, &place.info).print(options.json.json)
}

/// All processes, fetched in as many parts as they need.
fn list(port: &impl Sendrec) -> Result<Vec<(Process, Vec<u8>)>> {
    let mut processes = Vec::new();
    let mut payload = vec![0; PAYLOAD_MAX];
    loop {
        let row = List { from: u32::try_from(processes.len())?, size: u32::try_from(PAYLOAD_MAX)? };
        let (total, len) = call(port, Endpoint::PM, &row, &[], &mut payload, Wait::FOREVER)
            .map_err(|errno| anyhow::anyhow!("pm-server does not list the processes: {errno}"))?;
        let Some(part) = decode(&payload[..len]) else { bail!("pm-server's list is malformed") };
        let end = part.is_empty();
        processes.extend(part);
        if end || processes.len() as u64 >= total.count {
            return Ok(processes);
        }
    }
}

/// The records of a payload with their commands; `None` if it is cut.
fn decode(mut payload: &[u8]) -> Option<Vec<(Process, Vec<u8>)>> {
    let mut processes = Vec::new();
    while !payload.is_empty() {
        let process = Process::get(payload)?;
        let rest = payload.get(Process::SIZE..)?;
        let (command, rest) = rest.split_at_checked(process.command_len.into())?;
        processes.push((process, command.to_vec()));
        payload = rest;
    }
    Some(processes)
}

fn table(processes: &[(Process, Vec<u8>)], info: &Description) -> Table {
    let mut table = Table::new(&["PID", "PPID", "NODE", "UID", "STATE", "TIME", "COMMAND"]);
    for (process, command) in processes {
        table.row(vec![
            Cell::number(process.pid),
            Cell::number(process.ppid),
            Cell::text(info.name_of(process.node)),
            Cell::number(process.uid),
            Cell::text(char::from(process.state)),
            Cell::text(time(process.cpu_ms)),
            Cell::text(String::from_utf8_lossy(command)),
        ]);
    }
    table
}

/// Time on the processor as ps(1) shows it: hours:minutes:seconds.
fn time(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dvk::dvkd::Peer;

    #[test]
    fn a_list_is_decoded_whole_or_not_at_all() {
        let process =
            Process { pid: 7, node: 2, state: b'S', command_len: 3, ..Process::default() };
        let payload = [&process.bytes()[..], b"sh\x07", &process.bytes(), b"abc"].concat();
        let all = decode(&payload).unwrap();
        assert_eq!(all, [(process, b"sh\x07".to_vec()), (process, b"abc".to_vec())]);
        let one = Process::SIZE + 3;
        for cut in 0..payload.len() {
            assert_eq!(decode(&payload[..cut]).is_some(), cut == 0 || cut == one, "cut at {cut}");
        }
    }

    #[test]
    fn a_process_is_shown_with_its_nodes_name() {
        let process = Process {
            pid: 200_001,
            ppid: 1,
            node: 2,
            state: b'R',
            cpu_ms: 3_723_999,
            ..Process::default()
        };
        let mut shown = String::new();
        let peer = Peer { node: 2, name: "n2".into(), address: ([10, 83, 0, 2], 7083).into() };
        let nodes = vec![peer];
        let lab = Description { dc: "lab".into(), id: 1, node: 1, home: 1, nodes };
        let table = table(&[(process, b"sleep 9".to_vec())], &lab);
        shown.push_str(&table.text());
        let row = shown.lines().nth(1).unwrap();
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words, ["200001", "1", "n2", "0", "R", "01:02:03", "sleep", "9"]);
    }
}
