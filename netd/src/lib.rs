//! The pod network of a node: links, routes, services, DNS.
