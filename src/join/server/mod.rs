//! The server's side of a join, without I/O, clock or randomness: one type a state, so that a wrong order does not compile.
//!
//! ```text
//!  TokenView ─▶ Challenge ──────────────────────────────────────────────────────▶ ChallengeAnswer
//!  (the store)  challenge.rs
//!
//!                 open            verify             decide              sign
//!  Jws, TokenView ───▶ Opened ──────────▶ Verified ────────▶ Grant ────────────▶ Issued ─────▶ JoinAnswer
//!                      request.rs         request.rs    │    decision/           answer.rs     answer.rs
//!                                                       │                          │
//!                                                       ▼                          ▼
//!                                                    Refusal ─────────────────▶ Effects
//!                                                    decision/                  effects.rs
//! ```
//!
//! The caller reads a [`view::TokenView`] first. It signs what a [`decision::Grant`] asks for, commits the [`effects::Effects`] on
//! condition that the view still holds, and answers last. Where the view does not hold any more, the whole join is judged again on a
//! fresh one. The auth endpoint (`auth/joins`), the test world and the model checker all do so, and differ in their stores alone.
//!
//! The device's side, `join/device/`, has the same file names: `challenge.rs`, `request.rs`, `answer.rs`.

pub mod answer;
pub mod challenge;
pub mod decision;
pub mod effects;
pub mod record;
pub mod request;
pub mod view;
