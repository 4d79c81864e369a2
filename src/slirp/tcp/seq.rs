//! Arithmetic of sequence numbers: modulo 2³² (RFC 9293 §3.4).

/// True if `a` comes before `b`.
pub fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// True if `a` comes after `b`.
pub fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The later of two.
pub fn later(a: u32, b: u32) -> u32 {
    if after(a, b) { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        assert!(before(u32::MAX, 0) && after(5, u32::MAX - 5) && !before(7, 7) && !after(7, 7));
        assert_eq!((later(u32::MAX, 3), later(4, 3)), (3, 4));
    }
}
