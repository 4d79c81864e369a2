//! Namespaces: their kinds, who is in which, and the id maps of user namespaces. Runs in the calling process.
//!
//! Creating and joining namespaces is a step of a plan (`container::step`) or the affair of the embedded helper,
//! because neither may happen to the calling process itself.

mod flags;
mod idmap;
mod inspect;

pub use flags::{Kind, Namespaces};
pub use idmap::{IdMap, Range, subordinate};
pub use inspect::{Link, inspect};
