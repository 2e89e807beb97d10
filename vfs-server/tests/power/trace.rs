//! What strace(1) has recorded, as events on the files of one directory.

use crate::workload::MARK;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The system calls that are recorded: all that change files, or say which file is meant.
pub(crate) const CALLS: &str = "trace=openat,open,creat,close,dup,dup2,dup3,fcntl,write,pwrite64,\
writev,pwritev,pwritev2,lseek,read,fsync,fdatasync,sync_file_range,ftruncate,truncate,fallocate,rename,renameat,\
renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,sendfile,copy_file_range,splice,msync";

/// A file or directory, by the order in which they were made.
pub(crate) type Node = usize;

/// The directory that was watched.
pub(crate) const TOP: Node = 0;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// `Name` in a directory is a new node from now on.
    Make {
        directory: Node,
        name: String,
        node: Node,
        is_directory: bool,
    },
    Remove {
        directory: Node,
        name: String,
    },
    /// In one directory.
    Rename {
        directory: Node,
        from: String,
        to: String,
    },
    Write {
        node: Node,
        offset: u64,
        data: Vec<u8>,
    },
    Truncate {
        node: Node,
        size: u64,
    },
    Punch {
        node: Node,
        offset: u64,
        length: u64,
    },
    /// fsync(2) or fdatasync(2) has returned: what was done to the node before event `since` is on the disk.
    Flushed {
        node: Node,
        since: usize,
    },
    /// A round begins.
    Begin {
        round: usize,
    },
    /// All up to it has been answered as synced.
    Synced {
        round: usize,
    },
}

/// What a descriptor is open for.
#[derive(Clone, Copy, Debug)]
struct Open {
    node: Node,
    offset: u64,
    appends: bool,
}

#[derive(Debug)]
struct Reader<'a> {
    place: &'a Path,
    events: Vec<Event>,
    descriptors: HashMap<i64, Open>,
    /// The nodes of paths below the place, and how long files are.
    nodes: HashMap<PathBuf, Node>,
    sizes: Vec<u64>,
}

/// Reads a log of `strace -f -xx`: the events on what is below `place`, in their order.
///
/// # Panics
/// If a call changes a file in a way that is not known here.
pub(crate) fn read(log: &Path, place: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(log).unwrap();
    let mut reader = Reader {
        place,
        events: Vec::new(),
        descriptors: HashMap::new(),
        nodes: HashMap::from([(place.to_path_buf(), TOP)]),
        sizes: vec![0],
    };
    let mut begun: HashMap<&str, (&str, usize)> = HashMap::new();
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
            // Its number may be another's before it has returned.
            let closed = head.strip_prefix("close(").and_then(|number| number.parse().ok());
            if let Some(number) = closed {
                reader.descriptors.remove(&number);
            } else {
                begun.insert(pid, (head, reader.events.len()));
            }
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((_, tail)) = resumed.split_once(" resumed>") else { continue };
            let Some((head, since)) = begun.remove(pid) else { continue };
            reader.call(&format!("{head}{tail}"), since);
        } else {
            let since = reader.events.len();
            reader.call(rest, since);
        }
    }
    reader.events
}

