//! Unmodified programs on a real lab: see README.md.
