//! The rows as a picture: one bar for us, one for the baseline, on a logarithmic axis.

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::path::Path;

/// A row that has a baseline; times in microseconds.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) ours: f64,
    pub(crate) baseline: f64,
}

/// Pixels: a row, the space for names, the whole width.
const ROW: u32 = 26;
const NAMES: u32 = 470;
const WIDTH: u32 = 1100;

/// Writes the picture to `path` as SVG.
///
/// # Errors
/// It cannot be written.
pub(crate) fn draw(path: &Path, bars: &[Bar]) -> Result<()> {
    let count = u32::try_from(bars.len())?;
    let area = SVGBackend::new(path, (WIDTH, ROW * count + 110)).into_drawing_area();
    paint(&area, bars).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn paint(area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, bars: &[Bar]) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("{error}");
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let times = || bars.iter().flat_map(|bar| [bar.ours, bar.baseline]);
    let least = times().fold(f64::MAX, f64::min).max(1e-3) / 2.0;
    let most = times().fold(least, f64::max) * 2.0;
    let rows = i32::try_from(bars.len())?;
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption("microseconds; lower is better", ("sans-serif", 16))
        .x_label_area_size(40)
        .y_label_area_size(NAMES)
        .build_cartesian_2d((least..most).log_scale(), (0..rows).into_segmented())
        .map_err(|error| failed(&error))?;
    let name = |value: &SegmentValue<i32>| match value {
        SegmentValue::CenterOf(row) => {
            let row = usize::try_from(*row).ok().and_then(|row| bars.get(row));
            row.map_or(String::new(), |bar| bar.name.clone())
        }
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(bars.len() + 1)
        .y_label_formatter(&name)
        .label_style(("sans-serif", 12))
        .draw()
        .map_err(|error| failed(&error))?;
    for (what, color, of) in [
        ("ours", BLUE.mix(0.8), (|bar: &Bar| bar.ours) as fn(&Bar) -> f64),
        ("baseline", RED.mix(0.35), |bar: &Bar| bar.baseline),
    ] {
        let margin = if what == "ours" { (3, 13) } else { (13, 3) };
        let bar = |(row, bar): (i32, &Bar)| {
            let (from, to) = (SegmentValue::Exact(row), SegmentValue::Exact(row + 1));
            let mut rectangle = Rectangle::new([(least, from), (of(bar), to)], color.filled());
            rectangle.set_margin(margin.0, margin.1, 0, 0);
            rectangle
        };
        chart
            .draw_series((0..).zip(bars).map(bar))
            .map_err(|error| failed(&error))?
            .label(what)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()
        .map_err(|error| failed(&error))?;
    area.present().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_names_every_row_and_one_without_rows_is_still_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let bar = |name: &str, ours, baseline| Bar { name: name.to_owned(), ours, baseline };
        draw(&path, &[bar("sendrec / pipe", 0.3, 5.0), bar("sendrec / tcp", 0.3, 60.0)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("sendrec / pipe") && text.contains("sendrec / tcp"), "{text}");
        draw(&path, &[]).unwrap();
    }
}
