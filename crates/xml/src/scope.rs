//! The namespaces that an element inherits from what surrounds it.

use std::borrow::Cow;
use std::sync::Arc;

type Text = Cow<'static, str>;

/// What is bound where an element begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bindings {
    /// The namespace of unprefixed elements; empty for none.
    pub(crate) default: Text,
    /// Prefixes and what they are bound to.
    pub(crate) prefixes: Cow<'static, [(Text, Text)]>,
    /// Namespace names of the element itself that its bytes contain only in escaped form.
    pub(crate) unescaped: Vec<Arc<str>>,
}

/// Bindings, cheap to clone: nearly every stream declares one of a few sets, and those are static so that elements of
/// different connections don't share a reference count.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    Static(&'static Bindings),
    Shared(Arc<Bindings>),
}

const fn plain(default: &'static str) -> Bindings {
    Bindings { default: Cow::Borrowed(default), prefixes: Cow::Borrowed(&[]), unescaped: Vec::new() }
}

const fn stream(default: &'static str, prefixes: &'static [(Text, Text)]) -> Bindings {
    Bindings { default: Cow::Borrowed(default), prefixes: Cow::Borrowed(prefixes), unescaped: Vec::new() }
}

const STREAM: (Text, Text) = (Cow::Borrowed("stream"), Cow::Borrowed("http://etherx.jabber.org/streams"));
const DIALBACK: (Text, Text) = (Cow::Borrowed("db"), Cow::Borrowed("jabber:server:dialback"));

static KNOWN: [Bindings; 10] = [
    plain(""),
    plain("jabber:client"),
    plain("jabber:server"),
    plain("jabber:component:accept"),
    plain("urn:ietf:params:xml:ns:xmpp-framing"),
    stream("jabber:client", &[STREAM]),
    stream("jabber:server", &[STREAM]),
    stream("jabber:component:accept", &[STREAM]),
    stream("jabber:server", &[STREAM, DIALBACK]),
    stream("jabber:server", &[DIALBACK, STREAM]),
];

impl Scope {
    /// No default namespace and no prefix: where a document begins.
    pub(crate) const EMPTY: Scope = Scope::Static(&KNOWN[0]);

    pub(crate) fn new(default: &str, prefixes: &[(&str, &str)]) -> Scope {
        let known = KNOWN.iter().find(|known| {
            known.default == default
                && known.prefixes.len() == prefixes.len()
                && known
                    .prefixes
                    .iter()
                    .zip(prefixes)
                    .all(|(known, new)| known.0 == new.0 && known.1 == new.1)
        });
        match known {
            Some(known) => Scope::Static(known),
            None => Scope::Shared(Arc::new(Bindings {
                default: Cow::Owned(default.to_owned()),
                prefixes: prefixes
                    .iter()
                    .map(|(prefix, uri)| (Cow::Owned((*prefix).to_owned()), Cow::Owned((*uri).to_owned())))
                    .collect(),
                unescaped: Vec::new(),
            })),
        }
    }

    /// The same prefixes under another default namespace.
    pub(crate) fn with_default(&self, default: &str) -> Scope {
        let old = self.get();
        if old.default == default {
            return self.clone();
        }
        let known = KNOWN.iter().find(|known| {
            old.unescaped.is_empty() && known.default == default && known.prefixes == old.prefixes
        });
        match known {
            Some(known) => Scope::Static(known),
            None => {
                Scope::Shared(Arc::new(Bindings { default: Cow::Owned(default.to_owned()), ..old.clone() }))
            }
        }
    }

    /// The same bindings, and names that the element's bytes contain only in escaped form.
    pub(crate) fn with_unescaped(&self, unescaped: Vec<Arc<str>>) -> Scope {
        if unescaped.is_empty() {
            return self.clone();
        }
        Scope::Shared(Arc::new(Bindings { unescaped, ..self.get().clone() }))
    }

    pub(crate) fn get(&self) -> &Bindings {
        match self {
            Scope::Static(bindings) => bindings,
            Scope::Shared(bindings) => bindings,
        }
    }
}
