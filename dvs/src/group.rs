//! `dvs group`: how the system group is, and messages to all in one order.

use crate::cli::JsonOption;
use crate::exit::{self, Failure as Exit};
use crate::services::{self, Options, Services, text, unexpected};
use crate::table::{Cell, Table, say};
use anyhow::{Context, Result};
use dvk::dvkd::services::{GroupStatus, Item, Op, Reply, Standing, Text, group_status};
use std::ffi::OsString;
use std::io::BufRead;

/// `dvs group …`.
#[derive(Clone, Debug, clap::Subcommand)]
#[command(after_help = services::HELP)]
pub(crate) enum GroupCommand {
    /// Who leads, who votes, who is up, as a node sees it
    Status(StatusOptions),
    /// Join a group and print its messages and views: every member sees the same in the same order
    Listen(ListenOptions),
    /// Send messages to all members of a group
    Send(SendOptions),
}

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Exit status: 0 it can decide; 1 it cannot, or this node is cut off.")]
pub(crate) struct StatusOptions {
    #[command(flatten)]
    json: JsonOption,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "One line per item: its number, view or message, and the members' or the sender's number, the \
    message. Who joins begins with the view that another listener gives it; a state of another program is state, and no \
    more is said of it. Other lines are for people, on standard error."
)]
pub(crate) struct ListenOptions {
    /// The group: any name, for the whole cluster
    name: String,
    /// End after so many messages
    #[arg(long)]
    count: Option<usize>,
    #[command(flatten)]
    json: JsonOption,
    #[command(flatten)]
    options: Options,
}

#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "The sender is a member while it sends: others see it come and go. Prints each message's number."
)]
pub(crate) struct SendOptions {
    /// The group
    name: String,
    /// The messages [default: the lines of standard input]
    messages: Vec<OsString>,
    #[command(flatten)]
    options: Options,
}

/// `dvs group`; returns the exit code.
///
/// # Errors
/// One sentence with its exit code.
pub(crate) fn main(command: &GroupCommand) -> Result<u8> {
    match command {
        GroupCommand::Status(options) => status(options),
        GroupCommand::Listen(options) => listen(options).map(|()| 0),
        GroupCommand::Send(options) => send(options).map(|()| 0),
    }
}

fn status(options: &StatusOptions) -> Result<u8> {
    let config = options.options.state.config_of(options.options.node.as_deref())?;
    let status = group_status(&config.run)
        .map_err(|error| Exit::error(exit::NODE_DOWN, format!("{error:#}")))?;
    let status = status.context("this node is alone: it has no system group")?;
    if options.json.json {
        say(&(serde_json::to_string(&status)? + "\n"))?;
    } else {
        say(&shown(&status))?;
    }
    let is_fine = status.trouble.is_none() && status.standing == Standing::Up;
    Ok(if is_fine { 0 } else { exit::FAILED })
}

fn shown(status: &GroupStatus) -> String {
    let name = |node: u16| {
        let member = status.members.iter().find(|member| member.node == node);
        member.map_or_else(|| node.to_string(), |member| member.name.clone())
    };
    let standing = match status.standing {
        Standing::Stopped => "not at work here",
        Standing::Joining => "joining",
        Standing::Up => "up",
        Standing::Fenced => "fenced: cut off from the majority",
    };
    let leader = status.leader.map_or_else(|| "nobody".into(), name);
    let mut table = Table::new(&["NODE", "NUMBER", "ROLE", "STATE", "LINK", "CONTACT"]);
    for member in &status.members {
        let is_leader = status.leader == Some(member.node);
        let role = match (is_leader, member.is_voter) {
            (true, _) => "leader",
            (false, true) => "voter",
            (false, false) => "follower",
        };
        let is_own = member.node == status.node;
        let contact = member.contact_ms.map(|time| format!("{time} ms"));
        table.row(vec![
            Cell::text(&member.name),
            Cell::number(member.node),
            Cell::text(role),
            Cell::text(if member.is_up { "up" } else { "down" }),
            Cell::text(match (is_own, member.is_linked) {
                (true, _) => "-",
                (false, true) => "up",
                (false, false) => "down",
            }),
            Cell::text(contact.unwrap_or_else(|| "-".into())),
        ]);
    }
    let trouble = status.trouble.iter().map(|why| format!("{why}\n"));
    format!(
        "{} is {standing}. Leader: {leader}, term {}; command {}, revision {}, {} sessions.\n{}\n{}",
        status.name,
        status.term,
        status.applied,
        status.revision,
        status.sessions,
        trouble.collect::<String>(),
        table.text(),
    )
}

