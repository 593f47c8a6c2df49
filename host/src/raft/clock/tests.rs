//! The clock, with a monotonic and a wall clock that are set by hand.

use std::sync::Arc;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3_600);
/// Some day in 2026, in milliseconds.
const TODAY: TimeMs = 1_790_000_000_000;

/// Clocks that stand still until a test moves them.
#[derive(Clone)]
struct Hands(Arc<Mutex<(Duration, Option<Duration>)>>);

impl Source for Hands {
    fn monotonic(&self) -> Duration {
        self.0.lock().unwrap().0
    }

    fn wall(&self) -> Option<Duration> {
        self.0.lock().unwrap().1
    }
}

impl Hands {
    fn at(wall_ms: TimeMs) -> Self {
        let wall = Some(Duration::from_millis(wall_ms));
        Self(Arc::new(Mutex::new((Duration::ZERO, wall))))
    }

    fn clock(&self) -> Clock {
        Clock::new(Box::new(self.clone())).unwrap()
    }

    /// Lets time pass on both clocks.
    fn pass(&self, time: Duration) {
        let mut hands = self.0.lock().unwrap();
        hands.0 += time;
        hands.1 = hands.1.map(|wall| wall + time);
    }

    /// Sets the wall clock alone.
    fn set_wall(&self, change: impl FnOnce(Duration) -> Duration) {
        let mut hands = self.0.lock().unwrap();
        hands.1 = hands.1.map(change);
    }
}

/// Lets a leader run: it looks at its clocks five times a second.
fn run(clock: &Clock, hands: &Hands, time: Duration) -> TimeMs {
    let step = Duration::from_millis(200);
    for _ in 0..time.as_millis() / step.as_millis() {
        hands.pass(step);
        clock.look(true, 0);
    }
    clock.stamp_now(0)
}

fn check_near(time_ms: TimeMs, expected: TimeMs, within: TimeMs) {
    assert!(time_ms.abs_diff(expected) <= within, "{time_ms}, expected {expected} +- {within}");
}

/// A leader whose wall clock is a day, or 70 years, ahead or behind for a second stamps next to
/// nothing of it, and says so; when the clock is right again, so is the time.
#[test]
fn a_wall_clock_that_jumps_for_a_second_changes_nothing() {
    for (jump, ahead) in
        [(DAY, true), (DAY, false), (70 * 365 * DAY, true), (40 * 365 * DAY, false)]
    {
        let hands = Hands::at(TODAY);
        let clock = hands.clock();
        clock.begin(TODAY, TODAY);
        run(&clock, &hands, SECOND);
        hands.set_wall(|wall| if ahead { wall + jump } else { wall - jump });
        let during = run(&clock, &hands, SECOND);
        check_near(during, TODAY + 2_000, 10);
        let alarm = clock.alarm().unwrap();
        let side = if ahead { "ahead of the time" } else { "behind the time" };
        let seconds = format!("{} s ", jump.as_secs());
        assert!(alarm.contains(side) && alarm.contains(&seconds), "{alarm}");
        hands.set_wall(|wall| if ahead { wall - jump } else { wall + jump });
        check_near(run(&clock, &hands, 10 * SECOND), TODAY + 12_000, 0);
        assert!(clock.alarm().unwrap().contains("s ago"), "it is remembered for a while");
        run(&clock, &hands, 61 * SECOND);
        assert_eq!(clock.alarm(), None);
    }
}

/// A jump at the moment at which somebody looks after a long while moves the time by no more than
/// at any other.
#[test]
fn a_long_silence_is_no_leave_to_jump() {
    let hands = Hands::at(TODAY);
    let clock = hands.clock();
    clock.begin(TODAY, TODAY);
    hands.pass(10 * 3_600 * SECOND);
    hands.set_wall(|wall| wall + DAY);
    check_near(clock.stamp_now(0), TODAY + 10 * 3_600_000, 10);
}

/// A wall clock that is off is approached by one part in a hundred, from both sides.
#[test]
fn the_wall_clock_pulls_at_a_bounded_rate() {
    for (ahead, expected) in [(true, TODAY + 101_000), (false, TODAY + 99_000)] {
        let hands = Hands::at(TODAY);
        let clock = hands.clock();
        clock.begin(TODAY, TODAY);
        hands.set_wall(|wall| if ahead { wall + DAY } else { wall - DAY });
        check_near(run(&clock, &hands, 100 * SECOND), expected, 1);
    }
    let hands = Hands::at(TODAY);
    let clock = hands.clock();
    clock.begin(TODAY, TODAY);
    hands.set_wall(|wall| wall + SECOND);
    check_near(run(&clock, &hands, 200 * SECOND), TODAY + 201_000, 0);
    assert_eq!(clock.alarm(), None, "a second is within what clocks differ by");
}

