//! A chart as data, and its drawing as SVG.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::number::tick;

/// A chart of points over two axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Unique among the charts of one call; also the stem of its file.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn; at least one series, each of at least one point.
    pub series: Vec<Series>,
    /// Names of the metrics in it.
    pub metrics: Vec<&'static str>,
}

/// One axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// Quantity or unit.
    pub label: String,
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What the legend calls it.
    pub label: String,
    /// Index into [`PALETTE`], which repeats.
    pub colour: usize,
    /// How it is drawn.
    pub mark: Mark,
    /// In drawing order.
    pub points: Vec<Point>,
}

/// A point, with its standard error if it has one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Point {
    /// Horizontal position.
    pub x: f64,
    /// Vertical position.
    pub y: f64,
    /// Standard error of `y`.
    pub error: Option<f64>,
}

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A thin line.
    Thin,
    /// A thick line, with dots where there are few points.
    Bold,
    /// Dots without a line.
    Dots,
}

/// Colours that people with any kind of colour vision tell apart (Okabe and Ito 2008, without the
/// yellow, which is too light on white).
pub const PALETTE: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];
/// Background.
pub const PAPER: RGBColor = RGBColor(0xFF, 0xFF, 0xFE);
/// Text.
pub const INK: RGBColor = RGBColor(0x1F, 0x23, 0x28);
/// Text of less weight.
pub const SOFT_INK: RGBColor = RGBColor(0x59, 0x63, 0x6E);
/// Axis lines.
pub const AXIS: RGBColor = RGBColor(0x8C, 0x95, 0x9F);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(0xE4, 0xE7, 0xEB);

/// Size at which a chart is shown.
const SHOWN: (u32, u32) = (720, 400);
/// The canvas is this much finer, because the backend rounds coordinates to whole units.
const FINENESS: u32 = 4;
/// Series with more points than this are drawn without dots.
const MOST_DOTS: usize = 60;
/// Mean width of a letter in units of the font's size.
const LETTER_WIDTH: f64 = 0.54;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

impl Chart {
    /// The ranges of both axes: all points and their errors, with a little room.
    pub fn ranges(&self) -> ([f64; 2], [f64; 2]) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let error = |point: &Point| point.error.unwrap_or(0.0);
        let low_high = |point: &Point| [point.y - error(point), point.y + error(point)];
        let x = range(points().map(|point| point.x), 0.0);
        let y = range(points().flat_map(low_high), 0.06);
        (x, y)
    }

    /// Draws the chart as an SVG document of its own.
    ///
    /// # Errors
    /// Where the drawing library cannot lay it out.
    pub fn to_svg(&self) -> Result<String> {
        let canvas = (SHOWN.0 * FINENESS, SHOWN.1 * FINENESS);
        let mut svg = String::new();
        {
            let root = SVGBackend::with_string(&mut svg, canvas).into_drawing_area();
            root.fill(&PAPER)?;
            let header = self.draw_header(&root)?;
            let (_, body) = root.split_vertically(header);
            self.draw_body(&body)?;
            root.present()?;
        }
        let fine = format!("<svg width=\"{}\" height=\"{}\"", canvas.0, canvas.1);
        let shown = format!(
            "<svg width=\"{}\" height=\"{}\" role=\"img\"",
            SHOWN.0, SHOWN.1
        );
        Ok(svg.replacen(&fine, &shown, 1))
    }

    /// Draws title and legend above the plot, and returns their height.
    fn draw_header(&self, root: &Area) -> Result<u32> {
        let margin = px(16);
        let title = font(16).style(FontStyle::Bold).color(&INK);
        root.draw(&Text::new(self.title.clone(), (margin, px(12)), title))?;
        let (mut x, mut y) = (margin, px(40));
        for series in &self.series {
            let width = px(34) + (series.label.chars().count() as f64 * letter(13)) as i32 + px(16);
            if x > margin && x + width > px(SHOWN.0 as i32) {
                (x, y) = (margin, y + px(19));
            }
            draw_key(root, series, (x, y))?;
            let text = font(13).color(&INK);
            root.draw(&Text::new(series.label.clone(), (x + px(34), y), text))?;
            x += width;
        }
        Ok((y + px(24)) as u32)
    }

    fn draw_body(&self, body: &Area) -> Result<()> {
        let ([x_low, x_high], [y_low, y_high]) = self.ranges();
        let mut plot = ChartBuilder::on(body)
            .margin_top(px(6))
            .margin_right(px(20))
            .margin_bottom(px(4))
            .margin_left(px(8))
            .x_label_area_size(px(44))
            .y_label_area_size(px(64))
            .build_cartesian_2d(x_low..x_high, y_low..y_high)?;
        plot.configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .bold_line_style(GRID.stroke_width(px(1) as u32))
            .axis_style(AXIS.stroke_width(px(1) as u32))
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|value| tick(*value, x_high - x_low))
            .y_label_formatter(&|value| tick(*value, y_high - y_low))
            .x_desc(self.x.label.clone())
            .y_desc(self.y.label.clone())
            .label_style(font(12).color(&SOFT_INK))
            .axis_desc_style(font(13).color(&INK))
            .set_all_tick_mark_size(px(4))
            .draw()?;
        for series in &self.series {
            draw_series(&mut plot, series)?;
        }
        Ok(())
    }
}

