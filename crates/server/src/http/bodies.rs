//! Room for the bodies of requests: all together, and of one address, so that no one can take what is there for all.
//! What is taken is what has come, not what is announced; small bodies are not counted.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use parking_lot::Mutex;

use crate::net::listen::network;

/// Bodies up to this many bytes need no room: as many as there are connections may be read at once.
const SMALL: usize = 16 * 1024;
/// Bytes of all larger bodies that are read or wait for their turn.
const ALL: usize = 64 << 20;
/// Those that come from one address (IPv6: from one /64).
const SHARE: usize = ALL / 8;
/// For one body to come.
const TIME: Duration = Duration::from_secs(30);

/// What bodies have taken.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Only of those who have taken something.
    by_address: HashMap<IpAddr, usize>,
}

/// Why a body was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// Larger than a request may be.
    TooLarge,
    /// No room for it now.
    NoRoom,
    /// The connection broke.
    Broken,
    /// It took too long.
    Late,
}

/// Whose body it is, and what it may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sender {
    pub(super) address: IpAddr,
    /// Bytes.
    pub(super) most: usize,
    /// Whether its address is held to its share (`limits.enabled`).
    pub(super) counted: bool,
}

impl Bodies {
    /// Reads a body, and keeps room for it until that is dropped.
    pub(super) async fn read<B>(self: &Arc<Self>, body: B, sender: Sender) -> Result<(Bytes, Room), Unread>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        // Known to be too large before it comes.
        if body.size_hint().lower() > sender.most as u64 {
            return Err(Unread::TooLarge);
        }
        tokio::time::timeout(TIME, self.collect(body, sender)).await.unwrap_or(Err(Unread::Late))
    }

    async fn collect<B>(self: &Arc<Self>, mut body: B, sender: Sender) -> Result<(Bytes, Room), Unread>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let mut room = Room { of: None, bytes: 0 };
        let mut all = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(mut data) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
            let length = all.len() + data.len();
            if length > sender.most {
                return Err(Unread::TooLarge);
            }
            if length > all.capacity() {
                let capacity = length.next_power_of_two().min(sender.most);
                if capacity > SMALL {
                    self.grow(&mut room, capacity, sender)?;
                }
                all.reserve_exact(capacity - all.len());
            }
            while data.has_remaining() {
                let length = data.chunk().len();
                all.extend_from_slice(data.chunk());
                data.advance(length);
            }
        }
        Ok((all.into(), room))
    }

    fn grow(self: &Arc<Self>, room: &mut Room, to: usize, sender: Sender) -> Result<(), Unread> {
        let key = network(sender.address);
        let more = to.saturating_sub(room.bytes);
        let mut taken = self.taken.lock();
        let mine = taken.by_address.get(&key).copied().unwrap_or(0) + more;
        // One as large as it may be always fits where nothing else is.
        let share = if sender.counted { SHARE.max(sender.most) } else { usize::MAX };
        if mine > share || taken.all + more > ALL.max(sender.most) {
            return Err(Unread::NoRoom);
        }
        taken.all += more;
        taken.by_address.insert(key, mine);
        room.bytes += more;
        room.of = Some((Arc::clone(self), key));
        Ok(())
    }
}

/// The room that one body takes; dropped, it is free again.
pub(super) struct Room {
    of: Option<(Arc<Bodies>, IpAddr)>,
    bytes: usize,
}

