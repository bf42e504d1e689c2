//! Where the measuring takes place: programs, directories, certificates, and the servers that run.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::accounts::{self, Accounts};
use super::dns::Dns;
use super::load::Report;
use super::pki::{Authority, Certificate};
use super::rows::Subject;
use super::servers::{Plan, Server};
use super::{ejabberd, load, ours, prosody};

/// As many as the largest row needs: 10,000 idle beside 100 pairs.
const ACCOUNTS: u32 = 10_300;
/// Those who become contacts; the others have none.
const FANS: u32 = 1_001;

pub(super) struct Field {
    pub(super) work: PathBuf,
    pub(super) trunkline: PathBuf,
    pub(super) load: PathBuf,
    /// A small program for the rows about rosters.
    pub(super) rosters: PathBuf,
    pub(super) authority: Authority,
    pub(super) dns: Dns,
    pub(super) seconds: u32,
    /// For the row about as many sessions as can be had.
    pub(super) sessions: u32,
    /// Whether our server's archive can be switched off.
    pub(super) knows_archive: bool,
    /// It has rules for strangers.
    pub(super) knows_presets: bool,
    certificates: RefCell<BTreeMap<String, Certificate>>,
    running: BTreeMap<Subject, Server>,
}

/// What a field is made from.
pub(super) struct Ground {
    pub(super) work: PathBuf,
    /// Where the programs were built.
    pub(super) programs: PathBuf,
    pub(super) load: Option<PathBuf>,
    pub(super) seconds: u32,
    pub(super) sessions: u32,
}

impl Field {
    /// Nothing is left of what was there before.
    pub(super) fn new(ground: Ground) -> Result<Field, String> {
        let Ground { work, programs, load, seconds, sessions } = ground;
        let failed = |error| format!("{}: {error}", work.display());
        if work.exists() {
            fs::remove_dir_all(&work).map_err(failed)?;
        }
        fs::create_dir_all(&work).map_err(failed)?;
        let authority = Authority::new(&work.join("certificates"))?;
        let trunkline = programs.join("trunkline");
        let reference = ours::run(std::process::Command::new(&trunkline).arg("config-reference"), "")?;
        Ok(Field {
            authority,
            dns: Dns::start()?,
            load: load.unwrap_or_else(|| programs.join("trunkline-load")),
            rosters: programs.join("examples/roster-pushes"),
            knows_archive: reference.contains("`accounts.archive`"),
            knows_presets: reference.contains("`federation.preset`"),
            trunkline,
            seconds,
            sessions,
            certificates: RefCell::default(),
            running: BTreeMap::new(),
            work,
        })
    }

    pub(super) fn certificate(&self, domain: &str) -> Result<Certificate, String> {
        if let Some(known) = self.certificates.borrow().get(domain) {
            return Ok(known.clone());
        }
        let made = self.authority.issue(domain)?;
        self.certificates.borrow_mut().insert(domain.to_owned(), made.clone());
        Ok(made)
    }

    /// The server of `subject`, with the archive off. It goes on running, idle, while others are measured.
    pub(super) fn server(&mut self, subject: Subject) -> Result<&Server, String> {
        if self.running.get(&subject).is_none_or(|it| it.plan.archive) {
            self.fresh(subject)?;
        }
        self.running.get(&subject).ok_or_else(|| "the server is gone".to_owned())
    }

    /// The same, but newly started.
    pub(super) fn fresh(&mut self, subject: Subject) -> Result<(), String> {
        self.run(Plan::new(subject, subject.name(), subject as u8 + 2)?)
    }

    /// With the archive on, in a store of its own that is empty: archives slow down as they grow, and later rounds
    /// must not pay for earlier ones.
    pub(super) fn archiving(&mut self, subject: Subject) -> Result<(), String> {
        let plan = Plan::new(subject, &format!("{}-archive", subject.name()), subject as u8 + 2)?;
        let directory = plan.directory(self);
        self.rest(subject);
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
        }
        self.run(Plan { archive: true, ..plan })
    }

    fn run(&mut self, plan: Plan) -> Result<(), String> {
        self.rest(plan.subject);
        self.prepare(&plan)?;
        let server = Server::start(plan, self)?;
        self.running.insert(server.plan.subject, server);
        Ok(())
    }

    /// Makes the accounts of a server that does not run.
    pub(super) fn prepare(&self, plan: &Plan) -> Result<(), String> {
        let wanted = Accounts {
            groups: vec![("load", ACCOUNTS), ("fan", FANS)],
            contacts: false,
            star: Some(("fan", FANS)),
        };
        if plan.subject == Subject::Ours {
            return ours::prepare(
                plan,
                self,
                &Accounts { groups: vec![("load", self.sessions.max(ACCOUNTS)), ("fan", FANS)], ..wanted },
            );
        }
        // The keys come from a store of ours.
        let pattern = Plan::new(Subject::Ours, "pattern", 250)?;
        ours::prepare(&pattern, self, &Accounts { groups: Vec::new(), contacts: false, star: None })?;
        let keys = accounts::keys(&ours::database(&pattern, self)).map_err(|error| error.to_string())?;
        match plan.subject {
            Subject::Prosody => prosody::prepare(plan, self, (&wanted, &keys)),
            Subject::Ejabberd => ejabberd::prepare(plan, self, (&wanted, &keys)),
            Subject::Floor | Subject::Ours => Ok(()),
        }
    }

    /// Stops the server of `subject`, if it runs.
    pub(super) fn rest(&mut self, subject: Subject) {
        if let Some(server) = self.running.remove(&subject) {
            server.stop();
        }
    }

    pub(super) fn rest_all(&mut self) {
        while let Some((_, server)) = self.running.pop_first() {
            server.stop();
        }
    }

    /// Runs the generator against a server that runs.
    pub(super) fn on(&self, subject: Subject, work: &[&str]) -> Result<Report, String> {
        let server = self.running.get(&subject).ok_or("the server does not run")?;
        self.load(&[server], work)
    }

    /// Runs the generator against the servers, of which the first is the one that clients use.
    pub(super) fn load(&self, servers: &[&Server], work: &[&str]) -> Result<Report, String> {
        let mut options: Vec<String> = work.iter().map(|&it| it.to_owned()).collect();
        if let Some(first) = servers.first() {
            options.extend(first.plan.options(self));
        }
        for server in servers {
            options.extend(["--server-pid".to_owned(), server.pid().to_string()]);
        }
        options.extend(["--seconds".to_owned(), self.seconds.to_string()]);
        load::run(&self.load, &options, (&self.work, Duration::from_secs(300 + u64::from(self.seconds))))
    }
}
