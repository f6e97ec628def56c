//! Label selectors, as Kubernetes' `metav1.LabelSelector` has them.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Objects by their labels: all of the requirements. None at all selects every object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LabelSelector {
    /// Labels and their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<Requirement>,
}

/// What a label has to be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
    "message": "In and NotIn have values, Exists and DoesNotExist have none"
}]))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Requirement {
    /// The label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// `In`: the label is there, and has one of the values. `NotIn`: it has none of them, or is not there. `Exists`, `DoesNotExist`.
    #[schemars(extend("enum" = ["In", "NotIn", "Exists", "DoesNotExist"]))]
    pub operator: String,
    /// Of `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    pub values: Vec<String>,
}

impl LabelSelector {
    /// Whether an object with these labels is selected. A requirement that is [no proper one](Self::mistakes) excludes nobody.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut pairs = self.match_labels.iter();
        pairs.all(|(key, value)| labels.get(key) == Some(value))
            && self.match_expressions.iter().all(|r| r.holds(labels))
    }

    /// All mistakes, each with its path below `at`.
    pub fn mistakes(&self, at: &str) -> Vec<String> {
        let requirements = self.match_expressions.iter().enumerate();
        let mistakes = requirements.filter_map(|(n, requirement)| {
            let why = requirement.mistake()?;
            Some(format!("{at}.matchExpressions[{n}]: {why}"))
        });
        mistakes.collect()
    }
}

impl Requirement {
    fn holds(&self, labels: &BTreeMap<String, String>) -> bool {
        let value = labels.get(&self.key);
        let is_one = value.is_some_and(|value| self.values.contains(value));
        self.mistake().is_some()
            || match self.operator.as_str() {
                "In" => is_one,
                "NotIn" => !is_one,
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
    }

    fn mistake(&self) -> Option<String> {
        match (self.operator.as_str(), self.values.is_empty()) {
            ("In" | "NotIn", false) | ("Exists" | "DoesNotExist", true) => None,
            ("In" | "NotIn", true) => Some(format!("{} needs values", self.operator)),
            ("Exists" | "DoesNotExist", false) => Some(format!("{} has no values", self.operator)),
            (other, _) => Some(format!(
                "the operator {other:?} is none of In, NotIn, Exists and DoesNotExist"
            )),
        }
    }
}

/// As kubectl writes it: "app=web,tier in (a,b),!legacy". "*" selects every object.
impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let labels = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let expressions = self.match_expressions.iter().map(|requirement| {
            let Requirement { key, operator, values } = requirement;
            match operator.as_str() {
                "In" => format!("{key} in ({})", values.join(",")),
                "NotIn" => format!("{key} notin ({})", values.join(",")),
                "Exists" => key.clone(),
                "DoesNotExist" => format!("!{key}"),
                other => format!("{key} {other} ({})", values.join(",")),
            }
        });
        let all: Vec<_> = labels.chain(expressions).collect();
        f.write_str(if all.is_empty() { "*" } else { "" })?;
        f.write_str(&all.join(","))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::LabelSelector;

    #[test]
    fn who_is_selected() {
        let labels = [("app", "web"), ("tier", "front")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        for (selector, shown, selected) in [
            ("{}", "*", true),
            ("{matchLabels: {app: web}}", "app=web", true),
            ("{matchLabels: {app: web, tier: back}}", "app=web,tier=back", false),
            ("{matchLabels: {other: web}}", "other=web", false),
            (
                "{matchExpressions: [{key: app, operator: In, values: [api, web]}]}",
                "app in (api,web)",
                true,
            ),
            (
                "{matchExpressions: [{key: app, operator: In, values: [api]}]}",
                "app in (api)",
                false,
            ),
            (
                "{matchExpressions: [{key: other, operator: In, values: [api]}]}",
                "other in (api)",
                false,
            ),
            (
                "{matchExpressions: [{key: app, operator: NotIn, values: [api]}]}",
                "app notin (api)",
                true,
            ),
            (
                "{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}",
                "app notin (web)",
                false,
            ),
            (
                "{matchExpressions: [{key: other, operator: NotIn, values: [web]}]}",
                "other notin (web)",
                true,
            ),
            ("{matchExpressions: [{key: app, operator: Exists}]}", "app", true),
            ("{matchExpressions: [{key: other, operator: Exists}]}", "other", false),
            (
                "{matchExpressions: [{key: app, operator: DoesNotExist}]}",
                "!app",
                false,
            ),
            (
                "{matchExpressions: [{key: other, operator: DoesNotExist}]}",
                "!other",
                true,
            ),
            (
                "{matchLabels: {app: web}, matchExpressions: [{key: tier, operator: Exists}, {key: app, operator: DoesNotExist}]}",
                "app=web,tier,!app",
                false,
            ),
        ] {
            let selector: LabelSelector = serde_saphyr::from_str(selector).unwrap();
            assert_eq!(selector.to_string(), shown);
            assert_eq!(selector.matches(&labels), selected, "{shown}");
            assert_eq!(selector.mistakes("selector"), [""; 0], "{shown}");
        }
    }

    /// Whoever is not excluded by a requirement that can be read is selected.
    #[test]
    fn what_is_faulty_excludes_nobody() {
        let labels = [("app".to_owned(), "web".to_owned())].into();
        for (requirement, mistake) in [
            ("{key: app, operator: In}", "In needs values"),
            ("{key: app, operator: NotIn, values: []}", "NotIn needs values"),
            (
                "{key: app, operator: DoesNotExist, values: [a]}",
                "DoesNotExist has no values",
            ),
            (
                "{key: app, operator: Matches, values: [a]}",
                "the operator \"Matches\" is none of",
            ),
        ] {
            for (first, selected) in [("web", true), ("other", false)] {
                let text = format!("{{matchLabels: {{app: {first}}}, matchExpressions: [{requirement}]}}");
                let selector: LabelSelector = serde_saphyr::from_str(&text).unwrap();
                assert_eq!(selector.matches(&labels), selected, "{text}");
                let mistakes = selector.mistakes("a.b");
                assert_eq!(mistakes.len(), 1);
                assert!(
                    mistakes[0].starts_with(&format!("a.b.matchExpressions[0]: {mistake}")),
                    "{mistakes:?}"
                );
            }
        }
    }
}
