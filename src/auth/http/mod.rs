//! HTTP: the routes of the server, and how calls and answers are read and written.

pub mod device;
pub mod local;
mod operator;
