//! Every bound of the kernel and the daemon, with its reason.

/// Bytes of one replayable answer that a server keeps per lane. Answers with more payload are made
/// by calls that read, which are repeated instead.
pub const KEPT_ANSWER_MAX: usize = m3ipc::limits::PAYLOAD_AREA;
