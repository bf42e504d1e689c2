//! The making of streams to peers: attempts as long as something waits.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use rustls_pki_types::CertificateDer;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Instrument as _;
use trunkline_xmpp::jid::Jid;

use super::MOST_PEERS;
use super::budget::Footprint;
use super::clocks::Clocks;
use super::dial::{self, Dialled};
use super::elements::printable;
use super::expiry::Bounce;
use super::failure::Failure;
use super::handle::{Command, Handle};
use super::line::{Line, Proved, Role, Stage};
use super::management::{self, Sending};
use super::pair::Pair;
use super::shared::Shared;
use super::wire::Wire;
use crate::admin::StreamStatus;
use crate::control::rule::Authentication;
use crate::control::traffic::Event;
use crate::logging::Refusal;
use crate::metrics::Direction;
use crate::net::{CertInfo, TlsInfo};
use crate::traces;

impl Shared {
    /// Starts looking after `pair`.
    pub(super) fn start_trunk(self: &Arc<Self>, pair: &Arc<Pair>) {
        let (shared, pair) = (Arc::clone(self), Arc::clone(pair));
        self.runtime.spawn(async move { shared.trunk(&pair).await });
    }

    /// Makes attempts until a stream carries the pair or nothing is left to send.
    async fn trunk(self: &Arc<Self>, pair: &Arc<Pair>) {
        while !self.is_stopping() && pair.next_attempt(self).await {
            pair.load_now(self).await;
            if pair.rest() {
                return;
            }
            let span = traces::dial(&pair.local.domain, &pair.peer);
            let failure = match self.attempt(pair).instrument(span.clone()).await {
                Ok(()) => return,
                Err(failure) => failure,
            };
            span.record("failure", failure.label());
            self.note_failure(pair, &failure);
            if failure.is_final() {
                self.give_up(pair, &failure).await;
            }
            if !pair.failed(self, failure) {
                return;
            }
        }
    }

    /// One attempt. `Ok`: a stream carries the pair.
    async fn attempt(self: &Arc<Self>, pair: &Arc<Pair>) -> Result<(), Failure> {
        if let Some(failure) = self.forbidden(pair.peer.as_str()) {
            return Err(failure);
        }
        let Some(peer) = self.peer(&pair.peer, MOST_PEERS) else {
            return Err(Failure::Unreachable("too many domains at once".into()));
        };
        let wanted = pair.is_wanted();
        self.turn_out(if wanted { pair.peer.as_str() } else { "" }).await;
        // Somebody who writes to many domains that do not answer takes a turn for each, as all others do.
        let all = if pair.is_wanted() { &self.dials } else { &self.answer_dials };
        let turns = async { (peer.dials.acquire().await, all.acquire().await) };
        let within = self.exchange.config.load().federation.connect_timeout;
        let Ok(_turns) = tokio::time::timeout(within, turns).await else {
            return Err(Failure::Unreachable("too many connections are being made at once".into()));
        };
        // The peer may have connected meanwhile, and its stream may go both ways.
        if pair.is_up() || self.share_stream(pair).await {
            return Ok(());
        }
        let dialled = tokio::select! {
            dialled = dial::dial(self, &pair.local, &pair.peer) => dialled?,
            forbidden = self.until_forbidden(Some(pair.peer.as_str())) => {
                return Err(forbidden.unwrap_or(Failure::CutOff(String::new())));
            }
        };
        self.open_line(pair, dialled);
        Ok(())
    }

    /// XEP-0220 s.2.5: another of our domains may have a stream to this peer that takes us along.
    async fn share_stream(self: &Arc<Self>, pair: &Arc<Pair>) -> bool {
        if !self.dialback_with(pair.peer.as_str()) {
            return false;
        }
        let Some(handle) = self.sharable(&pair.peer) else { return false };
        let (answer, outcome) = oneshot::channel();
        handle.ask(Command::Carry { pair: Arc::clone(pair), answer });
        let within = self.exchange.config.load().federation.connect_timeout;
        // Any stream error in between drops the sender of the answer.
        matches!(tokio::time::timeout(within, outcome).await, Ok(Ok(true))) && pair.is_up()
    }

