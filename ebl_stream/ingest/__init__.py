"""Documents in, frames out: routing, joining, and reading files with suspicion."""