/// What listeners give those who join begins so: no state of another program is taken for it.
const GIVEN: &[u8] = b"dvs group listen ";

/// The members, if a listener has given this.
fn given(state: &Text) -> Option<Vec<u64>> {
    serde_json::from_slice(state.0.strip_prefix(GIVEN)?).ok()
}

fn listen(options: &ListenOptions) -> Result<()> {
    let mut services = options.options.connect()?;
    let mut left = options.count.unwrap_or(usize::MAX);
    let group = &options.name;
    match services.ask(Op::Join { group: group.clone() })? {
        Reply::Joined { member, .. } => eprintln!("dvs: this is member {member}"),
        other => return unexpected(&other),
    }
    let mut after = 0;
    while left > 0 {
        let (number, item) = match services.ask(Op::Receive { group: group.clone(), after })? {
            Reply::Item { number, item } => (number, item),
            other => return unexpected(&other),
        };
        left -= usize::from(matches!(item, Item::Message { .. }));
        if let Item::View { members, gives: true, .. } = &item {
            // All that a listener knows is who is there.
            let state = Text([GIVEN, &serde_json::to_vec(members)?].concat());
            match services.ask(Op::Give { group: group.clone(), view: number, state })? {
                Reply::Done => {}
                other => return unexpected(&other),
            }
        }
        let item = match item {
            // What a joiner is given by another listener is the view that it begins with.
            Item::State { bytes } => match given(&bytes) {
                Some(members) => Item::View { members, fresh: false, gives: false },
                None => Item::State { bytes },
            },
            item => item,
        };
        say_item(number, item, options.json.json)?;
        after = number;
    }
    Ok(())
}

fn say_item(number: u64, item: Item, json: bool) -> Result<()> {
    if json {
        let object = match item {
            Item::Message { from, bytes } => {
                serde_json::json!({ "number": number, "from": from, "message": bytes })
            }
            Item::View { members, .. } => {
                serde_json::json!({ "number": number, "members": members })
            }
            Item::State { bytes } => serde_json::json!({ "number": number, "state": bytes }),
        };
        return say(&format!("{object}\n"));
    }
    match item {
        Item::Message { from, bytes } => {
            say(&format!("{number}\tmessage\t{from}\t{}\n", String::from_utf8_lossy(&bytes.0)))
        }
        Item::State { .. } => say(&format!("{number}\tstate\n")),
        Item::View { members, .. } => {
            let members: Vec<String> = members.iter().map(u64::to_string).collect();
            say(&format!("{number}\tview\t{}\n", members.join(" ")))
        }
    }
}

fn send(options: &SendOptions) -> Result<()> {
    let mut services = options.options.connect()?;
    match services.ask(Op::Join { group: options.name.clone() })? {
        Reply::Joined { .. } => {}
        other => return unexpected(&other),
    }
    for message in &options.messages {
        send_one(&mut services, &options.name, text(message))?;
    }
    if options.messages.is_empty() {
        for line in std::io::stdin().lock().split(b'\n') {
            send_one(&mut services, &options.name, Text(line?))?;
        }
    }
    Ok(())
}

fn send_one(services: &mut Services, group: &str, bytes: Text) -> Result<()> {
    match services.ask(Op::Cast { group: group.to_owned(), bytes })? {
        Reply::Sent { number } => say(&format!("{number}\n")),
        other => unexpected(&other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_listener_gives_is_taken_for_a_view() {
        let check = |state: &str, expected: Option<Vec<u64>>| {
            assert_eq!(given(&state.into()), expected, "{state}");
        };
        check("dvs group listen [3,4]", Some(vec![3, 4]));
        check("[3,4]", None);
        check("dvs group listen", None);
        check("dvs group listen {}", None);
    }
}
