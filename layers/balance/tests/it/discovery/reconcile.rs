use std::{collections::BTreeMap, sync::Arc};

use palisade_balance::{
    Endpoint, EndpointState, Endpoints, Health,
    discover::{Target, TargetState},
};
use palisade_core::attempt::EndpointId;
use proptest::prelude::*;
use tokio::task::JoinSet;

use super::{World, serving};
use crate::support::{Fake, MS, balance, in_flight, of, send, state};

fn named(names: &[&str]) -> Vec<Target> {
    names.iter().map(|&name| Target::new(name)).collect()
}

fn sorted(names: &[Arc<str>]) -> Vec<&str> {
    let mut names: Vec<_> = names.iter().map(|name| &**name).collect();
    names.sort_unstable();
    names
}

#[tokio::test(start_paused = true)]
async fn what_is_new_comes_and_what_is_gone_finishes_what_it_has() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let service = balance(&endpoints);
    let mut reconciler = endpoints.reconciler("test", world.make());
    let changes = reconciler.reconcile(&named(&["a", "b"]));
    assert_eq!(sorted(&changes.added), ["a", "b"]);
    world.at("a").now(1000, http::StatusCode::OK);
    world.at("b").now(1000, http::StatusCode::OK);
    let mut sent = JoinSet::new();
    for _ in 0..4 {
        let service = service.clone();
        sent.spawn(async move { send(&service).await.unwrap() });
    }
    tokio::time::sleep(MS).await;

    let changes = reconciler.reconcile(&named(&["b", "c"]));
    assert_eq!(
        (sorted(&changes.added), sorted(&changes.removed)),
        (vec!["c"], vec!["a"])
    );
    assert_eq!(serving(&endpoints), ["b", "c"]);
    assert_eq!(state(&endpoints, "a"), EndpointState::Draining);
    assert_eq!(sent.join_all().await.len(), 4);
    assert_eq!(endpoints.snapshot().len(), 2, "a has left");
    assert!(
        reconciler.reconcile(&named(&["c", "b"])).is_empty(),
        "order says nothing"
    );
}

#[tokio::test(start_paused = true)]
async fn a_change_in_place_keeps_what_the_endpoint_has_learnt() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let mut reconciler = endpoints.reconciler("test", world.make());
    reconciler.reconcile(&named(&["a"]));
    send(&balance(&endpoints)).await.unwrap();
    let before = of(&endpoints, "a");

    let changes = reconciler.reconcile(&[Target::new("a").weight(2.0).max_in_flight(7)]);
    assert_eq!(sorted(&changes.changed), ["a"]);
    let after = of(&endpoints, "a");
    assert_eq!((after.weight, after.max_in_flight), (2.0, Some(7)));
    assert_eq!(
        (after.id, after.latency, after.requests),
        (before.id, before.latency, 1)
    );
    assert!(before.latency.is_some());

    reconciler.reconcile(&named(&["a"]));
    let back = of(&endpoints, "a");
    assert_eq!(
        (back.weight, back.max_in_flight, back.id),
        (1.0, None, before.id)
    );
}

#[tokio::test(start_paused = true)]
async fn what_a_target_leaves_open_is_as_the_endpoint_was_made() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let make = move |target: &Target| {
        Endpoint::new("any name", world.at(&target.address))
            .weight(3.0)
            .max_in_flight(9)
    };
    let mut reconciler = endpoints.reconciler("test", make);
    for (target, weight, most) in [
        (Target::new("a"), 3.0, 9),
        (Target::new("a").weight(2.0), 2.0, 9),
        (Target::new("a").max_in_flight(4), 3.0, 4),
        (Target::new("a").weight(f64::NAN).max_in_flight(0), 1.0, 1),
        (Target::new("a"), 3.0, 9),
    ] {
        reconciler.reconcile(&[target]);
        let now = of(&endpoints, "a");
        assert_eq!((now.weight, now.max_in_flight), (weight, Some(most)));
    }
}

