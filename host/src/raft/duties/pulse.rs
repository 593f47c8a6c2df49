//! Tells when this process did not get to run: then its heartbeats were late, through no fault of
//! a guest, the disk or the network, and a change of leader has its cause here.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// Wakes up as often as a leader sends heartbeats, on the same threads, and logs each time that it
/// was so late that half of the time is gone after which followers elect another leader.
pub async fn watch(heartbeat: Duration, election_timeout: Duration) {
    let mut interval = tokio::time::interval(heartbeat);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let due = interval.tick().await;
        if let Some(late_ms) = too_late_ms(due, Instant::now(), election_timeout) {
            tracing::warn!(late_ms, "heartbeats were late: this process did not get to run");
        }
    }
}

/// By how much a heartbeat was late, if that is worth a line.
fn too_late_ms(due: Instant, now: Instant, election_timeout: Duration) -> Option<u64> {
    let late = now.saturating_duration_since(due);
    (late > election_timeout / 2).then(|| u64::try_from(late.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A beat that comes within half of the election timeout is silent, a later one says how late
    /// it was.
    #[test]
    fn late_beats_are_told() {
        let (due, timeout) = (Instant::now(), Duration::from_millis(500));
        for (late_ms, told) in [(0, None), (250, None), (251, Some(251)), (90_000, Some(90_000))] {
            let now = due + Duration::from_millis(late_ms);
            assert_eq!(too_late_ms(due, now, timeout), told, "{late_ms} ms");
        }
        assert_eq!(too_late_ms(due + timeout, due, timeout), None, "a clock that has stood still");
    }
}
