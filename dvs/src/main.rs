//! `dvs`: the command line of DVS, and by sub-command or by name each of its processes.

mod barrier;
mod cli;
mod container;
mod dc;
mod demo;
mod embedded;
mod exit;
mod files;
mod group;
mod hold;
mod init;
mod ipcs;
mod join;
mod kv;
mod lab;
mod limits;
mod mount;
mod node;
mod place;
mod procfs;
mod ps;
mod quota;
mod run;
mod scrub;
mod server;
mod services;
mod session;
mod shim;
mod snapshot;
mod state;
mod table;
mod terminal;
mod token;
mod top;

use std::process::ExitCode;

fn main() -> ExitCode {
    let (name, command) = cli::parse(std::env::args_os());
    match cli::execute(command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(exit::code(&error))
        }
    }
}
