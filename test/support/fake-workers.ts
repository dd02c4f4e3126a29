/** Workers as object literals: functions of the test decide their answers, and their open calls are counted. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { ServingError } from '../../services/lib/process/errors.ts';
import type { DecodeClient, PrefillClient } from '../../services/lib/rpc/contract.ts';
import type { DecodeRequest } from '../../services/lib/rpc/gen/llavacode/v1/DecodeRequest.ts';
import type { PrefillRequest } from '../../services/lib/rpc/gen/llavacode/v1/PrefillRequest.ts';
import type { Token__Output } from '../../services/lib/rpc/gen/llavacode/v1/Token.ts';
import type { WorkerDescription__Output } from '../../services/lib/rpc/gen/llavacode/v1/WorkerDescription.ts';
import { fromStatus, toStatus } from '../../services/lib/rpc/status.ts';

/** Stages at which a request can be made to wait for its signal instead of going on. */
export type Stage = 'before accepted' | 'before first' | 'before released' | 'before joined' | 'in decode';

export interface Trouble {
  readonly stage: Stage;
  /** Address of the worker. */
  readonly worker: string;
  /** How many calls of its kind came before this one. */
  readonly call: number;
  /** Position of the next output token. */
  readonly position: number;
}

export interface FakeModel {
  /** Output id at a position (0 is the first) of a choice. */
  token: (position: number, choice: number, seed: number) => number;
  /** The request stops here until it is aborted. */
  holdAt?: Stage;
  /** Requests that come to the stage wait there. */
  pauseAt?: { stage: Stage; until: Promise<void> };
  /** An error that is thrown at a stage. */
  failAt?: { stage: Stage; error: unknown };
  /** Called when a call of a worker comes to a stage: the call throws what this throws, and stops at 'hang'. */
  trouble?: (at: Trouble) => 'hang' | undefined;
  /** What each step says of the tokens of a prediction. */
  readonly predicted?: { readonly accepted: number; readonly rejected: number };
  /** Tokens of one decode event. */
  stepSize?: number;
  capacity?: number;
  fingerprint?: string;
  slots?: number;
  prefillTokensPerSecond?: number;
  /** ms of a decode worker's step, by the number of its sequences. */
  stepMs?: readonly number[];
  /** Time that they take to describe themselves, in ms. */
  describeMs?: number;
}

export interface FakeWorkers {
  readonly model: FakeModel;
  readonly prefill: { readonly address: string; readonly client: PrefillClient };
  readonly decode: { readonly address: string; readonly client: DecodeClient };
  /** The same workers, as if at another address. */
  readonly prefillAt: (address: string) => PrefillClient;
  readonly decodeAt: (address: string) => DecodeClient;
  /** Every request that came. */
  readonly prefills: PrefillRequest[];
  readonly decodes: DecodeRequest[];
  /** Calls that have not ended. */
  open: number;
  /** Resolves when a call has come to the stage where the model holds it. */
  held(): Promise<void>;
  /** Resolves when no call is open. */
  idle(): Promise<void>;
}

export const FINGERPRINT = 'f'.repeat(64);

/** An error as the gateway gets it from a worker: its code and message have gone through gRPC. */
function sent(error: unknown, worker: string): ServingError {
  const status = toStatus(error);
  return fromStatus(Object.assign(new Error(`${status.code}`), status), worker);
}

