//! What a container's processes may not do, as data: which capabilities they keep and which paths of `/proc` and
//! `/sys` they see. Pure; the container's first process applies it.

pub mod capabilities;
pub mod mask;
