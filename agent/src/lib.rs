//! The node: pods, images, volumes, probes, streams, and the way in and out of a cluster.
