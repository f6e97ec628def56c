//! A patch in the making.

use std::collections::BTreeMap;

use json_patch::jsonptr::PointerBuf;
use json_patch::{AddOperation, Patch, PatchOperation, RemoveOperation, ReplaceOperation};
use serde_json::{Value, json};

use super::probes::Rewrite;

/// Operations on a document, in the order in which they are carried out.
#[derive(Default)]
pub(super) struct Operations(Vec<PatchOperation>);

impl Operations {
    /// One entry of the map at `path`, which is made when the pod has none.
    pub(super) fn entry(&mut self, path: [&str; 2], map: Option<&BTreeMap<String, String>>, key: &str, value: Value) {
        match map {
            Some(_) => self.add(&[path[0], path[1], key], value),
            None => self.add(&path, json!({ key: value })),
        }
    }

    /// Elements of the list at `path` (of `length`, `None` when the pod has no such list), from index `at` on.
    pub(super) fn elements<const N: usize>(
        &mut self,
        path: [&str; 2],
        length: Option<usize>,
        at: usize,
        elements: [Value; N],
    ) {
        if length.is_none() {
            return self.add(&path, Value::Array(elements.into()));
        }
        for (index, element) in (at..).zip(elements) {
            self.add(&[path[0], path[1], &index.to_string()], element);
        }
    }

    /// Points a probe or a lifecycle handler at the sidecar.
    pub(super) fn rewrite(&mut self, rewrite: Rewrite) {
        let mut path: Vec<&str> = rewrite.at.iter().map(String::as_str).collect();
        path.push("httpGet");
        if rewrite.from == "httpGet" {
            return self.replace(&path, rewrite.to);
        }
        self.add(&path, rewrite.to);
        path.pop();
        path.push(rewrite.from);
        self.0.push(PatchOperation::Remove(RemoveOperation {
            path: PointerBuf::from_tokens(path),
        }));
    }

    /// Another value for what is there.
    pub(super) fn replace(&mut self, path: &[&str], value: Value) {
        let path = PointerBuf::from_tokens(path.iter().copied());
        self.0.push(PatchOperation::Replace(ReplaceOperation { path, value }));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn patch(self) -> Patch {
        Patch(self.0)
    }

    fn add(&mut self, path: &[&str], value: Value) {
        let path = PointerBuf::from_tokens(path.iter().copied());
        self.0.push(PatchOperation::Add(AddOperation { path, value }));
    }
}
