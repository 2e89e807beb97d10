//! Rules on the text of one file: a table of what is looked for, where, and what to do instead.

use super::Finding;
use super::tree::File;

/// One rule: which files, and the lines (from 1; 0 the whole file) that break it, each with the reason.
struct Rule {
    name: &'static str,
    covers: fn(&str) -> bool,
    broken: fn(&File) -> Vec<(usize, String)>,
}

const RULES: &[Rule] = &[
    Rule { name: "head", covers: is_rust, broken: head },
    Rule { name: "name", covers: |_| true, broken: name },
    Rule { name: "sleep", covers: |_| true, broken: sleep },
    Rule { name: "unfinished", covers: is_rust, broken: unfinished },
    Rule { name: "unsafe", covers: is_rust, broken: unsafe_is_announced },
    Rule { name: "purity", covers: is_pure, broken: purity },
    Rule {
        name: "limits",
        covers: |path| path.ends_with("limits.rs"),
        broken: limits_have_reasons,
    },
    Rule { name: "title", covers: |path| path.ends_with(".md"), broken: title },
    Rule { name: "size", covers: |_| true, broken: size },
    Rule { name: "machine", covers: |_| true, broken: machine },
];

/// Where a rule does not hold, and why. A path that ends in `/` covers the folder.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("sleep", "xtask/src/tidy/", "names what it looks for"),
    ("sleep", "dvs/tests/lab.rs", "looks for a state every 10 ms, for a minute at most"),
    (
        "sleep",
        "dvs/tests/failover.rs",
        "its clients pause between two calls, as three nodes share a CPU",
    ),
    ("sleep", "group/tests/simulation/", "its clock is simulated: nobody waits"),
    ("unfinished", "xtask/src/tidy/", "names what it looks for"),
    ("machine", "xtask/src/tidy/", "names what it looks for"),
    (
        "sleep",
        "legacy-tests/src/wait.rs",
        "pauses between two looks at the state that it waits for",
    ),
];

/// Largest file that may be tracked, in bytes: what is bigger is made by a program.
const SIZE_MAX: u64 = 200_000;

pub(crate) fn check(files: &[File]) -> Vec<Finding> {
    files.iter().flat_map(|file| RULES.iter().flat_map(|rule| findings(rule, file))).collect()
}

fn findings(rule: &Rule, file: &File) -> Vec<Finding> {
    if !(rule.covers)(&file.path) || is_exception(rule.name, &file.path) {
        return Vec::new();
    }
    let finding =
        |(line, message)| Finding { rule: rule.name, path: file.path.clone(), line, message };
    (rule.broken)(file).into_iter().map(finding).collect()
}

fn is_exception(rule: &str, path: &str) -> bool {
    let covers = |place: &str| path == place || (place.ends_with('/') && path.starts_with(place));
    EXCEPTIONS.iter().any(|(name, place, _)| *name == rule && covers(place))
}

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

/// The middle: a function of its inputs (ARCHITECTURE.md, invariant 1).
fn is_pure(path: &str) -> bool {
    const PURE: &[&str] = &[
        "dvk/src/kernel.rs",
        "dvk/src/kernel/",
        "dvk/src/frame.rs",
        "dvk/src/server.rs",
        "dvk/src/store.rs",
        "group/src/command.rs",
        "group/src/slots.rs",
        "group/src/slots/",
        "group/src/state.rs",
        "group/src/state/",
        "vfs-server/src/",
        "pm-server/src/",
        "ipc-server/src/",
    ];
    is_rust(path) && !is_test(path) && PURE.iter().any(|pure| path.starts_with(pure))
}

/// Is all of this file a test?
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.starts_with("legacy-tests/")
}

fn head(file: &File) -> Vec<(usize, String)> {
    match file.text.lines().next() {
        Some(line) if line.starts_with("//! ") => Vec::new(),
        _ => vec![(1, "the first line is `//! ` and what the file is for".to_owned())],
    }
}

fn name(file: &File) -> Vec<(usize, String)> {
    let stem =
        file.path.rsplit('/').next().unwrap_or_default().split('.').next().unwrap_or_default();
    let folder = file.path.rsplit('/').nth(1).unwrap_or_default();
    const EMPTY_WORDS: &[&str] = &["util", "utils", "common", "helper", "helpers", "misc"];
    match EMPTY_WORDS.iter().find(|word| **word == stem || **word == folder) {
        Some(word) => vec![(0, format!("`{word}` does not say what is in it"))],
        None => Vec::new(),
    }
}

