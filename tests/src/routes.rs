//! Routes, as a sidecar has them when it was told.

use outrigger_proxy::model::{Filters, PathMatch, RequestRules, Route, RouteMatch, RouteRules, WeightedBackend};

/// A route for requests that one of `matches` is for (none: for all), with one backend: its place among those of the Service.
pub fn route(matches: Vec<RouteMatch>, backend: Option<usize>, filters: Filters) -> Route {
    Route {
        name: "shop/orders/0".into(),
        hostnames: Vec::new(),
        matches,
        backends: vec![WeightedBackend {
            backend,
            weight: 1,
            filters: Filters::default(),
        }],
        rules: RouteRules {
            request: RequestRules {
                filters,
                ..RequestRules::default()
            },
            ..RouteRules::default()
        },
    }
}

/// Requests whose path begins so.
pub fn below(prefix: &str) -> RouteMatch {
    RouteMatch {
        path: Some(PathMatch::Prefix(prefix.to_owned())),
        ..RouteMatch::default()
    }
}
