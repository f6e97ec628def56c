use super::Config;

pub(super) fn parse(_get: &dyn Fn(&str) -> Option<String>) -> Result<Config, Vec<String>> {
    Err(vec![])
}
