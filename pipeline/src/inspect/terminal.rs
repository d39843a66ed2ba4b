//! Charts in the terminal: braille lines in colour, or letters where there is no colour, and
//! nothing but ASCII where the terminal shows no UTF-8.

use std::env;
use std::io::{IsTerminal, stdout};

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis as AxisWidget, Chart as ChartWidget, Dataset, GraphType, Widget};

use super::chart::{Axis, Chart, Mark, Series};
use super::number::tick;

/// Lines of a plot, its axes included.
const PLOT_HEIGHT: u16 = 13;
/// Columns between two charts.
const GAP: u16 = 2;
/// Columns before a title and a legend.
const INDENT: u16 = 2;
/// Narrower charts are not readable.
const NARROWEST: u16 = 48;
/// Wider charts say no more.
const WIDEST: u16 = 96;
/// Columns where the output is no terminal and `COLUMNS` is not set.
const USUAL_WIDTH: u16 = 100;
/// [`super::chart::PALETTE`] in the 256 colours of terminals.
const COLOURS: [u8; 6] = [32, 166, 36, 175, 214, 74];
/// What series are drawn with where there is no colour.
const LETTERS: [char; 8] = ['*', 'o', '+', 'x', '#', '@', '%', '&'];
/// What ratatui draws a point with in `Marker::Dot`.
const DOT: &str = "•";

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// Columns.
    pub width: u16,
    /// Escape sequences for colour, and for clearing the screen, are understood.
    pub colour: bool,
    /// Characters beyond ASCII are shown.
    pub utf8: bool,
}

impl Screen {
    /// What standard output can show: asks the terminal and the environment (`COLUMNS`,
    /// `NO_COLOR`, `TERM`, and the locale).
    pub fn detect() -> Self {
        let columns = || env::var("COLUMNS").ok()?.parse().ok();
        let terminal = terminal_size::terminal_size().map(|(width, _)| width.0);
        let named = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let locale = named("LC_ALL")
            .or_else(|| named("LC_CTYPE"))
            .or_else(|| named("LANG"));
        let locale = locale.unwrap_or_default().to_lowercase();
        let is_dumb = env::var("TERM").is_ok_and(|term| term == "dumb");
        Self {
            width: terminal.or_else(columns).unwrap_or(USUAL_WIDTH),
            colour: stdout().is_terminal() && !is_dumb && named("NO_COLOR").is_none(),
            utf8: locale.contains("utf-8") || locale.contains("utf8"),
        }
    }

    /// The line under the titles of tables.
    pub fn rule(self) -> char {
        if self.utf8 { '─' } else { '-' }
    }

    /// A heading.
    pub fn heading(self, text: &str) -> String {
        if self.colour {
            format!("\x1b[1m{text}\x1b[0m\n")
        } else {
            format!("{text}\n")
        }
    }

    /// Text in characters that this terminal shows.
    pub fn encode(self, text: &str) -> String {
        if self.utf8 {
            text.to_owned()
        } else {
            text.chars().map(to_ascii).collect()
        }
    }

    /// Charts side by side, as many as fit, row below row.
    pub fn draw(self, charts: &[Chart]) -> String {
        let width = self.width.max(NARROWEST);
        let per_row = (width / (NARROWEST + 8)).clamp(1, 3);
        let cell = (width / per_row).min(WIDEST);
        let mut text = String::new();
        for row in charts.chunks(per_row as usize) {
            let legend = |chart| self.legend(chart, text_width(cell - GAP)).len() as u16;
            let legend_lines = row.iter().map(legend).max().unwrap_or(0);
            let height = 1 + legend_lines + PLOT_HEIGHT;
            let mut buffer = Buffer::empty(Rect::new(0, 0, cell * per_row, height));
            for (column, chart) in row.iter().enumerate() {
                let area = Rect::new(cell * column as u16, 0, cell - GAP, height);
                self.draw_chart(chart, area, legend_lines, &mut buffer);
            }
            text += &self.encode(&self.to_text(&buffer));
            text.push('\n');
        }
        text
    }

