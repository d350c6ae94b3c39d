//! What `nodes` does in a cluster: creates a pod on each node, runs the tracer in it, and deletes it.
//!
//! - [`api`] sends the requests to the API server, and says which permission is missing.
//! - [`pod`] makes the pod from the manifest of `deploy/`.
//! - [`exec`] runs a process in a pod, over a WebSocket.
//! - [`protocol`] has what the command and the tracer in a pod send each other.

pub mod api;
pub mod exec;
pub mod pod;
pub mod protocol;
