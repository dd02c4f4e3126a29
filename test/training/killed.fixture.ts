/**
 * Trains and kills this process when the progress shows certain words: started by `killed` of test/support/training.ts
 * with the options as JSON, and the words.
 */
import type { TrainOptions } from '../../training/run/settings.ts';
import { train } from '../../training/run/train.ts';

const [options, words] = process.argv.slice(2);
const update = (text: string) => {
  if (text.includes(words!)) process.kill(process.pid, 'SIGKILL');
};
const progress = { start: update, update, succeed: update, warn() {}, fail() {} };
await train(JSON.parse(options!) as TrainOptions, progress, new AbortController().signal);
