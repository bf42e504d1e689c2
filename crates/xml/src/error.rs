//! What is refused, and the bounds on what is accepted.

/// Bounds on what a peer may send. Every one is checked before memory is spent on what exceeds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one child element of the stream, markup included.
    pub element_bytes: usize,
    /// Bytes of the stream header, XML declaration included.
    pub header_bytes: usize,
    /// Levels of elements, the child of the stream being the first.
    pub depth: usize,
    /// Attributes of one start tag, namespace declarations not counted.
    pub attributes: usize,
    /// Namespace declarations of one start tag. At most eight times as many prefixes may be in scope at once.
    pub namespaces: usize,
    /// Bytes of one element or attribute name, prefix included.
    pub name_bytes: usize,
    /// Elements in one child element of the stream, itself included.
    pub nodes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            element_bytes: 256 * 1024,
            header_bytes: 8 * 1024,
            depth: 64,
            attributes: 64,
            namespaces: 16,
            name_bytes: 1024,
            nodes: 16384,
        }
    }
}

impl Limits {
    /// For what this server wrote itself: wide enough that a wrapped copy of anything a peer was allowed to send
    /// fits, with its forwarding, delay and archive elements around it.
    pub(crate) const OWN: Limits = Limits {
        element_bytes: 64 * 1024 * 1024,
        header_bytes: 64 * 1024,
        depth: 4096,
        attributes: 4096,
        namespaces: 1024,
        name_bytes: 16 * 1024,
        nodes: 4 * 1024 * 1024,
    };

    /// Offsets are 32 bits, lengths of names and counts of attributes 16 bits.
    pub(crate) fn clamped(self) -> Limits {
        Limits {
            element_bytes: self.element_bytes.min(1 << 30),
            header_bytes: self.header_bytes.min(1 << 30),
            depth: self.depth.min(1 << 16),
            attributes: self.attributes.min(1 << 14),
            namespaces: self.namespaces.min(1 << 12),
            name_bytes: self.name_bytes.min(1 << 15),
            nodes: self.nodes.min(1 << 26),
        }
    }
}

/// Why input was refused. It is always the peer's fault; the stream can't go on.
///
/// The texts are for the log. RFC 6120 s.4.9.3 gives the condition the peer is told; [`ScanError::label`] is the name
/// for counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScanError {
    /// Not XML 1.0.
    #[error("not well-formed XML: {0}")]
    NotWellFormed(&'static str),
    /// XML, but what RFC 6120 s.11.1 forbids: a comment, processing instruction, document type or entity.
    #[error("restricted XML: {0}")]
    Restricted(&'static str),
    /// Bytes that are not UTF-8.
    #[error("not UTF-8")]
    Utf8,
    /// The XML declaration names another encoding than UTF-8.
    #[error("an encoding other than UTF-8 was declared")]
    Encoding,
    /// A prefix that no declaration in scope binds.
    #[error("a namespace prefix was not declared")]
    BadPrefix,
    /// A declaration that Namespaces in XML forbids, such as binding `xml` to something else.
    #[error("namespaces not well-formed: {0}")]
    BadNamespace(&'static str),
    /// Characters other than white space directly in the stream, between its elements.
    #[error("text between the elements of the stream")]
    StrayText,
    /// An element or the stream header has more bytes than allowed.
    #[error("larger than {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: usize,
    },
    /// Elements nested deeper than allowed.
    #[error("nested deeper than {limit} levels")]
    TooDeep {
        /// The limit, in levels.
        limit: usize,
    },
    /// More attributes on a start tag than allowed.
    #[error("more than {limit} attributes on one element")]
    TooManyAttributes {
        /// The limit, in attributes.
        limit: usize,
    },
    /// More namespace declarations on a start tag, or prefixes in scope, than allowed.
    #[error("more than {limit} namespace declarations")]
    TooManyNamespaces {
        /// The limit, in declarations.
        limit: usize,
    },
    /// A name longer than allowed.
    #[error("a name longer than {limit} bytes")]
    NameTooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// More elements inside one child of the stream than allowed.
    #[error("more than {limit} elements in one")]
    TooManyNodes {
        /// The limit, in elements.
        limit: usize,
    },
}

impl ScanError {
    /// A short stable name, for counters and logs.
    pub fn label(&self) -> &'static str {
        match self {
            ScanError::NotWellFormed(_) => "xml-not-well-formed",
            ScanError::Restricted(_) => "xml-restricted",
            ScanError::Utf8 => "xml-not-utf8",
            ScanError::Encoding => "xml-encoding",
            ScanError::BadPrefix => "xml-undeclared-prefix",
            ScanError::BadNamespace(_) => "xml-bad-namespace",
            ScanError::StrayText => "xml-stray-text",
            ScanError::TooLarge { .. } => "xml-too-large",
            ScanError::TooDeep { .. } => "xml-too-deep",
            ScanError::TooManyAttributes { .. } => "xml-too-many-attributes",
            ScanError::TooManyNamespaces { .. } => "xml-too-many-namespaces",
            ScanError::NameTooLong { .. } => "xml-name-too-long",
            ScanError::TooManyNodes { .. } => "xml-too-many-elements",
        }
    }

    /// True when the input may be fine XML but exceeds what this server takes.
    pub fn is_limit(&self) -> bool {
        matches!(
            self,
            ScanError::TooLarge { .. }
                | ScanError::TooDeep { .. }
                | ScanError::TooManyAttributes { .. }
                | ScanError::TooManyNamespaces { .. }
                | ScanError::NameTooLong { .. }
                | ScanError::TooManyNodes { .. }
        )
    }
}
