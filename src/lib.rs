//! boundkey
