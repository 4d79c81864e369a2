//! A cable in memory: what one end sends the other receives, in order, up to a number of frames.

use super::{Capabilities, Device};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

type Queue = Rc<RefCell<VecDeque<Vec<u8>>>>;

/// One end of the cable.
#[derive(Debug)]
pub struct Memory {
    inbox: Queue,
    outbox: Queue,
    capabilities: Capabilities,
    room: usize,
}

/// Makes a cable that holds `room` frames in each direction.
pub fn pair(capabilities: Capabilities, room: usize) -> (Memory, Memory) {
    let (a, b) = (Queue::default(), Queue::default());
    let end = |inbox: &Queue, outbox: &Queue| Memory {
        inbox: Rc::clone(inbox),
        outbox: Rc::clone(outbox),
        capabilities,
        room,
    };
    (end(&a, &b), end(&b, &a))
}

impl Memory {
    /// Takes the next frame as a vector.
    pub fn pop(&mut self) -> Option<Vec<u8>> {
        self.inbox.borrow_mut().pop_front()
    }
}

impl Device for Memory {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(frame) = self.pop() else { return Ok(None) };
        let target = buffer.get_mut(..frame.len()).ok_or(io::ErrorKind::InvalidData)?;
        target.copy_from_slice(&frame);
        Ok(Some(frame.len()))
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        let mut outbox = self.outbox.borrow_mut();
        if outbox.len() >= self.room {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        outbox.push_back(frame.to_vec());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cable_keeps_order_and_bounds() {
        let (mut a, mut b) = pair(Capabilities::ALL, 2);
        a.send(b"one").unwrap();
        a.send(b"two").unwrap();
        assert_eq!(a.send(b"three").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut buffer = [0; 8];
        assert_eq!(b.recv(&mut buffer).unwrap(), Some(3));
        assert_eq!(&buffer[..3], b"one");
        assert_eq!(b.pop().as_deref(), Some(&b"two"[..]));
        assert_eq!(b.recv(&mut buffer).unwrap(), None);
        assert_eq!(a.recv(&mut buffer).unwrap(), None);
    }
}
