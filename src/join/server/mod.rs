//! The server's side of a join, without I/O, clock or randomness: opening challenges, verifying requests, deciding.
//!
//! ```text
//!  request ──▶ Opened ──▶ Verified ──▶ Grant | Refusal
//!              challenge   signatures   decision::decide
//! ```
//!
//! The caller reads a [`view::TokenView`] first and commits what was decided last, on condition that the view still holds. Where it
//! does not, the whole join is judged again on a fresh view.

pub mod challenge;
pub mod decision;
pub mod record;
pub mod request;
pub mod view;