/// A line, dots or both, with error bars.
fn draw_series(plot: &mut Plot, series: &Series) -> Result<()> {
    let colour = PALETTE[series.colour % PALETTE.len()];
    let at = |point: &Point| (point.x, point.y);
    if let Some(stroke) = stroke(series.mark) {
        let opacity = if series.mark == Mark::Thin { 0.75 } else { 1.0 };
        let style = colour.mix(opacity).stroke_width(stroke);
        plot.draw_series(LineSeries::new(series.points.iter().map(at), style))?;
    }
    let bars = series.points.iter().filter_map(|point| {
        let error = point.error?;
        let ends = vec![(point.x, point.y - error), (point.x, point.y + error)];
        Some(PathElement::new(ends, colour.stroke_width(px(1) as u32)))
    });
    plot.draw_series(bars)?;
    if has_dots(series) {
        let style = dot_colour(series, colour).filled();
        let dot = |point: &Point| Circle::new(at(point), dot_radius(series), style);
        plot.draw_series(series.points.iter().map(dot))?;
    }
    Ok(())
}

/// The sample of a series in the legend; `at` is its upper left corner.
fn draw_key(root: &Area, series: &Series, at: (i32, i32)) -> Result<()> {
    let colour = PALETTE[series.colour % PALETTE.len()];
    let middle = at.1 + px(6);
    if let Some(stroke) = stroke(series.mark) {
        let ends = vec![(at.0, middle), (at.0 + px(26), middle)];
        root.draw(&PathElement::new(ends, colour.stroke_width(stroke)))?;
    }
    if has_dots(series) {
        let style = dot_colour(series, colour).filled();
        root.draw(&Circle::new(
            (at.0 + px(13), middle),
            dot_radius(series),
            style,
        ))?;
    }
    Ok(())
}

fn stroke(mark: Mark) -> Option<u32> {
    match mark {
        Mark::Thin => Some(FINENESS * 5 / 4),
        Mark::Bold => Some(FINENESS * 9 / 4),
        Mark::Dots => None,
    }
}

/// A point alone is always a dot: a line would not show it.
fn has_dots(series: &Series) -> bool {
    match series.mark {
        Mark::Dots => true,
        Mark::Bold => series.points.len() <= MOST_DOTS,
        Mark::Thin => series.points.len() == 1,
    }
}

fn dot_colour(series: &Series, colour: RGBColor) -> RGBAColor {
    colour.mix(if series.mark == Mark::Dots { 0.55 } else { 1.0 })
}

fn dot_radius(series: &Series) -> i32 {
    if series.mark == Mark::Bold {
        px(7) / 2
    } else {
        px(11) / 4
    }
}

