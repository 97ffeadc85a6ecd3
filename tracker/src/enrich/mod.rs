//! Pure parsers of what enriches a container.
