//! The master: configuration, PKI, wiring and lifecycle of API server, scheduler and controllers.
