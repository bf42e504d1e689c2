//! The kinds of work, one file each, and what they share.

pub(crate) mod chat;
pub(crate) mod fanout;
pub(crate) mod floor;
pub(crate) mod idle;
pub(crate) mod login;
pub(crate) mod room;
pub(crate) mod s2s;

use std::net::ToSocketAddrs as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::task::{Context, Poll};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use rustls_pki_types::ServerName;
use tokio::task::{AbortHandle, JoinSet};

use crate::connection::Link;
use crate::crew::{Phase, Stage};
use crate::error::LoadError;
use crate::marker::Run;
use crate::negotiate::{self, Wish};
use crate::options::{AccessOptions, Messages, RunOptions, ServerOptions};
use crate::pairs::{self, Records, Style};
use crate::place::Place;
use crate::report::Report;
use crate::tls::{self, Trust};
use crate::usage::Meter;

/// The server that the options name.
pub(crate) fn place(options: &ServerOptions) -> Result<Arc<Place>, LoadError> {
    place_at(&options.server, &options.domain, &options.access)
}

pub(crate) fn place_at(server: &str, domain: &str, access: &AccessOptions) -> Result<Arc<Place>, LoadError> {
    let unusable = |error: &dyn std::fmt::Display| LoadError::Usage(format!("--server {server}: {error}"));
    let mut addresses = server.to_socket_addrs().map_err(|error| unusable(&error))?;
    let address = addresses.next().ok_or_else(|| unusable(&"there is no address of that name"))?;
    let trust = match &access.ca {
        Some(file) => Trust::File(file.clone()),
        None if access.insecure => Trust::Anything,
        None => Trust::System,
    };
    let name = ServerName::try_from(domain.to_owned())
        .map_err(|error| LoadError::Usage(format!("--domain {domain}: {error}")))?;
    let mechanism = match access.mechanism.to_ascii_uppercase() {
        auto if auto == "AUTO" => None,
        wanted if negotiate::mechanisms().any(|it| it == wanted) => Some(wanted),
        other => {
            let known: Vec<_> = negotiate::mechanisms().collect();
            let text = format!("--mechanism {other}: there are auto, {}", known.join(", "));
            return Err(LoadError::Usage(text));
        }
    };
    Ok(Arc::new(Place {
        address,
        domain: domain.to_owned(),
        security: access.tls,
        mechanism,
        prefix: access.users.clone(),
        password: access.password.clone(),
        tls: Arc::new(tls::client(&trust, access.key_exchange)?),
        name,
        keys: parking_lot::Mutex::default(),
        dialled: AtomicU32::new(0),
    }))
}

/// Fails now, not after an hour of logins, if this process may not have so many connections.
pub(crate) fn room_for(connections: u32) -> Result<(), LoadError> {
    /// For runtimes, listeners, /proc and the standard streams.
    const OTHERS: u64 = 100;
    let needed = u64::from(connections) + OTHERS;
    match getrlimit(Resource::Nofile).current {
        Some(limit) if limit < needed => Err(LoadError::Machine(format!(
            "{connections} connections need {needed} open files, and this process may have {limit}. Raise the hard \
             limit (`ulimit -Hn {needed}` as administrator), for the server too"
        ))),
        _ => Ok(()),
    }
}

/// How long to measure, and whom.
pub(crate) fn measuring(options: &RunOptions) -> Result<(Duration, Option<Meter>), LoadError> {
    let length = Duration::try_from_secs_f64(options.seconds)
        .ok()
        .filter(|it| *it >= Duration::from_millis(100))
        .ok_or_else(|| LoadError::Usage("--seconds: a tenth of a second at least".into()))?;
    Ok((length, Meter::new(&options.server_pids)?))
}

pub(crate) fn style(messages: &Messages, threads: u32) -> Result<Style, LoadError> {
    let rate = rate(messages.rate)?.map(|rate| rate / f64::from(threads));
    Ok(Style { window: messages.window, rate, records: Records::Together })
}

pub(crate) fn rate(rate: Option<f64>) -> Result<Option<f64>, LoadError> {
    match rate {
        Some(rate) if !(rate.is_finite() && (0.01..=10_000_000.0).contains(&rate)) => {
            Err(LoadError::Usage("--rate: from 0.01 to 10 million a second".into()))
        }
        other => Ok(other),
    }
}

