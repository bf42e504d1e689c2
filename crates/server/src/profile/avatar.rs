//! Pictures of people: what one is (XEP-0084, XEP-0153), and that the server says in its users' presence which they have
//! (XEP-0398 s.4).

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use trunkline_store::{Row, Statement, sql};
use trunkline_xml::{Element, Node, Writer};
use trunkline_xmpp::ns;
use trunkline_xmpp::stanza::Stanza;

use crate::pubsub::NewItem;
use crate::pubsub::config::{Access, NodeConfig};

/// Bytes, and where they stand.
type Marks = &'static [(usize, &'static [u8])];

/// Kinds of pictures, by how they begin.
const KINDS: &[(&str, Marks)] = &[
    ("image/png", &[(0, b"\x89PNG\r\n\x1a\n")]),
    ("image/jpeg", &[(0, b"\xff\xd8\xff")]),
    ("image/gif", &[(0, b"GIF8")]),
    ("image/webp", &[(0, b"RIFF"), (8, b"WEBP")]),
    ("image/avif", &[(4, b"ftypavif")]),
    ("image/heic", &[(4, b"ftyphei")]),
    ("image/jxl", &[(0, b"\xff\x0a")]),
    ("image/jxl", &[(0, b"\x00\x00\x00\x0cJXL \x0d\x0a\x87\x0a")]),
    ("image/bmp", &[(0, b"BM")]),
];

/// A picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    data: Vec<u8>,
    /// `image/..`
    pub media_type: &'static str,
    /// SHA-1, 40 hexadecimal digits.
    pub hash: String,
}

/// Base64 as people write it: with white space (RFC 2045 s.6.8).
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let text: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok()
}

impl Image {
    /// A picture in Base64; `None`: it is none.
    pub fn read(text: &str) -> Option<Image> {
        let data = decode(text)?;
        let is = |marks: Marks| {
            marks.iter().all(|(at, mark)| data.get(*at..).is_some_and(|rest| rest.starts_with(mark)))
        };
        let (media_type, _) = KINDS.iter().find(|(_, marks)| is(marks))?;
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &data);
        let hash = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(Image { data, media_type, hash })
    }

    /// The picture of a vCard (XEP-0054), of the type that the card says (XEP-0398 s.3.2) if it is one of a picture.
    pub fn of_card(card: &Element) -> Option<Image> {
        let photo = card.root().child(ns::VCARD, "PHOTO")?;
        let mut image = Image::read(&photo.child(ns::VCARD, "BINVAL")?.text())?;
        if let Some(said) = photo.child(ns::VCARD, "TYPE") {
            let said = said.text();
            if let Some((said, _)) = KINDS.iter().find(|(kind, _)| kind.eq_ignore_ascii_case(said.trim())) {
                image.media_type = said;
            }
        }
        Some(image)
    }

    /// It in Base64.
    pub fn base64(&self) -> String {
        STANDARD.encode(&self.data)
    }

    /// The item of the node with the data (XEP-0084 s.3.1).
    pub fn data_item(&self) -> NewItem {
        let mut w = Writer::new();
        w.open("data").attr("xmlns", ns::AVATAR_DATA).text(&self.base64()).close();
        NewItem { id: Some(self.hash.clone()), payload: w.finish() }
    }

    /// The item of the node that says what there is (XEP-0084 s.3.2, XEP-0398 s.3.2).
    pub fn metadata_item(&self) -> NewItem {
        let mut w = Writer::new();
        w.open("metadata").attr("xmlns", ns::AVATAR_METADATA);
        w.open("info")
            .attr("bytes", &self.data.len().to_string())
            .attr("id", &self.hash)
            .attr("type", self.media_type)
            .close();
        w.close();
        NewItem { id: Some(self.hash.clone()), payload: w.finish() }
    }
}

/// Whether a vCard says that there is a picture, be it one that can't be shown at the nodes.
pub fn has_photo(card: &Element) -> bool {
    let photos = card.root().children().filter(|child| child.is(ns::VCARD, "PHOTO"));
    let mut said = photos.flat_map(|photo| photo.children().filter(|child| !child.is(ns::VCARD, "TYPE")));
    said.any(|value| !value.text().trim().is_empty())
}

/// Says that there is no picture (XEP-0084 s.3.5).
pub fn no_metadata_item() -> NewItem {
    let mut w = Writer::new();
    w.open("metadata").attr("xmlns", ns::AVATAR_METADATA).close();
    NewItem { id: Some("none".to_owned()), payload: w.finish() }
}