#[tokio::test(start_paused = true)]
async fn zones_and_priorities_change_in_place_and_requests_go_where_they_say() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    endpoints.set_zone("near");
    let service = balance(&endpoints);
    let made = world.clone();
    let make = move |target: &Target| {
        Endpoint::new("any name", made.at(&target.address))
            .zone("far")
            .priority(1)
    };
    let mut reconciler = endpoints.reconciler("test", make);
    let (a, b) = (|| Target::new("a"), || Target::new("b"));
    let mut id = None;
    for (targets, place, chosen) in [
        ([a().zone("near").priority(0), b()], ("near", 0), "a"),
        ([a(), b().priority(0)], ("far", 1), "b"),
        ([a().zone("near"), b()], ("near", 1), "a"),
    ] {
        reconciler.reconcile(&targets);
        let now = of(&endpoints, "a");
        assert_eq!(
            (now.zone.as_deref(), now.priority),
            (Some(place.0), place.1)
        );
        assert_eq!(*id.get_or_insert(now.id), now.id);
        let before = (world.at("a").calls(), world.at("b").calls());
        for _ in 0..10 {
            send(&service).await.unwrap();
        }
        let calls = (
            world.at("a").calls() - before.0,
            world.at("b").calls() - before.1,
        );
        assert_eq!(calls, if chosen == "a" { (10, 0) } else { (0, 10) });
    }
}

#[tokio::test(start_paused = true)]
async fn another_address_or_label_of_the_same_name_puts_another_endpoint_in_its_place() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let mut reconciler = endpoints.reconciler("test", world.make());
    let at = |address: &str| Target::new(address).named("a");
    reconciler.reconcile(&[at("10.0.0.1:1")]);
    let first = of(&endpoints, "a").id;
    let changes = reconciler.reconcile(&[at("10.0.0.2:1")]);
    assert_eq!(sorted(&changes.replaced), ["a"]);
    assert!(changes.added.is_empty() && changes.removed.is_empty() && changes.changed.is_empty());
    send(&balance(&endpoints)).await.unwrap();
    assert_eq!(
        (
            world.at("10.0.0.1:1").calls(),
            world.at("10.0.0.2:1").calls()
        ),
        (0, 1)
    );
    let second = of(&endpoints, "a").id;
    let changes = reconciler.reconcile(&[at("10.0.0.2:1").label("model", "large")]);
    assert_eq!(sorted(&changes.replaced), ["a"]);
    let third = of(&endpoints, "a").id;
    assert!(first != second && second != third && endpoints.len() == 1);
}

#[tokio::test(start_paused = true)]
async fn endpoints_of_others_are_not_touched() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let mine = endpoints.insert(Endpoint::new("mine", Fake::new(1)));
    let mut one = endpoints.reconciler("one", world.make());
    let mut two = endpoints.reconciler("two", world.make());
    let changes = one.reconcile(&named(&["a", "mine"]));
    assert_eq!(
        (sorted(&changes.added), sorted(&changes.taken)),
        (vec!["a"], vec!["mine"])
    );
    let changes = two.reconcile(&named(&["a", "b"]));
    assert_eq!(
        (sorted(&changes.added), sorted(&changes.taken)),
        (vec!["b"], vec!["a"])
    );
    two.reconcile(&[]);
    assert_eq!(serving(&endpoints), ["a", "mine"]);
    one.reconcile(&[]);
    assert_eq!(of(&endpoints, "mine").id, mine);

    one.reconcile(&named(&["a"]));
    let by_hand = endpoints.insert(Endpoint::new("a", Fake::new(1)));
    assert_eq!(sorted(&one.reconcile(&named(&["a"])).taken), ["a"]);
    one.reconcile(&[]);
    assert_eq!(
        of(&endpoints, "a").id,
        by_hand,
        "whoever replaces it owns it"
    );
}

