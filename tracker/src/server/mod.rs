//! The debug socket.
