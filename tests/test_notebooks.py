"""Notebooks: made from their scripts, without outputs, and every cell runs."""

import importlib.util
import json
import re
import sys
import tempfile
import types
from pathlib import Path

import matplotlib.pyplot as pyplot
import pytest
from tiny_studies import quick_compilation

from kljax import metrics

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
GITHUB = "https://github.com/somebody/kljax"
NOWHERE = "https://kljax.invalid/kljax"
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
LONG = (
    "02_leak_with_and_without",
    "03_your_own_model_and_data",
    "04_sweep_and_report",
    "05_add_your_own",
    "06_text",
)


@pytest.fixture(scope="module")
def make():
    """The generator, as a module."""
    pytest.importorskip("jupytext", reason="needs kljax[notebooks]")
    spec = importlib.util.spec_from_file_location("make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(path, kind):
    """Lists the cells of one kind: (number, source)."""
    notebook = json.loads(path.read_text())
    return [
        (number, "".join(cell["source"]))
        for number, cell in enumerate(notebook["cells"])
        if cell["cell_type"] == kind
    ]


def project(tmp_path, url, scripts):
    """Makes a project of a repository address and scripts: name -> text."""
    (tmp_path / "notebooks").mkdir()
    address = f'\n[project.urls]\nRepository = "{url}"\n' if url else ""
    (tmp_path / "pyproject.toml").write_text(f'[project]\nname = "x"\n{address}')
    for name, text in scripts.items():
        (tmp_path / "notebooks" / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else ())
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_every_cell_runs_in_order(
    path, monkeypatch, tmp_path, tmp_path_factory, capsys
):
    shown = []

    def show():
        assert pyplot.get_fignums()
        shown.extend(pyplot.get_fignums())
        for number in pyplot.get_fignums():
            pyplot.figure(number).canvas.draw()
        pyplot.close("all")

    monkeypatch.chdir(tmp_path)
    aside = tmp_path_factory.mktemp("aside")
    monkeypatch.setattr(tempfile, "tempdir", str(aside))
    monkeypatch.setenv("KLJAX_TINY", "1")
    # Any attempt to import it fails from here on, as where it is absent.
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    # LPIPS is an extra, and its networks take long to compile.
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    monkeypatch.setattr(pyplot, "show", show)
    pyplot.switch_backend("agg")
    main = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    with quick_compilation():
        for number, source in cells(path, "code"):
            exec(compile(source, f"{path.name}, cell {number}", "exec"), vars(main))
    assert shown and not pyplot.get_fignums()  # every picture was shown
    assert capsys.readouterr().out
    assert not [name for name in sys.modules if name.startswith("tensorflow.")]
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@each
def test_it_runs_in_jupyter(path, monkeypatch, tmp_path, tmp_path_factory):
    nbformat = pytest.importorskip("nbformat", reason="needs kljax[notebooks]")
    nbclient = pytest.importorskip("nbclient", reason="needs kljax[notebooks]")
    pytest.importorskip("ipykernel", reason="needs kljax[notebooks]")
    monkeypatch.setenv("KLJAX_TINY", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("aside")))
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@each
def test_it_has_no_outputs_and_nothing_of_a_machine(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert set(notebook["metadata"]["language_info"]) == {"name"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    found = re.findall(
        r"(?:/home|/root|/tmp|/work|/content|/Users)\b", path.read_text()
    )
    assert not found


@each
def test_it_teaches(path):
    prose = [text for _, text in cells(path, "markdown")]
    code = [text for _, text in cells(path, "code")]
    assert prose[1].startswith("# ")
    assert len(prose) >= 5
    assert all(len(text.split()) < 250 for text in prose)
    # Read once: everything else runs with either settings.
    assert sum(text.count("KLJAX_TINY") for text in code) == 1


def test_there_are_at_most_six():
    assert 1 <= len(NOTEBOOKS) <= 6


def test_notebooks_are_in_step_with_their_scripts(make):
    assert [path.name for path in make.out_of_step()] == []
    assert [p.stem for p in NOTEBOOKS] == [
        p.stem for p in sorted(FOLDER.glob(make.SCRIPTS))
    ]


def test_what_is_out_of_step_is_found(make, tmp_path):
    root = project(tmp_path, NOWHERE, {"01_a.py": "# %%\nx = 1\n"})
    script, notebook = sorted(make.made(root))[::-1]
    assert sorted(make.out_of_step(root)) == [notebook, script]
    for path, text in make.made(root).items():
        path.write_text(text)
    assert make.out_of_step(root) == []
    executed = json.loads(notebook.read_text())
    executed["cells"][-1]["execution_count"] = 3
    notebook.write_text(json.dumps(executed))
    assert make.out_of_step(root) == [notebook]
    notebook.write_text(make.made(root)[notebook])
    script.write_text(script.read_text().replace("x = 1", "x = 2"))
    assert make.out_of_step(root) == [notebook]
    orphan = notebook.with_name("02_b.ipynb")
    orphan.write_text("{}")
    assert make.out_of_step(root) == [notebook, orphan]


def test_a_new_notebook_needs_only_a_script(make, tmp_path):
    root = project(tmp_path, GITHUB, {"04_new.py": "# %% [markdown]\n# # New\n"})
    script, notebook = make.made(root).values()
    assert make.make(script, GITHUB, "04_new") == (script, notebook)  # settled
    made = json.loads(notebook)["cells"]
    assert [cell["cell_type"] for cell in made] == ["markdown", "code", "markdown"]
    assert made[2]["source"] == ["# New"]


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_the_header_follows_from_the_address(make, name):
    text = (FOLDER / f"{name}.py").read_text()
    address = make.repository()
    assert make.make(text, address, name)[0] == text
    for url in (GITHUB, "https://github.com/else/where"):
        script, _ = make.make(text, url, name)
        slug = url.removeprefix("https://github.com/")
        colab = "https://colab.research.google.com/github"
        assert f"({colab}/{slug}/blob/main/notebooks/{name}.ipynb)" in script
        assert f"git+{url}" in script
        assert make.make(script, address, name)[0] == text  # and back


@pytest.mark.parametrize(
    "url", (NOWHERE, "https://example.org/kljax", "https://git.example/kljax")
)
def test_a_reserved_address_is_not_pretended_to_be_one(make, url):
    assert not make.is_public(url)
    badge, install = (cell.source for cell in make.header(url, "01_a"))
    assert "no public address" in badge and "](http" not in badge
    assert "no public address" in install and "git+" not in install
    assert url not in badge + install


def test_an_address_outside_github_has_no_badge(make):
    url = "https://gitlab.com/somebody/kljax"
    badge, install = (cell.source for cell in make.header(url, "01_a"))
    assert url in badge and "colab.research.google.com" not in badge
    assert f"git+{url}" in install


@pytest.mark.parametrize("url", ("", "github.com/a/b", "https://github.com/"))
def test_no_address_is_an_error(make, tmp_path, url):
    with pytest.raises(ValueError, match=r"\[project.urls\] Repository"):
        make.repository(project(tmp_path, url, {}))


def test_spellings_of_an_address_are_one(make, tmp_path):
    assert make.repository(project(tmp_path, GITHUB + ".git/", {})) == GITHUB


@pytest.mark.parametrize(
    ("device", "extra"),
    (
        (None, ""),
        ("/dev/nvidia0", "[cuda]"),
        ("/dev/accel0", "[tpu]"),
        ("/dev/vfio/0", "[tpu]"),
    ),
)
@pytest.mark.parametrize("url", (GITHUB, NOWHERE))
def test_a_fresh_runtime_installs_for_its_device(make, monkeypatch, url, device, extra):
    install = make.header(url, "01_a")[1].source
    commands, wheels = [], []

    def glob(pattern):
        if "kljax" in pattern:
            return wheels
        found = device and re.fullmatch(pattern.replace("*", ".*"), device)
        return [device] if found else []

    monkeypatch.setattr("glob.glob", glob)
    monkeypatch.setattr(
        "subprocess.run", lambda command, check: commands.append(command)
    )
    exec(install, {})
    assert not commands  # kljax is here: nothing to do
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if url == NOWHERE:
        with pytest.raises(ModuleNotFoundError, match="no public address"):
            exec(install, {})
        wheels.append("kljax-0.1.0-py3-none-any.whl")
    exec(install, {})
    (command,) = commands
    source = f"kljax{extra} @ git+{GITHUB}"
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == (source if url == GITHUB else f"./{wheels[0]}{extra}")