impl Reader<'_> {
    fn call(&mut self, line: &str, since: usize) {
        // Signals and ends of processes are not calls.
        let Some((name, rest)) = line.split_once('(') else { return };
        let Some((arguments, result)) = rest.rsplit_once(") = ").or_else(|| split_padded(rest))
        else {
            return;
        };
        let result: i64 = match result.split_whitespace().next().and_then(|word| word.parse().ok())
        {
            Some(result) if result >= 0 => result,
            // It has changed nothing.
            _ => return,
        };
        let arguments = split(arguments);
        let number = |at: usize| arguments[at].parse::<i64>().unwrap();
        let unsigned = |at: usize| arguments[at].parse::<u64>().unwrap();
        match name {
            "openat" => self.open(&path(arguments[1]), arguments[2], result),
            "open" => self.open(&path(arguments[0]), arguments[1], result),
            "close" => drop(self.descriptors.remove(&number(0))),
            "dup" | "dup2" | "dup3" => assert!(!self.is_ours(number(0)), "{line}"),
            "fcntl" if arguments[1].starts_with("F_DUPFD") => {
                if let Some(open) = self.descriptors.get(&number(0)).copied() {
                    self.descriptors.insert(result, open);
                }
            }
            "fcntl" => {}
            "lseek" => {
                if let Some(open) = self.descriptors.get_mut(&number(0)) {
                    // Where data and holes are is asked for descriptors with which nothing is written in sequence.
                    open.offset = u64::try_from(result).unwrap();
                }
            }
            "read" => {
                if let Some(open) = self.descriptors.get_mut(&number(0)) {
                    open.offset += u64::try_from(result).unwrap();
                }
            }
            "write" => {
                let data = &bytes(arguments[1])[..usize::try_from(result).unwrap()];
                if number(0) == 1 {
                    self.mark(data);
                } else if let Some(open) = self.descriptors.get(&number(0)).copied() {
                    let end = self.sizes[open.node];
                    let offset = if open.appends { end } else { open.offset };
                    self.write(open.node, offset, data);
                    let after = offset + data.len() as u64;
                    self.descriptors.entry(number(0)).and_modify(|open| open.offset = after);
                }
            }
            "pwrite64" => {
                if let Some(open) = self.descriptors.get(&number(0)).copied() {
                    let data = &bytes(arguments[1])[..usize::try_from(result).unwrap()];
                    self.write(open.node, unsigned(3), data);
                }
            }
            "fsync" | "fdatasync" => {
                if let Some(open) = self.descriptors.get(&number(0)) {
                    self.events.push(Event::Flushed { node: open.node, since });
                }
            }
            "ftruncate" => {
                if let Some(open) = self.descriptors.get(&number(0)).copied() {
                    self.truncate(open.node, unsigned(1));
                }
            }
            "fallocate" => self.allocate(number(0), arguments[1], unsigned(2), unsigned(3)),
            "mkdir" => self.make(&path(arguments[0]), true),
            "mkdirat" => self.make(&path(arguments[1]), true),
            "rename" => self.rename(&path(arguments[0]), &path(arguments[1])),
            "renameat" | "renameat2" => self.rename(&path(arguments[1]), &path(arguments[3])),
            "unlink" | "rmdir" => self.remove(&path(arguments[0])),
            "unlinkat" => self.remove(&self.at(number_or_cwd(arguments[0]), arguments[1])),
            // Of descriptors or paths that are not ours.
            _ => assert!(
                !arguments.iter().any(|one| {
                    one.parse().is_ok_and(|descriptor| self.is_ours(descriptor))
                        || one.starts_with('"') && path(one).starts_with(self.place)
                }),
                "{line}"
            ),
        }
    }

    fn is_ours(&self, descriptor: i64) -> bool {
        self.descriptors.contains_key(&descriptor)
    }

    /// A path that a call gives relative to an open directory.
    fn at(&self, descriptor: Option<i64>, name: &str) -> PathBuf {
        let directory = descriptor.and_then(|descriptor| self.descriptors.get(&descriptor));
        let known = directory.and_then(|open| {
            self.nodes.iter().find(|(_, node)| **node == open.node).map(|(path, _)| path.clone())
        });
        known.unwrap_or_default().join(path(name))
    }

    fn mark(&mut self, data: &[u8]) {
        let Some(text) = std::str::from_utf8(data).ok().and_then(|text| text.strip_prefix(MARK))
        else {
            return;
        };
        let (what, round) = text.trim_end().split_once(' ').unwrap();
        let round = round.parse().unwrap();
        self.events.push(match what {
            "begin" => Event::Begin { round },
            _ => Event::Synced { round },
        });
    }

    fn open(&mut self, path: &Path, flags: &str, descriptor: i64) {
        self.descriptors.remove(&descriptor);
        if !path.starts_with(self.place) {
            return;
        }
        let has = |flag: &str| flags.split('|').any(|one| one == flag);
        assert!(!has("O_TMPFILE"), "{}", path.display());
        if !self.nodes.contains_key(path) {
            assert!(has("O_CREAT"), "{} was never made", path.display());
            self.make(path, false);
        } else if has("O_TRUNC") {
            self.truncate(self.nodes[path], 0);
        }
        let node = self.nodes[path];
        self.descriptors.insert(descriptor, Open { node, offset: 0, appends: has("O_APPEND") });
    }

    /// The directory that a path is in, and its last name; `None` if it is not below the place.
    fn entry(&self, path: &Path) -> Option<(Node, String)> {
        let directory = *self.nodes.get(path.parent()?)?;
        Some((directory, path.file_name()?.to_str()?.to_string()))
    }

    fn make(&mut self, path: &Path, is_directory: bool) {
        let Some((directory, name)) = self.entry(path) else { return };
        let node = self.sizes.len();
        self.sizes.push(0);
        self.nodes.insert(path.to_path_buf(), node);
        self.events.push(Event::Make { directory, name, node, is_directory });
    }

    fn remove(&mut self, path: &Path) {
        if self.nodes.remove(path).is_some() {
            let (directory, name) = self.entry(path).unwrap();
            self.events.push(Event::Remove { directory, name });
        }
    }

    fn rename(&mut self, from: &Path, to: &Path) {
        let Some(node) = self.nodes.remove(from) else {
            assert!(!to.starts_with(self.place), "{} comes from elsewhere", to.display());
            return;
        };
        let below = self.nodes.keys().any(|path| path.starts_with(from));
        assert!(!below, "directory {} is renamed", from.display());
        let ((directory, from), (other, to_name)) =
            (self.entry(from).unwrap(), self.entry(to).unwrap());
        assert_eq!(directory, other, "a file is moved to another directory");
        self.nodes.insert(to.to_path_buf(), node);
        self.events.push(Event::Rename { directory, from, to: to_name });
    }

    fn write(&mut self, node: Node, offset: u64, data: &[u8]) {
        self.sizes[node] = self.sizes[node].max(offset + data.len() as u64);
        self.events.push(Event::Write { node, offset, data: data.to_vec() });
    }

    fn truncate(&mut self, node: Node, size: u64) {
        self.sizes[node] = size;
        self.events.push(Event::Truncate { node, size });
    }

    fn allocate(&mut self, descriptor: i64, mode: &str, offset: u64, length: u64) {
        let Some(open) = self.descriptors.get(&descriptor) else { return };
        let (node, size) = (open.node, self.sizes[open.node]);
        match mode {
            "0" if offset + length > size => self.truncate(node, offset + length),
            "0" | "FALLOC_FL_KEEP_SIZE" => {}
            _ => {
                assert!(mode.contains("FALLOC_FL_PUNCH_HOLE"), "fallocate {mode}");
                self.events.push(Event::Punch { node, offset, length });
            }
        }
    }
}

/// As strace writes short calls: `call(arguments)      = result`.
fn split_padded(rest: &str) -> Option<(&str, &str)> {
    let (arguments, result) = rest.rsplit_once(" = ")?;
    Some((arguments.trim_end().strip_suffix(')')?, result))
}

/// The arguments of a call. Strings are all hexadecimal, so a comma inside brackets is the only trap.
fn split(arguments: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, byte) in arguments.bytes().enumerate() {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            b',' if depth == 0 => {
                parts.push(arguments[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(arguments[from..].trim());
    parts
}

fn number_or_cwd(argument: &str) -> Option<i64> {
    argument.parse().ok()
}

fn path(argument: &str) -> PathBuf {
    PathBuf::from(String::from_utf8(bytes(argument)).unwrap())
}

/// The bytes of a string of `\x..`.
fn bytes(argument: &str) -> Vec<u8> {
    let inside = argument.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let inside = inside.unwrap_or_else(|| panic!("a string that was cut: {:.80}", argument));
    let digits = inside.as_bytes().chunks_exact(4);
    digits.map(|four| (hex(four[2]) << 4) | hex(four[3])).collect()
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => digit - b'a' + 10,
    }
}
