//! The modules of the controller import each other without circles, so that each file can be read after the files that
//! it imports. Packages depend on each other in one direction (D1).
//!
//! The graph has one node for each file. An edge leads from a file to each file that its code names: by `use`, by a
//! re-export, or by a path such as `crate::net::overlap`. A declaration (`mod net;`) is not an import, test code is left
//! out, and method calls are invisible.

#![allow(clippy::unwrap_used, reason = "a file that cannot be read fails the test")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use tombolo_tests::citations::root;

/// The source trees that are checked.
const TREES: [&str; 3] = ["controller/topology/src", "controller/src", "controller/cli/src"];

/// The file that lists all kinds of resources. The imports of this file are left out. A kind is one file with its type
/// and its rules. `Topology` has a map for each type, and the rules of each kind read the whole `Topology`, so a circle
/// from the kinds through `Topology` and this list back to the kinds is inherent (docs/architecture.md, "A kind of
/// resource"). All other imports of the kinds are checked.
const LIST_OF_KINDS: &str = "controller/topology/src/resource.rs";

/// Imports that are permitted although they close a circle, each as the importing and the imported file. The list may only
/// shrink.
const KNOWN: &[(&str, &str)] = &[];

/// The files that each file imports.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// A piece of source text that matters here. Literals, lifetimes and comments are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Word(String),
    /// The path separator, `::`.
    Separator,
    Symbol(char),
}

/// Splits source text into tokens.
fn tokens(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut found = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        at += match rest {
            ['/', '/', ..] => rest.iter().take_while(|c| **c != '\n').count(),
            ['/', '*', ..] => 2 + end_of_block_comment(&rest[2..]),
            ['"', ..] => 1 + end_of_text(&rest[1..]),
            ['r', '"' | '#', ..] if raw_text(rest).is_some() => raw_text(rest).unwrap_or(1),
            // A quote begins a character literal, or else a lifetime. The name of a lifetime is read as a word.
            ['\'', '\\', _, ..] => 3 + rest[3..].iter().take_while(|c| **c != '\'').count() + 1,
            ['\'', _, '\'', ..] => 3,
            [':', ':', ..] => {
                found.push(Token::Separator);
                2
            }
            [c, ..] if c.is_alphabetic() || *c == '_' => {
                let word: String = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
                let length = word.chars().count();
                found.push(Token::Word(word));
                length
            }
            [c, ..] => {
                if !c.is_whitespace() {
                    found.push(Token::Symbol(*c));
                }
                1
            }
            [] => 1,
        };
    }
    found
}

/// The number of characters of a block comment after its opening `/*`, up to and including the `*/` that closes it. Block
/// comments nest.
fn end_of_block_comment(rest: &[char]) -> usize {
    let (mut depth, mut at) = (1, 0);
    while at < rest.len() && depth > 0 {
        at += match &rest[at..] {
            ['*', '/', ..] => {
                depth -= 1;
                2
            }
            ['/', '*', ..] => {
                depth += 1;
                2
            }
            _ => 1,
        };
    }
    at
}

