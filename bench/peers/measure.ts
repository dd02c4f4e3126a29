/**
 * Servers of the completions API, ours and others, measured in turns: every round measures each figure once on each
 * server, one right after the other and in alternating order, so that disturbances by other programs fall on all
 * alike. All get the same token ids and answer greedily, in full length.
 */
import { type StreamedCompletion, streamCompletion, tpotMs, ttftMs } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { arrivalTimes, RandomStream } from '../measure/arrivals.ts';
import { type ClientRecord, type LoadSummary, type Slo, summarise } from '../measure/latency.ts';
import { runOpenLoop } from '../measure/load-client.ts';
import { median } from '../measure/statistics.ts';
import type { Peer, PeersOptions } from './command.ts';

/** What one figure is measured with. */
export type ServerCell =
  | { readonly kind: 'prompt'; readonly tokens: number }
  | { readonly kind: 'streams'; readonly streams: number }
  | { readonly kind: 'keystroke'; readonly tokens: number };

/** One server under one load. */
interface ServerLoad {
  readonly summary: LoadSummary;
  readonly records: readonly ClientRecord[];
}

interface MeasuredServer {
  readonly name: string;
  /** Whether it is one of ours. */
  readonly ours: boolean;
  /** By cell and round: ms to the first token; of streams, ms per token. */
  readonly ms: readonly (readonly number[])[];
  /** By rate. */
  readonly loads: readonly ServerLoad[];
}

export interface ServersResult {
  readonly model: string;
  readonly cells: readonly ServerCell[];
  readonly load: {
    readonly rates: readonly number[];
    readonly slo: Slo;
    readonly seconds: number;
    readonly promptTokens: number;
    readonly outputTokens: number;
  };
  /** Ours first: others are compared with the first of all. */
  readonly servers: readonly MeasuredServer[];
}

export type Measuring = Pick<
  PeersOptions,
  | 'rounds'
  | 'prompts'
  | 'streams'
  | 'streamTokens'
  | 'keystrokeTokens'
  | 'rate'
  | 'seconds'
  | 'promptTokens'
  | 'outputTokens'
  | 'slo'
  | 'timeoutMs'
  | 'seed'
>;

/** Tokens of the prompt of a stream: few, so that the prompts of the others hardly delay it. */
const STREAM_PROMPT_TOKENS = 32;
/** Each request has a connection of its own: some servers close theirs after an answer, without saying so before. */
const HEADERS = { connection: 'close' };
/** Tokens of an answer whose first one is timed. */
const TIMED_TOKENS = 4;

/** Draws a prompt of so many tokens. No two begin alike, so no server has the KV of one. */
type Draw = (tokens: number) => number[];

/**
 * @param vocabulary number of token ids of the model that all servers have; special tokens are its last ones.
 * @throws ServingError with the name of the server that fails, or that answers other than it was asked to. Under the
 *   load a failure counts as a request that missed its objective, and is not thrown.
 */
export async function measureServers(
  servers: readonly (Peer & { readonly ours: boolean })[],
  vocabulary: number,
  options: Measuring,
  onProgress: (text: string) => void,
): Promise<Pick<ServersResult, 'cells' | 'load' | 'servers'>> {
  const cells = cellsOf(options);
  const random = new RandomStream(options.seed);
  const ids = Math.floor(0.9 * vocabulary);
  const draw: Draw = (tokens) => Array.from({ length: tokens }, () => random.below(ids));
  const ms = servers.map(() => cells.map((): number[] => []));
  for (let round = -1; round < options.rounds; round++) {
    onProgress(round < 0 ? 'warming up' : `round ${round + 1} of ${options.rounds}`);
    for (const [i, cell] of cells.entries()) {
      const measure = planCell(cell, draw, options);
      const turn = [...servers.entries()];
      for (const [at, server] of (round + i) % 2 === 0 ? turn : turn.toReversed()) {
        const value = await measure(server);
        if (round >= 0) ms[at]![i]!.push(value);
      }
    }
  }
  const loads = servers.map((): ServerLoad[] => []);
  for (const [i, rate] of options.rate.entries()) {
    const plan = planLoad(rate, draw, options);
    const turn = [...servers.entries()];
    for (const [at, server] of i % 2 === 0 ? turn : turn.toReversed()) {
      onProgress(`${server.name}: ${rate} requests/s for ${options.seconds} s`);
      const records = await runOpenLoop(server.url, plan, { timeoutMs: options.timeoutMs, headers: HEADERS });
      loads[at]!.push({ records, summary: summarise(records, { warmup: 0, slo: options.slo }) });
    }
  }
  const { rate: rates, slo, seconds, promptTokens, outputTokens } = options;
  const measured = servers.map(({ name, ours }, at) => ({ name, ours, ms: ms[at]!, loads: loads[at]! }));
  return { cells, load: { rates, slo, seconds, promptTokens, outputTokens }, servers: measured };
}

