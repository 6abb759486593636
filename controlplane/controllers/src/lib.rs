//! Every reconciler of the control plane.
