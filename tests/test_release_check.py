"""The problems that `make release-check` finds before a release; the whole check is a slow test."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("release_check", ROOT / ".ci" / "release_check.py")
release_check = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(release_check)


@pytest.fixture
def ready(tmp_path):
    """A checkout without any problem."""
    (tmp_path / "Project7").mkdir()
    (tmp_path / "Project7" / "__init__.py").write_text('"""About."""\n\n__version__ = "1.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0\n\n## 1.1.0\n")
    (tmp_path / "CITATION.cff").write_text("cff-version: 1.2.0\nversion: 1.2.0\n")
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nSource = "https://example.org/project7"\n')
    (tmp_path / "README.md").write_text("git clone https://example.org/project7\n")
    return tmp_path


def test_a_checkout_that_is_ready_has_no_faults(ready):
    assert list(release_check.faults_of_source(ready)) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("CHANGELOG.md", "## 1.2.0", "## Not released yet\n\n## 1.2.0", "CHANGELOG.md is 'Not released yet', and"),
        ("CITATION.cff", "\nversion: 1.2.0", "\nversion: 1.1.0", "CITATION.cff has the version 1.1.0"),
        ("pyproject.toml", "https://example.org/project7", "", "no [project.urls]"),
        ("README.md", "https://example.org/project7", "REPOSITORY", "README.md clones REPOSITORY"),
    ],
)
def test_what_is_missing_is_named(ready, file, old, new, said):
    (ready / file).write_text((ready / file).read_text().replace(old, new, 1))
    faults = list(release_check.faults_of_source(ready))
    assert len(faults) == 1
    assert said in faults[0]


@pytest.mark.slow
def test_the_archives_install_and_colour(tmp_path):
    pytest.importorskip("build", reason="needs the packages of the extra dev")
    pytest.importorskip("twine", reason="needs the packages of the extra dev")
    archives = release_check.build(ROOT, tmp_path)
    assert [archive.suffix for archive in archives] == [".whl", ".gz"]
    assert list(release_check.faults_of_archives(archives)) == []
    for archive in archives:
        release_check.smoke(archive)
