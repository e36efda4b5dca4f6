//! One rule alone takes a shorter way to the same decisions.

use palisade_core::{
    gate::Gate,
    key::{self, ExtractKey},
};
use proptest::{prelude::*, strategy::Strategy as _};

use super::*;
use crate::{Headers, MissingKey, Strategy};

const USERS: [&str; 3] = ["alice", "bob", ""];

#[derive(Clone, Copy, Debug)]
enum Act {
    /// Who comes, at which cost, and whether it stays.
    Ask(usize, u64, bool),
    End(Verdict),
    Wait(u64),
    Reset,
}

fn act() -> impl proptest::strategy::Strategy<Value = Act> {
    let ask = (0..USERS.len(), 0..4_u64, any::<bool>());
    let verdict = prop_oneof![
        Just(Verdict::Success),
        Just(Verdict::Unsent),
        Just(Verdict::Canceled),
        Just(Verdict::Overload { retry_after: None }),
    ];
    prop_oneof![
        6 => ask.prop_map(|(user, cost, stays)| Act::Ask(user, cost, stays)),
        2 => verdict.prop_map(Act::End),
        2 => (0..400_u64).prop_map(Act::Wait),
        1 => Just(Act::Reset),
    ]
}

fn rule(at: usize, mode: Mode) -> Rule {
    let quota = Quota::new(5, 400 * MS).unwrap();
    let rule = match at {
        0 => Rule::in_flight("rule", 3),
        1 => Rule::new("rule", quota).drain_on_overload(),
        _ => Rule::new("rule", quota),
    };
    let rule = match at {
        3 => rule.strategy(Strategy::FixedWindow),
        4 => rule.strategy(Strategy::SlidingWindow),
        5 => rule.strategy(Strategy::SlidingLog),
        _ => rule,
    };
    let cost = |head: &RequestHead<'_>| head.headers["x-cost"].to_str().unwrap().parse().unwrap();
    let rule = if at == 0 { rule } else { rule.cost(cost) };
    rule.mode(mode)
        .key(key::header("x-user-id"))
        .missing_key(MissingKey::Deny)
}

fn asked(user: &str, cost: u64) -> Request<()> {
    let request = match user {
        "" => Request::builder(),
        user => Request::builder().header("x-user-id", user),
    };
    request.header("x-cost", cost).body(()).unwrap()
}

/// What it decides, and all that can be seen of it after each step.
fn run(limit: &RateLimit, acts: &[Act]) -> Vec<String> {
    let (mut now, mut held, mut seen) = (time::now(), Vec::new(), Vec::new());
    for act in acts {
        match *act {
            Act::Ask(user, cost, stays) => {
                let request = asked(USERS[user], cost);
                let Admit::Now(decided) = limit.admit(&(&request).into(), now) else {
                    panic!("nobody waits");
                };
                seen.push(match &decided {
                    Ok(_) => "admitted".into(),
                    Err(rejected) => format!("{:?} {:?}", rejected.reason(), rejected.delay()),
                });
                held.extend(decided.ok().filter(|_| stays));
            }
            Act::End(verdict) => {
                if let Some(mut reservation) = held.pop()
                    && !reservation.settle_untimed(verdict)
                {
                    reservation.finish(&End::new(verdict), now);
                }
            }
            Act::Wait(millis) => now += MS * u32::try_from(millis).unwrap(),
            Act::Reset => {
                let request = asked(USERS[0], 1);
                let head = RequestHead::from(&request);
                let key = key::header("x-user-id");
                limit.handle().reset(None, &key.key(&head).unwrap());
            }
        }
        let rule = &limit.handle().snapshot().rules[0];
        // Not the keys: which idle ones are let go depends on where their hashes lie.
        let counts = (rule.admitted, rule.refused, rule.shadowed);
        seen.push(format!("{counts:?}"));
    }
    seen
}

proptest! {
    #[test]
    fn it_decides_as_among_others(
        acts in proptest::collection::vec(act(), 0..60),
        at in 0..6_usize,
        shadow in any::<bool>(),
        headers in prop_oneof![Just(Headers::Off), Just(Headers::Standard)],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let _entered = runtime.enter();
        let mode = if shadow { Mode::Shadow } else { Mode::Enforce };
        // Applies to nobody.
        let other = Rule::new("other", Quota::per_hour(1))
            .key(key::header("x-nobody"))
            .missing_key(MissingKey::Skip);
        let alone = RateLimit::rules([rule(at, mode)]).unwrap().headers(headers);
        let among = RateLimit::rules([rule(at, mode), other]).unwrap().headers(headers);
        prop_assert_eq!(run(&alone, &acts), run(&among, &acts));
    }
}
