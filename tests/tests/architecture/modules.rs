//! Which top-level module of a crate names which, read from the source.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Expr, ExprLit, Item, ItemMod, Lit, Meta, UseTree};

/// `from` names something of `to`, in `file`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Arrow {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) file: PathBuf,
}

/// The top-level modules of a crate, and the arrows between them.
#[derive(Debug, Default)]
pub(super) struct Modules {
    pub(super) names: BTreeSet<String>,
    pub(super) arrows: BTreeSet<Arrow>,
}

/// Reads the crate `name`, as Rust writes it, whose first file is `root`. Code for tests (`cfg(test)`) does not count.
///
/// # Errors
/// What is not Rust, and what hides where a name comes from.
pub(super) fn read(name: &str, root: &Path, text: &dyn Fn(&Path) -> Option<String>) -> Result<Modules, String> {
    let file = parse(root, text)?;
    let mut names = BTreeSet::new();
    let mut of_root = BTreeMap::new();
    for item in &file.items {
        match item {
            Item::Mod(module) if !is_test(&module.attrs) => {
                names.insert(module.ident.to_string());
            }
            Item::Use(import) => remember(&import.tree, &[], &mut of_root)
                .map_err(|path| format!("{}: {path} hides what the root of the crate has", root.display()))?,
            _ => {}
        }
    }
    let mut reader = Reader {
        crate_name: name,
        names,
        of_root,
        text,
        arrows: BTreeSet::new(),
    };
    let folder = root.parent().unwrap_or(root);
    for item in &file.items {
        if let Item::Mod(module) = item {
            reader.module(module, root, folder, &[])?;
        }
    }
    Ok(Modules {
        names: reader.names,
        arrows: reader.arrows,
    })
}

fn parse(file: &Path, text: &dyn Fn(&Path) -> Option<String>) -> Result<syn::File, String> {
    let text = text(file).ok_or_else(|| format!("{} is not there", file.display()))?;
    syn::parse_file(&text).map_err(|error| format!("{}: {error}", file.display()))
}

/// What names the root of a crate has from its modules: name → first segment of its path.
fn remember(tree: &UseTree, path: &[String], names: &mut BTreeMap<String, String>) -> Result<(), String> {
    let mut add = |name: String| {
        if let Some(first) = path.iter().find(|part| !["crate", "self"].contains(&part.as_str())) {
            names.insert(name, first.clone());
        }
    };
    match tree {
        UseTree::Path(part) => {
            let path = [path, &[part.ident.to_string()]].concat();
            remember(&part.tree, &path, names)
        }
        UseTree::Name(name) => {
            add(name.ident.to_string());
            Ok(())
        }
        UseTree::Rename(name) => {
            add(name.rename.to_string());
            Ok(())
        }
        UseTree::Group(group) => group.items.iter().try_for_each(|tree| remember(tree, path, names)),
        _ => Err(format!("{}::*", path.join("::"))),
    }
}

struct Reader<'a> {
    crate_name: &'a str,
    names: BTreeSet<String>,
    /// What the root of the crate has by `use`, and out of which module.
    of_root: BTreeMap<String, String>,
    text: &'a dyn Fn(&Path) -> Option<String>,
    arrows: BTreeSet<Arrow>,
}

