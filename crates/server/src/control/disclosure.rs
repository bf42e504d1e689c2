//! What a domain says about itself in service discovery, beyond its features: whom to contact (XEP-0157), where its
//! server information is (XEP-0485), and how it handles data (XEP-0504).

use trunkline_xmpp::disco::Info;
use trunkline_xmpp::forms::{Field, Form};
use trunkline_xmpp::ns;

use super::publication::SERVER_INFO;
use crate::config::Config;
use crate::exchange::Exchange;

const HOUR: u64 = 3600;

/// Adds the forms.
pub fn describe(exchange: &Exchange, info: &mut Info) {
    let config = exchange.config.load();
    if let Some(form) = contacts(&config) {
        info.form(form);
    }
    info.form(data_policy(&config));
}

/// XEP-0157, and in the same form, as XEP-0485 s.8.2 demands, the node of server information. A domain that names no
/// XMPP address for abuse takes reports itself.
fn contacts(config: &Config) -> Option<Form> {
    let mut form = Form::result(ns::SERVER_INFO);
    let mut empty = true;
    for (kind, addresses) in &config.contact {
        let mut field = Field::list_multi(&format!("{kind}-addresses"));
        let mut any = false;
        for address in addresses {
            field = field.value(address);
            any = true;
        }
        if kind == "abuse" && !addresses.iter().any(|uri| uri.starts_with("xmpp:")) {
            field = field.value(&format!("xmpp:{}", config.domain));
            any = true;
        }
        if any {
            form = form.field(field);
            empty = false;
        }
    }
    if config.federation.server_info {
        let uri = format!("xmpp:{}?;node={SERVER_INFO}", config.domain);
        form = form.field(Field::text_single("serverinfo-pubsub-node").value(&uri));
        empty = false;
    }
    (!empty).then_some(form)
}

/// XEP-0504 s.3: what the server knows itself, and what only its operator can know.
fn data_policy(config: &Config) -> Form {
    let policy = &config.data_policy;
    let flag = |var: &str, value: bool| Field::boolean(var).value(if value { "true" } else { "false" });
    // s.3.3: hours, at most; of several domains, the longest.
    let ages = config.domains().map(|domain| config.retention(domain).0.as_secs());
    let longest = ages.map(|age| if age == 0 { u64::MAX } else { age }).max();
    let retention = match (config.accounts.archive, longest) {
        (true, Some(u64::MAX)) => "infinite".to_owned(),
        (true, Some(seconds)) => seconds.div_ceil(HOUR).to_string(),
        // Without an archive a message stays until it is delivered; nobody knows when that is.
        _ => "unknown".to_owned(),
    };
    let mut form = Form::result(ns::DATA_POLICY)
        // s.3.1: passwords are stored as SCRAM keys, but PLAIN is a way to log in.
        .field(Field::list_single("auth_data").value("plain"))
        .field(Field::text_single("data_retention").value(&retention))
        .field(flag("encryption_at_rest", policy.encryption_at_rest))
        .field(flag("full_erasure", true));
    if let Some(tos) = &policy.tos {
        form = form.field(Field::text_single("tos").value(tos));
    }
    if !policy.access.is_empty() {
        let field = Field::list_multi("access_policy");
        form = form.field(policy.access.iter().fold(field, |field, who| field.value(who)));
    }
    for (var, period) in
        [("backup_frequency", &policy.backup_frequency), ("backup_retention", &policy.backup_retention)]
    {
        if let Some(period) = period {
            let hours = period.as_secs().div_ceil(HOUR).to_string();
            form = form.field(Field::text_single(var).value(&hours));
        }
    }
    if let Some(text) = &policy.text {
        form =
            form.field(text.lines().fold(Field::text_multi("extra_info"), |field, line| field.value(line)));
    }
    form
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(settings: &str, make: impl Fn(&Config) -> Form) -> Vec<(String, Vec<String>)> {
        let text = format!("domain = \"a.example\"\n{settings}");
        let config = Config::parse(&text, std::path::Path::new("t.toml")).unwrap();
        let form = make(&config);
        form.fields().map(|(var, values)| (var.to_owned(), values.to_vec())).collect()
    }

    fn value(fields: &[(String, Vec<String>)], var: &str) -> String {
        fields.iter().find(|(name, _)| name == var).map(|(_, values)| values.join(",")).unwrap_or_default()
    }

    #[test]
    fn a_data_policy_says_what_is_configured() {
        let fields = form("[accounts]\nhistory_age = \"90 min\"", data_policy);
        assert_eq!(value(&fields, "data_retention"), "2");
        assert_eq!(value(&fields, "encryption_at_rest"), "false");
        assert!(!fields.iter().any(|(name, _)| name == "tos" || name == "access_policy"));
        let longer = "[hosts.\"b.example\"]\nhistory_age = \"3 h\"\n[accounts]\nhistory_age = \"90 min\"";
        assert_eq!(value(&form(longer, data_policy), "data_retention"), "3");
        let settings = "[accounts]\nhistory_age = 0\n[data_policy]\ntos = \"https://a.example/tos\"\n\
                        access = [\"admins\", \"government\"]\nencryption_at_rest = true\nbackup_frequency = \"1 day\"\n\
                        text = \"\"\"one\ntwo\"\"\"";
        let fields = form(settings, data_policy);
        assert_eq!(value(&fields, "data_retention"), "infinite");
        assert_eq!(value(&fields, "tos"), "https://a.example/tos");
        assert_eq!(value(&fields, "access_policy"), "admins,government");
        assert_eq!(value(&fields, "backup_frequency"), "24");
        assert_eq!(value(&fields, "extra_info"), "one,two");
        assert_eq!(value(&form("[accounts]\narchive = false", data_policy), "data_retention"), "unknown");
    }

    #[test]
    fn there_is_always_an_address_for_abuse() {
        let contacts = |config: &Config| contacts(config).unwrap();
        assert_eq!(value(&form("", contacts), "abuse-addresses"), "xmpp:a.example");
        let both = form("[contact]\nabuse = [\"mailto:b@a.example\"]", contacts);
        assert_eq!(value(&both, "abuse-addresses"), "mailto:b@a.example,xmpp:a.example");
        let own =
            form("[contact]\nabuse = [\"xmpp:b@a.example\"]\n[federation]\nserver_info = true", contacts);
        assert_eq!(value(&own, "abuse-addresses"), "xmpp:b@a.example");
        assert_eq!(value(&own, "serverinfo-pubsub-node"), "xmpp:a.example?;node=serverinfo");
    }
}