/// The item of the data's node that metadata are about: XEP-0398 s.3.1: the one that is not elsewhere.
pub fn wanted(metadata: &[u8]) -> Option<String> {
    let metadata = Element::parse(metadata.to_vec(), ns::CLIENT).ok()?;
    let infos = metadata.root().children().filter(|child| child.is(ns::AVATAR_METADATA, "info"));
    let here = infos.filter(|info| info.attr("url").is_none());
    here.filter_map(|info| info.attr("id").map(|id| id.into_owned())).next()
}

/// What an account's presence says of its picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Avatar {
    /// Its SHA-1; empty: there was one, and it is gone, or not for those who see presence.
    pub hash: Box<str>,
    /// Who may see it.
    pub who: Who,
}

/// Who may see a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Everybody.
    Everybody,
    /// Those who see the user's presence.
    Contacts,
    /// Nobody, or some people only. Presence is the same for all contacts: it shows none.
    Nobody,
}

impl Who {
    /// By the configuration of a node, if there is one.
    fn of(config: Option<&str>) -> Who {
        let Some(config) = config else { return Who::Everybody };
        // What can't be read is the most careful one, as for the node itself.
        match serde_json::from_str::<NodeConfig>(config).map(|config| config.access) {
            Ok(Access::Open) => Who::Everybody,
            Ok(Access::Presence) => Who::Contacts,
            Ok(Access::Roster | Access::Authorize | Access::Whitelist) | Err(_) => Who::Nobody,
        }
    }
}

impl Avatar {
    /// Columns from `first`: hash, configurations of the two nodes. `None`: there never was one.
    pub fn read(row: &Row<'_>, first: usize) -> Option<Box<Avatar>> {
        let hash = row.opt_text(first)?;
        Some(Box::new(Avatar::new(hash, [row.opt_text(first + 1), row.opt_text(first + 2)])))
    }

    /// XEP-0398 s.7: who may not have the picture does not get its hash either.
    fn new(hash: &str, nodes: [Option<&str>; 2]) -> Avatar {
        let who = Who::of(nodes[0]).max(Who::of(nodes[1]));
        Avatar { hash: if who == Who::Nobody { "" } else { hash }.into(), who }
    }

    /// Reads [`Avatar::read`]'s columns of one account.
    pub fn query(account: i64) -> Statement {
        sql("SELECT a.avatar, \
             (SELECT n.config FROM pubsub_nodes n WHERE n.place = '#' || a.id AND n.name = 'urn:xmpp:avatar:data'), \
             (SELECT n.config FROM pubsub_nodes n WHERE n.place = '#' || a.id AND n.name = 'urn:xmpp:avatar:metadata') \
             FROM accounts a WHERE a.id = ?1")
        .bind(account)
    }

