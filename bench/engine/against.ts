/**
 * `bench engine --against DIR`: CPU time of this engine relative to that of another checkout of this project, built
 * beside it. Each is in a process of its own with a bundle of its own making, since formats change. They are measured
 * in turns, so that a disturbance falls on both; which of them goes first changes from pair to pair.
 */
import { mkdtemp, readdir, readFile, rm, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { execaNode } from 'execa';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { TaskProcess } from '../harness/task-process.ts';
import { median, medianInterval, quantile } from '../measure/statistics.ts';
import type { Task } from './child.ts';
import type { EngineBenchOptions } from './command.ts';
import { type AgainstCell, type AgainstResult, type DecodeCell, nameOf, type PrefillCell } from './result.ts';

/** Decode steps of one measurement. */
const AGAINST_STEPS = 64;

type Cell = PrefillCell | DecodeCell;
type Options = Pick<
  EngineBenchOptions,
  | 'model'
  | 'precision'
  | 'prefillPrecision'
  | 'kv'
  | 'prompt'
  | 'chunk'
  | 'batch'
  | 'context'
  | 'repeats'
  | 'threads'
  | 'data'
>;

/** An engine of one checkout, loaded. */
class Side {
  readonly #process: TaskProcess<Task>;

  private constructor(process: TaskProcess<Task>) {
    this.#process = process;
  }

  /** Makes the bundle with the checkout's own command, and loads it in the checkout's own process. */
  static async open(root: string, to: string, options: Options, size: { slots: number; capacity: number }) {
    await exportWith(root, to, options);
    const child = new TaskProcess<Task>(
      pathToFileURL(join(root, 'dist/bench/engine/child.js')),
      `the engine of ${root}`,
    );
    const side = new Side(child);
    const subject = { model: to, threads: options.threads, spin: false, prepacked: 'off', ...size };
    await side.#ask({ do: 'load', options: subject }).catch(async (error) => {
      await side.stop();
      throw error;
    });
    return side;
  }

  /** CPU time of all threads of the process, in ms, that a cell takes. */
  async measure(cell: Cell): Promise<number> {
    const before = await cpuMs(this.#process.pid!);
    if (cell.phase === 'prefill') await this.#ask({ do: 'prefill', tokens: cell.tokens, chunk: cell.chunk });
    else await this.#ask({ do: 'decode', batch: cell.batch, context: cell.context, steps: AGAINST_STEPS });
    return (await cpuMs(this.#process.pid!)) - before;
  }

  stop(): Promise<void> {
    return this.#process.stop();
  }

  #ask(task: Task): Promise<unknown> {
    return this.#process.ask(task, new AbortController().signal);
  }
}

/** @throws ServingError config_invalid for a folder that is no built checkout, or a system without /proc. */
export async function measureAgainst(
  against: string,
  options: Options,
  onProgress: (text: string) => void,
): Promise<AgainstResult> {
  const other = resolve(against);
  await assertBuilt(other);
  const { prompt, chunk, batch, context, repeats } = options;
  const plan: Cell[] = [
    ...prompt.flatMap((tokens) => chunk.map((size) => ({ phase: 'prefill' as const, tokens, chunk: size }))),
    ...context.flatMap((length) => batch.map((n) => ({ phase: 'decode' as const, batch: n, context: length }))),
  ];
  const size = { slots: Math.max(1, ...batch), capacity: Math.max(...prompt, ...context) + AGAINST_STEPS };
  const work = await mkdtemp(join(resolve(options.data), 'against-'));
  const sides: Side[] = [];
  try {
    for (const [i, root] of [PACKAGE_ROOT, other].entries()) {
      onProgress(`loading the engine of ${root}`);
      // Another checkout may know no form of KV but floats, and this one is compared with itself.
      const kv = i === 0 ? options.kv : 'floats';
      sides.push(await Side.open(root, join(work, String(i)), { ...options, kv }, size));
    }
    const ratios = plan.map((): number[] => []);
    // Pair -1 warms both up, and is not counted.
    for (let pair = -1; pair < repeats; pair++) {
      for (const [i, cell] of plan.entries()) {
        onProgress(`pair ${pair + 1} of ${repeats}: ${nameOf(cell)}`);
        const took = [0, 0];
        for (const side of pair % 2 === 0 ? [1, 0] : [0, 1]) took[side] = await sides[side]!.measure(cell);
        if (pair >= 0) ratios[i]!.push(took[0]! / took[1]!);
      }
    }
    return { cells: plan.map((cell, i) => summarise(cell, ratios[i]!)) };
  } finally {
    for (const side of sides) await side.stop();
    await rm(work, { recursive: true, force: true });
  }
}

function summarise(cell: Cell, ratios: readonly number[]): AgainstCell {
  const quartiles = { low: quantile(ratios, 0.25), high: quantile(ratios, 0.75) };
  return { ...cell, ratios, ratio: median(ratios), interval: medianInterval(ratios), quartiles };
}

async function assertBuilt(root: string): Promise<void> {
  if (process.platform !== 'linux') {
    throw new ServingError('config_invalid', `--against reads CPU times in /proc, which ${process.platform} has not`);
  }
  const child = join(root, 'dist/bench/engine/child.js');
  if (await stat(child).catch(() => undefined)) return;
  throw new ServingError(
    'config_invalid',
    `--against ${root}: ${child} does not exist; give a checkout of this project, and run npm ci and npm run build in it`,
  );
}

async function exportWith(
  root: string,
  to: string,
  { model, precision, prefillPrecision, kv }: Options,
): Promise<void> {
  const isFolder = (await stat(model).catch(() => undefined)) !== undefined;
  const source = isFolder ? ['export', '--llm', resolve(model)] : ['synth', '--llm', model];
  const args = [...source, '--to', to, '--precision', precision];
  if (prefillPrecision) args.push('--prefill-precision', prefillPrecision);
  if (kv !== 'floats') args.push('--kv', kv);
  const { exitCode, stderr } = await execaNode(join(root, 'dist/services/cli.js'), args, { cwd: root, reject: false });
  if (exitCode === 0) return;
  throw new ServingError('config_invalid', `llavacode ${args.join(' ')} failed in ${root}: ${stderr.trim()}`);
}

/** CPU time in ms that the threads of a process have had, those that have ended not counted. */
async function cpuMs(pid: number): Promise<number> {
  const threads = await readdir(`/proc/${pid}/task`);
  const times = threads.map(async (thread) => {
    const text = await readFile(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').catch(() => '0');
    return Number(text.split(' ')[0]);
  });
  return (await Promise.all(times)).reduce((sum, ns) => sum + ns, 0) / 1e6;
}