/// Shown pixels in units of the canvas.
const fn px(shown: i32) -> i32 {
    shown * FINENESS as i32
}

/// A font of this many shown pixels; the backend divides sizes by 1.24.
fn font(shown: i32) -> FontDesc<'static> {
    ("system-ui, sans-serif", f64::from(px(shown)) * 1.24).into_font()
}

/// Mean width of a letter of a font, in units of the canvas.
fn letter(shown: i32) -> f64 {
    f64::from(px(shown)) * LETTER_WIDTH
}

/// Lowest and highest value, with a share of their distance as room on both sides; the room does
/// not reach below zero where no value does.
fn range(values: impl Iterator<Item = f64>, room: f64) -> [f64; 2] {
    let ends = (f64::INFINITY, f64::NEG_INFINITY);
    let (low, high) = values.fold(ends, |(low, high), value| (low.min(value), high.max(value)));
    let span = high - low;
    // A flat series lies in the middle of its axis.
    let pad = if span > 0.0 {
        span * room
    } else {
        (low.abs() * 0.1).max(0.5)
    };
    let is_positive = low >= 0.0 && span > 0.0;
    [
        if is_positive {
            (low - pad).max(0.0)
        } else {
            low - pad
        },
        high + pad,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: &[(f64, f64)]) -> Chart {
        let points = points
            .iter()
            .map(|&(x, y)| Point { x, y, error: None })
            .collect();
        Chart {
            id: "ppo-kl".to_owned(),
            title: "ppo: KL <of> a & b".to_owned(),
            x: Axis {
                label: "step".to_owned(),
            },
            y: Axis {
                label: "nats".to_owned(),
            },
            series: vec![Series {
                label: "held-out".to_owned(),
                colour: 1,
                mark: Mark::Bold,
                points,
            }],
            metrics: vec!["heldout/kl"],
        }
    }

    #[test]
    fn the_svg_has_the_series_its_label_and_the_axes() {
        let svg = chart(&[(0.0, 1.0), (10.0, 2.0), (20.0, 1.5)])
            .to_svg()
            .expect("an SVG");
        let lines = svg.lines().filter(|line| line.starts_with("<polyline"));
        let of_series = lines.filter(|line| line.contains("#D55E00"));
        let num_points = |line: &str| {
            let points = line.split("points=\"").nth(1).unwrap_or_default();
            points
                .split_whitespace()
                .filter(|point| point.contains(','))
                .count()
        };
        assert_eq!(of_series.map(num_points).max(), Some(3), "{svg}");
        assert_eq!(
            svg.matches("<circle").count(),
            4,
            "three dots and one in the legend"
        );
        for text in ["held-out", "step", "nats", "ppo: KL &lt;of&gt; a &amp; b"] {
            assert!(svg.contains(text), "{text} is missing");
        }
    }

    #[test]
    fn flat_and_single_points_are_drawn() {
        for points in [&[(3.0, 0.0)][..], &[(0.0, 7.0), (1.0, 7.0)]] {
            let svg = chart(points).to_svg().expect("an SVG");
            assert!(svg.contains("<circle"), "{svg}");
        }
    }

    #[test]
    fn room_around_positive_values_does_not_reach_below_zero() {
        let (x, y) = chart(&[(1.0, 0.0), (9.0, 10.0)]).ranges();
        assert!(
            (x[0] - 1.0).abs() + (x[1] - 9.0).abs() + y[0].abs() < 1e-12,
            "{x:?} {y:?}"
        );
        assert!(y[1] > 10.0 && chart(&[(0.0, -1.0), (1.0, 1.0)]).ranges().1[0] < -1.0);
    }

    #[test]
    fn ranges_cover_error_bars() {
        let mut chart = chart(&[(0.0, 1.0), (1.0, 2.0)]);
        chart.series[0].points[1].error = Some(0.5);
        let (_, [low, high]) = chart.ranges();
        assert!(low < 1.0 && high > 2.5, "{low} {high}");
    }
}
