// Stands in for @cornerstonejs/core, which draws: world coordinates are image coordinates here.
const log = new Proxy({}, { get: () => () => log });
export const utilities = {
  logger: { getRootLogger: () => log, adaptersLog: { getLogger: () => log } },
  worldToImageCoords: (_imageId, point) => [point[0], point[1]],
  imageToWorldCoords: (_imageId, point) => [point[0], point[1], 0],
  updatePlaneRestriction() {},
};
export const Enums = { MetadataModules: {} };
export const cache = {}, metaData = {}, eventTarget = {}, imageLoader = {}, volumeLoader = {}, CONSTANTS = {};
export default {};