/// What is stamped never goes back, whatever the clocks do, whatever the leader before stamped, and
/// whatever others say of the time.
#[test]
fn time_never_goes_back() {
    let hands = Hands::at(TODAY);
    let clock = hands.clock();
    clock.begin(TODAY, TODAY);
    let mut random = fastrand::Rng::with_seed(7);
    let mut applied = 0;
    let mut last = 0;
    for _ in 0..10_000 {
        hands.pass(Duration::from_micros(random.u64(0..3_000_000)));
        match random.u8(0..6) {
            0 => hands.set_wall(|_| Duration::from_millis(random.u64(0..2 * TODAY))),
            1 => clock.learn(random.u64(TODAY - 1_000_000..TODAY + 1_000_000)),
            2 => applied = random.u64(0..TODAY + 2_000_000),
            3 => drop(clock.set_to_wall().unwrap()),
            _ => {}
        }
        let stamped = clock.stamp_now(applied);
        assert!(stamped >= last && stamped >= applied, "{stamped} after {last}, {applied}");
        last = stamped;
    }
}

/// A follower that learned the time goes on with it, and so leads with it: not with its own wall
/// clock, nor with the time of the last entry, which may be hours old.
#[test]
fn a_new_leader_goes_on_with_the_time_that_it_learned() {
    let hands = Hands::at(TODAY + 3_600_000);
    let clock = hands.clock();
    assert_eq!(clock.time_ms(), None);
    clock.learn(TODAY);
    for _ in 0..50 {
        hands.pass(SECOND);
        clock.look(false, TODAY - 7_000_000);
    }
    assert_eq!(clock.time_ms(), Some(TODAY + 50_000), "a follower is not pulled");
    assert_eq!(clock.stamp_now(TODAY - 7_000_000), TODAY + 50_000);
    assert!(clock.alarm().unwrap().contains("3600 s ahead"), "{:?}", clock.alarm());
}

/// When no node ran, the time goes on with the wall clocks, but for a jump that nobody believes.
#[test]
fn after_a_stop_of_all_nodes_the_wall_clocks_tell() {
    let days = |days: TimeMs| days * 24 * 3_600_000;
    for (last, wall, expected) in [
        (0, TODAY, TODAY),
        (TODAY, TODAY + days(6), TODAY + days(6)),
        (TODAY, TODAY + days(8), TODAY),
        (TODAY, TODAY - days(1), TODAY),
    ] {
        let clock = Hands::at(wall).clock();
        clock.begin(last, wall);
        assert_eq!(clock.time_ms(), Some(expected), "{last}, {wall}");
    }
}

/// The repair: the time becomes that of the wall clock at once where that is later, and stands
/// still until then where it is earlier.
#[test]
fn the_time_can_be_set_to_the_wall_clock() {
    let hands = Hands::at(TODAY);
    let clock = hands.clock();
    clock.begin(TODAY, TODAY);
    hands.set_wall(|wall| wall + DAY);
    let day = TimeMs::try_from(DAY.as_millis()).unwrap();
    let set = clock.set_to_wall().unwrap();
    assert_eq!((set.before_ms, set.now_ms, set.stands_still_ms), (TODAY, TODAY + day, 0));
    assert_eq!(clock.stamp_now(0), TODAY + day);
    assert_eq!(clock.alarm(), None);

    hands.set_wall(|wall| wall - 100 * SECOND);
    let set = clock.set_to_wall().unwrap();
    assert_eq!((set.now_ms, set.stands_still_ms), (TODAY + day, 100_000));
    assert_eq!(run(&clock, &hands, 99 * SECOND), TODAY + day, "it stands still");
    check_near(run(&clock, &hands, 11 * SECOND), TODAY + day + 10_000, 300);
}

/// A machine whose clock is before 1970 has no time to tell.
#[test]
fn a_clock_before_1970_is_refused() {
    let hands = Hands::at(TODAY);
    hands.0.lock().unwrap().1 = None;
    assert_eq!(Clock::new(Box::new(hands)).err(), Some(BeforeEpoch));
}

/// Whoever stamps waits until the time is known; without an answer it stands at that of the last
/// entry rather than following this wall clock alone.
#[tokio::test]
async fn a_leader_that_does_not_know_the_time_waits_for_it() {
    let hands = Hands::at(TODAY + 5_000_000);
    let clock = Arc::new(hands.clock());
    assert_eq!(clock.stamp(TODAY).await, TODAY);
    let stamping = tokio::spawn({
        let clock = Arc::clone(&clock);
        async move { clock.stamp(TODAY).await }
    });
    tokio::task::yield_now().await;
    clock.learn(TODAY + 70);
    assert_eq!(stamping.await.unwrap(), TODAY + 70);
}
