//! How long replies are taken to be: their sizes are known only when they are there, so a call is
//! made for no more of them than there would be room for if all were as long as the longest lately.
//!
//! Each node's own choice: it decides what is put into one entry or one call of queries, never what
//! comes of it.

use crate::config::limits;

/// What of a long reply is forgotten with each call.
const FORGET_PART: usize = 8;

/// What replies have had lately.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected {
    reply_bytes: usize,
}

impl Expected {
    /// Notes the longest reply of a call.
    pub fn learn(&mut self, longest: usize) {
        let kept = self.reply_bytes - self.reply_bytes.div_ceil(FORGET_PART);
        self.reply_bytes = longest.max(kept);
    }

    /// How many requests the next call may be for.
    pub fn count_max(&self) -> usize {
        let count = limits::CALL_REPLY_BYTES_EXPECTED / self.reply_bytes.max(1);
        count.clamp(1, limits::ENTRY_COMMANDS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Long replies make calls small, at once, and short ones let them grow again.
    #[test]
    fn long_replies_make_calls_small() {
        let mut expected = Expected::default();
        assert_eq!(expected.count_max(), limits::ENTRY_COMMANDS_MAX);
        expected.learn(limits::REPLY_BYTES_MAX);
        assert_eq!(expected.count_max(), 4);
        (0..40).for_each(|_| expected.learn(5));
        assert_eq!(expected.count_max(), limits::ENTRY_COMMANDS_MAX);
    }
}
