//! `trunkline federation policy | block | unblock | blocks | breaker`, and `trunkline audit`.

use std::io::Read as _;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{CliError, Common, ask};
use crate::admin::{OpError, Operation};
use crate::control::audit::AuditOp;
use crate::control::breaker::{BreakerOp, Level};
use crate::control::policy::{Format, PolicyOp, Preset};
use crate::control::rule::{Action, Conditions, Content, Direction, Per, Relation, Rule, StanzaKind};

/// The longest file of blocks.
const FILE_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Show the preset, the rules in their order and the blocked domains, with how often each has decided
    Show {
        #[command(flatten)]
        common: Common,
    },
    /// What becomes of stanzas that no rule decides
    Preset {
        /// open, careful, allow-list-only or closed
        #[arg(value_parser = preset)]
        preset: Preset,
        /// Only decide and count
        #[arg(long)]
        shadow: bool,
        /// For the audit log
        #[arg(long)]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// Add a rule: `policy add limit --per-minute 60 --domain noisy.example --reason "too much"`
    Add {
        #[command(flatten)]
        rule: Box<RuleArgs>,
        /// Its place among the rules set at run time, from 0 [default: the last]
        #[arg(long)]
        position: Option<u32>,
        #[command(flatten)]
        common: Common,
    },
    /// Put another rule in the place of one
    Replace {
        /// As `show` has it
        id: i64,
        #[command(flatten)]
        rule: Box<RuleArgs>,
        #[command(flatten)]
        common: Common,
    },
    /// Move a rule
    Move {
        /// As `show` has it
        id: i64,
        /// Its new place among the rules set at run time, from 0
        position: u32,
        /// For the audit log
        #[arg(long)]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a rule
    Remove {
        /// As `show` has it
        id: i64,
        /// For the audit log
        #[arg(long)]
        why: String,
        #[command(flatten)]
        common: Common,
    },
    /// Say what would become of a stanza, and why; changes nothing
    Test {
        /// Its XML, with `from` and `to`; `-`: from standard input
        stanza: String,
        /// From outside, or to the outside
        #[arg(long, value_enum, default_value = "in")]
        direction: Way,
        /// As if the two stood so to each other [default: as it is in truth]
        #[arg(long, value_enum)]
        relation: Option<RelationArg>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum BlocksCommand {
    /// Print all blocked domains as a file
    Export {
        /// csv or json
        #[arg(long, value_enum, default_value = "csv")]
        format: FormatArg,
        #[command(flatten)]
        common: Common,
    },
    /// Block every domain of a file, or none of them if it has an error. Other blocks stay
    Import {
        /// `-`: from standard input
        file: PathBuf,
        /// csv or json [default: by the name of the file]
        #[arg(long, value_enum)]
        format: Option<FormatArg>,
        /// For the audit log
        #[arg(long)]
        why: String,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum BreakerCommand {
    /// Show all levels that are not normal, and the triggers
    Show {
        #[command(flatten)]
        common: Common,
    },
    /// Set a level, for a domain with what is below it or for all
    Set {
        /// normal, no-new-contacts, granted-only, text-only or closed
        #[arg(value_parser = level)]
        level: Level,
        /// Without one: everybody
        domain: Option<String>,
        /// For the audit log, and for local users with contacts there
        #[arg(long)]
        why: String,
        #[command(flatten)]
        until: Until,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, Args)]
pub(super) struct BlockArgs {
    domain: String,
    /// What is below it too
    #[arg(long)]
    subdomains: bool,
    /// Local users who write there read it
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    until: Until,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct UnblockArgs {
    domain: String,
    /// For the audit log
    #[arg(long)]
    why: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Only entries that contain this text
    #[arg(long)]
    search: Option<String>,
    /// Older than this entry: the last one of the page before
    #[arg(long)]
    before: Option<i64>,
    #[command(flatten)]
    common: Common,
}

/// When something ends.
#[derive(Debug, Args)]
pub(super) struct Until {
    /// Ends at this time, such as 2026-12-31T00:00:00Z [default: never]
    #[arg(long, value_name = "TIME", conflicts_with = "lasts")]
    until: Option<jiff::Timestamp>,
    /// Ends after this time, such as "2 h" or "7 days"
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::config::value::span)]
    lasts: Option<std::time::Duration>,
}

impl Until {
    fn at(&self) -> Option<i64> {
        let now = || jiff::Timestamp::now().as_millisecond();
        let lasts =
            self.lasts.map(|span| now().saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)));
        lasts.or(self.until.map(jiff::Timestamp::as_millisecond))
    }
}

/// A rule, piece by piece or as JSON.
#[derive(Debug, Args)]
pub(super) struct RuleArgs {
    /// What is done
    #[arg(value_enum, required_unless_present = "rule", conflicts_with = "rule")]
    then: Option<ActionArg>,
    /// The whole rule as JSON instead, as in docs/control/policy.md
    #[arg(long, value_name = "JSON")]
    rule: Option<String>,
    /// limit: stanzas a minute
    #[arg(long, required_if_eq("then", "limit"))]
    per_minute: Option<u32>,
    /// limit: for each domain, or for all together that the rule applies to
    #[arg(long, value_enum, default_value = "domain")]
    per: PerArg,
    /// mark: what it says; reject: what the sender reads
    #[arg(long, required_if_eq("then", "mark"))]
    text: Option<String>,
    /// reject: a condition of RFC 6120 s.8.3.3 [default: policy-violation]
    #[arg(long)]
    condition: Option<String>,
    /// The other provider's domain
    #[arg(long)]
    domain: Option<String>,
    /// What is below it too
    #[arg(long)]
    subdomains: bool,
    /// One address of the other side
    #[arg(long)]
    address: Option<String>,
    /// The domain is known for less than this
    #[arg(long, value_name = "DURATION", value_parser = crate::config::value::span)]
    first_seen_within: Option<std::time::Duration>,
    /// How the domain proved itself
    #[arg(long, value_enum)]
    authentication: Option<AuthenticationArg>,
    /// How the two stand to each other; several: one of them
    #[arg(long, value_enum, value_delimiter = ',')]
    relation: Vec<RelationArg>,
    /// What kind of stanza; several: one of them
    #[arg(long, value_enum, value_delimiter = ',')]
    kind: Vec<KindArg>,
    /// What is in it; several: all of them
    #[arg(long, value_enum, value_delimiter = ',')]
    has: Vec<ContentArg>,
    /// It has more bytes than this
    #[arg(long, value_name = "BYTES")]
    larger_than: Option<usize>,
    /// The domain sends more stanzas a minute than this
    #[arg(long)]
    faster_than: Option<u32>,
    /// The domain's reputation (0 to 100) is below this
    #[arg(long)]
    reputation_below: Option<u8>,
    /// The domain or the sender is on the list of this name
    #[arg(long, value_name = "LIST")]
    listed_in: Option<String>,
    /// Of which traffic
    #[arg(long, value_enum, default_value = "both")]
    direction: Way,
    /// Why there is such a rule; local users read it when it stops their stanza
    #[arg(long, required_unless_present = "rule")]
    reason: Option<String>,
    /// Only decide and count
    #[arg(long)]
    shadow: bool,
    #[command(flatten)]
    until: Until,
}

impl RuleArgs {
    fn rule(self) -> Result<Rule, CliError> {
        let Some(action) = self.then else {
            let json = self.rule.unwrap_or_default();
            return serde_json::from_str(&json)
                .map_err(|error| CliError::Operation(OpError::NotPossible(format!("--rule: {error}"))));
        };
        let then = match action {
            ActionArg::Allow => Action::Allow,
            ActionArg::Reject => Action::Reject { condition: self.condition, text: self.text },
            ActionArg::Drop => Action::Drop,
            ActionArg::Hold => Action::Hold,
            ActionArg::Limit => {
                Action::Limit { per_minute: self.per_minute.unwrap_or_default(), per: self.per.into() }
            }
            ActionArg::Mark => Action::Mark { text: self.text.unwrap_or_default() },
            ActionArg::TextOnly => Action::TextOnly,
        };
        let when = Conditions {
            domain: self.domain,
            subdomains: self.subdomains,
            address: self.address,
            first_seen_within: self.first_seen_within.map(|span| span.as_secs()),
            authentication: self.authentication.map(Into::into),
            relation: self.relation.into_iter().map(Into::into).collect(),
            kind: self.kind.into_iter().map(Into::into).collect(),
            has: self.has.into_iter().map(Into::into).collect(),
            larger_than: self.larger_than,
            faster_than: self.faster_than,
            reputation_below: self.reputation_below,
            listed_in: self.listed_in,
        };
        Ok(Rule {
            when,
            direction: self.direction.into(),
            then,
            reason: self.reason.unwrap_or_default(),
            until: self.until.at(),
            shadow: self.shadow,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActionArg {
    Allow,
    Reject,
    Drop,
    Hold,
    Limit,
    Mark,
    TextOnly,
}

/// An enumeration of the language as an argument, value for value.
macro_rules! argument {
    ($name:ident = $of:path { $($value:ident),* }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
        pub(super) enum $name { $($value),* }

        impl From<$name> for $of {
            fn from(value: $name) -> $of {
                match value { $($name::$value => <$of>::$value),* }
            }
        }
    };
}

argument!(Way = Direction { In, Out, Both });
argument!(RelationArg = Relation { Stranger, Conversation, Contact });
argument!(KindArg = StanzaKind { Message, Subscribe, Presence, Iq, Call, Invitation });
argument!(PerArg = Per { Domain, Rule });
argument!(ContentArg = Content { Link, Media });
argument!(AuthenticationArg = crate::control::rule::Authentication { Certificate, Dialback });
argument!(FormatArg = Format { Csv, Json });

fn preset(name: &str) -> Result<Preset, String> {
    let names = Preset::ALL.map(Preset::name).join(", ");
    Preset::parse(name).ok_or_else(|| format!("one of {names}"))
}

fn level(name: &str) -> Result<Level, String> {
    let names = Level::ALL.map(Level::name).join(", ");
    Level::parse(name).ok_or_else(|| format!("one of {names}"))
}

pub(super) fn policy(command: PolicyCommand) -> Result<(), CliError> {
    let (common, op) = match command {
        PolicyCommand::Show { common } => (common, PolicyOp::Show),
        PolicyCommand::Preset { preset, shadow, why, common } => {
            (common, PolicyOp::SetPreset { preset, shadow, why })
        }
        PolicyCommand::Add { rule, position, common } => {
            (common, PolicyOp::Add { rule: rule.rule()?, position })
        }
        PolicyCommand::Replace { id, rule, common } => (common, PolicyOp::Replace { id, rule: rule.rule()? }),
        PolicyCommand::Move { id, position, why, common } => (common, PolicyOp::Move { id, position, why }),
        PolicyCommand::Remove { id, why, common } => (common, PolicyOp::Remove { id, why }),
        PolicyCommand::Test { stanza, direction, relation, common } => {
            let stanza = if stanza == "-" { read("-".into())? } else { stanza };
            let (direction, relation) = (direction.into(), relation.map(Into::into));
            (common, PolicyOp::Test { stanza, direction, relation })
        }
    };
    ask(&common, Operation::Policy(op))
}

pub(super) fn block(args: BlockArgs) -> Result<(), CliError> {
    let BlockArgs { domain, subdomains, reason, until, common } = args;
    ask(&common, Operation::Policy(PolicyOp::Block { domain, subdomains, reason, until: until.at() }))
}

pub(super) fn unblock(args: UnblockArgs) -> Result<(), CliError> {
    let UnblockArgs { domain, why, common } = args;
    ask(&common, Operation::Policy(PolicyOp::Unblock { domain, why }))
}

pub(super) fn blocks(command: BlocksCommand) -> Result<(), CliError> {
    match command {
        BlocksCommand::Export { format, common } => {
            ask(&common, Operation::Policy(PolicyOp::Export { format: format.into() }))
        }
        BlocksCommand::Import { file, format, why, common } => {
            let by_name = || match file.extension().is_some_and(|name| name == "json") {
                true => FormatArg::Json,
                false => FormatArg::Csv,
            };
            let format = format.unwrap_or_else(by_name).into();
            let text = read(file)?;
            ask(&common, Operation::Policy(PolicyOp::Import { format, text, why }))
        }
    }
}

pub(super) fn breaker(command: BreakerCommand) -> Result<(), CliError> {
    match command {
        BreakerCommand::Show { common } => ask(&common, Operation::Breaker(BreakerOp::Show)),
        BreakerCommand::Set { level, domain, why, until, common } => {
            ask(&common, Operation::Breaker(BreakerOp::Set { domain, level, why, until: until.at() }))
        }
    }
}

pub(super) fn audit(args: AuditArgs) -> Result<(), CliError> {
    let AuditArgs { search, before, common } = args;
    ask(&common, Operation::Audit(AuditOp::List { before, search }))
}

fn read(file: PathBuf) -> Result<String, CliError> {
    let mut text = String::new();
    if file.as_os_str() == "-" {
        std::io::stdin().lock().take(FILE_BYTES).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(file)?.take(FILE_BYTES).read_to_string(&mut text)?;
    }
    Ok(text)
}
