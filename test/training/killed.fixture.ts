/**
 * Trains or sweeps, and kills this process when the progress shows certain words: started by `killed` of
 * test/support/training.ts with which of them, the options as JSON, and the words.
 */
import type { TrainOptions } from '../../training/run/settings.ts';
import { train } from '../../training/run/train.ts';
import { type SweepOptions, sweep } from '../../training/sweep/sweep.ts';

const [what, options, words] = process.argv.slice(2);
const update = (text: string) => {
  if (text.includes(words!)) process.kill(process.pid, 'SIGKILL');
};
const progress = { start: update, update, succeed: update, warn() {}, fail() {} };
const { signal } = new AbortController();
const given: unknown = JSON.parse(options!);
if (what === 'sweep') await sweep(given as SweepOptions, progress, signal);
else await train(given as TrainOptions, progress, signal);