    /// Draws title, legend and plot into `area`; the plot starts `legend_lines` below the title.
    fn draw_chart(self, chart: &Chart, area: Rect, legend_lines: u16, buffer: &mut Buffer) {
        let text_width = text_width(area.width);
        let title = Line::styled(chart.title.as_str(), Modifier::BOLD);
        buffer.set_line(area.x + INDENT, area.y, &title, text_width);
        for (line, y) in self.legend(chart, text_width).iter().zip(area.y + 1..) {
            buffer.set_line(area.x + INDENT, y, line, text_width);
        }
        let points: Vec<Vec<(f64, f64)>> = chart.series.iter().map(coordinates).collect();
        let series = chart.series.iter().zip(&points).enumerate();
        let datasets = series.map(|(index, (series, points))| self.dataset(index, series, points));
        let (x, y) = chart.ranges();
        let plot = ChartWidget::new(datasets.collect())
            .x_axis(axis(&chart.x, x, 3))
            .y_axis(axis(&chart.y, y, 4))
            .legend_position(None);
        let header = 1 + legend_lines;
        let below = Rect {
            y: area.y + header,
            height: area.height - header,
            ..area
        };
        plot.render(below, buffer);
        self.put_letters(below, buffer);
    }

    fn dataset<'a>(self, index: usize, series: &Series, points: &'a [(f64, f64)]) -> Dataset<'a> {
        let is_line = series.mark != Mark::Dots && points.len() > 1;
        let shape = if is_line {
            GraphType::Line
        } else {
            GraphType::Scatter
        };
        let is_fine = self.colour && self.utf8 && is_line;
        Dataset::default()
            .data(points)
            .graph_type(shape)
            .marker(if is_fine {
                Marker::Braille
            } else {
                Marker::Dot
            })
            .style(Style::new().fg(self.paint(index, series)))
    }

    /// Names of the series, each beside what it is drawn with, in lines of at most `width`.
    fn legend(self, chart: &Chart, width: u16) -> Vec<Line<'_>> {
        let mut lines = vec![Line::default()];
        for (index, series) in chart.series.iter().enumerate() {
            let key = match (self.colour, series.mark) {
                (false, _) => LETTERS[index % LETTERS.len()].to_string(),
                (true, Mark::Dots) => DOT.to_owned(),
                (true, Mark::Thin | Mark::Bold) => "──".to_owned(),
            };
            let colour = if self.colour {
                self.paint(index, series)
            } else {
                Color::Reset
            };
            let entry = [
                Span::styled(key, Style::new().fg(colour)),
                Span::raw(format!(" {}   ", series.label)),
            ];
            let entry_width: usize = entry.iter().map(Span::width).sum();
            let line_width = lines.last().map_or(0, Line::width);
            if line_width > 0 && line_width + entry_width > width as usize {
                lines.push(Line::default());
            }
            if let Some(line) = lines.last_mut() {
                line.spans.extend(entry);
            }
        }
        lines
    }

    /// The colour of a series; without colours, a number that says which letter its points become.
    fn paint(self, index: usize, series: &Series) -> Color {
        if self.colour {
            Color::Indexed(COLOURS[series.colour % COLOURS.len()])
        } else {
            Color::Indexed((index % LETTERS.len()) as u8)
        }
    }

    /// Without colours: makes each point the letter of its series.
    fn put_letters(self, area: Rect, buffer: &mut Buffer) {
        if self.colour {
            return;
        }
        for position in area.positions() {
            let cell = &mut buffer[position];
            if let Color::Indexed(letter) = cell.fg
                && cell.symbol() == DOT
            {
                cell.set_char(LETTERS[letter as usize]);
            }
        }
    }

    /// The buffer's lines, with escape sequences where colours are shown.
    fn to_text(self, buffer: &Buffer) -> String {
        let mut text = String::new();
        for y in 0..buffer.area.height {
            let mut line = String::new();
            let mut current = (Color::Reset, Modifier::empty());
            for x in 0..buffer.area.width {
                let cell = &buffer[(x, y)];
                let wanted = (cell.fg, cell.modifier);
                if self.colour && wanted != current && cell.symbol() != " " {
                    line += &escape(wanted);
                    current = wanted;
                }
                line += cell.symbol();
            }
            text += line.trim_end();
            if current != (Color::Reset, Modifier::empty()) {
                text += "\x1b[0m";
            }
            text.push('\n');
        }
        text
    }
}

