//! The frames of one flush. Each stands here once, and the outboxes hold its number: a frame for ten
//! thousand connections costs each of them four bytes, and those of one room, whose numbers are the
//! same, share one buffer with all their frames end to end.

use bytes::Bytes;

/// Bytes of several frames that are copied end to end at most: the kernel takes many small frames
/// faster from one buffer than slice by slice, and large ones are not worth the copy.
const JOINED_BYTES: usize = 64 * 1024;

/// Number of a frame in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameNumber(u32);

/// The frames that were appended since the last flush.
#[derive(Default)]
pub struct FrameBatch {
    frames: Vec<Bytes>,
    /// Of all frames.
    bytes: usize,
    /// What was joined last, and its bytes; empty when they were too many.
    list: Vec<FrameNumber>,
    joined: Vec<u8>,
}

impl FrameBatch {
    /// Adds a frame.
    pub fn add(&mut self, frame: Bytes) -> FrameNumber {
        // A batch ends at some ten thousand frames.
        let number = u32::try_from(self.frames.len()).unwrap_or(u32::MAX);
        self.bytes += frame.len();
        self.frames.push(frame);
        FrameNumber(number)
    }

    /// Bytes of all frames, each counted once.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The frames of a list, in its order.
    pub fn frames<'a>(&'a self, list: &'a [FrameNumber]) -> impl Iterator<Item = &'a Bytes> {
        list.iter().filter_map(|number| self.frames.get(number.0 as usize))
    }

    /// The bytes of a list in one buffer; `None` when they are too many to be copied.
    pub fn joined(&mut self, list: &[FrameNumber]) -> Option<&[u8]> {
        if self.list != list {
            self.list.clear();
            self.list.extend_from_slice(list);
            self.joined.clear();
            let bytes: usize = self.frames(list).map(Bytes::len).sum();
            if bytes <= JOINED_BYTES {
                for frame in list.iter().filter_map(|number| self.frames.get(number.0 as usize)) {
                    self.joined.extend_from_slice(frame);
                }
            }
        }
        (!self.joined.is_empty()).then_some(&self.joined)
    }

    /// Forgets all frames, when no list holds a number any more.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.bytes = 0;
        self.list.clear();
        self.joined.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_joined_unless_they_are_too_large() {
        let mut batch = FrameBatch::default();
        let a = batch.add(Bytes::from_static(b"a"));
        let b = batch.add(Bytes::from_static(b"bc"));
        let large = batch.add(Bytes::from(vec![0; JOINED_BYTES]));
        assert_eq!(batch.joined(&[a, b]), Some(&b"abc"[..]));
        assert_eq!(batch.joined(&[a, b]), Some(&b"abc"[..]));
        assert_eq!(batch.joined(&[b, a]), Some(&b"bca"[..]));
        assert_eq!(batch.joined(&[a, large]), None);
        assert_eq!(batch.joined(&[large]).map(<[u8]>::len), Some(JOINED_BYTES));
    }
}