/// The number of characters of a string literal after its opening quote, up to and including its closing quote.
fn end_of_text(rest: &[char]) -> usize {
    let mut at = 0;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The length of a raw string literal such as `r#"…"#`. `None`: a word that begins with `r`.
fn raw_text(rest: &[char]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    let body = rest.get(1 + hashes..).filter(|body| body.first() == Some(&'"'))?;
    let end =
        |at: &usize| body[*at] == '"' && body[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    let length = (1..body.len()).find(end)?;
    Some(1 + hashes + length + 1 + hashes)
}

/// Removes items after `#[cfg(test)]`; returns the names of the test modules in other files.
fn without_tests(all: &[Token]) -> (Vec<Token>, Vec<String>) {
    let word = |w: &str| Token::Word(w.to_owned());
    let attribute = [
        Token::Symbol('#'),
        Token::Symbol('['),
        word("cfg"),
        Token::Symbol('('),
        word("test"),
        Token::Symbol(')'),
        Token::Symbol(']'),
    ];
    let (mut kept, mut modules, mut at) = (Vec::new(), Vec::new(), 0);
    while at < all.len() {
        if !all[at..].starts_with(&attribute) {
            kept.push(all[at].clone());
            at += 1;
            continue;
        }
        at += attribute.len();
        if let [Token::Word(keyword), Token::Word(name), Token::Symbol(';'), ..] = &all[at..]
            && keyword == "mod"
        {
            modules.push(name.clone());
        }
        let mut depth = 0;
        while at < all.len() {
            match &all[at] {
                Token::Symbol('{') => depth += 1,
                Token::Symbol('}') => depth -= 1,
                _ => {}
            }
            at += 1;
            let ends = matches!(&all[at - 1], Token::Symbol(';' | '}'));
            if ends && depth == 0 {
                break;
            }
        }
    }
    (kept, modules)
}

/// The paths that code names: those of `use`, with braces expanded, and others with at least two segments.
fn paths(code: &[Token]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < code.len() {
        match &code[at] {
            Token::Word(word) if word == "use" => {
                at += 1;
                use_tree(code, &mut at, &[], &mut found);
            }
            Token::Word(_) => {
                let mut path = Vec::new();
                while let Some(Token::Word(word)) = code.get(at) {
                    path.push(word.clone());
                    at += 1;
                    if code.get(at) != Some(&Token::Separator) {
                        break;
                    }
                    at += 1;
                }
                if path.len() > 1 {
                    found.push(path);
                }
            }
            _ => at += 1,
        }
    }
    found
}

/// Reads one tree of a `use` declaration.
fn use_tree(code: &[Token], at: &mut usize, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let mut path = prefix.to_vec();
    while let Some(token) = code.get(*at) {
        match token {
            Token::Word(word) if word == "as" => *at += 1,
            Token::Word(word) => path.push(word.clone()),
            Token::Separator => {}
            Token::Symbol('{') => {
                while code.get(*at).is_some_and(|t| *t != Token::Symbol('}')) {
                    *at += 1;
                    use_tree(code, at, &path, found);
                }
                *at += 1;
                return;
            }
            Token::Symbol('*') => {}
            Token::Symbol(_) => break,
        }
        *at += 1;
    }
    if path.len() > prefix.len() {
        found.push(path);
    }
}

/// All Rust files of a tree, by module path: `crate` is the empty one.
fn modules(tree: &str) -> BTreeMap<Vec<String>, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(folder) = open.pop() {
        let path = root().join(tree).join(folder.join("/"));
        for entry in std::fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let mut module = folder.clone();
            if entry.file_type().unwrap().is_dir() {
                module.push(name);
                open.push(module);
            } else if let Some(stem) = name.strip_suffix(".rs") {
                let file = [tree.to_owned()]
                    .into_iter()
                    .chain(folder.clone())
                    .chain([name.clone()]);
                let file = file.collect::<Vec<_>>().join("/");
                module.push(stem.to_owned());
                found.insert(module, file);
            }
        }
    }
    // A source tree with a library may also contain a program, whose files are a crate of their own.
    let top = ["lib", "main"].map(|name| found.remove(&vec![name.to_owned()]));
    let [lib, main] = top;
    found.insert(Vec::new(), lib.or(main).unwrap());
    found
}

/// The module that a path in module `from` leads to, as far as the path's segments are files. `None`: another crate, or
/// a local name.
fn target<'m>(
    modules: &'m BTreeMap<Vec<String>, String>,
    from: &[String],
    children: &BTreeSet<String>,
    path: &[String],
) -> Option<&'m String> {
    let ups = path.iter().take_while(|s| *s == "super").count();
    let mut full = match path[0].as_str() {
        "crate" => path[1..].to_vec(),
        "self" => [from, &path[1..]].concat(),
        "super" => [&from[..from.len().checked_sub(ups)?], &path[ups..]].concat(),
        first if children.contains(first) => [from, path].concat(),
        _ => return None,
    };
    while !modules.contains_key(&full) {
        full.pop()?;
    }
    modules.get(&full)
}

/// The imports of all files of one source tree, without test code. Files are named by their path from the root.
fn graph(tree: &str) -> Graph {
    let modules = modules(tree);
    let mut code = BTreeMap::new();
    let mut tests: BTreeSet<Vec<String>> = BTreeSet::new();
    for (module, file) in &modules {
        let (kept, of_tests) = without_tests(&tokens(&std::fs::read_to_string(root().join(file)).unwrap()));
        tests.extend(of_tests.into_iter().map(|name| [module.as_slice(), &[name]].concat()));
        code.insert(module, kept);
    }
    let mut graph = Graph::new();
    for (module, code) in code {
        if (1..=module.len()).any(|n| tests.contains(&module[..n])) {
            continue;
        }
        let children: BTreeSet<String> = modules
            .keys()
            .filter(|m| m.len() == module.len() + 1 && m.starts_with(module))
            .map(|m| m[module.len()].clone())
            .collect();
        let file = &modules[module];
        let imports = paths(&code);
        let imports = imports
            .iter()
            .filter_map(|path| target(&modules, module, &children, path));
        let imports = imports.filter(|other| *other != file).cloned().collect();
        graph.insert(file.clone(), imports);
    }
    graph
}

/// The shortest chain of imports from a file to another one, with both files. None: no chain leads there.
fn chain(graph: &Graph, from: &str, to: &str) -> Option<Vec<String>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut open = VecDeque::from([from]);
    while let Some(file) = open.pop_front() {
        for next in graph.get(file).into_iter().flatten() {
            if before.contains_key(next.as_str()) {
                continue;
            }
            before.insert(next, file);
            if next == to {
                let mut chain = vec![to.to_owned()];
                let mut at = to;
                while let Some(&previous) = before.get(at) {
                    chain.push(previous.to_owned());
                    at = previous;
                    if at == from {
                        break;
                    }
                }
                chain.reverse();
                return Some(chain);
            }
            open.push_back(next);
        }
    }
    None
}

