//! One HTML page that needs no other file and no network.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;
use plotters::style::RGBColor;
use runtime::metrics::spec;

use super::chart::{AXIS, Chart, GRID, INK, PALETTE, PAPER, SOFT_INK};
use recipe::request::Conversation;

use super::evaluation::Evaluation;
use super::figures::{Section, metrics_shown, unit};
use super::run::Run;
use super::table::{Align, Table, comparison_table, numbers_table, stages_table};

/// Look of the page; the colours of charts are added to it.
const STYLE: &str = include_str!("page.css");
/// The charts' colours on a dark page, in the order of [`PALETTE`].
const DARK_PALETTE: [&str; 6] = [
    "#58a6ff", "#ff8c4c", "#3fce9b", "#e5a5c9", "#f2bd42", "#8fd3ff",
];

/// The page: tables, charts by stage, and what the metrics mean.
///
/// # Errors
/// Where a chart cannot be drawn.
pub fn page(runs: &[Run], sections: &[Section]) -> Result<String> {
    let labels: Vec<&str> = runs.iter().map(|run| run.label.as_str()).collect();
    let title = escape(&labels.join(", "));
    let mut body = String::new();
    writeln!(
        body,
        "<header><h1>{title}</h1>{}</header>",
        contents(sections)
    )?;
    body += "<div class=\"runs\">\n";
    for run in runs {
        writeln!(body, "<section><h2>{}</h2>", escape(&run.label))?;
        writeln!(
            body,
            "<p class=\"path\">{}</p>",
            escape(&run.root.display().to_string())
        )?;
        body += &table(&stages_table(run));
        if !run.has_metrics() {
            body += "<p>This run has no metrics yet.</p>\n";
        }
        body += "</section>\n";
    }
    body += "</div>\n";
    for run in runs {
        for (stage, evaluation) in run.evaluations() {
            body += &evaluated(
                &format!("{}: {} on held-out prompts", run.label, stage.name),
                evaluation,
            );
        }
    }
    if runs.len() > 1 {
        body += "<section><h2>Last values side by side</h2>\n";
        body += &table(&comparison_table(runs));
        body += "</section>\n";
    }
    for section in sections {
        let name = escape(&section.stage);
        writeln!(
            body,
            "<section id=\"stage-{name}\"><h2>{name}</h2>\n<div class=\"charts\">"
        )?;
        for chart in &section.charts {
            body += &figure(chart)?;
        }
        body += "</div></section>\n";
    }
    for run in runs.iter().filter(|run| run.has_metrics()) {
        writeln!(body, "<section><h2>Numbers of {}</h2>", escape(&run.label))?;
        body += &table(&numbers_table(run));
        body += "</section>\n";
    }
    body += &glossary(&metrics_shown(sections));
    Ok(format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\n\
         <title>{title}</title>\n<style>\n{STYLE}{}</style>\n</head>\n<body>\n{body}</body>\n</html>\n",
        chart_colours()
    ))
}

/// Links to the stages' charts.
fn contents(sections: &[Section]) -> String {
    let mut links = String::from("<nav>");
    for section in sections {
        let name = escape(&section.stage);
        links += &["<a href=\"#stage-", &name, "\">", &name, "</a> "].concat();
    }
    links + "</nav>"
}

/// What `rlhf eval` found: numbers, checks and conversations.
fn evaluated(title: &str, evaluation: &Evaluation) -> String {
    let check = |(name, holds): (&str, bool)| {
        let (class, word) = if holds { ("ok", "ok") } else { ("not", "NOT") };
        let name = escape(name);
        format!("<li class=\"{class}\"><b>{word}</b> {name}</li>\n")
    };
    let said = |(who, text): (&str, &str)| format!("<dt>{who}</dt><dd>{}</dd>", escape(text));
    let conversation = |Conversation { prompt, sft, ppo }: &Conversation| {
        let lines = [("user", prompt), ("SFT", sft), ("PPO", ppo)];
        let lines: String = lines.map(|(who, text)| said((who, text))).concat();
        format!("<div>{lines}</div>\n")
    };
    let sentence = |text: String| format!("<p>{}</p>\n", escape(&text));
    let checks: String = evaluation.checks().into_iter().map(check).collect();
    let summary: String = evaluation.summary().into_iter().map(sentence).collect();
    let conversations = evaluation.measured.conversations.iter();
    let conversations: String = conversations.map(conversation).collect();
    format!(
        "<section><h2>{}</h2>\n<div class=\"evaluation\"><div>{}</div>\
         <div><ul class=\"checks\">\n{checks}</ul>\n{summary}</div></div>\n\
         <dl class=\"conversations\">\n{conversations}</dl></section>\n",
        escape(title),
        table(&evaluation.table())
    )
}

/// A chart with what its metrics mean.
fn figure(chart: &Chart) -> Result<String> {
    let svg = chart.to_svg()?;
    let label = format!("<svg aria-label=\"{}\" ", escape(&chart.title));
    let mut text = String::from("<figure>");
    text += &svg.replacen("<svg ", &label, 1);
    text += "<figcaption>";
    for name in &chart.metrics {
        text += &meaning(name);
    }
    Ok(text + "</figcaption></figure>\n")
}

