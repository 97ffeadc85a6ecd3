//! The program that tests of the barrier start as keeper: a test program's own `main` belongs to the test harness.

fn main() {
    tracker::barrier::keeper_entry();
}