    /// Puts a stream to work.
    fn open_line(self: &Arc<Self>, pair: &Arc<Pair>, dialled: Dialled) {
        let now = Instant::now();
        let tls = dialled.wire.transport.tls().cloned();
        let proof = dialled.proof;
        let version = tls.as_ref().map_or("none", |tls| tls.version);
        self.exchange.metrics.federation_stream(Direction::Out, proof, version);
        let chain = tls.as_ref().map_or(&[][..], |tls| &tls.peer_chain);
        self.note_proof(&pair.peer, dialled.verdict.is_valid().then_some(Authentication::Certificate), chain);
        let status = StreamStatus {
            direction: if dialled.bidi { "both" } else { "out" }.into(),
            us: pair.local.domain.as_str().to_owned(),
            address: dialled.address.clone(),
            they_proved: Some(dialled.verdict.to_string()),
            we_proved: Some(proof.into()),
            tls: tls.as_ref().map(|tls| tls_words(tls)),
            direct_tls: dialled.direct_tls,
            acks: false,
            since: self.now(),
        };
        let handle = self.add_line(status);
        *handle.peer.lock() = Some(pair.peer.clone());
        tracing::info!(
            conn = handle.serial,
            peer = pair.peer.as_str(),
            local = pair.local.domain.as_str(),
            proof,
            tls = version,
            bidi = dialled.bidi,
            "stream to peer is up"
        );
        let Dialled { wire, id, lang, offers, bidi, .. } = dialled;
        let mut line = self.line(Arc::clone(&handle), Role::Out, wire);
        line.stage = Stage::Open;
        line.opened = true;
        line.id = id;
        line.lang = lang;
        line.bidi = bidi;
        line.local = Some(Arc::clone(&pair.local));
        line.claimed = Some(pair.peer.clone());
        line.scanner.set_limits(self.scan_limits());
        if offers.management {
            line.out.extend_from_slice(&management::enable());
            line.sending = Sending::Enabling(now);
        }
        if bidi && let Some(peer) = self.peer(&pair.peer, MOST_PEERS) {
            line.proved.push(Proved { peer, local: Arc::clone(&pair.local), _place: None });
        }
        if offers.dialback {
            self.note_sharable(&handle);
        }
        line.carry(pair);
        self.runtime.spawn(line.serve());
    }

    pub(super) fn line(self: &Arc<Self>, handle: Arc<Handle>, role: Role, wire: Wire) -> Line {
        let now = Instant::now();
        let footprint = Footprint::new(self, &handle.status.lock().address);
        Line {
            shared: Arc::clone(self),
            unproved: None,
            streams: Vec::new(),
            footprint,
            ticket: crate::federation::crossing::Ticket::default(),
            handle,
            role,
            stage: Stage::Header,
            transport: wire.transport,
            scanner: wire.scanner,
            backlog: wire.input,
            out: Vec::new(),
            hold: None,
            writing: VecDeque::new(),
            flush: false,
            sending: Sending::Unmanaged,
            ledger: None,
            settled: Arc::new(AtomicBool::new(false)),
            ack_due: None,
            proved: Vec::new(),
            carried: Vec::new(),
            turn: 0,
            asking: Vec::new(),
            checking: 0,
            requests: 0,
            bidi: false,
            external: false,
            local: None,
            claimed: None,
            id: String::new(),
            lang: None,
            opened: false,
            since: now,
            clocks: Clocks::new(now),
            timer: Box::pin(tokio::time::sleep_until(now)),
            // None that there is: the first round looks whether it may go on.
            epoch: u64::MAX,
        }
    }

    /// For the counters: a stream with the domain is proved.
    pub(super) fn note_proof(
        &self,
        domain: &Jid,
        authentication: Option<Authentication>,
        chain: &[CertificateDer<'_>],
    ) {
        let words = chain.first().and_then(|certificate| CertInfo::read(certificate).ok());
        let words = words.map_or_else(Vec::new, |certificate| {
            let mut words = vec![
                format!("subject: {}", printable(&certificate.subject)),
                format!("issuer: {}", printable(&certificate.issuer)),
                format!("valid until: {}", certificate.not_after),
            ];
            words.extend(
                (!authentication.is_some_and(|by| by == Authentication::Certificate))
                    .then(|| format!("not enough: {}", self.verdict(chain, domain.as_str()))),
            );
            words
        });
        self.exchange.control.traffic.proved(domain.as_str(), authentication, words);
    }

    fn note_failure(&self, pair: &Pair, failure: &Failure) {
        let detail = format!("{} to {}: {failure}", pair.local.domain, pair.peer);
        self.exchange.control.traffic.count(pair.peer.as_str(), Event::Failed(failure.label()));
        let (name, peer) = (failure.label(), pair.peer.as_str());
        self.refusals.report(Refusal { name, peer, conn: 0, detail: &detail });
    }

    /// Bounces all that waits for a domain that does not exist, or must not be talked to.
    async fn give_up(self: &Arc<Self>, pair: &Arc<Pair>, failure: &Failure) {
        loop {
            let bounces: Vec<Bounce> = pair.give_up();
            if bounces.is_empty() {
                return;
            }
            pair.forget(bounces.iter().filter(|bounce| bounce.kept.is_some()).count());
            self.bounce(bounces, failure.stanza_error());
            pair.load_now(self).await;
        }
    }
}

/// `1.3, TLS_AES_256_GCM_SHA384, X25519MLKEM768`
pub(super) fn tls_words(tls: &TlsInfo) -> String {
    let version = tls.version.trim_start_matches("TLSv");
    format!("{version}, {}, {}", tls.cipher, tls.key_exchange)
}
