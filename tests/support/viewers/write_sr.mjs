// Writes one SR for each tool of OHIF, with and without a dragged label, by Cornerstone's own adapters.
// Arguments: SOP Class UID, SOP Instance UID, Study and Series Instance UID of the image, a folder.
import fs from 'node:fs';
import dcmjs from 'dcmjs';
import MeasurementReport from '@cornerstonejs/adapters/cornerstone3D/MeasurementReport';
import '@cornerstonejs/adapters/cornerstone3D/Angle';
import '@cornerstonejs/adapters/cornerstone3D/ArrowAnnotate';
import '@cornerstonejs/adapters/cornerstone3D/Bidirectional';
import '@cornerstonejs/adapters/cornerstone3D/CircleROI';
import '@cornerstonejs/adapters/cornerstone3D/CobbAngle';
import '@cornerstonejs/adapters/cornerstone3D/EllipticalROI';
import '@cornerstonejs/adapters/cornerstone3D/KeyImage';
import '@cornerstonejs/adapters/cornerstone3D/Length';
import '@cornerstonejs/adapters/cornerstone3D/PlanarFreehandROI';
import '@cornerstonejs/adapters/cornerstone3D/Probe';
import '@cornerstonejs/adapters/cornerstone3D/RectangleROI';

const [sopClassUID, sopInstanceUID, StudyInstanceUID, SeriesInstanceUID, PatientID, folder] = process.argv.slice(2);
const imageId = 'image';
const modules = {
  sopCommonModule: { sopInstanceUID, sopClassUID },
  instance: { SOPInstanceUID: sopInstanceUID, SOPClassUID: sopClassUID, StudyInstanceUID, SeriesInstanceUID, PatientID },
  frameNumber: 1,
};
const metadata = { get: (name) => modules[name] };
const at = (...points) => points.map(([x, y]) => [x, y, 0]);
const corners = at([10, 20], [30, 20], [10, 50], [30, 50]);
const drawn = {
  Length: { points: at([10, 20], [30, 50]) },
  Bidirectional: { points: at([10, 35], [30, 35], [20, 25], [20, 45]) },
  Probe: { points: at([20, 30]) },
  ArrowAnnotate: { points: at([20, 30], [60, 70]), arrowFirst: true },
  RectangleROI: { points: corners },
  CircleROI: { points: at([20, 30], [20, 40]) },
  EllipticalROI: { points: at([20, 20], [20, 40], [15, 30], [25, 30]) },
  PlanarFreehandROI: { points: [] },
  Angle: { points: at([10, 20], [30, 20], [30, 50]) },
  CobbAngle: { points: at([10, 20], [30, 20], [30, 50], [10, 55]) },
  KeyImage: { points: at([20, 30]) },
};
const stats = { length: 36, width: 20, area: 600, perimeter: 100, radius: 10, mean: 1, stdDev: 1, max: 1, angle: 90, value: 1, arc1Angle: 1, arc2Angle: 1, unit: 'mm', areaUnit: 'mm²', radiusUnit: 'mm', modalityUnit: '' };

for (const [tool, handles] of Object.entries(drawn)) {
  for (const isDragged of [false, true]) {
    const textBox = { hasMoved: isDragged, worldPosition: [120, 150, 0] };
    const closed = at([10, 20], [30, 20], [30, 50], [10, 50]);
    const data = { handles: { ...handles, textBox }, cachedStats: { [`imageId:${imageId}`]: stats }, label: 'A1', contour: { polyline: closed, closed: true } };
    const annotation = { data, metadata: { referencedImageId: imageId, toolName: tool }, findingSites: [] };
    try {
      const report = MeasurementReport.generateReport({ [imageId]: { [tool]: { data: [annotation] } } }, metadata, {});
      Object.assign(report.dataset, { StudyInstanceUID, PatientID });
      fs.writeFileSync(`${folder}/${tool}${isDragged ? '-dragged' : ''}.dcm`, Buffer.from(dcmjs.data.datasetToDict(report.dataset).write()));
    } catch (error) {
      console.error(tool, error.stack.split('\n').slice(0, 3).join(' | '));
      process.exitCode = 1;
    }
  }
}