export function fakeWorkers(model: FakeModel): FakeWorkers {
  const watchers = new Set<() => void>();
  const until = (condition: () => boolean) =>
    new Promise<void>((resolve) => {
      const look = () => {
        if (!condition()) return;
        watchers.delete(look);
        resolve();
      };
      watchers.add(look);
      look();
    });
  const changed = () => {
    for (const look of [...watchers]) look();
  };
  let holding = 0;

  /** Passes, waits for the abort, or throws, as the model says. */
  async function at(stage: Stage, where: Omit<Trouble, 'stage'>, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted();
    if (model.failAt?.stage === stage) throw sent(model.failAt.error, where.worker);
    let trouble: 'hang' | undefined;
    try {
      trouble = model.trouble?.({ stage, ...where });
    } catch (error) {
      throw sent(error, where.worker);
    }
    const paused = model.pauseAt?.stage === stage ? model.pauseAt.until : undefined;
    if (trouble !== 'hang' && model.holdAt !== stage && !paused) return;
    holding++;
    changed();
    if (paused) return paused;
    await new Promise((_, reject) => signal.addEventListener('abort', () => reject(signal.reason), { once: true }));
  }

  async function* counted<T>(events: AsyncGenerator<T>): AsyncGenerator<T> {
    workers.open++;
    try {
      yield* events;
    } finally {
      workers.open--;
      changed();
    }
  }

  const token = (id: number, logprobs: number): Token__Output => ({
    id,
    logprob: logprobs < 0 ? 0 : -id / 100,
    top: Array.from({ length: Math.max(logprobs, 0) }, (_, i) => ({ id: id + i, logprob: -(id + i) / 100 })),
  });

  /** Readers that have not pulled yet, by lease. */
  const readers = new Map<string, number>();

  async function* prefill(worker: string, request: PrefillRequest, signal: AbortSignal) {
    const call = workers.prefills.length - 1;
    const prior = request.choices?.[0]?.priorOutputIds ?? [];
    const where = { worker, call, position: prior.length };
    if (prior.some((id, i) => id !== request.tokenIds?.at(i - prior.length))) throw new Error('prior is not the end');
    await at('before accepted', where, signal);
    const leaseId = `${request.requestId}/${workers.prefills.length}`;
    readers.set(leaseId, request.readers ?? 0);
    const kv = {
      address: worker,
      leaseId,
      fingerprint: FINGERPRINT,
      positions: request.tokenIds?.length ?? 0,
      leaseMs: 60_000,
      seal: Buffer.alloc(0),
    };
    yield { kind: 'accepted' as const, accepted: { kv, queueUs: 10 } };
    await at('before first', where, signal);
    const asked = request.promptLogprobs ?? -1;
    const first = {
      tokens: (request.choices ?? []).map((sampling, choice) =>
        token(model.token(prior.length, choice, Number(sampling.seed)), Number(sampling.logprobs)),
      ),
      promptLogprobs: asked < 0 ? [] : (request.tokenIds ?? []).map((id, i) => token(i === 0 ? 0 : id, asked)),
      cachedTokens: 2,
      prefillUs: 1000,
      chunks: 1,
    };
    yield { kind: 'first' as const, first };
    await at('before released', where, signal);
    signal.throwIfAborted(); // it may have come while we waited
    const aborted = new Promise<void>((_, reject) =>
      signal.addEventListener('abort', () => reject(signal.reason), { once: true }),
    );
    await Promise.race([until(() => readers.get(leaseId) === 0), aborted]);
    yield { kind: 'released' as const, released: {} };
  }

  async function* decode(worker: string, request: DecodeRequest, signal: AbortSignal) {
    const call = workers.decodes.length - 1;
    const prior = request.sampling?.priorOutputIds?.length ?? 0;
    await at('before joined', { worker, call, position: prior + 1 }, signal);
    const leaseId = request.kv?.leaseId ?? '';
    readers.set(leaseId, (readers.get(leaseId) ?? 0) - 1);
    changed();
    yield { kind: 'joined' as const, joined: { queueUs: 20, handoffUs: 300, handoffExposedUs: 3, handoffBytes: 99 } };
    const { choice = 0, maxTokens = 0, sampling } = request;
    for (let position = 1; position < maxTokens; ) {
      await at('in decode', { worker, call, position: prior + position }, signal);
      const tokens: Token__Output[] = [];
      let finishReason = '';
      while (finishReason === '' && tokens.length < (model.stepSize ?? 1)) {
        const id = model.token(prior + position++, choice, Number(sampling?.seed));
        tokens.push(token(id, Number(sampling?.logprobs)));
        if (sampling?.stopTokenIds?.includes(id)) finishReason = 'stop';
        else if (position >= maxTokens) finishReason = 'length';
      }
      const { accepted = 0, rejected = 0 } = model.predicted ?? {};
      const step = { tokens, finishReason, acceptedPredicted: accepted, rejectedPredicted: rejected };
      yield { kind: 'step' as const, step };
      if (finishReason !== '') return;
    }
  }

  const describe = async (role: string): Promise<WorkerDescription__Output> => {
    if (model.describeMs) await sleep(model.describeMs);
    return description(role);
  };
  const description = (role: string): WorkerDescription__Output => ({
    role,
    model: 'fake',
    fingerprint: model.fingerprint ?? FINGERPRINT,
    layout: null,
    capacity: model.capacity ?? 256,
    slots: model.slots ?? 4,
    freeSlots: model.slots ?? 4,
    queued: 0,
    prefillTokensPerSecond: model.prefillTokensPerSecond ?? 0,
    overdueMs: 0,
    device: 'cpu',
    kvFolder: '',
    stepMs: [...(model.stepMs ?? [])],
  });

  const prefillAt = (address: string): PrefillClient => ({
    prefill: (request, signal) => {
      workers.prefills.push(request);
      return counted(prefill(address, request, signal));
    },
    describe: () => describe('prefill'),
    close: () => {},
  });
  const decodeAt = (address: string): DecodeClient => ({
    decode: (request, signal) => {
      workers.decodes.push(request);
      return counted(decode(address, request, signal));
    },
    describe: () => describe('decode'),
    close: () => {},
  });
  const workers: FakeWorkers = {
    model,
    prefill: { address: '127.0.0.1:1', client: prefillAt('127.0.0.1:1') },
    decode: { address: '127.0.0.1:2', client: decodeAt('127.0.0.1:2') },
    prefillAt,
    decodeAt,
    prefills: [],
    decodes: [],
    open: 0,
    held: () => until(() => holding > 0),
    idle: () => until(() => workers.open === 0),
  };
  return workers;
}