/// A test waits for a state, not for time.
fn sleep(file: &File) -> Vec<(usize, String)> {
    let calls = if is_rust(&file.path) {
        &["thread::sleep", "time::sleep", "nanosleep"][..]
    } else {
        &["time.sleep", "sleep("][..]
    };
    let lines = if is_test(&file.path) {
        file.text.lines().enumerate().map(|(index, line)| (index + 1, line)).collect()
    } else {
        test_lines(&file.text)
    };
    let shell = is_test(&file.path);
    let bad =
        |line: &str| calls.iter().any(|call| line.contains(call)) || (shell && shell_sleep(line));
    let lines = lines.into_iter().filter(|(_, line)| bad(line));
    lines.map(|(line, _)| (line, "a test waits for a state, not for time".to_owned())).collect()
}

/// `sleep 3` as a command; `sleep infinity` is a process that stays until it is killed.
fn shell_sleep(line: &str) -> bool {
    line.match_indices("sleep ")
        .any(|(at, word)| line[at + word.len()..].starts_with(|c: char| c.is_ascii_digit()))
}

fn unfinished(file: &File) -> Vec<(usize, String)> {
    let words = [
        ("todo!", "what is not there yet is an error that says so"),
        ("unimplemented!", "what is not there yet is an error that says so"),
        ("#[ignore", "a test runs, or is not there"),
        ("//! (to come)", "the head says what the file is for"),
    ];
    let mut broken = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for (_, why) in words.iter().filter(|(word, _)| line.contains(word)) {
            broken.push((index + 1, (*why).to_owned()));
        }
    }
    broken
}

/// A file with `unsafe` says so, with the reason, under its head.
fn unsafe_is_announced(file: &File) -> Vec<(usize, String)> {
    let under_head = file.text.lines().take_while(|line| line.starts_with("//!")).count();
    let late = |(index, line): (usize, &str)| {
        let speaks_of_it = line.contains("(unsafe_code") && line.trim_start().starts_with('#');
        let announces = index == under_head && line.starts_with("#![expect(unsafe_code");
        (speaks_of_it && !announces).then_some(index + 1)
    };
    let message =
        "`#![expect(unsafe_code, reason = …)]` stands under the head of a file, and nowhere else";
    let broken = file.text.lines().enumerate().filter_map(late);
    broken.map(|line| (line, message.to_owned())).collect()
}

fn purity(file: &File) -> Vec<(usize, String)> {
    const IMPURE: &[&str] = &[
        "Instant",
        "SystemTime",
        "HashMap",
        "HashSet",
        "RandomState",
        "std::thread",
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "std::io",
        "rand",
        "getrandom",
        "fastrand",
    ];
    let tests = test_lines(&file.text).first().map_or(usize::MAX, |(line, _)| *line);
    let mut broken = Vec::new();
    for (line, code) in code_of(&file.text).into_iter().take_while(|(line, _)| *line < tests) {
        for word in IMPURE.iter().filter(|word| names(code, word)) {
            broken.push((
                line,
                format!("`{word}` in the pure middle (ARCHITECTURE.md, invariant 1)"),
            ));
        }
    }
    broken
}

fn limits_have_reasons(file: &File) -> Vec<(usize, String)> {
    let lines: Vec<&str> = file.text.lines().map(str::trim_start).collect();
    let is_limit = |line: &str| line.starts_with("pub") && line.contains("const ");
    let bare = |index: &usize| {
        // Two limits without a line between them share their reason.
        let above = lines[..*index].iter().rev().find(|line| !line.starts_with("#["));
        is_limit(lines[*index])
            && !above.is_some_and(|line| line.starts_with("///") || is_limit(line))
    };
    let bare = (0..lines.len()).filter(bare);
    bare.map(|index| (index + 1, "a limit has a doc line with its reason".to_owned())).collect()
}

