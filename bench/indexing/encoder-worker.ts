/** Starts ./encoder-child.ts, and measures several of them that encode at the same time. */
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { ServingError } from '../../services/lib/process/errors.ts';
import type { EncoderInput } from '../../services/lib/rag/encode/encoder-input.ts';
import { divideCores, pin } from '../system/cores.ts';
import type { EncoderAnswer, EncoderTask } from './encoder-child.ts';
import type { EncoderCell } from './result.ts';

interface Encoding {
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly tokens: number;
}

/**
 * Encodes the chunks once. The workers of the cell divide chunks and cores, load the encoder, and start together; each
 * has a process, an engine and a copy of the weights of its own. They end with the measurement, so that no row's memory
 * is held while another is measured.
 * @throws ServingError internal if a worker fails.
 */
export async function encodeOnce(
  bundle: string,
  { batching, workers, threads }: EncoderCell,
  chunks: readonly EncoderInput[],
  cores: readonly number[],
): Promise<Encoding> {
  const shares = divideCores(cores, workers, 'split');
  const children: ChildProcess[] = [];
  try {
    const loaded = shares.map(async (own, worker) => {
      const child = fork(new URL('./encoder-child.js', import.meta.url), { stdio: ['ignore', 2, 2, 'ipc'] });
      children.push(child);
      // Every so many chunks, so that all workers get chunks of the same lengths.
      const part = chunks.filter((_, i) => i % workers === worker);
      await ask(child, { bundle, threads, batching, chunks: part });
      await pin(child.pid!, own);
    });
    await Promise.all(loaded);
    const startMs = performance.now();
    const answers = await Promise.all(children.map(async (child) => ask(child, 'start')));
    const seconds = (performance.now() - startMs) / 1000;
    const done = answers.flatMap((answer) => ('cpuSeconds' in answer ? [answer] : []));
    const sum = (key: 'cpuSeconds' | 'tokens') => done.reduce((total, answer) => total + answer[key], 0);
    return { seconds, cpuSeconds: sum('cpuSeconds'), tokens: sum('tokens') };
  } finally {
    await Promise.all(children.map(end));
  }
}

/** @throws ServingError internal if the child reports an error or ends. */
async function ask(child: ChildProcess, message: EncoderTask | 'start'): Promise<EncoderAnswer> {
  const ended = new AbortController();
  const failed = (why: string) => new ServingError('internal', `a worker of bench index failed: ${why}`);
  try {
    const answered = once(child, 'message', { signal: ended.signal });
    const exited = once(child, 'exit', { signal: ended.signal }).then(([code, signal]) => {
      throw failed(`its process ended (${code ?? signal})`);
    });
    child.send(message);
    const [answer] = (await Promise.race([answered, exited])) as [EncoderAnswer];
    if ('error' in answer) throw failed(answer.error);
    return answer;
  } finally {
    ended.abort();
  }
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, 'exit');
  child.kill('SIGKILL');
  await exited;
}
