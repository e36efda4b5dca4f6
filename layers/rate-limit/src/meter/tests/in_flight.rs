use super::*;

proptest! {
    #[test]
    fn it_admits_while_those_who_have_not_ended_leave_room(
        limit in 0..12_u64,
        steps in vec((1..14_u64, any::<prop::sample::Index>(), any::<bool>()), 1..60),
    ) {
        let meter = Meter::in_flight(limit);
        let (mut count, mut inside) = (Count::default(), Vec::new());
        for (now, (cost, which, ends)) in (0..).zip(steps) {
            let used: u64 = inside.iter().sum();
            match pass(&meter, &mut count, cost, now) {
                Ok(()) => {
                    prop_assert!(used + cost <= limit);
                    inside.push(cost);
                }
                Err(Full::For(_)) => prop_assert!(used + cost > limit),
                Err(Full::Forever) => prop_assert!(cost > limit.max(1)),
            }
            if ends && !inside.is_empty() {
                let cost = inside.swap_remove(which.index(inside.len()));
                meter.give_back(&mut count, cost, 0, now);
            }
            let used: u64 = inside.iter().sum();
            let Standing { remaining, retry_after, reset_after } = meter.standing(&count, now);
            prop_assert_eq!(remaining, limit - used);
            prop_assert_eq!(retry_after > 0, remaining == 0);
            prop_assert_eq!(reset_after > 0, used > 0);
            prop_assert_eq!(meter.is_idle(&count, now), used == 0);
        }
    }
}

#[test]
fn places_are_kept_when_their_number_changes() {
    let (wide, narrow) = (Meter::in_flight(10), Meter::in_flight(4));
    let mut count = taken(&wide, 9, 0);
    narrow.carry(&wide, &mut count, 0);
    assert_eq!(narrow.standing(&count, 0).remaining, 0);
    narrow.give_back(&mut count, 5, 0, 1);
    assert_eq!(narrow.standing(&count, 1).remaining, 0);
    narrow.give_back(&mut count, 1, 0, 1);
    assert_eq!(narrow.standing(&count, 1).remaining, 1);
    // And also while there are none.
    let none = Meter::new(Strategy::InFlight, &Quota::per_second(0)).unwrap();
    none.carry(&narrow, &mut count, 1);
    assert!(refused(none.take(&count, 1, 1)) > 0);
    wide.carry(&none, &mut count, 1);
    assert_eq!(wide.standing(&count, 1).remaining, 7);
}

#[test]
fn nothing_takes_places_that_nobody_gives_back() {
    let meter = Meter::in_flight(4);
    let mut count = taken(&meter, 1, 0);
    meter.drain(&mut count, Some(5), 0);
    meter.raise(&mut count, 4, 0);
    meter.settle(&mut count, 1, 3, 0, 0);
    assert_eq!(meter.standing(&count, 0).remaining, 3);
    meter.settle(&mut count, 1, 0, 0, 0);
    assert!(meter.is_idle(&count, 0));
    let rate = super::meter(Strategy::FixedWindow, 5, 100);
    let mut count = taken(&rate, 5, 0);
    meter.carry(&rate, &mut count, 0);
    assert!(meter.is_idle(&count, 0));
}