fn title(file: &File) -> Vec<(usize, String)> {
    let mut fenced = false;
    let mut titles = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        fenced ^= line.starts_with("```");
        if !fenced && line.starts_with("# ") {
            titles.push(index + 1);
        }
    }
    match titles[..] {
        [1] => Vec::new(),
        [] => vec![(1, "no title".to_owned())],
        [first, ..] if first != 1 => vec![(first, "the title is the first line".to_owned())],
        [_, ref more @ ..] => {
            more.iter().map(|line| (*line, "a second title".to_owned())).collect()
        }
    }
}

fn size(file: &File) -> Vec<(usize, String)> {
    if file.size <= SIZE_MAX {
        return Vec::new();
    }
    vec![(0, format!("{} bytes; the most is {SIZE_MAX}", file.size))]
}

/// Paths of the machines that this was written on mean nothing to the reader.
fn machine(file: &File) -> Vec<(usize, String)> {
    const PLACES: &[&str] = &["/work/", "/root/", "/farm", "/tmp/wt"];
    let mut broken = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        for place in PLACES.iter().filter(|place| starts_a_path(line, place)) {
            broken.push((index + 1, format!("{place} is a path of one machine")));
        }
    }
    broken
}

/// Does `place` stand in `line` as an absolute path, not as the middle of a longer one?
fn starts_a_path(line: &str, place: &str) -> bool {
    let inside = |c: char| c.is_ascii_alphanumeric() || "._-}*~".contains(c);
    line.match_indices(place).any(|(at, _)| !line[..at].ends_with(inside))
}

/// The lines without what a `//` comment says, with their numbers.
pub(crate) fn code_of(text: &str) -> Vec<(usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
        .collect()
}

/// The lines from the file's test module on (house style: it is the last item).
fn test_lines(text: &str) -> Vec<(usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line));
    lines.skip_while(|(_, line)| !line.starts_with("#[cfg(test)]")).collect()
}