#[tokio::test(start_paused = true)]
async fn what_was_set_by_hand_holds_until_the_list_says_something_new_of_it() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let mut reconciler = endpoints.reconciler("test", world.make());
    let a = || Target::new("a");
    reconciler.reconcile(&[a()]);
    endpoints.set_weight("a", 5.0);
    reconciler.reconcile(&[a().max_in_flight(3)]);
    assert_eq!(of(&endpoints, "a").weight, 5.0);
    reconciler.reconcile(&[a().max_in_flight(3).weight(2.0)]);
    assert_eq!(of(&endpoints, "a").weight, 2.0);

    endpoints.suspend("a");
    reconciler.reconcile(&[a().state(TargetState::Draining)]);
    reconciler.reconcile(&[a()]);
    assert_eq!(
        state(&endpoints, "a"),
        EndpointState::Draining,
        "only a hand resumes it"
    );
    endpoints.resume("a");

    endpoints.remove("a");
    assert_eq!(sorted(&reconciler.reconcile(&[a()]).added), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_draining_target_finishes_what_it_has_and_serves_again_when_the_list_says_so() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let service = balance(&endpoints);
    let mut reconciler = endpoints.reconciler("test", world.make());
    let drained = || Target::new("a").state(TargetState::Draining);
    assert!(
        reconciler.reconcile(&[drained()]).is_empty(),
        "it does not come to drain"
    );
    reconciler.reconcile(&named(&["a", "b"]));
    let id = of(&endpoints, "a").id;
    reconciler.reconcile(&[drained(), Target::new("b")]);
    for _ in 0..10 {
        send(&service).await.unwrap();
    }
    assert_eq!((world.at("a").calls(), endpoints.len()), (0, 2));
    endpoints.suspend("a");
    endpoints.resume("a");
    assert_eq!(serving(&endpoints), ["a", "b"], "a hand is stronger");

    reconciler.reconcile(&named(&["a", "b"]));
    reconciler.reconcile(&[drained(), Target::new("b")]);
    reconciler.reconcile(&named(&["a", "b"]));
    assert_eq!(state(&endpoints, "a"), EndpointState::SlowStart);
    assert_eq!(of(&endpoints, "a").id, id);
    reconciler.reconcile(&[drained(), Target::new("b")]);
    let moved = Target::new("elsewhere").named("a");
    reconciler.reconcile(&[moved.clone(), Target::new("b")]);
    assert_eq!(
        serving(&endpoints),
        ["a", "b"],
        "its successor does not drain"
    );
    let changes = reconciler.reconcile(&[moved.named("b"), drained()]);
    assert_eq!(
        (sorted(&changes.replaced), sorted(&changes.removed)),
        (vec!["b"], vec!["a"])
    );
}

#[tokio::test(start_paused = true)]
async fn health_that_was_found_out_outlasts_a_new_address() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let mut reconciler = endpoints.reconciler("test", world.make());
    reconciler.reconcile(&named(&["a"]));
    endpoints.set_health("a", Health::Unhealthy);
    reconciler.reconcile(&[Target::new("elsewhere").named("a")]);
    assert_eq!(state(&endpoints, "a"), EndpointState::Unhealthy);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cannot_be_made_leaves_the_rest_of_the_list_and_the_old_one_alone() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let make = move |target: &Target| match &*target.address {
        "bad" => Err("no such scheme"),
        address => Ok(Endpoint::new(target.name.clone(), world.at(address))),
    };
    let mut reconciler = endpoints.reconciler("test", make);
    let changes = reconciler.reconcile(&named(&["a", "bad", "b"]));
    assert_eq!(sorted(&changes.added), ["a", "b"]);
    let (name, error) = &changes.failed[0];
    assert_eq!(
        (&**name, error.to_string()),
        ("bad", "no such scheme".to_owned())
    );
    let before = of(&endpoints, "a").id;
    let changes = reconciler.reconcile(&[Target::new("bad").named("a")]);
    assert_eq!(
        (changes.failed.len(), sorted(&changes.removed)),
        (1, vec!["b"])
    );
    assert_eq!(of(&endpoints, "a").id, before);
}

#[tokio::test(start_paused = true)]
async fn the_next_reconciler_of_a_source_takes_over_from_the_last() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let mut first = endpoints.reconciler("test", world.make());
    first.reconcile(&named(&["a", "b"]));
    let id = of(&endpoints, "a").id;
    let mut second = endpoints.reconciler("test", world.make());
    assert_eq!(
        second.reconcile(&named(&["a"])).taken.len(),
        1,
        "the first is still there"
    );
    let mut other = endpoints.reconciler("other", world.make());
    drop(first);
    assert_eq!(other.reconcile(&named(&["a"])).taken.len(), 1);
    let changes = second.reconcile(&[Target::new("a").weight(2.0)]);
    assert_eq!(
        (sorted(&changes.changed), sorted(&changes.removed)),
        (vec!["a"], vec!["b"])
    );
    assert_eq!(of(&endpoints, "a").id, id);
}

