//! HTTP: the routes of the server, and how calls and answers are read and written.

pub mod device;