/// A number that no other run has.
pub(crate) fn new_run() -> Run {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // Enough bits of both for two runs never to be the same within a day.
    Run((time.as_millis() as u32).wrapping_mul(31) ^ std::process::id())
}

/// Of `count` things, those that thread `number` of `threads` has.
pub(crate) fn share(count: u32, number: u32, threads: u32) -> impl Iterator<Item = u32> + Clone {
    (number..count).step_by(threads as usize)
}

pub(crate) fn describe(report: &mut Report, options: &ServerOptions, run: &RunOptions) {
    report
        .parameter("server", options.server.as_str())
        .parameter("domain", options.domain.as_str())
        .parameter("tls", format!("{:?}", options.access.tls).to_lowercase())
        .parameter("mechanism", options.access.mechanism.as_str())
        .parameter("key_exchange", format!("{:?}", options.access.key_exchange).to_lowercase())
        .parameter("threads", run.threads);
}

pub(crate) fn describe_messages(report: &mut Report, messages: &Messages) {
    report
        .parameter("pairs", messages.pairs)
        .parameter("window", messages.window)
        .parameter("body", messages.body)
        .parameter("rate", messages.rate);
}

/// Makes missing accounts, with a bounded number of registrations at once.
pub(crate) async fn register(
    stage: &Arc<Stage>,
    place: &Arc<Place>,
    numbers: Vec<u32>,
    at_once: u32,
) -> Result<(), LoadError> {
    let mut tasks = JoinSet::new();
    for slot in 0..at_once.min(numbers.len() as u32) {
        let (stage, place, numbers) = (stage.clone(), place.clone(), numbers.clone());
        tasks.spawn(async move {
            let own = numbers.into_iter().skip(slot as usize).step_by(at_once as usize);
            negotiate::register(&place, own, || stage.one_prepared()).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(|error| LoadError::Machine(error.to_string()))??;
    }
    Ok(())
}

/// Logs in the accounts with these numbers, a bounded number at once, and gives their connections in that order.
pub(crate) async fn enter_all(
    stage: &Arc<Stage>,
    place: &Arc<Place>,
    numbers: Vec<u32>,
    (wish, at_once): (Wish, u32),
) -> Result<Vec<Link>, LoadError> {
    let mut tasks = JoinSet::new();
    let mut links: Vec<Option<Link>> = vec![None; numbers.len()];
    let mut next = numbers.into_iter().enumerate();
    loop {
        while tasks.len() < at_once as usize
            && let Some((index, number)) = next.next()
        {
            let (stage, place) = (stage.clone(), place.clone());
            tasks.spawn(async move {
                let dialog = negotiate::enter(&place, number, wish).await?;
                stage.one_prepared();
                Ok::<_, LoadError>((index, pairs::link(dialog.connection)))
            });
        }
        let Some(done) = tasks.join_next().await else { break };
        let (index, link) = done.map_err(|error| LoadError::Machine(error.to_string()))??;
        links[index] = Some(link);
    }
    Ok(links.into_iter().flatten().collect())
}

/// Logs in and keeps sessions, in parts, so that those who are in already answer the server.
pub(crate) async fn occupy(
    stage: &Arc<Stage>,
    place: &Arc<Place>,
    numbers: Vec<u32>,
    how: (Wish, u32),
) -> Result<(Vec<Link>, Vec<AbortHandle>), LoadError> {
    let (mut links, mut holders) = (Vec::new(), Vec::new());
    for part in numbers.chunks(500) {
        let part = enter_all(stage, place, part.to_vec(), how).await?;
        holders.extend(hold(stage, &part));
        links.extend(part);
    }
    Ok((links, holders))
}

/// A task that keeps a session and ignores what comes; the connection answers what has to be answered.
struct Holder {
    link: Link,
    stage: Arc<Stage>,
}

impl Future for Holder {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let polled = self.link.lock().poll_receive(cx, &mut |_| {});
            match polled {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    // At the end we leave, and the server closes.
                    if self.stage.phase() != Phase::Drain {
                        self.stage.fail(error);
                    }
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Keeps sessions in the background.
pub(crate) fn hold(stage: &Arc<Stage>, links: &[Link]) -> Vec<AbortHandle> {
    let holder = |link: &Link| Holder { link: link.clone(), stage: stage.clone() };
    links.iter().map(|link| tokio::spawn(holder(link)).abort_handle()).collect()
}
