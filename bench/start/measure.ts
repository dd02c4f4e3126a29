/** Starts the system as a person does, by `npm start`, asks for the first completion, and watches what it takes. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { rm } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { SAMPLE, SAMPLE_BODY, SAMPLE_REPO } from '../../services/sample.ts';
import { type ProcessFigures, processTree } from './process-tree.ts';

/** `new`: the data folder is empty, so that a bundle and an index are made; `kept`: both lie there. */
export type DataFolder = 'new' | 'kept';

export interface StartRun {
  readonly data: DataFolder;
  /** Time from the command to the line that says where it serves, in ms. */
  readonly servingMs: number;
  /** Time from the command to the first token of the first completion, in ms. */
  readonly completionMs: number;
  /** Time from the command to the first token of the first completion with chunks of the sample repository, in ms. */
  readonly contextMs: number;
  /** CPU time until then in ms, by process; `ended` is that of processes that have ended by then. */
  readonly cpuMs: Readonly<Record<string, number>>;
}

export interface IdleProcess {
  readonly name: string;
  /** Share of one core. */
  readonly cores: number;
  /** How often its threads went on after a wait, per second. */
  readonly wakeups: number;
}

export interface StartedVersion {
  /** Commit of the checkout. */
  readonly version: string;
  readonly starts: readonly StartRun[];
  /** None where it was not watched. */
  readonly idle: readonly IdleProcess[];
}

export interface StartResult {
  readonly idleSeconds: number;
  /** This checkout first. */
  readonly versions: readonly StartedVersion[];
}

export interface Checkout {
  /** Folder in which `npm start` is run. */
  readonly root: string;
  /** Data folder of its system. */
  readonly data: string;
}

/** A start that takes longer has failed, in ms. */
const START_TIMEOUT_MS = 300_000;
/** What a start leaves to be done is over by then, in ms: indexes are loaded, connections made, heaps collected. */
const SETTLE_MS = 30_000;

/** @throws ServingError internal if the system does not start, or answers nothing. */
export async function measureStart(checkout: Checkout, data: DataFolder): Promise<StartRun> {
  if (data === 'new') await rm(checkout.data, { recursive: true, force: true });
  return withSystem(checkout, async ({ url, root, startMs, servingMs }) => {
    const first = await complete(url);
    let withContext = first;
    // An index that has just been published is loaded by the first request that asks for it, which does not wait.
    while (!withContext.hasContext) withContext = await complete(url);
    const cpuMs = cpuByName(await processTree(root));
    return { data, servingMs, completionMs: first.atMs - startMs, contextMs: withContext.atMs - startMs, cpuMs };
  });
}

/** What the processes of a system take that serves nobody. */
export async function measureIdle(checkout: Checkout, seconds: number): Promise<IdleProcess[]> {
  return withSystem(checkout, async ({ url, root }) => {
    await complete(url);
    await sleep(SETTLE_MS);
    const before = await processTree(root);
    const sinceMs = performance.now();
    await sleep(seconds * 1000);
    const after = await processTree(root);
    const passedMs = performance.now() - sinceMs;
    return after.flatMap(({ pid, name, cpuMs, waits }) => {
      const then = before.find((each) => each.pid === pid);
      if (then === undefined) return [];
      return [{ name, cores: (cpuMs - then.cpuMs) / passedMs, wakeups: ((waits - then.waits) * 1000) / passedMs }];
    });
  });
}

interface Started {
  readonly url: string;
  /** Process id of npm. */
  readonly root: number;
  /** When the command was given, on the monotonic clock. */
  readonly startMs: number;
  readonly servingMs: number;
}

async function withSystem<T>({ root, data }: Checkout, use: (system: Started) => Promise<T>): Promise<T> {
  const startMs = performance.now();
  const words = ['start', '--silent', '--', '--port', '0', '--data', data];
  const npm = spawn('npm', words, { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
  try {
    const url = await servingUrl(npm);
    return await use({ url, root: npm.pid!, startMs, servingMs: performance.now() - startMs });
  } finally {
    await stop(npm);
  }
}

/** The URL of the line `Serving at URL.` */
async function servingUrl(npm: ChildProcess): Promise<string> {
  const lines = createInterface(npm.stdout!);
  const late = AbortSignal.timeout(START_TIMEOUT_MS);
  late.addEventListener('abort', () => lines.close(), { once: true });
  for await (const line of lines) {
    const url = /^Serving at (\S+)\. /.exec(line)?.[1];
    if (url === undefined) continue;
    npm.stdout!.resume(); // nothing is to wait in the pipe
    return url;
  }
  const why = late.aborted ? `within ${START_TIMEOUT_MS} ms` : 'before it ended, for the reason above';
  throw new ServingError('internal', `npm start did not say where it serves ${why}`);
}

/** npm passes no signal on: `up` is told itself, and stops its services. */
async function stop(npm: ChildProcess): Promise<void> {
  if (npm.exitCode !== null || npm.signalCode !== null) return;
  const ended = once(npm, 'exit');
  const up = (await processTree(npm.pid!)).find(({ name }) => name === 'up');
  if (up) process.kill(up.pid, 'SIGTERM');
  else npm.kill('SIGKILL');
  await ended;
}

/**
 * Completes the line of the sample.
 * @returns when its first token came, on the monotonic clock, and whether chunks were found.
 */
async function complete(url: string): Promise<{ readonly atMs: number; readonly hasContext: boolean }> {
  const body = { ...SAMPLE_BODY, rag: { repo: SAMPLE_REPO, mode: 'compressed', path: SAMPLE.path } };
  const { rag, chunksAtMs } = await streamCompletion(url, body, AbortSignal.timeout(START_TIMEOUT_MS));
  const [atMs] = chunksAtMs;
  if (atMs === undefined) throw new ServingError('internal', 'the first completion had no token');
  return { atMs, hasContext: (rag?.chunks.length ?? 0) > 0 };
}

/** Processes of one name are summed. */
function cpuByName(tree: readonly ProcessFigures[]): Record<string, number> {
  const sums: Record<string, number> = { ended: 0 };
  for (const { name, cpuMs, endedCpuMs } of tree) {
    sums[name] = (sums[name] ?? 0) + cpuMs;
    sums['ended']! += endedCpuMs;
  }
  return sums;
}
