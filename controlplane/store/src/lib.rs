//! The revisioned key-value store under the API server: an in-memory ordered map with a durable log behind it.
