//! The scenes of live patching, which run in modload and on Linux itself: `tests/klp/scenes.txt`, and the sources of
//! their modules.

use std::fs;
use std::path::PathBuf;

use modload_fixtures::workspace_root;

/// A scene.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KlpScene {
    /// `SCRIPT: TITLE` of Linux's selftests, or a command of ours in place of the script.
    pub title: String,
    /// The steps of the scene: words, a verb first.
    pub steps: Vec<Vec<String>>,
}

/// The folder of the scenes and their modules.
#[must_use]
pub fn klp_folder() -> PathBuf {
    workspace_root().join("tests/klp")
}

/// All scenes.
///
/// # Panics
/// If the file does not exist, or a step is before the first scene.
#[must_use]
pub fn klp_scenes() -> Vec<KlpScene> {
    let text = fs::read_to_string(klp_folder().join("scenes.txt")).expect("the scenes are part of the tree");
    let mut scenes: Vec<KlpScene> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match line.strip_prefix("scene ") {
            Some(title) => scenes.push(KlpScene { title: title.to_owned(), steps: Vec::new() }),
            None => {
                let steps = &mut scenes.last_mut().expect("a scene begins with its title").steps;
                steps.push(line.split(' ').map(str::to_owned).collect());
            }
        }
    }
    scenes
}

impl KlpScene {
    /// Returns the title as a name: `test_state_system_state_modification`.
    #[must_use]
    pub fn name(&self) -> String {
        let plain = self.title.replace(|letter: char| !letter.is_ascii_alphanumeric(), " ");
        plain.split_whitespace().collect::<Vec<_>>().join("_").to_ascii_lowercase()
    }

    /// Returns the path of the accepted log.
    #[must_use]
    pub fn snapshot(&self) -> PathBuf {
        workspace_root().join(format!("tests/tests/snapshots/klp_scenes__{}.snap", self.name()))
    }
}
