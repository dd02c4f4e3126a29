/** The set-up that tests of training, ablations, sweeps and evaluations share: data, settings and a silent progress. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import type { Progress } from '../../services/lib/process/progress.ts';
import type { TrainReport } from '../../training/run/run.ts';
import type { TrainOptions } from '../../training/run/settings.ts';
import { train } from '../../training/run/train.ts';
import type { SweepOptions } from '../../training/sweep/sweep.ts';
import { GOLDENS, TINY_CODER, temporaryFolder } from './models.ts';

/** Training starts native code and writes graphs: a busy machine may take long. */
export const TRAINING_TIMEOUT_MS = 300_000;
/** A signal that never aborts. */
export const never = new AbortController().signal;

/** Progress that nobody sees; the callbacks hear what it would show. */
export const silent = (
  onUpdate: (text: string) => void = () => {},
  onSucceed: (text: string) => void = () => {},
): Progress => ({ start: () => {}, update: onUpdate, succeed: onSucceed, warn: () => {}, fail: () => {} });

/** Progress that aborts when it would show a text with these words, and the signal that is then aborted. */
export function stopAt(words: string): { readonly progress: Progress; readonly signal: AbortSignal } {
  const controller = new AbortController();
  const stop = (text: string) => {
    if (text.includes(words)) controller.abort(new Error(`stopped at ${words}`));
  };
  return { progress: silent(stop), signal: controller.signal };
}

/** A sample of some 40 tokens, for a model that knows Python. */
export const row = (i: number) => ({
  prompt: `def total_${i}(items):\n    `,
  right_context: '\n\nprint(1)\n',
  groundtruth: `return sum(item.price for item in items[${i}:])`,
  crossfile_array: [
    `# shop/item.py\nclass Item${i}:\n    price = ${i}`,
    '# shop/cart.py\ndef add(cart, item):\n    cart.append(item)',
  ],
});

/** A sample of some 10 tokens, for a model of random weights. */
export const smallRow = (i: number) => ({
  prompt: `a${i} = `,
  right_context: '\n',
  groundtruth: `b${i}`,
  crossfile_array: [`# b.py\nb${i} = ${i}`, '# c.py\nc = 3'],
});

/** Writes samples as JSON lines. @returns the path */
export async function writeRows(path: string, rows: readonly unknown[]): Promise<string> {
  await writeFile(path, rows.map((value) => `${JSON.stringify(value)}\n`).join(''));
  return path;
}

/** Cross-entropy as the only loss. */
export const CE_ALONE = { ce: 1, reinforce: 0, kl: 0, alignment: 0 } as const;

const COMMON = {
  encoder: undefined,
  layers: 2,
  chunks: 2,
  alignmentForm: 'frobenius',
  reward: { em: 1, es: 1 },
  baseline: 'none',
  schedule: 'cosine',
  warmup: 0,
  clipNorm: 1,
  weightDecay: 0,
  frozen: 'fp32',
  recompute: false,
  seed: 7,
  threads: 1,
  batch: 2,
  patience: 0,
} as const;

/** Settings of what is trained and validated on, and where. */
type Places = Pick<TrainOptions, 'data' | 'validation' | 'to'>;

/** A run of four steps with tiny-coder, which also encodes, on samples such as {@link row}. */
export const tinyOptions = (places: Places): TrainOptions => ({
  ...COMMON,
  ...places,
  llm: TINY_CODER,
  encoderChoices: { pooling: 'mean', maxTokens: 48 },
  steps: 4,
  promptTokens: 64,
  targetTokens: 12,
  rolloutTokens: 5,
  textTokens: 40,
  weights: { ce: 0.9, reinforce: 0.1, kl: 0.1, alignment: 0.1 },
  learningRate: 1e-3,
  every: 2,
});

/** A run of three steps with a model of 64 dimensions and random weights, on samples such as {@link smallRow}. */
export const smallOptions = <T extends Places>(places: T) => ({
  ...COMMON,
  ...places,
  llm: join(GOLDENS, 'qwen2-tied'),
  encoderChoices: { maxTokens: 32 },
  steps: 3,
  promptTokens: 48,
  targetTokens: 8,
  rolloutTokens: 4,
  textTokens: 32,
  weights: { ce: 0.9, reinforce: 0.1, kl: 0, alignment: 0.1 },
  learningRate: 1e-2,
  every: 1,
});

/**
 * Samples such as {@link smallRow} in a folder of their own, and runs of {@link smallOptions} on them: by cross-entropy
 * alone, and without validation, where nothing else is asked for.
 * @param samples how many are trained on; two others are there for validation
 */
export async function smallRuns(samples: number) {
  const dir = await temporaryFolder();
  const rows = Array.from({ length: samples }, (_, i) => smallRow(i));
  const data = await writeRows(join(dir, 'train.jsonl'), rows);
  const validation = await writeRows(join(dir, 'valid.jsonl'), [10, 11].map(smallRow));
  const options = (name: string, changes: Partial<TrainOptions> = {}): TrainOptions => ({
    ...smallOptions({ data, validation: undefined, to: join(dir, name) }),
    weights: CE_ALONE,
    ...changes,
  });
  return { dir, validation, options };
}

/** Trains without a terminal. @returns the report, and what the progress would have shown */
export async function trained(
  options: TrainOptions,
): Promise<{ readonly report: TrainReport; readonly said: string[] }> {
  const said: string[] = [];
  const hear = (text: string) => said.push(text);
  return { report: await train(options, silent(hear), never), said };
}

/** What must be the same however often a run was stopped: its projector and its figures. */
export const resultsOf = async ({ to }: Pick<TrainOptions, 'to'>) => ({
  projector: await readFile(join(to, 'projector/model.safetensors')),
  log: (await readFile(join(to, 'log.jsonl'), 'utf8')).trim().split('\n'),
});

const FIXTURE = join(PACKAGE_ROOT, 'dist/test/training/killed.fixture.js');

/** Trains or sweeps in another process, of the built files, that gets SIGKILL when its progress shows the words. */
export async function killed(options: TrainOptions | SweepOptions, words: string): Promise<void> {
  const what = 'trials' in options ? 'sweep' : 'train';
  const child = spawn(process.execPath, [FIXTURE, what, JSON.stringify(options), words], { stdio: 'inherit' });
  const [code, signal] = await once(child, 'exit');
  if (signal !== 'SIGKILL') throw new Error(`the process ended with ${code ?? signal} before it showed: ${words}`);
}