/// A metric's name, unit and meaning.
fn meaning(name: &str) -> String {
    let Some(spec) = spec(name) else {
        return String::new();
    };
    let unit = match unit(name) {
        "" => String::new(),
        unit => format!(" ({})", escape(unit)),
    };
    format!(
        "<p><code>{}</code>{unit}: {}</p>",
        escape(name),
        escape(spec.meaning)
    )
}

fn glossary(names: &BTreeSet<&'static str>) -> String {
    if names.is_empty() {
        return String::new();
    }
    let entries: String = names.iter().map(|name| meaning(name)).collect();
    format!(
        "<section><h2>What the metrics mean</h2>\n<div class=\"glossary\">{entries}</div></section>\n"
    )
}

fn table(table: &Table) -> String {
    let cells = |tag: &str, row: &[&str]| -> String {
        let columns = row.iter().zip(&table.columns);
        columns
            .map(|(text, (_, align))| cell(tag, *align, text))
            .collect()
    };
    let titles: Vec<&str> = table
        .columns
        .iter()
        .map(|(title, _)| title.as_str())
        .collect();
    let mut text = String::from("<div class=\"scroll\"><table><thead><tr>");
    text += &cells("th", &titles);
    text += "</tr></thead><tbody>\n";
    for row in &table.rows {
        let row: Vec<&str> = row.iter().map(String::as_str).collect();
        text += "<tr>";
        text += &cells("td", &row);
        text += "</tr>\n";
    }
    text + "</tbody></table></div>\n"
}

fn cell(tag: &str, align: Align, text: &str) -> String {
    let class = match align {
        Align::Left => "",
        Align::Right => " class=\"number\"",
    };
    format!("<{tag}{class}>{}</{tag}>", escape(text))
}

/// Rules that give the charts' parts the page's colours, and lighter lines on a dark page.
fn chart_colours() -> String {
    let mut css = String::new();
    for (colour, variable) in [
        (PAPER, "card"),
        (INK, "ink"),
        (SOFT_INK, "soft"),
        (AXIS, "axis"),
        (GRID, "grid"),
    ] {
        css += &recolour(colour, &format!("var(--{variable})"));
    }
    css += "@media (prefers-color-scheme: dark) {\n";
    for (colour, dark) in PALETTE.into_iter().zip(DARK_PALETTE) {
        css += &recolour(colour, dark);
    }
    css + "}\n"
}

/// A rule that replaces one colour of the charts.
fn recolour(RGBColor(red, green, blue): RGBColor, by: &str) -> String {
    let hex = format!("#{red:02X}{green:02X}{blue:02X}");
    format!("svg [fill=\"{hex}\"] {{ fill: {by} }}\nsvg [stroke=\"{hex}\"] {{ stroke: {by} }}\n")
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for symbol in text.chars() {
        match symbol {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::{figures, fixtures};
    use super::*;

    fn example() -> String {
        let mut first = fixtures::run("a<b>&\"c\"", 0.0);
        first.stages.rotate_left(1);
        first.stages[1].evaluation = Some(fixtures::evaluation());
        let runs = [first, fixtures::run("two", 1.0)];
        page(&runs, &figures::sections(&runs)).expect("a page")
    }

    /// Panics unless every element that is opened is closed, in order.
    fn assert_well_formed(html: &str) {
        let mut open: Vec<&str> = Vec::new();
        for part in html.split('<').skip(1) {
            let (tag, _) = part.split_once('>').expect("a tag that ends");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name), "closed in the wrong place");
            } else if !tag.starts_with('!') && !tag.ends_with('/') {
                open.push(tag.split_whitespace().next().expect("a name"));
            }
        }
        assert!(open.is_empty(), "never closed: {open:?}");
    }

    #[test]
    fn the_page_is_well_formed_and_escapes_names() {
        let html = example();
        assert_well_formed(&html);
        assert!(html.contains("a&lt;b&gt;&amp;&quot;c&quot;"));
        assert!(!html.contains("a<b>"));
    }

    #[test]
    fn the_page_needs_no_other_file() {
        let html = example().replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for reference in ["http", "src=", "url(", "@import", "<link", "<script"] {
            assert!(
                !html.contains(reference),
                "{reference} leads out of the page"
            );
        }
        let targets = html
            .split("href=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next());
        for target in targets {
            let id = target.strip_prefix('#').expect("a link within the page");
            assert!(
                html.contains(&format!("id=\"{id}\"")),
                "{target} leads nowhere"
            );
        }
    }

    #[test]
    fn the_page_shows_charts_numbers_and_meanings() {
        let html = example();
        assert!(html.matches("<svg").count() >= 7);
        assert!(html.contains("Last values side by side"));
        let kl = spec("objective/kl").expect("declared");
        assert!(html.contains(&escape(kl.meaning)));
        assert!(html.contains("<dd>great &amp; good</dd>"), "a conversation");
        assert_eq!(html.matches("<li class=\"ok\">").count(), 8, "the checks");
    }

    #[test]
    fn a_run_without_metrics_says_so() {
        let mut run = fixtures::run("new", 0.0);
        run.stages.iter_mut().for_each(|stage| stage.rows.clear());
        let html = page(&[run], &[]).expect("a page");
        assert!(html.contains("no metrics yet"));
        assert_well_formed(&html);
    }
}
