//! How often callers from an address were refused what nobody asks for who belongs here. Who opens
//! a connection for each call gets no new allowance by that.
//!
//! It knows nothing of why a call was refused. **Invariant:** an address from which a caller was
//! welcome lately is never shut out, whoever else calls from it. **Invariant:** it remembers a
//! bounded number of addresses, and a refusal for [`REFILL_INTERVAL`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// Refusals at once after which an address is shut out.
const ALLOWANCE: u32 = 256;
/// Time after which one refusal is forgotten. Who belongs here, and is not known yet, must not have
/// to wait: what a refusal costs is little, at this rate.
const REFILL_INTERVAL: Duration = Duration::from_millis(30);
/// How long a caller is remembered that was welcome.
const WELCOME_FOR: Duration = Duration::from_secs(600);
/// Addresses that are remembered. One more takes the place of the one that was longest silent.
const ADDRESSES_MAX: usize = 1_024;
/// Bits of an IPv6 address that name a network: whoever has one has all addresses in it.
const NETWORK_BITS: u32 = 64;

/// Addresses, by what became of calls from them.
#[derive(Debug, Default)]
pub(super) struct Refusals(BTreeMap<IpAddr, Address>);

#[derive(Clone, Copy, Debug)]
struct Address {
    refused: u32,
    /// Refusals before this are forgotten already.
    counted: Instant,
    welcome: Option<Instant>,
}

impl Address {
    fn new(now: Instant) -> Self {
        Self { refused: 0, counted: now, welcome: None }
    }

    /// Forgets what was long ago.
    fn forget(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted);
        let forgotten = passed.as_millis() / REFILL_INTERVAL.as_millis();
        let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
        self.counted += REFILL_INTERVAL.saturating_mul(forgotten);
        self.refused = self.refused.saturating_sub(forgotten);
        let is_over = |at: &Instant| now.saturating_duration_since(*at) > WELCOME_FOR;
        self.welcome = self.welcome.filter(|at| !is_over(at));
    }

    fn is_forgotten(&self) -> bool {
        self.refused == 0 && self.welcome.is_none()
    }
}

impl Refusals {
    /// A call from there was refused.
    pub(super) fn note_refused(&mut self, from: IpAddr, now: Instant) {
        let address = self.address(from, now);
        address.refused = address.refused.saturating_add(1).min(ALLOWANCE);
    }

    /// A call from there was one of who belongs here.
    pub(super) fn note_welcome(&mut self, from: IpAddr, now: Instant) {
        self.address(from, now).welcome = Some(now);
    }

    /// Whether a connection from there is taken.
    pub(super) fn may_come(&mut self, from: IpAddr, now: Instant) -> bool {
        let Some(address) = self.0.get_mut(&network(from)) else { return true };
        address.forget(now);
        address.refused < ALLOWANCE || address.welcome.is_some()
    }

    fn address(&mut self, from: IpAddr, now: Instant) -> &mut Address {
        let from = network(from);
        if self.0.len() >= ADDRESSES_MAX && !self.0.contains_key(&from) {
            self.make_room(now);
        }
        let address = self.0.entry(from).or_insert_with(|| Address::new(now));
        address.forget(now);
        address
    }

    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, address| {
            address.forget(now);
            !address.is_forgotten()
        });
        let silent = |(_, address): &(&IpAddr, &Address)| (address.welcome, address.counted);
        let silent = self.0.iter().min_by_key(silent).map(|(from, _)| *from);
        if let Some(from) = silent.filter(|_| self.0.len() >= ADDRESSES_MAX) {
            self.0.remove(&from);
        }
    }
}

/// What an address counts as.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(from) => {
            let mask = u128::MAX << (Ipv6Addr::BITS - NETWORK_BITS);
            IpAddr::V6(Ipv6Addr::from_bits(from.to_bits() & mask))
        }
        from @ IpAddr::V4(_) => from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    /// An address is shut out once it was refused as often as it may be, whatever connections it
    /// used; others are not, and it comes back as its refusals are forgotten.
    #[test]
    fn an_address_has_an_allowance() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        for _ in 0..ALLOWANCE {
            assert!(refusals.may_come(address(1), now));
            refusals.note_refused(address(1), now);
        }
        for _ in 0..ALLOWANCE {
            refusals.note_refused(address(1), now);
        }
        assert!(!refusals.may_come(address(1), now) && refusals.may_come(address(2), now));
        assert!(!refusals.may_come(address(1), now + REFILL_INTERVAL / 2));
        assert!(refusals.may_come(address(1), now + REFILL_INTERVAL));
        refusals.note_refused(address(1), now + REFILL_INTERVAL);
        assert!(!refusals.may_come(address(1), now + REFILL_INTERVAL));
    }

    /// Where a member calls from, nobody is shut out, for some time.
    #[test]
    fn a_members_address_is_not_shut_out() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        refusals.note_welcome(address(1), now);
        (0..ALLOWANCE).for_each(|_| refusals.note_refused(address(1), now));
        assert!(refusals.may_come(address(1), now));
        let later = now + WELCOME_FOR + REFILL_INTERVAL;
        (0..ALLOWANCE).for_each(|_| refusals.note_refused(address(1), later));
        assert!(!refusals.may_come(address(1), later));
    }

    /// However many addresses are refused: few are remembered, and those of members stay.
    #[test]
    fn memory_is_bounded() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        refusals.note_welcome(address(0), now);
        for number in 1..10_000 {
            refusals.note_refused(address(number), now);
        }
        assert_eq!(refusals.0.len(), ADDRESSES_MAX);
        assert!(refusals.0.contains_key(&address(0)));
        let later = now + Duration::from_secs(60);
        refusals.note_refused(address(1), later);
        assert_eq!(refusals.0.len(), 2, "the others are forgotten");
    }

    /// A network of IPv6 counts as one address, and IPv4 in IPv6 as itself.
    #[test]
    fn networks_count_as_one() {
        let rows = [
            ("2001:db8:1:2:3::4", "2001:db8:1:2::"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("10.0.0.2", "10.0.0.2"),
        ];
        for (from, expected) in rows {
            assert_eq!(network(from.parse().unwrap()).to_string(), expected);
        }
    }
}
