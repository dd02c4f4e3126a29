/**
 * Makes a data set and kills this process when so many repositories are done: started by build.test.ts with the options
 * as JSON and the number.
 */
import { buildDataset } from '../../../training/dataset/build.ts';
import type { DatasetOptions } from '../../../training/dataset/settings.ts';

const [options, repositories] = process.argv.slice(2);
const update = (text: string) => {
  if (text.startsWith(`${repositories} of`)) process.kill(process.pid, 'SIGKILL');
};
const progress = { start() {}, update, succeed() {}, warn() {}, fail() {} };
await buildDataset(JSON.parse(options!) as DatasetOptions, progress, new AbortController().signal);
