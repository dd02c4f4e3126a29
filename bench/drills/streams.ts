/**
 * Sends streams under disturbance and compares them with the greedy answers of an undisturbed run: a client must
 * receive a prefix of that answer, and all of it if the stream ended well.
 */
import { randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { type CompletionBody, type RagAnswer, streamCompletion } from '../../services/client.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { RandomStream } from '../measure/arrivals.ts';
import type { PromptMaker } from '../system/prompts.ts';
import type { Door } from '../system/tenants.ts';

/** A request with the answers that it must get. */
export interface Reference {
  readonly body: CompletionBody;
  readonly tokenIds: readonly number[];
  /** The answer if the index cannot be asked. */
  readonly withoutContext: readonly number[];
  /** Duration of the undisturbed stream in ms. */
  readonly tookMs: number;
  /** Answers by version of the index, if that changes meanwhile. */
  readonly byVersion?: ReadonlyMap<string, readonly number[]>;
  /** Further answers that are right if the index cannot be asked: those of other bundles that serve too. */
  readonly othersWithoutContext?: readonly (readonly number[])[];
}

/** The outcome of one request. All times are in ms from the start of the run. */
export interface StreamRecord {
  readonly sentMs: number;
  readonly firstMs: number | undefined;
  readonly endedMs: number;
  readonly outcome: 'ok' | 'failed' | 'left';
  /** The error code of a failure; `connection` where none came, `client_timeout` where nothing did. */
  readonly code?: string;
  /** Tokens that are missing from a stream that ended well. */
  readonly lost: number;
  /** Tokens that differ from the reference at their place: doubled, swapped or made up. */
  readonly doubled: number;
  /** Longest time between two tokens. */
  readonly longestGapMs: number;
  /** Why it ended well, but without the context that it asked for. */
  readonly degraded?: string | undefined;
  /** The tokens received and expected, for a stream that ended well with wrong tokens. */
  readonly difference?: Difference;
}

export interface Difference {
  readonly path: string | undefined;
  readonly received: readonly (readonly number[])[];
  readonly expected: readonly (readonly number[])[];
}

/** Tokens of each answer and of each prompt, its context included. */
export const OUTPUT_TOKENS = 40;
export const PROMPT_TOKENS = 160;
/** Time that a client waits for a stream, in ms: longer than any gateway of a drill takes, which then says why. */
export const TIMEOUT_MS = 70_000;
/** Share of the duration of a stream within which a leaving client leaves, so that it does before the end. */
const LEAVE_WITHIN = 0.9;
/** Requests that a burst sends at once: several for each of two workers. */
const BURST = 8;
const LEFT = new Error('the client left');

/** Number of cursors tried for each reference. */
const CURSORS = 8;

/**
 * Makes one reference per file: the gateway takes requests for the same file as those of one editor, which share
 * context.
 * @param door of a system that nothing disturbs.
 * @param count upper bound on the references; there are no more than files.
 */
export async function makeReferences(door: Door, prompts: PromptMaker, count: number): Promise<Reference[]> {
  const greedy = { max_tokens: OUTPUT_TOKENS, temperature: 0, ignore_eos: true, return_token_ids: true };
  const references: Reference[] = [];
  const files = new Set<string | undefined>();
  for (let i = 0; i < count * CURSORS && references.length < count; i++) {
    const shape = { tokens: PROMPT_TOKENS, context: 'compressed', contextTokens: 10 } as const;
    const body = { ...prompts.make(i, shape), ...greedy };
    if (files.has(body.rag?.path)) continue;
    files.add(body.rag?.path);
    const answer = (request: CompletionBody) =>
      streamCompletion(door.url, request, AbortSignal.timeout(TIMEOUT_MS), door);
    const { tokenIds, rag } = await answer(body);
    if (rag?.degraded) throw new ServingError('internal', `the undisturbed run had no context: ${rag.degraded}`);
    const { rag: _, ...plain } = body;
    // The duration is taken from the second request, because the first one of a system takes longer.
    const { tokenIds: withoutContext, sentAtMs, endedAtMs } = await answer(plain);
    references.push({ body, tokenIds, withoutContext, tookMs: endedAtMs - sentAtMs });
  }
  return references;
}

export interface Traffic {
  /** Requests per second, Poisson. */
  readonly rate: number;
  readonly seed: number;
  /** Share of clients that leave in the middle. */
  readonly leaving?: number;
  /** Called when a request has ended. */
  readonly onRecord?: ((record: StreamRecord) => void) | undefined;
}

/** Sends random references in an open loop; clients leave as often as `traffic` says. */
export function sendTraffic(
  door: Door,
  references: readonly Reference[],
  traffic: Traffic,
  startMs: number,
  until: AbortSignal,
): Promise<StreamRecord[]> {
  const { leaving = 0, onRecord } = traffic;
  return openLoop(traffic, startMs, until, async (random) => {
    const reference = references[random.below(references.length)]!;
    const leaves = random.uniform() < leaving;
    const leaveAfterMs = leaves ? random.uniform() * LEAVE_WITHIN * reference.tookMs : undefined;
    const record = await sendStream(door, reference, startMs, leaveAfterMs);
    onRecord?.(record);
    return record;
  });
}

/**
 * Sends each request at its time, whatever became of earlier ones.
 * @param until ends the sending when it is aborted.
 * @returns the results, when the last request has ended.
 */
export async function openLoop<T>(
  { rate, seed }: Pick<Traffic, 'rate' | 'seed'>,
  startMs: number,
  until: AbortSignal,
  send: (random: RandomStream) => Promise<T>,
): Promise<T[]> {
  const random = new RandomStream(seed);
  const sent: Promise<T>[] = [];
  for (let atMs = 0; ; ) {
    atMs += (random.gamma(1) * 1000) / rate;
    await sleep(Math.max(0, startMs + atMs - performance.now()), undefined, { signal: until }).catch(() => {});
    if (until.aborted) return Promise.all(sent);
    sent.push(send(random));
  }
}

/** The same request with a salt of its own, so that its whole prompt must be computed. */
export const uncached = ({ body, ...known }: Reference): Reference => {
  return { ...known, body: { ...body, cache_salt: randomUUID() } };
};

/** Sends some requests at once, whose whole prompts must be computed. */
export function sendBurst(door: Door, references: readonly Reference[], startMs: number): Promise<StreamRecord>[] {
  return Array.from({ length: BURST }, (_, i) => {
    return sendStream(door, uncached(references[i % references.length]!), startMs);
  });
}

/** @param leaveAfterMs time after which the client hangs up; if not given, it does not. */
export async function sendStream(
  { url, apiKey }: Door,
  reference: Reference,
  startMs: number,
  leaveAfterMs?: number,
): Promise<StreamRecord> {
  const leave = new AbortController();
  const timer = leaveAfterMs === undefined ? undefined : setTimeout(() => leave.abort(LEFT), leaveAfterMs);
  const sentMs = performance.now() - startMs;
  const chunksMs: number[] = [];
  const received: number[] = [];
  let expected = reference.tokenIds;
  const known = () => ({
    sentMs,
    firstMs: chunksMs[0],
    endedMs: performance.now() - startMs,
    doubled: received.length - commonStart(received, expected),
    longestGapMs: Math.max(0, ...chunksMs.slice(1).map((at, i) => at - chunksMs[i]!)),
  });
  try {
    const signal = AbortSignal.any([leave.signal, AbortSignal.timeout(TIMEOUT_MS)]);
    const onChunk = (atMs: number, tokenIds: readonly number[]) => {
      chunksMs.push(atMs - startMs);
      received.push(...tokenIds);
    };
    const { rag } = await streamCompletion(url, reference.body, signal, { apiKey, onChunk });
    expected = answerOf(reference, rag, received);
    const lost = expected.length - commonStart(received, expected);
    const difference = { path: reference.body.rag?.path, received: [received], expected: [expected] };
    const ended = { ...known(), outcome: 'ok', lost, degraded: rag?.degraded } as const;
    return lost > 0 || ended.doubled > 0 ? { ...ended, difference } : ended;
  } catch (error) {
    // The context of a stream that broke off is not known: its tokens must fit one of the answers.
    const { withoutContext, othersWithoutContext = [], byVersion } = reference;
    const answers = [expected, withoutContext, ...othersWithoutContext, ...(byVersion?.values() ?? [])];
    expected = answers.find((answer) => commonStart(received, answer) === received.length) ?? expected;
    if (leave.signal.aborted) return { ...known(), outcome: 'left', lost: 0 };
    return { ...known(), outcome: 'failed', code: codeOf(error), lost: 0 };
  } finally {
    clearTimeout(timer);
  }
}

function codeOf(error: unknown): string {
  if (error instanceof ServingError) return error.code;
  return (error as Error).name === 'TimeoutError' ? 'client_timeout' : 'connection';
}

/** The tokens that must come with the context that was found. */
function answerOf(
  { tokenIds, withoutContext, othersWithoutContext = [], byVersion }: Reference,
  rag: RagAnswer | undefined,
  received: readonly number[],
): readonly number[] {
  if (rag?.degraded) {
    const isWhole = (answer: readonly number[]) => commonStart(received, answer) === answer.length;
    return othersWithoutContext.find(isWhole) ?? withoutContext;
  }
  // A version that no edit made has no right answer.
  return byVersion ? (byVersion.get(rag?.index_version ?? '') ?? []) : tokenIds;
}

/** Length of the common prefix of two answers. */
export function commonStart(a: readonly number[], b: readonly number[]): number {
  let at = 0;
  while (at < a.length && at < b.length && a[at] === b[at]) at++;
  return at;
}
