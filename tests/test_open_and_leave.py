"""Risk: a program that opens a dataset and ends is aborted at its end (Arrow's threaded Parquet reader beside torch)."""

import re
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from synthetic import make_dataset

from omniprep import PackedDataset

CODE = """
import torch
from omniprep import PackedDataset
ds = PackedDataset({folder!r})
ds.rows
print(len(ds))
"""


@pytest.mark.parametrize("tries", [2, pytest.param(40, marks=pytest.mark.slow)])
def test_a_program_that_opens_a_dataset_ends_as_it_should(tmp_path, tries):
    """It was one in some tens; the test below is what holds."""
    make_dataset(tmp_path / "d", n_rows=200)
    for _ in range(tries):
        done = subprocess.run([sys.executable, "-c", CODE.format(folder=str(tmp_path / "d"))], capture_output=True)
        assert done.returncode == 0 and int(done.stdout) > 0, (done.returncode, done.stderr)


def test_a_program_that_has_read_a_bin_ends_without_a_word(tmp_path):
    """Its shard's file is closed last, when the interpreter has emptied the modules."""
    make_dataset(tmp_path / "d", n_rows=20)
    for code in (
        "import omniprep\nds = omniprep.PackedDataset('d')\nbin = ds[0]",
        "import omniprep\nomniprep.PackedDataset('d')[0]",
    ):
        (tmp_path / "program.py").write_text(code)
        done = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_tables_of_a_dataset_are_read_on_the_calling_thread(tmp_path, monkeypatch):
    make_dataset(tmp_path / "d", n_rows=20)
    opened, read, real = [], [], pq.ParquetFile

    class Watched(real):
        def __init__(self, *source, **options):
            opened.append(options.get("pre_buffer", True))
            super().__init__(*source, **options)

        def read(self, *columns, **options):
            read.append(options.get("use_threads", True))
            return super().read(*columns, **options)

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    assert PackedDataset(tmp_path / "d").rows.num_rows == 20
    assert len(read) == 2 <= len(opened) and not any(read + opened)


def test_nothing_in_the_package_reads_parquet_otherwise():
    for path in sorted((ROOT / "omniprep").rglob("*.py")):
        text = path.read_text()
        assert not re.search(
            r"\bread_table\(|\bpq\.read_|\bParquetDataset\b|pyarrow\.dataset(?! import get_partition_keys)", text
        ), path
        assert all("pre_buffer=False" in call for call in re.findall(r"ParquetFile\([^\n]*", text)), path
