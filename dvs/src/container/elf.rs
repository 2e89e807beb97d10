//! Which loader a program has, from the front of its file: is there one that loads the shim?

use crate::limits::{PROGRAM_HEADERS_MAX, SCRIPTS_MAX};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How a program file is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its loader reads `/etc/ld.so.preload`.
    Dynamic,
    /// musl's loader reads only the variable `LD_PRELOAD`.
    Musl,
    /// No loader.
    Static,
    /// For another kind of machine than this program.
    Foreign,
    /// Neither ELF nor a script.
    Unknown,
}

/// Longest path of a loader or an interpreter.
const PATH_MAX: usize = 4096;

/// Looks at the program `path`, or if it is a script, at its interpreter.
pub(crate) fn kind(path: &Path) -> Kind {
    let mut path = path.to_owned();
    for _ in 0..SCRIPTS_MAX {
        let Ok(file) = File::open(&path) else { return Kind::Unknown };
        match interpreter(&file) {
            Some(interpreter) => path = interpreter,
            None => return elf_kind(&file).unwrap_or(Kind::Unknown),
        }
    }
    Kind::Unknown
}

/// The interpreter that a script's first line names.
fn interpreter(file: &File) -> Option<PathBuf> {
    let mut front = [0; 256];
    let count = file.read_at(&mut front, 0).ok()?;
    let line = front[..count].strip_prefix(b"#!")?;
    let line = line.split(|byte| *byte == b'\n').next()?;
    let mut words = line.split(|byte| matches!(byte, b' ' | b'\t'));
    let path = words.find(|word| !word.is_empty())?;
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(path)))
}

/// elf(5): the class and machine of the header, and the program header PT_INTERP.
fn elf_kind(file: &File) -> Option<Kind> {
    const CLASS_64: u8 = 2;
    const MACHINE_X86_64: u16 = 62;
    const HEADER: usize = 56;
    const PT_INTERP: u32 = 3;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).ok()?;
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    if head[4] != CLASS_64 || u16_at(&head, 18)? != MACHINE_X86_64 {
        return Some(Kind::Foreign);
    }
    let (offset, size, count) = (u64_at(&head, 32)?, u16_at(&head, 54)?, u16_at(&head, 56)?);
    let total = usize::from(size) * usize::from(count);
    if usize::from(size) < HEADER || total > PROGRAM_HEADERS_MAX {
        return None;
    }
    let mut headers = vec![0; total];
    file.read_exact_at(&mut headers, offset).ok()?;
    for header in headers.chunks_exact(size.into()) {
        if u32_at(header, 0)? == PT_INTERP {
            let length =
                usize::try_from(u64_at(header, 32)?).ok().filter(|len| *len <= PATH_MAX)?;
            let mut path = vec![0; length];
            file.read_exact_at(&mut path, u64_at(header, 8)?).ok()?;
            let musl = path.windows(7).any(|part| part == b"ld-musl");
            return Some(if musl { Kind::Musl } else { Kind::Dynamic });
        }
    }
    Some(Kind::Static)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kind_of(bytes: &[u8]) -> Kind {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        kind(file.path())
    }

    /// A program with one header of `header_type`, whose content is `loader`.
    fn elf(header_type: u32, loader: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 120];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[18] = 62;
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64..68].copy_from_slice(&header_type.to_le_bytes());
        bytes[72] = 120;
        bytes[96] = u8::try_from(loader.len()).unwrap();
        bytes.extend(loader);
        bytes
    }

    #[test]
    fn the_loader_decides() {
        assert_eq!(kind_of(&elf(3, b"/lib64/ld-linux-x86-64.so.2\0")), Kind::Dynamic);
        assert_eq!(kind_of(&elf(3, b"/lib/ld-musl-x86_64.so.1\0")), Kind::Musl);
        assert_eq!(kind_of(&elf(1, b"")), Kind::Static);
        let mut foreign = elf(3, b"/lib/ld-linux.so.2\0");
        foreign[4] = 1;
        assert_eq!(kind_of(&foreign), Kind::Foreign);
        assert_eq!(kind_of(b"hello"), Kind::Unknown);
        assert_eq!(kind(Path::new("/proc/self/exe")), Kind::Dynamic);
    }

    #[test]
    fn a_script_is_what_its_interpreter_is() {
        let program = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(program.path(), elf(1, b"")).unwrap();
        let script = format!("#! {} -x\nexit 0\n", program.path().display());
        assert_eq!(kind_of(script.as_bytes()), Kind::Static);
        let endless = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(endless.path(), format!("#!{}\n", endless.path().display())).unwrap();
        assert_eq!(kind(endless.path()), Kind::Unknown);
    }

    #[test]
    fn a_cut_program_is_unknown() {
        let whole = elf(3, b"/lib64/ld-linux-x86-64.so.2\0");
        for cut in 0..whole.len() {
            assert_eq!(kind_of(&whole[..cut]), Kind::Unknown, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 5..300)) {
            bytes[..5].copy_from_slice(b"\x7fELF\x02");
            kind_of(&bytes);
        }
    }
}
