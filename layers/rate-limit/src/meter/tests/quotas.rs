use super::*;

#[test]
fn a_limit_of_zero_admits_nothing() {
    let quotas = STRATEGIES.map(|strategy| (strategy, Quota::per_second(0)));
    let no_burst = (Strategy::TokenBucket, Quota::per_second(5).burst(0));
    for (strategy, quota) in quotas.into_iter().chain([no_burst]) {
        let meter = Meter::new(strategy, &quota).unwrap();
        let wait = refused(meter.take(&Count::default(), 1, 7));
        assert_eq!(wait, 1_000_000_000);
        assert_eq!(meter.standing(&Count::default(), 7).remaining, 0);
    }
}

#[test]
fn quotas_that_cannot_be_kept_are_errors() {
    let check = |strategy, quota: Quota| Meter::new(strategy, &quota).map(|_| ());
    let bucket = |quota| check(Strategy::TokenBucket, quota);
    assert_eq!(Quota::new(1, Duration::ZERO), Err(QuotaError::ZeroWindow));
    let long = Quota::LONGEST + Duration::from_nanos(1);
    assert_eq!(Quota::new(1, long), Err(QuotaError::LongWindow));
    assert_eq!(
        Quota::new(Quota::MOST + 1, Quota::LONGEST),
        Err(QuotaError::LargeLimit)
    );
    assert_eq!(
        bucket(Quota::per_second(u64::MAX)),
        Err(QuotaError::LargeLimit)
    );
    assert_eq!(
        bucket(Quota::per_second(1 << 32)),
        Err(QuotaError::LargeBurst)
    );
    assert_eq!(bucket(Quota::per_day(1).burst(104)), Ok(()));
    assert_eq!(
        bucket(Quota::per_day(1).burst(105)),
        Err(QuotaError::LargeBurst)
    );
    for strategy in &STRATEGIES[1..] {
        assert_eq!(
            check(*strategy, Quota::per_day(1).burst(2)),
            Err(QuotaError::NoBurst)
        );
    }
    let log = |limit| check(Strategy::SlidingLog, Quota::per_day(limit));
    assert_eq!(log(10_000), Ok(()));
    assert_eq!(log(10_001), Err(QuotaError::LargeLog));
}

#[test]
fn a_bucket_out_of_reach_is_cut_to_what_can_be_kept() {
    for quota in [
        Quota::per_second(u64::MAX).burst(u64::MAX),
        Quota::per_day(1).burst(u64::MAX),
        Quota::new(1, Quota::LONGEST).unwrap().burst(2),
        Quota::new(Quota::MOST, Duration::from_nanos(1)).unwrap(),
    ] {
        let meter = Meter::new(Strategy::TokenBucket, &Meter::within_reach(quota)).unwrap();
        let holds = meter.holds();
        assert!(
            (1..=u64::from(u32::MAX)).contains(&holds),
            "{quota:?}: {holds}"
        );
        let count = taken(&meter, holds, u64::MAX / 4);
        assert!(refused(meter.take(&count, holds, u64::MAX / 4)) > 0);
    }
    let modest = Quota::per_second(50).burst(100);
    assert_eq!(Meter::within_reach(modest), modest);
}

#[test]
fn the_largest_quotas_do_not_overflow() {
    let quota = Quota::new(Quota::MOST, Quota::LONGEST).unwrap();
    for strategy in WINDOWS {
        let meter = Meter::new(strategy, &quota).unwrap();
        let now = u64::MAX / 2;
        let count = taken(&meter, Quota::MOST, now);
        let wait = refused(meter.take(&count, Quota::MOST, now));
        assert!(meter.take(&count, Quota::MOST, now + wait).is_ok());
        assert!(meter.take(&count, Quota::MOST, now + wait - 1).is_err());
        assert_eq!(meter.take(&count, u64::MAX, now), Err(Full::Forever));
        assert_eq!(meter.standing(&count, now).remaining, 0);
    }
}

#[test]
fn a_cost_beyond_the_clock_is_refused_for_good() {
    // 213_505 days of nanoseconds are more than 2^64.
    let meter = Meter::new(Strategy::TokenBucket, &Quota::per_day(1).burst(5)).unwrap();
    for cost in [213_504_u64, 213_505, 213_506, 213_507] {
        assert_eq!(
            meter.take(&Count::default(), cost, 0),
            Err(Full::Forever),
            "{cost}"
        );
    }
}
