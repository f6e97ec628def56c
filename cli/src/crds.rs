//! `outrigger crds`: the CustomResourceDefinitions, from the Rust types that read them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

/// Prints them, for server-side apply: with `kubectl apply` alone, a CRD would have to fit into an annotation of its own.
///
/// # Errors
/// When standard output is closed.
pub(crate) fn run() -> anyhow::Result<()> {
    use std::io::Write;
    let documents: Vec<_> = all()?.into_iter().map(|(_, yaml)| yaml).collect();
    std::io::stdout().write_all(documents.join("---\n").as_bytes())?;
    Ok(())
}

/// Each with the name of its file in the chart.
fn all() -> anyhow::Result<Vec<(String, String)>> {
    let options = serde_saphyr::ser_options! { compact_list_indent: true, empty_as_braces: true };
    let file = |crd: CustomResourceDefinition| {
        let mut yaml = serde_saphyr::to_string_with_options(&crd, options)?;
        if !yaml.ends_with('\n') {
            yaml.push('\n');
        }
        Ok((format!("{}.yaml", crd.spec.names.plural), yaml))
    };
    outrigger_api::policy::crd::crds().into_iter().map(file).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    #[test]
    fn the_chart_has_these_very_ones() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/outrigger/crds");
        let crds = super::all().unwrap();
        for (name, yaml) in &crds {
            let path = folder.join(name);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::write(&path, yaml).unwrap();
            }
            let file = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(&file, yaml, "{}: UPDATE_GOLDEN=1 writes it anew", path.display());
        }
        assert_eq!(
            std::fs::read_dir(&folder).unwrap().count(),
            crds.len(),
            "there are more files in {folder:?}"
        );
    }
}