#[derive(Clone, Debug)]
struct Line {
    name: u8,
    address: u8,
    weight: Option<u8>,
    draining: bool,
}

impl Line {
    fn target(&self) -> Target {
        let mut target =
            Target::new(format!("{}:{}", self.name, self.address)).named(self.name.to_string());
        if let Some(weight) = self.weight {
            target = target.weight(weight.into());
        }
        if self.draining {
            target = target.state(TargetState::Draining);
        }
        target
    }
}

prop_compose! {
    fn line()(name in 0u8..6, address in 0u8..2, weight in proptest::option::of(1u8..4), draining in proptest::bool::weighted(0.2)) -> Line {
        Line { name, address, weight, draining }
    }
}

proptest! {
    /// The model is the last list, what stood before it, and one endpoint that was inserted by hand.
    #[test]
    fn any_sequence_of_lists_leaves_the_set_equal_to_the_last_and_loses_no_request(
        lists in prop::collection::vec(prop::collection::vec(line(), 0..8), 1..8),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(check(lists))?;
    }
}

async fn check(lists: Vec<Vec<Line>>) -> Result<(), TestCaseError> {
    let (endpoints, world) = (Endpoints::default(), World::default());
    endpoints.insert(Endpoint::new("0", world.at("by hand")));
    let service = balance(&endpoints);
    let mut reconciler = endpoints.reconciler("test", world.make());
    let mut model: BTreeMap<String, (Line, EndpointId)> = BTreeMap::new();
    let mut sent = JoinSet::new();
    for list in lists {
        let mut next = BTreeMap::new();
        for line in &list {
            let name = line.name.to_string();
            if name == "0" || next.contains_key(&name) {
                continue;
            }
            let before = model
                .get(&name)
                .filter(|(before, _)| before.address == line.address);
            next.insert(
                name,
                (
                    !line.draining || before.is_some(),
                    line,
                    before.map(|(_, id)| *id),
                ),
            );
        }
        let targets: Vec<_> = list.iter().map(Line::target).collect();
        reconciler.reconcile(&targets);
        model.clear();
        for (name, (there, line, id)) in next {
            if !there {
                continue;
            }
            let mut all = endpoints.snapshot().into_iter();
            // One that leaves may have the same name; the one in the set was inserted later.
            let found = all
                .by_ref()
                .filter(|endpoint| *endpoint.name == *name)
                .max_by_key(|it| {
                    it.requests == 0 || it.state != EndpointState::Draining || Some(it.id) == id
                });
            let Some(found) = found else {
                return Err(TestCaseError::fail(format!("{name} is not there")));
            };
            prop_assert_eq!(found.weight, f64::from(line.weight.unwrap_or(1)));
            prop_assert_eq!(found.state == EndpointState::Draining, line.draining);
            if let Some(id) = id {
                prop_assert_eq!(found.id, id, "it stays the same");
            }
            model.insert(name, (line.clone(), found.id));
        }
        prop_assert_eq!(endpoints.len(), model.len() + 1);
        let expected: Vec<_> = ["0".to_owned()]
            .into_iter()
            .chain(
                model
                    .iter()
                    .filter(|(_, (line, _))| !line.draining)
                    .map(|(name, _)| name.clone()),
            )
            .collect();
        prop_assert_eq!(serving(&endpoints), expected);
        for _ in 0..4 {
            let service = service.clone();
            sent.spawn(async move { send(&service).await.is_ok() });
        }
        tokio::time::sleep(MS * 3).await;
    }
    prop_assert!(
        sent.join_all().await.into_iter().all(|ok| ok),
        "no request is lost"
    );
    prop_assert_eq!(in_flight(&endpoints), 0);
    prop_assert_eq!(
        endpoints.snapshot().len(),
        model.len() + 1,
        "all that left have gone"
    );
    Ok(())
}
