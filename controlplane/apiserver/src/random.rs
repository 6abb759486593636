//! Owns randomness for names, UIDs and jitter. Must not be used for keys or tokens.

use ring::rand::{SecureRandom as _, SystemRandom};

/// Random bytes. Should the system have none, the clock's lowest digits stand in: names only need to differ.
pub(crate) fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    if SystemRandom::new().fill(&mut out).is_err() {
        let now = jiff::Timestamp::now().as_nanosecond().to_le_bytes();
        for (to, from) in out.iter_mut().zip(now.iter().cycle()) {
            *to = *from;
        }
    }
    out
}

/// A number below `end` (0 when `end` is 0).
pub(crate) fn below(end: u64) -> u64 {
    u64::from_le_bytes(bytes()) % end.max(1)
}