/// Does `word` stand in `code` as a word of its own?
fn names(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies one rule to one file and compares the lines that break it.
    fn check(rule: &str, path: &str, text: &str, expected: &[usize]) {
        let rule = RULES.iter().find(|row| row.name == rule).expect("a row of RULES");
        let file = File { path: path.to_owned(), size: text.len() as u64, text: text.to_owned() };
        let lines: Vec<usize> = findings(rule, &file).iter().map(|finding| finding.line).collect();
        assert_eq!(lines, expected, "{path}:\n{text}");
    }

    #[test]
    fn a_file_says_first_what_it_is_for() {
        check("head", "a/src/b.rs", "//! What b is for.\nuse c;", &[]);
        check("head", "a/src/b.rs", "use c;\n//! What b is for.", &[1]);
        check("head", "a/src/b.rs", "//!\n//! What b is for.", &[1]);
        check("head", "a/src/b.rs", "", &[1]);
    }

    #[test]
    fn a_name_says_what_is_in_the_file() {
        check("name", "a/src/lock.rs", "", &[]);
        check("name", "a/src/utils.rs", "", &[0]);
        check("name", "a/src/common/lock.rs", "", &[0]);
        check("name", "a/tests/helpers.py", "", &[0]);
        check("name", "misc.md", "", &[0]);
        check("name", "a/src/commonplace.rs", "", &[]);
    }

    #[test]
    fn a_test_does_not_wait_for_time() {
        check("sleep", "a/tests/b.rs", "//! b\nstd::thread::sleep(SECOND);", &[2]);
        check(
            "sleep",
            "a/src/b.rs",
            "//! b\n#[cfg(test)]\nmod tests {\n    thread::sleep(SECOND);",
            &[4],
        );
        check("sleep", "a/src/b.rs", "//! b\nthread::sleep(PAUSE);", &[]);
        check(
            "sleep",
            "a/src/b.rs",
            "//! b\n#[cfg(test)]\nmod tests {\n    row(\"sleep 9\");",
            &[],
        );
        check("sleep", "a/tests/b.rs", "//! b\nbell.sleep(ticket, None);", &[]);
        check("sleep", "legacy-tests/programs/a.py", "import time\ntime.sleep(1)", &[2]);
        check("sleep", "legacy-tests/programs/a.c", "sleep(1);", &[1]);
        check("sleep", "legacy-tests/tests/a.rs", "sh(\"sleep 3; cat a\")", &[1]);
        check("sleep", "legacy-tests/tests/a.rs", "sh(\"sleep infinity\")", &[]);
    }

    #[test]
    fn nothing_is_left_unfinished() {
        check("unfinished", "a/src/b.rs", "//! b\nfn f() { todo!() }", &[2]);
        check("unfinished", "a/src/b.rs", "//! b\nfn f() { unimplemented!() }", &[2]);
        check("unfinished", "a/src/b.rs", "//! b\n#[test]\n#[ignore]", &[3]);
        check("unfinished", "a/src/b.rs", "//! b\n#[ignore = \"slow\"]", &[2]);
        check("unfinished", "a/src/b.rs", "//! (to come)", &[1]);
    }

    #[test]
    fn unsafe_is_announced_under_the_head() {
        let announced = "//! b\n#![expect(unsafe_code, reason = \"r\")]\n";
        check("unsafe", "a/src/b.rs", announced, &[]);
        check(
            "unsafe",
            "a/src/b.rs",
            "//! b\n//! more\n#![expect(unsafe_code, reason = \"r\")]",
            &[],
        );
        check("unsafe", "a/src/b.rs", "//! b\n\n#![expect(unsafe_code, reason = \"r\")]", &[3]);
        check("unsafe", "a/src/b.rs", "//! b\n#![allow(unsafe_code)]", &[2]);
        check("unsafe", "a/src/b.rs", "//! b\nuse c;\n#[expect(unsafe_code)]", &[3]);
    }

    #[test]
    fn the_middle_is_pure() {
        for bad in [
            "use std::time::Instant;",
            "let m: HashMap<u8, u8>;",
            "rand::random()",
            "std::fs::read(p)",
        ] {
            check("purity", "vfs-server/src/lib.rs", &format!("//! v\n{bad}"), &[2]);
            check("purity", "dvk/src/kernel/remote.rs", &format!("//! v\n{bad}"), &[2]);
            check("purity", "dvk/src/dvkd/remote.rs", &format!("//! v\n{bad}"), &[]);
            check("purity", "ipc-server/tests/t.rs", &format!("//! v\n{bad}"), &[]);
            check(
                "purity",
                "pm-server/src/lib.rs",
                &format!("//! v\n#[cfg(test)]\nmod tests {{ {bad} }}"),
                &[],
            );
        }
        check(
            "purity",
            "vfs-server/src/lib.rs",
            "//! v\n// No HashMap here.\nlet operand = Instantly;",
            &[],
        );
    }

    #[test]
    fn a_limit_has_its_reason() {
        check("limits", "a/src/limits.rs", "//! l\n/// Why.\npub const A: u8 = 1;", &[]);
        check("limits", "a/src/limits.rs", "//! l\n/// Why.\n#[cfg(x)]\npub const A: u8 = 1;", &[]);
        check(
            "limits",
            "a/src/limits.rs",
            "//! l\n/// Why.\npub const A: u8 = 1;\npub const B: u8 = 1;",
            &[],
        );
        check("limits", "a/src/limits.rs", "//! l\n\npub(crate) const A: u8 = 1;", &[3]);
    }

    #[test]
    fn a_page_has_one_title() {
        check("title", "a.md", "# A\n\n## b\n\n```sh\n# not a title\n```\n", &[]);
        check("title", "a.md", "# A\n\n# B\n", &[3]);
        check("title", "a.md", "text\n# A\n", &[2]);
        check("title", "a.md", "text\n", &[1]);
    }

    #[test]
    fn a_big_file_is_refused() {
        check("size", "a.bin", &"x".repeat(200_000), &[]);
        check("size", "a.bin", &"x".repeat(200_001), &[0]);
    }

    #[test]
    fn no_file_names_a_path_of_one_machine() {
        check("machine", "a.sh", "cd /work/main", &[1]);
        check("machine", "a.sh", "x\ncp \"/root/a\" b", &[2]);
        check("machine", "a.sh", "ls target/work/ ${HOME}/work/ /dvs/farm", &[]);
    }

    #[test]
    fn an_exception_holds_for_its_rule_and_place_only() {
        check("sleep", "legacy-tests/src/wait.rs", "//! w\nthread::sleep(PAUSE);", &[]);
        check("sleep", "legacy-tests/src/lab.rs", "//! w\nthread::sleep(PAUSE);", &[2]);
        check("unfinished", "legacy-tests/src/wait.rs", "//! w\ntodo!()", &[2]);
    }
}
