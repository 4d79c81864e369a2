//! The engine's clock: microseconds since it started, given to it from outside.
//!
//! The engine never asks for the time. Its caller does, once a wake-up, so that tests can run hours of timeouts
//! in an instant and a clock that jumps cannot do harm.

/// A point in time, or a span, in microseconds.
pub type Time = u64;

/// One millisecond.
pub const MS: Time = 1000;
/// One second.
pub const SEC: Time = 1000 * MS;
/// Never.
pub const NEVER: Time = Time::MAX;
