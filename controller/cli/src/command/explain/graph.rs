//! The paths of an explanation as a graph: DOT for Graphviz, or SVG. Both are made from the answer that the table shows.

use crate::output::{at, items};
use clap::ValueEnum;
use serde_json::Value;
use std::fmt::Write as _;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For Graphviz
    Dot,
    /// A picture for browsers
    Svg,
}

/// The machines that a packet and its reply pass, in the order in which the packet first reaches them.
#[derive(Debug, Default, PartialEq, Eq)]
struct Graph {
    title: String,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

#[derive(Debug, PartialEq, Eq)]
struct Node {
    /// The agent; for a reason to stop, the agent with the reason.
    key: String,
    lines: Vec<String>,
    /// Whether the node is the reason why the packet or its reply goes no further.
    is_stop: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Edge {
    from: usize,
    to: usize,
    text: String,
    is_reply: bool,
}

/// The graph of an answer.
pub(super) fn draw(answer: &Value, format: Format) -> String {
    let graph = Graph::of(answer);
    match format {
        Format::Dot => graph.dot(),
        Format::Svg => graph.svg(),
    }
}

impl Graph {
    fn of(answer: &Value) -> Self {
        let mut graph = Self {
            title: format!(
                "{} → {}, {}: {}",
                at(answer, "/source"),
                at(answer, "/destination"),
                at(answer, "/protocol"),
                at(answer, "/summary")
            ),
            ..Self::default()
        };
        for (way, is_reply) in [("request", false), ("reply", true)] {
            if let Some(walk) = answer.get(way).filter(|walk| !walk.is_null()) {
                graph.add_walk(walk, is_reply);
            }
        }
        graph
    }

    fn add_walk(&mut self, walk: &Value, is_reply: bool) {
        let mut previous: Option<(usize, String)> = None;
        for hop in items(walk, "/hops") {
            let node = self.node(&at(hop, "/agent"), &at(hop, "/vnet"));
            if let Some((from, text)) = previous {
                self.edges.push(Edge {
                    from,
                    to: node,
                    text,
                    is_reply,
                });
            }
            previous = Some((node, route_of(hop)));
        }
        let Some(stop) = walk.get("stop").filter(|stop| !stop.is_null()) else {
            return;
        };
        let (agent, reason) = (at(stop, "/agent"), at(stop, "/reason"));
        let from = match previous {
            Some((from, _)) => from,
            None => self.node(&agent, ""),
        };
        self.nodes.push(Node {
            key: format!("{agent}: {reason}"),
            lines: vec![reason, at(stop, "/cause")],
            is_stop: true,
        });
        self.edges.push(Edge {
            from,
            to: self.nodes.len() - 1,
            text: String::new(),
            is_reply,
        });
    }

    /// The position of an agent's node, which is added if it is missing.
    fn node(&mut self, agent: &str, vnet: &str) -> usize {
        if let Some(known) = self.nodes.iter().position(|node| node.key == agent) {
            return known;
        }
        let vnet = tombolo_client::path::last(vnet);
        let lines = [agent, vnet].into_iter().filter(|line| !line.is_empty());
        self.nodes.push(Node {
            key: agent.to_owned(),
            lines: lines.map(str::to_owned).collect(),
            is_stop: false,
        });
        self.nodes.len() - 1
    }

    fn dot(&self) -> String {
        let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
        let quoted = |text: &str| format!("\"{}\"", escape(text));
        let mut out = String::from("digraph path {\n  rankdir=LR;\n  node [shape=box];\n");
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  label={};", quoted(&self.title));
        for (number, node) in self.nodes.iter().enumerate() {
            // The two characters \n begin a new line in a label.
            let label = node
                .lines
                .iter()
                .map(|line| escape(line))
                .collect::<Vec<_>>()
                .join("\\n");
            let colour = if node.is_stop { ", color=red, fontcolor=red" } else { "" };
            let _ = writeln!(out, "  n{number} [label=\"{label}\"{colour}];");
        }
        for edge in &self.edges {
            let style = if edge.is_reply { ", style=dashed" } else { "" };
            let text = quoted(&edge.text);
            let _ = writeln!(out, "  n{} -> n{} [label={text}{style}];", edge.from, edge.to);
        }
        out.push_str("}\n");
        out
    }