impl Reader<'_> {
    /// A module that is declared in `file`; the files of what `file` declares are in `folder`. `parents` are around it.
    fn module(&mut self, module: &ItemMod, file: &Path, folder: &Path, parents: &[String]) -> Result<(), String> {
        if is_test(&module.attrs) {
            return Ok(());
        }
        let name = module.ident.to_string();
        let path = [parents, std::slice::from_ref(&name)].concat();
        if let Some((_, items)) = &module.content {
            return self.items(items, file, &folder.join(&name), &path);
        }
        let own = match path_attribute(&module.attrs) {
            Some(own) => file.parent().unwrap_or(file).join(own),
            None => folder.join(format!("{name}.rs")),
        };
        let within = folder.join(&name);
        let own = match (self.text)(&own) {
            Some(_) => own,
            None => within.join("mod.rs"),
        };
        let items = parse(&own, self.text)?.items;
        self.items(&items, &own, &within, &path)
    }

    fn items(&mut self, items: &[Item], file: &Path, folder: &Path, path: &[String]) -> Result<(), String> {
        for item in items {
            match item {
                Item::Mod(module) => self.module(module, file, folder, path)?,
                _ => self.tokens(item.to_token_stream(), file, path)?,
            }
        }
        Ok(())
    }

    /// Every path in it that begins at the root of the crate or above the module `path`, wherever it stands: in imports,
    /// types, expressions, and what is given to macros.
    fn tokens(&mut self, tokens: TokenStream, file: &Path, path: &[String]) -> Result<(), String> {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            if let Some(behind) = behind_test_code(&tokens, at) {
                at = behind;
                continue;
            }
            match token {
                TokenTree::Group(group) => self.tokens(group.stream(), file, path)?,
                // What a derive macro is given: `#[serde(with = "crate::…")]`.
                TokenTree::Literal(literal) => {
                    let text = literal.to_string();
                    let text = text.trim_matches('"');
                    if (text.starts_with("crate::") || text.starts_with("super::"))
                        && let Ok(tokens) = text.parse()
                    {
                        self.tokens(tokens, file, path)?;
                    }
                }
                TokenTree::Ident(ident) if at < 2 || !is_separator(&tokens, at - 2) => {
                    let depth = match ident.to_string().as_str() {
                        "crate" => Some(0),
                        "self" => Some(path.len()),
                        "super" => path.len().checked_sub(1),
                        name if name == self.crate_name => Some(0),
                        _ => None,
                    };
                    if let Some(depth) = depth {
                        self.path(&tokens, at + 1, depth, file, path)?;
                    }
                }
                _ => {}
            }
            at += 1;
        }
        Ok(())
    }

    /// What stands behind the first word of a path, which leads to the first `depth` names of the module `path`.
    fn path(
        &mut self,
        tokens: &[TokenTree],
        mut at: usize,
        mut depth: usize,
        file: &Path,
        path: &[String],
    ) -> Result<(), String> {
        while is_separator(tokens, at) {
            match tokens.get(at + 2) {
                Some(TokenTree::Ident(ident)) if ident == "super" => depth = depth.saturating_sub(1),
                Some(TokenTree::Ident(ident)) if ident == "self" => {}
                Some(next) if depth == 0 => return self.below_root(next, file, path),
                _ => return Ok(()),
            }
            at += 3;
        }
        let renamed = matches!(tokens.get(at), Some(TokenTree::Ident(ident)) if ident == "as");
        if depth == 0 && renamed {
            return Err(format!(
                "{}: the root of the crate by another name hides what is named",
                file.display()
            ));
        }
        Ok(())
    }

    /// What is named of the root of the crate: a module, a name that the root has out of a module, or several.
    fn below_root(&mut self, next: &TokenTree, file: &Path, path: &[String]) -> Result<(), String> {
        match next {
            TokenTree::Ident(name) => {
                let name = name.to_string();
                let to = self.names.get(&name).or_else(|| self.of_root.get(&name));
                if let (Some(from), Some(to)) = (path.first(), to)
                    && self.names.contains(to)
                    && from != to
                {
                    self.arrows.insert(Arrow {
                        from: from.clone(),
                        to: to.clone(),
                        file: file.to_owned(),
                    });
                }
                Ok(())
            }
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                let tokens: Vec<TokenTree> = group.stream().into_iter().collect();
                let is_comma = |token: &TokenTree| matches!(token, TokenTree::Punct(punct) if punct.as_char() == ',');
                tokens
                    .split(is_comma)
                    .filter_map(<[TokenTree]>::first)
                    .try_for_each(|first| self.below_root(first, file, path))
            }
            TokenTree::Punct(punct) if punct.as_char() == '*' => Err(format!(
                "{}: a glob of the crate's root hides what is named",
                file.display()
            )),
            _ => Ok(()),
        }
    }
}

/// `::` at `at` and behind.
fn is_separator(tokens: &[TokenTree], at: usize) -> bool {
    let (Some(TokenTree::Punct(first)), Some(TokenTree::Punct(second))) = (tokens.get(at), tokens.get(at + 1)) else {
        return false;
    };
    (first.as_char(), first.spacing(), second.as_char()) == (':', Spacing::Joint, ':')
}

/// Where an attribute at `at` says `cfg(test)`: the place behind what it is about.
fn behind_test_code(tokens: &[TokenTree], at: usize) -> Option<usize> {
    let TokenTree::Punct(hash) = tokens.get(at)? else {
        return None;
    };
    let TokenTree::Group(attribute) = tokens.get(at + 1)? else {
        return None;
    };
    if hash.as_char() != '#' || !says_test(&attribute.stream()) {
        return None;
    }
    let (mut end, mut angles) = (at + 2, 0_i32);
    while let Some(token) = tokens.get(end) {
        end += 1;
        match token {
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => break,
            TokenTree::Punct(punct) => match punct.as_char() {
                '<' => angles += 1,
                '>' if !matches!(tokens.get(end - 2), Some(TokenTree::Punct(before)) if before.as_char() == '-') => {
                    angles -= 1
                }
                ';' => break,
                ',' if angles == 0 => break,
                _ => {}
            },
            _ => {}
        }
    }
    Some(end)
}

fn is_test(attributes: &[Attribute]) -> bool {
    attributes
        .iter()
        .any(|attribute| says_test(&attribute.meta.to_token_stream()))
}

/// `cfg(test)`, or `cfg(all(test, …))`.
fn says_test(attribute: &TokenStream) -> bool {
    let text: String = attribute.to_string().split_whitespace().collect();
    text == "cfg(test)" || text.starts_with("cfg(all(test,")
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| match &attribute.meta {
        Meta::NameValue(pair) if pair.path.is_ident("path") => match &pair.value {
            Expr::Lit(ExprLit {
                lit: Lit::Str(text), ..
            }) => Some(text.value()),
            _ => None,
        },
        _ => None,
    })
}