const cellsOf = ({ prompts, keystrokeTokens, streams }: Measuring): ServerCell[] => [
  ...prompts.map((tokens) => ({ kind: 'prompt' as const, tokens })),
  ...(keystrokeTokens > 0 ? [{ kind: 'keystroke' as const, tokens: keystrokeTokens }] : []),
  ...streams.map((streams) => ({ kind: 'streams' as const, streams })),
];

/** Draws the prompts of one cell of one round. @returns what measures a server with them. */
function planCell(cell: ServerCell, draw: Draw, options: Measuring): (server: Peer) => Promise<number> {
  const { streamTokens, timeoutMs } = options;
  const first = async (server: Peer, prompt: number[]) =>
    ttftMs(await complete(server, prompt, TIMED_TOKENS, timeoutMs));
  if (cell.kind === 'prompt') {
    const prompt = draw(cell.tokens);
    return (server) => first(server, prompt);
  }
  if (cell.kind === 'keystroke') {
    const prompt = draw(cell.tokens);
    const typed = [...prompt, ...draw(1)];
    return async (server) => {
      await first(server, prompt);
      return first(server, typed);
    };
  }
  const prompts = Array.from({ length: cell.streams }, () => draw(STREAM_PROMPT_TOKENS));
  return async (server) => {
    const answers = await Promise.all(prompts.map((prompt) => complete(server, prompt, streamTokens, timeoutMs)));
    return median(answers.flatMap((answer) => tpotMs(answer) ?? []));
  };
}

function planLoad(rate: number, draw: Draw, { seconds, promptTokens, outputTokens, seed }: Measuring) {
  const times = arrivalTimes({ kind: 'poisson', rate, count: Math.ceil(rate * seconds), seed });
  return times.map((atMs) => ({ atMs, body: bodyOf(draw(promptTokens), outputTokens) }));
}

/** Greedy, and of full length: a server that knows no `ignore_eos` may still end a text early. */
const bodyOf = (prompt: readonly number[], tokens: number) => ({
  prompt,
  max_tokens: tokens,
  temperature: 0,
  ignore_eos: true,
});

async function complete(
  { name, url }: Peer,
  prompt: readonly number[],
  tokens: number,
  timeoutMs: number,
): Promise<StreamedCompletion> {
  const failed = (code: 'invalid_request' | 'worker_lost', why: string, remedy: string, cause?: unknown) =>
    new ServingError(code, `${name} (a prompt of ${prompt.length} tokens): ${why}`, { cause, remedy });
  const signal = AbortSignal.timeout(timeoutMs);
  const sent = streamCompletion(url, bodyOf(prompt, tokens), signal, { headers: HEADERS });
  const answer = await sent.catch((cause: unknown) => {
    const { message } = ServingError.from(cause, 'worker_lost');
    throw failed('worker_lost', message, `See the log of ${name}, and whether it answers within --timeout-ms.`, cause);
  });
  const { prompt_tokens: read, completion_tokens: written } = answer.usage;
  if (read !== prompt.length || written !== tokens) {
    const why = `it read ${read} tokens and wrote ${written}, and was asked to write ${tokens}`;
    throw failed('invalid_request', why, 'Serve a model of the same vocabulary whose texts do not end early.');
  }
  return answer;
}
