/**
 * Trains, and kills this process at one of its operations on files: started by kills.test.ts with the options and the
 * moment, both as JSON. The moment is the n-th operation, or the first one on a path with certain words.
 */
import files from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import type { TrainOptions } from '../../training/run/settings.ts';

export interface Moment {
  /** Number of the operation, from 0; words of its path. */
  readonly at: number | string;
  readonly when: 'before' | 'during' | 'after';
}

const [options, moment] = process.argv.slice(2) as [string, string];
const { at, when } = JSON.parse(moment) as Moment;
const kill = () => process.kill(process.pid, 'SIGKILL');
let seen = 0;
const isMoment = (path: unknown) => (typeof at === 'number' ? seen++ === at : String(path).includes(at));

for (const name of ['open', 'writeFile', 'appendFile', 'mkdir', 'rename', 'rm'] as const) {
  const operate = files[name] as (...words: unknown[]) => Promise<unknown>;
  const watched = async (...words: unknown[]) => {
    if (!isMoment(words[0])) return operate(...words);
    if (when === 'before') kill();
    if (when === 'during') setImmediate(kill); // the operation goes on in a thread of its own
    const result = await operate(...words);
    kill();
    return result;
  };
  Object.assign(files, { [name]: watched });
}
syncBuiltinESMExports();

const { train } = await import('../../training/run/train.ts');
const progress = { start() {}, update() {}, succeed() {}, warn() {}, fail() {} };
await train(JSON.parse(options) as TrainOptions, progress, new AbortController().signal);
