//! The Kubernetes API over HTTP: authentication, authorization, admission, resources and streams toward nodes.