impl Room {
    /// For what needs none.
    #[cfg(test)]
    pub(super) fn none() -> Room {
        Room { of: None, bytes: 0 }
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some((bodies, key)) = self.of.take() else { return };
        let mut taken = bodies.taken.lock();
        taken.all -= self.bytes;
        if let Some(mine) = taken.by_address.get_mut(&key) {
            *mine -= self.bytes;
            if *mine == 0 {
                taken.by_address.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use hyper::body::{Frame, SizeHint};
    use tokio::sync::mpsc;

    use super::*;

    /// A body that comes as it is sent.
    struct Slow {
        announced: u64,
        pieces: mpsc::UnboundedReceiver<Bytes>,
    }

    impl Body for Slow {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.pieces.poll_recv(cx).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.announced)
        }
    }

    fn slow(announced: u64) -> (mpsc::UnboundedSender<Bytes>, Slow) {
        let (sender, pieces) = mpsc::unbounded_channel();
        (sender, Slow { announced, pieces })
    }

    fn sender(address: &str) -> Sender {
        Sender { address: address.parse().unwrap(), most: 1 << 20, counted: true }
    }

    async fn whole(bodies: &Arc<Bodies>, from: Sender, bytes: usize) -> Result<(Bytes, Room), Unread> {
        let (pieces, body) = slow(bytes as u64);
        pieces.send(vec![7; bytes].into()).unwrap();
        drop(pieces);
        bodies.read(body, from).await
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_takes_its_share_only() {
        let bodies = Arc::new(Bodies::default());
        let (one, other) = (sender("2001:db8::1"), sender("192.0.2.7"));
        let mut rooms = Vec::new();
        let refused = loop {
            match whole(&bodies, one, 1 << 20).await {
                Ok(read) => rooms.push(read),
                Err(why) => break why,
            }
        };
        assert_eq!((refused, rooms.len()), (Unread::NoRoom, SHARE >> 20));
        assert_eq!(
            whole(&bodies, sender("2001:db8::ffff"), 1 << 20).await.err(),
            Some(Unread::NoRoom),
            "its /64"
        );
        assert!(whole(&bodies, one, SMALL).await.is_ok(), "small ones need no room");
        let (bytes, room) = whole(&bodies, other, 1 << 20).await.unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        drop((rooms, room));
        let taken = bodies.taken.lock();
        assert_eq!((taken.all, taken.by_address.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn all_of_them_together_have_a_bound() {
        let bodies = Arc::new(Bodies::default());
        let mut rooms = Vec::new();
        for address in 0u8..=255 {
            match whole(&bodies, sender(&format!("192.0.2.{address}")), 1 << 20).await {
                Ok(read) => rooms.push(read),
                Err(why) => assert_eq!((why, rooms.len()), (Unread::NoRoom, ALL >> 20)),
            }
        }
        assert_eq!(rooms.len(), ALL >> 20);
        // Whoever is not counted is within the bound of all.
        let uncounted = Sender { counted: false, ..sender("192.0.2.1") };
        assert_eq!(whole(&bodies, uncounted, 1 << 20).await.err(), Some(Unread::NoRoom));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_announced_takes_no_room_before_it_comes() {
        let bodies = Arc::new(Bodies::default());
        let (pieces, body) = slow(1 << 20);
        let reading = tokio::spawn({
            let bodies = Arc::clone(&bodies);
            async move { bodies.read(body, sender("192.0.2.7")).await.map(|_| ()) }
        });
        pieces.send(vec![7; 10].into()).unwrap();
        tokio::time::sleep(TIME / 2).await;
        assert_eq!(bodies.taken.lock().all, 0);
        pieces.send(vec![7; SMALL].into()).unwrap();
        tokio::time::sleep(TIME / 4).await;
        assert_eq!(bodies.taken.lock().all, 2 * SMALL);
        assert_eq!(reading.await.unwrap(), Err(Unread::Late));
        assert_eq!(bodies.taken.lock().all, 0);
        // Larger than it may be, announced or not.
        assert_eq!(whole(&bodies, sender("192.0.2.7"), (1 << 20) + 1).await.err(), Some(Unread::TooLarge));
        let (pieces, body) = slow(0);
        pieces.send(vec![7; (1 << 20) + 1].into()).unwrap();
        assert_eq!(bodies.read(body, sender("192.0.2.7")).await.err(), Some(Unread::TooLarge));
    }
}