/// The imports that are checked for circles: all except those of [`LIST_OF_KINDS`] and those in [`KNOWN`].
fn checked() -> Graph {
    let mut all: Graph = TREES.iter().flat_map(|tree| graph(tree)).collect();
    all.remove(LIST_OF_KINDS);
    for (file, imported) in KNOWN {
        if let Some(imports) = all.get_mut(*file) {
            imports.remove(*imported);
        }
    }
    all
}

#[test]
fn no_modules_of_the_controller_import_each_other_in_a_circle() {
    let graph = checked();
    let mut circles: BTreeMap<BTreeSet<String>, String> = BTreeMap::new();
    for file in graph.keys() {
        if let Some(circle) = chain(&graph, file, file) {
            circles
                .entry(circle.iter().cloned().collect())
                .or_insert_with(|| circle.join("\n    → "));
        }
    }
    let circles: Vec<String> = circles.into_values().collect();
    assert!(
        circles.is_empty(),
        "these files import each other in a circle; move what they share into a file that imports none of them:\n  {}",
        circles.join("\n  ")
    );
}

/// Each import in [`KNOWN`] closes a circle. When an import stops closing a circle, it must leave the list; otherwise a
/// new circle through this import would not be noticed.
#[test]
fn known_circles_still_exist() {
    let all: Graph = TREES.iter().flat_map(|tree| graph(tree)).collect();
    for (file, imported) in KNOWN {
        let exists = all.get(*file).is_some_and(|imports| imports.contains(*imported));
        let closes = exists && chain(&checked(), imported, file).is_some();
        assert!(
            closes,
            "remove from KNOWN, it closes no circle any more: {file} imports {imported}"
        );
    }
    let kinds = &all[LIST_OF_KINDS];
    let closing = kinds.iter().filter(|kind| chain(&all, kind, LIST_OF_KINDS).is_some());
    assert!(
        closing.count() > 0,
        "the exception for {LIST_OF_KINDS} is not needed any more"
    );
}

/// This file finds imports of every form in a source text, and takes nothing else for an import.
#[test]
fn imports_of_every_form_are_found() {
    let source = r##"
        //! crate::comment::none
        mod child;
        pub use child::Exported;
        use crate::a::{self, b::{C, D as Other}, e};
        use super::sibling::*;
        use std::fmt;
        const TEXT: &str = "crate::text::none \" crate::text::none";
        const RAW: &str = r#"crate::raw::none"#;
        const QUOTE: char = '"';
        fn inline<'a>(x: &'a str) -> crate::inline::Type { self::child::call(x); child::other() }
        /* crate::block::none /* nested */ crate::block::none */
        #[cfg(test)]
        mod tests { use crate::test::none; }
        #[cfg(test)]
        mod more;
        fn after() { crate::after::call() }
    "##;
    let (code, of_tests) = without_tests(&tokens(source));
    let found: Vec<String> = paths(&code).iter().map(|p| p.join("::")).collect();
    let expected = [
        "child::Exported",
        "crate::a::self",
        "crate::a::b::C",
        "crate::a::b::D",
        "crate::a::e",
        "super::sibling",
        "std::fmt",
        "crate::inline::Type",
        "self::child::call",
        "child::other",
        "crate::after::call",
    ];
    assert_eq!(found, expected);
    assert_eq!(of_tests, ["more"]);
}

/// The workspace's packages that a package's code depends on, by the `[dependencies]` of its Cargo.toml.
fn dependencies(package: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
    let section = text.lines().skip_while(|line| *line != "[dependencies]").skip(1);
    let section = section.take_while(|line| !line.starts_with('['));
    let names = section.filter_map(|line| line.split(['.', ' ', '=']).next());
    names
        .filter(|name| name.starts_with("tombolo-"))
        .map(str::to_owned)
        .collect()
}

/// D1: the command line depends on the client and on the lab, the lab on the client, and neither the controller nor the
/// agent on any of the three.
#[test]
fn d1_packages_depend_in_one_direction() {
    let users = ["tombolo-client", "tombolo-lab", "tombolo-cli"];
    for package in ["controller", "controller/topology", "agent", "agent/engine", "proto"] {
        let of = dependencies(package);
        assert!(!users.iter().any(|user| of.contains(*user)), "{package}: {of:?}");
    }
    let lab = dependencies("deploy/lab");
    assert!(
        lab.contains("tombolo-client") && !lab.contains("tombolo-cli"),
        "{lab:?}"
    );
    let cli = dependencies("controller/cli");
    assert!(cli.contains("tombolo-client") && cli.contains("tombolo-lab"), "{cli:?}");
}
