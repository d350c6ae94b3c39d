//! An API server's kinds, each followed by itself: what one is not allowed degrades that kind alone.

use std::ops::ControlFlow;

use futures_util::{StreamExt, pin_mut};
use kube::runtime::watcher::Event;

use super::error::Failure;
use super::kubeconfig::{Served, Source, Trouble, trouble};
use super::{Line, NEWS, Voice, now};
use crate::names::objects::{EndpointSlice, Endpoints, Job, Node, Pod, ReplicaSet, Service};
use crate::names::update::{Change, Scope, SourceId};

/// Follows all kinds, for good.
pub async fn run(voice: &Voice, config: kube::Config, node: Option<String>) {
    let of_one_node = node.is_some();
    let source = match Source::new(config, node) {
        Ok(source) => source,
        // Credentials that cannot be used now will not be later: only a plugin's would change, and it has failed.
        Err(why) => return voice.failed(why),
    };
    let (id, other_id) = (voice.id, voice.other_id);
    // Nobody but a cluster's administrator may see the rest, and a node's own credentials are for its pods.
    let of_cluster = async {
        if !of_one_node {
            tokio::join!(
                endpoints(voice, &source),
                follow::<ReplicaSet>(voice, &source, id),
                follow::<Job>(voice, &source, other_id),
                follow::<Node>(voice, &source, id),
            );
        }
    };
    tokio::join!(
        follow::<Pod>(voice, &source, id),
        follow::<Service>(voice, &source, id),
        of_cluster
    );
}

/// Slices, or where the server has none of this version the older kind.
async fn endpoints(voice: &Voice, source: &Source) {
    if follow::<EndpointSlice>(voice, source, voice.id).await == Left::Unknown {
        follow::<Endpoints>(voice, source, voice.id).await;
    }
}

/// Why a kind is not followed any more.
#[derive(PartialEq, Eq)]
enum Left {
    /// There is no such kind.
    Unknown,
    /// Nobody listens.
    Unheard,
}

async fn follow<T: Served>(voice: &Voice, source: &Source, id: SourceId) -> Left {
    let is_pods = T::RESOURCE == Pod::RESOURCE;
    // Why it is lacking, as it was said.
    let mut lacking = None;
    // All that has come, in as few messages as it fits in.
    let events = source.watch::<T>().ready_chunks(NEWS);
    pin_mut!(events);
    while let Some(events) = events.next().await {
        let mut news = Vec::with_capacity(events.len());
        for event in events {
            if event.is_err() && heard(voice, id, is_pods, &mut news, &mut lacking).is_break() {
                return Left::Unheard;
            }
            match event {
                Ok(Event::Init) => news.push(Change::ListStart(Scope::All(T::TELLS))),
                Ok(Event::InitApply(watched) | Event::Apply(watched)) => {
                    news.push(Change::Upsert(watched.object.fact()))
                }
                Ok(Event::Delete(watched)) => news.push(Change::Delete(watched.object.key())),
                Ok(Event::InitDone) => news.push(Change::ListEnd(Scope::All(T::TELLS))),
                Err(error) => {
                    let why = match trouble::<T>(&error) {
                        Trouble::Stale => continue,
                        Trouble::Unknown if !is_pods => return Left::Unknown,
                        Trouble::Unknown => Failure::new("what answers is no API server".to_owned()),
                        Trouble::Forbidden(why) | Trouble::Other(why) => why,
                    };
                    if is_pods {
                        voice.failed(why);
                    } else if voice.is_answering() && lacking.as_ref() != Some(&why) {
                        // When pods are not told of either, that is said for all.
                        voice.say(Line::Note(format!("warning: names go without {}: {why}", T::RESOURCE)));
                        lacking = Some(why);
                    }
                }
            }
        }
        if heard(voice, id, is_pods, &mut news, &mut lacking).is_break() {
            return Left::Unheard;
        }
    }
    Left::Unheard
}

/// Tells all of `news`. A kind of which there is news is not `lacking`.
fn heard(
    voice: &Voice,
    id: SourceId,
    is_pods: bool,
    news: &mut Vec<Change>,
    lacking: &mut Option<Failure>,
) -> ControlFlow<()> {
    if news.is_empty() {
        return ControlFlow::Continue(());
    }
    let is_answer = news
        .iter()
        .any(|one| matches!(one, Change::ListEnd(_) | Change::Upsert(_)));
    voice.tell(id, now(), news.drain(..))?;
    if is_answer {
        *lacking = None;
        if is_pods {
            voice.answered();
        }
    }
    ControlFlow::Continue(())
}
