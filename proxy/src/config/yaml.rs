use super::Config;

pub(super) fn parse(_name: &str, _text: &str) -> Result<Config, Vec<String>> {
    Err(vec![])
}
