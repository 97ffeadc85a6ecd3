//! The live list: the containers as they are now, redrawn in place.

use std::cmp::Reverse;
use std::io::{self, Write};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tracker::server::api::Container;
use tracker::server::clock::WallClock;
use tracker::{FeedOptions, Handle, Selector};
use unicode_width::UnicodeWidthChar;

use super::log::Recent;
use crate::cli::columns::CONTAINER;
use crate::cli::output::{Column, escape, table};

/// Between two redraws, however much changes: more is not seen, and costs.
const PAUSE: Duration = Duration::from_millis(100);
/// Between two redraws when nothing changes: ages go on.
const TICK: Duration = Duration::from_secs(1);

/// Redraws at every change, until the tracker ends.
pub(crate) async fn show(tracker: &Handle, recent: &Recent) -> io::Result<()> {
    let Ok(mut feed) = tracker.subscribe(FeedOptions::new("live")).await else { return Ok(()) };
    let mut screen = Screen { lines: 0, clock: WallClock::new() };
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        screen.draw(&frame(tracker, recent, &screen.clock))?;
        tokio::select! {
            item = feed.next() => {
                if item.is_none() {
                    return Ok(());
                }
                // What else changes meanwhile is in the next frame.
                let _ = timeout(PAUSE, async { while feed.next().await.is_some() {} }).await;
            }
            _ = ticks.tick() => {}
        }
    }
}

/// What is drawn over, and how much of it there is.
struct Screen {
    lines: usize,
    clock: WallClock,
}

impl Screen {
    fn draw(&mut self, frame: &[String]) -> io::Result<()> {
        let (width, height) = terminal_size::terminal_size().map_or((80, 24), |(w, h)| (w.0.into(), h.0.into()));
        let mut out = io::stdout().lock();
        if self.lines > 0 {
            // Up to the first line of the last frame, and clear from there to the end of the screen.
            write!(out, "\x1b[{}A", self.lines)?;
        }
        write!(out, "\r\x1b[J")?;
        let frame = &frame[..frame.len().min(usize::max(height, 2) - 1)];
        for line in frame {
            // A line that wraps would be more lines than we go up.
            writeln!(out, "{}", cut(line, width))?;
        }
        self.lines = frame.len();
        out.flush()
    }
}

/// As much of a line as has room in this many columns: a character may take two, or none.
fn cut(line: &str, columns: usize) -> &str {
    let mut used = 0;
    let first_without_room = line.char_indices().find(|(_, c)| {
        used += c.width().unwrap_or_default();
        used > columns
    });
    first_without_room.map_or(line, |(end, _)| &line[..end])
}

fn frame(tracker: &Handle, recent: &Recent, clock: &WallClock) -> Vec<String> {
    let mut reader = tracker.reader();
    let node = tracker.node().into();
    let everything = Selector::everything();
    let mut shown: Vec<_> = reader.select(&everything).filter(|container| container.kind.is_vouched_for()).collect();
    shown.sort_by_key(|container| Reverse((container.created_at, container.instance)));
    let running = shown.iter().filter(|container| !container.state.is_over()).count();
    let rows: Vec<Container> = shown.iter().map(|container| Container::new(container, &node, clock)).collect();

    let mut lines = vec![format!("{running} running on {} (Ctrl-C ends)", escape(tracker.node()))];
    // Above the list, which may be longer than the screen: the log says why something is missing.
    lines.extend(recent.lines().iter().map(|line| format!("  {}", escape(line))));
    lines.push(String::new());
    let columns: Vec<&Column<Container>> = CONTAINER.iter().filter(|column| !column.wide).collect();
    let mut text = Vec::new();
    table(&mut text, &rows, &columns, true).expect("writing to memory does not fail");
    lines.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
    lines
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn lines_are_cut_by_columns_not_by_characters() {
        for (line, columns, expected) in [
            ("name", 4, "name"),
            ("name", 3, "nam"),
            ("猫の名前", 5, "猫の"),
            ("e\u{301}a", 1, "e\u{301}"),
            ("", 0, ""),
        ] {
            assert_eq!(cut(line, columns), expected, "{line}");
        }
    }
}
