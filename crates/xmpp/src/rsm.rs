//! XEP-0059 Result Set Management 1.0: what page is asked for, and which one was given.

use trunkline_xml::{Node, Writer};

use crate::ns;

/// The `<set/>` of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Items at most; 0 asks for the count alone (s.2.6).
    pub max: Option<usize>,
    /// The page begins behind this item (s.2.2).
    pub after: Option<String>,
    /// The page ends before this item (s.2.3); empty: it is the last page (s.2.5).
    pub before: Option<String>,
    /// The page begins with the item of this number, from 0 (s.2.4).
    pub index: Option<u64>,
}

/// Why a `<set/>` can't be read. The peer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RsmError {
    /// `<max/>` or `<index/>` is not a number.
    #[error("<{0}/> of the result set is not a number")]
    NotANumber(&'static str),
    /// XEP-0313 s.4.3.2: RSM does not define what both an `<after/>` and a `<before/>` with an item mean, nor what an
    /// `<index/>` beside one of them does.
    #[error("a page is chosen by one of <after/>, <before/> and <index/>")]
    Ambiguous,
}

impl Request {
    /// Reads the `<set/>` child of `query`, if there is one.
    ///
    /// # Errors
    /// See [`RsmError`].
    pub fn parse(query: Node<'_>) -> Result<Request, RsmError> {
        let Some(set) = query.child(ns::RSM, "set") else { return Ok(Request::default()) };
        let text = |name| set.child(ns::RSM, name).map(|child| child.text().into_owned());
        let request = Request {
            max: number(text("max"), "max")?.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
            // s.2.2: an empty <after/> names no item; it is the first page.
            after: text("after").filter(|id| !id.is_empty()),
            before: text("before"),
            index: number(text("index"), "index")?,
        };
        let before_item = request.before.as_deref().is_some_and(|id| !id.is_empty());
        let beside_index = request.after.is_some() || request.before.is_some();
        if (request.after.is_some() && before_item) || (request.index.is_some() && beside_index) {
            return Err(RsmError::Ambiguous);
        }
        Ok(request)
    }

    /// The page is found from the end of the result set.
    pub fn is_backward(&self) -> bool {
        self.before.is_some()
    }
}

fn number(text: Option<String>, name: &'static str) -> Result<Option<u64>, RsmError> {
    let Some(text) = text else { return Ok(None) };
    let digits = text.trim();
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(RsmError::NotANumber(name));
    }
    // A number beyond every count means the same as the greatest.
    Ok(Some(digits.parse().unwrap_or(u64::MAX)))
}

/// The `<set/>` of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// The first and the last item of the page; `None`: it is empty.
    pub ends: Option<(String, String)>,
    /// The number of the first item in the whole result set, from 0, if it is known.
    pub index: Option<u64>,
    /// Items of the whole result set, if it is known.
    pub count: Option<u64>,
}

impl Page {
    /// Writes `<set/>`.
    pub fn write(&self, w: &mut Writer) {
        w.open("set").attr("xmlns", ns::RSM);
        if let Some((first, last)) = &self.ends {
            w.open("first").attr_opt("index", self.index.map(|index| index.to_string())).text(first).close();
            w.text_element("last", last);
        }
        if let Some(count) = self.count {
            w.text_element("count", &count.to_string());
        }
        w.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_xml::Element;

    fn read(set: &str) -> Result<Request, RsmError> {
        let query = format!("<query><set xmlns='{}'>{set}</set></query>", ns::RSM);
        Request::parse(Element::parse(query.into_bytes(), "urn:x").unwrap().root())
    }

    #[test]
    fn a_request_is_read() {
        let none = Element::parse(&b"<query/>"[..], "urn:x").unwrap();
        assert_eq!(Request::parse(none.root()), Ok(Request::default()));
        let request = read("<max> 10 </max><after>a</after>").unwrap();
        assert_eq!(
            (request.max, request.after.as_deref(), request.is_backward()),
            (Some(10), Some("a"), false)
        );
        let last = read("<max>10</max><before/>").unwrap();
        assert_eq!((last.before.as_deref(), last.is_backward()), (Some(""), true));
        assert_eq!(read("<after/>").unwrap().after, None);
        assert_eq!(read("<index>371</index>").unwrap().index, Some(371));
        assert_eq!(read("<max>99999999999999999999999</max>").unwrap().max, Some(usize::MAX));
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for (set, error) in [
            ("<max/>", RsmError::NotANumber("max")),
            ("<max>-1</max>", RsmError::NotANumber("max")),
            ("<max>ten</max>", RsmError::NotANumber("max")),
            ("<index>+1</index>", RsmError::NotANumber("index")),
            ("<after>a</after><before>b</before>", RsmError::Ambiguous),
            ("<index>1</index><before/>", RsmError::Ambiguous),
            ("<index>1</index><after>a</after>", RsmError::Ambiguous),
        ] {
            assert_eq!(read(set), Err(error), "{set}");
        }
        assert!(read("<after>a</after><before/>").is_ok(), "the last page of what is behind an item");
    }

    #[test]
    fn an_answer_is_written() {
        let written = |page: Page| {
            let mut w = Writer::new();
            page.write(&mut w);
            String::from_utf8(w.finish()).unwrap().replace('"', "'")
        };
        let ends = Some(("a".to_owned(), "b".to_owned()));
        assert_eq!(
            written(Page { ends, index: Some(0), count: Some(20) }),
            "<set xmlns='http://jabber.org/protocol/rsm'><first index='0'>a</first><last>b</last>\
             <count>20</count></set>"
        );
        assert_eq!(
            written(Page { ends: None, index: Some(3), count: Some(0) }),
            "<set xmlns='http://jabber.org/protocol/rsm'><count>0</count></set>"
        );
    }
}