fn escape((colour, modifier): (Color, Modifier)) -> String {
    let bold = if modifier.contains(Modifier::BOLD) {
        ";1"
    } else {
        ""
    };
    match colour {
        Color::Indexed(number) => format!("\x1b[0{bold};38;5;{number}m"),
        _ => format!("\x1b[0{bold}m"),
    }
}

/// Columns for the title and the legend of a chart of this width.
fn text_width(chart: u16) -> u16 {
    chart.saturating_sub(INDENT)
}

/// An axis over `[low, high]` with `labels` numbers at equal distances.
fn axis(axis: &Axis, [low, high]: [f64; 2], labels: u32) -> AxisWidget<'_> {
    let at = |index| low + (high - low) * f64::from(index) / f64::from(labels - 1);
    let label = |index| tick(at(index), high - low);
    AxisWidget::default()
        .title(axis.label.as_str())
        .bounds([low, high])
        .labels((0..labels).map(label).collect::<Vec<_>>())
}

fn coordinates(series: &Series) -> Vec<(f64, f64)> {
    series
        .points
        .iter()
        .map(|point| (point.x, point.y))
        .collect()
}

/// The nearest ASCII character.
fn to_ascii(symbol: char) -> char {
    match symbol {
        _ if symbol.is_ascii() => symbol,
        '│' | '┃' => '|',
        '─' | '━' | '–' | '—' => '-',
        '└' | '┴' | '├' | '┤' => '+',
        '•' | '·' | '×' => '*',
        '±' => '~',
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use super::super::{figures, fixtures};
    use super::*;

    const PLAIN: Screen = Screen {
        width: 80,
        colour: false,
        utf8: false,
    };

    fn charts() -> Vec<Chart> {
        let runs = [fixtures::run("demo", 0.0)];
        figures::sections(&runs)
            .into_iter()
            .flat_map(|section| section.charts)
            .collect()
    }

    #[test]
    fn plain_output_is_ascii_with_a_letter_per_series() {
        let text = PLAIN.draw(&charts()[..1]);
        assert!(text.is_ascii(), "{text}");
        assert!(text.contains("pretrain: loss"), "{text}");
        assert!(text.contains("* training   o held-out"), "{text}");
        let plot: String = text.lines().skip(2).collect();
        assert!(
            plot.contains('*') && plot.contains('o') && plot.contains('|'),
            "{text}"
        );
    }

    #[test]
    fn colour_output_is_braille_and_ends_every_colour() {
        let screen = Screen {
            colour: true,
            utf8: true,
            ..PLAIN
        };
        let text = screen.draw(&charts());
        assert!(
            text.chars()
                .any(|symbol| ('\u{2801}'..='\u{28ff}').contains(&symbol)),
            "{text}"
        );
        for line in text.lines().filter(|line| line.contains('\x1b')) {
            assert!(line.ends_with("\x1b[0m") || line.rfind("\x1b[0m") == line.rfind('\x1b'));
        }
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in [48, 80, 113, 200, 400] {
            let text = Screen {
                width,
                utf8: true,
                ..PLAIN
            }
            .draw(&charts());
            let widest = text
                .lines()
                .map(|line| line.chars().count())
                .max()
                .expect("lines");
            assert!(widest <= width as usize, "{widest} > {width}");
        }
    }
}
