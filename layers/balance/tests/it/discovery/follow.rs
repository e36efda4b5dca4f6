use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use palisade_balance::{
    Endpoint, Endpoints,
    discover::{Changes, Discovery, Empty, EmptyList, Fixed, Follower, Live, Source, Target},
};
use palisade_core::{BoxError, time};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use tokio_test::{assert_pending, assert_ready, task};

use super::{World, serving, until};
use crate::support::{Fake, MS, balance, load};

/// Gives what it is told, and then nothing more; notes when it is asked.
#[derive(Clone, Default)]
struct Script(Arc<Told>);

#[derive(Default)]
struct Told {
    answers: Mutex<VecDeque<Result<Vec<Target>, &'static str>>>,
    asked: Mutex<Vec<Instant>>,
    more: Notify,
}

impl Script {
    fn of(answers: impl IntoIterator<Item = Result<Vec<Target>, &'static str>>) -> Self {
        let script = Self::default();
        script.0.answers.lock().unwrap().extend(answers);
        script
    }

    fn say(&self, answer: Result<Vec<Target>, &'static str>) {
        self.0.answers.lock().unwrap().push_back(answer);
        self.0.more.notify_one();
    }

    fn pauses(&self) -> Vec<Duration> {
        let asked = self.0.asked.lock().unwrap();
        asked.windows(2).map(|two| two[1] - two[0]).collect()
    }
}

impl Source for Script {
    async fn next(&mut self) -> Result<Vec<Target>, BoxError> {
        self.0.asked.lock().unwrap().push(time::now());
        loop {
            if let Some(answer) = self.0.answers.lock().unwrap().pop_front() {
                return answer.map_err(Into::into);
            }
            self.0.more.notified().await;
        }
    }
}

fn list(names: &[&str]) -> Vec<Target> {
    names.iter().map(|&name| Target::new(name)).collect()
}

fn spawn(follower: Follower) -> (watch::Receiver<Discovery>, tokio::task::JoinHandle<()>) {
    (follower.watch(), tokio::spawn(follower))
}

