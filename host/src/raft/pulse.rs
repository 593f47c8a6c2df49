//! Tells when this process did not get to run: then its heartbeats were late, through no fault of
//! a guest, the disk or the network, and a change of leader has its cause here.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// Wakes up as often as a leader sends heartbeats, on the same threads, and logs each time that it
/// was so late that half of the time is gone after which followers elect another leader.
pub async fn watch(heartbeat: Duration, election_timeout: Duration) {
    let mut pulse = Pulse::new(heartbeat, election_timeout / 2);
    loop {
        let late = pulse.beat().await;
        if let Some(late) = late {
            let late_ms = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(late_ms, "heartbeats were late: this process did not get to run");
        }
    }
}

struct Pulse {
    interval: tokio::time::Interval,
    /// What is later than this is worth a line.
    limit: Duration,
}

impl Pulse {
    fn new(heartbeat: Duration, limit: Duration) -> Self {
        let mut interval = tokio::time::interval(heartbeat);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, limit }
    }

    /// Waits for the next beat; how late it came, if that is too late.
    async fn beat(&mut self) -> Option<Duration> {
        let due = self.interval.tick().await;
        Some(Instant::now() - due).filter(|late| *late > self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beats that come in time are silent, one that does not says by how much, once.
    #[tokio::test(start_paused = true)]
    async fn late_beats_are_told() {
        let (heartbeat, limit) = (Duration::from_millis(100), Duration::from_millis(250));
        let mut pulse = Pulse::new(heartbeat, limit);
        for _ in 0..3 {
            assert_eq!(pulse.beat().await, None);
        }
        // The clock goes on and nobody asks for the beat.
        tokio::time::advance(heartbeat + limit).await;
        assert_eq!(pulse.beat().await, None, "just in time");
        tokio::time::advance(heartbeat + Duration::from_millis(900)).await;
        assert_eq!(pulse.beat().await, Some(Duration::from_millis(900)));
        assert_eq!(pulse.beat().await, None);
    }
}