    /// `stanza` with what is so. XEP-0398 s.4: an empty `<photo/>` is the client's own wish, unless it is of `before`.
    pub fn shown_in(&self, stanza: &Stanza, before: Option<&Avatar>) -> Option<Stanza> {
        let is_update = |node: Node<'_>| node.is(ns::VCARD_UPDATE, "x");
        let said: Vec<_> = stanza.children().filter(|child| is_update(*child)).collect();
        let photo = |node: &Node<'_>| {
            node.child(ns::VCARD_UPDATE, "photo").map(|photo| photo.text().trim().to_owned())
        };
        let photos: Vec<String> = said.iter().filter_map(photo).collect();
        if said.len() == 1 && photos.first().is_some_and(|photo| *photo == *self.hash) {
            return None;
        }
        let ours = before.is_some_and(|before| before.hash.is_empty());
        if photos.iter().any(String::is_empty) && !ours {
            return None;
        }
        let mut w = Writer::new();
        w.open("x").attr("xmlns", ns::VCARD_UPDATE).open("photo");
        if !self.hash.is_empty() {
            w.text(&self.hash);
        }
        w.close().close();
        let stanza = if said.is_empty() { stanza.clone() } else { stanza.without_children(is_update) };
        Some(stanza.with_appended(&w.finish()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIF: &str = "R0lGODlhAQABAA==";

    #[test]
    fn pictures_are_known_by_what_they_are() {
        let image = Image::read(" R0lG\nODlh\tAQABAA== ").unwrap();
        assert_eq!((image.media_type, image.base64().as_str()), ("image/gif", GIF));
        assert_eq!(image.hash, "921a6c9f7ab2d9bd7e54982a8af85bd66893fa8f");
        assert_eq!(
            Image::read("/9j/").map(|image| image.hash).as_deref(),
            Some("a3ff16385bea1d45349ea11ce23e4f337b7d4dd5")
        );
        for none in ["", "!", "aGVsbG8=", "UklGRgAAAABXQVZF", "R0lG"] {
            let image = Image::read(none);
            assert!(image.is_none(), "{none}: {image:?}");
        }
    }

    #[test]
    fn of_several_the_one_that_is_here_is_wanted() {
        let text = "<metadata xmlns='urn:xmpp:avatar:metadata'><info id='a' url='https://x.example/a' bytes='1' type='image/gif'/>\
                    <info id='b' bytes='1' type='image/png'/><info id='c' bytes='1' type='image/png'/></metadata>";
        assert_eq!(wanted(text.as_bytes()).as_deref(), Some("b"));
        for none in [
            "<metadata xmlns='urn:xmpp:avatar:metadata'/>",
            "<",
            "<metadata xmlns='urn:other'><info id='b'/></metadata>",
        ] {
            assert_eq!(wanted(none.as_bytes()), None);
        }
        let image = Image::read(GIF).unwrap();
        assert_eq!(wanted(&image.metadata_item().payload), Some(image.hash.clone()));
        assert_eq!(wanted(&no_metadata_item().payload), None);
    }

    #[test]
    fn who_may_not_have_the_picture_does_not_get_its_hash() {
        let config = |access: Access| serde_json::to_string(&NodeConfig { access, ..NodeConfig::default() });
        let avatar = |data: Option<Access>, metadata: Option<Access>| {
            let [data, metadata] =
                [data, metadata].map(|access| access.map(|access| config(access).unwrap()));
            let avatar = Avatar::new("abc", [data.as_deref(), metadata.as_deref()]);
            (String::from(avatar.hash), avatar.who)
        };
        assert_eq!(avatar(None, None), ("abc".into(), Who::Everybody));
        assert_eq!(avatar(Some(Access::Open), Some(Access::Open)), ("abc".into(), Who::Everybody));
        assert_eq!(avatar(Some(Access::Presence), Some(Access::Open)), ("abc".into(), Who::Contacts));
        for access in [Access::Roster, Access::Authorize, Access::Whitelist] {
            assert_eq!(avatar(Some(Access::Open), Some(access)), (String::new(), Who::Nobody), "{access:?}");
            assert_eq!(
                avatar(Some(access), Some(Access::Presence)),
                (String::new(), Who::Nobody),
                "{access:?}"
            );
        }
        assert_eq!(Avatar::new("abc", [Some("?"), None]).who, Who::Nobody);
    }

    #[test]
    fn what_presence_says() {
        let presence = |inner: &str| {
            Stanza::parse(format!("<presence xmlns='jabber:client'>{inner}</presence>").as_bytes()).unwrap()
        };
        let avatar = |hash: &str| Avatar { hash: hash.into(), who: Who::Everybody };
        let said = |avatar: &Avatar, before: Option<&Avatar>, inner: &str| {
            avatar
                .shown_in(&presence(inner), before)
                .map(|stanza| String::from_utf8(stanza.payload().to_vec()).unwrap())
        };
        let x = |photo: &str| format!("<x xmlns='vcard-temp:x:update'>{photo}</x>");
        let ours = x("<photo>abc</photo>");
        let show = "<show>away</show>";
        // Not there, not ready, another one: the server says it.
        for theirs in [String::new(), "<x xmlns='vcard-temp:x:update'/>".to_owned(), x("<photo>old</photo>")]
        {
            assert_eq!(
                said(&avatar("abc"), None, &format!("{theirs}{show}")).as_deref(),
                Some(format!("{show}{ours}").as_str())
            );
        }
        // None is wanted, or it is right already.
        for theirs in [x("<photo/>"), x("<photo></photo>"), ours.clone()] {
            assert_eq!(said(&avatar("abc"), Some(&avatar("old")), &theirs), None, "{theirs}");
        }
        // What the server said when there was none.
        assert_eq!(said(&avatar("abc"), Some(&avatar("")), &x("<photo/>")), Some(ours.clone()));
        assert_eq!(said(&avatar(""), Some(&avatar("abc")), &ours), Some(x("<photo/>")));
        assert_eq!(said(&avatar(""), None, &x("<photo/>")), None);
    }
}
