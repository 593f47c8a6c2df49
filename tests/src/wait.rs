//! The one way to wait: ask until a condition holds, with a deadline. No test sleeps by itself.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Between two questions, at first; doubled up to `PAUSE_MAX`.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Asks `probe` until it answers with a value, and returns that. The probe's error says what is
/// still missing.
///
/// # Panics
/// When `limit` has passed, with `what` was waited for and the probe's last error.
pub async fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + limit;
    let mut pause = PAUSE_MIN;
    let mut missing = "no answer at all".to_owned();
    loop {
        match timeout_at(deadline, probe()).await {
            Ok(Ok(value)) => return value,
            Ok(Err(reason)) => missing = reason,
            Err(_) => {}
        }
        assert!(
            Instant::now() + pause < deadline,
            "waited {:.0} s for {what}, in vain: {missing}",
            limit.as_secs_f64()
        );
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Lets `limit` pass while `probe` is asked: for claims that something does not happen. The
/// probe's error says what did.
///
/// # Panics
/// As soon as the probe fails, with `what` should have held.
pub async fn throughout(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Result<(), String>,
) {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if let Err(reason) = probe().await {
            panic!("{what} did not hold: {reason}");
        }
        sleep(PAUSE_MAX.min(end.saturating_duration_since(Instant::now()))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waiting ends with the first value, and in vain with what was missing.
    #[tokio::test]
    async fn waiting_ends() {
        let mut asked = 0;
        let count = until("three", Duration::from_secs(5), async || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err("not yet".to_owned()) }
        });
        assert_eq!(count.await, 3);

        let vain = tokio::spawn(async {
            until("ever", Duration::from_millis(30), async || Err::<(), _>("never".to_owned()))
                .await;
        });
        let panic = vain.await.expect_err("it gives up").into_panic();
        let said = panic.downcast_ref::<String>().expect("it says why");
        assert_eq!(said, "waited 0 s for ever, in vain: never");
    }
}