#[tokio::test(start_paused = true)]
async fn the_set_follows_the_lists_and_the_report_says_what_came_of_them() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let script = Script::of([Ok(list(&["a", "b"]))]);
    let follower = endpoints.follow(script.clone(), world.make()).named("mine");
    assert!(endpoints.is_empty(), "nothing happens before it is polled");
    let (mut seen, _running) = spawn(follower);
    let first = until(&mut seen, |seen| seen.lists == 1).await;
    assert_eq!(
        (&*first.source, first.targets, first.changes.added.len()),
        ("mine", 2, 2)
    );
    assert!(first.listed_at.is_some() && first.error.is_none());
    script.say(Ok(list(&["b"])));
    let second = until(&mut seen, |seen| seen.lists == 2).await;
    assert_eq!((second.targets, second.changes.removed.len()), (1, 1));
    assert_eq!(serving(&endpoints), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn an_error_keeps_the_last_list_and_is_retried_ever_more_rarely() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let errors = std::iter::repeat_n(Err("down"), 9);
    let script = Script::of(
        [Ok(list(&["a"]))]
            .into_iter()
            .chain(errors)
            .chain([Ok(list(&["b"]))]),
    );
    let (mut seen, _running) = spawn(endpoints.follow(script.clone(), world.make()));
    let failed = until(&mut seen, |seen| seen.failing == 3).await;
    assert_eq!(failed.error.unwrap().to_string(), "down");
    assert_eq!(
        (serving(&endpoints), failed.lists, failed.errors),
        (vec!["a".to_owned()], 1, 3)
    );
    let back = until(&mut seen, |seen| seen.lists == 2).await;
    assert_eq!(
        (back.failing, back.errors, back.error.is_none()),
        (0, 9, true)
    );
    assert!(back.failed_at < back.listed_at);
    assert_eq!(serving(&endpoints), ["b"]);
    let pauses = script.pauses();
    for (pause, seconds) in pauses[1..].iter().zip([1, 2, 4, 8, 16, 30, 30, 30, 30]) {
        let exact = Duration::from_secs(seconds);
        assert!(
            *pause >= exact / 2 && *pause <= exact * 3 / 2 + MS,
            "{pauses:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_list_is_doubted_unless_the_source_or_the_user_is_sure() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let script = Script::of([Ok(vec![]), Ok(list(&["a"])), Ok(vec![])]);
    let (mut seen, running) = spawn(endpoints.follow(script.clone(), world.make()));
    let doubted = until(&mut seen, |seen| seen.failing == 1).await;
    assert_eq!(
        doubted.lists, 2,
        "with nothing to lose there is nothing to doubt"
    );
    assert!(doubted.error.unwrap().is::<EmptyList>());
    assert_eq!(serving(&endpoints), ["a"]);
    script.say(Ok(list(&["b"])));
    until(&mut seen, |seen| seen.lists == 3).await;
    assert_eq!(serving(&endpoints), ["b"]);
    running.abort();
    running.await.unwrap_err();

    let script = Script::of([Ok(list(&["b"])), Ok(vec![])]);
    let (mut seen, _running) = spawn(
        endpoints
            .follow(script, world.make())
            .empty(Empty::Believed),
    );
    until(&mut seen, |seen| seen.lists == 2).await;
    assert!(endpoints.is_empty());
}

#[tokio::test(start_paused = true)]
async fn lists_are_prepared_before_they_count() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let script = Script::of([Ok(list(&["a", "b", "c"])), Ok(list(&["c"]))]);
    let follower = endpoints
        .follow(script, world.make())
        .prepare(|list| list.retain(|target| &*target.name != "c"))
        .prepare(|list| {
            list.iter_mut()
                .for_each(|target| target.weight = Some(list_weight(&target.name)));
        });
    let (mut seen, _running) = spawn(follower);
    until(&mut seen, |seen| seen.lists == 1).await;
    let weights: Vec<_> = endpoints.snapshot().iter().map(|it| it.weight).collect();
    assert_eq!((serving(&endpoints).len(), weights), (2, vec![2.0, 3.0]));
    let doubted = until(&mut seen, |seen| seen.failing == 1).await;
    assert!(
        doubted.error.unwrap().is::<EmptyList>(),
        "what is left counts"
    );
}

fn list_weight(name: &str) -> f64 {
    if name == "a" { 2.0 } else { 3.0 }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_cannot_be_made_is_told_and_nothing_waits_for_it() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let script = Script::of([Ok(list(&["a", "bad"])), Ok(list(&["a", "b"]))]);
    let make = move |target: &Target| match &*target.address {
        "bad" => Err("bad address"),
        address => Ok(Endpoint::new(target.name.clone(), world.at(address))),
    };
    let follower = endpoints.follow(script, make);
    let mut seen = follower.watch();
    let mut follower = task::spawn(follower);
    assert_pending!(follower.poll());
    let told = seen.borrow_and_update().clone();
    assert_eq!((told.lists, told.errors, told.failing), (1, 1, 0));
    assert_eq!(told.error.unwrap().to_string(), "bad address");
    sleep(MS * 50).await;
    assert_pending!(follower.poll());
    let told = seen.borrow_and_update().clone();
    assert_eq!(
        (told.lists, told.errors, told.error.is_none()),
        (2, 1, true)
    );
    assert_eq!(serving(&endpoints), ["a", "b"]);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_the_set_whatever_it_waits_for() {
    for errors in [0, 1] {
        let (endpoints, world) = (Endpoints::default(), World::default());
        let script = Script::of(
            [Ok(list(&["a"]))]
                .into_iter()
                .chain(vec![Err("down"); errors]),
        );
        let mut follower = task::spawn(endpoints.follow(script, world.make()));
        assert_pending!(follower.poll());
        sleep(MS * 50).await;
        assert_pending!(follower.poll());
        drop(endpoints);
        assert!(follower.is_woken());
        assert_ready!(follower.poll());
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_at_any_await_it_leaves_the_set_and_the_next_one_takes_over() {
    // Unpolled, while the source thinks, in the pause after a list, and in the pause after an error.
    for polls in 0..4 {
        let (endpoints, world) = (Endpoints::default(), World::default());
        let script = Script::of((polls >= 2).then(|| Ok(list(&["a", "b"]))));
        let mut follower = task::spawn(endpoints.follow(script.clone(), world.make()));
        for poll in 0..polls {
            if poll == 2 {
                script.say(Err("down"));
                sleep(MS * 50).await;
            }
            assert_pending!(follower.poll());
        }
        let before: Vec<_> = endpoints.snapshot().iter().map(|it| it.id).collect();
        assert_eq!(before.len(), if polls >= 2 { 2 } else { 0 });
        drop(follower);
        assert_eq!(endpoints.len(), before.len());
        let script = Script::of([Ok(list(&["b", "c"]))]);
        let (mut seen, _running) = spawn(endpoints.follow(script, world.make()));
        let list = until(&mut seen, |seen| seen.lists == 1).await;
        let Changes {
            added,
            removed,
            taken,
            ..
        } = list.changes;
        assert_eq!(
            (serving(&endpoints), taken.len()),
            (vec!["b".to_owned(), "c".to_owned()], 0)
        );
        assert_eq!(
            (added.len(), removed.len()),
            if polls >= 2 { (1, 1) } else { (2, 0) }
        );
        if polls >= 2 {
            assert!(
                endpoints.snapshot().iter().any(|it| it.id == before[1]),
                "b is the same"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_one_doubts_an_empty_list_as_the_one_before_it_did() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let script = Script::of([Ok(list(&["a", "b"]))]);
    let mut first = task::spawn(endpoints.follow(script, world.make()));
    assert_pending!(first.poll());
    drop(first);
    let script = Script::of([Ok(vec![]), Ok(list(&["b"]))]);
    let (mut seen, _running) = spawn(endpoints.follow(script, world.make()));
    let doubted = until(&mut seen, |seen| seen.lists + seen.errors == 1).await;
    assert!(doubted.error.unwrap().is::<EmptyList>());
    assert_eq!(serving(&endpoints), ["a", "b"]);
    until(&mut seen, |seen| seen.lists == 1).await;
    assert_eq!(serving(&endpoints), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_never_rests_leaves_time_for_others() {
    struct Restless(u64);

    impl Source for Restless {
        async fn next(&mut self) -> Result<Vec<Target>, BoxError> {
            self.0 += 1;
            Ok(vec![Target::new("a").weight(self.0 as f64)])
        }
    }

    let (endpoints, world) = (Endpoints::default(), World::default());
    let (seen, _running) = spawn(endpoints.follow(Restless(0), world.make()));
    sleep(Duration::from_secs(1)).await;
    let lists = seen.borrow().lists;
    assert!((15..=21).contains(&lists), "{lists} lists in a second");
}

#[tokio::test(start_paused = true)]
async fn a_fixed_list_is_given_once_and_a_live_one_whenever_it_changes() {
    let (endpoints, world) = (Endpoints::default(), World::default());
    let (mut fixed, _one) = spawn(endpoints.follow(Fixed::new(list(&["fixed"])), world.make()));
    let (sender, receiver) = watch::channel(list(&["a"]));
    let (mut live, _two) = spawn(endpoints.follow(Live::new(receiver), world.make()));
    until(&mut fixed, |seen| seen.lists == 1).await;
    until(&mut live, |seen| seen.lists == 1).await;
    assert_eq!(serving(&endpoints), ["a", "fixed"]);
    sender.send(vec![]).unwrap();
    until(&mut live, |seen| seen.lists == 2).await;
    assert_eq!(serving(&endpoints), ["fixed"], "an empty one is believed");
    sender.send(list(&["b"])).unwrap();
    drop(sender);
    until(&mut live, |seen| seen.lists == 3).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(serving(&endpoints), ["b", "fixed"], "the last one stays");
    assert_eq!(
        (
            fixed.borrow().lists,
            live.borrow().lists,
            live.borrow().errors
        ),
        (1, 3, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn no_request_is_lost_while_everything_changes() {
    let (endpoints, world) = (Endpoints::<Fake>::default(), World::default());
    let (sender, receiver) = watch::channel(list(&["a0", "b0", "c0"]));
    let (mut seen, _running) = spawn(endpoints.follow(Live::new(receiver), world.make()));
    until(&mut seen, |seen| seen.lists == 1).await;
    let service = balance(&endpoints);
    let requests = tokio::spawn(async move { load(&service, 5000, MS).await });
    for round in 1..40 {
        sleep(MS * 100).await;
        let names = ["a", "b", "c"].map(|name| format!("{name}{}", round / 2));
        let targets = names
            .iter()
            .map(|name| Target::new(name.as_str()).weight(f64::from(1 + round % 3)));
        // Every other round nothing of the list before is left.
        sender.send(targets.collect()).unwrap();
    }
    assert_eq!(requests.await.unwrap(), 0);
    assert_eq!((endpoints.snapshot().len(), seen.borrow().lists), (3, 40));
}