    /// A picture with the nodes in a row, the way there above and the way back below.
    fn svg(&self) -> String {
        const WIDTH: usize = 190;
        const HEIGHT: usize = 60;
        const GAP: usize = 170;
        const TOP: usize = 120;
        let left = |number: usize| 20 + number * (WIDTH + GAP);
        let width = left(self.nodes.len().max(1)) - GAP + 20;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"300\" viewBox=\"0 0 {width} 300\" \
             font-family=\"sans-serif\" font-size=\"13\">\n<defs><marker id=\"arrow\" markerWidth=\"9\" markerHeight=\"9\" refX=\"8\" \
             refY=\"4\" orient=\"auto\"><path d=\"M0,0 L9,4 L0,8 z\"/></marker></defs>\n"
        );
        let _ = writeln!(
            out,
            "<text x=\"20\" y=\"24\" font-weight=\"bold\">{}</text>",
            escaped(&self.title)
        );
        for (number, node) in self.nodes.iter().enumerate() {
            let (x, colour) = (left(number), if node.is_stop { "#b00020" } else { "#333" });
            let _ = writeln!(
                out,
                "<rect x=\"{x}\" y=\"{TOP}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"6\" fill=\"#fff\" stroke=\"{colour}\"/>"
            );
            for (line, text) in node.lines.iter().take(2).enumerate() {
                let y = TOP + 25 + 20 * line;
                // The whole text is the tooltip of one that is too long.
                let _ = writeln!(
                    out,
                    "<text x=\"{}\" y=\"{y}\" fill=\"{colour}\">{}<title>{}</title></text>",
                    x + 10,
                    escaped(&shortened(text, 26)),
                    escaped(text)
                );
            }
        }
        for edge in &self.edges {
            let (middle, y, turn) = match edge.is_reply {
                false => (WIDTH / 2, TOP, TOP - 50),
                true => (WIDTH / 2, TOP + HEIGHT, TOP + HEIGHT + 50),
            };
            let (from, to) = (left(edge.from) + middle, left(edge.to) + middle);
            let dash = if edge.is_reply { " stroke-dasharray=\"6 4\"" } else { "" };
            let between = usize::midpoint(from, to);
            let _ = writeln!(
                out,
                "<path d=\"M{from},{y} Q{between},{turn} {to},{y}\" fill=\"none\" stroke=\"#333\"{dash} marker-end=\"url(#arrow)\"/>"
            );
            let label = if edge.is_reply { turn + 5 } else { turn + 15 };
            let _ = writeln!(
                out,
                "<text x=\"{between}\" y=\"{label}\" text-anchor=\"middle\" font-size=\"11\">{}</text>",
                escaped(&shortened(&edge.text, 40))
            );
        }
        out.push_str("</svg>\n");
        out
    }
}

/// The route by which a hop sends the packet on, in a few words.
fn route_of(hop: &Value) -> String {
    let parts = [at(hop, "/route/addressPrefix"), at(hop, "/route/nextHopType")];
    let words: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    match words.is_empty() {
        true => at(hop, "/relation"),
        false => words.join(" "),
    }
}

fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn escaped(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    text.replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn answer() -> Value {
        let hop = |agent: &str, prefix: &str| json!({"agent": agent, "vnet": "/s/virtualNetworks/hub", "route": {"addressPrefix": prefix, "nextHopType": "VnetPeering"}});
        json!({
            "source": "10.1.0.4", "destination": "10.2.0.4", "protocol": "tcp", "summary": "the reply is \"lost\" & gone",
            "request": {"delivered": true, "hops": [hop("a", "10.2.0.0/16"), hop("b", "10.2.0.0/24")]},
            "reply": {"delivered": false, "hops": [hop("b", "10.1.0.0/16")],
                      "stop": {"agent": "b", "reason": "access_denied", "cause": "access is off"}},
        })
    }

    #[test]
    fn both_ways_are_in_the_graph() {
        let graph = Graph::of(&answer());
        let keys: Vec<&str> = graph.nodes.iter().map(|node| node.key.as_str()).collect();
        assert_eq!(keys, ["a", "b", "b: access_denied"]);
        let ends: Vec<_> = graph.edges.iter().map(|e| (e.from, e.to, e.is_reply)).collect();
        assert_eq!(ends, [(0, 1, false), (1, 2, true)]);
        assert_eq!(graph.edges[0].text, "10.2.0.0/16 VnetPeering");
    }

    #[test]
    fn both_formats_quote_what_they_show() {
        let dot = draw(&answer(), Format::Dot);
        assert!(dot.contains(r#"the reply is \"lost\" & gone"#), "{dot}");
        assert!(dot.contains(r#"n0 [label="a\nhub"];"#), "{dot}");
        assert!(dot.contains("n1 -> n2 [label=\"\", style=dashed];"), "{dot}");
        let svg = draw(&answer(), Format::Svg);
        assert!(
            svg.contains("&quot;lost&quot; &amp; gone") && svg.ends_with("</svg>\n"),
            "{svg}"
        );
        assert_eq!(svg.matches("<rect").count(), 3);
        // A walk that begins nowhere has a graph too.
        let stopped = json!({"request": {"hops": [], "stop": {"agent": "a", "reason": "no_route", "cause": "c"}}});
        assert_eq!(Graph::of(&stopped).nodes.len(), 2);
        draw(&json!({}), Format::Svg);
    }
}
