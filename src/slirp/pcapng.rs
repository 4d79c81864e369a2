//! The blocks of a pcapng file (IETF draft-ietf-opsawg-pcapng): one writer for all captures, appending to a buffer.
//!
//! Little endian; one section of unknown length; interfaces are Ethernet, times in microseconds since 1970.

use super::time::Time;
use super::wire::put;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const LINKTYPE_ETHERNET: u16 = 1;
const IF_NAME: u16 = 2;
const EPB_FLAGS: u16 = 2;
const ISB_IFRECV: u16 = 4;
const ISB_IFDROP: u16 = 5;

/// Appends a block: type, length, body, length.
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    let len = ((out.len() - start + 4) as u32).to_le_bytes();
    out.extend_from_slice(&len);
    put(out, start + 4, &len);
}

/// Appends bytes and what fills them up to a word.
fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(out.len() + bytes.len().next_multiple_of(4) - bytes.len(), 0);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    option(out, 0, &[]);
}

fn words(out: &mut Vec<u8>, words: &[u32]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

/// The head of a file.
pub fn section(out: &mut Vec<u8>) {
    block(out, SECTION, |out| {
        words(out, &[0x1a2b_3c4d]);
        out.extend_from_slice(&[1, 0, 0, 0]); // version 1.0
        out.extend_from_slice(&u64::MAX.to_le_bytes());
    });
}

/// An interface, of which at most `snap` bytes of each frame are kept.
pub fn interface(out: &mut Vec<u8>, snap: usize, name: Option<&str>) {
    block(out, INTERFACE, |out| {
        out.extend_from_slice(&LINKTYPE_ETHERNET.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        words(out, &[snap as u32]);
        if let Some(name) = name {
            option(out, IF_NAME, name.as_bytes());
            end_of_options(out);
        }
    });
}

/// A frame that `interface` received, or sent, of which at most `snap` bytes are kept.
pub fn packet(out: &mut Vec<u8>, interface: usize, time: Time, received: bool, frame: &[u8], snap: usize) {
    let kept = frame.get(..snap).unwrap_or(frame);
    block(out, PACKET, |out| {
        words(
            out,
            &[interface as u32, (time >> 32) as u32, time as u32, kept.len() as u32, frame.len() as u32],
        );
        padded(out, kept);
        option(out, EPB_FLAGS, &(if received { 1u32 } else { 2 }).to_le_bytes());
        end_of_options(out);
    });
}

/// The end of the first interface's frames: how many there were, and how many of these are missing.
pub fn statistics(out: &mut Vec<u8>, time: Time, frames: u64, missing: u64) {
    block(out, STATISTICS, |out| {
        words(out, &[0, (time >> 32) as u32, time as u32]);
        option(out, ISB_IFRECV, &frames.to_le_bytes());
        option(out, ISB_IFDROP, &missing.to_le_bytes());
        end_of_options(out);
    });
}
