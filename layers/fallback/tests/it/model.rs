//! Any chain against a walk along it.

use http::Response;
use palisade_core::reject::Reason;
use palisade_fallback::FallbackLayer;
use proptest::prelude::*;

use crate::support::{Backend, by, fails, get, ok, rejects, status};

#[derive(Clone, Copy, Debug)]
enum Link {
    Serves,
    BlamesCaller,
    Limits,
    Answers500,
    Errs,
    /// A function without an answer.
    Declines,
    /// A value.
    Gives,
}

impl Link {
    fn backend(self) -> Option<Backend> {
        Some(Backend::new([match self {
            Self::Serves => ok("served"),
            Self::BlamesCaller => status(404),
            Self::Limits => rejects(Reason::RateLimited),
            Self::Answers500 => status(500),
            Self::Errs => fails(|| "broken".into()),
            Self::Declines | Self::Gives => return None,
        }]))
    }

    fn hands_on(self) -> bool {
        matches!(self, Self::Answers500 | Self::Errs | Self::Declines)
    }

    /// What the caller gets of it, if it is the end.
    fn result(self) -> Result<u16, ()> {
        match self {
            Self::Serves | Self::Gives => Ok(200),
            Self::BlamesCaller => Ok(404),
            Self::Answers500 => Ok(500),
            Self::Limits | Self::Errs => Err(()),
            Self::Declines => unreachable!("never the end"),
        }
    }
}

fn services() -> impl Strategy<Value = Link> {
    use Link::*;
    prop_oneof![1 => Just(Serves), 1 => Just(BlamesCaller), 1 => Just(Limits), 3 => Just(Answers500), 3 => Just(Errs)]
}

fn links() -> impl Strategy<Value = Link> {
    prop_oneof![6 => services(), 2 => Just(Link::Declines), 1 => Just(Link::Gives)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_first_link_that_does_not_hand_on_is_the_end(
        first in services(),
        alternatives in prop::collection::vec(links(), 0..6),
        forced in prop::option::of(0usize..6),
    ) {
        let mut layer = FallbackLayer::new();
        let names: Vec<_> = (0..alternatives.len()).map(|at| format!("a{at}")).collect();
        let backends: Vec<_> = alternatives.iter().map(|link| link.backend()).collect();
        for ((link, backend), name) in alternatives.iter().zip(&backends).zip(&names) {
            layer = match (link, backend) {
                (_, Some(backend)) => layer.service(name, backend.clone()),
                (Link::Gives, None) => layer.value(name, Response::new("value")),
                (_, None) => layer.function(name, |_, _| None),
            };
        }
        let forced = forced.filter(|&at| at < names.len());
        if let Some(at) = forced {
            layer.handle().force(&names[at]).unwrap();
        }
        let primary = first.backend().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let got = runtime.block_on(get(&layer, &primary));
        let got = got.map(|response| (response.status().as_u16(), by(&response).map(str::to_owned)));

        // The walk: who is called, and who was the last to say something.
        let links = alternatives.iter().copied().enumerate();
        let can = |&at: &usize| links.clone().skip(at).any(|(_, link)| !matches!(link, Link::Declines));
        let forced = forced.filter(can);
        let starts = forced.is_none().then_some((None, first));
        let rest = links.clone().skip(forced.unwrap_or(0));
        let chain = starts.into_iter().chain(rest.map(|(at, link)| (Some(at), link)));
        let (mut called, mut last, mut over) = (Vec::new(), None, false);
        for (at, link) in chain {
            called.push(at);
            if !matches!(link, Link::Declines) {
                last = Some((at, link));
            }
            if !link.hands_on() {
                over = true;
                break;
            }
        }
        let (at, link) = last.unwrap();
        let served = at.filter(|_| over).map(|at| names[at].clone());
        let wanted = link.result().map(|status| (status, served.clone()));
        prop_assert_eq!(got.as_ref().map_err(|_| ()), wanted.as_ref().map_err(|_| ()));
        prop_assert_eq!(primary.calls(), usize::from(called.contains(&None)));
        for (at, backend) in backends.iter().enumerate() {
            let calls = usize::from(called.contains(&Some(at)));
            prop_assert_eq!(backend.as_ref().map_or(calls, Backend::calls), calls);
        }
        let snapshot = layer.handle().snapshot();
        prop_assert_eq!(snapshot.exhausted, u64::from(!over));
        let counts: Vec<_> = snapshot.alternatives.iter().map(|each| each.served).collect();
        let counted = |at: usize| got.is_ok() && served.as_deref() == Some(&*names[at]);
        let wanted: Vec<_> = (0..names.len()).map(|at| u64::from(counted(at))).collect();
        prop_assert_eq!(counts, wanted);
    }
}
