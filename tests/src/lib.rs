//! The lab, end-to-end, fault and benchmark harnesses.
