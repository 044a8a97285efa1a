"""SRs that Cornerstone's own adapters (the writer in OHIF) make of each tool, under node; else skipped."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from config.settings import Lesions
from daemon.lesions.lesion import LesionReading
from daemon.lesions.reader import read_lesions
from tests.support.lesion_objects import mammogram

pytestmark = [pytest.mark.peers, pytest.mark.timeout(400)]

VIEWERS = Path(__file__).parents[2] / "support" / "viewers"
PACKAGES = ("@cornerstonejs/adapters@5.14.0", "dcmjs@0.52.0", "@babel/runtime@8.1.3", "esbuild@0.28.2")
# What `write_sr.mjs` draws with each tool: left, top, right, bottom of the mark.
MARKED = {
    "Length": (10, 20, 30, 50),
    "Bidirectional": (10, 25, 30, 45),
    "Probe": (20, 30, 20, 30),
    "ArrowAnnotate": (20, 30, 20, 30),
    "RectangleROI": (10, 20, 30, 50),
    "CircleROI": (10, 20, 30, 40),
    "EllipticalROI": (15, 20, 25, 40),
    "PlanarFreehandROI": (10, 20, 30, 50),
}


@pytest.fixture(scope="module")
def image() -> Dataset:
    return mammogram(200, 160)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, image: Dataset) -> Path:
    """Return a folder with the SR of each tool, and with "-dragged" its SR after its label was dragged."""
    if not shutil.which("npm") or not shutil.which("node"):
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("viewers")
    for file in VIEWERS.glob("*.mjs"):
        shutil.copy(file, folder)
    install = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", *PACKAGES]
    if subprocess.run(install, cwd=folder, capture_output=True, timeout=300).returncode:
        pytest.skip(f"npm cannot install {', '.join(PACKAGES)}")
    stubs = [f"--alias:@cornerstonejs/{name}=./cornerstone_core_stub.mjs" for name in ("core", "tools", "metadata")]
    bundle = [
        "npx",
        "esbuild",
        "write_sr.mjs",
        "--bundle",
        "--platform=node",
        "--format=cjs",
        "--outfile=write.cjs",
        *stubs,
    ]
    subprocess.run(bundle, cwd=folder, check=True, capture_output=True, timeout=120)
    output = folder / "written"
    output.mkdir()
    keywords = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID")
    arguments = [str(image.get(keyword)) for keyword in keywords]
    subprocess.run(["node", "write.cjs", *arguments, str(output)], cwd=folder, check=True, timeout=60)
    return output


def read(path: Path, image: Dataset) -> LesionReading:
    return read_lesions(dcmread(path), {str(image.SOPInstanceUID): image}, {}, Lesions())


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("label", ["", "-dragged"])
@pytest.mark.parametrize("tool", MARKED)
def test_the_mark_of_each_tool_is_read_where_it_was_drawn(written: Path, image: Dataset, tool: str, label: str) -> None:
    (lesion,) = read(written / f"{tool}{label}.dcm", image).lesions
    box = (*lesion.outline.min(axis=0), *lesion.outline.max(axis=0))
    assert box == pytest.approx(MARKED[tool], abs=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("label", ["", "-dragged"])
@pytest.mark.parametrize("tool", ["KeyImage", "Angle", "CobbAngle"])
def test_tools_that_mark_no_lesion_give_none(written: Path, image: Dataset, tool: str, label: str) -> None:
    reading = read(written / f"{tool}{label}.dcm", image)
    assert reading.lesions == () and tool in reading.left_out[0].reason
